"""Squares summed into bins.

Space Ranger's rule: bin = (row // factor, col // factor), counts are summed,
partial bins at the edge are kept, and a bin is in tissue if any of its squares
is. Sums are exact: integers are added in a wider type and never wrap.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, overload

import numpy as np
import pandas as pd
import polars as pl
from anndata import AnnData
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from stfast import _check, _core, _spatial

Progress = Callable[[int], object]


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


@overload
def aggregate_bins(
    data: AnnData,
    bin_size: float,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
) -> AnnData: ...


@overload
def aggregate_bins(
    data: ArrayLike | sparse.sparray | sparse.spmatrix,
    *,
    rows: ArrayLike,
    cols: ArrayLike,
    factor: int,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Bins: ...


def aggregate_bins(
    data: Any,
    bin_size: float | None = None,
    *,
    rows: ArrayLike | None = None,
    cols: ArrayLike | None = None,
    factor: int | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> AnnData | Bins:
    """Sum the squares of a grid into bins of ``factor`` × ``factor`` squares.

    Parameters
    ----------
    data
        AnnData of a Visium HD slide (squares × genes, ``obs`` with ``array_row``
        and ``array_col``), or a matrix of squares × genes: int32, int64, float32
        or float64, CSR with 32- or 64-bit indices; other kinds are converted.
    bin_size
        With AnnData: side of a bin in µm, a multiple of the side of a square.
    rows, cols
        With a matrix: position of each square in the grid, whole numbers.
    factor
        With a matrix: squares along a side of a bin.
    workers
        Threads; ``None``: ``$STFAST_WORKERS``, else the CPUs of this process.
        The answer does not depend on it.
    progress
        Called now and then with the number of bins done.

    Returns
    -------
    AnnData or Bins
        AnnData for AnnData: summed ``X`` and layers, ``var`` unchanged, ``obs``
        with ``in_tissue`` (any square), ``array_row``, ``array_col`` and
        ``n_squares``, centres of the whole bins in ``obsm["spatial"]`` (px), scale
        factors multiplied; names ``s_008um_00012_00034-1``. :class:`Bins` for a
        matrix. int32 sums that do not fit become int64.

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
    The rule is Space Ranger's for square bins (its ``binned_outputs``).
    """
    threads = _check.workers(workers)
    if isinstance(data, AnnData):
        if bin_size is None or rows is not None or cols is not None or factor is not None:
            raise ValueError("aggregate_bins: expected bin_size= and no others with AnnData")
        return _aggregate_anndata(data, bin_size, threads, progress)
    if rows is None or cols is None or factor is None or bin_size is not None:
        raise ValueError("aggregate_bins: expected rows=, cols= and factor= with a matrix")
    matrix = _check.matrix(data)
    n = len(matrix[2]) - 1
    grid = _core.assign_bins(
        _check.integers(rows, "rows", n),
        _check.integers(cols, "cols", n),
        int(_check.integers([factor], "factor")[0]),
        threads,
    )
    return Bins(_sum(matrix, grid[2], len(grid[0]), threads, progress), grid[0], grid[1])


def bin_names(bin_size: float, rows: NDArray[np.int64], cols: NDArray[np.int64]) -> "pd.Index[str]":
    """Space Ranger's barcodes of bins, such as ``s_008um_00012_00034-1``."""
    places = pl.DataFrame({"row": rows, "col": cols}).select(pl.all().cast(pl.String).str.zfill(5))
    named = places.select(pl.format(f"s_{round(bin_size):03}um_{{}}_{{}}-1", "row", "col"))
    index: pd.Index[str] = pd.Index(named.to_series().to_list(), dtype=object)
    return index


def _sum(
    matrix: _check.Matrix,
    bin_of_square: NDArray[np.int64],
    n_bins: int,
    threads: int,
    progress: Progress | None = None,
) -> sparse.csr_matrix:
    try:
        sums = _core.sum_groups(matrix, bin_of_square, n_bins, threads, progress)
    except OverflowError:
        if matrix[0].dtype != np.int32:
            raise
        wide = (matrix[0].astype(np.int64), *matrix[1:])
        sums = _core.sum_groups(wide, bin_of_square, n_bins, threads, progress)
    summed = sparse.csr_matrix(sums, shape=(n_bins, matrix[3]))
    summed.has_canonical_format = True
    return summed


