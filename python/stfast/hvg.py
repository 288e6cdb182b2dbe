"""Highly variable genes.

The statistics are summed in Rust; choosing genes from a few numbers a gene is
done here, step by step as scanpy documents it. Ties are broken by the gene's
position, and exactly ``n_top_genes`` are chosen.
"""

import logging
import warnings
from typing import Literal, TypeAlias, get_args

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from scipy import sparse

from stfast import _check, _core

_log = logging.getLogger("stfast")

Flavor: TypeAlias = Literal["pearson_residuals", "seurat"]
Floats: TypeAlias = NDArray[np.float64]


def highly_variable_genes(
    adata: AnnData,
    flavor: Flavor = "pearson_residuals",
    n_top_genes: int | None = None,
    *,
    theta: float = 100.0,
    clip: float | None = None,
    min_mean: float = 0.0125,
    max_mean: float = 3.0,
    min_disp: float = 0.5,
    max_disp: float = np.inf,
    n_bins: int = 20,
    normalize: bool = False,
    layer: str | None = None,
    subset: bool = False,
    inplace: bool = True,
    workers: int | None = None,
) -> pd.DataFrame | None:
    """Mark the genes whose expression varies most.

    Parameters
    ----------
    adata
        Spots × genes.
    flavor
        ``"pearson_residuals"``: variance of analytic Pearson residuals, on raw
        counts (Lause et al. 2021). ``"seurat"``: normalised dispersion, on log1p
        data (Satija et al. 2015).
    n_top_genes
        How many genes; needed by Pearson residuals. ``None`` with ``"seurat"``:
        those between the four cutoffs.
    theta, clip
        Pearson: overdispersion, and the residual's bound (``None``: the square
        root of the number of spots).
    min_mean, max_mean, min_disp, max_disp
        Seurat: cutoffs, all excluded, when ``n_top_genes`` is ``None``.
    n_bins
        Seurat: bins of log mean expression that dispersion is normalised in.
    normalize
        Seurat: take raw counts, and normalise each spot to the median of spots
        with counts and log1p on the way, without a copy.
    layer
        Layer to use instead of ``X``.
    subset
        Keep only the chosen genes.
    inplace
        Write to ``adata.var`` and ``adata.uns["hvg"]``; else return the table.
    workers
        Threads; ``None``: ``$STFAST_WORKERS``, else the CPUs of this process.
        The answer does not depend on it.

    Returns
    -------
    DataFrame or None
        Genes × columns as scanpy names them: ``means``, ``highly_variable``, and
        ``variances``, ``residual_variances``, ``highly_variable_rank`` (Pearson)
        or ``dispersions``, ``dispersions_norm`` (Seurat).

    Raises
    ------
    ValueError
        Negative or infinite values, raw counts where log1p data are needed, no
        spots, ``n_top_genes`` missing or below 1.

    Notes
    -----
    Values equal scanpy's (1.11.5), summed in double precision in a fixed order.
    """
    n_top_genes = _how_many(flavor, n_top_genes)
    threads = _check.workers(workers)
    matrix = _expression(adata, layer, flavor, threads, normalize=normalize)
    if flavor == "pearson_residuals":
        table = _pearson(matrix, n_top_genes or 0, theta, clip, threads)
    else:
        base = adata.uns.get("log1p", {}).get("base")
        table = _dispersions(matrix, base, n_bins, threads, normalize=normalize)
        bounds = (min_mean, max_mean, min_disp, max_disp)
        table["highly_variable"] = _choose(table, n_top_genes, bounds)
    table.index = adata.var_names
    if not inplace:
        return table.loc[table["highly_variable"]] if subset else table
    _write(adata, table, flavor, layer)
    if subset:
        adata._inplace_subset_var(table["highly_variable"].to_numpy())
    return None


def _how_many(flavor: str, n_top_genes: int | None) -> int | None:
    if flavor not in get_args(Flavor):
        raise ValueError(f"flavor: expected one of {get_args(Flavor)}, got {flavor!r}")
    if n_top_genes is not None:
        return _check.at_least_one(n_top_genes, "n_top_genes")
    if flavor == "pearson_residuals":
        raise ValueError(f"n_top_genes: expected a number with {flavor}, got None")
    return None


def _write(adata: AnnData, table: pd.DataFrame, flavor: str, layer: str | None) -> None:
    for column in table:
        adata.var[column] = table[column]
    adata.uns["hvg"] = {"flavor": flavor}
    if flavor == "pearson_residuals":
        adata.uns["hvg"]["computed_on"] = layer or "adata.X"


