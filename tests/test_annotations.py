"""Pathologists' labels joined to spots: tables of every shape, polygons, and what is refused."""

import gzip
import json

import numpy as np
import pandas as pd
import polars as pl
import pytest
import shapely
from anndata import AnnData

import stfast

TOLD = ("tumor", "undetermined", "stroma", "Exclude")
FACTORS = {"spot_diameter_fullres": 10.0}


def slide_of(names, xy, name="S1", **factors):
    """A slide without counts: only names and places of spots are asked for."""
    adata = AnnData(np.zeros((len(names), 1), np.float32), obs=pd.DataFrame(index=list(names)))
    adata.obsm["spatial"] = np.asarray(xy, float)
    library = {"images": {}, "scalefactors": FACTORS | factors, "metadata": {}}
    adata.uns["spatial"] = {name: library}
    return adata


@pytest.fixture
def adata():
    """Four spots in a row, 20 px apart."""
    names = ["AAACCGTTCGTC-1", "AAACTGCTGGCT-1", "AAAGGGATGTAG-1", "AAATGGCATGTC-1"]
    return slide_of(names, [(10, 50), (30, 50), (50, 50), (70, 50)])


def written(path, text):
    path.write_text(text)
    return path


def all_told(labels):
    """Every spot is labelled, excluded or unmatched."""
    told = labels.label.notna().sum() + len(labels.unmatched_spots) + sum(labels.excluded.values())
    assert told == len(labels.label)


@pytest.mark.parametrize("separator", [",", "\t", ";"])
def test_one_file_a_study_in_any_separator(tmp_path, adata, separator):
    rows = [f"S1_{spot}{separator}{label}" for spot, label in
            zip(adata.obs_names, TOLD, strict=True)]  # fmt: skip
    rows += [f"S1_GGGGGGGGGGGG-1{separator}tumor", f"S2_{adata.obs_names[0]}{separator}other"]
    path = written(tmp_path / "study.csv", f"{separator}V2\n" + "\n".join(rows) + "\n")
    found = stfast.labels_of(path, adata)
    assert found.label.tolist() == ["tumor", None, "stroma", None]
    assert found.label.index.equals(adata.obs_names)
    assert (found.joined_by, found.tolerance) == ("name", None)
    assert found.excluded == {"undetermined": 1, "Exclude": 1}
    assert (found.unmatched_spots, found.unmatched_rows) == ([], ["GGGGGGGGGGGG-1"])
    all_told(found)


def test_as_r_writes_it_without_a_name_for_the_rows(tmp_path, adata):
    rows = "\n".join(f'"S1_{spot}"\t"invasive, late"' for spot in adata.obs_names[:2])
    path = written(tmp_path / "r.tsv", f'"V2"\n{rows}\n')
    found = stfast.labels_of(path, adata)
    assert found.label.tolist() == ["invasive, late"] * 2 + [None, None]
    assert found.unmatched_spots == adata.obs_names[2:].tolist()


def test_one_column_a_label(tmp_path, adata):
    lines = ["spot,tumor,stroma", *(f"{s},{o}" for s, o in
             zip(adata.obs_names, ("1,0", "0,1", "0,0", "1,0"), strict=True))]  # fmt: skip
    found = stfast.labels_of(written(tmp_path / "hot.csv", "\n".join(lines)), adata)
    assert found.label.tolist() == ["tumor", "stroma", None, "tumor"]
    assert found.excluded == {"empty": 1}
    yes = {"tumor": [True, False, None], "stroma": [False, True, False]}
    table = pd.DataFrame(yes, index=adata.obs_names[:3])
    table.to_parquet(tmp_path / "hot.parquet")
    found = stfast.labels_of(tmp_path / "hot.parquet", adata)
    assert found.label.tolist() == ["tumor", "stroma", None, None]
    twice = written(tmp_path / "two.csv", "\n".join(lines).replace("0,1", "1,1"))
    with pytest.raises(ValueError, match=r"two\.csv: expected at most one 1 a row, got several"):
        stfast.labels_of(twice, adata)


