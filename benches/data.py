"""Inputs of the benches: made once, the same everywhere, kept in a cache folder.

The folder is ``$STFAST_BENCH_CACHE``, else ``stfast-bench`` in the system's folder for
temporary files. Sizes and shapes are those of real slides; contents are invented, since no
real slide of this kind is small and free.
"""

import json
import os
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import polars as pl
import tifffile
from anndata import AnnData
from numpy.typing import NDArray
from PIL import Image
from scipy import sparse

import stfast
from benches.measure import threads
from stfast._output import whole
from stfast.synthetic._stream import in_order
from stfast.synthetic.counts import BAND_ROWS, Band, barcodes, invent_genes
from stfast.synthetic.layout import Layout, lay_out
from stfast.synthetic.matrix import RUST, MatrixWriter

_VERSION = 1
_ROWS = 8192
_TABLE = 1 << 20
_REGIONS = 6
GRID = 3350
"""2 µm squares along a side of a Visium HD slide."""
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


def jp2k_slide(side: int) -> Path:
    """The same blocks as Aperio's JPEG 2000 (33005), at its usual 1 byte a pixel."""

    def make(path: Path) -> None:
        import imagecodecs

        blocks = [imagecodecs.jpeg8_decode(block) for block in _tissue_blocks()]
        with ThreadPoolExecutor(threads()) as pool:
            coded = list(
                pool.map(partial(imagecodecs.jpeg2k_encode, level=38, codecformat="j2k"), blocks)
            )
        n = side // BLOCK
        chosen = np.random.default_rng(0).integers(0, len(coded), n * n)
        with tifffile.TiffWriter(path, bigtiff=True) as tiff:
            tiff.write(
                (coded[i] for i in chosen),
                shape=(n * BLOCK, n * BLOCK, 3),
                dtype=np.uint8,
                tile=(BLOCK, BLOCK),
                photometric="rgb",
                compression=33005,
                metadata=None,
                description="Aperio Image Library v1 |AppMag = 20|MPP = 0.5",
            )

    return cached(f"jp2k-{side}.svs", make)


def striped(side: int) -> Path:
    """The picture in strips of 16 rows, deflate, as microscopes without pyramids write."""

    def make(path: Path) -> None:
        pixels = tifffile.imread(slide(side))
        tifffile.imwrite(
            path,
            pixels,
            photometric="rgb",
            compression="deflate",
            predictor=True,
            rowsperstrip=16,
            maxworkers=threads(),
        )

    return cached(f"striped-{side}.tif", make)


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


