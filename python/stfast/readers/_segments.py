"""Cells and nuclei that Space Ranger 4 segmented (``segmented_outputs``).

Cells have a matrix of their own; nuclei, and cells where that matrix is missing, are
summed from the 2 µm squares by ``barcode_mappings.parquet``, which comes in two
spellings. Polygons give their centres.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
from anndata import AnnData
from numpy.typing import NDArray

from stfast import _spatial
from stfast._core import FormatError
from stfast.bins import number_labels
from stfast.readers import _tenx
from stfast.readers._grid import Grid, read_grid
from stfast.readers._library import read_pixels, read_scalefactors
from stfast.readers.tenx import read_matrix

_MATRIX = "{}_feature_cell_matrix.h5"
_POLYGONS = {"cells": "cell_segmentations.geojson", "nuclei": "nucleus_segmentations.geojson"}
_MAPPINGS = "barcode_mappings.parquet"
_GEOJSON = {
    "features": pl.List(
        pl.Struct(
            {
                "properties": pl.Struct({"cell_id": pl.String}),
                "geometry": pl.Struct({"coordinates": pl.List(pl.List(pl.List(pl.Float64)))}),
            }
        )
    )
}


def find(path: Path) -> Path | None:
    """The folder of segmented outputs, from any of the levels around it."""
    path = path.absolute()
    places = [path, path / "segmented_outputs", path / "outs" / "segmented_outputs"]
    places += [path.parent / "segmented_outputs", path.parent.parent / "segmented_outputs"]
    return next((p for p in places if p.name == "segmented_outputs" and p.is_dir()), None)


def read_segments(
    folder: Path,
    kind: str,
    squares: Path | None,
    *,
    raw: bool,
    threads: int,
    progress: Callable[[int], object] | None,
) -> AnnData:
    """Cells or nuclei × genes, named as Space Ranger names cells."""
    own = folder / _MATRIX.format("raw" if raw else "filtered")
    if kind == "cells" and own.exists():
        adata, attributes = read_matrix(own, None, threads)
    else:
        adata, attributes = _sum_squares(folder, kind, squares, threads, progress)
    adata.obs.insert(0, "in_tissue", 1)
    adata.obs["cell_id"] = _numbers(pl.Series(adata.obs_names.to_numpy(), dtype=pl.String))
    polygons = folder / _POLYGONS[kind]
    shapes = read_polygons(polygons) if polygons.exists() else pl.DataFrame()
    diameter = _place(adata, shapes, polygons)
    adata.uns["spatial"] = {folder.parent.name: _library(folder, squares, attributes, diameter)}
    return adata


def _numbers(names: pl.Series) -> NDArray[np.int64]:
    """Number of each cell; −1: of none. Both ``cellid_000000007-1`` and 7 are one."""
    digits = names.cast(pl.String).str.extract(r"^(?:cellid_)?(\d+)(?:-\d+)?$")
    return digits.cast(pl.Int64).replace(0, -1).fill_null(-1).to_numpy().astype(np.int64)


def read_mappings(path: Path) -> pl.DataFrame:
    """``barcode_mappings.parquet``: row and column of each square in a cell, its number.

    Columns are spelt ``Square_002um`` on 10x's page and ``square_002um`` in its files;
    squares in no cell have a null or the number 0.
    """
    try:
        table = pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise FormatError(f"{path}: expected a Parquet table, got {error}") from error
    table = table.rename({name: name.lower() for name in table.columns})
    squares = sorted(name for name in table.columns if name.startswith("square_"))
    if not squares or "cell_id" not in table.columns:
        raise FormatError(f"{path}: expected square_002um and cell_id, got {table.columns}")
    table = table.with_columns(cell=pl.Series(_numbers(table["cell_id"]))).filter(
        pl.col("cell") > 0
    )
    place = pl.col(squares[0]).str.extract_groups(r"^s_\d+um_(?<row>\d+)_(?<col>\d+)")
    flags = [name for name in ("in_nucleus", "in_cell") if name in table.columns]
    return table.select(
        place.struct["row"].cast(pl.Int64), place.struct["col"].cast(pl.Int64), "cell", *flags
    )


def _sum_squares(
    folder: Path,
    kind: str,
    squares: Path | None,
    threads: int,
    progress: Callable[[int], object] | None,
) -> tuple[AnnData, dict[str, str]]:
    path = next((p for p in (folder / _MAPPINGS, folder.parent / _MAPPINGS) if p.exists()), None)
    if path is None:
        raise FileNotFoundError(2, f"expected {_MAPPINGS}, got none", str(folder))
    if squares is None:
        raise FileNotFoundError(2, "expected binned_outputs/square_002um, got none", str(folder))
    mapped = read_mappings(path)
    if kind == "nuclei":
        if "in_nucleus" not in mapped.columns:
            raise FormatError(f"{path}: expected a column in_nucleus, got {mapped.columns}")
        mapped = mapped.filter(pl.col("in_nucleus").cast(pl.Int8) == 1)
    size = int(squares.name[7:10])
    with _tenx.open_matrix(squares / "raw_feature_bc_matrix.h5", None, threads) as matrix:
        places = matrix.squares(size)
        if places is None:
            raise FormatError(f"{matrix.path}: expected barcodes of {size} µm squares, got others")
        groups, numbers = number_labels(_labels(mapped, *places))
        counts = matrix.sums(groups, len(numbers), progress)
        var, attributes = matrix.var(), matrix.attributes()
    names = pl.DataFrame({"n": numbers}).select(
        pl.format("cellid_{}-1", pl.col("n").cast(pl.String).str.zfill(9))
    )
    obs = pd.DataFrame(index=_spatial.names(names.to_series().to_list()))
    obs["n_squares"] = np.bincount(groups[groups >= 0], minlength=len(numbers))
    adata = AnnData(X=counts, obs=obs, var=var)
    grid = read_grid(squares / "spatial" / "tissue_positions.parquet", size)
    if grid is not None:
        adata.obsm["spatial"] = _mean_places(grid, places, groups, len(numbers))
    return adata, attributes


def _mean_places(
    grid: Grid,
    places: tuple[NDArray[np.int32], NDArray[np.int32]],
    groups: NDArray[np.int64],
    n: int,
) -> NDArray[np.float64]:
    """Mean (x, y) of the squares of each group; NaN of those without one in the grid."""
    at = grid.locate(*places)
    member = (groups >= 0) & (at >= 0)
    axes = (grid.x, grid.y)
    sums = [np.bincount(groups[member], weights=axis[at[member]], minlength=n) for axis in axes]
    count = np.bincount(groups[member], minlength=n)
    with np.errstate(invalid="ignore"):
        means: NDArray[np.float64] = np.column_stack(sums) / count[:, None]
    return means


def _labels(
    mapped: pl.DataFrame, rows: NDArray[np.int32], cols: NDArray[np.int32]
) -> NDArray[np.int64]:
    """The cell of each square of the matrix; −1: none."""
    at_row, at_col = mapped["row"].to_numpy(), mapped["col"].to_numpy()
    shape = [
        int(max(a.max(initial=0), b.max(initial=0))) + 1
        for a, b in ((rows, at_row), (cols, at_col))
    ]
    table = np.full(shape, -1, np.int64)
    table[at_row, at_col] = mapped["cell"].to_numpy()
    return table[rows, cols]


def read_polygons(path: Path) -> pl.DataFrame:
    """Cells of a GeoJSON: number, centroid (x, y) and area of the outer ring, in px."""
    try:
        table = pl.read_json(path, schema=_GEOJSON)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise FormatError(f"{path}: expected GeoJSON polygons with cell_id, got {error}") from error
    shapes = table.explode("features").unnest("features").unnest("properties", "geometry")
    cell = pl.Series("cell", _numbers(shapes["cell_id"]))
    points = (
        shapes.select(cell, ring=pl.col("coordinates").list.first())
        .explode("ring")
        .select("cell", x=pl.col("ring").list.get(0), y=pl.col("ring").list.get(1))
    )
    # From the first corner, so that the areas of far-off rings keep their digits.
    x, y = (pl.col(a) - pl.col(a).first().over("cell") for a in "xy")
    points = points.with_columns(
        x0=pl.col("x").first().over("cell"), dx=x, y0=pl.col("y").first().over("cell"), dy=y
    )
    (dx, dy), (nx, ny) = (
        (pl.col("dx"), pl.col("dy")),
        (pl.col(a).shift(-1).over("cell") for a in ("dx", "dy")),
    )
    cross = (dx * ny - nx * dy).fill_null(0)
    sums = points.group_by("cell", maintain_order=True).agg(
        pl.col("x0", "y0").first(),
        twice=cross.sum(),
        cx=((dx + nx).fill_null(0) * cross).sum(),
        cy=((dy + ny).fill_null(0) * cross).sum(),
        mx=dx.mean(),
        my=dy.mean(),
    )
    flat = pl.col("twice") == 0
    return sums.select(
        "cell",
        x=pl.col("x0") + pl.when(flat).then("mx").otherwise(pl.col("cx") / (3 * pl.col("twice"))),
        y=pl.col("y0") + pl.when(flat).then("my").otherwise(pl.col("cy") / (3 * pl.col("twice"))),
        area=(pl.col("twice") / 2).abs(),
    )


def _place(adata: AnnData, shapes: pl.DataFrame, path: Path) -> float | None:
    """Put cells at their polygons' centroids; return their mean diameter in px."""
    if not len(shapes):
        if "spatial" not in adata.obsm:
            raise FileNotFoundError(2, "expected polygons of cells, got none", str(path))
        return None
    wanted = pl.DataFrame({"cell": adata.obs["cell_id"].to_numpy()})
    found = wanted.join(shapes, on="cell", how="left", maintain_order="left")
    if len(found) != len(wanted):
        raise FormatError(f"{path}: expected each cell once, got some twice")
    xy = found.select("x", "y").to_numpy()
    lost = ~np.isfinite(xy).all(axis=1)
    if lost.any() and "spatial" in adata.obsm:
        xy = np.where(lost[:, None], adata.obsm["spatial"], xy)
        lost = ~np.isfinite(xy).all(axis=1)
    if lost.any():
        raise FormatError(
            f"{path}: expected a polygon for each of {len(xy)} cells, got none for "
            f"{int(lost.sum())} of them (first {adata.obs_names[lost][0]!r})"
        )
    adata.obsm["spatial"] = xy
    adata.obs["area_px"] = found["area"].to_numpy()
    mean = found["area"].mean()
    return 2 * float(np.sqrt(float(mean) / np.pi)) if isinstance(mean, float) else None


