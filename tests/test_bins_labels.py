"""Bins by labels, from any origin, of any matrix, from a file: each against its plain version."""

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

import oracles
from oracles import WORKERS, assert_canonical, assert_same, at_any_workers
from stfast import Labelled, _stored, aggregate_bins


def labelled(matrix, labels):
    """Sums of the rows of each label, dense, in int64 or float64."""
    dense = np.asarray(matrix.todense() if sparse.issparse(matrix) else matrix)
    wide = dense.astype(np.int64 if dense.dtype.kind in "iub" else np.float64)
    numbers = sorted(set(labels[labels >= 0].tolist()))
    sums = [wide[labels == number].sum(axis=0) for number in numbers]
    return np.array(sums).reshape(len(numbers), dense.shape[1]), numbers


def squares(seed=0, side=12, genes=9, dtype=np.int32):
    """AnnData of a grid, not square, with something in every part that AnnData has."""
    rng = np.random.default_rng(seed)
    rows, cols = (a.ravel() for a in np.indices((side, side + 5)))
    n = len(rows)
    adata = AnnData(sparse.csr_matrix(rng.poisson(0.5, (n, genes)).astype(dtype)))
    adata.obs["array_row"], adata.obs["array_col"] = rows, cols
    adata.obs["in_tissue"] = rng.integers(0, 2, n)
    adata.obs["in_picture"] = rng.random(n) < 0.9
    adata.obs["word"] = "x"
    adata.obsm["spatial"] = np.column_stack([50 + 3 * cols - rows, 20 + cols + 3.0 * rows])
    adata.obsm["pca"] = rng.normal(size=(n, 4)).astype(np.float32)
    adata.obsm["table"] = pd.DataFrame({"a": np.arange(n), "b": "x"}, index=adata.obs_names)
    adata.obsm["sparse"] = sparse.csr_matrix(rng.poisson(0.5, (n, 3)).astype(float))
    adata.obsp["near"] = sparse.eye(n, format="csr")
    adata.varm["loadings"] = rng.normal(size=(genes, 2))
    adata.varp["pairs"] = rng.normal(size=(genes, genes))
    adata.var["gene_ids"] = [f"ENSG{i}" for i in range(genes)]
    adata.layers["twice"] = adata.X * 2
    adata.layers["dense"] = adata.X.toarray().astype(np.float32)
    adata.uns["colours"] = ["red"]
    adata.uns["neighbors"] = {"connectivities_key": "near"}
    factors = {"spot_diameter_fullres": np.sqrt(10), "bin_size_um": 2.0}
    adata.uns["spatial"] = {"s": {"images": {}, "scalefactors": factors, "metadata": {"a": "b"}}}
    return adata


@given(
    seed=st.integers(0, 2**31),
    n=st.integers(0, 300),
    genes=st.integers(1, 70),
    dtype=st.sampled_from(["int8", "uint16", "int32", "int64", "float32", "float64"]),
    kind=st.sampled_from(["csr", "csc", "coo", "dense"]),
    most=st.integers(0, 50),
)
def test_labels_sum_their_squares(*, seed, n, genes, dtype, kind, most):
    rng = np.random.default_rng(seed)
    matrix = rng.poisson(0.4, (n, genes)).astype(dtype)
    labels = rng.integers(-1, most + 1, n) * 7
    labels[labels < 0] = -1
    given_ = matrix if kind == "dense" else getattr(sparse, f"{kind}_matrix")(matrix)
    found = at_any_workers(lambda w: aggregate_bins(given_, labels=labels, workers=w))
    assert isinstance(found, Labelled)
    sums, numbers = labelled(matrix, labels)
    np.testing.assert_array_equal(found.matrix.toarray(), sums)
    assert found.labels.tolist() == numbers
    assert found.labels.dtype == np.int64
    assert_canonical(found.matrix)


def test_labels_of_no_square_are_an_empty_matrix():
    found = aggregate_bins(sparse.csr_matrix((3, 4), dtype=np.int32), labels=[-1, -1, -1])
    assert found.matrix.shape == (0, 4)
    assert found.labels.tolist() == []


def test_the_largest_label_is_no_memory():
    matrix = sparse.csr_matrix(np.ones((3, 2), np.int32))
    found = aggregate_bins(matrix, labels=[2**62, 0, 2**62])
    assert found.labels.tolist() == [0, 2**62]
    assert found.matrix.toarray().tolist() == [[1, 1], [2, 2]]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1], r"labels: expected 3 values, got shape \(2,\)"),
        ([0, 1, -2], "labels: expected −1"),
        ([0, 1, 0.5], "labels: expected whole numbers"),
        (["a", "b", "c"], "labels: expected whole numbers"),
        ([0, 1, np.nan], "labels: expected whole numbers"),
    ],
)
def test_bad_labels_are_named(labels, message):
    with pytest.raises(ValueError, match=message):
        aggregate_bins(sparse.csr_matrix((3, 4), dtype=np.int32), labels=labels)


