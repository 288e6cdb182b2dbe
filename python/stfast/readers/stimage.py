"""STimage-1K4M's published layout, read and written.

``{ST|Visium|VisiumHD}/coord/{slide}_coord.csv`` (``{slide}_{spot},yaxis,xaxis,r``),
``gene_exp/{slide}_count.csv`` (dense, spots × genes: up to 10^10 cells, so it passes
through in stretches), ``image/{slide}.png`` (which may be a JPEG or a TIFF),
``annotation/`` and ``meta/``.
"""

import csv
import io
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
from anndata import AnnData
from anndata.utils import make_index_unique
from numpy.typing import NDArray
from scipy import sparse

from stfast import _check, _core, _spatial
from stfast._core import FormatError
from stfast.images import open_image, thumbnail
from stfast.readers._library import read_bytes
from stfast.readers._tenx import narrowed

TECHNOLOGIES = ("ST", "Visium", "VisiumHD")
_COORD_END = "_coord.csv"
_COORD = ["yaxis", "xaxis", "r"]
_NO_LABEL = {"", "undetermined", "Exclude", "NA", "nan", "None"}

Progress = Callable[[int], object]


def read_stimage(
    root: str | os.PathLike[str],
    slide: str,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
) -> AnnData:
    """Read a slide of STimage-1K4M.

    Parameters
    ----------
    root
        Folder with ``ST``, ``Visium`` and ``VisiumHD``, or one of these.
    slide
        Name of the slide, as ``coord/{slide}_coord.csv`` has it.
    workers
        Threads; ``None``: ``$STFAST_WORKERS``, else the CPUs of this process.
    progress
        Called now and then with the number of bytes of counts read.

    Returns
    -------
    AnnData
        Spots × genes by the conventions of :func:`stfast.read`; names of spots as in the
        files, without the slide's. ``spot_diameter_fullres`` is 2r; ``obs["annotation"]``
        where the dataset has one, missing where it says nothing of a spot.

    Raises
    ------
    FileNotFoundError
        No coordinates or counts of that slide.
    FormatError
        A table that is not what it should be, or spots that do not match.
    """
    threads = _check.workers(workers)
    folder = _technology(Path(root), slide)
    coord = _read_coord(folder / "coord" / f"{slide}_coord.csv", slide)
    counts = _first(folder / "gene_exp", f"{slide}_count.csv")
    if counts is None:
        raise FileNotFoundError(2, "No such file", str(folder / "gene_exp" / f"{slide}_count.csv"))
    matrix, names, genes = read_dense(counts, threads, progress)
    rows = _match([_spot(name, slide) for name in names], coord, counts)
    obs = pd.DataFrame(index=_spatial.names(coord["spot"].to_list()))
    obs["in_tissue"] = 1
    obs["array_row"], obs["array_col"] = _array_places(coord["spot"])
    var = pd.DataFrame(index=make_index_unique(_spatial.names(genes)))
    adata = AnnData(X=matrix[rows], obs=obs, var=var)
    adata.obsm["spatial"] = np.ascontiguousarray(coord.select("xaxis", "yaxis").to_numpy())
    _annotate(adata, folder, slide)
    _attach_image(adata, folder, slide, float(coord["r"][0]), threads)
    _spatial.stamp(adata, "read_stimage", slide=slide, technology=folder.name)
    return adata


def is_stimage(path: Path) -> bool:
    """Whether a folder is a root of STimage-1K4M: with its table, or a technology's folder."""
    if not path.is_dir():
        return False
    return any(path.glob("meta/meta_all_gene*.csv")) or any(
        (path / name / "coord").is_dir() for name in TECHNOLOGIES
    )


def read_stimage_coord(
    path: Path, *, workers: int | None = None, progress: Progress | None = None
) -> AnnData:
    """Read the slide that a file of coordinates is of."""
    slide = path.name.removesuffix(_COORD_END)
    return read_stimage(path.absolute().parents[1], slide, workers=workers, progress=progress)


def files_of(coord: Path) -> list[Path]:
    """All files of the slide that a file of coordinates is of; none for any other path."""
    if not coord.name.endswith(_COORD_END):
        return []
    slide, folder = coord.name.removesuffix(_COORD_END), coord.absolute().parents[1]
    counts = _first(folder / "gene_exp", f"{slide}_count.csv")
    return [coord, *([counts] if counts else []), *_pictures(folder, slide)]


