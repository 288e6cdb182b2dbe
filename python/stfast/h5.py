"""HDF5 datasets, read in parallel.

The HDF5 library inflates and unshuffles chunk after chunk under one lock. h5py is
asked only where the chunks lie; Rust reads, inflates, unshuffles and narrows them on
all threads, straight into the array. What Rust does not know (other filters, compound
types, strings of any length) is left to h5py, which is said once.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import h5py
import numpy as np
from anndata import AnnData
from numpy.typing import DTypeLike, NDArray
from scipy import sparse

from stfast import _check, _core
from stfast._core import FormatError
from stfast._native import Chunks

File: TypeAlias = "str | os.PathLike[str] | h5py.Group"

_FILTERS = {1: "deflate", 2: "shuffle"}
"""Numbers that HDF5 registers for the filters that Rust knows."""
_PIECE = 1 << 20
"""Bytes of a piece of a dataset that lies in the file as one."""

_log = logging.getLogger("stfast")
_said: set[str] = set()


def read_h5_dataset(
    file: File, name: str, *, dtype: DTypeLike | None = None, workers: int | None = None
) -> NDArray[Any]:
    """Read a dataset of an HDF5 file, its chunks in parallel.

    Parameters
    ----------
    file
        Path of the file, or an open ``h5py.File`` or ``h5py.Group``.
    name
        Name of the dataset in it, such as ``"matrix/data"``.
    dtype
        Type to read into; ``None``: the one that is stored, in this machine's byte
        order. Integers may become integers of any width, read without an array of the
        stored type in between; other numbers are converted after reading.
    workers
        Threads; ``None``: ``$STFAST_WORKERS``, else the CPUs of this process.

    Returns
    -------
    ndarray
        What ``h5py.Dataset[()]`` gives, of the dataset's shape.

    Raises
    ------
    FileNotFoundError
        No such file.
    KeyError
        No such dataset in it.
    FormatError
        No HDF5 file, or a chunk that is damaged.
    OverflowError
        A value that ``dtype`` cannot hold.

    Notes
    -----
    Chunked and contiguous datasets of numbers or of texts of fixed length are read in
    parallel, with shuffle and deflate (gzip) in any combination that HDF5 writes, as
    its file format specification describes them. All others are read by h5py.
    """
    threads = _check.workers(workers)
    with opened(file) as group:
        found = group[name]
        if not isinstance(found, h5py.Dataset):
            raise FormatError(f"{group.file.filename}: expected a dataset as {name}, got a group")
        return Dataset(found, threads).read(dtype)


@contextmanager
def opened(file: File) -> Iterator[h5py.Group]:
    """A group of an open file; what is no HDF5 file becomes a FormatError."""
    if isinstance(file, h5py.Group):
        yield file
        return
    path = Path(file)
    with path.open("rb"):
        pass
    try:
        handle = h5py.File(path)
    except OSError as error:
        raise FormatError(f"{path}: expected an HDF5 file, got {error}") from error
    with handle:
        refuse_links(handle, path)
        yield handle


def refuse_links(file: h5py.File, path: Path) -> None:
    """Raise if any of a file's data lie in another file, which could be anyone's.

    External links, external storage and virtual datasets name files by path, so that a
    download could have what lies beside it, or in ``/etc``, read as if it were its own.
    """

    def look(name: str, link: Any) -> str | None:
        if isinstance(link, h5py.ExternalLink):
            return f"a link to {link.filename!r} as /{name}"
        found = file.get(name) if isinstance(link, h5py.HardLink) else None
        if isinstance(found, h5py.Dataset) and found.is_virtual:
            return f"a virtual dataset as /{name}"
        if isinstance(found, h5py.Dataset) and found.external:
            return f"external storage in {found.external[0][0]!r} as /{name}"
        return None

    # What is returned ends the visit; h5py lets no exception out of it.
    if (elsewhere := file.visititems_links(look)) is not None:
        raise FormatError(f"{path}: expected all data in the file itself, got {elsewhere}")


class Dataset:
    """A dataset to be read as a whole or in stretches of its first axis."""

    def __init__(self, dataset: h5py.Dataset, threads: int) -> None:
        self.dataset, self.threads = dataset, threads
        self.path = dataset.file.filename
        header = _header(dataset)
        self.chunks = None if header is None else _core.Chunked(self.path, header)
        self._fill = header is not None and _is_sparse(header)

    @property
    def stored(self) -> np.dtype[Any]:
        """Type of a value, in this machine's byte order."""
        dtype: np.dtype[Any] = self.dataset.dtype.newbyteorder("=")
        return dtype

    @property
    def complete(self) -> _core.Chunked | None:
        """The chunks, if each value lies in one that Rust can read."""
        return None if self._fill else self.chunks

    def __len__(self) -> int:
        return len(self.dataset)

    def read(
        self,
        dtype: DTypeLike | None = None,
        start: int = 0,
        stop: int | None = None,
        *,
        below: int | None = None,
    ) -> NDArray[Any]:
        """The values from ``start`` to ``stop`` along the first axis.

        With ``below``, a negative value, or one that is not below it, is an OverflowError.
        """
        wanted = self.stored if dtype is None else np.dtype(dtype)
        if self.chunks is None:
            values = self.dataset[()] if self.dataset.ndim == 0 else self.dataset[start:stop]
            return self._bounded(_cast(np.asarray(values), wanted, self._where()), below)
        target = _target(self.stored, wanted)
        if target is None:
            values = _cast(self.read(None, start, stop), wanted, self._where())
            return self._bounded(values, below)
        stop = len(self) if stop is None else min(stop, len(self))
        start = min(start, stop)
        shape = (max(stop - start, 0), *self.dataset.shape[1:])
        fill = self.dataset.fillvalue if self._fill else 0
        out = np.full(shape, fill, wanted) if np.any(fill) else np.zeros(shape, wanted)
        width = 1 if wanted.kind == "S" else wanted.itemsize
        bits = out.reshape(-1).view(f"u{width}")
        try:
            _core.read_chunks(self.chunks, start, (target, below), bits, self.threads)
        except OverflowError as error:
            found = f"a {self.stored} that does not fit"
            raise OverflowError(f"{self._where()}: expected {wanted}, got {found}") from error
        return self._bounded(out, below) if self._fill else out

    def _bounded(self, values: NDArray[Any], below: int | None) -> NDArray[Any]:
        if below is not None and values.size and not 0 <= values.min() <= values.max() < below:
            raise OverflowError(f"{self._where()}: expected 0 to {below - 1}, got others")
        return values

    def _where(self) -> str:
        return f"{self.dataset.name} ({self.path})"


