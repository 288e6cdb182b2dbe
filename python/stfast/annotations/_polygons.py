"""Polygons that were drawn on the picture, as QuPath exports them (GeoJSON).

Their geometry is shapely's: polygons may cross themselves, hold holes and overlap.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stfast import _spatial
from stfast._core import FormatError

if TYPE_CHECKING:
    from anndata import AnnData

_AREAS = ("Polygon", "MultiPolygon")


def join(
    path: Path, content: bytes, adata: "AnnData", cover: float | None
) -> tuple[pl.DataFrame, list[str]]:
    """``spot`` and ``label`` of each spot in a polygon; the polygons that hold no spot."""
    shapely = _shapely()
    shapes, labels, names = _read(path, content, shapely)
    centers = _spatial.centers(adata)
    spots = shapely.points(centers) if cover is None else _spots(shapely, adata, centers)
    spot, shape = shapely.STRtree(shapes).query(spots, predicate="intersects")
    if not len(spot):
        bounds = shapely.total_bounds(shapes).round().tolist()
        low, high = centers.min(axis=0).round().tolist(), centers.max(axis=0).round().tolist()
        raise FormatError(
            f"{path}: expected polygons around spots, which lie from {low} to {high} px, "
            f"got polygons within {bounds}"
        )
    lone = np.ones(len(shapes), bool)
    lone[shape] = False
    if cover is None:
        spot, found = _smallest(shapely.area(shapes), spot, shape, labels)
    else:
        spot, found = _widest(shapely, shapes, labels, spots, cover)
    joined = pl.DataFrame({"spot": spot, "label": pl.Series(found, dtype=pl.String)})
    return joined, names.filter(pl.Series(lone)).to_list()


def _shapely() -> Any:
    try:
        import shapely
    except ImportError as error:
        raise ImportError("GeoJSON needs shapely: pip install 'stfast[geojson]'") from error
    return shapely


def _read(path: Path, content: bytes, shapely: Any) -> tuple[NDArray[Any], list[str], pl.Series]:
    """Valid polygons, the label and the name of each."""
    try:
        parsed = json.loads(content.decode("utf-8-sig"))
        listed = parsed.get("features", [parsed]) if isinstance(parsed, dict) else parsed
        told = [(one["geometry"], one.get("properties") or {}) for one in listed]
        nothing = {"type": "GeometryCollection", "geometries": []}
        geometry = shapely.from_geojson([json.dumps(shape or nothing) for shape, _ in told])
        labels = [_label(properties) for _, properties in told]
    except (ValueError, TypeError, KeyError, AttributeError, shapely.GEOSException) as error:
        why = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise FormatError(f"{path}: expected GeoJSON's features, got {why}") from error
    kinds = [shape["type"] if shape else "nothing" for shape, _ in told]
    if not any(kind in _AREAS for kind in kinds):
        found = ", ".join(sorted(set(kinds))) or "no feature"
        raise FormatError(f"{path}: expected polygons, got {found}")
    valid = shapely.make_valid(geometry)
    # Points and lines hold no spot: they stay as rows that no spot belongs to.
    valid[[kind not in _AREAS for kind in kinds]] = shapely.from_wkt("POLYGON EMPTY")
    numbered = enumerate(zip(kinds, labels, strict=True), 1)
    names = [f"{kind} {n} ({label or 'no class'})" for n, (kind, label) in numbered]
    return valid, labels, pl.Series(names, dtype=pl.String)


def _label(properties: dict[str, Any]) -> str:
    """The class that QuPath gave to an object, else its name."""
    found = properties.get("classification")
    if isinstance(found, dict):
        found = found.get("name") or ": ".join(found.get("names") or [])
    return str(found or properties.get("name") or "")


def _smallest(
    area: NDArray[np.float64], spot: NDArray[np.int64], shape: NDArray[np.int64], labels: list[str]
) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """The label of the smallest polygon around each spot, of those with a class if any is."""
    bare = np.array([label == "" for label in labels])
    order = np.lexsort((shape, area[shape], bare[shape], spot))
    spot, first = np.unique(spot[order], return_index=True)
    return spot, np.array(labels, dtype=object)[shape[order][first]]


def _widest(
    shapely: Any, shapes: NDArray[Any], labels: list[str], spots: NDArray[Any], cover: float
) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """The label whose polygons cover most of each spot, of those that cover enough."""
    kinds, number = np.unique(labels, return_inverse=True)
    united = np.array([shapely.union_all(shapes[number == kind]) for kind in range(len(kinds))])
    spot, kind = shapely.STRtree(united).query(spots, predicate="intersects")
    share = shapely.area(shapely.intersection(spots[spot], united[kind]))
    share /= shapely.area(spots[spot])
    enough = share >= cover * (1 - 1e-9)  # a square that is cut in two halves is half covered
    spot, kind, share = spot[enough], kind[enough], share[enough]
    # An outline without a class, as of the tissue, says nothing where another has one.
    order = np.lexsort((kind, -share, kinds[kind] == "", spot))
    spot, best = np.unique(spot[order], return_index=True)
    return spot, kinds.astype(object)[kind[order][best]]


def _spots(shapely: Any, adata: "AnnData", centers: NDArray[np.float64]) -> NDArray[Any]:
    """The spots' discs, or the squares of bins."""
    half = _spatial.spot_span(adata) / 2
    if "bin_size_um" in _spatial.library(adata)[1]["scalefactors"]:
        x, y = centers.T
        squares: NDArray[Any] = shapely.box(x - half, y - half, x + half, y + half)
        return squares
    discs: NDArray[Any] = shapely.buffer(shapely.points(centers), half, quad_segs=16)
    return discs
