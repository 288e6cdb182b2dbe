"""Highly variable genes: values against scanpy and a dense oracle, ranks up to ties.

scanpy is asked in double precision wherever its own single-precision sums or its
median over empty spots (hvg.md A2) would blur the comparison; where float32 is the point,
the tolerance says so.
"""

import warnings

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import sparse

import oracles
import stfast
from oracles import WORKERS, assert_same, at_any_workers
from oracles import gene_counts as counts
from stfast import highly_variable_genes

EXACT, SINGLE = 1e-10, 1e-6


def table(x, flavor="pearson_residuals", n_top_genes=10, **options):
    """The table of all genes, the same at 1, 2 and 5 workers."""
    adata = x if isinstance(x, AnnData) else AnnData(x)
    return at_any_workers(
        lambda n: highly_variable_genes(
            adata, flavor, n_top_genes, inplace=False, workers=n, **options
        )
    )


def scanpy_pearson(x, n_top_genes=10, **options):
    scanpy = pytest.importorskip("scanpy")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return scanpy.experimental.pp.highly_variable_genes(
            AnnData(x), n_top_genes=n_top_genes, inplace=False, **options
        )


def assert_close(found, expected, columns, rtol):
    for column in columns:
        np.testing.assert_allclose(
            found[column], expected[column], rtol=rtol, atol=rtol / 100, err_msg=column
        )


def assert_ranks_up_to_ties(found, score, n_top, rtol=1e-9):
    """Exactly n_top genes, ranked 0, 1, …, none better left out, by a score of the oracle's."""
    score = np.asarray(score)
    chosen = found["highly_variable"].to_numpy()
    rank = found["highly_variable_rank"].to_numpy()
    n_top = min(n_top, len(score))
    assert chosen.sum() == n_top
    assert (np.isnan(rank) == ~chosen).all()
    assert sorted(rank[chosen]) == list(range(n_top))
    best = score[chosen][np.argsort(rank[chosen])]
    np.testing.assert_allclose(best, -np.sort(-score)[:n_top], rtol=rtol, atol=1e-12)


# --- Pearson residuals -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "rtol"),
    [("int32", EXACT), ("int64", EXACT), ("float64", EXACT), ("float32", SINGLE)],
)
@pytest.mark.parametrize("shape", [(300, 120), (60, 400), (5000, 30)])
def test_pearson_equals_scanpy(dtype, rtol, shape):
    x = sparse.csr_matrix(counts(*shape, depth=3).astype(dtype))
    found, expected = table(x, n_top_genes=20), scanpy_pearson(x, 20)
    assert list(found.columns) == list(expected.columns)
    assert list(found.index) == list(expected.index)
    assert_close(found, expected, ["means", "variances", "residual_variances"], rtol)
    assert_ranks_up_to_ties(found, expected["residual_variances"], 20, rtol)
    for column in found:
        assert found[column].dtype.kind == expected[column].dtype.kind


@pytest.mark.parametrize(
    "options",
    [
        {"theta": 1.0},
        {"theta": np.inf},
        {"clip": 3.0},
        {"clip": np.inf},
        {"theta": 7.5, "clip": 0.5},
    ],
)
def test_pearson_takes_theta_and_clip_as_scanpy_does(options):
    x = sparse.csr_matrix(counts(depth=3))
    found, expected = table(x, **options), scanpy_pearson(x, **options)
    assert_close(found, expected, ["residual_variances"], EXACT)


@pytest.mark.filterwarnings("ignore:n_top_genes")
@given(
    seed=st.integers(0, 2**32),
    n=st.integers(2, 80),
    genes=st.integers(1, 40),
    depth=st.sampled_from([0.1, 1.0, 30.0]),
    clip=st.sampled_from([None, 0.3, 2.0, 50.0]),
    theta=st.sampled_from([0.5, 100.0, np.inf]),
)
@example(seed=0, n=2, genes=1, depth=30.0, clip=0.3, theta=0.5)
@example(seed=1, n=9, genes=40, depth=30.0, clip=None, theta=100.0)
def test_pearson_equals_the_dense_oracle(*, seed, n, genes, depth, clip, theta):
    """Also where spots are few, so that a zero's residual is clipped as well."""
    x = counts(n, genes, seed, depth)
    found = table(sparse.csr_matrix(x), theta=theta, clip=clip)
    variance = oracles.pearson_variance(x, theta, clip)
    np.testing.assert_allclose(found["residual_variances"], variance, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found["means"], x.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found["variances"], x.var(axis=0, ddof=1), rtol=1e-9, atol=1e-12)
    assert_ranks_up_to_ties(found, variance, 10)


@pytest.mark.parametrize("kind", ["csc", "coo", "dense", "uint8", "unsorted", "int64 indices"])
def test_every_kind_of_matrix_gives_the_same_answer(kind):
    x = counts()
    csr = sparse.csr_matrix(x)
    unsorted = csr.copy()
    for start, end in zip(csr.indptr[:-1], csr.indptr[1:], strict=True):
        unsorted.indices[start:end] = csr.indices[start:end][::-1]
        unsorted.data[start:end] = csr.data[start:end][::-1]
    wide = csr.copy()
    wide.indices, wide.indptr = csr.indices.astype(np.int64), csr.indptr.astype(np.int64)
    given_as = {
        "csc": sparse.csc_matrix(x),
        "coo": sparse.csr_array(x),
        "dense": x,
        "uint8": csr.astype(np.uint8),
        "unsorted": unsorted,
        "int64 indices": wide,
    }[kind]
    assert_same(table(given_as), table(csr))