def _target(stored: np.dtype[Any], wanted: np.dtype[Any]) -> str | None:
    """How Rust makes one type of another; ``None``: not at all."""
    if stored == wanted:
        return "same"
    if stored.kind in "iu" and wanted.kind in "iu" and wanted.isnative:
        return "signed" if wanted.kind == "i" else "unsigned"
    return "double" if (stored.str[1:], wanted.str[1:]) == ("f4", "f8") else None


def _cast(values: NDArray[Any], wanted: np.dtype[Any], where: str) -> NDArray[Any]:
    """The values in another type, none of which may change but by rounding of fractions."""
    if values.dtype == wanted:
        return values
    if wanted.kind in "iu" and values.dtype.kind in "fiu" and values.size:
        info, low, high = np.iinfo(wanted), values.min(), values.max()
        # NaN fails every comparison; the largest integer may be no float, the next one is.
        fits = low >= float(info.min) and high < float(info.max) + 1
        if values.dtype.kind != "f":
            fits = info.min <= int(low) <= int(high) <= info.max
        elif fits:
            fits = bool((values == np.trunc(values)).all())
        if not fits:
            raise OverflowError(f"{where}: expected {wanted}, got a value that does not fit")
    return values.astype(wanted)


def _header(dataset: h5py.Dataset) -> Chunks | None:
    """The table of chunks; ``None`` where h5py must read, with the reason logged once."""
    reason = _obstacle(dataset)
    if reason:
        if reason not in _said:
            _said.add(reason)
            _log.info("%s in %s: read by h5py", reason, dataset.file.filename)
        return None
    if dataset.file.mode != "r":
        dataset.file.flush()
    filters = _pipeline(dataset)
    chunk, table = _chunks(dataset) if dataset.chunks else _pieces(dataset)
    table = table[np.lexsort(table[:, :2:-1].T)] if len(table) > 1 else table
    dtype = dataset.dtype
    return Chunks(
        name=dataset.name or "?",
        shape=dataset.shape,
        chunk=chunk,
        kind=dtype.kind,
        size=dtype.itemsize,
        big_endian=dtype.byteorder == ">",
        shuffle=filters.get("shuffle"),
        deflate=filters.get("deflate"),
        offsets=np.ascontiguousarray(table[:, 0]),
        lengths=np.ascontiguousarray(table[:, 1]),
        masks=table[:, 2].astype(np.uint32),
        places=np.ascontiguousarray(table[:, 3:]).reshape(-1),
    )


def _pipeline(dataset: h5py.Dataset) -> dict[str, int]:
    """Position of each filter of a dataset, by name or number."""
    plist = dataset.id.get_create_plist()
    numbers = [plist.get_filter(i)[0] for i in range(plist.get_nfilters())]
    return {_FILTERS.get(number, str(number)): i for i, number in enumerate(numbers)}


