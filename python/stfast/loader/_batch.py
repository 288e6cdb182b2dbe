"""A training batch: tensors whose row i is one spot."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch


@dataclass(frozen=True)
class SparseRows:
    """Gene rows of a batch as three flat tensors: CSR.

    torch's own sparse tensors pass neither a collate function nor a queue between
    processes; three flat ones do, and copy to a device as they are.

    Attributes
    ----------
    indptr
        (n + 1,) int64: where each row starts in the other two.
    indices
        (nnz,) int32: which gene.
    values
        (nnz,) float32.
    n_genes
        Columns.
    """

    indptr: torch.Tensor
    indices: torch.Tensor
    values: torch.Tensor
    n_genes: int

    def __len__(self) -> int:
        return len(self.indptr) - 1

    def each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "SparseRows":
        """The rows with each tensor changed."""
        return SparseRows(
            change(self.indptr), change(self.indices), change(self.values), self.n_genes
        )

    def to_dense(self) -> torch.Tensor:
        """(n, genes) float32."""
        rows = torch.repeat_interleave(self.indptr.diff(), output_size=len(self.indices))
        dense = self.values.new_zeros((len(self), self.n_genes))
        return dense.index_put_((rows, self.indices.long()), self.values, accumulate=True)

    def keep(self, kept: torch.Tensor) -> "SparseRows":
        """Some of the rows, by a mask (n,)."""
        lengths = self.indptr.diff()
        stored = torch.repeat_interleave(kept, lengths)
        indptr = torch.cat([self.indptr[:1], lengths[kept].cumsum(0)])
        return SparseRows(indptr, self.indices[stored], self.values[stored], self.n_genes)


Genes = torch.Tensor | SparseRows


@dataclass(frozen=True)
class Batch:
    """Rows of a batch belong together: row i of each field is one spot.

    Attributes
    ----------
    image
        (n, size, size, 3) uint8, RGB; with ``dtype=`` of the loader (n, 3, size, size)
        floats in channels-last memory.
    genes
        (n, genes) float32, or :class:`SparseRows` of the whole transcriptome.
    coords
        (n, 2) float32, spot centres (x, y) in pixels of the slide's picture.
    slide
        (n,) int32, which of the loader's ``slides``.
    label
        (n,) int64, which of the loader's ``classes``; −1: none.
    index
        (n,) int64, the spot's row in its source.
    """

    image: torch.Tensor
    genes: Genes
    coords: torch.Tensor
    slide: torch.Tensor
    label: torch.Tensor
    index: torch.Tensor

    def __len__(self) -> int:
        return len(self.index)

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """The tensors in order of the fields; sparse genes are three of them."""
        found: list[torch.Tensor] = []

        def note(tensor: torch.Tensor) -> torch.Tensor:
            found.append(tensor)
            return tensor

        self.each(note)
        return tuple(found)

    def each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Batch":
        """The batch with each of its tensors changed."""
        return self._with(lambda v: v.each(change) if isinstance(v, SparseRows) else change(v))

    def keep(self, kept: torch.Tensor) -> "Batch":
        """Some of the spots, by a mask (n,)."""
        return self._with(lambda v: v.keep(kept) if isinstance(v, SparseRows) else v[kept])

    def _with(self, change: Callable[[Any], Any]) -> "Batch":
        return replace(self, **{f.name: change(getattr(self, f.name)) for f in fields(self)})

    def to(self, device: Any, *, non_blocking: bool = False) -> "Batch":
        """The batch on a device."""
        return self.each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self, device: Any = None) -> "Batch":
        """The batch in pinned memory; ``device`` is what DataLoader passes, and unused."""
        return self.each(lambda tensor: tensor.pin_memory())