def test_a_column_of_slides_and_no_header(tmp_path, adata):
    text = "".join(f"{spot}\t{slide}\t{label}\n" for slide, label in (("S0", "x"), ("S1", "L1"))
                   for spot in adata.obs_names)  # fmt: skip
    path = written(tmp_path / "layers.tsv", text)
    assert stfast.labels_of(path, adata).label.tolist() == ["L1"] * 4
    assert stfast.labels_of(path, adata, slide="S0").label.tolist() == ["x"] * 4
    named = written(tmp_path / "named.tsv", "barcode\tsample\tlayer\n" + text)
    with pytest.raises(ValueError, match=r"rows of slide 'S9' in 'sample', got \['S0', 'S1'\]"):
        stfast.labels_of(named, adata, slide="S9")


def test_a_byte_order_mark_and_gzip_change_nothing(tmp_path, adata):
    text = "\ufeffbarcode,label\n" + "".join(f"{spot},x\n" for spot in adata.obs_names)
    (tmp_path / "bom.csv.gz").write_bytes(gzip.compress(text.encode()))
    assert set(stfast.labels_of(tmp_path / "bom.csv.gz", adata).label) == {"x"}


def test_barcodes_without_their_end(tmp_path, adata):
    rows = "".join(f"{spot[:-2]},L{n}\n" for n, spot in enumerate(adata.obs_names))
    found = stfast.labels_of(written(tmp_path / "a.csv", "barcode,layer\n" + rows), adata)
    assert (found.label.tolist(), found.joined_by) == (["L0", "L1", "L2", "L3"], "barcode")