def read_stimage_meta(path: str | os.PathLike[str]) -> pl.DataFrame:
    """Read STimage-1K4M's table of slides.

    Parameters
    ----------
    path
        ``meta_all_gene*.csv``, or a folder with it in ``meta``.

    Returns
    -------
    DataFrame
        A row a slide: ``slide``, ``species``, ``tissue``, ``pmid``, ``title``,
        ``abstract``, ``keywords``, ``involve_cancer`` (bool), ``tech``, ``spot_num`` and
        ``gene_num`` (int64).

    Raises
    ------
    FileNotFoundError
        No such table.
    FormatError
        No table with a column ``slide``.

    Notes
    -----
    The dataset's pages read it with tabs; the file has commas and quotes.
    """
    path = Path(path)
    if path.is_dir():
        tables = sorted(path.glob("meta/meta_all_gene*.csv"))
        if not tables:
            raise FileNotFoundError(2, "expected meta/meta_all_gene*.csv, got none", str(path))
        path = tables[-1]
    content = read_bytes(path)
    separator = max(",\t;", key=content.partition(b"\n")[0].decode("utf-8", "replace").count)
    try:
        table = pl.read_csv(io.BytesIO(content), separator=separator, infer_schema_length=0)
        numbers = [name for name in ("spot_num", "gene_num") if name in table.columns]
        table = table.with_columns(pl.col(numbers).cast(pl.Int64))
    except pl.exceptions.PolarsError as error:
        raise FormatError(f"{path}: expected a table of slides, got {error}") from error
    if "slide" not in table.columns:
        raise FormatError(f"{path}: expected a column slide, got {table.columns}")
    if "involve_cancer" in table.columns:
        yes = pl.col("involve_cancer").str.to_lowercase().is_in(["true", "t", "1", "yes"])
        table = table.with_columns(involve_cancer=yes)
    return table


def read_dense(
    path: Path, threads: int, progress: Progress | None = None
) -> tuple[sparse.csr_matrix, list[str], list[str]]:
    """A dense table of counts as CSR, with the names of its rows and columns."""
    separator, genes = _header(path)
    for dtype in ("int32", "int64", "float64"):
        try:
            _, names, arrays = _core.read_table(
                path, ord(separator), len(genes), dtype, threads, progress
            )
            break
        except OverflowError:
            if dtype == "float64":
                raise
    data, indices, indptr = arrays
    data = narrowed(data) if dtype == "float64" else data
    if len(data) and not np.isfinite(data.min() + data.max()):
        raise FormatError(f"{path}: expected finite counts, got others")
    matrix = sparse.csr_matrix((data, indices, indptr), shape=(len(indptr) - 1, len(genes)))
    matrix.has_canonical_format = True
    return matrix, names.decode().split("\n")[:-1], genes


def _header(path: Path) -> tuple[str, list[str]]:
    """Separator and names of columns, from the first line."""
    import gzip

    with path.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    opener: Any = gzip.open if zipped else open
    try:
        with opener(path, "rt", encoding="utf-8-sig", newline="") as file:
            line = file.readline().rstrip("\r\n")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise FormatError(f"{path}: expected a table of counts, got {error}") from error
    separator = max(",\t", key=line.count)
    names = next(csv.reader([line], delimiter=separator), [])
    if len(names) < 2:
        raise FormatError(
            f"{path}: expected a table of counts with genes as columns, got {line[:60]!r}"
        )
    return separator, names[1:]


def _technology(root: Path, slide: str) -> Path:
    for folder in (*(root / name for name in TECHNOLOGIES), root):
        if (folder / "coord" / f"{slide}_coord.csv").exists():
            return folder
    place = f"{{{','.join(TECHNOLOGIES)}}}/coord/{slide}_coord.csv"
    raise FileNotFoundError(2, f"expected {place}, got none", str(root))


def _first(folder: Path, name: str) -> Path | None:
    return next((p for p in (folder / name, folder / f"{name}.gz") if p.exists()), None)


def _read_coord(path: Path, slide: str) -> pl.DataFrame:
    try:
        table = pl.read_csv(path, infer_schema_length=None)
        table = table.select(
            pl.first().cast(pl.String).alias("spot"), pl.col(_COORD).cast(pl.Float64)
        )
    except pl.exceptions.PolarsError as error:
        raise FormatError(f"{path}: expected columns {_COORD}, got {error}") from error
    numbers = table.select(_COORD).to_numpy()
    if not len(table) or not np.isfinite(numbers).all():
        raise FormatError(f"{path}: expected finite coordinates, got others or none")
    if table["r"].n_unique() != 1 or table["r"][0] <= 0:
        raise FormatError(
            f"{path}: expected one radius above 0, got {table['r'].unique().to_list()[:3]}"
        )
    if table["spot"].is_duplicated().any():
        raise FormatError(f"{path}: expected each spot once, got some twice")
    return table.with_columns(pl.col("spot").str.strip_prefix(f"{slide}_"))


