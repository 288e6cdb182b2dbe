"""Where a slide's tiles are: spots of a folder, a table or an AnnData, or a grid over tissue."""

import os
from dataclasses import dataclass, replace
from pathlib import Path

import anndata
import numpy as np
import polars as pl
from anndata import AnnData
from numpy.typing import NDArray

from stfast import _check, _spatial
from stfast._core import FormatError
from stfast.images import SlideImage, open_image
from stfast.readers import read
from stfast.tiles import tissue_grid

_AXES = (("x", "y"), ("xaxis", "yaxis"))


@dataclass(frozen=True)
class Spots:
    """Spots of a picture: names, centres (x, y) in px, diameter in px.

    The picture's µm per pixel are the file's, else those of the array's pitch.
    """

    image: SlideImage
    names: list[str]
    centers: NDArray[np.float64]
    diameter: float | None


def find_spots(image: SlideImage | None, spots: str | os.PathLike[str]) -> Spots:
    """The spots of a slide's folder, of a table, or of an AnnData in h5ad or zarr.

    ``image`` is the picture that they lie on; ``None``: the one that they name.
    """
    spots = Path(spots)
    if spots.suffix == ".h5ad":
        return _of_slide(image, anndata.read_h5ad(spots))
    if spots.is_dir() and any((spots / name).exists() for name in ("zarr.json", ".zgroup")):
        return _of_slide(image, anndata.read_zarr(spots))
    if spots.is_dir():
        return _of_slide(image, read(spots))
    if image is None:
        raise ValueError(f"{spots}: expected an image for a table of spots, got none")
    return _of_table(image, spots)


def _of_slide(image: SlideImage | None, adata: AnnData) -> Spots:
    """The spots in tissue; all of them where nothing says which these are."""
    if "in_tissue" in adata.obs:
        adata = adata[adata.obs["in_tissue"] == 1]
    image = open_image(_spatial.image_path(adata)) if image is None else image
    factors = _spatial.library(adata)[1].get("scalefactors", {}) if adata.uns.get("spatial") else {}
    mpp, diameter = factors.get("microns_per_pixel"), factors.get("spot_diameter_fullres")
    if image.mpp is None and mpp:
        image = replace(image, mpp=float(mpp), mpp_source="scalefactors")
    return Spots(
        image=image,
        names=list(adata.obs_names),
        centers=_spatial.centers(adata),
        diameter=None if diameter is None else float(diameter),
    )


def _of_table(image: SlideImage, table: Path) -> Spots:
    """Columns ``x, y``, or ``yaxis, xaxis, r`` as STimage-1K4M writes them."""
    try:
        rows = _read_table(table)
        rows = rows.with_columns(pl.col("^(x|y|xaxis|yaxis|r)$").cast(pl.Float64))
    except pl.exceptions.PolarsError as error:
        raise FormatError(f"{table}: expected a table of numbers, got {error}") from error
    pairs = [pair for pair in _AXES if set(pair) <= set(rows.columns)]
    if not pairs:
        raise FormatError(f"{table}: expected columns x, y or xaxis, yaxis, got {rows.columns}")
    named = rows.columns[0] not in ("x", "y", "xaxis", "yaxis", "r")
    names = rows.to_series(0) if named else pl.Series(range(len(rows)))
    radius = _radius(rows, table) if "r" in rows.columns and len(rows) else None
    return Spots(
        image=image,
        names=names.cast(pl.String).to_list(),
        centers=_check.points(rows.select(pairs[0]).to_numpy(), str(table)),
        diameter=None if radius is None else 2 * radius,
    )


def _radius(rows: pl.DataFrame, table: Path) -> float:
    """The one radius of a slide's spots."""
    radii = rows["r"].unique().to_list()
    if len(radii) != 1:
        raise FormatError(f"{table}: expected one radius for all spots, got {radii[:3]} and more")
    return _check.positive(radii[0], f"{table}: r", "pixels")


def _read_table(table: Path) -> pl.DataFrame:
    if table.suffix == ".parquet":
        return pl.read_parquet(table)
    return pl.read_csv(table, separator="\t" if ".tsv" in table.suffixes else ",")


def grid_spots(
    image: SlideImage,
    span: float,
    *,
    step: float | None,
    min_tissue: float,
    workers: int | None = None,
) -> Spots:
    """A grid over a picture's tissue, each place named by its row and column."""
    grid = tissue_grid(image, span, step=step, min_tissue=min_tissue, workers=workers)
    place = pl.DataFrame(grid.place, schema=["row", "col"])
    names = place.select(pl.format("r{}_c{}", "row", "col")).to_series().to_list()
    return Spots(image=image, names=names, centers=grid.centers, diameter=span)
