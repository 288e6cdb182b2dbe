"""Manifests: read as written from CSV and Parquet; every problem of every row said at once."""

import gzip
import re
import warnings

import numpy as np
import pandas as pd
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from stfast import FormatError, involve_cancer, read_manifest, read_stimage_meta
from stfast.dataset._plan import slides_of

COLUMNS = [
    *("slide", "path", "sample", "technology", "image", "species", "tissue", "patient", "pmid"),
    *("title", "abstract", "keywords", "annotation", "mpp", "license", "source_url", "consent"),
]
TERMS = {"license": "CC0", "source_url": "https://example.org", "consent": "yes"}


@pytest.fixture
def folder(tmp_path):
    """Make a folder of two slides with pictures and one annotation."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / f"{name}.tif").write_bytes(name.encode())
    (tmp_path / "one.csv").write_text("spot,label\n")
    return tmp_path


def row(slide, **cells):
    """Make a row without fault, but for the cells given."""
    return {"slide": slide, "path": slide, **TERMS, **cells}


def write(folder, *rows, name="manifest.csv", separator=","):
    """Write rows as the manifest of a folder."""
    table = pl.from_dicts(list(rows), infer_schema_length=None)
    if name.endswith("parquet"):
        table.write_parquet(folder / name)
    else:
        table.write_csv(folder / name, separator=separator)
    return folder / name


def problems(path):
    """Return what a manifest's error says: its first line, and the problems."""
    with pytest.raises(ValueError, match="problem") as caught:
        read_manifest(path)
    first, *lines = str(caught.value).split("\n  ")
    assert re.fullmatch(rf"{re.escape(str(path))}: {len(lines)} problems?", first)
    return lines


# --- what is read ------------------------------------------------------------------------------


FULL = {
    "technology": "Visium",
    "image": "one.tif",
    "species": "human",
    "tissue": "skin, of the arm",
    "patient": "007",
    "pmid": "32579974,38037084",
    "title": 'A "quoted"\ntitle',
    "abstract": "é",
    "keywords": "a; b",
    "annotation": "one.csv",
    "mpp": 0.1 + 0.2,
}


@pytest.mark.parametrize("name", ["m.csv", "m.parquet", "without_suffix"])
def test_what_is_written_is_read(folder, name):
    rows = [row("one", **FULL), row("two", technology=None, mpp=None)]
    table = read_manifest(write(folder, *rows, name=name)).table
    paths = {key: str(folder / FULL[key]) for key in ("image", "annotation")}
    expected = [{**rows[0], **paths, "path": str(folder / "one")}, {**rows[1], "path": None}]
    expected[1]["path"] = str(folder / "two")
    schema = {name: pl.Float64 if name == "mpp" else pl.String for name in COLUMNS}
    assert_frame_equal(table, pl.from_dicts(expected, schema=schema), check_exact=True)


def test_any_separator_a_mark_and_gzip(folder):
    expected = read_manifest(write(folder, row("one"), row("two"))).table
    for separator in "\t;":
        path = write(folder, row("one"), row("two"), name="m.txt", separator=separator)
        assert read_manifest(path).table.equals(expected)
        path.write_bytes(gzip.compress(b"\xef\xbb\xbf" + path.read_bytes()))
        assert read_manifest(path).table.equals(expected)


def test_paths_are_relative_to_the_manifest(folder, monkeypatch):
    (folder / "below").mkdir()
    write(folder / "below", row("one", path="../one"), row("two", path=str(folder / "two")))
    monkeypatch.chdir(folder)
    found = read_manifest("below/manifest.csv").table["path"].to_list()
    assert found == [str(folder / "below/../one"), str(folder / "two")]


def test_a_build_takes_it(folder):
    manifest = read_manifest(write(folder, row("one", **FULL), row("two")))
    assert slides_of(manifest).select(COLUMNS).equals(manifest.table)


def test_parquet_of_numbers_becomes_texts(folder):
    write(folder, row("one", pmid=12, mpp=1, patient=7), name="m.parquet")
    found = read_manifest(folder / "m.parquet").table.row(0, named=True)
    assert (found["pmid"], found["patient"], found["mpp"]) == ("12", "7", 1.0)


