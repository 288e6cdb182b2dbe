"""Where scanpy and stfast differ on purpose: each fault shown, and what is done instead.

docs/hvg.md lists them. `scanpy_compat` chooses the set of scanpy 1.11.5 where the fault is
one of choosing, and not where its numbers are wrong. Faults that came with a later version
or went with one are shown where that version is at hand.
"""

import warnings

import numpy as np
import pytest
from anndata import AnnData
from scipy import sparse

import oracles
from oracles_hvg import (
    adata_of,
    heavy_tailed,
    of_batches_alone,
    our_table,
    scanpy_is,
    scanpy_table,
    splits_equal_means,
)
from stfast import highly_variable_genes

scanpy = pytest.importorskip("scanpy")
TOP = 30


@pytest.fixture
def uneven():
    """A batch of 40 spots, whose residuals are clipped low, and one of 400."""
    adata = adata_of(heavy_tailed(440, 150, umi=800.0), "pearson_residuals")
    adata.obs["batch"] = ["a"] * 40 + ["b"] * 400
    return adata


def chosen(table):
    return set(table.index[table["highly_variable"]])


def test_the_first_batchs_clip_leaks_into_the_others(uneven):
    swapped = uneven.copy()
    swapped.obs["batch"] = swapped.obs["batch"].map({"a": "z", "b": "b"})
    one, other = (
        scanpy_table(a, "pearson_residuals", TOP, batch_key="batch") for a in (uneven, swapped)
    )
    assert chosen(one) != chosen(other), "names of batches matter to scanpy"
    ours = our_table(uneven, "pearson_residuals", TOP, batch_key="batch")
    renamed = our_table(swapped, "pearson_residuals", TOP, batch_key="batch")
    np.testing.assert_array_equal(ours["highly_variable"], renamed["highly_variable"])
    dense = uneven.X.toarray()
    alone = [oracles.pearson_variance(part) for part in (dense[:40], dense[40:])]
    np.testing.assert_allclose(ours["residual_variances"], np.mean(alone, axis=0), rtol=1e-10)
    for adata, theirs in ((uneven, one), (swapped, other)):
        options = {"batch_key": "batch", "scanpy_compat": True}
        assert chosen(our_table(adata, "pearson_residuals", TOP, **options)) == chosen(theirs)


