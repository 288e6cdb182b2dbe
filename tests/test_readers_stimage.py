"""STimage-1K4M's layout: written and read back exactly; the published files; broken ones."""

import csv
import gzip

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy import sparse

import oracles
import oracles_readers as made
from oracles import assert_same, at_any_workers
from stfast import (
    FormatError,
    _core,
    _spatial,
    read_stimage,
    read_stimage_meta,
    read_visium,
    write_stimage,
)
from stfast.readers.stimage import read_dense

SLIDE = "Human_Breast_1"


@pytest.fixture
def root(tmp_path):
    """A slide of legacy ST as the data set has it; its picture is a JPEG named .png."""
    folder = tmp_path / "data"
    for name in ("coord", "gene_exp", "image", "annotation"):
        (folder / "ST" / name).mkdir(parents=True)
    spots = ["10x13", "10x14", "9x2"]
    names = [f"{SLIDE}_{spot}" for spot in spots]
    coord = pd.DataFrame(
        {"yaxis": [26.5, 44.25, 3], "xaxis": [20, 24.1, 9], "r": 7.328144511906295}
    )
    coord.index = names
    coord.to_csv(folder / f"ST/coord/{SLIDE}_coord.csv")
    counts = pd.DataFrame([[0, 3, 0], [1, 0, 0], [0, 0, 12]], names[::-1], ["A", "B", "C,D"])
    counts.to_csv(folder / f"ST/gene_exp/{SLIDE}_count.csv")
    Image.fromarray(oracles.picture(60, 50)).save(folder / f"ST/image/{SLIDE}.png", "JPEG")
    labels = pd.DataFrame({"V2": ["tumour", "undetermined"]}, index=names[:2])
    labels.to_csv(folder / "ST/annotation/study.csv", sep="\t")
    return folder


def test_a_slide_is_read(root):
    found = at_any_workers(lambda n: read_stimage(root, SLIDE, workers=n))
    assert found.obs_names.tolist() == ["10x13", "10x14", "9x2"]
    assert found.var_names.tolist() == ["A", "B", "C,D"]
    assert found.X.toarray().tolist() == [[0, 0, 12], [1, 0, 0], [0, 3, 0]]
    assert found.X.dtype == np.int32
    assert found.obsm["spatial"].tolist() == [[20, 26.5], [24.1, 44.25], [9, 3]]
    assert found.obs["array_row"].tolist() == [13, 14, 2]
    assert found.obs["array_col"].tolist() == [10, 10, 9]
    assert found.obs["annotation"].tolist()[0] == "tumour"
    assert found.obs["annotation"].isna().tolist() == [False, True, True]
    library = found.uns["spatial"][SLIDE]
    assert library["scalefactors"]["spot_diameter_fullres"] == 2 * 7.328144511906295
    assert library["images"]["hires"].shape == (60, 50, 3)
    assert library["metadata"]["source_image_path"].endswith(f"{SLIDE}.png")
    assert found.obs["in_picture"].all()


def test_the_published_example_is_read(root, real):
    published = real("stimage/Human_Breast_Andersson_10142021_ST_A1_coord.csv")
    slide = published.name.removesuffix("_coord.csv")
    (root / f"ST/coord/{published.name}").write_bytes(published.read_bytes())
    table = pd.read_csv(published, index_col=0)
    counts = pd.DataFrame(1, index=table.index, columns=["A"])
    counts.to_csv(root / f"ST/gene_exp/{slide}_count.csv")
    found = read_stimage(root, slide)
    assert found.n_obs == 346
    factors = found.uns["spatial"][slide]["scalefactors"]
    assert factors["spot_diameter_fullres"] / 2 == 54.328144511906295
    np.testing.assert_array_equal(found.obsm["spatial"], table[["xaxis", "yaxis"]])


def test_the_published_table_of_slides_is_read(real):
    table = read_stimage_meta(real("stimage/meta_all_gene02122025.csv"))
    assert len(table) == 1149
    assert table["spot_num"].sum() == 4_293_195
    assert table["involve_cancer"].sum() == 456
    assert dict(table["tech"].value_counts().iter_rows()) == {
        "Visium": 994,
        "ST": 151,
        "VisiumHD": 4,
    }