def test_blank_rows_and_cells_are_none(folder):
    path = folder / "m.csv"
    path.write_text('slide,path,tissue,license,source_url,consent\n\none,one,"",a,b,c\n,,,,,\n')
    table = read_manifest(path).table
    assert table["slide"].to_list() == ["one"]
    assert table["tissue"].to_list() == [None]
    path.write_text(path.read_text() + 'two," ",x,a,b,c\n')
    assert problems(path) == ["row 4 ('two'): path: expected one, got none"]


# --- what is wrong -----------------------------------------------------------------------------


def test_every_problem_of_every_row_at_once(folder):
    here = str(folder)
    path = write(
        folder,
        row("one", image="one.tif", technology="visium"),
        row("a/b", path="none", image="none.tif", annotation="none.csv", mpp="-1"),
        row("One", path="two", image="one.tif"),
        row("two", image="two", annotation="one", mpp="fine"),
        row(None, path=None),
    )
    assert problems(path) == [
        "row 1 ('one'): technology: expected one of ('ST', 'Visium', 'VisiumHD'), got 'visium'",
        "row 2 ('a/b'): slide: expected a name that a file can have on any system",
        f"row 2 ('a/b'): path: expected a file or folder, got none at {here}/none",
        f"row 2 ('a/b'): image: expected a file, got none at {here}/none.tif",
        f"row 2 ('a/b'): annotation: expected a file, got none at {here}/none.csv",
        "row 2 ('a/b'): mpp: expected a positive number of µm per pixel, got '-1'",
        "row 3 ('One'): slide: expected a name of its own, got that of row 1",
        f"row 3 ('One'): image: expected one of its own, got that of row 1, {here}/one.tif",
        f"row 4 ('two'): image: expected a file, got a folder, {here}/two",
        f"row 4 ('two'): annotation: expected a file, got a folder, {here}/one",
        "row 4 ('two'): mpp: expected a positive number of µm per pixel, got 'fine'",
        "row 5: slide: expected one, got none",
        "row 5: path: expected one, got none",
    ]


BAD_NAMES = [".", "..", "a/b", "a\\b", "/", "a\nb", "a\0", "\x7f", "a:b", 'a"', "a*", "a?"]


@pytest.mark.parametrize("name", [*BAD_NAMES, "<a", "a>", "a|b", "a.", "a ", ".a", " a", "é" * 101])
def test_names_that_are_no_file_names(folder, name):
    path = write(folder, row(name, path="one"), name="m.parquet")
    wrong = "slide: expected a name that a file can have on any system"
    assert problems(path) == [f"row 1 ({name!r}): {wrong}"]


@pytest.mark.parametrize("name", ["a b", "é" * 100, "GSE144239_GSM4284316", "é", "a-1.2", "日本"])
def test_names_that_are_file_names(folder, name):
    manifest = read_manifest(write(folder, row(name, path="one")))
    assert manifest.table["slide"].to_list() == slides_of(manifest)["slide"].to_list() == [name]


@pytest.mark.parametrize("mpp", ["0", "-0.5", "nan", "inf", "1e999", "0,5", "half", "0.5 µm"])
def test_mpp_is_a_positive_number(folder, mpp):
    [found] = problems(write(folder, row("one", mpp=mpp)))
    assert found == f"row 1 ('one'): mpp: expected a positive number of µm per pixel, got {mpp!r}"


def test_missing_columns_come_with_the_rows_problems(folder):
    (folder / "m.csv").write_text("Slide,mpp\none,0\n")
    found = problems(folder / "m.csv")
    assert found[:2] == [f"expected a column {name}, got Slide, mpp" for name in ("slide", "path")]
    assert found[2:] == ["row 1: mpp: expected a positive number of µm per pixel, got '0'"]


def test_one_image_by_two_names(folder):
    (folder / "linked.tif").symlink_to(folder / "one.tif")
    path = write(folder, row("one", image="two/../one.tif"), row("two", image="linked.tif"))
    [found] = problems(path)
    assert found.startswith("row 2 ('two'): image: expected one of its own, got that of row 1")


def test_a_path_that_no_system_has(folder):
    found = problems(write(folder, row("one", path="a\0b", image="i" * 5000), name="m.parquet"))
    assert [line.split(", got none")[0] for line in found] == [
        "row 1 ('one'): path: expected a file or folder",
        "row 1 ('one'): image: expected a file",
    ]