def test_the_median_is_over_empty_spots_if_the_matrix_is_sparse():
    """Until 1.12.3; 1.12.4 takes it over spots with counts, as stfast does unless compat."""
    x = heavy_tailed(300, 500, umi=900.0)
    x[: 300 // 3] = 0
    tables = {}
    for kind, make in {"sparse": sparse.csr_matrix, "dense": np.array}.items():
        adata = AnnData(make(x.astype(np.float64)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scanpy.pp.normalize_total(adata)
            scanpy.pp.log1p(adata)
        tables[kind] = scanpy_table(adata, "seurat", 12)
    total = x.sum(axis=1, keepdims=True)
    over_all = np.log1p(x / np.maximum(total, 1) * np.median(total))
    tables["over all"] = scanpy_table(AnnData(sparse.csr_matrix(over_all)), "seurat", 12)
    assert np.abs(tables["over all"]["means"] - tables["dense"]["means"]).max() > 0.1
    scanpys = "dense" if scanpy_is("1.12.4") else "over all"
    np.testing.assert_allclose(tables["sparse"]["means"], tables[scanpys]["means"], rtol=1e-9)
    for compat, kind in {False: "dense", True: "over all"}.items():
        options = {"normalize": True, "scanpy_compat": compat}
        ours = our_table(AnnData(sparse.csr_matrix(x)), "seurat", 12, **options)
        np.testing.assert_allclose(ours["means"], tables[kind]["means"], rtol=1e-9)
        assert chosen(ours) == chosen(tables[kind])


@pytest.mark.parametrize("flavor", ["seurat_v3", "seurat_v3_paper"])
def test_the_order_of_spots_changes_the_trend_of_batches(flavor):
    """From 1.12.2 on: running means split genes of one total, and loess cuts between them.

    Of the same spots in another order scanpy has other scores, in the third digit; and of
    one batch others than of no batches. Until 1.12.1 it does not, and stfast never does.
    """
    adata = adata_of(heavy_tailed(), flavor, batches=3)
    options = {"batch_key": "batch", "span": 0.5}
    orders = [np.random.default_rng(seed).permutation(adata.n_obs) for seed in range(5)]
    copies = [adata, *(adata[order].copy() for order in orders)]
    theirs = [scanpy_table(copy, flavor, TOP, **options)["variances_norm"] for copy in copies]
    moved = max(np.abs(other / theirs[0] - 1).max() for other in theirs[1:])
    assert splits_equal_means(adata, "batch") == scanpy_is("1.12.2")
    assert moved > 1e-4 if scanpy_is("1.12.2") else moved < 1e-9
    right = of_batches_alone(adata, flavor, TOP, **options)
    ours = [our_table(copy, flavor, TOP, scanpy_compat=True, **options) for copy in copies]
    for table in ours:
        for name, values in right.items():
            np.testing.assert_allclose(table[name], values, rtol=1e-7, err_msg=name)


def test_unsorted_indices_give_wrong_variances():
    """By name: scanpy turns CSR to CSC, which sorts; a CSC that comes unsorted is not."""
    x = heavy_tailed(200, 100)
    csc = sparse.csc_matrix(x.astype(np.float64))
    for start, end in zip(csc.indptr[:-1], csc.indptr[1:], strict=True):
        csc.indices[start:end] = csc.indices[start:end][::-1].copy()
        csc.data[start:end] = csc.data[start:end][::-1].copy()
    csc.has_sorted_indices = False
    variance = oracles.pearson_variance(x)
    theirs = scanpy_table(AnnData(csc), "pearson_residuals", TOP)["residual_variances"]
    assert np.abs(theirs / np.where(variance > 0, variance, 1) - 1).max() > 0.5
    for given in (csc, unsorted_rows(x)):
        ours = our_table(AnnData(given), "pearson_residuals", TOP)["residual_variances"]
        np.testing.assert_allclose(ours, variance, rtol=1e-10, atol=1e-12)


def unsorted_rows(x):
    csr = sparse.csr_matrix(x.astype(np.float64))
    for start, end in zip(csr.indptr[:-1], csr.indptr[1:], strict=True):
        csr.indices[start:end] = csr.indices[start:end][::-1].copy()
        csr.data[start:end] = csr.data[start:end][::-1].copy()
    csr.has_sorted_indices = False
    return csr


def test_squares_in_single_precision_lose_the_variance():
    x = np.random.default_rng(0).normal(30_000, 50, (4000, 3)).round().astype(np.float32)
    exact = x.astype(np.float64).var(axis=0, ddof=1)
    theirs = scanpy_table(AnnData(sparse.csr_matrix(x)), "pearson_residuals", 3)["variances"]
    assert np.abs(theirs / exact - 1).max() > 1e-5
    ours = our_table(AnnData(sparse.csr_matrix(x)), "pearson_residuals", 3)["variances"]
    np.testing.assert_allclose(ours, exact, rtol=1e-12)


@pytest.mark.parametrize("flavor", ["seurat", "cell_ranger"])
def test_ties_at_the_cut_let_more_genes_in(flavor):
    x = np.tile(heavy_tailed(90, 60, 3, umi=2000.0), (1, 3))
    adata = adata_of(x, flavor)
    sizes = {n: len(chosen(scanpy_table(adata, flavor, n))) for n in range(1, 9)}
    assert any(size > n for n, size in sizes.items())
    for n, size in sizes.items():
        assert len(chosen(our_table(adata, flavor, n))) == n
        # Copies differ by rounding in scanpy: it may cut between them, ours never.
        compat = our_table(adata, flavor, n, scanpy_compat=True)
        assert size <= len(chosen(compat)) <= size + 2


def test_a_spot_without_counts_makes_every_residual_nan():
    x = heavy_tailed(60, 30)
    x[7] = 0
    theirs = scanpy_table(AnnData(sparse.csr_matrix(x)), "pearson_residuals", 5)
    assert theirs["residual_variances"].isna().any()
    ours = our_table(AnnData(sparse.csr_matrix(x)), "pearson_residuals", 5)
    np.testing.assert_allclose(ours["residual_variances"], oracles.pearson_variance(x), rtol=1e-9)


def test_scanpy_raises_where_percentiles_coincide_and_where_the_trend_is_singular():
    x = heavy_tailed(60, 80)
    x[:, :40] = 0
    with pytest.raises(ValueError, match="Bin edges must be unique"):
        scanpy_table(adata_of(x, "cell_ranger"), "cell_ranger", 5)
    assert our_table(adata_of(x, "cell_ranger"), "cell_ranger", 5)["highly_variable"].sum() == 5
    few = np.random.default_rng(0).poisson(0.05, (25, 300)).astype(float)
    with pytest.raises(ValueError, match=r"singular|reciprocal|svddc|pseudoinverse|neigh"):
        scanpy_table(AnnData(sparse.csr_matrix(few)), "seurat_v3", 20)
    with pytest.warns(UserWarning, match="each gene was fitted by itself"):
        highly_variable_genes(sparse.csr_matrix(few), "seurat_v3", 20)


@pytest.mark.parametrize("dtype", ["uint8", "int16"])
def test_squares_of_dense_small_whole_numbers_overflow(dtype):
    x = np.minimum(heavy_tailed(umi=4000.0), 255).astype(dtype)
    exact = x.astype(np.float64).var(axis=0, ddof=1)
    theirs = scanpy_table(AnnData(x), "seurat_v3", 20, span=0.5)["variances"]
    assert np.abs(theirs - exact).max() > 1
    ours = our_table(AnnData(x), "seurat_v3", 20, span=0.5)["variances"]
    np.testing.assert_allclose(ours, exact, rtol=1e-12)


def test_scanpys_table_of_batches_loses_the_order_of_genes():
    adata = adata_of(heavy_tailed(200, 60), "seurat", batches=2)
    adata = adata[:, ::-1].copy()
    options = {"n_top_genes": 9, "batch_key": "batch", "inplace": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = scanpy.pp.highly_variable_genes(
            adata, flavor="seurat", **options | {"n_top_genes": None}
        )
    assert list(theirs.index) != list(adata.var_names)
    assert list(our_table(adata, "seurat", 9, batch_key="batch").index) == list(adata.var_names)