def doubled(x):
    """The same matrix with counts above 1 stored in two parts."""
    csr = sparse.csr_matrix(x.astype(np.float64))
    rows = np.repeat(np.arange(csr.shape[0]), np.diff(csr.indptr))
    extra = csr.data > 1
    order = np.argsort(np.concatenate([rows, rows[extra]]), kind="stable")
    parts = sparse.csr_matrix(csr.shape)
    parts.data = np.concatenate([csr.data - extra, np.ones(extra.sum())])[order]
    parts.indices = np.concatenate([csr.indices, csr.indices[extra]])[order]
    rows = np.concatenate([rows, rows[extra]])
    parts.indptr = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=len(x)))])
    assert (parts.toarray() == x).all()
    return parts


@pytest.mark.parametrize("flavor", ["pearson_residuals", "seurat"])
def test_a_count_stored_in_two_parts_is_one_count(flavor):
    """A residual is not linear in the count: parts must be added before, or refused."""
    x = counts(depth=3)
    options = {"normalize": True} if flavor == "seurat" else {}
    found = table(doubled(x), flavor, **options)
    expected = table(sparse.csr_matrix(x.astype(np.float64)), flavor, **options)
    for column in expected:
        np.testing.assert_allclose(found[column], expected[column], rtol=1e-9, err_msg=column)


@pytest.mark.parametrize("flavor", ["pearson_residuals", "seurat"])
def test_zeros_that_are_stored_change_nothing(flavor):
    x = counts(40, 30)
    x[7] = 0
    csr = sparse.csr_matrix(x.astype(np.float64))
    stored = sparse.csr_matrix(np.where(x == 0, 0.5, x))
    stored.data[stored.data == 0.5] = 0
    options = {"normalize": True} if flavor == "seurat" else {}
    found, expected = (table(m, flavor, **options) for m in (stored, csr))
    for column in expected:
        np.testing.assert_allclose(found[column], expected[column], rtol=1e-9, err_msg=column)


def test_spots_without_counts_have_residuals_of_zero():
    """Scanpy answers NaN for every gene; filtering such spots first is the user's choice."""
    x = counts(60, 30)
    x[[3, 40]] = 0
    found = table(sparse.csr_matrix(x))
    variance = oracles.pearson_variance(x)
    np.testing.assert_allclose(found["residual_variances"], variance, rtol=1e-9, atol=1e-12)


def test_ties_are_ranked_by_position():
    x = np.tile(counts(80, 6, seed=3, depth=5), (1, 5))
    found = table(sparse.csr_matrix(x), n_top_genes=30)
    score = found["residual_variances"].round(9).to_numpy()
    order = np.lexsort([np.arange(30), -score])
    np.testing.assert_array_equal(np.argsort(found["highly_variable_rank"]), order)


@pytest.mark.filterwarnings("ignore:n_top_genes")
@pytest.mark.parametrize("n_top", [1, 119, 120, 121, 10_000])
@pytest.mark.parametrize("flavor", ["pearson_residuals", "seurat"])
def test_exactly_as_many_genes_are_chosen_as_were_asked_for(flavor, n_top):
    x = counts() if flavor == "pearson_residuals" else oracles.log_normalized(counts())
    found = table(sparse.csr_matrix(x), flavor, n_top)
    usable = 120 if flavor == "pearson_residuals" else found["dispersions_norm"].notna().sum()
    assert found["highly_variable"].sum() == min(n_top, usable)


@pytest.mark.filterwarnings("ignore:n_top_genes")
@pytest.mark.parametrize("x", [np.zeros((5, 4)), np.ones((5, 4)), np.eye(2), np.full((2, 1), 7)])
def test_degenerate_matrices_have_an_answer(x):
    found = table(sparse.csr_matrix(x), n_top_genes=3)
    variance = oracles.pearson_variance(x) if x.any() else np.zeros(x.shape[1])
    np.testing.assert_allclose(found["residual_variances"], variance, atol=1e-12)
    assert found["highly_variable"].sum() == min(3, x.shape[1])


# --- where the answer goes ---------------------------------------------------------------------


@pytest.mark.parametrize("flavor", ["pearson_residuals", "seurat"])
def test_the_answer_is_written_where_scanpy_writes_it(flavor):
    scanpy = pytest.importorskip("scanpy")
    x = counts().astype(np.float64)
    x = sparse.csr_matrix(x if flavor == "pearson_residuals" else oracles.log_normalized(x))
    ours, theirs = AnnData(x), AnnData(x)
    assert highly_variable_genes(ours, flavor, 10) is None
    if flavor == "seurat":
        scanpy.pp.highly_variable_genes(theirs, flavor=flavor, n_top_genes=10)
    else:
        scanpy.experimental.pp.highly_variable_genes(theirs, n_top_genes=10)
    assert set(ours.var) == set(theirs.var)
    assert {key: ours.uns["hvg"][key] for key in theirs.uns["hvg"]} == dict(theirs.uns["hvg"])
    assert ours.var["highly_variable"].dtype == bool
    assert_same(ours.X, x)