def _obstacle(dataset: h5py.Dataset) -> str:
    """Why Rust cannot read a dataset; nothing if it can."""
    plist = dataset.id.get_create_plist()
    layout, dtype = plist.get_layout(), dataset.dtype
    filters = _pipeline(dataset)
    unknown = sorted(filters.keys() - _FILTERS.values())
    ordered = list(filters) in ([], ["shuffle"], ["deflate"], ["shuffle", "deflate"])
    obstacles = {
        f"values of {dtype}": dtype.kind not in "iufS"
        or (dtype.kind != "S" and dtype.itemsize not in (1, 2, 4, 8))
        or dtype.itemsize == 0
        or h5py.check_dtype(enum=dtype) is not None,
        "a scalar": dataset.ndim == 0 or dataset.size is None,
        f"filter {', '.join(unknown)}": bool(unknown),
        f"filters in the order {list(filters)}": not ordered,
        "a layout other than chunks": layout not in (h5py.h5d.CHUNKED, h5py.h5d.CONTIGUOUS),
        "data in other files": plist.get_external_count() > 0,
        "a user block": dataset.file.userblock_size > 0,
        "a file that is no plain file": dataset.file.driver != "sec2",
        "a file being written": dataset.file.swmr_mode,
    }
    return next((reason for reason, found in obstacles.items() if found), "")


def _chunks(dataset: h5py.Dataset) -> tuple[tuple[int, ...], NDArray[np.uint64]]:
    """Shape of a chunk; offset, length, mask and place of each."""
    rows: list[tuple[int, ...]] = []
    dataset.id.chunk_iter(
        lambda c: rows.append((c.byte_offset, c.size, c.filter_mask, *c.chunk_offset))
    )
    return dataset.chunks, np.array(rows, np.uint64).reshape(-1, 3 + dataset.ndim)


def _pieces(dataset: h5py.Dataset) -> tuple[tuple[int, ...], NDArray[np.uint64]]:
    """A dataset that lies in the file as one, as if it were chunked along the first axis."""
    inner = [max(n, 1) for n in dataset.shape[1:]]
    row = int(np.prod(inner, dtype=np.int64)) * dataset.dtype.itemsize
    step = max(_PIECE // row, 1)
    offset = dataset.id.get_offset()
    firsts = np.arange(0, len(dataset) if dataset.size and offset is not None else 0, step)
    table = np.zeros((len(firsts), 3 + dataset.ndim), np.uint64)
    table[:, 0] = (offset or 0) + firsts * row
    table[:, 1] = np.minimum(step, len(dataset) - firsts) * row
    table[:, 3] = firsts
    return (step, *inner), table


def _is_sparse(header: Chunks) -> bool:
    """Whether some chunk was never written, so that the fill value is there."""
    grid = [-(-n // step) for n, step in zip(header.shape, header.chunk, strict=True)]
    return len(header.offsets) < int(np.prod(grid, dtype=np.int64))


def read_h5ad(path: str | os.PathLike[str], *, workers: int | None = None) -> AnnData:
    """Read an h5ad file as anndata does, its arrays in parallel.

    Parameters
    ----------
    path
        The file.
    workers
        Threads; ``None``: ``$STFAST_WORKERS``, else the CPUs of this process.

    Returns
    -------
    AnnData
        What :func:`anndata.read_h5ad` gives.

    Raises
    ------
    FileNotFoundError
        No such file.
    FormatError
        No HDF5 file, no AnnData in it, or a chunk that is damaged.
    """
    from anndata.experimental import read_dispatched

    threads = _check.workers(workers)

    def element(read: Any, name: str, elem: Any, *, iospec: Any) -> Any:
        if (
            isinstance(elem, h5py.Dataset)
            and iospec.encoding_type == "array"
            and elem.dtype.names is None
        ):
            return Dataset(elem, threads).read()
        if iospec.encoding_type in ("csr_matrix", "csc_matrix"):
            return _read_sparse(elem, iospec.encoding_type, threads)
        return read(elem)

    with opened(path) as file:
        try:
            adata = read_dispatched(file, element)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise FormatError(f"{path}: expected AnnData, got {error}") from error
    if not isinstance(adata, AnnData):
        raise FormatError(f"{path}: expected AnnData, got {type(adata).__name__}")
    return adata


def _read_sparse(group: h5py.Group, kind: str, threads: int) -> Any:
    data, *places = (Dataset(group[n], threads).read() for n in ("data", "indices", "indptr"))
    make: Any = sparse.csr_matrix if kind == "csr_matrix" else sparse.csc_matrix
    return make((data, *places), shape=tuple(int(n) for n in group.attrs["shape"]))