def test_labels_of_anndata_are_cells():
    adata = squares()
    rng = np.random.default_rng(1)
    labels = rng.integers(-1, 9, adata.n_obs)
    found = at_any_workers(lambda w: aggregate_bins(adata, labels=labels, workers=w))
    sums, numbers = labelled(adata.X, labels)
    np.testing.assert_array_equal(found.X.toarray(), sums)
    assert found.obs["label"].tolist() == numbers
    assert found.obs_names.tolist() == [str(number) for number in numbers]
    for number in numbers:
        mine = labels == number
        row = found.obs.loc[str(number)]
        assert row["n_squares"] == mine.sum()
        assert row["in_tissue"] == adata.obs["in_tissue"][mine].max()
        assert row["in_picture"] == adata.obs["in_picture"][mine].any()
        assert row["array_row"] == pytest.approx(adata.obs["array_row"][mine].mean())
        at = found.obs_names.get_loc(str(number))
        for name in ("spatial", "pca"):
            mean = adata.obsm[name][mine].astype(float).mean(axis=0)
            np.testing.assert_allclose(found.obsm[name][at], mean)
    factors = found.uns["spatial"]["s"]["scalefactors"]
    mean_area = (labels >= 0).sum() / len(numbers)
    diameter = np.sqrt(10) * 2 * np.sqrt(mean_area / np.pi)
    assert factors == {"spot_diameter_fullres": pytest.approx(diameter)}
    adata.obs["cell"] = labels
    assert_same(aggregate_bins(adata, labels="cell"), found)
    with pytest.raises(ValueError, match="labels: expected a column of obs, got 'gone'"):
        aggregate_bins(adata, labels="gone")


@pytest.mark.parametrize("options", [{"factor": 4}, {"labels": np.arange(100) % 7}])
@pytest.mark.parametrize("with_x", [True, False])
def test_layers_of_views_and_beside_no_x_are_summed_by_their_names(options, with_x):
    adata = squares(side=10)
    expected = aggregate_bins(adata[:100].copy(), **options)
    if not with_x:
        adata.X = None
    found = aggregate_bins(adata[:100], **options)
    # anndata 0.13 lists X among the layers, as None.
    assert {name for name in found.layers if name is not None} == {"twice", "dense"}
    for name in ("twice", "dense"):
        assert_same(found.layers[name], expected.layers[name])
    assert (found.X is None) == (not with_x)
    if with_x:
        assert_same(found.X, expected.X)


def test_every_part_of_anndata_is_carried_or_left_out_as_documented():
    adata = squares()
    adata.raw = AnnData(adata.X * 3, var=pd.DataFrame(index=[f"r{i}" for i in range(9)]))
    found = aggregate_bins(adata, 8)
    rows, cols = adata.obs["array_row"], adata.obs["array_col"]
    sums, _, _ = oracles.binned(adata.X, rows, cols, 4)
    for matrix, factor in (
        (found.X, 1),
        (found.layers["twice"], 2),
        (found.layers["dense"], 1),
        (found.raw.X, 3),
    ):
        assert (matrix != sums * factor).nnz == 0
    assert found.raw.var_names[0] == "r0"
    assert found.var.equals(adata.var)
    np.testing.assert_array_equal(found.varm["loadings"], adata.varm["loadings"])
    np.testing.assert_array_equal(found.varp["pairs"], adata.varp["pairs"])
    assert found.uns["colours"] == ["red"]
    assert "neighbors" not in found.uns
    assert "near" not in found.obsp
    assert set(found.obs) == {"in_tissue", "in_picture", "array_row", "array_col", "n_squares"}
    group = rows // 4 * 5 + cols // 4
    for name in ("pca", "sparse"):
        values = adata.obsm[name]
        dense = pd.DataFrame(values.toarray() if sparse.issparse(values) else values).astype(float)
        means = dense.groupby(group.to_numpy()).mean().to_numpy()
        got = found.obsm[name]
        np.testing.assert_allclose(got.toarray() if sparse.issparse(got) else got, means, rtol=1e-6)
    assert list(found.obsm["table"]) == ["a"]
    assert found.uns["spatial"]["s"]["metadata"] == {"a": "b"}
    assert adata.uns["spatial"]["s"]["scalefactors"]["bin_size_um"] == 2.0, "input was changed"


