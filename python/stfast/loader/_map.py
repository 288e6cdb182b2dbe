"""A loader's spots as a map-style dataset, for trainers that bring their own sampler."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Dataset

from stfast.loader._batch import Batch, SparseRows

if TYPE_CHECKING:
    from stfast.loader import TileLoader

Sample = dict[str, Any]


class TileDataset(Dataset[Sample]):
    """One spot an item: a dict of the fields of a batch.

    ``__getitems__`` fetches a batch in one go, in parallel, as torch's own fetcher asks
    for it; items are views of its tensors. Sparse genes come dense, since no collate
    function takes them. Augmentation is that of the epoch given by ``set_epoch``.

    Parameters
    ----------
    loader
        Whose spots, pixels and genes.
    """

    def __init__(self, loader: "TileLoader") -> None:
        self.loader, self.epoch = loader, loader.epoch

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose augmentation is drawn."""
        self.epoch = int(epoch)

    def __len__(self) -> int:
        return self.loader.n_spots

    def __getitem__(self, number: int) -> Sample:
        if not -len(self) <= number < len(self):
            raise IndexError(f"expected a spot from 0 to {len(self) - 1}, got {number}")
        return self.__getitems__([number % len(self)])[0]

    def __getitems__(self, numbers: Sequence[int]) -> list[Sample]:
        """The spots of these numbers."""
        wanted = np.ascontiguousarray(numbers, dtype=np.int64)
        return _samples(self.loader.batch_of(wanted, self.epoch))


def _samples(batch: Batch) -> list[Sample]:
    genes = batch.genes.to_dense() if isinstance(batch.genes, SparseRows) else batch.genes
    columns: dict[str, torch.Tensor] = {
        "image": batch.image,
        "genes": genes,
        "coords": batch.coords,
        "slide": batch.slide,
        "label": batch.label,
        "index": batch.index,
    }
    return [{name: column[i] for name, column in columns.items()} for i in range(len(batch))]
