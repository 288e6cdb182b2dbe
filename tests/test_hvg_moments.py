"""Moments of slides: exact, mergeable in any order, kept in Parquet, enough for flavors."""

import json

import anndata
import numpy as np
import polars as pl
import pytest
from anndata import AnnData
from scipy import sparse

import oracles
import stfast
from oracles import WORKERS, assert_same, tree
from oracles_hvg import FLAVORS, RAW, SCORE, heavy_tailed, our_table
from stfast import GeneMoments, gene_moments, highly_variable_genes

TOP = 15


def slides(n=3):
    """Slides of other depths; genes 3 and 4 of the second are not expressed."""
    made = [
        AnnData(sparse.csr_matrix(heavy_tailed(150 + 40 * i, 80, i, 200 + 300 * i)))
        for i in range(n)
    ]
    made[1].X = made[1].X.multiply(~np.isin(np.arange(80), [3, 4])[None]).tocsr()
    return made


def same(one, other):
    assert one.kind == other.kind
    assert_same(one.table, other.table)
    assert_same(one.totals.to_numpy(), other.totals.to_numpy())
    assert_same(one.totals.index.to_numpy(), other.totals.index.to_numpy())


def test_moments_of_counts_are_exact():
    x = heavy_tailed(5000, 40, umi=3000.0)
    for workers in WORKERS:
        found = gene_moments(sparse.csr_matrix(x), workers=workers)
        assert (found.kind, found.n) == ("counts", 5000)
        wide = x.astype(object)
        for name, expected in {
            "n": [5000] * 40,
            "nnz": (x > 0).sum(axis=0),
            "sum": wide.sum(axis=0),
            "squares": (wide * wide).sum(axis=0),
        }.items():
            np.testing.assert_array_equal(found.table[name].to_numpy(), np.array(expected, int))
            assert found.table[name].dtype == ("uint64" if name[0] == "s" else "int64")
        share = x / x.sum(axis=1, keepdims=True)
        np.testing.assert_allclose(found.table["expression_sum"], share.sum(axis=0))
        np.testing.assert_allclose(found.table["expression_squares"], (share**2).sum(axis=0))
        totals, numbers = np.unique(x.sum(axis=1), return_counts=True)
        np.testing.assert_array_equal(found.totals.index, totals)
        np.testing.assert_array_equal(found.totals, numbers)


def test_moments_of_logarithms():
    x = oracles.log_normalized(heavy_tailed(200, 40))
    found = gene_moments(AnnData(sparse.csr_matrix(x), uns={"log1p": {"base": 2}}))
    assert (found.kind, found.n, found.log_base) == ("values", 200, 2.0)
    np.testing.assert_array_equal(found.table["nnz"], (x > 0).sum(axis=0))
    np.testing.assert_allclose(found.table["squares"], (x**2).sum(axis=0))
    undone = 2.0**x - 1
    np.testing.assert_allclose(found.table["expression_sum"], undone.sum(axis=0))


def test_merged_moments_are_those_of_all_spots_in_any_order():
    parts = [gene_moments(slide) for slide in slides()]
    whole = gene_moments(anndata.concat(slides(), index_unique="-"))
    for order in ([0, 1, 2], [2, 0, 1]):
        merged = GeneMoments.merge([parts[i] for i in order])
        for name in ("n", "nnz", "sum", "squares"):
            assert_same(merged.table[name].to_numpy(), whole.table[name].to_numpy())
        np.testing.assert_allclose(merged.table["expression_sum"], whole.table["expression_sum"])
        np.testing.assert_array_equal(merged.totals, whole.totals)
    same(GeneMoments.merge(parts[:1]), parts[0])


def test_merging_keeps_the_genes_that_all_have():
    one, other = slides(2)
    other = other[:, list(range(60, 10, -1))].copy()
    merged = GeneMoments.merge([gene_moments(one), gene_moments(other)])
    assert list(merged.table.index) == [str(i) for i in range(11, 61)]
    total = one.X[:, 11:61].sum(axis=0) + other.X[:, ::-1].sum(axis=0)
    np.testing.assert_array_equal(merged.table["sum"], np.ravel(total))


@pytest.mark.parametrize("logged", [False, True])
def test_parquet_gives_back_every_bit(logged, tmp_path):
    x = heavy_tailed(100, 30)
    moments = gene_moments(oracles.log_normalized(x) if logged else x)
    moments.write(tmp_path / "m.parquet")
    same(GeneMoments.read(tmp_path / "m.parquet"), moments)
    assert list(pl.read_parquet(tmp_path / "m.parquet")["gene"]) == list(moments.table.index)


@pytest.mark.parametrize("flavor", ["seurat", "cell_ranger"])
def test_dispersions_need_moments_alone(flavor):
    """From logarithms; and seurat from counts: the cohort's median comes last, and is exact."""
    logs = [AnnData(oracles.log_normalized(slide.X.toarray())) for slide in slides()]
    merged = GeneMoments.merge([gene_moments(slide) for slide in logs])
    found = our_table(merged, flavor, TOP)
    expected = our_table(logs, flavor, TOP)
    for column in expected:
        np.testing.assert_allclose(found[column], expected[column], rtol=1e-9, atol=1e-12)