def _expression(
    adata: AnnData, layer: str | None, flavor: str, threads: int, *, normalize: bool
) -> _check.Matrix:
    """Counts or log counts, each gene at most once in a row, of the kind the flavor needs."""
    if layer is not None and layer not in adata.layers:
        raise KeyError(f"layer: expected one of {list(adata.layers)}, got {layer!r}")
    matrix = _check.matrix(adata.X if layer is None else adata.layers[layer])
    if adata.n_obs < 2:
        raise ValueError(f"spots: expected at least 2, got {adata.n_obs}")
    matrix, fractional = _canonical(matrix, threads)
    raw_wanted = flavor == "pearson_residuals" or normalize
    if raw_wanted and fractional:
        message = f"{flavor}: expected raw counts, got values that are not whole"
        warnings.warn(message, UserWarning, stacklevel=3)
    if not raw_wanted and not fractional and len(matrix[0]):
        raise ValueError(
            f"{flavor}: expected log1p data, got whole numbers; give normalize=True for raw counts"
        )
    return matrix


def _pearson(
    matrix: _check.Matrix, n_top_genes: int, theta: float, clip: float | None, threads: int
) -> pd.DataFrame:
    n = len(matrix[2]) - 1
    bound = np.sqrt(n) if clip is None else float(clip)
    sums, squares, variance = _core.pearson(matrix, float(theta), float(bound), threads)
    rank = np.empty(len(variance), dtype=np.float32)
    rank[np.argsort(-variance, kind="stable")] = np.arange(len(variance))
    chosen = rank < n_top_genes
    return pd.DataFrame(
        {
            "means": sums / n,
            "variances": (squares - sums * (sums / n)) / (n - 1),
            "residual_variances": variance,
            "highly_variable_rank": np.where(chosen, rank, np.float32(np.nan)),
            "highly_variable": chosen,
        }
    )


def _dispersions(
    matrix: _check.Matrix, base: float | None, n_bins: int, threads: int, *, normalize: bool
) -> pd.DataFrame:
    """Dispersions normalised within bins of the mean (scanpy's ``seurat``)."""
    mean, variance = _expressed_moments(matrix, base, threads, normalize=normalize)
    mean[mean == 0] = 1e-12
    dispersion = variance / mean
    dispersion[dispersion == 0] = np.nan
    dispersion, mean = np.log(dispersion), np.log1p(mean)
    bins = pd.cut(pd.Series(mean), bins=n_bins) if len(mean) else mean
    grouped = pd.Series(dispersion).groupby(bins, observed=True)
    average, deviation = grouped.transform("mean"), grouped.transform("std")
    alone = deviation.isna()
    # A gene alone in its bin gets 1: divided by itself instead of by no spread.
    deviation, average = deviation.where(~alone, average), average.where(~alone, 0.0)
    return pd.DataFrame(
        {
            "means": mean,
            "dispersions": dispersion,
            "dispersions_norm": (dispersion - average) / deviation,
        }
    )


def _expressed_moments(
    matrix: _check.Matrix, base: float | None, threads: int, *, normalize: bool
) -> tuple[Floats, Floats]:
    """Mean and variance (one degree of freedom less) of expression, not of its log."""
    n = len(matrix[2]) - 1
    if normalize:
        sums, m2 = _core.moments(matrix, threads, factors=_to_median(matrix, threads))
    else:
        sums, m2 = _core.moments(matrix, threads, log_base=1.0 if base is None else np.log(base))
    return sums / n, m2 / (n - 1)


def _to_median(matrix: _check.Matrix, threads: int) -> Floats:
    """What to multiply each spot by to reach the median total of spots with counts."""
    totals = _core.row_sums(matrix, threads)
    counted = totals > 0
    if not counted.any():
        return np.ones_like(totals)
    factors: Floats = np.ones_like(totals)
    factors[counted] = np.median(totals[counted]) / totals[counted]
    return factors


def _choose(
    table: pd.DataFrame, n_top_genes: int | None, bounds: tuple[float, float, float, float]
) -> NDArray[np.bool_]:
    score = table["dispersions_norm"].to_numpy()
    if n_top_genes is None:
        min_mean, max_mean, min_disp, max_disp = bounds
        mean, score = table["means"].to_numpy(), np.nan_to_num(score)
        within = (mean > min_mean) & (mean < max_mean)
        chosen: NDArray[np.bool_] = within & (score > min_disp) & (score < max_disp)
        return chosen
    order = np.argsort(-np.nan_to_num(score, nan=-np.inf), kind="stable")
    chosen = np.zeros(len(score), dtype=np.bool_)
    chosen[order[:n_top_genes]] = True
    chosen[np.isnan(score)] = False
    return chosen


def _canonical(matrix: _check.Matrix, threads: int) -> tuple[_check.Matrix, bool]:
    """The matrix with each gene at most once in a row, and whether it has fractions.

    Raises where some value cannot be expression.
    """
    infinite, negative, fractional, disordered = _core.value_kinds(matrix, threads)
    if infinite or negative:
        found = "NaN or infinite values" if infinite else "negative values"
        raise ValueError(f"counts: expected finite values of at least 0, got {found}")
    if disordered:
        shape = (len(matrix[2]) - 1, matrix[3])
        ordered = sparse.csr_matrix(matrix[:3], shape=shape, copy=True)
        ordered.sum_duplicates()
        twice = len(matrix[0]) - ordered.nnz
        if twice:
            _log.warning("counts: expected a gene once in a spot, got %d repeated: added", twice)
        matrix = _check.matrix(ordered)
    return matrix, fractional
