"""Batches with genes as image channels beside the pixels, turned as the pixels are."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.utils.data import IterableDataset

from stfast.loader._augment import draws, turned
from stfast.loader._batch import Batch

if TYPE_CHECKING:
    from stfast.loader import TileLoader
    from stfast.rasters import Raster


class GeneChannels(IterableDataset[tuple[Batch, torch.Tensor]]):
    """Iterate over a loader's batches, each with the genes of the same windows as channels.

    Parameters
    ----------
    loader
        Whose batches.
    rasters
        What :func:`stfast.rasterize` gives, by the name of each slide of the loader; all of
        the same genes.
    size
        Side of the channels in pixels; ``None``: that of the tiles.
    span
        Side of the window in pixels of the picture, as the tiles have it; ``None``: the
        spot's diameter, the paper's.

    Raises
    ------
    ValueError
        A slide has no raster, or rasters are of different genes.

    Examples
    --------
    >>> rasters = {name: stfast.rasterize(a, genes) for name, a in slides}  # doctest: +SKIP
    >>> for batch, channels in GeneChannels(loader, rasters):  # doctest: +SKIP
    ...     both = torch.cat([batch.image, channels], dim=1)
    """

    def __init__(
        self,
        loader: "TileLoader",
        rasters: "Mapping[str, Raster]",
        *,
        size: int | None = None,
        span: float | None = None,
    ) -> None:
        lost = [name for name in loader.slides if name not in rasters]
        if lost:
            raise ValueError(f"rasters: expected one of each slide, got none of {lost[0]!r}")
        genes = [rasters[name].genes for name in loader.slides]
        if any(names != genes[0] for names in genes):
            raise ValueError("rasters: expected the same genes in all slides, got others")
        self.loader, self.genes = loader, genes[0]
        self._rasters = [rasters[name] for name in loader.slides]
        self._size, self._span = loader.size if size is None else size, span

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self.loader)

    def __iter__(self) -> Iterator[tuple[Batch, torch.Tensor]]:
        """Batches and (n, C, size, size) float32, where the batch is."""
        epoch = self.loader.epoch
        for batch in self.loader:
            yield batch, self._of(batch, epoch)

    def _of(self, batch: Batch, epoch: int) -> torch.Tensor:
        slide, xy = batch.slide.cpu().numpy(), batch.coords.cpu().numpy()
        out = np.empty((len(batch), len(self.genes), self._size, self._size), np.float32)
        for number in np.unique(slide):
            here = slide == number
            raster = self._rasters[number]
            out[here] = raster.tiles(
                xy[here], self._size, span=self._span, workers=self.loader.workers
            )
        channels = torch.from_numpy(out).to(batch.image.device)
        augment = self.loader._finish.augment
        if augment is None:
            return channels
        drawn = draws(self.loader.seed, epoch, batch.index.cpu().numpy())
        last = turned(channels.permute(0, 2, 3, 1), augment.turns(drawn))
        return last.permute(0, 3, 1, 2)
