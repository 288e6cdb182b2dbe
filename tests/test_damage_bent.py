"""Damage by chance: files with a few bits wrong raise or decode, but never crash.

Each run is in a Python of its own, its memory limited; the slow ones are for `make test-all`.
"""

import json

import pytest
import tifffile
from PIL import Image

import oracles
from oracles import run_python

MUTATE = """
    import collections, json, logging, numpy as np, stfast
    logging.disable(logging.CRITICAL)
    rng, odd = np.random.default_rng({seed}), collections.Counter()
    contents = {{p: open(p, "rb").read() for p in {paths!r}}}
    for number in range({rounds}):
        path = list(contents)[number % len(contents)]
        bent = bytearray(contents[path])
        for _ in range(rng.integers(1, 4)):
            # TIFF's directory and the headers of JPEG and PNG stand in front.
            at = int(rng.integers(len(bent) if rng.random() < 0.4 else min(len(bent), 420)))
            kind = rng.random()
            if kind < 0.5:
                bent[at] ^= 1 << int(rng.integers(8))
            elif kind < 0.8:
                bent[at] = int(rng.integers(256))
            elif kind < 0.95:
                del bent[at : at + int(rng.integers(1, 9))]
            else:
                del bent[max(at, 9) :]
        open({bent!r}, "wb").write(bent)
        try:
            image = stfast.open_image({bent!r})
            height, width = image.shape
            stfast.extract_tiles(image, [[0, 0], [width / 2, height / 2], [width, height]], 16)
        except (ValueError, OSError, NotImplementedError):
            pass
        except BaseException as error:
            odd[f"{{type(error).__name__}}: {{error}}"[:60]] += 1
    print(json.dumps(odd))
"""


@pytest.mark.parametrize("seed", [1, 2])
def test_bent_files_raise_or_decode_but_never_crash(damageable, tmp_path, seed):
    """3 000 files with a few bits wrong: no crash, no hang, no panic, no stray exception."""
    code = MUTATE.format(
        seed=seed,
        rounds=1500,
        paths=[str(p) for p in damageable.values()],
        bent=str(tmp_path / "bent.bin"),
    )
    assert json.loads(run_python(code, memory_gb=16, timeout=120)) == {}


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Pictures of a million pixels that are one block: bands, passes, tiles within."""
    folder = tmp_path_factory.mktemp("large")
    data = oracles.picture(1040, 1010)
    image = Image.fromarray(data)
    image.save(folder / "bands.jpg", quality=60, restart_marker_rows=1)
    image.save(folder / "pass.jpg", quality=60, progressive=True)
    image.save(folder / "pass.png", compress_level=1)
    image.save(folder / "tiles.jp2", tile_size=(256, 256), quality_layers=[40])
    for codec in ("deflate", "lzw", "zstd", "packbits"):
        options = {"photometric": "rgb", "compression": codec, "rowsperstrip": 1040}
        tifffile.imwrite(folder / f"{codec}.tif", data, **options)
    return {path.name: path for path in sorted(folder.iterdir())}


@pytest.mark.parametrize(
    ("seed", "rounds"), [(3, 150), pytest.param(4, 3000, marks=pytest.mark.slow)]
)
def test_bent_pictures_of_one_block_never_crash(large, tmp_path, seed, rounds):
    code = MUTATE.format(
        seed=seed,
        rounds=rounds,
        paths=[str(p) for p in large.values()],
        bent=str(tmp_path / "bent.bin"),
    )
    assert json.loads(run_python(code, memory_gb=16, timeout=250)) == {}


@pytest.mark.slow
def test_many_more_bent_files_never_crash(damageable, tmp_path):
    code = MUTATE.format(
        seed=5,
        rounds=20_000,
        paths=[str(p) for p in damageable.values()],
        bent=str(tmp_path / "bent.bin"),
    )
    assert json.loads(run_python(code, memory_gb=16, timeout=280)) == {}
