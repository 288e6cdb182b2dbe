"""Training batches of tiles and genes, cut from slides as they are needed.

Nothing is extracted beforehand: a batch is a list of spots, and their tiles are
cut and decoded by the native module's threads, with decoded blocks kept in a
cache of stated size. One Python thread stays some batches ahead; it only calls
functions that release the interpreter, so there are no worker processes and
nothing is pickled or copied between them.

With CUDA a batch is assembled in pinned memory and copied on a stream of its
own while the model computes on another.
"""

import os
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from anndata import AnnData
from numpy.typing import NDArray
from scipy import sparse

from stfast import _check, _core, _spatial
from stfast.images import Level, SlideImage, open_image
from stfast.tiles import Places, Style, Windows, plan_windows, tile_side


@dataclass(frozen=True)
class Batch:
    """Rows of a batch belong together: row i of each field is one spot.

    Attributes
    ----------
    image
        (n, size, size, 3) uint8, RGB.
    genes
        (n, genes) float32, values of ``X`` as they are.
    coords
        (n, 2) float32, spot centres (x, y) in full-resolution pixels.
    slide
        (n,) int32, which of the loader's slides.
    index
        (n,) int64, which of the loader's spots, slide after slide.
    """

    image: torch.Tensor
    genes: torch.Tensor
    coords: torch.Tensor
    slide: torch.Tensor
    index: torch.Tensor

    def __len__(self) -> int:
        return len(self.index)

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """The fields in order."""
        return tuple(getattr(self, field.name) for field in fields(self))

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "Batch":
        """The batch on a device."""
        return Batch(*(t.to(device, non_blocking=non_blocking) for t in self.tensors()))

    def pin_memory(self) -> "Batch":
        """The batch in pinned memory."""
        return Batch(*(t.pin_memory() for t in self.tensors()))


