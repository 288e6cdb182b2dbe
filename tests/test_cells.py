"""count_cells against json and shapely, in every writer's shape of file, and damaged ones."""

import gzip
import json

import numpy as np
import pytest
from anndata import AnnData
from hypothesis import given
from hypothesis import strategies as st

import stfast
from stfast import count_cells

shapely = pytest.importorskip("shapely")
oracles_cells = pytest.importorskip("oracles_cells")

CLASSES = ["Neoplastic", "Inflammatory", 'Étude "1"', None]


def blob(rng, at, size=6.0, n=9):
    """A cell's outline, open or closed, either way round."""
    angles = (np.arange(n) + rng.uniform(0, 0.9, n))[:: rng.choice([-1, 1])] * (2 * np.pi / n)
    far = size * rng.uniform(0.6, 1.4, n)
    ring = np.stack([np.cos(angles) * far, np.sin(angles) * far], axis=1) + at
    return [*ring.tolist(), ring[0].tolist()]


def feature(kind, coordinates, name=None, **properties):
    if name is not None:
        properties["classification"] = {"name": name, "color": [1, 2, 3]}
    geometry = {"type": kind, "coordinates": coordinates}
    return {"type": "Feature", "id": "x", "geometry": geometry, "properties": properties}


def scene(seed, n=60):
    """Spots on a grid whose circles overlap, and cells of some classes about them."""
    rng = np.random.default_rng(seed)
    xy = np.stack(np.meshgrid(np.arange(4) * 30.0, np.arange(5) * 30.0), -1).reshape(-1, 2)
    at = rng.uniform(-40, 160, (n, 2))
    return rng, xy + rng.normal(size=xy.shape), at, rng.choice(4, n)


def writers(rng, at, kinds):
    """The same cells in each writer's shape of file."""
    names = [CLASSES[k] for k in kinds]
    blobs = [blob(rng, center) for center in at]
    qupath = [
        feature("Polygon", [ring], name, objectType="detection", nucleusGeometry={"a": [[1]]})
        for ring, name in zip(blobs, names, strict=True)
    ]
    groups = [[b for b, k in zip(blobs, kinds, strict=True) if k == kind] for kind in range(4)]
    cellvit = [
        feature("MultiPolygon", [[ring] for ring in rings], CLASSES[kind], objectType="annotation")
        for kind, rings in enumerate(groups)
        if rings
    ]
    points = [
        feature("MultiPoint", at[kinds == kind].tolist(), CLASSES[kind])
        for kind in range(4)
        if (kinds == kind).any()
    ]
    return {
        "collection": {"type": "FeatureCollection", "name": [], "features": qupath},
        "qupath": qupath,
        "cellvit": cellvit,
        "points": points,
    }


def assert_counted(path, xy, radius, **options):
    found = count_cells(path, xy, radius=radius, **options)
    radii = np.broadcast_to(radius, len(xy))
    key = options.get("property", "classification")
    counts, told = oracles_cells.count(path, xy, radii, by=options.get("by", "centroid"), key=key)
    assert [found.n_cells, found.n_away, found.n_skipped] == told
    assert found.table.columns == ["spot", *sorted(counts)]
    for name, column in counts.items():
        if options.get("by") == "area":
            np.testing.assert_allclose(found.table[name], column, rtol=1e-5, atol=1e-4)
        else:
            assert found.table[name].to_list() == column
    return found


@pytest.mark.parametrize("by", ["centroid", "area"])
@pytest.mark.parametrize("writer", ["collection", "qupath", "cellvit", "points"])
def test_each_writers_file_is_counted(tmp_path, writer, by):
    rng, xy, at, kinds = scene(1)
    path = tmp_path / "cells.geojson"
    path.write_text(json.dumps(writers(rng, at, kinds)[writer], indent=1))
    found = assert_counted(path, xy, 17.5, by=by)
    if (writer, by) != ("points", "area"):
        assert found.n_cells == 60
        assert 0 < found.n_away < 60
        assert found.table.drop("spot").to_numpy().max() > 1


@given(st.integers(0, 10**6), st.floats(2.0, 60.0))
def test_any_cells_and_radii(tmp_path_factory, seed, radius):
    rng, xy, at, kinds = scene(seed, n=12)
    path = tmp_path_factory.mktemp("cells") / "c.json"
    path.write_text(json.dumps(writers(rng, at, kinds)["qupath"]))
    radii = radius * rng.uniform(0.5, 1.0, len(xy))
    assert_counted(path, xy, radii)
    assert_counted(path, xy, radii, by="area")


