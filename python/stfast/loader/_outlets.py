"""How batches are assembled ahead of their consumer, and handed over.

On the CPU a batch's pixels lie in memory that is used again once nobody holds it.
With CUDA they are assembled in a ring of pinned buffers, copied on a stream of
their own and finished there, while the model computes on another.
"""

import threading
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from stfast._core import FormatError
from stfast.loader._augment import Finish
from stfast.loader._batch import Batch, Genes, SparseRows
from stfast.loader._pool import Pool
from stfast.sources import ShardSource, Source
from stfast.sources.genes import Rows, SparseGenes


@dataclass
class Assembly:
    """What it takes to fill the tensors of a batch."""

    source: Source
    workers: int
    on_error: str
    finish: Finish
    bad: dict[int, str]
    stopped: threading.Event = field(default_factory=threading.Event)

    def look(self, done: int) -> None:
        """End a call when the consumer is gone."""
        if self.stopped.is_set():
            raise CancelledError

    def tiles(self, rows: Rows, out: NDArray[np.uint8]) -> NDArray[np.bool_] | None:
        """Fill in the tiles; which to keep, where some are to be skipped."""
        faults = self.source.cut(
            rows, out, self.workers, lenient=self.on_error != "raise", look=self.look
        )
        self.bad.update((int(rows[number]), fault) for number, fault in faults)
        if not faults or self.on_error == "fill":
            return None
        kept = np.ones(len(rows), dtype=bool)
        kept[[number for number, _ in faults]] = False
        return kept

    def genes(self, rows: Rows, *, pinned: bool = False) -> Genes:
        """The gene rows in tensors of their own."""
        genes, n = self.source.genes, len(rows)
        if isinstance(genes, SparseGenes):
            ends = genes.ends(rows)
            total = int(ends[-1]) if n else 0
            indices = torch.empty(total, dtype=torch.int32, pin_memory=pinned)
            values = torch.empty(total, dtype=torch.float32, pin_memory=pinned)
            genes.fill(rows, ends, (indices.numpy(), values.numpy()), self.workers)
            indptr = torch.zeros(n + 1, dtype=torch.int64, pin_memory=pinned)
            indptr[1:] = torch.from_numpy(ends)
            return SparseRows(indptr, indices, values, len(genes.names))
        dense = torch.empty((n, len(genes.names)), dtype=torch.float32, pin_memory=pinned)
        genes.fill(rows, dense.numpy(), self.workers)
        return dense

    def rest(self, rows: Rows, *, pinned: bool = False) -> tuple[torch.Tensor, ...]:
        """Coords, slide, label and index of the spots."""
        spots = self.source.spots
        arrays = (spots.xy[rows], spots.slide[rows], spots.label[rows], rows.copy())
        tensors = (torch.from_numpy(array) for array in arrays)
        return tuple(tensor.pin_memory() if pinned else tensor for tensor in tensors)


class Outlet(Protocol):
    """Assembles batches on the loader's thread, and hands them over on the consumer's."""

    def put(self, rows: Rows, epoch: int) -> Any:
        """Assemble the batch of some rows."""

    def take(self, ready: Any) -> Batch:
        """Hand a batch over."""


class CpuOutlet:
    """Batches in memory that is never written to while a consumer holds it."""

    def __init__(self, assembly: Assembly, ahead: int, device: torch.device) -> None:
        self.assembly, self.device = assembly, device
        self._pool = Pool(ahead + 3)

    def put(self, rows: Rows, epoch: int) -> Batch:
        """Assemble the batch of some rows."""
        work, size = self.assembly, self.assembly.source.size
        pixels = self._pool.array(len(rows) * size * size * 3).reshape(-1, size, size, 3)
        kept = work.tiles(rows, pixels)
        coords, slide, label, index = work.rest(rows)
        image = work.finish.on_cpu(pixels, index, epoch, self._pool, work.workers)
        batch = Batch(image, work.genes(rows), coords, slide, label, index)
        return batch if kept is None else batch.keep(torch.from_numpy(kept))

    def take(self, ready: Any) -> Batch:
        """Hand a batch over."""
        batch: Batch = ready
        return batch if self.device.type == "cpu" else batch.to(self.device)