def test_the_table_of_slides_may_have_tabs(root):
    (root / "meta").mkdir()
    with pytest.raises(FileNotFoundError, match="expected meta/meta_all_gene"):
        read_stimage_meta(root)
    text = 'slide\ttitle\tspot_num\na\t"one, two"\t5\n'
    (root / "meta/meta_all_gene.csv").write_text(text)
    table = read_stimage_meta(root)
    assert table.to_dicts() == [{"slide": "a", "title": "one, two", "spot_num": 5}]
    (root / "meta/meta_all_gene.csv").write_text("a,b\n1,2\n")
    with pytest.raises(FormatError, match="expected a column slide"):
        read_stimage_meta(root)


# --- round trips -------------------------------------------------------------------------------


def test_a_slide_comes_back_as_it_was(root, tmp_path):
    first = read_stimage(root, SLIDE)
    for workers in oracles.WORKERS:
        folder = write_stimage(first, tmp_path / "copy", SLIDE, workers=workers)
        assert folder == tmp_path / "copy/ST"
        again = read_stimage(tmp_path / "copy", SLIDE)
        assert_same(again, first)
        assert (
            again.uns["spatial"][SLIDE]["scalefactors"]
            == first.uns["spatial"][SLIDE]["scalefactors"]
        )
    for name in (f"coord/{SLIDE}_coord.csv", f"image/{SLIDE}.png"):
        assert (folder / name).exists()
    published = pd.read_csv(root / f"ST/coord/{SLIDE}_coord.csv", index_col=0)
    written = pd.read_csv(folder / f"coord/{SLIDE}_coord.csv", index_col=0)
    pd.testing.assert_frame_equal(written, published, check_dtype=False)
    assert (folder / f"image/{SLIDE}.png").read_bytes() == (
        root / f"ST/image/{SLIDE}.png"
    ).read_bytes()


def test_a_visium_slide_is_written_in_pixels_of_its_best_picture(tmp_path):
    outs = made.write_visium(tmp_path / "sample/outs")
    slide = read_visium(outs)
    meta = {"species": "human", "title": 'A "quoted", title', "involve_cancer": True}
    folder = write_stimage(slide, tmp_path / "data", "S_1", meta=meta)
    assert folder.name == "Visium"
    found = read_stimage(tmp_path / "data", "S_1")
    assert (found.X != slide.X).nnz == 0
    assert list(found.obs_names) == list(slide.obs_names)
    np.testing.assert_array_equal(found.obsm["spatial"], _spatial.centers(slide))
    assert _spatial.spot_span(found) == _spatial.spot_span(slide) == 13.0
    row = read_stimage_meta(tmp_path / "data").to_dicts()[0]
    assert row["spot_num"] == slide.n_obs
    assert row["gene_num"] == slide.n_vars
    assert row["tech"] == "Visium"
    assert row["title"] == meta["title"]
    assert row["involve_cancer"] is True


def test_slides_share_a_table_and_a_second_writing_replaces_the_first(root, tmp_path):
    first = read_stimage(root, SLIDE)
    write_stimage(first, tmp_path / "d", "a", meta={"species": "human", "my own": "1"})
    write_stimage(first, tmp_path / "d", "b")
    write_stimage(first, tmp_path / "d", "a", meta={"species": "mouse"})
    table = read_stimage_meta(tmp_path / "d")
    assert table["slide"].to_list() == ["b", "a"]
    assert table["species"].to_list() == [None, "mouse"]
    assert table.columns[-1] == "my own"


