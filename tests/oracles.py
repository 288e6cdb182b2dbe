"""What stfast answers, computed again in the slowest and plainest way at hand.

Nothing here imports stfast: numpy, scipy, Pillow, tifffile, scanpy and h5py are the
witnesses. A function takes what the public one takes and returns what it must return,
bit for bit where the answer is exact. `at_any_workers` and `assert_same` hold the other
half of the rule: one answer, whatever the number of threads.
"""

import contextlib
import gzip
import io
import json
import os
import signal
import struct
import subprocess
import sys
import textwrap
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import tifffile
from anndata import AnnData
from PIL import Image
from scipy import sparse

WORKERS = (1, 2, 5)

# --- one answer for any number of workers ------------------------------------------------------


def at_any_workers(call):
    """The answer of ``call(workers)``, which must be the same bits for 1, 2 and 5."""
    first, *others = (call(workers) for workers in WORKERS)
    for other in others:
        assert_same(other, first)
    return first


def assert_same(found, expected):
    """Equal in type, dtype, shape and every bit (NaN equals NaN)."""
    assert type(found) is type(expected)
    if isinstance(expected, tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    elif sparse.issparse(expected):
        assert found.shape == expected.shape
        for part in ("data", "indices", "indptr"):
            assert_same(getattr(found, part), getattr(expected, part))
    elif isinstance(expected, pd.DataFrame):
        pd.testing.assert_frame_equal(found, expected, check_exact=True)
    elif isinstance(expected, AnnData):
        assert_same(found.X, expected.X)
        assert_same(found.obs, expected.obs)
        assert_same(found.var, expected.var)
        assert_same(found.obsm["spatial"], expected.obsm["spatial"])
    elif isinstance(expected, np.ndarray):
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)
    else:
        assert found == expected


# --- bins --------------------------------------------------------------------------------------


def binned(matrix, rows, cols, factor):
    """Sums of the squares of each bin by scipy's indicator product: matrix, rows, columns.

    Integers are summed in int64, floats in float64 in the order of the squares.
    """
    matrix = sparse.csr_matrix(matrix)
    wide = np.int64 if matrix.dtype.kind in "iub" else np.float64
    places = np.column_stack([rows, cols]).astype(np.int64).reshape(-1, 2) // factor
    bins, of_square = np.unique(places, axis=0, return_inverse=True)
    n = len(places)
    ones = (np.ones(n, wide), (of_square.ravel(), np.arange(n)))
    indicator = sparse.csr_matrix(ones, shape=(len(bins), n))
    sums = sparse.csr_matrix(indicator @ matrix.astype(wide))
    sums.sum_duplicates()
    sums.eliminate_zeros()
    sums.sort_indices()
    return sums, bins[:, 0], bins[:, 1]


def assert_canonical(matrix):
    """Columns ascending in each row, none twice, no zeros; checked value by value."""
    assert matrix.format == "csr"
    for start, end in zip(matrix.indptr[:-1], matrix.indptr[1:], strict=True):
        assert (np.diff(matrix.indices[start:end]) > 0).all()
    assert (matrix.data != 0).all()


# --- pixels ------------------------------------------------------------------------------------


def tiff_pixels(page):
    """RGB of a tifffile page of grey, RGB or RGBA, in whatever order it is stored; upper 8 bits."""
    array = page.asarray()
    if int(page.planarconfig) == 2 and page.samplesperpixel > 1:
        array = np.moveaxis(array, 0, -1)
    if array.ndim == 2:
        array = array[..., None]
    if array.dtype == np.uint16:
        array = (array >> (page.bitspersample - 8)).astype(np.uint8)
    if int(page.photometric) == 0:
        array = 255 - array
    if int(page.photometric) in (0, 1):
        array = np.repeat(array[..., :1], 3, axis=-1)
    return np.ascontiguousarray(array[..., :3])


def pixels(path):
    """RGB of an image file at full resolution, by tifffile or Pillow."""
    with Path(path).open("rb") as file:
        start = file.read(2)
    if start in (b"II", b"MM"):
        with tifffile.TiffFile(path) as tiff:
            return tiff_pixels(tiff.pages.first)
    with Image.open(path) as image:
        if image.mode in ("LA", "RGBA", "PA"):
            return np.asarray(image.convert("RGBA"))[..., :3]
        return np.asarray(image.convert("RGB"))


def window(picture, left, top, width, height, *, fill=255):
    """A rectangle of a picture; what lies outside is ``fill``."""
    out = np.full((height, width, 3), fill, np.uint8)
    for row in range(max(top, 0), min(top + height, len(picture))):
        first, end = max(left, 0), min(left + width, picture.shape[1])
        if first < end:
            out[row - top, first - left : end - left] = picture[row, first:end]
    return out


def tile(picture, center, size, span=None, fill=255):
    """The tile of a picture without reduced levels: Pillow's crop, then its bicubic resize."""
    side = size if span is None else max(1, int(np.floor(span + 0.5)))
    left, top = (int(np.floor(c - side / 2 + 0.5)) for c in center)
    cut = window(picture, left, top, side, side, fill=fill)
    if side == size:
        return cut
    return np.asarray(Image.fromarray(cut).resize((size, size), Image.Resampling.BICUBIC))