def test_the_file_may_be_gzipped_compact_a_sequence_or_marked(tmp_path):
    rng, xy, at, kinds = scene(2)
    features = writers(rng, at, kinds)["qupath"]
    plain = tmp_path / "plain.geojson"
    plain.write_text(json.dumps(features))
    expected = assert_counted(plain, xy, 20.0)
    packed = tmp_path / "packed.geojson.gz"
    half = len(plain.read_bytes()) // 2
    packed.write_bytes(
        gzip.compress(plain.read_bytes()[:half]) + gzip.compress(plain.read_bytes()[half:])
    )
    (tmp_path / "lines.json").write_text("\x1e" + "\n\x1e".join(map(json.dumps, features)))
    (tmp_path / "marked.json").write_text(json.dumps(features, separators=(",", ":")), "utf-8-sig")
    (tmp_path / "utf8.json").write_text(json.dumps(features, ensure_ascii=False), "utf-8")
    for name in ("packed.geojson.gz", "lines.json", "marked.json", "utf8.json"):
        assert count_cells(tmp_path / name, xy, radius=20.0).table.equals(expected.table), name


def test_the_type_may_come_after_the_coordinates_and_the_class_before(tmp_path):
    rng, xy, at, _ = scene(3)
    ring = json.dumps(blob(rng, at[0]))
    text = f'{{"properties":{{"classification":"a"}},"geometry":{{"coordinates":[{ring}],'
    (tmp_path / "c.json").write_text(text + '"type":"Polygon"}, "type": "Feature"}')
    found = assert_counted(tmp_path / "c.json", xy, 80.0)
    assert found.table["a"].sum() > 0


def test_holes_and_parts_are_taken_off_and_together(tmp_path):
    square = [[0, 0], [20, 0], [20, 20], [0, 20], [0, 0]]
    hole = [[1, 1], [1, 9], [9, 9], [9, 1], [1, 1]]
    far = [[x + 60, y] for x, y in square]
    parts = [[square, hole], [far]]
    found = [
        feature("Polygon", [square, hole], "hole"),
        feature("MultiPolygon", parts, "one", objectType="cell"),
        feature("MultiPolygon", parts, "two", objectType="annotation"),
    ]
    (tmp_path / "c.json").write_text(json.dumps(found))
    xy = np.array([[10.0, 10.0], [42.0, 10.0], [70.0, 10.0]])
    table = assert_counted(tmp_path / "c.json", xy, 6.0).table
    assert table["one"].to_list() == [0, 1, 0]
    assert table["two"].to_list() == [1, 0, 1]
    assert_counted(tmp_path / "c.json", xy, 11.0, by="area")


def test_what_is_no_cell_is_counted_apart(tmp_path):
    square = [[0, 0], [2, 0], [2, 2], [0, 2], [0, 0]]
    found = [
        feature("LineString", [[0, 0], [1, 1]], "a"),
        feature("MultiLineString", [square], "a"),
        feature("Polygon", [square], "b"),
        feature("Point", [1, 1, 7], "b"),
        {"type": "Feature", "geometry": None, "properties": {}},
        feature("Polygon", [], "a"),
    ]
    (tmp_path / "c.json").write_text(json.dumps({"type": "FeatureCollection", "features": found}))
    told = count_cells(tmp_path / "c.json", [[0.0, 0.0]], radius=5.0)
    assert (told.n_cells, told.n_away, told.n_skipped) == (2, 0, 4)
    assert told.table["b"].to_list() == [2]


@pytest.mark.parametrize("value", ["b", 3, {"name": "b"}, None, ["x"], True])
def test_the_class_is_any_property(tmp_path, value):
    cell = feature("Point", [0, 0], "no", sort=value)
    (tmp_path / "c.json").write_text(json.dumps([cell]))
    name = {None: "", True: "true", 3: "3"}.get(value, "b") if not isinstance(
        value, dict | list
    ) else ("b" if isinstance(value, dict) else "")  # fmt: skip
    table = count_cells(tmp_path / "c.json", [[0, 0]], radius=1, property="sort").table
    assert table.columns == ["spot", name]


def test_a_line_of_no_area_has_the_mean_of_its_corners(tmp_path):
    (tmp_path / "c.json").write_text(
        json.dumps([feature("Polygon", [[[0, 0], [4, 0], [8, 0]]], "a")])
    )
    table = count_cells(tmp_path / "c.json", [[4, 0], [0, 0]], radius=0.5).table
    assert table["a"].to_list() == [1, 0]