@given(
    seed=st.integers(0, 2**31),
    n=st.integers(1, 40),
    genes=st.integers(1, 60),
    dtype=st.sampled_from(["int32", "int64", "float32", "float64"]),
    density=st.sampled_from([0.0, 0.05, 0.6, 1.0]),
)
def test_any_table_comes_back_bit_for_bit(*, seed, n, genes, dtype, density, tmp_path_factory):
    path = tmp_path_factory.mktemp("table") / "a.csv"
    rng = np.random.default_rng(seed)
    dense = rng.normal(size=(n, genes)) * 10.0 ** rng.integers(-8, 9, (n, genes))
    dense = dense if dtype.startswith("float") else dense.round().clip(-(2**31), 2**31 - 1)
    matrix = sparse.csr_matrix((dense * (rng.random((n, genes)) < density)).astype(dtype))
    names = [f"spot {i}" for i in range(n)]
    header = ",".join(["", *(f"g{i}" for i in range(genes))])
    arrays = (matrix.data, matrix.indices, matrix.indptr, genes)
    _core.write_table(path, header, names, ord(","), arrays, 2)
    # Python's parser is exact; pandas 3.1 deprecates the option that made its own so.
    rows = list(csv.reader(path.read_text().splitlines()))[1:]
    expected = np.array([[float(value) for value in row[1:]] for row in rows])
    np.testing.assert_array_equal(expected.astype(dtype), matrix.toarray())
    found, rows, columns = at_any_workers(lambda w: read_dense(path, w))
    np.testing.assert_array_equal(found.toarray().astype(dtype), matrix.toarray())
    assert rows == names
    assert columns == header.split(",")[1:]


def test_more_rows_than_a_stretch_pass_through_in_order(tmp_path):
    rng = np.random.default_rng(0)
    matrix = sparse.random(9000, 2500, 0.002, "csr", rng=rng)
    matrix.data = rng.integers(1, 99, matrix.nnz).astype(np.int32)
    matrix = matrix.astype(np.int32)
    header, names = "," + ",".join(map(str, range(2500))), [f"s{i}" for i in range(9000)]
    arrays = (matrix.data, matrix.indices, matrix.indptr, 2500)
    texts = set()
    for workers in oracles.WORKERS:
        _core.write_table(tmp_path / "a.csv", header, names, ord(","), arrays, workers)
        texts.add((tmp_path / "a.csv").read_bytes())
    assert len(texts) == 1
    assert len(texts.pop()) > 40_000_000
    found, rows, _ = at_any_workers(lambda w: read_dense(tmp_path / "a.csv", w))
    assert_same(found, matrix)
    assert rows == names


@pytest.mark.parametrize("cell", ["0", "0.0", "0.00", "-0", "0e5"])
def test_zeros_of_any_spelling_are_not_stored(tmp_path, cell):
    (tmp_path / "a.csv").write_text(f",a,b\nx,{cell},{cell}\ny,1.0,{cell}\n")
    found, _, _ = read_dense(tmp_path / "a.csv", 1)
    assert found.nnz == 1
    assert found.dtype == np.int32


@pytest.mark.parametrize(
    "text",
    [
        '"","a","b"\n"x",1,2\n"y",0,3\n',
        "\ta\tb\nx\t1\t2\ny\t0\t3\n",
        "\ufeffspot,a,b\r\nx,1,2\r\ny,0,3\r\n",
        ",a,b\nx,1,2\ny,0,3",
    ],
)
def test_tables_of_other_writers_are_read(tmp_path, text):
    (tmp_path / "a.csv").write_text(text, newline="")
    for path in (tmp_path / "a.csv", tmp_path / "a.csv.gz"):
        if path.suffix == ".gz":
            path.write_bytes(gzip.compress(text.encode()))
        found, rows, columns = read_dense(path, 2)
        assert found.toarray().tolist() == [[1, 2], [0, 3]]
        assert (rows, columns) == (["x", "y"], ["a", "b"])


# --- broken ------------------------------------------------------------------------------------


def test_slides_that_are_not_there_are_named(root):
    with pytest.raises(FileNotFoundError, match=r"\{ST,Visium,VisiumHD\}/coord/gone_coord\.csv"):
        read_stimage(root, "gone")
    (root / f"ST/gene_exp/{SLIDE}_count.csv").unlink()
    with pytest.raises(FileNotFoundError, match=f"{SLIDE}_count.csv"):
        read_stimage(root, SLIDE)


