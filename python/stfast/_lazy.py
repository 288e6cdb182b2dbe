"""Matrices that are computed when they are asked for: dask arrays, and anndata's lazy tables.

``anndata.experimental.read_lazy`` gives dask arrays of dense or sparse chunks, and tables
that stay in their file. Tables are small and are loaded; of a matrix, rows are had a band
of chunks at a time, so that whoever sums rows holds a stretch of them and no more. dask is
not imported before there is an array of it.
"""

import sys
from collections.abc import Mapping
from importlib import import_module
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from stfast import _check
from stfast._warn import warn

MOST_KEPT = 1 << 29
"""Bytes of a band of chunks that are held, so that no chunk of it is computed again."""


def is_lazy(x: object) -> bool:
    """Whether ``x`` is a dask array."""
    dask_array = sys.modules.get("dask.array")
    return dask_array is not None and isinstance(x, dask_array.Array)


def tables(adata: Any) -> Any:
    """The same AnnData with all in memory but its matrices and pairs; itself if that is so."""
    if isinstance(adata.obs, pd.DataFrame) and isinstance(adata.var, pd.DataFrame):
        return adata
    loaded: Any = AnnData(
        X=adata.X,
        obs=in_memory(adata.obs),
        var=in_memory(adata.var),
        uns=in_memory(adata.uns),
        layers={name: layer for name, layer in adata.layers.items() if name is not None},
        obsm=in_memory(adata.obsm),
        varm=in_memory(adata.varm),
        obsp=dict(adata.obsp),
        varp=dict(adata.varp),
    )
    if adata.raw is not None:
        names = pd.DataFrame(index=loaded.obs_names)
        loaded.raw = AnnData(adata.raw.X, names, in_memory(adata.raw.var))
    return loaded


def in_memory(part: Any) -> Any:
    """A part of AnnData that is held as a whole, with all that it has computed and loaded."""
    if is_lazy(part):
        return part.compute()
    if isinstance(part, Mapping) and not hasattr(part, "to_memory"):
        return {name: in_memory(value) for name, value in part.items()}
    return part.to_memory() if hasattr(part, "to_memory") else part


def csr(x: Any, name: str = "matrix") -> sparse.csr_matrix:
    """All rows of a matrix of any kind; those of a dask array chunk by chunk."""
    if not is_lazy(x):
        return _check.csr(x, name)
    bands = Bands(x, name)
    return bands(0, bands.shape[0])