def test_a_factor_stands_for_a_size():
    adata = squares()
    by_size, by_factor = aggregate_bins(adata, 8), aggregate_bins(adata, factor=4)
    assert_same(by_factor, by_size)
    del adata.uns["spatial"]
    bare = aggregate_bins(adata, factor=4)
    assert_same(bare.X, by_size.X)
    assert bare.obs_names[1] == "bin_00000_00001"
    with pytest.raises(ValueError, match="factor: expected an integer of at least 1"):
        aggregate_bins(adata, factor=0)


@pytest.mark.parametrize("origin", [(0, 0), (1, 2), (-3, 5), (100, 100)])
def test_bins_start_at_the_origin(origin):
    adata = squares()
    found = aggregate_bins(adata, 8, origin=origin)
    rows = adata.obs["array_row"].to_numpy() - origin[0]
    cols = adata.obs["array_col"].to_numpy() - origin[1]
    sums, bin_rows, bin_cols = oracles.binned(adata.X, rows, cols, 4)
    assert (found.X != sums).nnz == 0
    np.testing.assert_array_equal(found.obs["array_row"], bin_rows)
    row = bin_rows * 4 + 1.5 + origin[0]
    col = bin_cols * 4 + 1.5 + origin[1]
    expected = np.column_stack([50 + 3 * col - row, 20 + col + 3 * row])
    np.testing.assert_allclose(found.obsm["spatial"], expected)
    places = {"rows": rows + origin[0], "cols": cols + origin[1]}
    assert_same(aggregate_bins(adata.X, **places, factor=4, origin=origin).matrix, found.X)
    recorded = found.uns["stfast"]["aggregate_bins"].get("origin", [0, 0])
    assert recorded == list(origin)


def test_an_origin_beyond_64_bits_is_refused():
    matrix = sparse.csr_matrix((1, 1), dtype=np.int32)
    with pytest.raises(ValueError, match="origin: expected rows less it to fit in 64 bits"):
        aggregate_bins(matrix, rows=[2**62], cols=[0], factor=1, origin=(-(2**62) - 1, 0))
    with pytest.raises(ValueError, match="origin: expected 2 values"):
        aggregate_bins(matrix, rows=[0], cols=[0], factor=1, origin=(0,))


# --- backed ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["int32", "float32", "int64", "float64", "uint8", "uint32"])
@pytest.mark.parametrize("kind", ["csr", "csc", "dense"])
@pytest.mark.parametrize("stretch", [10, 8 << 20])
def test_backed_anndata_gives_the_same_bits(tmp_path, dtype, kind, stretch, monkeypatch):
    monkeypatch.setattr(_stored, "STRETCH", stretch)
    adata = squares(side=70)
    counts = adata.X.astype(dtype)
    if dtype.startswith("float"):
        counts.data = (counts.data / 3).astype(dtype)
    adata.X = {"csr": counts, "csc": counts.tocsc(), "dense": counts.toarray()}[kind]
    adata.write_h5ad(tmp_path / "a.h5ad", compression="gzip")
    backed = anndata.read_h5ad(tmp_path / "a.h5ad", backed="r")
    rng = np.random.default_rng(2)
    for options in ({"bin_size": 8}, {"factor": 70}, {"labels": rng.integers(-1, 40, adata.n_obs)}):
        expected = aggregate_bins(adata, **options)
        for workers in WORKERS:
            found = aggregate_bins(backed, **options, workers=workers)
            assert_same(found, expected)
            assert_same(found.layers["twice"], expected.layers["twice"])


def test_backed_sums_that_do_not_fit_int32_become_int64(tmp_path):
    adata = squares()
    adata.X.data[:] = 2**31 - 1
    adata.write_h5ad(tmp_path / "a.h5ad")
    found = aggregate_bins(anndata.read_h5ad(tmp_path / "a.h5ad", backed="r"), 8)
    assert found.X.dtype == np.int64
    assert found.X.sum() == adata.X.sum(dtype=np.int64)


def test_backed_filters_that_rust_does_not_know(tmp_path):
    adata = squares()
    adata.write_h5ad(tmp_path / "a.h5ad", compression="lzf")
    found = aggregate_bins(anndata.read_h5ad(tmp_path / "a.h5ad", backed="r"), 8)
    assert_same(found, aggregate_bins(adata, 8))


def test_backed_values_that_were_never_written_are_the_fill_value(tmp_path):
    adata = squares()
    adata.write_h5ad(tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "a.h5ad", "r+") as file:
        n = len(file["X/data"])
        del file["X/data"]
        file["X"].create_dataset("data", (n,), "i4", chunks=(8,), fillvalue=3)[n // 2 :] = 1
    adata.X.data[:] = [3] * (n // 2) + [1] * (n - n // 2)
    found = aggregate_bins(anndata.read_h5ad(tmp_path / "a.h5ad", backed="r"), 8)
    assert_same(found, aggregate_bins(adata, 8))
