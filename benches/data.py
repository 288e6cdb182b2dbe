"""Inputs of the benches: made once, the same everywhere, kept in a cache folder.

The folder is ``$STFAST_BENCH_CACHE``, else ``stfast-bench`` in the system's folder for
temporary files. Sizes and shapes are those of real slides; contents are invented, since no
real slide of this kind is small and free.
"""

import os
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from anndata import AnnData
from numpy.typing import NDArray
from PIL import Image
from scipy import sparse

import stfast
from benches.measure import threads
from stfast._output import whole

_VERSION = 1
_ROWS = 8192
_TABLE = 1 << 20
_REGIONS = 6
BLOCK = 256
"""Side of a block of the slide in pixels."""


def cached(name: str, make: Callable[[Path], Any]) -> Path:
    """A file or folder of the cache, made on first use; it appears whole or not at all."""
    fallback = Path(tempfile.gettempdir()) / "stfast-bench"
    folder = Path(os.environ.get("STFAST_BENCH_CACHE", fallback))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"v{_VERSION}-{name}"
    if not path.exists():
        with whole(path) as partial:
            make(partial)
    return path


def counts(n_rows: int, n_genes: int, umi: float, *, seed: int = 0) -> sparse.csr_matrix:
    """Counts as molecules fall: int32, CSR with 32-bit indices, canonical.

    Genes are heavy-tailed (lognormal, σ = 2, so that some are never seen), rows differ in
    depth (gamma, shape 4), and six regions of a thousand rows in turn each have a fiftieth
    of the genes eightfold.

    Parameters
    ----------
    umi
        Molecules of a row, on average.
    """

    def make(folder: Path) -> None:
        folder.mkdir()
        data, indices, lengths = _fall(n_rows, n_genes, umi, seed)
        np.save(folder / "data.npy", data)
        np.save(folder / "indices.npy", indices)
        np.save(folder / "indptr.npy", np.append(0, np.cumsum(lengths)).astype(np.int32))

    folder = cached(f"counts-{n_rows}x{n_genes}-{umi:g}-{seed}", make)
    parts = tuple(np.load(folder / f"{name}.npy") for name in ("data", "indices", "indptr"))
    matrix = sparse.csr_matrix(parts, shape=(n_rows, n_genes))
    matrix.has_canonical_format = True
    return matrix


def h5ad(n_rows: int, n_genes: int, umi: float, *, seed: int = 0) -> Path:
    """Counts as anndata writes them, uncompressed: a file of its own for each slide."""

    def make(path: Path) -> None:
        AnnData(filled(counts(n_rows, n_genes, umi, seed=seed))).write_h5ad(path)

    return cached(f"filled-{n_rows}x{n_genes}-{umi:g}-{seed}.h5ad", make)


def filled(matrix: sparse.csr_matrix) -> sparse.csr_matrix:
    """Rows that have counts: of others scanpy's residuals are NaN."""
    some = np.diff(matrix.indptr) > 0
    return matrix if some.all() else matrix[some]


