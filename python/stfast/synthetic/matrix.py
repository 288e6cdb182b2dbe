"""10x matrices as Space Ranger's two writers lay them out, chunk by chunk.

The raw matrix is written by Space Ranger's Rust code, the filtered one by its
Python code, and their chunks, compression and strings differ; a reader must
know both. The length of a column is unknown until the last band, so columns
grow, and each full chunk is shuffled and deflated in the pool: HDF5 itself
would do that under one lock.
"""

import zlib
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import h5py
import numpy as np
from numpy.typing import NDArray

from stfast.synthetic.counts import BARCODE, Band, Genes

SOFTWARE_VERSION = "4.0.1"
_WAITING = 8


@dataclass(frozen=True)
class Style:
    """One of Space Ranger's writers.

    Attributes
    ----------
    chunk
        Values per chunk, of every column.
    level
        Of deflate, after byte shuffling.
    barcode, text
        Bytes of a barcode and of a feature's strings; None: the longest of each.
    """

    chunk: int
    level: int
    barcode: int
    text: int | None


RUST = Style(chunk=65_536, level=1, barcode=45, text=256)
PYTHON = Style(chunk=80_000, level=4, barcode=len(BARCODE), text=None)


class _Column:
    """A growing data set; full chunks are packed in the pool, written in order."""

    def __init__(
        self,
        group: h5py.Group,
        name: str,
        dtype: np.dtype[Any],
        style: Style,
        pool: ThreadPoolExecutor,
    ) -> None:
        self._style, self._pool = style, pool
        self._dataset = group.create_dataset(
            name,
            (0,),
            dtype,
            chunks=(style.chunk,),
            maxshape=(None,),
            shuffle=True,
            compression="gzip",
            compression_opts=style.level,
        )
        self._size = 0
        self._written = 0
        self._rest = np.empty(0, dtype)
        self._packing: deque[Future[bytes]] = deque()

    def append(self, values: NDArray[Any]) -> None:
        """Add values; chunks that fill up are sent off."""
        self._size += values.size
        values = np.concatenate([self._rest, values.astype(self._rest.dtype, copy=False)])
        whole = values.size - values.size % self._style.chunk
        for start in range(0, whole, self._style.chunk):
            self._send(values[start : start + self._style.chunk])
        self._rest = values[whole:].copy()

    def finish(self) -> None:
        """Write what is left, the last chunk filled up with zeros."""
        if self._rest.size:
            last = np.zeros(self._style.chunk, self._rest.dtype)
            last[: self._rest.size] = self._rest
            self._send(last)
        while self._packing:
            self._write()

    def _send(self, chunk: NDArray[Any]) -> None:
        self._packing.append(self._pool.submit(_pack, chunk, self._style.level))
        if len(self._packing) >= _WAITING:
            self._write()

    def _write(self) -> None:
        packed = self._packing.popleft().result()
        # Never shrunk: HDF5 would inflate the last chunk to blank what falls out.
        self._dataset.resize((min(self._written + self._style.chunk, self._size),))
        self._dataset.id.write_direct_chunk((self._written,), packed)
        self._written += self._style.chunk


def _pack(chunk: NDArray[Any], level: int) -> bytes:
    """Return a chunk as HDF5's filters leave it: first bytes first, deflated."""
    planes = chunk.view(np.uint8).reshape(chunk.size, chunk.itemsize).T
    return zlib.compress(np.ascontiguousarray(planes).data, level)


class MatrixWriter:
    """Writes one matrix file; use as a context manager."""

    def __init__(self, path: Path, style: Style, genes: Genes, *, pool: ThreadPoolExecutor) -> None:
        self.style, self._genes, self._pool = style, genes, pool
        self._file = h5py.File(path, "w")
        self._group = self._file.create_group("matrix")
        dtypes = {"barcodes": f"S{style.barcode}", "data": "<i4", "indices": "<i8", "indptr": "<i8"}
        self._columns = {name: self._column(name, dtype) for name, dtype in dtypes.items()}
        self._columns["indptr"].append(np.zeros(1, np.int64))
        self._squares = self._nonzeros = 0

    def append(self, barcodes: NDArray[np.bytes_], band: Band) -> None:
        """Add a band's squares, named by ``barcodes``."""
        self._columns["barcodes"].append(barcodes)
        self._columns["indptr"].append(np.cumsum(band.genes_per_square) + self._nonzeros)
        self._columns["indices"].append(band.genes)
        self._columns["data"].append(band.counts)
        self._squares += barcodes.size
        self._nonzeros += band.genes.size

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self._file.close()

    def _finish(self) -> None:
        n = len(self._genes.ids)
        self._whole("shape", np.array([n, self._squares], "<i4"))
        self._texts("id", self._genes.ids)
        self._texts("name", self._genes.names)
        self._texts("feature_type", ["Gene Expression"] * n)
        self._texts("genome", ["GRCh38"] * n)
        self._texts("_all_tag_keys", ["genome"])
        for column in self._columns.values():
            column.finish()
        self._file.attrs.update(
            filetype="matrix",
            version=2,
            software_version=SOFTWARE_VERSION,
            chemistry_description="Visium HD v1",
            library_ids=np.array([b"stfast_synthetic"]),
            original_gem_groups=np.array([1]),
        )

    def _column(self, name: str, dtype: str) -> _Column:
        return _Column(self._group, name, np.dtype(dtype), self.style, self._pool)

    def _whole(self, name: str, values: NDArray[Any]) -> None:
        self._columns[name] = self._column(name, values.dtype.str)
        self._columns[name].append(values)

    def _texts(self, name: str, texts: list[str]) -> None:
        width = self.style.text or max(map(len, texts))
        self._whole(f"features/{name}", np.array(texts, f"S{width}"))