def _library(
    folder: Path, squares: Path | None, attributes: dict[str, str], diameter: float | None
) -> dict[str, Any]:
    """As that of bins; the diameter that Space Ranger leaves out is that of a mean cell."""
    spatial = next(
        (p for p in (folder / "spatial", squares and squares / "spatial") if p and p.is_dir()), None
    )
    if spatial is None:
        raise FileNotFoundError(2, "expected a folder spatial, got none", str(folder))
    kinds = ("hires", "lowres")
    pictures = {k: spatial / f"tissue_{k}_image.png" for k in kinds}
    images = {k: read_pixels(p) for k, p in pictures.items() if p.exists()}
    factors = read_scalefactors(spatial / "scalefactors_json.json")
    if "microns_per_pixel" not in factors and squares is not None:
        others = read_scalefactors(squares / "spatial" / "scalefactors_json.json")
        factors |= {k: v for k, v in others.items() if k == "microns_per_pixel"}
    factors.pop("bin_size_um", None)
    if diameter is not None:
        factors["spot_diameter_fullres"] = diameter
    factors.setdefault("spot_diameter_fullres", 10.0 / factors.get("microns_per_pixel", 1.0))
    metadata: dict[str, Any] = dict(attributes)
    if "microns_per_pixel" in factors:
        metadata["mpp_source"] = "scale factors"
    return {"images": images, "scalefactors": factors, "metadata": metadata}
