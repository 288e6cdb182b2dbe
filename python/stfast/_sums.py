"""Sums of the rows of each group, wherever the matrix lies.

What is in memory is summed at once, and CSR in an HDF5 file while it is read, both by the
native module. A dask array comes in blocks of rows, and the sums of groups that are still
open go before the next block as if they were rows: additions keep their order, and with it
every bit of the answer, and no more is held than a block and what is open. (As in
``stream.rs``, which does the same of a file.)
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from stfast import _check, _core, _lazy
from stfast._stored import Arrays, csr, stored_csr
from stfast.h5 import Dataset

if TYPE_CHECKING:
    from stfast.hvg.source import Source

Progress = Callable[[int], object]
Groups = NDArray[np.int64]


def sum_rows(
    matrix: Any, groups: Groups, n_groups: int, threads: int, progress: Progress | None = None
) -> sparse.csr_matrix:
    """Sums of the rows of each group of a matrix in memory, of dask, or of backed AnnData."""
    if _lazy.is_lazy(matrix):
        from stfast.hvg.source import of_matrix

        source = of_matrix(matrix, name="matrix")
        return _of_blocks(source, matrix.dtype, groups, (n_groups, threads, progress))
    if isinstance(matrix, h5py.Dataset):
        matrix = Dataset(matrix, threads).read()
    group = getattr(matrix, "group", None)
    if isinstance(group, h5py.Group):
        return _of_file(matrix, group, groups, (n_groups, threads, progress))
    return _of_memory(_check.matrix(matrix), groups, (n_groups, threads, progress))


How = tuple[int, int, Progress | None]
"""Number of groups, threads, and whom to tell of groups that are done."""


def _of_memory(matrix: _check.Matrix, groups: Groups, how: How) -> sparse.csr_matrix:
    """int32 sums that do not fit become int64."""
    n_groups, threads, progress = how
    try:
        arrays = _core.sum_groups(matrix, groups, n_groups, threads, progress)
    except OverflowError:
        if matrix[0].dtype != np.int32:
            raise
        wide = (matrix[0].astype(np.int64), *matrix[1:])
        arrays = _core.sum_groups(wide, groups, n_groups, threads, progress)
    return csr(arrays, n_groups, matrix[3])


def _of_file(matrix: Any, group: h5py.Group, groups: Groups, how: How) -> sparse.csr_matrix:
    n_groups, threads, progress = how
    shape = (int(matrix.shape[0]), int(matrix.shape[1]))
    stored = stored_csr(group, shape, threads)
    if matrix.format != "csr":
        arrays = (stored.data.read(), stored.indices.read(), stored.indptr)
        return _of_memory(_check.matrix(sparse.csc_matrix(arrays, shape=shape)), groups, how)
    kind = _check.count_dtype(stored.data.stored, "matrix")
    if kind.kind == "f":
        dtypes: tuple[str, ...] = ("float64",)
    else:
        dtypes = ("int32", "int64") if kind == np.int32 else ("int64",)
    found = stored.sums(groups, n_groups, dtypes=dtypes, progress=progress)
    return _canonical(_narrowed(found, kind), n_groups, shape[1])


def _narrowed(arrays: Arrays, kind: np.dtype[Any]) -> Arrays:
    """Sums in the dtype of what was summed, int64 where int32 does not hold them."""
    data, bounds = arrays[0], np.iinfo(np.int32)
    beyond = len(data) and not (bounds.min <= data.min() and data.max() <= bounds.max)
    if kind.kind == "f" or (kind == np.int32 and not beyond):
        with np.errstate(over="ignore"):
            data = data.astype(kind, copy=False)
    return data, *arrays[1:]


def _canonical(arrays: Arrays, n_groups: int, n_cols: int) -> sparse.csr_matrix:
    sums = csr(arrays, n_groups, n_cols)
    if not sums.data.all():  # float32 knows no 1e-60
        sums.eliminate_zeros()
    return sums


def _of_blocks(
    source: "Source", dtype: np.dtype[Any], groups: Groups, how: How
) -> sparse.csr_matrix:
    n_groups, threads, progress = how
    n_cols, kind = len(source.genes), _check.count_dtype(dtype, source.name)
    to_come = np.minimum.accumulate(np.where(groups < 0, n_groups, groups)[::-1])[::-1]
    to_come = np.append(to_come, n_groups)
    finished, rows, done, first = [_no_rows(kind)], [_no_rows(kind)], 0, 0
    for part, block in source.blocks():
        rows.append(block[:3])
        kind = np.result_type(kind, block[0].dtype)
        # A block that is less than what is open waits: else that were summed again each time.
        if part.stop < source.n and _length(rows[1:]) < 2 * _length(rows[:1]):
            continue
        n_open = len(rows[0][2]) - 1
        numbers = np.concatenate(
            [np.arange(n_open), np.maximum(groups[first : part.stop] - done, -1)]
        )
        high = int(numbers.max(initial=-1)) + 1
        wide = np.dtype(np.float64 if kind.kind == "f" else np.int64)
        stacked = _stacked(rows, wide, np.dtype(np.int64))
        sums = _core.sum_groups((*stacked, n_cols), numbers, high, threads)
        ready = min(int(to_come[part.stop]) - done, high)
        finished.append(_narrowed(_rows_of(sums, 0, ready), kind))
        rows, done, first = [_rows_of(sums, ready, high)], done + ready, part.stop
        if progress is not None:
            progress(done)
    dtype = np.result_type(*(data.dtype for data, _, _ in finished))
    return _canonical(_stacked(finished, dtype, np.dtype(np.int32)), n_groups, n_cols)


def _no_rows(kind: np.dtype[Any]) -> Arrays:
    return np.zeros(0, kind), np.zeros(0, np.int32), np.zeros(1, np.int64)


def _length(parts: list[Arrays]) -> int:
    return sum(len(data) for data, _, _ in parts)


def _stacked(parts: list[Arrays], dtype: np.dtype[Any], index: np.dtype[Any]) -> Any:
    """Rows below each other."""
    ends = np.cumsum([len(data) for data, _, _ in parts])
    starts = [
        indptr[1:] + (end - len(data)) for (data, _, indptr), end in zip(parts, ends, strict=True)
    ]
    return (
        np.concatenate([data for data, _, _ in parts], dtype=dtype),
        np.concatenate([indices for _, indices, _ in parts], dtype=index),
        np.concatenate([[0], *starts], dtype=np.int64),
    )


def _rows_of(sums: Arrays, first: int, last: int) -> Arrays:
    data, indices, indptr = sums
    start, end = int(indptr[first]), int(indptr[last])
    return data[start:end].copy(), indices[start:end].copy(), indptr[first : last + 1] - start