def plain_jpeg(side: int, *, markers: bool) -> Path:
    """A picture of ``side``² pixels that is one JPEG, with a restart marker a row or without."""

    def make(path: Path) -> None:
        pixels = tifffile.imread(slide(-(-side // BLOCK) * BLOCK))[:side, :side]
        rows = int(markers)
        Image.fromarray(pixels).save(path, "jpeg", quality=90, restart_marker_rows=rows)

    return cached(f"picture-{side}-{int(markers)}.jpg", make)


def visium_hd(side_um: float) -> Path:
    """A Visium HD slide at 2 µm, its picture coarse."""

    def make(folder: Path) -> None:
        stfast.synthesize_visium_hd(folder, side_um=side_um, mpp=4.0)

    return cached(f"hd-{side_um:g}", make)


def raw_squares(side: int, umi: float, n_genes: int = 19_059) -> Path:
    """A Visium HD folder of a full grid's positions and the raw counts of its middle.

    ``side``² squares of the 3350² hold counts, ``umi`` molecules each on average; those of
    a disc are in tissue. There is no picture. Bands are drawn, packed and forgotten, so
    that a slide larger than memory can be made.
    """

    def make(folder: Path) -> None:
        spatial = folder / "binned_outputs" / "square_002um" / "spatial"
        spatial.mkdir(parents=True)
        layout = lay_out(2.0 * GRID, 0.2737)
        _write_grid(spatial, layout)
        factors = {key: float(value) for key, value in layout.scalefactors().items()}
        (spatial / "scalefactors_json.json").write_text(json.dumps(factors))
        tables, first = _gene_tables(n_genes, 0), (GRID - side) // 2
        genes, path = invent_genes(n_genes, 0), spatial.parent / "raw_feature_bc_matrix.h5"

        def band(start: int) -> Band:
            return _middle_band(tables, n_genes, umi, start=start, first=first, side=side)

        with (
            ThreadPoolExecutor(threads()) as pool,
            MatrixWriter(path, RUST, genes, pool=pool) as writer,
        ):
            for made in in_order(pool, band, range(0, GRID, BAND_ROWS)):
                writer.append(barcodes(layout, made, RUST.barcode), made)

    return cached(f"raw-{side}-{umi:g}-{n_genes}", make)


def _middle_band(
    tables: NDArray[np.int32], n_genes: int, umi: float, *, start: int, first: int, side: int
) -> Band:
    rng = np.random.default_rng([2, start])
    rows, cols = np.divmod(np.arange(min(BAND_ROWS, GRID - start) * GRID), GRID)
    rows += start
    squares = np.flatnonzero((abs(rows - first - side / 2) < side / 2) & (cols >= first))
    squares = squares[cols[squares] < first + side]
    depth = rng.poisson(umi * rng.gamma(4, 0.25, squares.size))
    squares, depth = squares[depth > 0], depth[depth > 0]
    region = np.repeat(cols[squares] // 500 % _REGIONS, depth)
    genes = tables[region, rng.integers(0, _TABLE, region.size)]
    keys = np.repeat(np.arange(squares.size), depth) * n_genes + genes
    keys.sort()
    starts = np.flatnonzero(np.diff(keys, prepend=-1))
    values = np.diff(starts, append=keys.size).astype(np.int32)
    row, gene = np.divmod(keys[starts], n_genes)
    each = np.bincount(row, minlength=squares.size)
    return Band(start, np.ones(rows.size, np.bool_), squares, each, gene, values)


def _write_grid(spatial: Path, layout: Layout) -> None:
    rows, cols = np.divmod(np.arange(GRID * GRID, dtype=np.uint32), np.uint32(GRID))
    x, y = layout.pixels(rows, cols)
    middle = (GRID - 1) / 2
    disc = (rows - middle) ** 2 + (cols - middle) ** 2 < (0.4 * GRID) ** 2
    padded = [pl.col(f"array_{axis}").cast(pl.String).str.zfill(5) for axis in ("row", "col")]
    table = {"in_tissue": disc.view(np.uint8), "array_row": rows, "array_col": cols}
    pl.DataFrame(table | {"pxl_row_in_fullres": y, "pxl_col_in_fullres": x}).select(
        pl.format("s_002um_{}_{}-1", *padded).alias("barcode"), pl.all()
    ).write_parquet(
        spatial / "tissue_positions.parquet", compression="zstd", row_group_size=GRID * GRID
    )


def sizes(path: Path) -> tuple[int, int]:
    """Barcodes and non-zeros of a 10x matrix."""
    with h5py.File(path) as file:
        return len(file["matrix/barcodes"]), len(file["matrix/data"])


def binned_matrix(side: int, umi: float) -> Path:
    """The 8 µm bins of `raw_squares` as Space Ranger's Python code writes a filtered matrix."""

    def make(path: Path) -> None:
        adata = stfast.read_visium_hd(raw_squares(side, umi), 8)
        layout = {"chunks": (80_000,), "shuffle": True, "compression": "gzip"}
        counts = {"data": (adata.X.data, "<i4"), "indices": (adata.X.indices, "<i8")}
        with h5py.File(path, "w") as file:
            group = file.create_group("matrix")
            for name, (values, dtype) in counts.items():
                group.create_dataset(name, data=values, dtype=dtype, maxshape=(None,), **layout)
            group["indptr"] = adata.X.indptr.astype(np.int64)
            group["shape"] = np.array(adata.shape[::-1], np.int32)
            group["barcodes"] = adata.obs_names.to_numpy().astype("S")
            texts = {"id": "gene_ids", "feature_type": "feature_types", "genome": "genome"}
            for name, column in texts.items():
                group[f"features/{name}"] = adata.var[column].to_numpy().astype("S")
            group["features/name"] = adata.var_names.to_numpy().astype("S")

    return cached(f"binned-{side}-{umi:g}.h5", make)
