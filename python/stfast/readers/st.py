"""Legacy Spatial Transcriptomics (Ståhl et al. 2016): a table of counts and a picture.

Counts have a row a spot, named by its place on the array (``10x13``, or adjusted
to ``9.93x13.02``), or a column a spot. A spot table (st_spot_detector's, with 4, 6 or 7
columns) gives pixel positions; where there is none, or it has none, the picture is
cropped to the array's frame, and a place (x, y) lies at
``((x - 1) W / 32, (y - 1) H / 34)``.
"""

import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import polars as pl
from anndata import AnnData
from anndata.utils import make_index_unique
from numpy.typing import NDArray
from scipy import sparse

from stfast import _check, _spatial
from stfast._core import FormatError
from stfast._warn import warn
from stfast.images import SlideImage, open_image, thumbnail

_PLACE = r"^\s*(-?\d+(?:\.\d+)?)[x_](-?\d+(?:\.\d+)?)\s*$"
_PICTURES = {".jpg", ".jpeg", ".png", ".tif", ".tiff"}
_SPOT_COLUMNS = ["x", "y", "new_x", "new_y", "pixel_x", "pixel_y", "selected"]
_PIXELS = {"pixel_x", "pixel_y"}


class Spots(NamedTuple):
    """Where spots lie: centres (x, y) in px, which are in tissue, the paper's radius in px."""

    xy: NDArray[np.float64]
    in_tissue: NDArray[np.int64]
    radius: float


def is_st(path: Path) -> bool:
    """Whether a folder holds a table of counts and a picture."""
    return path.is_dir() and bool(_counts_files(path)) and bool(_pictures(path))


def read_st(
    path: str | os.PathLike[str],
    *,
    image: str | os.PathLike[str] | None = None,
    workers: int | None = None,
) -> AnnData:
    """Read a legacy Spatial Transcriptomics slide.

    Parameters
    ----------
    path
        Folder with ``*counts*.tsv[.gz]``, a picture, and maybe a spot table
        (``*spots*``, ``*alignment*`` or ``*coord*.tsv``): ``x y new_x new_y [pixel_x pixel_y
        [selected]]``, with a header or without.
    image
        The picture, if the folder holds several.
    workers
        Threads; ``None``: ``$STFAST_WORKERS``, else the CPUs of this process.

    Returns
    -------
    AnnData
        Spots × genes, int32 counts, by the conventions of :func:`stfast.read`.
        ``spot_diameter_fullres`` is 2r, with r = (max pixel_x − min pixel_x) /
        (max new_x − min new_x) / 4: the rule of STimage-1K4M.

    Raises
    ------
    FileNotFoundError
        No counts or no picture.
    FormatError
        A table that is not what it should be, or spots that match no place.
    """
    path = Path(path)
    counts_path = _one(_counts_files(path), path, "a table of counts (*counts*.tsv)")
    picture = _one(_pictures(path), path, "a picture") if image is None else Path(image)
    opened = open_image(picture)
    matrix, names, genes = _read_counts(counts_path)
    places = _places(names, counts_path)
    tables = _spot_files(path)
    spots = _from_table(tables[0], places, opened) if tables else _from_frame(places, opened)
    placed = np.isfinite(spots.xy[:, 0])
    if not placed.all():
        _report_unplaced(placed, names, tables[0])
        spots = Spots(spots.xy[placed], spots.in_tissue[placed], spots.radius)
        matrix, places = matrix[placed], places[placed]
        names = [name for name, keep in zip(names, placed, strict=True) if keep]
    obs = pd.DataFrame(
        {
            "in_tissue": spots.in_tissue,
            "array_row": places[:, 1].round().astype(np.int64),
            "array_col": places[:, 0].round().astype(np.int64),
            "in_picture": _spatial.in_picture(spots.xy, opened.shape),
        },
        index=_spatial.names(names),
    )
    adata = AnnData(X=matrix, obs=obs, var=pd.DataFrame(index=genes), obsm={"spatial": spots.xy})
    library = _library(opened, spots, _unit_um(places), _check.workers(workers))
    adata.uns["spatial"] = {path.absolute().name: library}
    _spatial.stamp(adata, "read_st", positions="table" if tables else "frame")
    return adata


