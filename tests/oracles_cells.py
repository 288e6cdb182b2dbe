"""Cells per spot the plain way: json, shapely's polygons, every cell with every circle."""

import gzip
import json

import shapely
from shapely.geometry import Point, shape


def features_of(found):
    """Features, whichever way a file lists them."""
    if isinstance(found, list):
        return [f for item in found for f in features_of(item)]
    return features_of(found["features"]) if "features" in found else [found]


def cells_of(feature):
    """A feature's cells: shapely polygons or points."""
    if feature["geometry"] is None:
        return []
    geometry = shape(feature["geometry"])
    if geometry.geom_type in ("Polygon", "Point"):
        return [geometry]
    if geometry.geom_type not in ("MultiPolygon", "MultiPoint"):
        return []
    one = feature["properties"].get("objectType") in ("cell", "detection")
    return [geometry] if one else list(geometry.geoms)


def class_of(feature, key="classification"):
    found = feature["properties"].get(key)
    found = found.get("name") if isinstance(found, dict) else found
    return "" if found is None else str(found)


def count(path, xy, radius, *, by="centroid", key="classification"):
    """``{class: [a number a spot]}``, and cells, those away and features without any."""
    opened = gzip.open if str(path).endswith(".gz") else open
    with opened(path, "rt", encoding="utf-8-sig") as file:
        features = features_of(json.load(file))
    counts, told = {}, [0, 0, 0]
    for feature in features:
        cells = cells_of(feature)
        if by == "area":
            cells = [c for c in cells if c.geom_type != "Point"]
        if not cells:
            told[2] += 1
            continue
        column = counts.setdefault(class_of(feature, key), [0] * len(xy))
        for cell in cells:
            hits = [amount(cell, center, r, by) for center, r in zip(xy, radius, strict=True)]
            for n, hit in enumerate(hits):
                column[n] += hit
            told[0] += 1
            told[1] += not any(hits)
    return counts, told


def amount(cell, center, radius, by):
    """Whether the centroid is in the circle, or the area that is shared."""
    if by == "centroid":
        return int(cell.centroid.distance(Point(center)) <= radius)
    return shapely.intersection(cell, Point(center).buffer(radius, quad_segs=2000)).area
