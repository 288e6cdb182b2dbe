"""What the genes' flavors and recipes answer, by scanpy, by R and by plain numpy.

scanpy is fed double precision, so that its own single-precision sums do not blur a
comparison; its table is put in the order of the genes, which it loses with batches.
Where a version of scanpy is wrong, `expected_table` has what is right instead.
"""

import shutil
import subprocess
import warnings
from importlib import metadata

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from packaging.version import Version
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


def scanpy_is(version):
    """Whether the scanpy at hand is of this version or a later one."""
    return Version(metadata.version("scanpy")) >= Version(version)


def expected_table(adata, flavor, n_top_genes=None, **options):
    """Scanpy's table, with what is right where its numbers hang on the rounding of sums."""
    table, key = scanpy_table(adata, flavor, n_top_genes, **options), options.get("batch_key")
    if key is None:
        return table
    if flavor.startswith("seurat_v3") and splits_equal_means(adata, key):
        return table.assign(**of_batches_alone(adata, flavor, n_top_genes, **options))
    if flavor == "seurat":
        return table.assign(dispersions_norm=scores_without_alike(adata, key))
    return table


def parts_of(adata, key):
    return [adata[adata.obs[key] == name].copy() for name in sorted(adata.obs[key].unique())]


def splits_equal_means(adata, key):
    """Whether scanpy gives genes with equal totals in a batch means that differ.

    From 1.12.2 on, seurat_v3 takes a batch's means from `aggregate`, whose running means
    depend on the order of the spots in the last bit. loess cuts between *distinct* means.
    """
    if not scanpy_is("1.12.2"):
        return False
    scanpy = pytest.importorskip("scanpy")
    means = scanpy.get.aggregate(adata, key, ["mean", "var"]).layers["mean"]
    totals = [np.asarray(part.X.sum(axis=0)).ravel() for part in parts_of(adata, key)]
    return any(
        len(np.unique(mean)) > len(np.unique(total))
        for mean, total in zip(means, totals, strict=True)
    )


def of_batches_alone(adata, flavor, n_top, *, batch_key, **options):
    """seurat_v3's columns of batches, of scanpy's scores of each batch by itself."""
    parts = parts_of(adata, batch_key)
    scores = np.stack(
        [scanpy_table(part, flavor, n_top, **options)[SCORE[flavor]] for part in parts]
    )
    ranks = np.argsort(np.argsort(-scores, axis=1), axis=1).astype(np.float32)
    among = ranks < n_top
    n_batches = among.sum(axis=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # genes among the best of no batch
        median = np.nanmedian(np.where(among, ranks, np.float32("nan")), axis=0)
    keys = (-n_batches, median) if flavor == "seurat_v3" else (median, -n_batches)
    chosen = np.zeros(len(median), dtype=bool)
    chosen[np.lexsort(keys)[:n_top]] = True
    return {
        "highly_variable_nbatches": n_batches,
        "highly_variable_rank": median,
        "variances_norm": scores.mean(axis=0),
        "highly_variable": chosen,
    }


def scores_without_alike(adata, key):
    """Seurat's scores averaged over batches, but for those that are made of rounding.

    Copies of a gene that are alone in a bin differ by rounding alone: scanpy divides
    nothing by nothing, and gets ±infinity or anything else, as its threads cut the sums.
    """
    scores = []
    for part in parts_of(adata, key):
        expressed = np.asarray(part.X.sum(axis=0)).ravel() > 0
        table = scanpy_table(part[:, expressed].copy(), "seurat")
        bins = table["dispersions"].groupby(table["mean_bin"], observed=True)
        alike = bins.transform("max") - bins.transform("min") < 1e-12
        alike &= bins.transform("count") > 1
        known = table["dispersions_norm"].mask(alike)
        scores.append(known.reindex(adata.var_names, fill_value=0.0))
    return pd.concat(scores, axis=1).mean(axis=1)


_R = """
points <- matrix(readBin(commandArgs(TRUE)[1], "double", 1e7), ncol = 2)
control <- loess.control(statistics = "none")
model <- loess(points[, 2] ~ points[, 1], span = as.numeric(commandArgs(TRUE)[2]),
               degree = 2, control = control)
writeBin(as.vector(fitted(model)), commandArgs(TRUE)[3])
"""


def r_loess(x, y, span, folder):
    """Fitted values of R's own ``loess``, of degree 2."""
    if shutil.which("Rscript") is None:
        pytest.skip("no Rscript: R's loess is not at hand")
    points, fitted = folder / "points.bin", folder / "fitted.bin"
    np.concatenate([x, y]).astype("<f8").tofile(points)
    subprocess.run(
        ["Rscript", "--vanilla", "-e", _R, points, repr(span), fitted],
        check=True,
        capture_output=True,
    )
    return np.fromfile(fitted, "<f8")


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