def _unit_um(places: NDArray[np.float64]) -> float:
    """µm from a place to the next: 200 on a 1k array.

    On a 2k array only places whose x and y have the same parity exist, 100 µm apart.
    """
    whole = places.round().astype(np.int64)
    return 100.0 if (whole.sum(axis=1) % 2 == 0).all() and len(whole) > 1 else 200.0


def _library(image: SlideImage, spots: Spots, unit: float, threads: int) -> dict[str, Any]:
    hires, hires_scale = thumbnail(image, 2000, workers=threads)
    lowres, lowres_scale = thumbnail(image, 600, workers=threads)
    return {
        "images": {"hires": hires, "lowres": lowres},
        "scalefactors": {
            "spot_diameter_fullres": 2 * spots.radius,
            "fiducial_diameter_fullres": 2 * spots.radius,
            "tissue_hires_scalef": hires_scale,
            "tissue_lowres_scalef": lowres_scale,
            "microns_per_pixel": unit / (4 * spots.radius),
        },
        "metadata": {
            "source_image": "full",
            "source_image_path": str(image.path),
            "mpp_source": "array pitch",
            "array": "2k" if unit == 100.0 else "1k",
        },
    }


def _counts_files(path: Path) -> list[Path]:
    return sorted(p for p in path.glob("*counts*.tsv*") if p.suffix in (".tsv", ".gz"))


def _spot_files(path: Path) -> list[Path]:
    patterns = ("*spots*.tsv*", "*alignment*.tsv*", "*coord*.tsv*")
    return sorted(p for pattern in patterns for p in path.glob(pattern))


def _pictures(path: Path) -> list[Path]:
    return sorted(p for p in path.iterdir() if p.suffix.lower() in _PICTURES)


def _one(files: list[Path], path: Path, what: str) -> Path:
    if not files:
        raise FileNotFoundError(2, f"expected {what}, got none", str(path))
    if len(files) > 1:
        raise FormatError(f"{path}: expected one file as {what}, got {[p.name for p in files]}")
    return files[0]


def _read_counts(path: Path) -> tuple[sparse.csr_matrix, list[str], pd.Index]:
    """Counts as spots × genes, names of spots, names of genes."""
    table = _read_table(path)
    names, columns = table.to_series(0).cast(pl.String), table.columns[1:]
    try:
        values = table.drop(table.columns[0]).cast(pl.Float64).to_numpy()
    except pl.exceptions.PolarsError as error:
        raise FormatError(f"{path}: expected a table of numbers, got {error}") from error
    rows = names.to_list()
    if not names.str.contains(_PLACE).all() and pl.Series(columns).str.contains(_PLACE).all():
        rows, columns, values = columns, rows, values.T
    if not ((values >= 0) & (values < 2**31) & (values == np.trunc(values))).all():
        raise FormatError(f"{path}: expected whole counts from 0 to 2**31, got others")
    genes = make_index_unique(_spatial.names(columns))
    return sparse.csr_matrix(values.astype(np.int32)), rows, genes


