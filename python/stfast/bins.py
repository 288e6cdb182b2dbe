"""Squares summed into bins, or into the cells and regions that labels tell.

Space Ranger's rule: bin = (row // factor, col // factor), counts are summed,
partial bins at the edge are kept, and a bin is in tissue if any of its squares
is. Sums are exact: integers are added in a wider type and never wrap.
"""

from typing import Any, NamedTuple, overload

import numpy as np
from anndata import AnnData
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from stfast import _aggregate, _check, _lazy
from stfast._aggregate import bin_names, number_labels
from stfast._sums import Progress, sum_rows

__all__ = ["Bins", "Labelled", "aggregate_bins", "bin_names", "number_labels"]

Matrix = ArrayLike | sparse.sparray | sparse.spmatrix


class Bins(NamedTuple):
    """Sums of squares.

    Attributes
    ----------
    matrix
        Bins × genes, CSR, canonical: sorted, no duplicates, no zeros.
    rows, cols
        Position of each bin in the grid of bins, int64; sorted by row, then column.
    """

    matrix: sparse.csr_matrix
    rows: NDArray[np.int64]
    cols: NDArray[np.int64]


class Labelled(NamedTuple):
    """Sums of the squares of each label.

    Attributes
    ----------
    matrix
        Labels × genes, CSR, canonical: sorted, no duplicates, no zeros.
    labels
        Label of each row, int64, ascending.
    """

    matrix: sparse.csr_matrix
    labels: NDArray[np.int64]


@overload
def aggregate_bins(
    data: Matrix,
    *,
    rows: ArrayLike,
    cols: ArrayLike,
    factor: int,
    origin: tuple[int, int] = (0, 0),
    workers: int | None = None,
    progress: Progress | None = None,
) -> Bins: ...


@overload
def aggregate_bins(
    data: Matrix,
    *,
    labels: ArrayLike,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Labelled: ...


@overload
def aggregate_bins(
    data: AnnData,
    bin_size: float | None = None,
    *,
    factor: int | None = None,
    origin: tuple[int, int] = (0, 0),
    labels: ArrayLike | str | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> AnnData: ...


def aggregate_bins(
    data: Any,
    bin_size: float | None = None,
    *,
    rows: ArrayLike | None = None,
    cols: ArrayLike | None = None,
    factor: int | None = None,
    origin: tuple[int, int] = (0, 0),
    labels: ArrayLike | str | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> AnnData | Bins | Labelled:
    """Sum the squares of a grid into bins of ``factor`` × ``factor`` squares, or by labels.

    Parameters
    ----------
    data
        AnnData of squares × genes with ``array_row`` and ``array_col`` in ``obs``, in
        memory, backed by a file, or lazy (``read_lazy``); or a matrix of squares × genes:
        int32, int64, float32 or float64, CSR with 32- or 64-bit indices; other kinds of
        numbers and of matrices, dask's too, are converted.
    bin_size
        With AnnData: side of a bin in µm, a multiple of the side of a square, which
        the library's scale factors tell (``bin_size_um``).
    rows, cols
        With a matrix: position of each square in the grid, whole numbers, in any order.
    factor
        Squares along a side of a bin, instead of ``bin_size``.
    origin
        Row and column of the square at which bin (0, 0) starts.
    labels
        Instead of bins: the cell or region of each square, one whole number a square,
        −1 for none; with AnnData also the name of a column in ``obs``.
    workers
        Threads; ``None``: ``$STFAST_WORKERS``, else the CPUs of this process.
        The answer does not depend on it.
    progress
        Called now and then with the number of bins done.

    Returns
    -------
    AnnData, Bins or Labelled
        :class:`Bins` or :class:`Labelled` for a matrix; AnnData for AnnData, with

        - ``X``, ``layers`` and ``raw`` summed; int32 sums that do not fit become int64,
          narrower integers int32;
        - ``var``, ``varm``, ``varp`` and ``uns`` as they were, but for scale factors,
          which become those of the bins;
        - ``obs``: ``in_tissue`` and ``in_picture`` (any square), ``n_squares``,
          ``array_row``, ``array_col`` (of labels: the mean), names such as
          ``s_008um_00012_00034-1`` (of labels: the label, also as ``label``); other
          columns have no sum and are left out, as is ``obsp``;
        - ``obsm["spatial"]``: the centre of the whole bin (of labels: the mean of its
          squares), px; numbers elsewhere in ``obsm`` averaged over squares.

    Raises
    ------
    ValueError
        Not a multiple, positions that do not match the matrix or are missing.
    IndexError
        A column index outside the matrix.
    OverflowError
        A sum beyond int64.

    Notes
    -----
    The rule is Space Ranger's for square bins (its ``binned_outputs``). A backed matrix
    in CSR is summed while it is read, and a dask array while it is computed, a few
    million counts at a time.
    """
    threads = _check.workers(workers)
    if isinstance(data, AnnData):
        if (
            rows is not None
            or cols is not None
            or sum(x is not None for x in (bin_size, factor, labels)) != 1
        ):
            raise ValueError(
                "aggregate_bins: expected bin_size=, factor= or labels= and no others with AnnData"
            )
        if labels is not None:
            return _aggregate.by_labels(data, labels, threads, progress)
        step = (bin_size, factor, _origin(origin))
        return _aggregate.by_bins(data, step, threads, progress)
    if labels is not None and (rows, cols, factor, bin_size) == (None,) * 4:
        return _labelled(data, labels, threads, progress)
    if rows is None or cols is None or factor is None or bin_size is not None:
        raise ValueError("aggregate_bins: expected rows=, cols= and factor= with a matrix")
    return _binned(data, (rows, cols), (factor, _origin(origin)), threads, progress)


def _binned(
    data: Any,
    places: tuple[ArrayLike, ArrayLike],
    step: tuple[int, tuple[int, int]],
    threads: int,
    progress: Progress | None,
) -> Bins:
    matrix, n = _matrix(data)
    named = zip(places, ("rows", "cols"), strict=True)
    rows, cols = (_check.integers(place, name, n) for place, name in named)
    rows, cols, bin_of_square = _aggregate.assign(rows, cols, step, threads)
    return Bins(sum_rows(matrix, bin_of_square, len(rows), threads, progress), rows, cols)


def _labelled(
    data: Any, labels: ArrayLike | str, threads: int, progress: Progress | None
) -> Labelled:
    matrix, n = _matrix(data)
    groups, numbers = number_labels(_check.integers(labels, "labels", n))
    return Labelled(sum_rows(matrix, groups, len(numbers), threads, progress), numbers)


def _matrix(data: Any) -> tuple[Any, int]:
    """The matrix and its number of rows."""
    if _lazy.is_lazy(data):
        return data, _lazy.Bands(data, "matrix").shape[0]
    matrix = data if hasattr(data, "shape") else np.asarray(data)
    if len(matrix.shape) != 2:
        raise ValueError(f"matrix: expected 2 dimensions, got {len(matrix.shape)}")
    return matrix, matrix.shape[0]


def _origin(origin: tuple[int, int]) -> tuple[int, int]:
    row, col = _check.integers(origin, "origin", 2).tolist()
    return row, col
