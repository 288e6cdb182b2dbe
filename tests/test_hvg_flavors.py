"""Every flavor against scanpy, with batches and without, on inputs of every kind.

`expected_table` is scanpy's table, put right where scanpy's numbers are made of rounding.
"""

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

import oracles
from oracles import assert_same
from oracles_hvg import (
    FLAVORS,
    INPUTS,
    RAW,
    SCORE,
    adata_of,
    assert_chosen_up_to_ties,
    assert_values,
    expected_table,
    heavy_tailed,
    our_table,
    scanpy_table,
    standardized_variance,
)
from stfast import _core, highly_variable_genes

EXACT = 1e-10
# Where neighbours are nearly alike, skmisc's own solver loses digits (its condition is 1e7).
LOESS = 1e-7
TOP = 20


def options_for(flavor, size):
    """A span that skmisc can fit on few genes, and the clip that does not leak."""
    if flavor == "pearson_residuals":
        return {"clip": 4.0}
    return {"span": 0.8 if size < 200 else 0.5} if flavor.startswith("seurat_v3") else {}


# scanpy has no answer to percentiles that coincide.
CASES = [(f, k) for f in FLAVORS for k in INPUTS if (f, k) != ("cell_ranger", "tiny")]


@pytest.mark.parametrize("batches", [0, 3])
@pytest.mark.parametrize(("flavor", "kind"), CASES)
@pytest.mark.filterwarnings("ignore:seurat_v3")
def test_a_flavor_equals_scanpys(flavor, kind, batches):
    x = INPUTS[kind]()
    adata = adata_of(x, flavor, batches=batches)
    options = options_for(flavor, x.shape[1]) | ({"batch_key": "batch"} if batches else {})
    expected = expected_table(adata, flavor, TOP, **options)
    found = our_table(adata, flavor, TOP, scanpy_compat=True, **options)
    rtol = LOESS if flavor.startswith("seurat_v3") else EXACT
    assert_values(found, expected, rtol, but=("highly_variable_rank",))
    assert [c for c in expected if c in found] == list(found) or batches
    assert set(expected) - set(found) <= {"mean_bin", "gene_name"}
    # Bins of two genes have scores of ±1/√2, equal but for rounding; so have copies.
    if kind not in ("tiny", "tied"):
        np.testing.assert_array_equal(found["highly_variable"], expected["highly_variable"])
        if "highly_variable_rank" in expected:
            names = ["highly_variable_rank"] + ["highly_variable_nbatches"] * bool(batches)
            for name in names:
                np.testing.assert_array_equal(found[name], expected[name])
    elif not batches:
        assert_chosen_up_to_ties(found, expected, SCORE[flavor])


@pytest.mark.parametrize("flavor", FLAVORS)
@pytest.mark.parametrize("batches", [0, 3])
def test_exactly_so_many_are_chosen_and_ties_go_to_the_first(flavor, batches):
    adata = adata_of(INPUTS["tied"](), flavor, batches=batches)
    options = options_for(flavor, 180) | ({"batch_key": "batch"} if batches else {})
    found = our_table(adata, flavor, 10, **options)
    assert found["highly_variable"].sum() == 10
    if batches and flavor == "seurat_v3":
        return  # a copy that is among the best of one batch alone has the better median
    # A gene is there again 60 and 120 later: a copy is never chosen without it.
    first, second, third = found["highly_variable"].to_numpy().reshape(3, 60)
    assert (first >= second).all()
    assert (second >= third).all()


@pytest.mark.parametrize("flavor", ["seurat", "cell_ranger"])
@pytest.mark.parametrize("batches", [0, 3])
@pytest.mark.parametrize(
    "cutoffs", [{}, {"min_mean": 0.1, "max_mean": 1.0}, {"min_disp": -1.0, "max_disp": 0.7}]
)
def test_cutoffs_choose_what_scanpys_choose(flavor, batches, cutoffs):
    adata = adata_of(heavy_tailed(400), flavor, batches=batches)
    options = {"batch_key": "batch"} if batches else {}
    try:
        expected = scanpy_table(adata, flavor, **cutoffs, **options)
    except ValueError:
        pytest.skip("scanpy: percentiles coincide")
    found = our_table(adata, flavor, **cutoffs, **options)
    assert_values(found, expected, EXACT)
    for column in found.columns.intersection(expected.columns):
        if found[column].dtype.kind != "f":
            np.testing.assert_array_equal(found[column], expected[column], err_msg=column)


