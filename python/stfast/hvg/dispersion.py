"""Normalised dispersions: scanpy's ``seurat`` and ``cell_ranger``.

The steps and the odd corners (a gene alone in its bin gets 1, bins of percentiles
start with one twice as wide) are scanpy's, so that its numbers come out.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stfast.hvg.passes import Floats

_MAD_OF_NORMAL = 0.6744897501960817
"""Median absolute deviation of a standard normal: its third quartile."""


_ROUNDING = 1e-13
"""Of an average: genes that are alike differ by less."""


class Cutoffs(NamedTuple):
    """Bounds of what is chosen where no number of genes is asked for; all excluded."""

    min_mean: float
    max_mean: float
    min_disp: float
    max_disp: float

    def within(self, mean: Floats, score: Floats) -> NDArray[np.bool_]:
        """Which genes lie between; a gene without a score has 0."""
        score = np.nan_to_num(score)
        inside: NDArray[np.bool_] = (mean > self.min_mean) & (mean < self.max_mean)
        return inside & (score > self.min_disp) & (score < self.max_disp)


def seurat(mean: Floats, variance: Floats, n_bins: int) -> pd.DataFrame:
    """Log dispersion, standardised in bins of equal width in log mean expression."""
    mean = np.where(mean == 0, 1e-12, mean)
    dispersion = variance / mean
    dispersion[dispersion == 0] = np.nan
    dispersion, mean = np.log(dispersion), np.log1p(mean)
    bins = pd.cut(pd.Series(mean), bins=n_bins) if len(mean) else mean
    grouped = pd.Series(dispersion).groupby(bins, observed=True)
    average, deviation = grouped.transform("mean"), grouped.transform("std")
    alone = deviation.isna()
    # A gene alone in its bin gets 1: divided by itself instead of by no spread.
    deviation, average = deviation.where(~alone, average), average.where(~alone, 0.0)
    return _table(mean, dispersion, _over(dispersion, average, deviation))


def cell_ranger(mean: Floats, variance: Floats) -> pd.DataFrame:
    """Dispersion less its bin's median, over its median absolute deviation.

    Bins lie between percentiles 10, 15, … 100 of the mean. Percentiles that coincide,
    as they do where many genes are unexpressed, bound one bin.
    """
    mean = np.where(mean == 0, 1e-12, mean)
    dispersion = variance / mean
    if not len(mean):
        return _table(mean, dispersion, dispersion)
    percentiles = np.percentile(mean, np.arange(10, 105, 5))
    edges = np.unique([-np.inf, *percentiles, np.inf])
    bins = pd.cut(pd.Series(mean), bins=edges.tolist())
    median = _medians(dispersion, bins)
    deviation = _medians(np.abs(dispersion - median), bins) / _MAD_OF_NORMAL
    return _table(mean, dispersion, _over(dispersion, median, deviation))


def _over(dispersion: Floats, average: Any, deviation: Any) -> Floats:
    """Distance from a bin's average in its deviations; differences of rounding are none."""
    average, deviation = np.asarray(average), np.asarray(deviation)
    rounding = _ROUNDING * np.abs(average)
    away = dispersion - average
    away, deviation = (np.where(np.abs(v) <= rounding, 0, v) for v in (away, deviation))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(away / deviation, dtype=np.float64)


def _medians(values: Floats, bins: "pd.Series[Any]") -> Floats:
    grouped = pd.Series(values).groupby(bins, observed=True)
    return np.asarray(grouped.transform("median"), dtype=np.float64)


def _table(mean: Floats, dispersion: Floats, norm: Floats) -> pd.DataFrame:
    return pd.DataFrame({"means": mean, "dispersions": dispersion, "dispersions_norm": norm})


def highest(score: Floats, n: int, *, with_ties: bool) -> NDArray[np.bool_]:
    """The genes of the ``n`` highest scores, in case of a tie the first.

    Genes without a score are not chosen. ``with_ties``: as scanpy, all those whose
    score equals the last one's too.
    """
    known = ~np.isnan(score)
    n = min(n, int(known.sum()))
    chosen = np.zeros(len(score), dtype=np.bool_)
    order = np.argsort(-np.where(known, score, -np.inf), kind="stable")
    if with_ties and n:
        chosen[known] = score[known] >= score[order[n - 1]]
    else:
        chosen[order[:n]] = True
    return chosen & known


def combine(
    tables: Sequence[pd.DataFrame], chosen: Sequence[NDArray[np.bool_]]
) -> tuple[pd.DataFrame, NDArray[np.int64]]:
    """Averages over batches of what is known, and in how many each gene was chosen."""
    averages = {}
    for name in tables[0]:
        values = np.stack([table[name].to_numpy() for table in tables])
        known = ~np.isnan(values)
        with np.errstate(invalid="ignore", divide="ignore"):
            averages[name] = np.where(known, values, 0).sum(axis=0) / known.sum(axis=0)
    return pd.DataFrame(averages), np.stack(chosen).sum(axis=0, dtype=np.int64)