class TileLoader:
    """Iterate over the spots of slides in batches of tile and genes.

    Parameters
    ----------
    slides
        AnnData, or several: each with its picture's path and scale factors in
        ``uns["spatial"]`` as :func:`stfast.read` gives them.
    genes
        Names of the genes of a row. ``None``: those marked ``highly_variable``,
        which must be the same for all slides; all genes if none is marked.
    size
        Side of a tile in pixels.
    span
        Side of a window in full-resolution pixels. ``None``: the spot's diameter
        (the paper's square of side 2r), slide by slide.
    batch_size
        Spots in a batch.
    shuffle
        A new order each epoch, the same for the same seed and epoch.
    seed
        Of the order.
    drop_last
        Leave out a last batch that is not full.
    device
        Where batches go; ``None``: CUDA if there is any, else CPU.
    cache_bytes
        Decoded blocks of pictures to keep, in bytes.
    prefetch
        Batches to be ahead of the consumer.
    workers
        Threads that cut tiles; ``None``: ``$STFAST_WORKERS``, else the CPUs of
        this process. Batches do not depend on it.

    Raises
    ------
    ValueError
        Slides without a picture or without the genes, sizes that are not positive.
    IndexError
        A spot outside its picture: leave it out first, by ``obs["in_picture"]``.

    Examples
    --------
    >>> adata = stfast.read("slide")  # doctest: +SKIP
    >>> stfast.highly_variable_genes(adata, n_top_genes=128)  # doctest: +SKIP
    >>> for batch in stfast.TileLoader(adata, batch_size=256):  # doctest: +SKIP
    ...     loss = model(batch.image, batch.genes)
    """

    def __init__(
        self,
        slides: AnnData | Sequence[AnnData],
        *,
        genes: Sequence[str] | None = None,
        size: int = 224,
        span: float | None = None,
        batch_size: int = 256,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = False,
        device: torch.device | str | None = None,
        cache_bytes: int = 1 << 30,
        prefetch: int = 2,
        workers: int | None = None,
    ) -> None:
        slides = [slides] if isinstance(slides, AnnData) else list(slides)
        if not slides:
            raise ValueError("slides: expected at least one, got none")
        self.size = tile_side(size)
        self.batch_size = _check.at_least_one(batch_size, "batch_size")
        self.prefetch = _check.at_least_one(prefetch, "prefetch")
        self.shuffle, self.seed, self.drop_last = shuffle, seed, drop_last
        self.workers = _check.workers(workers)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.genes = _gene_names(slides) if genes is None else list(genes)
        self.epoch = 0
        self._spots = _Spots.of(slides, self.size, span)
        self._rows = _gene_rows(slides, self.genes)
        if cache_bytes < 0:
            raise ValueError(f"cache_bytes: expected at least 0, got {cache_bytes}")
        self._cache_bytes = int(cache_bytes)
        self._cache: tuple[int, _core.Cache] | None = None

    @property
    def n_spots(self) -> int:
        """Spots of all slides."""
        return len(self._spots.source)

    def __len__(self) -> int:
        """Batches in an epoch."""
        full, rest = divmod(self.n_spots, self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next iteration; without it each one is the next epoch."""
        self.epoch = int(epoch)

    def __iter__(self) -> Iterator[Batch]:
        """An epoch of batches; the order's epoch advances for the next one."""
        epoch, self.epoch = self.epoch, self.epoch + 1
        return self._batches(epoch)

    def _batches(self, epoch: int) -> Iterator[Batch]:
        outlet = _CudaOutlet(self) if self.device.type == "cuda" else _Outlet(self)
        ahead: deque[Future[Any]] = deque()
        with ThreadPoolExecutor(1, "stfast-loader") as thread:
            try:
                for batch in range(len(self)):
                    ahead.append(thread.submit(outlet.put, epoch, batch))
                    if len(ahead) > self.prefetch:
                        yield outlet.take(_wait(ahead.popleft()))
                while ahead:
                    yield outlet.take(_wait(ahead.popleft()))
            finally:
                outlet.stopped.set()
                thread.shutdown(wait=False, cancel_futures=True)

    def fill(
        self, batch: Batch, epoch: int, number: int, stopped: threading.Event | None = None
    ) -> None:
        """Fill a batch's CPU tensors with the epoch's batch of that number.

        When ``stopped`` is set meanwhile, the tiles are not finished.
        """

        def look(done: int) -> None:
            if stopped is not None and stopped.is_set():
                raise CancelledError

        index = batch.index.numpy()
        start = number * self.batch_size
        if self.shuffle:
            seed = self.seed % (1 << 64)
            _core.epoch_order(self.n_spots, seed, epoch, start, index, self.workers)
        else:
            index[:] = np.arange(start, start + len(index))
        spots = self._spots
        batch.slide.numpy()[:] = spots.source[index]
        batch.coords.numpy()[:] = spots.xy[index]
        places = spots.places(index, self.size)
        cache, tiles = self._block_cache(), batch.image.numpy()
        _core.extract_tiles(places, Style(), tiles, self.workers, cache=cache, progress=look)
        _core.gather_rows(self._rows, index, batch.genes.numpy(), self.workers)

    def count(self, number: int) -> int:
        """Spots in the batch of that number."""
        return min(self.batch_size, self.n_spots - number * self.batch_size)

    def _block_cache(self) -> _core.Cache:
        """The process's own cache: one made before a fork may be locked for ever."""
        if self._cache is None or self._cache[0] != os.getpid():
            self._cache = (os.getpid(), _core.Cache(self._cache_bytes))
        return self._cache[1]

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_cache": None}


def _wait(future: Future[Any]) -> Any:
    """A future's result, with looks at signals in between.

    Where another library's signal handler restarts system calls (polars' does), Ctrl-C
    would not end a wait without a limit.
    """
    while not wait([future], timeout=0.1).done:
        pass
    return future.result()


@dataclass(frozen=True)
class _Spots:
    """Where every spot's window lies; one source a slide."""

    levels: list[Level]
    source: NDArray[np.int32]
    sides: tuple[NDArray[np.float64], ...]
    xy: NDArray[np.float32]

    @classmethod
    def of(cls, slides: Sequence[AnnData], size: int, span: float | None) -> "_Spots":
        planned = [_windows(adata, size, span) for adata in slides]
        sides = ("left", "top", "width", "height")
        return cls(
            levels=[windows.level for windows in planned],
            source=np.repeat(np.arange(len(slides), dtype=np.int32), [a.n_obs for a in slides]),
            sides=tuple(np.concatenate([getattr(w, side) for w in planned]) for side in sides),
            xy=np.concatenate([_spatial.centers(a).astype(np.float32) for a in slides]),
        )

    def places(self, index: NDArray[np.int64], size: int) -> Places:
        """The windows of some spots as the native module takes them."""
        levels = [level.native for level in self.levels]
        left, top, width, height = (side[index] for side in self.sides)
        return Places(levels, self.source[index].astype(np.uint32), left, top, width, height, size)


def _windows(adata: AnnData, size: int, span: float | None) -> Windows:
    image = open_image(_spatial.image_path(adata))
    centers = _spatial.centers(adata)
    windows = plan_windows(
        image, centers, size, span=_spatial.spot_span(adata) if span is None else span
    )
    _check_inside(image, centers)
    return windows


def _check_inside(image: SlideImage, centers: NDArray[np.float64]) -> None:
    outside = ~_spatial.in_picture(centers, image.shape)
    if outside.any():
        height, width = image.shape
        first = int(np.flatnonzero(outside)[0])
        raise IndexError(
            f"{image.path}: expected centers within {width} × {height} pixels, got "
            f"{tuple(centers[first].tolist())} at row {first} ({int(outside.sum())} such)"
        )


def _gene_names(slides: Sequence[AnnData]) -> list[str]:
    marked = [
        list(a.var_names[a.var["highly_variable"]] if "highly_variable" in a.var else a.var_names)
        for a in slides
    ]
    if any(names != marked[0] for names in marked):
        raise ValueError("genes: expected the same genes marked in all slides; give genes=")
    return marked[0]


def _gene_rows(slides: Sequence[AnnData], genes: Sequence[str]) -> _check.Matrix:
    """The chosen columns of all slides, one under another."""
    chosen = []
    for number, adata in enumerate(slides):
        if not adata.var_names.is_unique:
            raise ValueError(f"genes: expected unique names in slide {number}, got some twice")
        columns = adata.var_names.get_indexer(list(genes))
        if (columns < 0).any():
            lost = genes[int(np.flatnonzero(columns < 0)[0])]
            raise ValueError(f"genes: expected {lost!r} in slide {number}, got no such gene")
        chosen.append(sparse.csr_matrix(adata.X[:, columns], dtype=np.float32))
    rows = sparse.vstack(chosen, format="csr")
    wide = (rows.indices.astype(np.int64), rows.indptr.astype(np.int64))
    return rows.data, *wide, len(genes)


class _Outlet:
    """Batches in tensors of their own: nothing is reused while a consumer holds it."""

    def __init__(self, loader: TileLoader) -> None:
        self.loader = loader
        self.stopped = threading.Event()

    def put(self, epoch: int, number: int) -> Any:
        """Assemble a batch; called on the loader's thread."""
        batch = self.empty(self.loader.count(number))
        self.loader.fill(batch, epoch, number, self.stopped)
        return batch

    def take(self, ready: Any) -> Batch:
        """Hand a batch over; called by the consumer."""
        batch: Batch = ready
        return batch.to(self.loader.device)

    def empty(self, n: int, *, pinned: bool = False) -> Batch:
        """Tensors for a batch of ``n`` spots."""
        size, genes = self.loader.size, len(self.loader.genes)
        return Batch(
            torch.empty((n, size, size, 3), dtype=torch.uint8, pin_memory=pinned),
            torch.empty((n, genes), dtype=torch.float32, pin_memory=pinned),
            torch.empty((n, 2), dtype=torch.float32, pin_memory=pinned),
            torch.empty(n, dtype=torch.int32, pin_memory=pinned),
            torch.empty(n, dtype=torch.int64, pin_memory=pinned),
        )


class _CudaOutlet(_Outlet):
    """Batches assembled in a ring of pinned buffers and copied on a side stream."""

    def __init__(self, loader: TileLoader) -> None:
        super().__init__(loader)
        self.stream = torch.cuda.Stream(loader.device)  # type: ignore[no-untyped-call]
        self.slots = [
            (self.empty(loader.batch_size, pinned=True), torch.cuda.Event())  # type: ignore[no-untyped-call]
            for _ in range(loader.prefetch + 1)
        ]

    def put(self, epoch: int, number: int) -> Any:
        """Assemble a batch and start its copy; the slot is free again when that ends."""
        slot, copied = self.slots[number % len(self.slots)]
        copied.synchronize()
        n = self.loader.count(number)
        batch = Batch(*(tensor[:n] for tensor in slot.tensors()))
        self.loader.fill(batch, epoch, number, self.stopped)
        with torch.cuda.stream(self.stream):
            on_device = batch.to(self.loader.device, non_blocking=True)
            copied.record(self.stream)
        return on_device, copied

    def take(self, ready: Any) -> Batch:
        """Make the consumer's stream wait for the copy, and keep the memory until it is done."""
        on_device: Batch
        on_device, copied = ready
        stream = torch.cuda.current_stream(self.loader.device)
        stream.wait_event(copied)
        for tensor in on_device.tensors():
            tensor.record_stream(stream)
        return on_device