@pytest.mark.parametrize("flavor", ["seurat", "cell_ranger"])
def test_raw_counts_are_normalised_on_the_way(flavor):
    x = heavy_tailed(300)
    x[::7] = 0
    found = our_table(AnnData(sparse.csr_matrix(x)), flavor, TOP, normalize=True)
    expected = our_table(AnnData(oracles.log_normalized(x)), flavor, TOP)
    assert_values(found, expected, 1e-9)
    np.testing.assert_array_equal(found["highly_variable"], expected["highly_variable"])


@pytest.mark.parametrize("flavor", RAW)
@pytest.mark.parametrize("dtype", ["float32", "int32", "uint16", "int64"])
def test_counts_of_every_dtype_give_the_same_bits(flavor, dtype):
    x = heavy_tailed(200, 150)
    expected = our_table(AnnData(sparse.csr_matrix(x.astype(np.float64))), flavor, TOP)
    assert_same(our_table(AnnData(sparse.csr_matrix(x.astype(dtype))), flavor, TOP), expected)


@given(seed=st.integers(0, 2**32), n=st.integers(3, 60), big=st.sampled_from([1, 300, 2**26 - 1]))
def test_means_and_variances_of_counts_are_exactly_rounded(*, seed, n, big):
    """Against Python's whole numbers, also for counts that no 16 bits hold."""
    rng = np.random.default_rng(seed)
    x = rng.integers(0, big + 1, (n, 5)) * (rng.random((n, 5)) < 0.5)
    found = our_table(AnnData(sparse.csr_matrix(x)), "pearson_residuals", 5)
    for gene in range(5):
        values = [int(v) for v in x[:, gene]]
        total, squares = sum(values), sum(v * v for v in values)
        assert found["means"].iloc[gene] == total / n
        assert found["variances"].iloc[gene] == (n * squares - total**2) / (n * (n - 1))


def test_counts_too_large_to_be_exact_are_summed_all_the_same():
    x = np.zeros((6, 3))
    x[:, 0], x[0, 1], x[:, 2] = 2.0**40, 2.0**26, 1
    found = our_table(AnnData(sparse.csr_matrix(x)), "pearson_residuals", 3)
    np.testing.assert_allclose(found["means"], x.mean(axis=0), rtol=1e-15)
    np.testing.assert_allclose(found["variances"], x.var(axis=0, ddof=1), rtol=1e-12, atol=1e-9)


def test_seurat_v3_is_the_second_moment_about_the_unclipped_mean():
    x = heavy_tailed(300)
    x[5, 7] = 4000
    found = our_table(AnnData(sparse.csr_matrix(x)), "seurat_v3", TOP)
    varies = found["variances"].to_numpy() > 0
    fitted = np.zeros(x.shape[1])
    logs = (np.log10(found[name].to_numpy()[varies]) for name in ("means", "variances"))
    fitted[varies] = _core.loess(*logs, 0.3, 1)[0]
    np.testing.assert_allclose(
        found["variances_norm"], standardized_variance(x, fitted), rtol=1e-9, atol=1e-12
    )


def test_the_dispersion_of_a_mean_far_above_its_spread_is_exact():
    """Mean 1e7, sd 1: squares cancel, deviations do not."""
    rng = np.random.default_rng(0)
    x = np.log1p(np.abs(rng.normal(0, 1, (500, 30))) + np.where(np.arange(30) == 3, 1e7, 1))
    y = np.expm1(x)
    found = our_table(AnnData(sparse.csr_matrix(x)), "seurat", 5)
    dispersion = np.log(y.var(axis=0, ddof=1) / y.mean(axis=0))
    np.testing.assert_allclose(found["dispersions"], dispersion, rtol=1e-10)


# --- batches -----------------------------------------------------------------------------------


@pytest.mark.parametrize("flavor", FLAVORS)
def test_a_batch_is_scored_as_if_alone(flavor):
    """Interleaved batches: each score is that of the batch's own AnnData, bit for bit."""
    adata = adata_of(heavy_tailed(240), flavor, batches=2)
    options = {"span": 0.5} if flavor.startswith("seurat_v3") else {}
    apart = [
        our_table(adata[adata.obs["batch"] == name].copy(), flavor, TOP, **options)
        for name in ("b0", "b1")
    ]
    found = our_table(adata, flavor, TOP, batch_key="batch", **options)
    score = SCORE[flavor]
    if flavor in RAW:
        mean = np.stack([table[score] for table in apart]).mean(axis=0)
        np.testing.assert_array_equal(found[score], mean)
    n_batches = sum(table["highly_variable"].astype(int) for table in apart)
    if flavor in RAW:
        np.testing.assert_array_equal(found["highly_variable_nbatches"], n_batches)


