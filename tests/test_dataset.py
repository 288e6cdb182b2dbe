"""Dataset: views of a built dataset against polars and plain loops over its index."""

import json
import math

import anndata
import numpy as np
import polars as pl
import pytest

import stfast
from oracles import picture
from oracles_dataset import write_dataset
from stfast.dataset import _assign, _layout

TISSUES = ["brain", "brain", None]


@pytest.fixture(scope="module")
def root(slides, tmp_path_factory):
    tiles = np.stack([picture(16, 16, seed=n) for n in range(sum(a.n_obs for a in slides))])
    names = [next(iter(a.uns["spatial"])) for a in slides]
    table = {"slide": names, "tissue": TISSUES, "patient": ["a", "b", "c"]}
    root = tmp_path_factory.mktemp("dataset") / "built"
    write_dataset(root, slides, tiles, slide_table=table)
    for name, adata in zip(names, slides, strict=True):
        copy = anndata.AnnData(adata.X, obs=adata.obs, var=adata.var)
        path = _layout.slide(root, name)
        path.parent.mkdir(exist_ok=True)
        copy.write_zarr(path)
    return root


@pytest.fixture
def built(root):
    return stfast.Dataset(root)


def test_it_opens_with_all_rows_in_the_order_of_the_shards(built, slides):
    assert len(built) == sum(a.n_obs for a in slides)
    assert built.index["spot"].to_list() == [name for a in slides for name in a.obs_names]
    assert built.rows is None
    assert "3 slides" in repr(built)


def test_genes_are_rows_of_the_slides_matrices(built, slides):
    expected = np.concatenate([a.X.toarray() for a in slides])
    np.testing.assert_array_equal(built.counts.toarray(), expected)
    np.testing.assert_array_equal(built.hvg, expected)
    assert built.genes == slides[0].var_names.tolist()


def test_a_slides_adata_is_read(built, slides):
    name = built.slides["slide"][1]
    np.testing.assert_array_equal(built.adata(name).X.toarray(), slides[1].X.toarray())
    with pytest.raises(ValueError, match="expected one of its slides, got 'nowhere'"):
        built.adata("nowhere")


def test_filters_see_columns_of_index_and_slides(built):
    brain = built.filter(pl.col("n_counts") > 20, tissue="brain")
    slides = built.slides.filter(pl.col("tissue") == "brain")["slide"]
    expected = built.index.with_row_index("row").filter(
        pl.col("n_counts") > 20, pl.col("slide").is_in(slides.to_list())
    )
    np.testing.assert_array_equal(brain.rows, expected["row"].to_numpy())
    np.testing.assert_array_equal(brain.hvg, built.hvg[brain.rows])
    np.testing.assert_array_equal(brain.counts.toarray(), built.counts.toarray()[brain.rows])


def test_what_is_unknown_is_a_value_too(built):
    tissue = built.filter(pl.lit(True))._joined()["tissue"]
    unknown = tissue.is_null().to_numpy()
    assert unknown.any()
    np.testing.assert_array_equal(built.filter(tissue=None).rows, np.flatnonzero(unknown))
    assert len(built.filter(tissue=[None, "brain"])) == len(built)
    assert len(built.filter(tissue=["brain"])) == (~unknown).sum()
    assert len(built.filter(tissue=[])) == 0


def test_an_array_of_values_is_as_a_list(built):
    expected = built.filter(patient=["a", "c"]).rows
    for several in (np.array(["a", "c"]), np.array(["a", "c"], object), pl.Series(["a", "c"])):
        np.testing.assert_array_equal(built.filter(patient=several).rows, expected)
    counts = built.index["n_counts"].to_numpy()[:3]
    rows = np.flatnonzero(np.isin(built.index["n_counts"].to_numpy(), counts))
    np.testing.assert_array_equal(built.filter(n_counts=counts).rows, rows)
    assert len(built.filter(n_counts=counts[0])) > 0


def test_a_view_of_a_view_keeps_the_rows_of_the_whole(built):
    first = built.filter(patient=["a", "b"])
    second = first.filter(patient="b")
    np.testing.assert_array_equal(second.rows, built.filter(patient="b").rows)
    assert len(first.filter(patient="c")) == 0