def test_no_rows(folder):
    (folder / "m.csv").write_text("slide,path\n")
    assert problems(folder / "m.csv") == ["expected a row a slide, got none"]


@pytest.mark.parametrize(
    "content", [b"", b"PAR1 and no more", b"slide,path\n\xff\xfe,b\n", b"a\n1,2"]
)
def test_what_is_no_table(folder, content):
    (folder / "m.csv").write_bytes(content)
    with pytest.raises(FormatError, match=r"m\.csv: expected a CSV or Parquet table, got"):
        read_manifest(folder / "m.csv")


def test_parquet_of_structures(folder):
    pl.DataFrame({"slide": [b"\xff"], "path": ["one"]}).write_parquet(folder / "m.parquet")
    with pytest.raises(FormatError, match=r"m\.parquet: expected texts and numbers"):
        read_manifest(folder / "m.parquet")


def test_no_manifest(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.csv"):
        read_manifest(tmp_path / "none.csv")


# --- what is warned of -------------------------------------------------------------------------


def test_unknown_columns_are_warned_of(folder):
    path = write(folder, row("one", row="x", batch=None))
    with pytest.warns(UserWarning, match=r"unknown columns are left out: row, batch") as caught:
        table = read_manifest(path).table
    assert table.columns == COLUMNS
    assert [w.filename for w in caught] == [__file__]


def test_terms_that_no_slide_has_are_warned_of(folder):
    cells = {"license": "CC0", "source_url": None}
    path = write(folder, {"slide": "one", "path": "one", **cells})
    with pytest.warns(UserWarning, match=r"no slide says its source_url, consent"):
        read_manifest(path)


def test_a_whole_manifest_warns_of_nothing(folder):
    path = write(folder, row("one"), row("two", license=None, source_url=None, consent=None))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_manifest(path)


# --- about cancer ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (("Cancer", None, None), True),
        ((None, None, "a TME"), True),
        (("x", "the cancer.", ""), True),
        (("x", "(tumor)", "y"), False),
        (("Metastasis of", None, None), True),
        (("metastases", "carcinoma", "tumour"), False),
        ((None, None, "cancer"), True),
        (("the tmem1 gene", None, None), True),
        ((None, None, None), False),
    ],
)
def test_involve_cancer(texts, expected):
    assert involve_cancer(*texts) is expected
    column = involve_cancer(*([text] for text in texts))
    assert column.dtype == bool
    assert column.tolist() == [expected]


def test_involve_cancer_of_columns():
    columns = [["Cancer", None], [None, "b"], [float("nan"), "c"]]
    for kind in (list, np.array, pd.Series):
        found = involve_cancer(
            *(kind(c) if kind is list else kind(c, dtype=object) for c in columns)
        )
        assert found.tolist() == [True, False]
    assert involve_cancer([], [], []).shape == (0,)


def test_involve_cancer_refuses():
    with pytest.raises(ValueError, match=r"expected equal lengths, got \[1, 2, 1\]"):
        involve_cancer(["a"], ["b", "c"], ["d"])
    with pytest.raises(TypeError, match="expected texts, got 5"):
        involve_cancer([5], ["b"], ["c"])
    with pytest.raises(TypeError, match="got both"):
        involve_cancer("a", ["b"], ["c"])


def test_involve_cancer_equals_the_published_column(real):
    table = read_stimage_meta(real("stimage/meta_all_gene02122025.csv"))
    found = involve_cancer(table["title"], table["abstract"], table["keywords"])
    assert found.sum() == 456
    assert (found == table["involve_cancer"].to_numpy()).all()


def test_spaces_around_a_word_make_no_other_patient(folder):
    path = write(folder, row("one", patient="P1"), row("two", patient=" P1 ", path="one"))
    assert read_manifest(path).table["patient"].to_list() == ["P1", "P1"]


def test_whole_numbers_beside_nulls_stay_whole(folder):
    rows = [row("one", pmid=35000000.0), row("two", path="one", pmid=None)]
    path = write(folder, *rows, name="m.parquet")
    assert read_manifest(path).table["pmid"].to_list() == ["35000000", None]