@pytest.mark.parametrize("flavor", FLAVORS)
def test_one_batch_has_the_columns_of_batches(flavor):
    """And of the dispersions the numbers too: genes that no spot expresses enter with zeros."""
    x = heavy_tailed(240)
    x[:, 3:9] = 0
    adata = adata_of(x, flavor, batches=1)
    options = {"batch_key": "batch", **options_for(flavor, x.shape[1])}
    expected = scanpy_table(adata, flavor, TOP, **options)
    found = our_table(adata, flavor, TOP, scanpy_compat=True, **options)
    assert set(found) == set(expected) - {"gene_name"}
    for name in found:
        assert found[name].dtype == expected[name].dtype, name
        if found[name].dtype.kind != "f":
            np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
    assert_values(found, expected, LOESS if flavor.startswith("seurat_v3") else EXACT)
    inplace = adata.copy()
    highly_variable_genes(inplace, flavor, TOP, scanpy_compat=True, **options)
    assert set(inplace.var) == set(found)


@pytest.mark.parametrize("flavor", ["seurat", "cell_ranger"])
def test_one_batch_by_cutoffs_is_scanpys(flavor):
    adata = adata_of(heavy_tailed(240, 300), flavor, batches=1)
    cutoffs = {"batch_key": "batch", "min_mean": 0.1, "max_mean": 1.0, "min_disp": 0.2}
    expected, found = (table(adata, flavor, **cutoffs) for table in (scanpy_table, our_table))
    assert_values(found, expected, EXACT)
    for name in ("highly_variable", "highly_variable_nbatches", "highly_variable_intersection"):
        np.testing.assert_array_equal(found[name], expected[name])
    assert found["highly_variable"].any()


@pytest.mark.parametrize("flavor", ["seurat", "cell_ranger", "pearson_residuals"])
def test_one_slide_of_a_cohort_and_one_batch_left_over_are_batches(flavor):
    adata = adata_of(heavy_tailed(121), flavor)
    adata.obs["batch"] = ["a"] * 120 + ["lone"]
    with pytest.warns(UserWarning, match="batch lone"):
        found = highly_variable_genes(adata, flavor, TOP, batch_key="batch", inplace=False)
    expected = our_table(adata[:120].copy(), flavor, TOP, batch_key="batch")
    assert_same(found, expected)
    assert {"highly_variable_nbatches", "highly_variable_intersection"} <= set(found)
    assert_same(our_table([adata[:120].copy()], flavor, TOP, batch_key="slide"), expected)


@pytest.mark.parametrize("flavor", FLAVORS)
def test_names_of_batches_change_nothing(flavor):
    adata = adata_of(heavy_tailed(240), flavor, batches=2)
    swapped = adata.copy()
    swapped.obs["batch"] = swapped.obs["batch"].cat.rename_categories({"b0": "z", "b1": "a"})
    options = {"span": 0.5} if flavor.startswith("seurat_v3") else {}
    one, other = (our_table(a, flavor, TOP, batch_key="batch", **options) for a in (adata, swapped))
    assert_same(one, other)


def test_an_unused_category_is_no_batch():
    adata = adata_of(heavy_tailed(200), "seurat", batches=2)
    expected = our_table(adata, "seurat", TOP, batch_key="batch")
    adata.obs["batch"] = adata.obs["batch"].cat.add_categories(["empty"])
    assert_same(our_table(adata, "seurat", TOP, batch_key="batch"), expected)


@pytest.mark.parametrize("flavor", FLAVORS)
def test_a_batch_of_one_spot_is_left_out_and_said(flavor):
    adata = adata_of(heavy_tailed(201), flavor)
    adata.obs["batch"] = ["a"] * 100 + ["lone"] + ["b"] * 100
    with pytest.warns(UserWarning, match="batch lone: expected at least 2 spots, got 1: left out"):
        found = highly_variable_genes(adata, flavor, TOP, batch_key="batch", inplace=False)
    kept = adata[adata.obs["batch"] != "lone"].copy()
    assert_same(found, our_table(kept, flavor, TOP, batch_key="batch"))


def test_spots_without_a_batch_raise():
    adata = adata_of(heavy_tailed(30), "seurat")
    adata.obs["batch"] = pd.Categorical(["a"] * 20 + [None] * 10)
    with pytest.raises(ValueError, match="expected a batch for each spot, got none for 10"):
        highly_variable_genes(adata, "seurat", TOP, batch_key="batch")
    with pytest.raises(KeyError, match=r"batch_key: expected one of.*'batch'.*got 'gone'"):
        highly_variable_genes(adata, "seurat", TOP, batch_key="gone")
    adata.obs["batch"] = [str(i) for i in range(30)]
    with pytest.raises(ValueError, match="batches: expected one of at least 2 spots, got none"):
        highly_variable_genes(adata, "seurat", TOP, batch_key="batch")


