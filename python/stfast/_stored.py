"""Sparse matrices that stay in their HDF5 file while their rows are summed."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from stfast import _core
from stfast._core import FormatError
from stfast.h5 import Dataset

STRETCH = 1 << 20
"""Values a thread has when a stretch is read, summed and forgotten; two threads at least."""

Arrays = tuple[NDArray[Any], NDArray[np.int32], NDArray[np.int64]]


@dataclass(frozen=True)
class Stored:
    """A CSR matrix in an open file.

    Attributes
    ----------
    data, indices
        Values and columns, in the file.
    indptr
        Where each row starts in them, int64.
    counts
        Whether a value below zero is a fault of the file.
    """

    data: Dataset
    indices: Dataset
    indptr: NDArray[np.int64]
    shape: tuple[int, int]
    counts: bool = False

    def sums(
        self,
        groups: NDArray[np.int64],
        n_groups: int,
        *,
        dtypes: tuple[str, ...],
        progress: Callable[[int], object] | None = None,
    ) -> Arrays:
        """Sums of the rows of each group in the first of ``dtypes`` that holds them."""
        data, indices = self.data.complete, self.indices.complete
        if data is None or indices is None or self.data.stored.str[1:] == "f2":
            return self._sums_in_memory(groups, n_groups, dtypes, progress)
        matrix = (
            data,
            indices,
            self.indptr,
            self.shape[1],
            self.counts,
            STRETCH * max(self.data.threads, 2),
        )
        threads = self.data.threads
        for dtype in dtypes[:-1]:
            try:
                return _core.sum_stored(matrix, groups, n_groups, dtype, threads, progress)
            except OverflowError:
                continue
        return _core.sum_stored(matrix, groups, n_groups, dtypes[-1], threads, progress)

    def _sums_in_memory(
        self, groups: NDArray[np.int64], n_groups: int, dtypes: tuple[str, ...], progress: Any
    ) -> Arrays:
        """The same where h5py or a fill value is needed, and of halves."""
        indices = self.indices.read(np.int64)
        for dtype in dtypes:
            try:
                matrix = (self.data.read(dtype), indices, self.indptr, self.shape[1])
                return _core.sum_groups(matrix, groups, n_groups, self.data.threads, progress)
            except OverflowError:
                if dtype == dtypes[-1]:
                    raise
        raise AssertionError("unreachable: the last of dtypes returns or raises")


def stored_csr(group: h5py.Group, shape: tuple[int, int], threads: int) -> Stored:
    """The CSR matrix of an h5ad file's group."""
    data, indices, indptr = (Dataset(group[n], threads) for n in ("data", "indices", "indptr"))
    return Stored(data, indices, indptr.read(np.int64), shape)


def csr(sums: Arrays, n_groups: int, n_cols: int) -> sparse.csr_matrix:
    """Sums as scipy has them."""
    summed = sparse.csr_matrix(sums, shape=(n_groups, n_cols))
    summed.has_canonical_format = True
    return summed


def check_indptr(indptr: NDArray[np.int64], n: int, where: object) -> None:
    """Raise unless the starts of rows rise from 0 to ``n``."""
    if indptr[0] != 0 or indptr[-1] != n or bool((indptr[1:] < indptr[:-1]).any()):
        raise FormatError(
            f"{where}: expected a consistent sparse matrix, "
            f"got indptr that does not rise from 0 to the number of values"
        )
