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
        adata = adata[_spatial.flags(adata.obs, "in_tissue") == 1]
    if not adata.uns.get("spatial"):
        if image is None:
            raise ValueError("spots: expected an image, got none and none in uns['spatial']")
        return Spots(image, list(adata.obs_names), _spatial.full_centers(adata), None)
    named = _spatial.library(adata)[1].get("metadata", {}).get("source_image_path")
    if image is None:
        image = open_image(_spatial.image_path(adata))
    elif not named or Path(named).absolute() != image.path:
        adata = _on_full_resolution(adata)
    factors = _spatial.library(adata)[1].get("scalefactors", {})
    if image.mpp is None and factors.get("microns_per_pixel"):
        image = replace(image, mpp=_spatial.mpp(adata), mpp_source="scalefactors")
    return Spots(
        image=image,
        names=list(adata.obs_names),
        centers=_spatial.centers(adata),
        diameter=_spatial.spot_span(adata) if "spot_diameter_fullres" in factors else None,
    )


def _on_full_resolution(adata: AnnData) -> AnnData:
    """The slide without its own picture: the one that is given has full resolution."""
    name, library = _spatial.library(adata)
    metadata = {"source_image_scalef": 1.0}
    bare = AnnData(obs=adata.obs, obsm={"spatial": _spatial.full_centers(adata)})
    bare.uns["spatial"] = {name: {**library, "metadata": metadata}}
    return bare


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
