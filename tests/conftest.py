"""What all tests share: hypothesis' profile, the real samples, and one small synthetic slide.

Hypothesis draws the same few examples every time, so that a red test stays red; set
``HYPOTHESIS_PROFILE=explore`` to look for new ones. Real files are never in the repository:
a test that wants one asks for ``real`` and is skipped, saying so, where they are missing.
"""

import dataclasses
import itertools
import json
import os
import sys
from pathlib import Path

import hypothesis
import numpy as np
import polars as pl
import pytest
import tifffile
from PIL import Image

import oracles
import stfast
from oracles import at_any_workers
from stfast import cli, extract_tiles, open_image

hypothesis.settings.register_profile(
    "ci",
    derandomize=True,
    max_examples=25,
    deadline=None,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)
hypothesis.settings.register_profile("explore", max_examples=500, deadline=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

DATA = Path(
    os.environ.get("STFAST_TEST_DATA") or Path(__file__).parent.parent.parent / "shared" / "data"
)
SQUARE = Path("binned_outputs/square_002um")


@pytest.fixture(scope="session")
def real():
    """Find a real sample by its path in the data folder, or skip."""

    def find(name):
        path = DATA / name
        if not path.exists():
            pytest.skip(f"no {name} in {DATA}: set STFAST_TEST_DATA")
        return path

    return find


@pytest.fixture(scope="session")
def slide(tmp_path_factory):
    """A synthetic Visium HD slide of 50 × 50 squares; read it, never write to it.

    50 is no multiple of 4, 8 or 16: the last bins are partial ones.
    """
    folder = tmp_path_factory.mktemp("hd") / "slide"
    return stfast.synthesize_visium_hd(folder, side_um=100, n_genes=60, mpp=0.5, seed=1)


@pytest.fixture(scope="session")
def squares(slide):
    """The slide's raw squares as scanpy reads them; copy before changing."""
    return oracles.squares_of(slide / SQUARE)


@pytest.fixture(scope="session")
def bins(slide):
    """The slide at 8 µm as stfast reads it; copy before changing."""
    return stfast.read(slide)


@pytest.fixture(scope="session")
def slides(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slides")
    first = oracles.slide_with_picture(folder, 0)
    return [
        first,
        oracles.slide_with_picture(folder, 1, n=45, codec="JPEG"),
        oracles.slide_with_picture(folder, 2, n=1),
    ]


def all_pixels(image, size=64):
    """The full-resolution pixels of an image: tiles put together, at 1, 2 and 5 workers.

    A picture of many megapixels is read once, at 2.
    """
    image = image if isinstance(image, stfast.SlideImage) else open_image(image)
    height, width = image.shape
    size = min(size, height, width)
    corners = [[min(at, n - size) for at in range(0, n, size)] for n in (height, width)]
    places = list(itertools.product(*corners))
    centers = np.array([(x + size / 2, y + size / 2) for y, x in places])
    if height * width > 5_000_000:
        tiles = extract_tiles(image, centers, size, workers=2)
    else:
        tiles = at_any_workers(lambda n: extract_tiles(image, centers, size, workers=n))
    out = np.zeros((height, width, 3), np.uint8)
    for (y, x), tile in zip(places, tiles, strict=True):
        out[y : y + size, x : x + size] = tile
    return out


def alone(image, level):
    """An image of one level of another."""
    level = dataclasses.replace(level, downsample=(1.0, 1.0))
    return stfast.SlideImage(image.path, image.kind, (level,))


@pytest.fixture(scope="session")
def damageable(tmp_path_factory):
    """One picture in the forms that are decoded differently."""
    folder = tmp_path_factory.mktemp("tiles")
    data = oracles.picture(90, 130)
    for codec in ("deflate", "lzw", "zstd", "jpeg", "packbits", "jpeg2000", "webp"):
        for name, grid in {"tiles": {"tile": (32, 32)}, "strips": {"rowsperstrip": 16}}.items():
            path = folder / f"{codec}-{name}.tif"
            tifffile.imwrite(path, data, photometric="rgb", compression=codec, **grid)
    tifffile.imwrite(folder / "raw-strip.tif", data, photometric="rgb")
    Image.fromarray(data).save(folder / "plain.png")
    Image.fromarray(data).save(folder / "plain.jpg")
    Image.fromarray(data).save(folder / "plain.webp")
    Image.fromarray(data).save(folder / "plain.jp2", tile_size=(64, 64))
    tifffile.imwrite(folder / "deep.tif", data.astype(np.uint16), photometric="rgb", predictor=True,
                     compression="lzw", tile=(32, 32))  # fmt: skip
    return {path.name: path for path in sorted(folder.iterdir())}


# --- the command line ---------------------------------------------------------------------------


@pytest.fixture
def stfast_says(capsys, monkeypatch):
    """Run a command: its exit status, what it printed, and its complaints."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["stfast", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        said = capsys.readouterr()
        return end.value.code or 0, said.out, said.err

    return run


@pytest.fixture
def found(stfast_says):
    """Run a command with --json: the object it prints, after a quiet success."""

    def run(*words):
        status, out, err = stfast_says(*words, "--json")
        assert (status, err) == (0, "")
        return json.loads(out)

    return run


@pytest.fixture
def picture(tmp_path):
    """A picture, and two tables of spots on it: plain, and as STimage-1K4M has them."""
    folder = tmp_path / "in"
    folder.mkdir()
    Image.fromarray(oracles.picture(120, 160)).save(folder / "he.png")
    xy = np.random.default_rng(0).uniform(0, 120, (9, 2)).round(2)
    pl.DataFrame({"x": xy[:, 0], "y": xy[:, 1]}).write_csv(folder / "xy.csv")
    columns = {"": [f"he_{i}x1" for i in range(9)], "yaxis": xy[:, 1], "xaxis": xy[:, 0]}
    pl.DataFrame(columns | {"r": [10.25] * 9}).write_csv(folder / "coord.csv")
    return folder / "he.png", folder / "xy.csv", folder / "coord.csv", xy


@pytest.fixture(scope="module")
def st_folder(tmp_path_factory):
    """A legacy ST slide of 15 spots and 8 genes, one spot off its picture."""
    folder = tmp_path_factory.mktemp("cli") / "mini"
    folder.mkdir()
    Image.fromarray(oracles.picture(170, 160)).save(folder / "he.jpg")
    rng = np.random.default_rng(0)
    rows = ["\t" + "\t".join(f"g{i}" for i in range(8))]
    places = [(x, y) for x in (5, 6, 7) for y in (4, 5, 6, 7)] + [(9, 9), (8, 8), (40, 9)]
    rows += [f"{x}x{y}\t" + "\t".join(map(str, rng.poisson(3, 8))) for x, y in places]
    (folder / "counts.tsv").write_text("\n".join(rows) + "\n")
    return folder