# --- what is said ------------------------------------------------------------------------------


def test_fewer_genes_than_asked_for_is_said():
    adata = AnnData(sparse.csr_matrix(heavy_tailed(50, 30)))
    with pytest.warns(UserWarning, match="expected 31 genes with a score, got 30: all are chosen"):
        table = highly_variable_genes(adata, "pearson_residuals", 31, inplace=False)
    assert table["highly_variable"].all()


@pytest.mark.parametrize("flavor", RAW)
def test_logarithms_are_no_counts(flavor):
    adata = AnnData(oracles.log_normalized(heavy_tailed(60, 80)))
    with pytest.warns(UserWarning, match=f"{flavor}: expected raw counts, got values that are"):
        highly_variable_genes(adata, flavor, 5, span=0.9)
    adata.uns["log1p"] = {"base": None}
    with pytest.warns(UserWarning, match=f"{flavor}: expected raw counts, got log1p data"):
        highly_variable_genes(adata, flavor, 5, span=0.9)
    halves = heavy_tailed(60, 80).astype(float)
    halves[:2, 0] = 0.5  # of which the sum is whole
    with pytest.warns(UserWarning, match=f"{flavor}: expected raw counts, got values that are"):
        highly_variable_genes(halves, flavor, 5, span=0.9)


@pytest.mark.parametrize("flavor", ["seurat", "cell_ranger"])
def test_counts_are_no_logarithms(flavor):
    adata = AnnData(sparse.csr_matrix(heavy_tailed(60, 80)))
    with pytest.raises(ValueError, match=f"{flavor}: expected log1p data, got whole numbers; give"):
        highly_variable_genes(adata, flavor, 5)
    assert list(adata.var) == []


def test_values_that_no_logarithm_has_are_said():
    """Raw fractions taken for logarithms: exp would be infinite."""
    adata = AnnData(heavy_tailed(60, 80) * 100.5)
    with pytest.raises(ValueError, match="expected log1p data, got values beyond any logarithm"):
        highly_variable_genes(adata, "seurat", 5)


@pytest.mark.filterwarnings("ignore:n_top_genes")
@pytest.mark.parametrize("n_unexpressed", [40, 75, 80])
def test_percentiles_that_coincide_are_no_crash(n_unexpressed):
    x = heavy_tailed(60, 80)
    x[:, :n_unexpressed] = 0
    found = our_table(AnnData(sparse.csr_matrix(x)), "cell_ranger", 3, normalize=True)
    scored = found["dispersions_norm"].notna()
    assert found["highly_variable"].sum() == min(3, scored.sum())


# --- real slides -------------------------------------------------------------------------------


def giotto(path):
    """Genes × spots as text."""
    table = pd.read_csv(path / "visium_DG_expr.txt.gz", sep=r"\s+", index_col=0)
    return table.to_numpy().T


def tsv(path):
    return oracles.st_counts(next(path.glob("counts.tsv*"))).to_numpy()


REAL = {"visium/giotto-mini": giotto, "st/mob11": tsv, "st/mob2-2k": tsv}


@pytest.mark.parametrize("batches", [0, 2])
@pytest.mark.parametrize("flavor", FLAVORS)
@pytest.mark.parametrize("name", sorted(REAL))
@pytest.mark.filterwarnings("ignore:seurat_v3", "ignore:n_top_genes")
def test_real_slides_have_scanpys_genes(name, flavor, batches, real):
    x = REAL[name](real(name))
    x = x[x.sum(axis=1) > 0]
    adata = adata_of(x, flavor, batches=batches)
    options = {"batch_key": "batch"} if batches else {}
    if flavor == "pearson_residuals":
        options["clip"] = 12.0
    elif flavor.startswith("seurat_v3") and x.shape[1] < 2000:
        options["span"] = 0.7
    found = our_table(adata, flavor, 100, scanpy_compat=True, **options)
    expected = expected_table(adata, flavor, 100, **options)
    rtol = LOESS if flavor.startswith("seurat_v3") else 1e-9
    assert_values(found, expected, rtol, but=("highly_variable_rank",))
    ours, theirs = found["highly_variable"], expected["highly_variable"]
    # Equal scores at the cut are cut by rounding in scanpy.
    assert (ours != theirs).sum() <= 2
    if not batches:
        assert_chosen_up_to_ties(found, expected, SCORE[flavor])