def _read_table(path: Path, *, header: bool = True) -> pl.DataFrame:
    try:
        table = pl.read_csv(path, separator="\t", has_header=header, infer_schema_length=100)
    except (pl.exceptions.PolarsError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise FormatError(f"{path}: expected a tab-separated table, got {error}") from error
    if table.width < 2:
        raise FormatError(f"{path}: expected a tab-separated table, got one column")
    return table


def _places(names: list[str], path: Path) -> NDArray[np.float64]:
    """Array places (x, y) from the spots' names."""
    found = [re.match(_PLACE, name or "") for name in names]
    bad = [name for name, match in zip(names, found, strict=True) if match is None]
    if bad:
        raise FormatError(f"{path}: expected spots named like 10x13, got {bad[0]!r}")
    return np.array([match.groups() for match in found if match], dtype=np.float64)


def _from_frame(places: NDArray[np.float64], image: SlideImage) -> Spots:
    if _unit_um(places) == 100.0:
        raise FormatError(
            f"{image.path.parent}: expected a table of spots for a 2k array, got none: "
            f"its picture has no frame to place them by"
        )
    height, width = image.shape
    pitch = np.array([width / 32, height / 34])
    radius = float(pitch[0] / 4)
    return Spots((places - 1) * pitch, np.ones(len(places), dtype=np.int64), radius)


def _from_table(path: Path, places: NDArray[np.float64], image: SlideImage) -> Spots:
    """Spots' pixels by their rounded place, NaN where the table lacks one.

    The radius is taken over all rows of the table, as the paper does.
    """
    table = _read_spots(path)
    if not _PIXELS & set(table.columns):
        height, width = image.shape
        pixel_x = (pl.col("new_x") - 1) * (width / 32)
        pixel_y = (pl.col("new_y") - 1) * (height / 34)
        table = table.with_columns(pixel_x=pixel_x, pixel_y=pixel_y)
    selected = pl.col("selected") if "selected" in table.columns else pl.lit(1.0)
    try:
        keyed = table.select(
            pl.col("x", "y").round().cast(pl.Int64),
            pl.col("pixel_x", "pixel_y"),
            in_tissue=selected.cast(pl.Int64),
        )
    except pl.exceptions.PolarsError as error:
        raise FormatError(f"{path}: expected numbers, got {error}") from error
    wanted = pl.DataFrame(places.round().astype(np.int64), schema=["x", "y"])
    joined = wanted.join(keyed, on=["x", "y"], how="left", maintain_order="left")
    if len(joined) != len(wanted):
        raise FormatError(f"{path}: expected each place (x, y) once, got some twice")
    xy = np.ascontiguousarray(joined.select("pixel_x", "pixel_y").to_numpy())
    tissue = joined["in_tissue"].fill_null(0).to_numpy().astype(np.int64)
    return Spots(xy, tissue, _radius(table, path))


def _read_spots(path: Path) -> pl.DataFrame:
    """A spot table, with a header or without: 4, 6 or 7 columns of st_spot_detector's.

    ``x y new_x new_y [pixel_x pixel_y [selected]]``; a table with a header may leave out
    ``new_x`` and ``new_y``, which are then ``x`` and ``y``.
    """
    table = _read_table(path)
    if re.fullmatch(r"\s*-?\d+(\.\d+)?\s*", table.columns[0]):
        if table.width not in (4, 6, 7):
            raise FormatError(
                f"{path}: expected {_SPOT_COLUMNS} (4, 6 or 7 of them), got {table.width} columns"
            )
        table = _read_table(path, header=False)
        table.columns = _SPOT_COLUMNS[: table.width]
    table = table.rename({name: name.strip().lower() for name in table.columns})
    known = [name for name in _SPOT_COLUMNS if name in table.columns]
    has = set(known)
    pixels, adjusted = _PIXELS <= has, {"new_x", "new_y"} <= has
    if not {"x", "y"} <= has or not (pixels or adjusted) or (_PIXELS & has and not pixels):
        raise FormatError(f"{path}: expected columns {_SPOT_COLUMNS[:-1]}, got {table.columns}")
    try:
        table = table.select(pl.col(known).cast(pl.Float64))
    except pl.exceptions.PolarsError as error:
        raise FormatError(f"{path}: expected numbers, got {error}") from error
    return table if adjusted else table.with_columns(new_x="x", new_y="y")


def _radius(table: pl.DataFrame, path: Path) -> float:
    """The paper's radius in px, from all rows of the table."""
    columns = [table[name].drop_nulls().drop_nans().to_numpy() for name in ("pixel_x", "new_x")]
    spread = [float(np.ptp(column)) if len(column) else 0.0 for column in columns]
    if not (0 < min(spread) and max(spread) < np.inf):
        raise FormatError(f"{path}: expected pixel_x and new_x that spread, got {spread}")
    return spread[0] / spread[1] / 4


def _report_unplaced(placed: NDArray[np.bool_], names: list[str], path: Path) -> None:
    """Warn of spots that the table does not place; raise if it places none."""
    lost = np.flatnonzero(~placed)
    found = f"none for {len(lost)} of them (first {names[lost[0]]!r})"
    message = f"{path}: expected a row for each of {len(names)} spots with counts, got {found}"
    if not placed.any():
        raise FormatError(message)
    warn(f"{message}; left out")
