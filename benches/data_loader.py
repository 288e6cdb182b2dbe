"""The loader's inputs: a built dataset, and its tiles as the files that peers read."""

import tempfile
from pathlib import Path

import polars as pl
from PIL import Image

import stfast
from benches import data


def dataset(side: int, per_side: int) -> Path:
    """The slide of ``slide_adata``, built: JPEG tiles of 224 px, 128 genes of its 512."""

    def make(root: Path) -> None:
        adata = data.slide_adata(side, per_side, 512)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "bench.h5ad"
            adata.write_h5ad(path)
            table = pl.DataFrame({"slide": ["bench"], "path": [str(path)]})
            report = stfast.build(table, root, shard_bytes=1 << 22)
        assert not report.failed, report.failed

    return data.cached(f"dataset-{side}-{per_side}", make)


def coded_tiles(side: int, per_side: int) -> Path:
    """A folder of that dataset's tiles, a JPEG a row in the index's order."""
    root = dataset(side, per_side)

    def make(folder: Path) -> None:
        folder.mkdir()
        shard_of = {
            n: path.read_bytes() for n, path in enumerate(sorted((root / "tiles").iterdir()))
        }
        places = stfast.Dataset(root).index.select("shard", "offset", "length")
        for row, (shard, offset, length) in enumerate(places.iter_rows()):
            (folder / f"{row:06}.jpg").write_bytes(shard_of[shard][offset : offset + length])

    return data.cached(f"coded-{side}-{per_side}", make)


def pngs_of(coded: Path) -> list[Path]:
    """The same pixels as PNG files, as the paper stores tiles."""

    def make(folder: Path) -> None:
        folder.mkdir()
        for path in coded.iterdir():
            Image.open(path).save(folder / f"{path.stem}.png")

    return sorted(data.cached(f"png-of-{coded.name}", make).iterdir())
