"""Highly variable genes by normalised dispersion (`seurat`), against scanpy.

scanpy is given data normalised in double precision by the oracle, so that its own choice of
median (hvg.md A2.2) does not blur the comparison.
"""

import warnings

import numpy as np
import pytest
from anndata import AnnData
from scipy import sparse

import oracles
from oracles import at_any_workers
from oracles import gene_counts as counts
from stfast import highly_variable_genes

EXACT, SINGLE = 1e-10, 1e-6
SEURAT = ["means", "dispersions", "dispersions_norm"]


def table(x, flavor="pearson_residuals", n_top_genes=10, **options):
    """The table of all genes, the same at 1, 2 and 5 workers."""
    adata = x if isinstance(x, AnnData) else AnnData(x)
    return at_any_workers(
        lambda n: highly_variable_genes(
            adata, flavor, n_top_genes, inplace=False, workers=n, **options
        )
    )


def scanpy_seurat(x, base=None, **options):
    scanpy = pytest.importorskip("scanpy")
    adata = AnnData(x)
    if base is not None:
        adata.uns["log1p"] = {"base": base}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return scanpy.pp.highly_variable_genes(adata, flavor="seurat", inplace=False, **options)


def assert_close(found, expected, columns, rtol):
    for column in columns:
        np.testing.assert_allclose(
            found[column], expected[column], rtol=rtol, atol=rtol / 100, err_msg=column
        )


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("shape", [(300, 120), (60, 900)])
@pytest.mark.parametrize("n_bins", [20, 3])
def test_seurat_equals_scanpy(dtype, shape, n_bins):
    """Scanpy squares float32 in single precision; of the same values in double it does not."""
    x = sparse.csr_matrix(oracles.log_normalized(counts(*shape, depth=3)).astype(dtype))
    found = table(x, "seurat", None, n_bins=n_bins)
    expected = scanpy_seurat(x.astype(np.float64), n_bins=n_bins)
    assert list(found.columns) == [*SEURAT, "highly_variable"]
    assert_close(found, expected, SEURAT[:2], EXACT)
    # scanpy keeps the normalised dispersion in single precision.
    assert_close(found, expected, SEURAT[2:], SINGLE)
    np.testing.assert_array_equal(found["highly_variable"], expected["highly_variable"])


@pytest.mark.parametrize("n_top", [1, 17, 60])
def test_seurats_top_genes_equal_scanpys(n_top):
    x = sparse.csr_matrix(oracles.log_normalized(counts(400, 200, depth=2)))
    found, expected = table(x, "seurat", n_top), scanpy_seurat(x, n_top_genes=n_top)
    assert found["highly_variable"].sum() == n_top
    # scanpy's cutoff lets ties of the last gene in.
    assert not (found["highly_variable"] & ~expected["highly_variable"]).any()


@pytest.mark.parametrize(
    "cutoffs",
    [
        {},
        {"min_mean": 0.1, "max_mean": 1.0},
        {"min_disp": -1.0, "max_disp": 0.7},
        {"min_mean": 100.0},
        {"min_mean": -np.inf, "min_disp": -np.inf, "max_mean": np.inf},
    ],
)
def test_seurats_cutoffs_choose_what_scanpys_choose(cutoffs):
    x = sparse.csr_matrix(oracles.log_normalized(counts(400, 200, depth=2)))
    found, expected = table(x, "seurat", None, **cutoffs), scanpy_seurat(x, **cutoffs)
    np.testing.assert_array_equal(found["highly_variable"], expected["highly_variable"])


@pytest.mark.parametrize("base", [2, 10])
def test_seurat_knows_the_base_of_the_logarithm(base):
    x = sparse.csr_matrix(oracles.log_normalized(counts(depth=2)) / np.log(base))
    adata = AnnData(x, uns={"log1p": {"base": base}})
    assert_close(table(adata, "seurat", 9), scanpy_seurat(x, base), SEURAT, SINGLE)


def test_seurat_handles_genes_alone_in_their_bin():
    """One gene far above the others is alone in its bin: its normalised dispersion is 1."""
    raw = counts(200, 40, depth=0.5)
    raw[:, 7] = np.random.default_rng(0).poisson(5000, 200)
    x = sparse.csr_matrix(np.log1p(raw))
    found, expected = table(x, "seurat", 5), scanpy_seurat(x)
    assert found["dispersions_norm"].iloc[7] == 1
    assert_close(found, expected, SEURAT, SINGLE)


def test_seurat_from_raw_counts_equals_normalising_first():
    """With spots that have no counts: the median is over those that have some."""
    raw = counts(300, 90, depth=0.3)
    raw[::7] = 0
    found = table(sparse.csr_matrix(raw), "seurat", 20, normalize=True)
    expected = scanpy_seurat(sparse.csr_matrix(oracles.log_normalized(raw)), n_top_genes=20)
    assert_close(found, expected, SEURAT, SINGLE)
    assert_close(found, expected, SEURAT[:2], 1e-9)
    assert not (found["highly_variable"] & ~expected["highly_variable"]).any()


@pytest.mark.filterwarnings("ignore:n_top_genes")
def test_seurat_of_nothing_chooses_nothing():
    for x in (sparse.csr_matrix((5, 4)), np.zeros((5, 4))):
        found = table(x, "seurat", 2)
        assert not found["highly_variable"].any()