def reduced_tile(level, downsample, center, size, span):
    """The tile of a reduced level: Pillow's resize of the box within the pixels it covers."""
    side = max(1, int(np.floor(span + 0.5)))
    corner = [np.floor(c - side / 2 + 0.5) for c in center]
    lengths = [side / d for d in downsample]
    starts = [c / d for c, d in zip(corner, downsample, strict=True)]
    firsts = [int(np.floor(s + 1e-6)) for s in starts]
    ends = [int(np.ceil(s + n - 1e-6)) for s, n in zip(starts, lengths, strict=True)]
    covered = [e - f for e, f in zip(ends, firsts, strict=True)]
    cut = Image.fromarray(window(level, *firsts, *covered))
    (x, y), (w, h) = (np.subtract(starts, firsts).clip(0), lengths)
    box = (x, y, min(x + w, covered[0]), min(y + h, covered[1]))
    return np.asarray(cut.resize((size, size), Image.Resampling.BICUBIC, box=box))


# --- highly variable genes ---------------------------------------------------------------------


def gene_counts(n=300, genes=120, seed=0, depth=1.0):
    """Counts with spots and genes of different depth; a few genes constant or without counts."""
    rng = np.random.default_rng(seed)
    rate = rng.gamma(0.6, depth, genes)[None] * rng.gamma(2, 0.5, n)[:, None]
    x = rng.poisson(rate * rng.gamma(1.5, 1 / 1.5, (n, genes)))
    x[:, :: max(genes // 4, 1)] = 0
    if genes > 5:
        x[:, 5] = 1
    x[x.sum(axis=1) == 0, genes // 2] = 1
    return x


def pearson_variance(counts, theta=100.0, clip=None):
    """Population variance of clipped Pearson residuals, dense, in float64 (Lause et al. 2021)."""
    x = np.asarray(counts, dtype=np.float64)
    clip = np.sqrt(len(x)) if clip is None else clip
    mu = np.outer(x.sum(axis=1), x.sum(axis=0)) / x.sum()
    scale = np.sqrt(mu + mu**2 / theta)
    residuals = np.divide(x - mu, scale, out=np.zeros_like(x), where=mu > 0)
    return residuals.clip(-clip, clip).var(axis=0)


def log_normalized(counts):
    """Each spot to the median total of spots with counts, then log1p; float64 (hvg.md A2.2)."""
    x = np.asarray(counts, dtype=np.float64)
    totals = x.sum(axis=1)
    median = np.median(totals[totals > 0]) if (totals > 0).any() else 1.0
    return np.log1p(x * median / np.where(totals > 0, totals, median)[:, None])


# --- slides ------------------------------------------------------------------------------------


def squares_of(folder, *, kind="raw"):
    """A Visium HD square folder as AnnData, by scanpy, pandas and json."""
    import scanpy

    folder = Path(folder)
    adata = scanpy.read_10x_h5(folder / f"{kind}_feature_bc_matrix.h5")
    positions = pd.read_parquet(folder / "spatial/tissue_positions.parquet").set_index("barcode")
    here = positions.loc[adata.obs_names]
    adata.obs = here[["in_tissue", "array_row", "array_col"]].astype(np.int64)
    adata.obsm["spatial"] = here[["pxl_col_in_fullres", "pxl_row_in_fullres"]].to_numpy()
    factors = json.loads((folder / "spatial/scalefactors_json.json").read_text())
    library = {"images": {}, "scalefactors": factors, "metadata": {}}
    adata.uns["spatial"] = {"slide": library}
    adata.X = adata.X.astype(np.int32)
    return adata


def bins_in_tissue(folder, factor):
    """(row, column) of each bin of which any square of the whole grid is in tissue."""
    grid = pd.read_parquet(Path(folder) / "spatial/tissue_positions.parquet")
    inside = grid[grid["in_tissue"] == 1]
    return set(zip(inside["array_row"] // factor, inside["array_col"] // factor, strict=True))


def silence_tissue(folder, factor, n):
    """Leave in tissue only n squares without counts, in n bins that have some; say which bins.

    What is in tissue is then told by the grid of squares alone, not by the matrix.
    """
    path = Path(folder) / "spatial/tissue_positions.parquet"
    grid = pd.read_parquet(path)
    bins = list(zip(grid["array_row"] // factor, grid["array_col"] // factor, strict=True))
    counted = grid["barcode"].isin(squares_of(folder).obs_names)
    filled = {place for place, has in zip(bins, counted, strict=True) if has}
    chosen = {}
    for at, (place, has) in enumerate(zip(bins, counted, strict=True)):
        if not has and place in filled and len(chosen) < n:
            chosen.setdefault(place, at)
    grid["in_tissue"] = grid.index.isin(chosen.values()).astype(np.uint8)
    grid.to_parquet(path)
    return sorted(chosen)


def st_counts(path):
    """A table of counts, spots × genes, as pandas reads it."""
    opener = gzip.open if Path(path).suffix == ".gz" else open
    with opener(path, "rt") as file:
        return pd.read_csv(file, sep="\t", index_col=0)


def st_place(name):
    """Array place (x, y) of a spot named like 10x13 or 9.93x13.02, rounded."""
    return tuple(round(float(part)) for part in name.split("x"))


# --- processes ---------------------------------------------------------------------------------


def run_python(code, *, timeout=60.0, memory_gb=None, check=True):
    """What a script prints, run by a Python of its own; its memory may be limited.

    Crashes, forks and signals are tried there, where they end nothing but the script.
    """
    limit = (
        ""
        if memory_gb is None
        else f"resource.setrlimit(resource.RLIMIT_AS, [{memory_gb} << 30] * 2)"
    )
    script = f"import resource\n{limit}\n{textwrap.dedent(code)}"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=environment,
        check=False,
    )
    if check:
        died = signal.Signals(-done.returncode).name if done.returncode < 0 else done.returncode
        assert done.returncode == 0, f"ended with {died}:\n{done.stderr[-2000:]}"
    return done.stdout


def png(width, height, data, *, interlaced=False):
    """A PNG whose header claims a size, whatever its data are; 8-bit RGB."""

    def chunk(kind, content):
        crc = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, int(interlaced))
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def interlaced_png(array):
    """A PNG in the seven passes of Adam7, which Pillow reads but does not write."""
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2)]
    passes += [(1, 0, 2, 1)]
    rows = [row for y, x, down, across in passes for row in array[y::down, x::across]]
    data = b"".join(b"\0" + row.tobytes() for row in rows if row.size)
    return png(array.shape[1], array.shape[0], data, interlaced=True)


def tiff(path, strip, tags, *, ndpi=False):
    """A little-endian TIFF of one strip, with no tags but these: code to numbers or text.

    ``ndpi``: with Hamamatsu's wider offsets, a word of upper bytes after each directory's tags.
    """
    front = 12 if ndpi else 8
    tags = tags | {273: front, 279: len(strip)}
    start = front + len(strip) + len(strip) % 2
    after = bytes(8 + 4 * len(tags)) if ndpi else bytes(4)
    apart = start + 2 + 12 * len(tags) + len(after)
    entries, more = b"", b""
    for code, value in sorted(tags.items()):
        if isinstance(value, str):
            kind, n, packed = 2, len(value) + 1, value.encode() + b"\0"
        else:
            numbers = value if isinstance(value, tuple) else (value,)
            kind, n, packed = 4, len(numbers), struct.pack(f"<{len(numbers)}I", *numbers)
        fits = len(packed) <= 4
        where = packed.ljust(4, b"\0") if fits else struct.pack("<I", apart + len(more))
        more += b"" if fits else packed + bytes(len(packed) % 2)
        entries += struct.pack("<HHI", code, kind, n) + where
    head = struct.pack("<2sHQ" if ndpi else "<2sHI", b"II", 42, start)
    directory = struct.pack("<H", len(tags)) + entries + after
    Path(path).write_bytes(head + strip + bytes(len(strip) % 2) + directory + more)


def jpeg(array, **options):
    """A JPEG stream that Pillow wrote."""
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "JPEG", **options)
    return stream.getvalue()


def stream_pixels(stream):
    """RGB of a coded picture in memory, by Pillow."""
    with Image.open(io.BytesIO(stream)) as image:
        return np.asarray(image.convert("RGB"))


def picture(height, width, seed=0):
    """A picture that compresses somewhat and in which no two places look alike."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [128 + 90 * np.sin(x / (7 + c) + c) * np.cos(y / (9 - c)) for c in range(3)]
    noise = rng.integers(-25, 26, (height, width, 3))
    return (np.stack(waves, axis=-1) + noise).clip(0, 255).astype(np.uint8)


def tree(folder):
    """Every path below a folder: to see that a failure left nothing behind."""
    with contextlib.suppress(FileNotFoundError):
        return sorted(str(p.relative_to(folder)) for p in Path(folder).rglob("*"))
    return []


def slide_with_picture(folder, seed=0, *, n=70, shape=(180, 150), codec="PNG"):
    """A slide of n spots on a picture of its own; spots' diameter 21.3 px."""
    rng = np.random.default_rng(seed)
    path = folder / f"picture-{seed}"
    Image.fromarray(picture(*shape, seed=seed)).save(path, codec)
    genes = [f"g{i}" for i in range(9)]
    adata = AnnData(sparse.csr_matrix(rng.poisson(0.8, (n, 9)).astype(np.int32)))
    adata.var_names = genes
    adata.obsm["spatial"] = rng.uniform(0, 1, (n, 2)) * shape[::-1]
    factors = {"spot_diameter_fullres": 21.3}
    library = {"images": {}, "scalefactors": factors}
    adata.uns["spatial"] = {f"s{seed}": library | {"metadata": {"source_image_path": str(path)}}}
    return adata