@cache
def side_stream(device: torch.device) -> torch.cuda.Stream:
    """The one stream for copies to a device: torch keeps freed memory for each stream."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


class CudaOutlet:
    """Batches assembled in a ring of pinned buffers, copied and finished on a side stream."""

    def __init__(self, assembly: Assembly, ahead: int, device: torch.device, batch: int) -> None:
        self.assembly, self.device = assembly, device
        self.stream = side_stream(device)
        size = assembly.source.size
        self._slots = [
            (
                torch.empty((batch, size, size, 3), dtype=torch.uint8, pin_memory=True),
                torch.cuda.Event(blocking=True),  # type: ignore[no-untyped-call]
            )
            for _ in range(ahead + 1)
        ]
        self._next = 0

    def put(self, rows: Rows, epoch: int) -> Any:
        """Assemble the batch of some rows and start its copy.

        A slot is free again when its copy has ended; the small tensors are pinned
        memory of their own, which torch keeps until the stream is done with it.
        """
        slot, copied = self._slots[self._next % len(self._slots)]
        self._next += 1
        copied.synchronize()
        kept = self.assembly.tiles(rows, slot[: len(rows)].numpy())
        with torch.cuda.stream(self.stream):
            image = slot[: len(rows)].to(self.device, non_blocking=True)
            copied.record(self.stream)
            return self.finished(image, rows, epoch, kept)

    def finished(
        self, image: torch.Tensor, rows: Rows, epoch: int, kept: NDArray[np.bool_] | None
    ) -> tuple[Batch, torch.cuda.Event]:
        """The rest of a batch, and the event after which all of it is there."""
        work = self.assembly
        small = Batch(torch.empty(0), work.genes(rows, pinned=True), *work.rest(rows, pinned=True))
        there = small.to(self.device, non_blocking=True)
        image = work.finish(image, small.index, epoch)
        batch = Batch(image, there.genes, there.coords, there.slide, there.label, there.index)
        if kept is not None:
            batch = batch.keep(torch.from_numpy(kept).to(self.device))
        ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
        ready.record(self.stream)
        return batch, ready

    def take(self, ready: Any) -> Batch:
        """Make the consumer's stream wait for the batch, and its memory wait for the consumer."""
        batch: Batch
        batch, event = ready
        stream = torch.cuda.current_stream(self.device)
        stream.wait_event(event)
        for tensor in batch.tensors():
            tensor.record_stream(stream)
        return batch


class NvjpegOutlet(CudaOutlet):
    """Batches whose JPEG bytes are shipped, and decoded on the device by torchvision."""

    def __init__(self, assembly: Assembly, ahead: int, device: torch.device) -> None:
        super().__init__(assembly, ahead, device, 0)

    def put(self, rows: Rows, epoch: int) -> Any:
        """Read the encoded tiles and decode them on the side stream."""
        from torchvision.io import ImageReadMode, decode_jpeg

        work, source = self.assembly, self.assembly.source
        work.look(0)
        assert isinstance(source, ShardSource)
        coded, ends = source.read(rows, work.workers)
        tiles = list(torch.from_numpy(coded).tensor_split(ends[:-1].tolist()))
        # torchvision decodes on a stream of its own into memory that ours gave back.
        self.stream.synchronize()
        with torch.cuda.stream(self.stream):
            decoded = decode_jpeg(tiles, mode=ImageReadMode.RGB, device=self.device)
            for row, tile in zip(rows.tolist(), decoded, strict=True):
                if tile.shape[1:] != (source.size, source.size):
                    expected = f"{source.size} × {source.size} pixels"
                    got = " × ".join(map(str, tile.shape[1:]))
                    raise FormatError(f"tile of row {row}: expected {expected}, got {got}")
            image = torch.stack(decoded).permute(0, 2, 3, 1).contiguous()
            return self.finished(image, rows, epoch, None)