def _spot(name: str, slide: str) -> str:
    return name.removeprefix(f"{slide}_")


def _match(names: list[str], coord: pl.DataFrame, path: Path) -> NDArray[np.int64]:
    """The row of counts of each spot with coordinates; both must have the same spots."""
    at = pl.DataFrame({"spot": names}).with_row_index("row")
    joined = coord.join(at, on="spot", how="left", maintain_order="left")
    lost = int(joined["row"].null_count())
    if lost or not len(joined) == len(names) == len(coord):
        raise FormatError(
            f"{path}: expected counts of the {len(coord)} spots with coordinates, got "
            f"{len(names)} rows, of which {lost} spots have none"
        )
    return joined["row"].to_numpy().astype(np.int64)


def _array_places(spots: pl.Series) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Row and column from names such as 10x13 or s_008um_00001_00002-1; −1 where unnamed."""
    frame = spots.to_frame("spot")
    found = []
    for st, hd in (("y", 1), ("x", 2)):
        group = 2 if st == "y" else 1
        of_st = pl.col("spot").str.extract(r"^(\d+(?:\.\d+)?)x(\d+(?:\.\d+)?)$", group)
        of_hd = pl.col("spot").str.extract(r"^s_\d+um_(\d+)_(\d+)", hd)
        place = pl.coalesce(of_st, of_hd).cast(pl.Float64).round().cast(pl.Int64).fill_null(-1)
        found.append(frame.select(place).to_series().to_numpy())
    return found[0], found[1]


def _annotate(adata: AnnData, folder: Path, slide: str) -> None:
    """Labels by ``{slide}_{spot}``; what says nothing (missing, undetermined) is left out."""
    for path in sorted((folder / "annotation").glob("*.csv")):
        content = read_bytes(path)
        if f"{slide}_".encode() not in content:
            continue
        separator = max(",\t;", key=content.partition(b"\n")[0].decode("utf-8", "replace").count)
        try:
            table = pl.read_csv(io.BytesIO(content), separator=separator, infer_schema_length=0)
        except pl.exceptions.PolarsError as error:
            raise FormatError(f"{path}: expected a table of annotations, got {error}") from error
        if table.width < 2:
            raise FormatError(f"{path}: expected spots and labels, got columns {table.columns}")
        column = "V2" if "V2" in table.columns else table.columns[1]
        mine = table.filter(pl.first().str.starts_with(f"{slide}_"))
        named = zip(mine.to_series(0), mine[column], strict=True)
        labels = {_spot(name, slide): label for name, label in named if label not in _NO_LABEL}
        adata.obs["annotation"] = pd.Series(labels, dtype=object).reindex(adata.obs_names)
        return


def _pictures(folder: Path, slide: str) -> list[Path]:
    return sorted(p for p in (folder / "image").glob("*") if p.stem == slide and p.is_file())


def _attach_image(adata: AnnData, folder: Path, slide: str, r: float, threads: int) -> None:
    factors: dict[str, Any] = {"spot_diameter_fullres": 2 * r, "fiducial_diameter_fullres": 2 * r}
    images, metadata = {}, {}
    if pictures := _pictures(folder, slide):
        image = open_image(pictures[0])
        for kind, side in (("hires", 2000), ("lowres", 600)):
            images[kind], factors[f"tissue_{kind}_scalef"] = thumbnail(image, side, workers=threads)
        metadata = {"source_image": "full", "source_image_path": str(image.path)}
        xy = np.asarray(adata.obsm["spatial"])
        adata.obs["in_picture"] = _spatial.in_picture(xy, image.shape)
    library = {"images": images, "scalefactors": factors, "metadata": metadata}
    adata.uns["spatial"] = {slide: library}
    bins = re.match(r"s_(\d+)um_", str(adata.obs_names[0]))
    if bins:
        factors["bin_size_um"] = float(bins[1])
        factors["microns_per_pixel"] = float(bins[1]) / (2 * r)
        metadata["mpp_source"] = "bin size"