def test_a_layer_is_used_and_nothing_else():
    x = counts()
    adata = AnnData(np.full_like(x, 3), layers={"counts": sparse.csr_matrix(x)})
    assert_same(table(adata, layer="counts"), table(sparse.csr_matrix(x)))
    highly_variable_genes(adata, n_top_genes=5, layer="counts")
    assert adata.uns["hvg"]["computed_on"] == "counts"


def test_subset_keeps_the_chosen_genes():
    adata = AnnData(sparse.csr_matrix(counts()))
    names = table(adata).query("highly_variable").index
    assert list(table(adata, subset=True).index) == list(names)
    assert adata.n_vars == 120
    highly_variable_genes(adata, n_top_genes=10, subset=True)
    assert list(adata.var_names) == list(names)
    assert adata.var["highly_variable"].all()


@pytest.mark.filterwarnings("ignore:Variable names are not unique")
def test_genes_may_share_a_name():
    x = counts(50, 4)
    # From 0.13 on, anndata's warnings of it point at these lines.
    with pytest.warns(UserWarning, match="Variable names are not unique"):
        adata = AnnData(x, var=pd.DataFrame(index=["a", "b", "a", "a"]))
    highly_variable_genes(adata, n_top_genes=2)
    np.testing.assert_array_equal(adata.var["means"], x.mean(axis=0))


# --- what is refused ---------------------------------------------------------------------------


def spoilt(value):
    x = counts(20, 10).astype(float)
    x[3, 4] = value
    return x


@pytest.mark.parametrize("flavor", ["pearson_residuals", "seurat"])
@pytest.mark.parametrize(
    ("value", "found"),
    [(-1, "negative values"), (np.nan, "NaN or infinite"), (np.inf, "NaN or infinite")],
)
def test_values_that_are_no_expression_raise(flavor, value, found):
    for x in (spoilt(value), sparse.csr_matrix(spoilt(value))):
        for workers in WORKERS:
            adata = AnnData(x)
            with pytest.raises(ValueError, match=f"expected finite values of at least 0.*{found}"):
                highly_variable_genes(adata, flavor, 3, workers=workers)
            assert list(adata.var.columns) == []


def test_raw_counts_are_no_log_data():
    adata = AnnData(sparse.csr_matrix(counts()))
    with pytest.raises(ValueError, match="expected log1p data, got whole numbers; give normalize"):
        highly_variable_genes(adata, "seurat", 10)
    assert "highly_variable" not in adata.var
    assert "hvg" not in adata.uns


def test_log_data_are_no_raw_counts():
    x = oracles.log_normalized(counts())
    with pytest.warns(
        UserWarning, match="expected raw counts, got values that are not whole, as log1p"
    ):
        highly_variable_genes(AnnData(x), n_top_genes=3)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"flavor": "best"}, ValueError, "flavor: expected one of.*got 'best'"),
        ({"n_top_genes": None}, ValueError, "n_top_genes: expected a number.*got None"),
        ({"n_top_genes": 0}, ValueError, "n_top_genes: expected an integer of at least 1, got 0"),
        ({"n_top_genes": "5"}, (ValueError, TypeError), "n_top_genes"),
        ({"theta": 0}, ValueError, "theta: expected a positive number, got 0"),
        ({"theta": np.nan}, ValueError, "theta"),
        ({"clip": -1}, ValueError, "clip: expected a positive number, got -1"),
        ({"clip": 0}, ValueError, "clip: expected a positive number, got 0"),
        ({"layer": "gone"}, KeyError, r"layer: expected one of \[\], got 'gone'"),
        ({"flavor": "seurat", "normalize": True, "n_bins": 0}, ValueError, "bins"),
        ({"workers": 0}, ValueError, "workers: expected an integer of at least 1, got 0"),
    ],
)
def test_bad_options_raise(options, error, message):
    adata = AnnData(counts(20, 10))
    with pytest.raises(error, match=message):
        highly_variable_genes(adata, **{"n_top_genes": 3} | options)
    assert list(adata.var.columns) == []


@pytest.mark.parametrize("n", [0, 1])
def test_one_spot_has_no_variance(n):
    with pytest.raises(ValueError, match=f"spots: expected at least 2, got {n}"):
        highly_variable_genes(AnnData(counts()[:n]), n_top_genes=3)


def test_anndata_without_counts_raises():
    with pytest.raises(ValueError, match="expected 2 dimensions"):
        stfast.highly_variable_genes(AnnData(obs=pd.DataFrame(index=["a", "b"])), n_top_genes=2)


@pytest.mark.filterwarnings("ignore:n_top_genes")
def test_a_matrix_without_genes_has_no_variable_ones():
    for flavor in ("pearson_residuals", "seurat"):
        assert len(table(np.zeros((5, 0)), flavor)) == 0
