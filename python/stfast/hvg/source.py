"""Matrices as blocks of rows, wherever they lie.

A matrix in memory that the native module takes as it is comes as one block, uncopied;
everything else (files, dense arrays, dask's) comes in stretches of some 64 MB. A stretch
is a multiple of 4,096 rows, the block over which floating-point sums run, so sums are the
same bits whatever the stretches are. Rows and columns may be chosen: a batch's blocks are
those that the batch would have alone.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from stfast import _check, _lazy, _spatial

_log = logging.getLogger("stfast")

BLOCK_ROWS = 4096
_STRETCH_VALUES = 1 << 23

Read: TypeAlias = Callable[[int, int], sparse.csr_matrix]
"""Rows of a range."""


@dataclass(kw_only=True)
class Source:
    """A matrix of spots × genes, of which blocks of rows can be had.

    Attributes
    ----------
    name
        What messages call it: a file, or ``counts``.
    genes
        Names of its columns.
    size
        Rows that it has, chosen or not.
    density
        Stored values of a row, on average.
    opened
        Gives the function that reads rows, and closes what it read from.
    whole
        The matrix itself where it is in memory and of a kind to be taken as it is.
    table
        Gives ``obs``.
    log_base
        Base of the logarithm that the values are said to be of: ``None`` if natural.
    logged
        Whether they are said to be logarithms.
    is_sparse
        Whether zeros are not stored.
    rows, columns
        Those chosen; ``None`` for all.
    untidy
        Whether some row has a gene twice or genes out of order: known after a pass.
    repeated
        Stored values that were added to others of the same spot and gene.
    """

    name: str
    genes: "pd.Index[str]"
    size: int
    density: float
    opened: Callable[[], AbstractContextManager[Read]]
    whole: _check.Matrix | None = None
    table: Callable[[], pd.DataFrame] = field(default=pd.DataFrame)
    log_base: float | None = None
    logged: bool = False
    is_sparse: bool = True
    rows: NDArray[np.int64] | None = None
    columns: NDArray[np.int64] | None = None
    untidy: bool = False
    repeated: int = 0

    @property
    def n(self) -> int:
        """Number of rows, of those chosen."""
        return self.size if self.rows is None else len(self.rows)

    def choose(self, rows: NDArray[np.bool_]) -> "Source":
        """Those of the rows that a mask keeps."""
        if rows.all():
            return self
        chosen = np.flatnonzero(rows)
        return replace(self, rows=chosen if self.rows is None else self.rows[chosen])

    def take(self, genes: "pd.Index[str]") -> "Source":
        """The columns of these names, in this order."""
        if len(genes) == len(self.genes) and (genes == self.genes).all():
            return self
        columns = self.genes.get_indexer(genes).astype(np.int64)
        chosen = columns if self.columns is None else self.columns[columns]
        return replace(self, genes=genes, columns=chosen)

    def held(self) -> "Source":
        """Itself; in memory if it is short, so that several passes read it once."""
        in_rows = self.whole is not None or self.rows is not None
        if in_rows or len(list(self._stretches())) != 1:
            return self
        ((_, block),) = self.blocks()
        matrix = sparse.csr_matrix(block[:3], shape=(self.n, block[3]))
        held = in_memory(matrix, self.genes, self.name)
        return replace(held, table=self.table, log_base=self.log_base, logged=self.logged)

    def blocks(self) -> Iterator[tuple[slice, _check.Matrix]]:
        """Stretches of rows in order, each with the range it has of those chosen."""
        if self.whole is not None and not self.untidy and self.rows is self.columns is None:
            yield slice(0, self.n), self.whole
            return
        with self.opened() as read:
            for part in self._stretches():
                csr = self._rows(read, part)
                if self.columns is not None:
                    csr = csr[:, self.columns]
                if self.untidy:
                    csr = _check.tidied(csr, self.name)
                yield part, _check.matrix(csr, self.name)

    def _stretches(self) -> Iterator[slice]:
        blocks = max(1, int(_STRETCH_VALUES / max(self.density, 1) / BLOCK_ROWS))
        step = blocks * BLOCK_ROWS
        for first in range(0, self.n, step):
            yield slice(first, min(first + step, self.n))

    def _rows(self, read: Read, part: slice) -> sparse.csr_matrix:
        if self.rows is None:
            return read(part.start, part.stop)
        rows = self.rows[part]
        # Scattered rows are picked from stretches of a bounded length.
        edges = np.searchsorted(rows, np.arange(rows[0], rows[-1] + 1, 8 * BLOCK_ROWS))
        runs = [run for run in np.split(rows, edges[1:]) if len(run)]
        picked = []
        for run in runs:
            csr = read(int(run[0]), int(run[-1]) + 1)
            picked.append(csr if csr.shape[0] == len(run) else csr[run - run[0]])
        return picked[0] if len(picked) == 1 else sparse.csr_matrix(sparse.vstack(picked))

    def seen_untidy(self) -> None:
        """Have rows put in order from now on, and say what was added up."""
        self.untidy = True
        with self.opened() as read:
            for part in self._stretches():
                csr = self._rows(read, part)
                self.repeated += csr.nnz - _check.tidied(csr, self.name).nnz
        if self.repeated:
            message = "%s: expected a gene once in a spot, got %d repeated: added"
            _log.warning(message, self.name, self.repeated)


def of_matrix(matrix: Any, genes: "pd.Index[str] | None" = None, name: str = "counts") -> Source:
    """The source of a matrix in memory or of a dask array; genes without names are numbered."""
    lazy = _lazy.is_lazy(matrix)
    if not lazy:
        matrix = _check.scipy_or_numpy(matrix, name)
    if genes is None:
        n_genes = matrix.shape[1] if matrix.ndim == 2 else 0
        genes = _spatial.names(np.arange(n_genes).astype(str))
    return (_computed if lazy else in_memory)(matrix, genes, name)


def in_memory(matrix: Any, genes: "pd.Index[str]", name: str = "counts") -> Source:
    """The source of a scipy matrix or a numpy array."""
    if matrix.ndim != 2:
        raise ValueError(f"{name}: expected 2 dimensions, got {matrix.ndim}")
    is_sparse = sparse.issparse(matrix)
    _check.count_dtype(matrix.dtype, name)
    if is_sparse:
        matrix = _check.csr(matrix, name)
    as_it_is = is_sparse and matrix.dtype.name in ("int32", "int64", "float32", "float64")
    n, n_genes = matrix.shape

    def read(first: int, last: int) -> sparse.csr_matrix:
        return _check.csr(matrix[first:last], name)

    return Source(
        name=name,
        genes=genes,
        size=n,
        density=matrix.nnz / max(n, 1) if is_sparse else n_genes,
        opened=lambda: nullcontext(read),
        whole=_check.matrix(matrix, name) if as_it_is else None,
        is_sparse=is_sparse,
    )


def _computed(array: Any, genes: "pd.Index[str]", name: str) -> Source:
    """The source of a dask array: how full its rows are is not known before they are there."""
    bands = _lazy.Bands(array, name)
    return Source(
        name=name,
        genes=genes,
        size=bands.shape[0],
        density=bands.shape[1],
        opened=lambda: nullcontext(_lazy.Bands(array, name)),
        is_sparse=bands.is_sparse,
    )


def shared_genes(sources: list[Source]) -> "pd.Index[str]":
    """Genes that all sources have, in the order of the first."""
    for source in sources:
        if not source.genes.is_unique and len(sources) > 1:
            twice = source.genes[source.genes.duplicated()][0]
            raise ValueError(f"{source.name}: expected each gene once, got {twice!r} again")
    shared = sources[0].genes
    for source in sources[1:]:
        if not shared.equals(source.genes):
            shared = shared[shared.isin(source.genes)]
    if not len(shared) and len(sources[0].genes):
        raise ValueError(f"slides: expected genes in common, got none in {len(sources)} slides")
    return shared
