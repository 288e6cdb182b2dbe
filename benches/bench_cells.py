"""Cells per spot: against json with shapely's STRtree, and geopandas' join."""

import json
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import stfast
from benches import data
from benches.measure import Case, Contestant

RADIUS = 55.0
Table = dict[str, NDArray[np.int64]]


def cells(*, quick: bool) -> Case:
    n = 5_000 if quick else 100_000
    path, xy = _write(n)
    size = path.stat().st_size / 1e6
    return Case(
        title=f"{n:,} cells of 24 corners in 4 classes, {size:.0f} MB; {len(xy):,} spots",
        work=n / 1e3,
        unit="k cells",
        contestants=[
            Contestant(name="stfast", role="ours", call=partial(_ours, path, xy)),
            Contestant(name="json + STRtree", needs=("shapely",), call=partial(_tree, path, xy)),
            Contestant(name="geopandas", needs=("geopandas",), call=partial(_join, path, xy)),
            Contestant(name="json.load", role="limit", call=partial(_load, path)),
        ],
        equal=_equal,
    )


def _write(n: int) -> tuple[Path, NDArray[np.float64]]:
    """A segmentation as QuPath exports it, made once, and spots of Visium's pitch."""
    side = 20_000

    def make(path: Path) -> None:
        rng, angles = np.random.default_rng(0), np.linspace(0, 2 * np.pi, 24)
        far = rng.uniform(8, 16, (n, 24))
        rings = np.stack([np.cos(angles) * far, np.sin(angles) * far], axis=-1)
        rings = (rings + rng.uniform(0, side, (n, 1, 2))).round(2)
        rings[:, -1] = rings[:, 0]
        names = rng.choice(["Neoplastic", "Inflammatory", "Connective", "Epithelial"], n)
        pairs = zip(rings.tolist(), names.tolist(), strict=True)
        features = [_feature(ring, name) for ring, name in pairs]
        path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))

    places = np.arange(100, side, 280.0)
    grid = np.stack(np.meshgrid(places, places), -1).reshape(-1, 2)
    return data.cached(f"cells-{n}.geojson", make), grid


def _feature(ring: list[list[float]], name: str) -> dict[str, object]:
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {"objectType": "detection", "classification": {"name": name}},
    }


def _ours(path: Path, xy: NDArray[np.float64]) -> Table:
    table = stfast.count_cells(path, xy, radius=RADIUS).table
    return {name: table[name].to_numpy() for name in table.columns[1:]}


def _tree(path: Path, xy: NDArray[np.float64]) -> Table:
    import shapely

    features = json.loads(path.read_bytes())["features"]
    rings = [f["geometry"]["coordinates"][0] for f in features]
    names = np.array([f["properties"]["classification"]["name"] for f in features])
    points = shapely.centroid(shapely.polygons(rings))
    cell, spot = shapely.STRtree(shapely.points(xy)).query(points, "dwithin", RADIUS)
    return _table(names[cell], spot, len(xy))


def _join(path: Path, xy: NDArray[np.float64]) -> Table:
    import geopandas
    import shapely

    frame = geopandas.read_file(path)
    found = frame["classification"]
    names = np.array([json.loads(v)["name"] if isinstance(v, str) else v["name"] for v in found])
    points = geopandas.GeoSeries(shapely.centroid(frame.geometry.to_numpy()))
    circles = geopandas.GeoSeries(shapely.points(xy))
    spot, cell = points.sindex.query(circles, "dwithin", distance=RADIUS)
    return _table(names[cell], spot, len(xy))


def _load(path: Path) -> None:
    json.loads(path.read_bytes())


def _table(names: NDArray[np.str_], spot: NDArray[np.int64], n: int) -> Table:
    return {str(k): np.bincount(spot[names == k], minlength=n) for k in np.unique(names)}


def _equal(ours: Table, theirs: Table) -> None:
    assert list(ours) == list(theirs)
    for name, column in ours.items():
        np.testing.assert_array_equal(column, theirs[name], err_msg=name)


CASES = {"cells": cells}
