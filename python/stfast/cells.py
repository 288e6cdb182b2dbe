"""Segmented cells per spot: what CellViT, QuPath or StarDist found, counted in the circles.

A segmentation's GeoJSON is read once, as a stream, and joined to the spots on a grid; the
file is never held, and neither are its outlines.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
from anndata import AnnData
from numpy.typing import ArrayLike

from stfast import _check, _core, _spatial

By = Literal["centroid", "area"]


@dataclass(frozen=True)
class CellCounts:
    """Cells in each spot.

    Attributes
    ----------
    table
        A row a spot: ``spot``, and a column a class in the order of their names, int64
        numbers of cells or float64 areas in pixels. Cells without a class are in ``""``.
    n_cells
        Cells of the file.
    n_away
        Those that are in no spot.
    n_skipped
        Features that are no cells: without a geometry, lines, or, for areas, points.
    """

    table: pl.DataFrame
    n_cells: int
    n_away: int
    n_skipped: int


def count_cells(
    geojson: str | os.PathLike[str],
    spots: AnnData | ArrayLike,
    *,
    radius: float | ArrayLike | None = None,
    by: By = "centroid",
    property: str = "classification",  # noqa: A002
    scale: float = 1.0,
    progress: Callable[[int], object] | None = None,
) -> CellCounts:
    """Count the cells of a segmentation in each spot, by class.

    Parameters
    ----------
    geojson
        A FeatureCollection or a list of features, gzipped or not. A Polygon is a cell; a
        Point or each point of a MultiPoint is one, given by its centroid; each part of a
        MultiPolygon is one (CellViT writes a class as one feature), but for features whose
        ``objectType`` is ``cell`` or ``detection`` (QuPath), which are one cell each.
    spots
        AnnData, or (n, 2) centres (x, y) in pixels.
    radius
        Of the spots in pixels, one or n; ``None``: half of the AnnData's spot diameter.
    by
        ``"centroid"``: a cell is counted in each spot whose circle its centroid is in, or
        on, as the paper does. ``"area"``: the area that cell and circle share, exactly.
    property
        Name of the feature's property that is its class: a text, a number, or an object
        with a ``name``.
    scale
        Pixels of the spots' picture for one of the file, where they differ.
    progress
        Called with the number of bytes read.

    Returns
    -------
    CellCounts
        The table, and what is not in it.

    Raises
    ------
    FormatError
        The file is no GeoJSON; names the byte.
    ValueError
        Centres or radii that are not finite or not positive, or more than 4096 classes.

    Notes
    -----
    A centroid is that of the polygon's area without its holes; STimage-1K4M counts
    CellViT's centroids within the spot's radius.
    """
    names, xy, r = _circles(spots, radius)
    factor = _check.positive(scale, "scale", "pixels per pixel")
    xy, r = xy / factor, r / factor
    path = Path(geojson)
    classes, values, told = _core.count_cells(
        path, property, (np.ascontiguousarray(xy.ravel()), r), by, progress
    )
    counts = values.reshape(len(classes), len(r)) * (factor**2 if by == "area" else 1)
    dtype = np.float64 if by == "area" else np.int64
    order = sorted(range(len(classes)), key=classes.__getitem__)
    columns = {classes[n]: counts[n].astype(dtype) for n in order}
    if "spot" in columns:
        raise ValueError(f"{path}: expected no class named 'spot', got one")
    return CellCounts(pl.DataFrame({"spot": names} | columns), *told)


def _circles(
    spots: AnnData | ArrayLike, radius: float | ArrayLike | None
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Names, centres (n, 2) and radii (n,) of the spots."""
    if isinstance(spots, AnnData):
        names, xy = spots.obs_names.astype(str).tolist(), _spatial.centers(spots)
        radius = _spatial.spot_span(spots) / 2 if radius is None else radius
    else:
        xy = np.asarray(spots, dtype=np.float64)
        names = [str(n) for n in range(len(xy))]
    if xy.ndim != 2 or xy.shape[1] != 2:
        raise ValueError(f"spots: expected shape (n, 2), got {xy.shape}")
    if radius is None:
        raise ValueError("radius: expected pixels for centres without a diameter, got none")
    r = np.asarray(radius, dtype=np.float64)
    if r.shape not in ((), (len(xy),)):
        raise ValueError(f"radius: expected one or {len(xy)} numbers, got shape {r.shape}")
    return names, xy, np.ascontiguousarray(np.broadcast_to(r, len(xy)))