def _fall(n_rows: int, n_genes: int, umi: float, seed: int) -> list[NDArray[np.int32]]:
    """Values, columns and lengths of all rows, drawn in chunks that any thread may draw."""
    tables = _gene_tables(n_genes, seed)

    def chunk(first: int) -> tuple[NDArray[np.int32], ...]:
        rng = np.random.default_rng([seed, 1, first])
        rows = np.arange(min(_ROWS, n_rows - first))
        depth = rng.poisson(umi * rng.gamma(4, 0.25, rows.size))
        region = np.repeat((first + rows) // 1000 % _REGIONS, depth)
        genes = tables[region, rng.integers(0, _TABLE, region.size)]
        keys = np.repeat(rows, depth).astype(np.int32) * np.int32(n_genes) + genes
        keys.sort()
        starts = np.flatnonzero(np.diff(keys, prepend=-1))
        values = np.diff(starts, append=keys.size).astype(np.int32)
        row, gene = np.divmod(keys[starts], np.int32(n_genes))
        return values, gene, np.bincount(row, minlength=rows.size).astype(np.int32)

    with ThreadPoolExecutor(threads()) as pool:
        parts = list(pool.map(chunk, range(0, n_rows, _ROWS)))
    return [np.concatenate(part) for part in zip(*parts, strict=True)]


def _gene_tables(n_genes: int, seed: int) -> NDArray[np.int32]:
    """For each region, genes as often as they are abundant: drawing one is one look."""
    rng = np.random.default_rng([seed, 0])
    abundance = rng.lognormal(0, 2, n_genes)
    levels = (np.arange(_TABLE) + 0.5) / _TABLE
    tables = []
    for _ in range(_REGIONS):
        marked = np.where(rng.random(n_genes) < 0.02, 8, 1) * abundance
        tables.append(np.searchsorted(np.cumsum(marked / marked.sum()), levels))
    return np.minimum(tables, n_genes - 1).astype(np.int32)


def grid(side: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Row and column of each square of a full square grid, row after row."""
    rows, cols = np.divmod(np.arange(side * side), side)
    return rows, cols


def slide(side: int) -> Path:
    """A JPEG-tiled TIFF of ``side``² pixels: blocks of H&E at quality 90, 4:2:0.

    The blocks are the fuller half of those of a synthetic slide's picture, about 60 of
    them, laid out at random; each is stored anew wherever it lies.
    """

    def make(path: Path) -> None:
        blocks = _tissue_blocks()
        n = side // BLOCK
        chosen = np.random.default_rng(0).integers(0, len(blocks), n * n)
        with tifffile.TiffWriter(path, bigtiff=True) as tiff:
            tiff.write(
                (blocks[i] for i in chosen),
                shape=(n * BLOCK, n * BLOCK, 3),
                dtype=np.uint8,
                tile=(BLOCK, BLOCK),
                photometric="ycbcr",
                subsampling=(2, 2),
                compression="jpeg",
            )

    return cached(f"slide-{side}.tif", make)


def _tissue_blocks() -> list[bytes]:
    def make(folder: Path) -> None:
        stfast.synthesize_visium_hd(folder, side_um=700, n_genes=100, umi_per_square=0.1)

    picture = next(cached("picture", make).glob("microscope_image/*"))
    blocks = sorted(coded_blocks(picture), key=len)
    return blocks[len(blocks) // 2 :]


def coded_blocks(path: Path) -> list[bytes]:
    """The coded bytes of each block of a TIFF's first level."""
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages.first
        offsets, lengths = page.dataoffsets, page.databytecounts
    content = path.read_bytes()
    return [content[o : o + n] for o, n in zip(offsets, lengths, strict=True)]


def spots(side: int, per_side: int) -> NDArray[np.float64]:
    """(x, y) of the spots of an even grid, each 224 px window inside, row after row."""
    at = np.floor(np.linspace(112, side - 112, per_side))
    return np.stack(np.meshgrid(at, at), axis=-1).reshape(-1, 2)


def slide_adata(side: int, per_side: int, n_genes: int) -> AnnData:
    """Spots on a slide with counts, and all that a loader asks of a slide."""
    xy = spots(side, per_side)
    adata = AnnData(counts(len(xy), n_genes, 100.0), obsm={"spatial": xy})
    adata.uns["spatial"] = {
        "bench": {
            "images": {},
            "scalefactors": {"spot_diameter_fullres": 224.0},
            "metadata": {"source_image_path": str(slide(side))},
        }
    }
    return adata


def tile_files(side: int, per_side: int) -> list[Path]:
    """A PNG of each spot of a slide, as the paper stores its tiles."""

    def make(folder: Path) -> None:
        folder.mkdir()
        pixels = tifffile.imread(slide(side))
        with ThreadPoolExecutor(threads()) as pool:
            list(pool.map(lambda job: _save_tile(folder, pixels, *job), enumerate(xy)))

    xy = spots(side, per_side)
    return sorted(cached(f"tiles-{side}-{per_side}", make).iterdir())


def _save_tile(folder: Path, pixels: NDArray[np.uint8], i: int, xy: Iterable[float]) -> None:
    x, y = (int(v) - 112 for v in xy)
    Image.fromarray(pixels[y : y + 224, x : x + 224]).save(folder / f"{i:06}.png")


def plain_jpeg(side: int) -> Path:
    """A picture of ``side``² pixels that is one JPEG, as slides without pyramids are."""

    def make(path: Path) -> None:
        pixels = tifffile.imread(slide(-(-side // BLOCK) * BLOCK))[:side, :side]
        Image.fromarray(pixels).save(path, "jpeg", quality=90)

    return cached(f"picture-{side}.jpg", make)


def visium_hd(side_um: float) -> Path:
    """A Visium HD slide at 2 µm, its picture coarse."""

    def make(folder: Path) -> None:
        stfast.synthesize_visium_hd(folder, side_um=side_um, mpp=4.0)

    return cached(f"hd-{side_um:g}", make)
