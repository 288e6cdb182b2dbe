"""What the genes' flavors and recipes answer, by scanpy and by plain numpy.

scanpy is fed double precision, so that its own single-precision sums do not blur a
comparison; its table is put in the order of the genes, which it loses with batches.
"""

import warnings

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

from oracles import at_any_workers, gene_counts, log_normalized
from stfast import highly_variable_genes

FLAVORS = ("pearson_residuals", "seurat", "seurat_v3", "seurat_v3_paper", "cell_ranger")
RAW = ("pearson_residuals", "seurat_v3", "seurat_v3_paper")
SCORE = {
    "pearson_residuals": "residual_variances",
    "seurat": "dispersions_norm",
    "cell_ranger": "dispersions_norm",
    "seurat_v3": "variances_norm",
    "seurat_v3_paper": "variances_norm",
}


def heavy_tailed(n=300, genes=200, seed=0, umi=400.0):
    """Counts of genes over five decades; every third of the spots has genes of its own."""
    rng = np.random.default_rng(seed)
    rate = rng.lognormal(0, 2, genes)
    rate = rate / rate.sum() * umi * rng.gamma(3, 1 / 3, n)[:, None]
    for region in range(3):
        rate[region::3, region :: max(genes // 6, 3)] *= 6
    return rng.poisson(rate).astype(np.int32)


def tied(n=90, genes=180, seed=0):
    """Counts in which each gene is there three times over."""
    return np.tile(heavy_tailed(n, genes // 3, seed, umi=2000.0), (1, 3))


INPUTS = {
    "random": lambda: gene_counts(300, 120, 3, depth=3),
    "heavy": heavy_tailed,
    "tiny": lambda: gene_counts(12, 40, 5, depth=6),
    "tied": tied,
}


def adata_of(x, flavor, *, batches=0, sparse_as=sparse.csr_matrix):
    """Counts, or log1p data for the dispersions, in double precision, with batches a to c."""
    x = np.asarray(x, dtype=np.float64) if flavor in RAW else log_normalized(x)
    adata = AnnData(sparse_as(x))
    adata.var_names = [f"g{i:04}" for i in range(x.shape[1])]
    if batches:
        labels = np.random.default_rng(1).integers(0, batches, len(x))
        adata.obs["batch"] = pd.Categorical([f"b{i}" for i in labels])
    return adata


def scanpy_table(adata, flavor, n_top_genes=None, **options):
    """The table of scanpy, in the order of the genes."""
    scanpy = pytest.importorskip("scanpy")
    find = scanpy.pp.highly_variable_genes
    if flavor == "pearson_residuals":
        find = scanpy.experimental.pp.highly_variable_genes
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = find(adata, flavor=flavor, n_top_genes=n_top_genes, inplace=False, **options)
    return table.loc[adata.var_names]


def our_table(adata, flavor, n_top_genes=None, **options):
    """Our table, the same at 1, 2 and 5 workers."""
    return at_any_workers(
        lambda n: highly_variable_genes(
            adata, flavor, n_top_genes, inplace=False, workers=n, **options
        )
    )


def assert_values(found, expected, rtol, but=()):
    """Equal values in every column that both have and that numbers are in."""
    for name in found.columns.intersection(expected.columns).difference(list(but)):
        if found[name].dtype.kind == "f":
            np.testing.assert_allclose(
                found[name], expected[name], rtol=rtol, atol=rtol / 100, err_msg=name
            )


def assert_chosen_up_to_ties(found, expected, score, rtol=1e-9):
    """The same set, but for genes whose score is that of the worst that is chosen."""
    ours, theirs = found["highly_variable"].to_numpy(), expected["highly_variable"].to_numpy()
    worst = found[score].to_numpy()[ours].min()
    np.testing.assert_allclose(found[score].to_numpy()[ours != theirs], worst, rtol=rtol)


def standardized_variance(x, fitted):
    """seurat_v3's score of dense counts, given the fitted log10 variances."""
    x = np.asarray(x, dtype=np.float64)
    mean, sd = x.mean(axis=0), np.sqrt(10**fitted)
    clipped = np.minimum(x, mean + sd * np.sqrt(len(x)))
    return ((clipped - mean) ** 2).sum(axis=0) / (len(x) - 1) / sd**2