def test_a_column_that_is_not_there_is_named(built):
    with pytest.raises(ValueError, match=r"expected one of the columns slide, spot.*got 'age'"):
        built.filter(age=3)
    with pytest.raises(ValueError, match="expected columns of index or slides"):
        built.filter(pl.col("age") > 3)


@pytest.mark.parametrize(("by", "n_parts"), [("slide", 3), ("patient", 3), ("tissue", 2)])
def test_a_split_divides_no_group_and_loses_no_spot(built, by, n_parts):
    names, shares = ("one", "two", "three")[:n_parts], (1 / n_parts,) * n_parts
    parts = built.split(by, shares, names=names)
    rows = np.concatenate([part.rows for part in parts.values()])
    np.testing.assert_array_equal(np.sort(rows), np.arange(len(built)))
    groups = [
        set(part.index.join(built.slides, on="slide")[by].to_list())
        if by != "slide"
        else set(part.index["slide"])
        for part in parts.values()
    ]
    assert all(groups)
    assert sum(map(len, groups)) == len(set().union(*groups))


def test_a_split_is_its_seeds_and_the_parts_have_their_shares(built):
    with pytest.warns(UserWarning, match="neighbours"):
        first, again, other = (
            built.split("spot", (0.8, 0.2), names=("a", "b"), seed=seed) for seed in (0, 0, 1)
        )
    np.testing.assert_array_equal(first["a"].rows, again["a"].rows)
    assert first["a"].rows.tolist() != other["a"].rows.tolist()
    assert abs(len(first["a"]) - 0.8 * len(built)) <= 1
    assert (np.diff(first["a"].rows) > 0).all()


@pytest.mark.parametrize("fractions", [(0.5, 0.4), (1.5, -0.5), (), (0.5, math.nan)])
def test_shares_that_make_no_whole_are_refused(built, fractions):
    with pytest.raises(ValueError, match="shares that sum to 1"):
        built.split("slide", fractions, names=("a", "b"))


@pytest.mark.parametrize("names", [("a",), ("a", "a"), ("a", "b", "c")])
def test_names_of_parts_are_one_each(built, names):
    with pytest.raises(ValueError, match="names: expected 2 different ones"):
        built.split("slide", (0.5, 0.5), names=names)


def test_large_groups_are_placed_first():
    group = np.repeat([0, 1, 2], [70, 45, 1])
    for seed in range(9):
        part = _assign(group, (0.6, 0.4), seed, "slide")
        assert np.bincount(part).tolist() in ([70, 46], [71, 45])


def test_more_parts_than_groups_are_refused(built):
    with pytest.raises(ValueError, match="at least 3 of 'tissue', got 2"):
        built.split("tissue")


def test_a_loader_of_a_view_yields_its_rows(built):
    pytest.importorskip("torch")
    part = built.filter(patient="b")
    loader = part.loader(batch_size=8, device="cpu")
    seen = np.concatenate([batch.index.numpy() for batch in loader])
    np.testing.assert_array_equal(np.sort(seen), part.rows)


# --- Bad input ----------------------------------------------------------------------------------


def rewritten(root, tmp_path, **settings):
    (tmp_path / "index.parquet").write_bytes((root / _layout.INDEX).read_bytes())
    (tmp_path / "slides.parquet").write_bytes((root / _layout.SLIDE_TABLE).read_bytes())
    (tmp_path / "dataset.json").write_text(json.dumps(settings))
    return tmp_path


def test_a_folder_that_is_no_dataset_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"dataset\.json"):
        stfast.Dataset(tmp_path)


def test_a_newer_format_is_refused(root, tmp_path):
    newer = rewritten(root, tmp_path, stfast={"format_version": 2, "size": 16})
    with pytest.raises(stfast.FormatError, match="format_version up to 1, got 2: a newer stfast"):
        stfast.Dataset(newer)


def test_another_programs_description_is_refused(root, tmp_path):
    with pytest.raises(stfast.FormatError, match="expected the settings of a build"):
        stfast.Dataset(rewritten(root, tmp_path, name="mine"))


def test_an_index_without_a_column_is_refused(root, tmp_path):
    lame = rewritten(root, tmp_path, stfast={"format_version": 1, "size": 16})
    pl.read_parquet(lame / _layout.INDEX).drop("length").write_parquet(lame / _layout.INDEX)
    with pytest.raises(stfast.FormatError, match="expected a column 'length'"):
        stfast.Dataset(lame)