COUNT, COORD = f"ST/gene_exp/{SLIDE}_count.csv", f"ST/coord/{SLIDE}_coord.csv"
GOOD = f",yaxis,xaxis,r\n{SLIDE}_1x1,1,1,2\n"
BROKEN = {
    "a word for a count": (COUNT, f",A\n{SLIDE}_1x1,x\n", 'line: expected numbers, got "Human'),
    "too few counts": (COUNT, f",A,B\n{SLIDE}_1x1,1\n", "as many numbers as the header"),
    "too many counts": (COUNT, f",A\n{SLIDE}_1x1,1,2\n", "as many numbers as the header"),
    "an empty count": (COUNT, f",A,B\n{SLIDE}_1x1,1,\n", "line: expected numbers"),
    "no counts": (COUNT, "hello\n", "expected a table of counts"),
    "an open quote": (COUNT, f',A\n"{SLIDE}_1x1,1\n', "expected a name and numbers"),
    "infinite": (COUNT, f",A\n{SLIDE}_1x1,inf\n", "expected finite counts"),
    "other spots": (COUNT, f",A\n{SLIDE}_2x2,1\n", "counts of the 1 spots .* 1 spots have none"),
    "spots twice": (COUNT, f",A\n{SLIDE}_1x1,1\n{SLIDE}_1x1,1\n", "got 2 rows"),
    "no columns": (COORD, "a,b\n1,2\n", r"_coord\.csv: expected columns"),
    "words": (COORD, ",yaxis,xaxis,r\nx,a,b,c\n", r"_coord\.csv: expected columns"),
    "no radius": (COORD, ",yaxis,xaxis,r\nx,1,1,0\n", "expected one radius above 0"),
    "two radii": (COORD, ",yaxis,xaxis,r\nx,1,1,1\ny,1,1,2\n", "expected one radius"),
    "places twice": (COORD, ",yaxis,xaxis,r\nx,1,1,1\nx,1,1,1\n", "each spot once"),
    "no spots": (COORD, ",yaxis,xaxis,r\n", "expected finite coordinates, got others or none"),
    "NaN": (COORD, ",yaxis,xaxis,r\nx,nan,1,1\n", "expected finite coordinates"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_broken_files_are_named(root, fault):
    name, text, message = BROKEN[fault]
    (root / COORD).write_text(GOOD)
    (root / COUNT).write_text(f",A\n{SLIDE}_1x1,1\n")
    read_stimage(root, SLIDE)
    (root / name).write_text(text)
    with pytest.raises(FormatError, match=message):
        read_stimage(root, SLIDE)


def test_what_cannot_be_written_is_refused_and_leaves_nothing(root, tmp_path):
    slide = read_stimage(root, SLIDE)
    with pytest.raises(ValueError, match="slide: expected a name without slashes, got 'a/b'"):
        write_stimage(slide, tmp_path / "d", "a/b")
    with pytest.raises(ValueError, match="technology: expected one of"):
        write_stimage(slide, tmp_path / "d", "a", technology="other")
    del slide.uns["stfast"]
    with pytest.raises(ValueError, match="got none and cannot tell"):
        write_stimage(slide, tmp_path / "d", "a")
    assert oracles.tree(tmp_path / "d") == []


def test_columns_out_of_order_are_refused_by_the_core(tmp_path):
    arrays = (np.ones(2, np.int32), np.array([1, 0], np.int32), np.array([0, 2], np.int32), 2)
    with pytest.raises(ValueError, match="columns of a matrix: expected ascending ones"):
        _core.write_table(tmp_path / "a.csv", "", ["x"], ord(","), arrays, 1)
    with pytest.raises(ValueError, match="names of rows: expected 1, got 2"):
        _core.write_table(tmp_path / "a.csv", "", ["x", "y"], ord(","), arrays, 1)
    good = (*arrays[:1], arrays[1][::-1].copy(), *arrays[2:])
    with pytest.raises(FileNotFoundError, match="gone"):
        _core.write_table(tmp_path / "gone/a.csv", "", ["x"], ord(","), good, 1)


def test_unsorted_counts_are_written_sorted(root, tmp_path):
    slide = read_stimage(root, SLIDE)
    csr = sparse.csr_matrix(slide.X)
    doubled = sparse.csr_matrix(
        (np.array([2, 1, 5, 3, 9]), np.array([1, 0, 2, 1, 1]), np.array([0, 2, 3, 5])),
        shape=csr.shape,
    )
    slide.X = doubled
    write_stimage(slide, tmp_path / "d", "a")
    np.testing.assert_array_equal(read_stimage(tmp_path / "d", "a").X.toarray(), doubled.toarray())
    assert pl.read_csv(tmp_path / "d/ST/gene_exp/a_count.csv").columns[1:] == ["A", "B", "C,D"]
