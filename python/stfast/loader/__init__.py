"""Training batches of tiles and genes, from slides, built datasets or arrays.

One Python thread stays some batches ahead; it only calls functions of the native
module that release the interpreter, so there are no worker processes and nothing
is pickled or copied between them. What stands where in an epoch is a function of
(seed, epoch, position), so any rank can ask for its part, and resume, at once.
"""

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from anndata import AnnData
from numpy.typing import ArrayLike, NDArray
from torch.utils.data import IterableDataset, get_worker_info

from stfast import _check
from stfast._warn import warn
from stfast.loader import _settings
from stfast.loader._augment import Augment
from stfast.loader._batch import Batch, SparseRows
from stfast.loader._channels import GeneChannels
from stfast.loader._map import TileDataset
from stfast.loader._order import Order, Sampler, Shares, ShuffleReport, report_on
from stfast.loader._outlets import Assembly, CpuOutlet, CudaOutlet, NvjpegOutlet, Outlet
from stfast.loader._state import VERSION, Position, position_of
from stfast.sources import ArraySource, HasSource, Source

__all__ = [
    "ArraySource",
    "Augment",
    "Batch",
    "GeneChannels",
    "ShuffleReport",
    "SparseRows",
    "TileDataset",
    "TileLoader",
]

OnError = Literal["raise", "skip", "fill"]