def test_seurat_of_a_cohort_of_counts_needs_moments_alone():
    merged = GeneMoments.merge([gene_moments(slide) for slide in slides()])
    found = our_table(merged, "seurat", TOP, normalize=True)
    expected = our_table(slides(), "seurat", TOP, normalize=True)
    for column in expected:
        np.testing.assert_allclose(found[column], expected[column], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("flavor", RAW)
def test_a_second_pass_does_the_rest(flavor):
    merged = GeneMoments.merge([gene_moments(slide) for slide in slides()])
    passed = []
    options = {"span": 0.7, "inplace": False}
    found = highly_variable_genes(
        slides(), flavor, TOP, moments=merged, progress=passed.append, **options
    )
    assert passed[-1] == merged.n
    assert_same(found, highly_variable_genes(slides(), flavor, TOP, **options))


def test_residuals_of_fewer_genes_are_of_their_own_totals():
    """Merging lost genes: totals of all genes would not do, so the first pass is made."""
    one, other = slides(2)
    other = other[:, :70].copy()
    merged = GeneMoments.merge([gene_moments(one), gene_moments(other)])
    assert not merged.covers_totals
    found = highly_variable_genes([one, other], n_top_genes=TOP, moments=merged)
    assert_same(found, highly_variable_genes([one, other], n_top_genes=TOP))


def test_moments_that_do_not_fit_are_refused():
    counts = gene_moments(slides()[0])
    logs = gene_moments(oracles.log_normalized(heavy_tailed(50, 80)))
    with pytest.raises(ValueError, match="moments: expected one kind of data, got"):
        GeneMoments.merge([counts, logs])
    with pytest.raises(ValueError, match="moments: expected at least one, got none"):
        GeneMoments.merge([])
    with pytest.raises(ValueError, match="seurat: expected moments of other data, got those of c"):
        highly_variable_genes(counts, "seurat", 5)
    with pytest.raises(ValueError, match="seurat: expected moments of other data, got those of l"):
        highly_variable_genes(logs, "seurat", 5, normalize=True)
    with pytest.raises(ValueError, match="cell_ranger: expected slides for a second pass"):
        highly_variable_genes(counts, "cell_ranger", 5, normalize=True)
    for flavor in RAW:
        with pytest.raises(ValueError, match=f"{flavor}: expected slides for a second pass, got"):
            highly_variable_genes(counts, flavor, 5)
    with pytest.raises(ValueError, match="moments: expected those of 190 spots, got 150"):
        highly_variable_genes(slides()[1], n_top_genes=5, moments=counts)
    with pytest.raises(ValueError, match="moments: expected no batch_key"):
        highly_variable_genes(counts, "seurat", 5, batch_key="slide")
    with pytest.raises(ValueError, match="counts: expected the genes of moments, got no '50'"):
        highly_variable_genes(slides()[0][:, :50].copy(), n_top_genes=5, moments=counts)


def test_sums_of_squares_beyond_64_bits_overflow_and_say_so():
    moments = gene_moments(np.full((2, 1), 2**26 - 1))
    moments.table["squares"] = np.array([2**64 - 5], dtype=np.uint64)
    with pytest.raises(OverflowError, match="sum of squares does not fit uint64"):
        GeneMoments.merge([moments, moments])


@pytest.mark.parametrize("kind", ["text", "other", "newer", "cut", "no column"])
def test_files_that_are_no_moments_are_refused(kind, tmp_path):
    path = tmp_path / "m.parquet"
    gene_moments(heavy_tailed(20, 9)).write(path)
    about = json.loads(pl.read_parquet_metadata(path)["stfast"])
    if kind == "text":
        path.write_text("no Parquet")
    elif kind == "other":
        pl.DataFrame({"gene": ["a"]}).write_parquet(path)
    elif kind == "newer":
        about = json.dumps(about | {"format_version": 99})
        pl.read_parquet(path).write_parquet(path, metadata={"stfast": about})
    elif kind == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    else:
        frame = pl.read_parquet(path).drop("nnz")
        frame.write_parquet(path, metadata={"stfast": json.dumps(about)})
    message = "expected at most format 1, got format 99" if kind == "newer" else "expected moments"
    with pytest.raises(stfast.FormatError, match=rf"m\.parquet: {message}"):
        GeneMoments.read(path)
    with pytest.raises(FileNotFoundError):
        GeneMoments.read(tmp_path / "gone.parquet")


def test_a_failure_to_write_leaves_nothing(tmp_path):
    moments = gene_moments(heavy_tailed(20, 9))
    with pytest.raises(FileNotFoundError, match="gone"):
        moments.write(tmp_path / "gone" / "m.parquet")
    assert tree(tmp_path) == []


@pytest.mark.parametrize("flavor", FLAVORS)
def test_one_slides_moments_score_as_the_slide(flavor):
    slide = slides()[2]
    raw = flavor in RAW
    x = slide if raw else AnnData(oracles.log_normalized(slide.X.toarray()))
    found = highly_variable_genes(
        x if raw else gene_moments(x),
        flavor,
        TOP,
        moments=gene_moments(x) if raw else None,
        inplace=False,
        span=0.7,
    )
    expected = our_table(x, flavor, TOP, span=0.7)
    np.testing.assert_allclose(found[SCORE[flavor]], expected[SCORE[flavor]], rtol=1e-9)
