"""Gene rows by number: from a dense matrix, or from a sparse one as it is or densely.

Matrices may be memory maps; rows are gathered by the native module, which waits
for the disk without holding the interpreter.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from anndata import AnnData
from numpy.typing import NDArray
from scipy import sparse

from stfast import _check, _core, _lazy

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class DenseGenes:
    """Rows of a dense float32 matrix."""

    names: list[str]
    matrix: NDArray[np.float32]

    def fill(self, rows: Rows, out: NDArray[np.float32], workers: int) -> None:
        """Write the rows into ``out`` (n, genes)."""
        _core.gather_dense((self.matrix, out), rows, workers)


@dataclass(frozen=True)
class ChosenGenes:
    """A few columns of a sparse matrix, held as float32 with 64-bit indices; rows come dense."""

    names: list[str]
    rows: _check.Matrix

    def fill(self, rows: Rows, out: NDArray[np.float32], workers: int) -> None:
        """Write the rows into ``out`` (n, genes)."""
        _core.gather_rows(self.rows, rows, out, workers)


@dataclass(frozen=True)
class SparseGenes:
    """Rows of a sparse matrix as they are: the whole transcriptome."""

    names: list[str]
    indptr: NDArray[np.int64]
    indices: NDArray[Any]
    values: NDArray[Any]

    def ends(self, rows: Rows) -> Rows:
        """Where each of the rows ends if they lie end to end."""
        return np.cumsum(self.indptr[rows + 1] - self.indptr[rows])

    def fill(
        self,
        rows: Rows,
        ends: Rows,
        out: tuple[NDArray[np.int32], NDArray[np.float32]],
        workers: int,
    ) -> None:
        """Write the rows' columns and values, end to end."""
        _core.gather_sparse((self.indptr, self.indices, self.values), rows, ends, out, workers)


@dataclass(frozen=True)
class PickedGenes:
    """A few columns of :class:`SparseGenes` that stay where they are, such as on disk."""

    names: list[str]
    all: SparseGenes

    def fill(self, rows: Rows, out: NDArray[np.float32], workers: int) -> None:
        """Write the rows into ``out`` (n, genes)."""
        ends = self.all.ends(rows)
        total = int(ends[-1]) if len(ends) else 0
        columns, values = np.empty(total, np.int32), np.empty(total, np.float32)
        self.all.fill(rows, ends, (columns, values), workers)
        place, wanted = self._columns
        at = place[columns]
        row, kept = np.repeat(np.arange(len(rows)), np.diff(ends, prepend=0)), at >= 0
        picked = np.zeros((len(rows), len(self.names)), np.float32)
        picked[row[kept], at[kept]] = values[kept]
        np.take(picked, wanted, axis=1, out=out)

    @cached_property
    def _columns(self) -> tuple[Rows, Rows]:
        """Which of the distinct genes each column is, −1: none; which of them each name is."""
        numbers = column_numbers(self.names, self.all.names, "the dataset")
        distinct, wanted = np.unique(numbers, return_inverse=True)
        place = np.full(len(self.all.names), -1, np.int64)
        place[distinct] = np.arange(len(distinct))
        return place, wanted


GeneRows = DenseGenes | ChosenGenes | SparseGenes | PickedGenes


def column_numbers(names: Sequence[str], known: Sequence[str], where: str) -> NDArray[np.int64]:
    """The columns that genes have."""
    place = {name: number for number, name in enumerate(known)}
    lost = [name for name in names if name not in place]
    if lost:
        raise ValueError(f"genes: expected {lost[0]!r} in {where}, got no such gene")
    return np.array([place[name] for name in names], dtype=np.int64)


def genes_of_slides(slides: Sequence[AnnData], genes: str | Sequence[str] | None) -> GeneRows:
    """The genes of slides' rows, one slide under another."""
    if genes == "counts":
        return _whole(slides)
    if isinstance(genes, str) and genes != "hvg":
        raise ValueError(f'genes: expected names, "hvg" or "counts", got {genes!r}')
    names = _marked(slides, genes == "hvg") if genes is None or genes == "hvg" else list(genes)
    chosen = []
    for number, adata in enumerate(slides):
        if not adata.var_names.is_unique:
            raise ValueError(f"genes: expected unique names in slide {number}, got some twice")
        columns = adata.var_names.get_indexer(names)
        if (columns < 0).any():
            lost = names[int(np.flatnonzero(columns < 0)[0])]
            raise ValueError(f"genes: expected {lost!r} in slide {number}, got no such gene")
        chosen.append(
            _lazy.csr(adata.X[:, columns], f"slide {number}").astype(np.float32, copy=False)
        )
    return ChosenGenes(names, _wide(sparse.vstack(chosen, format="csr"), len(names)))


def _wide(rows: Any, n: int) -> _check.Matrix:
    return rows.data, rows.indices.astype(np.int64), rows.indptr.astype(np.int64), n


def _marked(slides: Sequence[AnnData], must: bool) -> list[str]:  # noqa: FBT001
    marked = []
    for number, adata in enumerate(slides):
        if "highly_variable" in adata.var:
            marked.append(list(adata.var_names[adata.var["highly_variable"]]))
        elif must:
            raise ValueError(f'genes: expected var["highly_variable"] in slide {number}, got none')
        else:
            marked.append(list(adata.var_names))
    if any(names != marked[0] for names in marked):
        raise ValueError("genes: expected the same genes marked in all slides; give genes=")
    return marked[0]


def _whole(slides: Sequence[AnnData]) -> SparseGenes:
    """All genes of all slides; one that a slide lacks is zero there."""
    names: dict[str, int] = {}
    parts = []
    for number, adata in enumerate(slides):
        if not adata.var_names.is_unique:
            raise ValueError(f"genes: expected unique names in slide {number}, got some twice")
        columns = [names.setdefault(name, len(names)) for name in adata.var_names]
        rows = _lazy.csr(adata.X, f"slide {number}")
        if not rows.has_canonical_format:
            rows = _check.tidied(rows, f"slide {number}")
        parts.append((rows, np.array(columns, dtype=np.int32)))
    lengths = np.concatenate([np.diff(rows.indptr) for rows, _ in parts])
    return SparseGenes(
        names=list(names),
        indptr=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        indices=np.concatenate([columns[rows.indices] for rows, columns in parts]),
        values=np.concatenate([rows.data for rows, _ in parts]).astype(np.float32),
    )