class TileLoader(IterableDataset[Batch]):
    """Iterate over spots in batches of tile, genes, place, slide and label.

    Parameters
    ----------
    source
        AnnData, or several: tiles are cut on the fly from the picture that
        :func:`stfast.read` recorded. A built :class:`stfast.Dataset`: tiles are read
        from its shards. An :class:`ArraySource`: tiles that are an array.
    genes
        Names of the genes of a row; ``"hvg"``: those marked ``highly_variable``, which
        must be the same for all slides, or the dataset's matrix; ``"counts"``: all genes,
        sparse. ``None``: ``"hvg"``, or all genes if none is marked. Arrays have their own.
    label
        Column of ``obs`` with the label; a dataset has its own. Spots without one get −1.
        Classes are numbered among these slides: with others, numbers may differ.
    rows
        (n,) row numbers of the source to use, of a filtered dataset those within it;
        ``None``: all.
    size
        Side of a tile in pixels; ``None``: 224, or that of the dataset or arrays.
    span
        Side in pixels of a window that is cut from a slide. ``None``: the spot's
        diameter (the paper's square of side 2r), slide by slide.
    batch_size
        Spots in a batch, on each rank.
    global_batch_size
        Spots in a batch on all ranks together, instead: divided over them.
    shuffle
        A new order each epoch, the same for the same seed and epoch.
    sampler
        How: ``"global"``: any order of all spots. ``"block"``: blocks of ``block``
        neighbouring rows, some 1,000 blocks mixed, for network storage.
        ``"stratified"``: slides in their shares in each batch. ``"within-slide"``: each
        global batch of one slide (hard negatives). ``"balanced"``: labels equally often;
        spots without a label are left out.
    block
        Rows in a block.
    seed
        Of the order and of the augmentation.
    drop_last
        Leave out a last global batch that is not full. ``None``: on several ranks,
        where batches must be equal, but not on one.
    dtype
        ``torch.float32`` or ``torch.bfloat16``: images come normalised, as channels-last
        (n, 3, size, size). ``None``: uint8 (n, size, size, 3).
    mean, std
        Of the channels, of values in [0, 1].
    augment
        Turns and colours, drawn by (seed, epoch, index), changed on the device.
    on_error
        What a tile that cannot be read does: ``"raise"``; ``"skip"``: its spot is left
        out of the batch, which may become an empty one; ``"fill"``: it is white. ``bad``
        lists them, and a warning counts them at the epoch's end.
    device
        Where batches go; ``None``: CUDA if there is any, else CPU.
    nvjpeg
        Ship JPEG bytes and decode them on the CUDA device by torchvision, within a
        few levels of libjpeg; on the CPU libjpeg decodes.
    cache_bytes
        Decoded blocks of slides to keep, in bytes.
    prefetch
        Batches to be ahead of the consumer.
    workers
        Threads that cut and decode; ``None``: ``$STFAST_WORKERS``, else the CPUs of
        this process. Batches do not depend on it.
    rank, world_size
        ``None``: those of ``torch.distributed`` if it is initialised, else ``$RANK`` and
        ``$WORLD_SIZE``, else one rank; as they are when the loader is made.
    in_workers
        Let each of DataLoader's worker processes make its part of the batches. Without
        it a loader that finds itself in a worker process raises: threads serve better.
        Workers are copies: call ``set_epoch`` before each epoch, and save the state by
        torchdata's ``StatefulDataLoader``, not by the loader that they were copied from.

    Attributes
    ----------
    genes
        Names of the genes of a row.
    slides, classes
        Names that ``batch.slide`` and ``batch.label`` number.
    bad
        Rows whose tiles failed, and why; as ``batch.index``, of the whole source.
    epoch
        The epoch that the next iteration yields.

    Raises
    ------
    ValueError
        Slides without a picture or without the genes, sizes that do not fit.
    IndexError
        A spot outside its picture: leave it out first, by ``obs["in_picture"]``.
    FormatError
        While iterating: a tile or block is damaged; names the file.
    RuntimeError
        Iterated in a DataLoader's worker without ``in_workers``, or in a process that
        was forked from the one that began.

    Examples
    --------
    >>> adata = stfast.read("slide")  # doctest: +SKIP
    >>> stfast.highly_variable_genes(adata, n_top_genes=128)  # doctest: +SKIP
    >>> for batch in stfast.TileLoader(adata, batch_size=256):  # doctest: +SKIP
    ...     loss = model(batch.image, batch.genes)
    """

    def __init__(
        self,
        source: AnnData | Sequence[AnnData] | HasSource | ArraySource,
        *,
        genes: Sequence[str] | str | None = None,
        label: str | None = None,
        rows: ArrayLike | None = None,
        size: int | None = None,
        span: float | None = None,
        batch_size: int = 256,
        global_batch_size: int | None = None,
        shuffle: bool = True,
        sampler: Sampler = "global",
        block: int = 64,
        seed: int = 0,
        drop_last: bool | None = None,
        dtype: torch.dtype | None = None,
        mean: Sequence[float] = (0.0, 0.0, 0.0),
        std: Sequence[float] = (1.0, 1.0, 1.0),
        augment: Augment | None = None,
        on_error: OnError = "raise",
        device: torch.device | str | None = None,
        nvjpeg: bool = False,
        cache_bytes: int = 1 << 30,
        prefetch: int = 2,
        workers: int | None = None,
        rank: int | None = None,
        world_size: int | None = None,
        in_workers: bool = False,
    ) -> None:
        self.workers, self.prefetch = _settings.threads_of(workers, prefetch)
        self.on_error = _check.choice(on_error, OnError, "on_error")
        self.seed, self.in_workers, self._ranks_given = int(seed), in_workers, rank is not None
        cut = (size, span, cache_bytes)
        self._source: Source = _settings.source_of(source, cut, genes=genes, label=label)
        self._rows = _settings.rows_of(rows, source, len(self._source.spots))
        self._finish = _settings.finish_of(dtype, mean, std, augment, self.seed)
        self._place_on(device, nvjpeg=nvjpeg)
        shares = _settings.shares_of(batch_size, global_batch_size, (rank, world_size), drop_last)
        self._lay_out(shares, sampler, block, shuffle=shuffle)

    def _place_on(self, device: torch.device | str | None, *, nvjpeg: bool) -> None:
        usual = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = torch.device(usual if device is None else device)
        self._nvjpeg = nvjpeg and _settings.has_nvjpeg(self._source, self.device, self.on_error)

    def _lay_out(self, shares: Shares, sampler: Sampler, block: int, *, shuffle: bool) -> None:
        self._order = self._order_of(sampler, shares.global_batch, block, shuffle=shuffle)
        self._shares = replace(shares, n=self._order.n)
        self.bad: dict[int, str] = {}
        self.epoch, self._position, self._resume = 0, Position(), Position()
        if self.n_spots and not len(self):
            warn(f"{self.n_spots} spots fill no global batch of {shares.global_batch}: no batches")

    def _order_of(self, sampler: Sampler, batch: int, block: int, *, shuffle: bool) -> Order:
        _check.choice(sampler, Sampler, "sampler")
        if not shuffle and sampler != "global":
            raise ValueError(f"sampler: expected shuffle=True for {sampler!r}, got False")
        spots = self._source.spots
        groups = None
        if sampler in ("stratified", "within-slide", "balanced"):
            groups = spots.label if sampler == "balanced" else spots.slide
            groups = groups if self._rows is None else groups[self._rows]
        order = Order(
            n_items=self.n_spots,
            kind=sampler if shuffle else "sequential",
            seed=self.seed,
            batch=batch,
            block=_check.at_least_one(block, "block"),
            groups=groups,
            workers=self.workers,
        )
        if sampler == "balanced" and order.n == 0:
            raise ValueError('label: expected some spots with a label for "balanced", got none')
        if sampler == "within-slide" and groups is not None and len(groups):
            largest = int(np.unique(groups, return_counts=True)[1].max())
            if largest < batch:
                raise ValueError(
                    f"global_batch_size: expected at most the {largest} spots of the largest slide "
                    f'for "within-slide", got {batch}'
                )
        return order

    @property
    def n_spots(self) -> int:
        """Spots that are used."""
        return len(self._source.spots) if self._rows is None else len(self._rows)

    @property
    def genes(self) -> list[str]:
        """Names of the genes of a row."""
        return self._source.genes.names

    @property
    def slides(self) -> list[str]:
        """Names of the slides."""
        return self._source.spots.slides

    @property
    def classes(self) -> list[str]:
        """Names of the labels."""
        return self._source.spots.classes

    @property
    def size(self) -> int:
        """Side of a tile in pixels."""
        return self._source.size

    @property
    def batch_size(self) -> int:
        """Spots of a batch on this rank."""
        return self._shares.batch

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self._shares)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration; without it each one is the next epoch."""
        self.epoch = int(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Where the consumer is: what it has been given counts, what is prefetched does not."""
        at = self._position.settled(len(self))
        state = {
            "version": VERSION,
            "epoch": at.epoch,
            "batch": at.batch,
            "seed": self.seed,
            "sampler": self._order.kind,
            "block": self._order.block,
            "global_batch_size": self._shares.global_batch,
            "spots": self._fingerprint(),
        }
        return state if at.part is None else state | {"part": list(at.part)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after the batch that the state was taken at, on any number of ranks.

        Raises
        ------
        ValueError
            The state is of other spots, another order or another global batch, or was
            saved in one of another number of workers.
        """
        at = position_of(state, self.state_dict()).settled(len(self))
        self._position = self._resume = at
        self.epoch = at.epoch

    def _fingerprint(self) -> str:
        rows = "" if self._rows is None else _settings.digest(self._rows)
        return self._source.spots.fingerprint() + rows

    def shuffle_report(self, epoch: int = 0) -> ShuffleReport:
        """How many of a spot's companions in a global batch are of its own slide."""
        slide = self._source.spots.slide
        slide = slide if self._rows is None else slide[self._rows]
        return report_on(self._order, slide, self._shares.global_batch, epoch)

    def as_map(self) -> TileDataset:
        """The spots as a map-style dataset, for trainers that bring their own sampler.

        Raises
        ------
        ValueError
            The loader skips bad tiles: an item that is asked for must be there.
        """
        if self.on_error == "skip":
            raise ValueError('on_error: expected "raise" or "fill" for a map face, got "skip"')
        return TileDataset(self)

    def batch_of(self, numbers: NDArray[np.int64], epoch: int = 0) -> Batch:
        """The spots of these numbers, in this order, on the CPU."""
        outlet = CpuOutlet(self._assembly(), 0, torch.device("cpu"))
        rows = numbers if self._rows is None else self._rows[numbers]
        return outlet.put(rows, epoch)

    def __iter__(self) -> Iterator[Batch]:
        """An epoch of batches; the order's epoch advances for the next one."""
        at = self._resume if self._resume.epoch == self.epoch else Position(self.epoch)
        info = get_worker_info()
        if info is not None and not self.in_workers:
            raise RuntimeError(
                "TileLoader: expected no worker processes of DataLoader, since its threads do "
                "their work; give the loader in_workers=True to run in them all the same"
            )
        at = at.begun(None if info is None else (info.id, info.num_workers))
        _settings.check_ranks(self._shares, given=self._ranks_given)
        self.epoch, self._position, self._resume = self.epoch + 1, at, Position()
        return self._batches(at)

    def _batches(self, at: Position) -> Iterator[Batch]:
        work, getpid, pid = self._assembly(), os.getpid, os.getpid()
        outlet = self._outlet(work)
        wanted = iter(at.numbers(len(self)))
        ahead: deque[tuple[int, Future[Any]]] = deque()
        thread = ThreadPoolExecutor(1, "stfast-loader")

        def ask() -> None:
            for number in wanted:
                ahead.append((number, thread.submit(self._put, outlet, at.epoch, number)))
                if len(ahead) > self.prefetch:
                    return

        try:
            ask()
            while ahead:
                number, future = ahead.popleft()
                batch = outlet.take(_result(future))
                ask()
                self._position = at.after(number)
                yield batch
                _check_process(pid)
            if at.part is not None:
                self._position = Position(at.epoch + 1)
        finally:
            if getpid() == pid:
                work.stopped.set()
                thread.shutdown(cancel_futures=True)
        self._tell(work)

    def _put(self, outlet: Outlet, epoch: int, number: int) -> Any:
        shares = self._shares
        start = number * shares.global_batch + shares.rank
        items = self._order.take(epoch, start, shares.world, shares.count(number))
        return outlet.put(items if self._rows is None else self._rows[items], epoch)

    def _assembly(self) -> Assembly:
        return Assembly(self._source, self.workers, self.on_error, self._finish, self.bad)

    def _outlet(self, work: Assembly) -> Outlet:
        if self.device.type != "cuda":
            return CpuOutlet(work, self.prefetch, self.device)
        if self._nvjpeg:
            return NvjpegOutlet(work, self.prefetch, self.device)
        return CudaOutlet(work, self.prefetch, self.device, self.batch_size)

    def _tell(self, work: Assembly) -> None:
        if self.bad:
            row, fault = next(iter(sorted(self.bad.items())))
            warn(f"{len(self.bad)} tiles could not be read ({self.on_error}); row {row}: {fault}")


def _result(future: Future[Any]) -> Any:
    """A future's result, with looks at signals in between.

    Where another library's signal handler restarts system calls (polars' does), Ctrl-C
    would not end a wait without a limit.
    """
    while not wait([future], timeout=0.1).done:
        pass
    return future.result()


def _check_process(pid: int) -> None:
    """In a fork of the process that began an epoch, the thread that makes batches is not."""
    if os.getpid() != pid:
        raise RuntimeError("TileLoader: expected one process, got a fork of it; iterate anew")