def test_by_coordinates_within_a_tolerance(tmp_path, adata):
    path = tmp_path / "xy.parquet"
    xy = {"x": [11.0, 34.9, 55.5, 69.0, 10.5, None], "y": [50.0] * 6}
    pl.DataFrame(xy | {"label": ["a", "b", "c", "d", "e", "f"]}).write_parquet(path)
    found = stfast.labels_of(path, adata)
    assert found.label.tolist() == ["e", "b", None, "d"]  # "e" lies nearer than "a"
    assert (found.joined_by, found.tolerance) == ("coordinates", 5.0)
    assert (found.unmatched_rows, found.unmatched_spots) == (["1", "3", "6"], ["AAAGGGATGTAG-1"])
    wider = stfast.labels_of(path, adata, tolerance=6)
    assert wider.label.tolist() == ["e", "b", "c", "d"]
    far = written(tmp_path / "far.csv", "x,y,label\n900,900,a\n")
    with pytest.raises(stfast.FormatError, match=r"far\.csv: expected coordinates within 5 px"):
        stfast.labels_of(far, adata)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("", ValueError, "expected a table of labels"),
        ("barcode\n", ValueError, "expected spots and labels"),
        ("spot,label\nGATTACAGATTACA-1,a\n", ValueError, r"names of spots such as \['AAACCG"),
        ("gene,label\nERBB2,a\n", ValueError, "expected a column of spots"),
        ("spot,kind,grade\nAAACCGTTCGTC-1,a,b\n", ValueError, r"got \['kind', 'grade'\]"),
        ("spot,label\nAAACCGTTCGTC-1,a\nAAACCGTTCGTC-1,b\n", ValueError, r"\['a', 'b'\] for one"),
        ("kind,AAACCGTTCGTC-1,AAACTGCTGGCT-1\na,1,0\na,0,1\n", ValueError, "a table of labels"),
        ('{"type": "FeatureCollection"}', ValueError, "expected GeoJSON's features"),
        ('{"features": [', ValueError, "expected GeoJSON's features"),
        ('{"features": [{"geometry": {"type": "Point", "coordinates": [1, 2]}}]}', ValueError,
         "expected polygons, got Point"),
        ('{"features": [{"geometry": {"type": "Polygon", "coordinates": [[[0, 0], [1]]]}}]}',
         ValueError, "expected GeoJSON's features"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told_with_the_files_name(tmp_path, adata, text, error, message):
    path = written(tmp_path / "bad.txt", text)
    with pytest.raises(error, match=message) as told:
        stfast.labels_of(path, adata)
    assert "bad.txt" in str(told.value)


def test_a_column_that_is_asked_for(tmp_path, adata):
    rows = "".join(f"{spot},a,b\n" for spot in adata.obs_names)
    path = written(tmp_path / "two.csv", "spot,kind,grade\n" + rows)
    assert set(stfast.labels_of(path, adata, column="grade").label) == {"b"}
    with pytest.raises(ValueError, match="expected a column 'size'"):
        stfast.labels_of(path, adata, column="size")


# --- polygons ----------------------------------------------------------------------------------


def feature(label, x0, x1, y0=40, y1=60):
    """A rectangle as QuPath exports it."""
    ring = [[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]
    classified = {"classification": {"name": label, "color": [1, 2, 3]}} if label else {}
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {"objectType": "annotation", **classified},
    }


def collection(path, *features):
    return written(path, json.dumps({"type": "FeatureCollection", "features": features}))


def test_polygons_by_the_spots_centres(tmp_path, adata):
    spans = {"Tissue": (0, 55), "Tumor": (25, 35), "Ignore*": (8, 12), "Stroma": (200, 220)}
    drawn = [feature(label, *span) for label, span in (spans | {"": (66, 75)}).items()]
    path = collection(tmp_path / "q.geojson", *drawn)
    found = stfast.labels_of(path, adata)
    assert found.label.tolist() == [None, "Tumor", "Tissue", None]
    assert found.joined_by == "centre"
    assert found.excluded == {"Ignore*": 1, "empty": 1}
    assert found.unmatched_rows == ["Polygon 4 (Stroma)"]
    all_told(found)
    listed = written(tmp_path / "list.json", json.dumps([feature("Tumor", 0, 80)]))
    assert set(stfast.labels_of(listed, adata).label) == {"Tumor"}


def test_polygons_by_the_area_they_cover(tmp_path):
    bins = slide_of("abcd", [(10, 50), (20, 50), (30, 50), (40, 50)], bin_size_um=8.0)
    # b is cut in halves of A, whose second polygon overlaps the first; c has 0.3 of B, d none.
    spans = (("A", 5, 20), ("A", 12, 20), ("B", 25, 28))
    path = collection(tmp_path / "q.geojson", *(feature(*span, 0, 99) for span in spans))
    assert stfast.labels_of(path, bins, cover=0.5).label.tolist() == ["A", "A", None, None]
    assert stfast.labels_of(path, bins, cover=0.3).label.tolist() == ["A", "A", "B", None]
    found = stfast.labels_of(path, bins, cover=0.51)
    assert found.label.tolist() == ["A", None, None, None]
    assert (found.joined_by, found.unmatched_rows) == ("area", [])
    assert found.unmatched_spots == ["b", "c", "d"]
    with pytest.raises(ValueError, match="cover: expected a share of at most 1"):
        stfast.labels_of(path, bins, cover=2)


@pytest.mark.parametrize("cover", [None, 0.4])
def test_polygons_equal_shapelys_plain_answer(tmp_path, cover):
    rng = np.random.default_rng(3)
    adata = slide_of([str(n) for n in range(60)], rng.uniform(0, 100, (60, 2)))
    features = [feature(str(rng.choice(list("ABC"))), *np.sort(rng.uniform(0, 100, 2)),
                        *np.sort(rng.uniform(0, 100, 2))) for _ in range(9)]  # fmt: skip
    path = collection(tmp_path / "q.geojson", *features)
    shapes = [(f["properties"]["classification"]["name"], shapely.geometry.shape(f["geometry"]))
              for f in features]  # fmt: skip
    expected = []
    for x, y in adata.obsm["spatial"]:
        centre = shapely.Point(x, y)
        if cover is None:
            around = [(shape.area, label) for label, shape in shapes if shape.covers(centre)]
            expected.append(min(around)[1] if around else None)
            continue
        disc = centre.buffer(5)
        parts = {c: shapely.union_all([s for label, s in shapes if label == c]) for c in "ABC"}
        share = {c: disc.intersection(part).area / disc.area for c, part in parts.items()}
        best = max(share, key=share.get)
        expected.append(best if share[best] >= cover else None)
    assert stfast.labels_of(path, adata, cover=cover).label.tolist() == expected


def test_polygons_that_cross_themselves_or_lie_elsewhere(tmp_path, adata):
    bow = feature("Tumor", 0, 80)
    bow["geometry"]["coordinates"] = [[[0, 0], [80, 100], [80, 0], [0, 100], [0, 0]]]
    found = stfast.labels_of(collection(tmp_path / "bow.json", bow), adata)
    assert found.label.tolist() == ["Tumor"] * 4
    path = collection(tmp_path / "um.json", feature("Tumor", 5000, 9000))
    with pytest.raises(stfast.FormatError, match=r"um\.json: expected polygons around spots"):
        stfast.labels_of(path, adata)


# --- real labels, and a build -------------------------------------------------------------------


def test_a_table_of_mob11s_layers(real):
    """Spots across, a row a layer, places rounded: all 262 of both sides meet."""
    folder = real("st/mob11")
    adata = stfast.read(folder)
    found = stfast.labels_of(folder / "annotation.tsv", adata)
    table = pd.read_csv(folder / "annotation.tsv", sep="\t", index_col=0)
    for name, label in found.label.items():
        x, y = (round(float(part)) for part in name.split("x"))
        assert table[f"{x}_{y}"].idxmax() == label
    assert (found.joined_by, found.unmatched_rows, found.unmatched_spots) == ("place", [], [])


def test_a_study_of_twelve_brains(real):
    """The experts' layers of DLPFC 151673, as counted by their authors."""
    folder = real("visium/dlpfc-151673")
    table = pd.read_csv(folder / "tissue_positions_list.txt", header=None, index_col=0)
    adata = slide_of(table.index, table[[5, 4]].to_numpy(), name="151673")
    found = stfast.labels_of(folder / "barcode_level_layer_map.tsv", adata)
    counts = {"L1": 273, "L2": 253, "L3": 989, "L4": 218, "L5": 673, "L6": 692, "WM": 513}
    assert found.label.value_counts().to_dict() == counts
    assert len(found.unmatched_spots) == 4992 - 3611
    assert found.unmatched_rows == []


def test_a_build_puts_the_manifests_labels_into_the_index(tmp_path, slide):
    names = stfast.read(slide).obs_names
    rows = "".join(f"one_{name},{'odd' if n % 2 else 'even'}\n" for n, name in enumerate(names))
    written(tmp_path / "labels.csv", ",V2\n" + rows)
    path = written(tmp_path / "m.csv", f"slide,path,annotation\none,{slide},labels.csv\n")
    with pytest.warns(UserWarning, match="license"):
        report = stfast.build(path, tmp_path / "out", size=16, hvg="pearson:3", tiles="raw")
    assert not report.failed
    index = stfast.Dataset(tmp_path / "out").index
    place = {name: n for n, name in enumerate(names)}
    wanted = ["odd" if place[spot] % 2 else "even" for spot in index["spot"]]
    assert index["label"].to_list() == wanted


# --- names that mislead ---------------------------------------------------------------------------

KINDS = ("tumor", "stroma", "tumor", "fat")


def table_of(adata, header, *columns, names=None):
    rows = zip(adata.obs_names if names is None else names, *columns, strict=True)
    return "\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n"


@pytest.mark.parametrize("slide", ["1", "tumor", "S1"])
def test_a_cluster_called_as_the_slide_is_no_slide(tmp_path, adata, slide):
    path = written(tmp_path / "a.csv", table_of(adata, "barcode,cluster,label", "1213", KINDS))
    found = stfast.labels_of(path, adata, slide=slide)
    assert found.label.tolist() == list(KINDS)
    hot = table_of(adata, "barcode,tumor,stroma,fat", "1010", "0100", "0001")
    found = stfast.labels_of(written(tmp_path / "hot.csv", hot), adata, slide=slide)
    assert found.label.tolist() == list(KINDS)


def test_exact_barcodes_win_over_those_of_other_samples(tmp_path, adata):
    stems = [name.removesuffix("-1") for name in adata.obs_names]
    names = [f"{stem}-1" for stem in stems[:2]] + [f"{stem}-2" for stem in stems]
    text = table_of(adata, "barcode,label", ["tumor"] * 2 + ["fat"] * 4, names=names)
    found = stfast.labels_of(written(tmp_path / "a.csv", text), adata)
    assert found.label.tolist() == ["tumor", "tumor", None, None]
    assert found.joined_by == "name"
    assert found.unmatched_rows == names[2:]


@pytest.mark.parametrize("header", [",barcode,label", "id,V1,V2"])
def test_numbers_of_rows_are_no_spots(tmp_path, adata, header):
    text = table_of(adata, header, adata.obs_names, KINDS, names=range(4))
    found = stfast.labels_of(written(tmp_path / "a.csv", text), adata)
    assert found.label.tolist() == list(KINDS)
    assert found.joined_by == "name"


def test_barcodes_win_over_coordinates(tmp_path, adata):
    xy = adata.obsm["spatial"]
    header = ",barcode,x,y,label"  # x and y changed places
    text = table_of(adata, header, adata.obs_names, xy[:, 1], xy[:, 0], KINDS, names=range(4))
    assert stfast.labels_of(written(tmp_path / "a.csv", text), adata).label.tolist() == list(KINDS)


def test_names_of_spots_may_have_the_slides_in_front(tmp_path, adata):
    adata.obs_names = [f"S1_{name}" for name in adata.obs_names]
    path = written(tmp_path / "a.csv", table_of(adata, "barcode,label", KINDS))
    assert stfast.labels_of(path, adata).label.tolist() == list(KINDS)


def test_tabs_separate_labels_with_commas(tmp_path, adata):
    rows = [f"{name}\tInvasive, grade 2, necrosis, old" for name in adata.obs_names]
    path = written(tmp_path / "a.tsv", "\n".join(["barcode\tlabel", *rows]) + "\n")
    found = stfast.labels_of(path, adata)
    assert found.label.tolist() == ["Invasive, grade 2, necrosis, old"] * 4


@pytest.mark.parametrize("cover", [None, 0.5])
def test_an_outline_without_a_class_hides_no_label(tmp_path, adata, cover):
    tumor, outline = feature("tumor", 0, 90), feature("", 0, 80)
    empty = {"type": "Feature", "geometry": None, "properties": {}}
    path = collection(tmp_path / "q.geojson", outline, tumor, empty)
    found = stfast.labels_of(path, adata, cover=cover)
    assert found.label.tolist() == ["tumor"] * 4


def test_a_label_and_what_is_none_for_one_spot_are_one_label(tmp_path, adata):
    names = [adata.obs_names[n] for n in (0, 0, 1, 1)]
    text = table_of(adata, "barcode,label", ["undetermined", "t", "t", "t "], names=names)
    found = stfast.labels_of(written(tmp_path / "a.csv", text), adata)
    assert (found.label.tolist(), found.excluded) == (["t", "t", None, None], {})
    all_told(found)


def test_rows_without_names_are_numbered_as_in_the_file(tmp_path, adata):
    text = "sample,x,y,label\nS0,10,50,a\nS1,10,50,b\nS1,900,900,c\n"
    found = stfast.labels_of(written(tmp_path / "a.csv", text), adata)
    assert (found.label.tolist(), found.unmatched_rows) == (["b", None, None, None], ["3"])


@pytest.mark.parametrize("prefix", ["", "S1_"])
def test_no_header_and_names_of_ones_own(tmp_path, adata, prefix):
    adata.obs_names = [f"cell{n}" for n in range(4)]
    text = "".join(f"{prefix}cell{n},{kind}\n" for n, kind in enumerate(KINDS))
    found = stfast.labels_of(written(tmp_path / "a.csv", text), adata)
    assert found.label.tolist() == list(KINDS)


def test_labels_in_a_column_called_as_spots_may_be(tmp_path, adata):
    path = written(tmp_path / "a.csv", table_of(adata, "barcode,cell", KINDS))
    assert stfast.labels_of(path, adata).label.tolist() == list(KINDS)


@pytest.mark.parametrize("slide", ["10", "tumor"])
def test_coordinates_and_labels_are_no_slides(tmp_path, adata, slide):
    x, y = adata.obsm["spatial"].astype(int).T
    path = written(tmp_path / "a.csv", table_of(adata, "x,y,kind", y, KINDS, names=x))
    assert stfast.labels_of(path, adata, slide=slide).label.tolist() == list(KINDS)


def test_barcodes_of_two_other_samples_are_none_of_ours(tmp_path, adata):
    stems = [name.removesuffix("-1") for name in adata.obs_names]
    names = [f"{stem}-2" for stem in stems[:2]] + [f"{stem}-3" for stem in stems[2:]]
    path = written(tmp_path / "a.csv", table_of(adata, "barcode,label", KINDS, names=names))
    with pytest.raises(stfast.FormatError, match="got"):
        stfast.labels_of(path, adata)
    path = written(tmp_path / "b.csv", table_of(adata, "barcode,label", KINDS, names=stems))
    assert stfast.labels_of(path, adata).label.tolist() == list(KINDS)