def _aggregate_anndata(
    adata: AnnData, bin_size: float, threads: int, progress: Progress | None
) -> AnnData:
    factor = _factor(adata, bin_size)
    missing = [name for name in ("array_row", "array_col") if name not in adata.obs]
    if missing:
        raise ValueError(f"obs: expected array_row and array_col, got no {' and '.join(missing)}")
    rows = _check.integers(adata.obs["array_row"].to_numpy(), "array_row")
    cols = _check.integers(adata.obs["array_col"].to_numpy(), "array_col")
    bin_rows, bin_cols, bin_of_square = _core.assign_bins(rows, cols, factor, threads)
    n_bins = len(bin_rows)

    def summed(matrix: Any, progress: Progress | None = None) -> sparse.csr_matrix:
        return _sum(_check.matrix(matrix), bin_of_square, n_bins, threads, progress)

    binned = AnnData(
        X=summed(adata.X, progress),
        obs=_obs(adata.obs, bin_size, bin_rows, bin_cols, bin_of_square),
        var=adata.var.copy(),
        uns={"spatial": _scaled_library(adata, bin_size, factor)},
        layers={name: summed(layer) for name, layer in adata.layers.items()},
    )
    if "spatial" in adata.obsm:
        binned.obsm["spatial"] = _centers(
            _check.points(_spatial.centers(adata), 'obsm["spatial"]'),
            np.column_stack([cols, rows]),
            (np.column_stack([bin_cols, bin_rows]) + 0.5) * factor - 0.5,
            bin_of_square,
        )
    _spatial.stamp(binned, "aggregate_bins", bin_size=bin_size, factor=factor)
    return binned


def _factor(adata: AnnData, bin_size: float) -> int:
    square = _spatial.scalefactor(adata, "bin_size_um")
    factor = round(_check.positive(bin_size, "bin_size", "µm") / square)
    if factor < 1 or abs(factor * square - bin_size) > 1e-6 * square:
        raise ValueError(f"bin_size: expected a multiple of {square:g} µm, got {bin_size:g} µm")
    return factor


def _obs(
    squares: pd.DataFrame,
    bin_size: float,
    rows: NDArray[np.int64],
    cols: NDArray[np.int64],
    bin_of_square: NDArray[np.int64],
) -> pd.DataFrame:
    n = len(rows)
    names = bin_names(bin_size, rows, cols)
    obs = pd.DataFrame({"array_row": rows, "array_col": cols}, index=names)
    if "in_tissue" in squares:
        tissue = squares["in_tissue"].to_numpy() != 0
        any_square = np.bincount(bin_of_square, weights=tissue, minlength=n) > 0
        obs.insert(0, "in_tissue", any_square.astype(np.int64))
    obs["n_squares"] = np.bincount(bin_of_square, minlength=n)
    return obs


def _centers(
    xy: NDArray[np.float64],
    at: NDArray[np.int64],
    bin_at: NDArray[np.floating],
    bin_of_square: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Pixel centre of each whole bin, from those of the squares it has.

    Each square's position is carried along the grid's linear map to its bin's
    centre, and the squares of a bin are averaged: exact for an affine grid, even
    where squares are missing, and local where the map is projective.
    """
    if not len(xy):
        return np.empty((0, 2))
    count = np.bincount(bin_of_square)[:, None]
    linear = _linear_map(at.astype(np.float64), xy)
    moved = xy + (bin_at[bin_of_square] - at) @ linear
    sums = [np.bincount(bin_of_square, weights=moved[:, axis]) for axis in (0, 1)]
    centers: NDArray[np.float64] = np.column_stack(sums) / count
    return centers


def _linear_map(at: NDArray[np.float64], xy: NDArray[np.float64]) -> NDArray[np.float64]:
    """Least-squares 2 × 2 map from steps of the grid to steps in pixels."""
    steps = np.linalg.lstsq(at - at.mean(axis=0), xy - xy.mean(axis=0), rcond=None)[0]
    return np.asarray(steps, dtype=np.float64)


def _scaled_library(adata: AnnData, bin_size: float, factor: int) -> dict[str, Any]:
    name, contents = _spatial.library(adata)
    scaled = {key: value for key, value in contents.items() if key != "scalefactors"}
    factors = dict(contents["scalefactors"])
    factors["bin_size_um"] = float(bin_size)
    if "spot_diameter_fullres" in factors:
        factors["spot_diameter_fullres"] *= factor
    return {name: scaled | {"scalefactors": factors}}