def test_spots_may_be_anndata_and_the_file_of_another_scale(tmp_path):
    rng, xy, at, kinds = scene(4)
    (tmp_path / "c.json").write_text(json.dumps(writers(rng, at, kinds)["qupath"]))
    adata = AnnData(np.zeros((len(xy), 1)), obsm={"spatial": xy * 4})
    adata.obs_names = [f"s{n}" for n in range(len(xy))]
    adata.uns["spatial"] = {"a": {"scalefactors": {"spot_diameter_fullres": 140.0}}}
    for by in ("centroid", "area"):
        plain = count_cells(tmp_path / "c.json", xy, radius=17.5, by=by).table
        found = count_cells(tmp_path / "c.json", adata, scale=4, by=by).table
        assert found["spot"].to_list() == adata.obs_names.tolist()
        np.testing.assert_allclose(
            found.drop("spot").to_numpy(),
            plain.drop("spot").to_numpy() * (16 if by == "area" else 1),
        )


def test_no_spots_and_no_cells_are_fine(tmp_path):
    (tmp_path / "c.json").write_text('{"type": "FeatureCollection", "features": []}')
    assert count_cells(tmp_path / "c.json", [[0, 0]], radius=1).table.shape == (1, 1)
    (tmp_path / "d.json").write_text(json.dumps([feature("Point", [0, 0], "a")]))
    found = count_cells(tmp_path / "d.json", np.empty((0, 2)), radius=1)
    assert (found.table.height, found.n_away) == (0, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected features, got the end of the file"),
        ("[", "got the end of the file"),
        ('[{"geometry": {"type": "Point", "coordinates": [1]}}]', "expected ','"),
        ('[{"geometry": {"type": "Point", "coordinates": [1, NaN]}}]', "a finite number"),
        ('[{"geometry": {"type": "Point", "coordinates": [1, 1e999]}}]', "a finite number"),
        ('[{"geometry": {"coordinates": [[[[[1, 2]]]]]}}]', "at most 4 lists deep"),
        ('[{"geometry": {"coordinates": [[1, 2], [[1, 2]]]}}]', "coordinates of one kind"),
        ('[{"geometry": {"type": "Point", "coordinates": [1, 2]}} {}]', "expected ','"),
        ('[{"properties": {"classification": "\\ud800"}}]', "a text in UTF-8"),
        ('{"a": ' + "[" * 100, "at most 64"),
        ("[" * 100, "features"),
        ('{"type": "FeatureCollection"', "got the end of the file"),
        ('{"a": nope}', "expected a value"),
        ("spot,x,y", "expected '{'"),
    ],
)
def test_damaged_files_are_told_with_the_byte(tmp_path, text, message):
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(stfast.FormatError, match=r"GeoJSON, byte \d+.*c\.json") as told:
        count_cells(tmp_path / "c.json", [[0, 0]], radius=1)
    assert message in str(told.value)


def test_every_cut_of_a_file_is_told(tmp_path):
    rng, xy, at, kinds = scene(5, n=2)
    text = json.dumps(writers(rng, at, kinds)["collection"])
    path = tmp_path / "c.json"
    for end in range(1, len(text), 7):
        path.write_text(text[:end])
        with pytest.raises(stfast.FormatError):
            count_cells(path, xy, radius=10)


def test_bad_arguments_are_refused(tmp_path):
    path = tmp_path / "c.json"
    path.write_text("[]")
    with pytest.raises(ValueError, match="radius: expected pixels"):
        count_cells(path, [[0, 0]])
    with pytest.raises(ValueError, match=r"spots: expected shape \(n, 2\)"):
        count_cells(path, [0, 0], radius=1)
    with pytest.raises(ValueError, match="radius: expected one or 1 numbers"):
        count_cells(path, [[0, 0]], radius=[1, 2])
    with pytest.raises(ValueError, match="finite centres and positive radii, got -1"):
        count_cells(path, [[0, 0]], radius=-1)
    with pytest.raises(ValueError, match="finite centres"):
        count_cells(path, [[0, np.nan]], radius=1)
    with pytest.raises(ValueError, match="by: expected centroid or area"):
        count_cells(path, [[0, 0]], radius=1, by="count")
    with pytest.raises(FileNotFoundError, match=r"none\.json"):
        count_cells(tmp_path / "none.json", [[0, 0]], radius=1)
    many = [feature("Point", [0, 0], str(n)) for n in range(4097)]
    path.write_text(json.dumps(many))
    with pytest.raises(ValueError, match="at most 4096 kinds of cells"):
        count_cells(path, [[0, 0]], radius=1)
