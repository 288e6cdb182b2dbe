"""Ranks of genes in batches, and what is chosen from them: Pearson and seurat_v3.

A gene's rank is 0 for the most variable. Over batches it is the median of the ranks it
has where it is among the best; ties go to the gene that comes first.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stfast.hvg.passes import Floats


class Ranks(NamedTuple):
    """What became of each gene.

    Attributes
    ----------
    rank
        Median over the batches it is among the best of; NaN where there is none.
    n_batches
        Number of those batches.
    chosen
        Whether it is chosen.
    """

    rank: NDArray[np.float32]
    n_batches: NDArray[np.int64]
    chosen: NDArray[np.bool_]


def rank(scores: Floats, n_top: int, *, rank_first: bool, as_scanpy: bool) -> Ranks:
    """Rank genes by scores, batches × genes, and choose.

    Parameters
    ----------
    scores
        Higher is better.
    n_top
        How many genes to choose, and how many are among the best of a batch.
    rank_first
        Choose by median rank, then by number of batches; else the other way round.
    as_scanpy
        Order equal scores as numpy's quicksort happens to.
    """
    order = np.argsort(-scores, axis=1, kind="quicksort" if as_scanpy else "stable")
    ranks = np.empty(scores.shape, dtype=np.float32)
    np.put_along_axis(ranks, order, np.arange(scores.shape[1], dtype=np.float32)[None], axis=1)
    n_batches = (ranks < n_top).sum(axis=0, dtype=np.int64)
    ranks[ranks >= n_top] = np.nan
    median = _median(ranks, n_batches)
    keys = (-n_batches, median) if rank_first else (median, -n_batches)
    chosen = np.zeros(len(median), dtype=np.bool_)
    chosen[np.lexsort(keys)[:n_top]] = True
    return Ranks(median, n_batches, chosen)


def _median(ranks: NDArray[np.float32], known: NDArray[np.int64]) -> NDArray[np.float32]:
    """Median of each column's numbers; NaN where there is none."""
    ordered = np.sort(ranks, axis=0)  # NaN last
    middle = np.stack([np.maximum(known - 1, 0) // 2, np.minimum(known // 2, len(ranks) - 1)])
    median: NDArray[np.float32] = np.take_along_axis(ordered, middle, axis=0).mean(axis=0)
    return median
