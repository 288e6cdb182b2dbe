"""AnnData of squares into AnnData of bins or labels: what becomes of each of its parts."""

from typing import Any

import numpy as np
import pandas as pd
import polars as pl
from anndata import AnnData
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from stfast import _check, _core, _lazy, _spatial
from stfast._sums import Progress, sum_rows

Step = tuple[int, tuple[int, int]]
"""Squares along a side of a bin; row and column of the square at which bin (0, 0) starts."""

_OF_SQUARES = ("neighbors",)
"""Entries of ``uns`` that speak of ``obsp``, which has no meaning for bins."""


def assign(
    rows: NDArray[np.int64], cols: NDArray[np.int64], step: Step, threads: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Rows and columns of the bins, and the bin of each square."""
    factor = int(_check.integers([step[0]], "factor")[0])
    shifted = []
    for name, places, start in zip(("rows", "cols"), (rows, cols), step[1], strict=True):
        ends = (int(places.min()) - start, int(places.max()) - start) if len(places) else (0, 0)
        if not -(2**63) <= min(ends) <= max(ends) < 2**63:
            raise ValueError(f"origin: expected {name} less it to fit in 64 bits, got {start}")
        shifted.append(places - start if start else places)
    return _core.assign_bins(shifted[0], shifted[1], factor, threads)


def number_labels(
    labels: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Labels numbered in ascending order, −1 left as it is; and the label of each number."""
    if len(labels) and int(labels.min()) < -1:
        raise ValueError(f"labels: expected −1 (none) or more, got {int(labels.min())}")
    inside = labels >= 0
    numbers, groups = np.unique(labels[inside], return_inverse=True)
    numbered = np.full(len(labels), -1, np.int64)
    numbered[inside] = groups.ravel()
    return numbered, numbers


def bin_names(bin_size: float, rows: NDArray[np.int64], cols: NDArray[np.int64]) -> "pd.Index[str]":
    """Space Ranger's barcodes of bins, such as ``s_008um_00012_00034-1``."""
    return _names(f"s_{round(bin_size):03}um_{{}}_{{}}-1", rows, cols)


def _names(pattern: str, rows: NDArray[np.int64], cols: NDArray[np.int64]) -> "pd.Index[str]":
    places = pl.DataFrame({"row": rows, "col": cols}).select(pl.all().cast(pl.String).str.zfill(5))
    named = places.select(pl.format(pattern, "row", "col"))
    return _spatial.names(named.to_series().to_list())


def by_bins(
    adata: AnnData,
    asked: tuple[float | None, int | None, tuple[int, int]],
    threads: int,
    progress: Progress | None,
) -> AnnData:
    """Bins of a size in µm or of a number of squares a side."""
    adata = _lazy.tables(adata)
    bin_size, factor, origin = asked
    square = _square_um(adata)
    if factor is None:
        factor = _factor(adata, bin_size)
    factor = _check.at_least_one(factor, "factor")
    bin_size = square * factor if bin_size is None and square else bin_size
    rows, cols = _places(adata)
    bin_rows, bin_cols, groups = assign(rows, cols, (factor, origin), threads)
    pattern = "bin_{}_{}" if bin_size is None else f"s_{round(bin_size):03}um_{{}}_{{}}-1"
    obs = pd.DataFrame(
        {"array_row": bin_rows, "array_col": bin_cols}, index=_names(pattern, bin_rows, bin_cols)
    )
    binned = _summed(adata, groups, obs, threads, progress)
    if "spatial" in adata.obsm:
        start = np.array(origin[::-1])
        binned.obsm["spatial"] = _centers(
            _check.points(_spatial.full_centers(adata), 'obsm["spatial"]'),
            np.column_stack([cols, rows]),
            (np.column_stack([bin_cols, bin_rows]) + 0.5) * factor - 0.5 + start,
            groups,
        )
    if "spatial" in adata.uns:
        binned.uns["spatial"] = _scaled_library(adata, bin_size, factor)
    shift = list(origin) if any(origin) else None
    _spatial.stamp(binned, "aggregate_bins", bin_size=bin_size, factor=factor, origin=shift)
    return binned


def by_labels(
    adata: AnnData, labels: ArrayLike | str, threads: int, progress: Progress | None
) -> AnnData:
    """Cells or regions."""
    adata = _lazy.tables(adata)
    column = labels if isinstance(labels, str) else None
    if column is not None and column not in adata.obs:
        raise ValueError(f"labels: expected a column of obs, got {column!r}")
    values = labels if column is None else adata.obs[column]
    groups, numbers = number_labels(_check.integers(values, "labels", adata.n_obs))
    names = _spatial.names([str(number) for number in numbers.tolist()])
    obs = pd.DataFrame({"label": numbers}, index=names)
    summed = _summed(adata, groups, obs, threads, progress)
    places = [name for name in ("array_row", "array_col") if name in adata.obs]
    means = _means(adata.obs[places].to_numpy(np.float64), groups, len(numbers))
    for name, mean in zip(places, means.T, strict=True):
        summed.obs[name] = mean
    if "spatial" in adata.obsm:
        summed.obsm["spatial"] = _means(_spatial.full_centers(adata), groups, len(numbers))
    if "spatial" in adata.uns:
        summed.uns["spatial"] = _library_of_labels(adata, groups)
    _spatial.stamp(summed, "aggregate_bins", labels=column or "an array")
    return summed


def _summed(
    adata: AnnData,
    groups: NDArray[np.int64],
    obs: pd.DataFrame,
    threads: int,
    progress: Progress | None,
) -> AnnData:
    """All parts of AnnData that do not depend on where groups lie."""
    n = len(obs)

    def total(matrix: Any, report: Progress | None = None) -> sparse.csr_matrix:
        return sum_rows(matrix, groups, n, threads, report)

    squares = groups >= 0
    for name in ("in_picture", "in_tissue"):
        if name in adata.obs:
            yes = _spatial.flags(adata.obs, name)[squares] != 0
            any_square = np.bincount(groups[squares], weights=yes, minlength=n) > 0
            kept = any_square if name == "in_picture" else any_square.astype(np.int64)
            obs.insert(0, name, kept)
    obs["n_squares"] = np.bincount(groups[squares], minlength=n)
    out = AnnData(
        X=None if adata.X is None else total(adata.X, progress),
        obs=obs,
        var=adata.var.copy(),
        layers={name: total(layer) for name, layer in _spatial.layers(adata).items()},
        varm=_lazy.in_memory(dict(adata.varm)),
        uns={key: value for key, value in adata.uns.items() if key not in (*_OF_SQUARES, "stfast")},
    )
    out.uns["stfast"] = dict(adata.uns.get("stfast", {}))
    for name, pairs in adata.varp.items():
        out.varp[name] = _lazy.in_memory(pairs)
    if adata.raw is not None:
        whole = AnnData(X=total(adata.raw.X), obs=obs[[]], var=adata.raw.var.copy())
        out.raw = whole
    for name, values in adata.obsm.items():
        held = None if name == "spatial" else _lazy.in_memory(values)
        mean = None if held is None else _mean_of(held, groups, n, obs.index)
        if mean is not None:
            out.obsm[name] = mean
    return out


def _places(adata: AnnData) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    missing = [name for name in ("array_row", "array_col") if name not in adata.obs]
    if missing:
        raise ValueError(f"obs: expected array_row and array_col, got no {' and '.join(missing)}")
    rows = _check.integers(adata.obs["array_row"], "array_row")
    return rows, _check.integers(adata.obs["array_col"], "array_col")


def _square_um(adata: AnnData) -> float | None:
    """Side of a square in µm, where the library says it."""
    if len(adata.uns.get("spatial", {})) != 1:
        return None
    square = _spatial.library(adata)[1].get("scalefactors", {}).get("bin_size_um")
    return None if square is None else float(square)


def _factor(adata: AnnData, bin_size: float | None) -> int:
    square = _spatial.scalefactor(adata, "bin_size_um")
    wanted = _check.positive(bin_size, "bin_size", "µm")
    factor = round(wanted / square)
    if factor < 1 or abs(factor * square - wanted) > 1e-6 * square:
        raise ValueError(f"bin_size: expected a multiple of {square:g} µm, got {wanted:g} µm")
    return factor


def _mean_of(values: Any, groups: NDArray[np.int64], n: int, names: pd.Index) -> Any:
    """Averages over the squares of each group; ``None`` of what are no numbers."""
    if isinstance(values, pd.DataFrame):
        table = values.select_dtypes("number")
        means = _means(table.to_numpy(np.float64, na_value=np.nan), groups, n)
        return pd.DataFrame(means, columns=table.columns, index=names) if table.shape[1] else None
    if type(values).__module__.startswith("awkward"):
        return None  # lists of any length, which numpy may refuse to look at
    if sparse.issparse(values):
        return _sparse_means(values, groups, n)
    array = np.asarray(values)
    if array.dtype.kind not in "iufb":
        return None
    flat = array.reshape(len(array), -1)
    return _means(flat.astype(np.float64), groups, n).reshape(n, *array.shape[1:])


def _sparse_means(values: Any, groups: NDArray[np.int64], n: int) -> sparse.csr_matrix | None:
    if values.dtype.kind not in "iufb":
        return None
    numbers = values.astype(_check.scipy_dtype(values.dtype), copy=False)
    totals: Any = _indicator(groups, n) @ numbers
    return sparse.csr_matrix(totals.multiply(1 / _sizes(groups, n)[:, None]))


def _means(values: NDArray[np.float64], groups: NDArray[np.int64], n: int) -> NDArray[np.float64]:
    means: NDArray[np.float64] = (_indicator(groups, n) @ values) / _sizes(groups, n)[:, None]
    return means


def _indicator(groups: NDArray[np.int64], n: int) -> sparse.csr_matrix:
    """Groups × squares of ones."""
    squares = np.flatnonzero(groups >= 0)
    places = (groups[squares], squares)
    return sparse.csr_matrix((np.ones(len(squares)), places), shape=(n, len(groups)))


def _sizes(groups: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    return np.bincount(groups[groups >= 0], minlength=n)


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


def _scaled_library(adata: AnnData, bin_size: float | None, factor: int) -> dict[str, Any]:
    if len(adata.uns["spatial"]) != 1:
        return dict(adata.uns["spatial"])
    name, contents = _spatial.library(adata)
    scaled = {key: value for key, value in contents.items() if key != "scalefactors"}
    factors = dict(contents.get("scalefactors", {}))
    if bin_size is not None:
        factors["bin_size_um"] = float(bin_size)
    if "spot_diameter_fullres" in factors:
        factors["spot_diameter_fullres"] *= factor
    return {name: scaled | {"scalefactors": factors}}


def _library_of_labels(adata: AnnData, groups: NDArray[np.int64]) -> dict[str, Any]:
    """A label's diameter is that of a disc of the mean number of squares; it has no bin size."""
    if len(adata.uns["spatial"]) != 1:
        return dict(adata.uns["spatial"])
    name, contents = _spatial.library(adata)
    scaled = {key: value for key, value in contents.items() if key != "scalefactors"}
    factors = dict(contents.get("scalefactors", {}))
    factors.pop("bin_size_um", None)
    inside = groups[groups >= 0]
    if "spot_diameter_fullres" in factors and len(inside):
        squares = len(inside) / len(np.unique(inside))
        factors["spot_diameter_fullres"] *= float(2 * np.sqrt(squares / np.pi))
    return {name: scaled | {"scalefactors": factors}}