class Bands:
    """Rows of a dask array by range, in ascending order.

    A band is the chunks that have the same rows. The last band of a range is kept for the
    next one, so that each chunk is computed once in a pass wherever ranges end. Of bands
    that are too high to be kept, each range computes its own rows, and that is said.

    Attributes
    ----------
    shape
        Rows and columns.
    is_sparse
        Whether chunks store no zeros.
    """

    def __init__(self, array: Any, name: str) -> None:
        if array.ndim != 2:
            raise ValueError(f"{name}: expected 2 dimensions, got {array.ndim}")
        if np.isnan(array.shape).any() or any(np.isnan(sizes).any() for sizes in array.chunks):
            raise ValueError(
                f"{name}: expected a dask array of chunks of known sizes, got unknown ones: "
                "call its compute_chunk_sizes() first"
            )
        self._name, self._array = name, array
        self._dtype = _check.count_dtype(array.dtype, name)
        self.shape = int(array.shape[0]), int(array.shape[1])
        self.is_sparse = not isinstance(array._meta, np.ndarray)
        self._edges, self._sides = (np.cumsum([0, *sizes]).tolist() for sizes in array.chunks)
        self._kept: dict[int, sparse.csr_matrix] = {}
        self._told = False

    def __call__(self, first: int, last: int) -> sparse.csr_matrix:
        """Rows of a range."""
        low, high = np.searchsorted(self._edges, [first, last], side="left").tolist()
        low -= low == len(self._edges) or self._edges[low] > first
        bands = [at for at in range(low, high) if self._edges[at] < self._edges[at + 1]]
        if not bands or not self.shape[1]:
            return sparse.csr_matrix((last - first, self.shape[1]), dtype=self._dtype)
        self._keep(bands, first, last)
        parts = [self._cut(at, first, last) for at in bands]
        self._kept = {at: band for at, band in self._kept.items() if at == bands[-1]}
        return parts[0] if len(parts) == 1 else sparse.csr_matrix(sparse.vstack(parts, "csr"))

    def _keep(self, bands: list[int], first: int, last: int) -> None:
        """Compute bands that may be held, those of moderate height together."""
        missing = [at for at in bands if at not in self._kept]
        low = [at for at in missing if self._bytes_if_dense(at) <= MOST_KEPT]
        chunks = [[self._chunk(at, side) for side in self._columns()] for at in low]
        for at, parts in zip(low, _computed(chunks), strict=True):
            self._kept[at] = _side_by_side(parts)
        for at in missing:
            if at not in self._kept:
                self._keep_high(at, first, last)

    def _keep_high(self, at: int, first: int, last: int) -> None:
        """Compute a band chunk by chunk, and give up when it grows too large to be held."""
        start, end = self._edges[at : at + 2]
        all_asked_for = first <= start and end <= last
        parts: list[sparse.csr_matrix] = []
        if self._told and not all_asked_for:
            return
        for side in self._columns():
            parts.extend(_computed([self._chunk(at, side)]))
            held = sum(part.data.nbytes + part.indices.nbytes for part in parts)
            if held > MOST_KEPT and not all_asked_for:
                self._tell(end - start)
                return
        self._kept[at] = _side_by_side(parts)

    def _tell(self, height: int) -> None:
        self._told = True
        warn(
            f"{self._name}: chunks of {height} rows are too large to be held side by side and "
            "are computed for each stretch of rows: give fewer rows a chunk, as by "
            'rechunk({0: "auto", 1: -1})'
        )

    def _cut(self, at: int, first: int, last: int) -> sparse.csr_matrix:
        """What a band has of a range of rows."""
        start, end = self._edges[at : at + 2]
        rows = slice(max(first - start, 0), min(last, end) - start)
        if at in self._kept:
            band = self._kept[at]
            return band if rows == slice(0, end - start) else band[rows]
        return _side_by_side([_computed([self._chunk(at, c, rows)])[0] for c in self._columns()])

    def _columns(self) -> list[int]:
        sides = self._sides
        return [at for at in range(len(sides) - 1) if sides[at] < sides[at + 1]]

    def _bytes_if_dense(self, at: int) -> int:
        height = self._edges[at + 1] - self._edges[at]
        return int(height * self.shape[1] * self._array.dtype.itemsize)

    def _chunk(self, at: int, side: int, rows: slice | None = None) -> Any:
        """A chunk as CSR, or some of its rows, to be computed.

        Of dense ones rows are chosen before: dask may then read no more of a file.
        """
        height = self._edges[at + 1] - self._edges[at]
        shape = height, self._sides[side + 1] - self._sides[side]
        block = self._array.blocks[at, side]
        if rows is not None and not self.is_sparse:
            block = block[rows]
            shape, rows = (rows.stop - rows.start, shape[1]), None
        delayed = import_module("dask").delayed
        return delayed(_converted)(block.to_delayed().item(), shape, rows, self._name)


def _computed(tasks: list[Any]) -> list[Any]:
    computed = import_module("dask").compute(tasks)[0] if tasks else []
    return list(computed)


def _converted(
    chunk: Any, shape: tuple[int, int], rows: slice | None, name: str
) -> sparse.csr_matrix:
    """A chunk as rows, before any other is there."""
    if tuple(chunk.shape) != shape:
        raise ValueError(f"{name}: expected a chunk of shape {shape}, got {tuple(chunk.shape)}")
    matrix = _check.csr(chunk, name)
    return matrix if rows is None else matrix[rows]


def _side_by_side(parts: list[sparse.csr_matrix]) -> sparse.csr_matrix:
    return parts[0] if len(parts) == 1 else sparse.csr_matrix(sparse.hstack(parts, "csr"))
