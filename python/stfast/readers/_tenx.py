"""10x matrices in HDF5, of every age and writer.

Current files have a group ``/matrix`` (cellranger's ``count_matrix``, version 2), probe
matrices the same with probes for genes, and files of Cell Ranger 1 and 2 one group a
genome. All are CSC over barcodes, which is CSR of barcodes × genes as it lies there.
"""

import gzip
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from anndata.utils import make_index_unique
from numpy.typing import NDArray
from scipy import sparse

from stfast import _core, _spatial
from stfast._core import FormatError
from stfast._stored import Stored, check_indptr, csr
from stfast._warn import warn
from stfast.h5 import Dataset, refuse_links

_BLOCK = 1 << 19
"""Barcodes that are read at once."""
_COLUMNS = {
    "gene_ids": "id",
    "feature_types": "feature_type",
    "genome": "genome",
    "probe_region": "probe_region",
    "gene_name": "gene_name",
}
_ATTRIBUTES = ("software_version", "chemistry_description")
_log = logging.getLogger("stfast")


@dataclass(frozen=True)
class Matrix:
    """A matrix in an open file: barcodes × genes.

    Attributes
    ----------
    data, indices
        Counts and genes, still in the file.
    indptr
        Where each barcode starts in them, int64.
    """

    path: Path
    group: h5py.Group
    data: Dataset
    indices: Dataset
    indptr: NDArray[np.int64]
    shape: tuple[int, int]
    threads: int

    def barcodes(self) -> list[str]:
        """Names of barcodes, as they are."""
        return texts(Dataset(self.group["barcodes"], self.threads))

    def squares(self, size: int) -> tuple[NDArray[np.int32], NDArray[np.int32]] | None:
        """Row and column of each barcode, if all are squares of ``size`` µm."""
        names = Dataset(self.group["barcodes"], self.threads)
        if names.stored.kind != "S":
            return parse_squares(self.barcodes(), size, self.threads)
        n = len(names)
        rows, cols = np.empty(n, np.int32), np.empty(n, np.int32)
        for start in range(0, n, _BLOCK):
            stop = min(start + _BLOCK, n)
            block, places = names.read(None, start, stop), (rows[start:stop], cols[start:stop])
            bits = block.view(np.uint8)
            if not _core.parse_squares(bits, block.itemsize, size, *places, self.threads):
                return None
        return rows, cols

    def var(self) -> pd.DataFrame:
        """Genes: unique symbols, with ids, types and genomes."""
        features = self.group.get("features", self.group)
        if "name" in features:
            columns = {new: old for new, old in _COLUMNS.items() if old in features}
            names = features["name"]
            if "gene_id" in features:
                # Of a probe matrix: the ids of rows are those of probes.
                columns |= {"gene_ids": "gene_id", "probe_ids": "id"}
        else:
            columns, names = {"gene_ids": "genes"}, features["gene_names"]
        found = {new: texts(Dataset(features[old], 1)) for new, old in columns.items()}
        if "features" not in self.group:
            found["genome"] = [self.group.name.strip("/")] * self.shape[1]
        for name, column in [("name", names), *found.items()]:
            if len(column) != self.shape[1]:
                raise FormatError(
                    f"{self.path}: expected names of {self.shape[1]} genes, "
                    f"got {len(column)} ({name})"
                )
        var = pd.DataFrame(found, index=unique_genes(texts(Dataset(names, 1)), self.path))
        if "filtered_probes" in features:
            var["filtered_probes"] = features["filtered_probes"][:].astype(bool)
        return var

    def obs(self, barcodes: list[str]) -> pd.DataFrame:
        """Barcodes, those that come again numbered, with what the file says of each."""
        obs = named_barcodes(barcodes, self.path)
        if "filtered_barcodes" in self.group:
            obs["filtered_barcodes"] = self.group["filtered_barcodes"][:].astype(bool)
        return obs

    def counts(self) -> Any:
        """All of the matrix: int32, or int64 or a float where counts are none."""
        indices = self._genes()
        data = whole_counts(self.data, self.path)
        matrix: Any = sparse.csr_matrix(self.shape, dtype=data.dtype)
        matrix.data, matrix.indices, matrix.indptr = data, indices, self.indptr
        if len(data) < 2**31:
            matrix.indptr = self.indptr.astype(np.int32)
        else:
            matrix.indices = indices.astype(np.int64)
        return matrix

    def sums(
        self,
        groups: NDArray[np.int64],
        n_groups: int,
        progress: Callable[[int], object] | None = None,
    ) -> sparse.csr_matrix:
        """Sums over the barcodes of each group; the matrix itself is never held."""
        whole = self.data.stored.kind in "iu"
        dtypes = ("int32", "int64") if whole else ("float64",)
        stored = Stored(self.data, self.indices, self.indptr, self.shape, counts=True)
        try:
            data, genes, starts = stored.sums(groups, n_groups, dtypes=dtypes, progress=progress)
        except IndexError as error:
            raise self._bad_genes() from error
        if len(data) and not 0 < float(data.min()) <= float(data.max()) < np.inf:
            raise FormatError(
                f"{self.path}: expected a consistent sparse matrix, got negative or infinite counts"
            )
        sums = (data if whole else narrowed(data), genes, starts)
        return csr(sums, n_groups, self.shape[1])

    def attributes(self) -> dict[str, str]:
        """What the file says of itself."""
        attrs = self.group.file.attrs
        return {name: _word(attrs[name]) for name in _ATTRIBUTES if name in attrs}

    def _genes(self) -> NDArray[np.int32]:
        try:
            return self.indices.read(np.int32, below=self.shape[1])
        except OverflowError as error:
            raise self._bad_genes() from error

    def _bad_genes(self) -> FormatError:
        return FormatError(
            f"{self.path}: expected a consistent sparse matrix, "
            f"got gene indices outside 0..{self.shape[1]}"
        )


def narrowed(values: NDArray[Any]) -> NDArray[Any]:
    """Floats as int32 if they are whole and fit."""
    whole = bool((values == np.trunc(values)).all())
    fits = whole and (not len(values) or abs(values).max() < 2**31)
    return values.astype(np.int32) if fits else values


def whole_counts(data: Dataset, path: Path) -> NDArray[Any]:
    """Counts as int32 if they fit, as int64 if not, and as they are if they are no counts."""
    fault = "expected a consistent sparse matrix, got negative or infinite counts"
    if data.stored.kind in "iu":
        try:
            return data.read(np.int32, below=2**31)
        except OverflowError:
            pass
        try:
            return data.read(np.int64, below=2**63)
        except OverflowError as error:
            raise FormatError(f"{path}: {fault}") from error
    values = narrowed(data.read())
    if len(values) and not 0 <= float(values.min()) <= float(values.max()) < np.inf:
        raise FormatError(f"{path}: {fault}")
    if values.dtype.kind == "f":
        _log.warning("%s: expected whole counts, got fractions; kept as %s", path, values.dtype)
    return values


@contextmanager
def open_matrix(path: Path, genome: str | None = None, threads: int = 1) -> Iterator[Matrix]:
    """A matrix in HDF5, gzipped or not; what is wrong with it becomes a FormatError."""
    with plain(path) as file_path, _explained(path), h5py.File(file_path) as file:
        refuse_links(file, path)
        group = _group(file, genome, path)
        shape = [int(n) for n in group["shape"][:]]
        if len(shape) != 2:
            raise FormatError(f"{path}: expected a shape of two sizes, got {shape}")
        data, indices = (Dataset(group[name], threads) for name in ("data", "indices"))
        indptr = Dataset(group["indptr"], threads)
        sizes = (shape[1], shape[0])
        _check_arrays((data, indices, indptr), sizes, len(group["barcodes"]), path)
        starts = indptr.read(np.int64)
        check_indptr(starts, len(data), path)
        yield Matrix(path, group, data, indices, starts, sizes, threads)


def count_sizes(path: Path) -> dict[str, int]:
    """Barcodes, genes and stored counts of a matrix, from its header alone."""
    with plain(path) as file_path, _explained(path), h5py.File(file_path) as file:
        refuse_links(file, path)
        genes, barcodes = (int(n) for n in file["matrix/shape"][:])
        return {"barcodes": barcodes, "genes": genes, "nonzeros": len(file["matrix/data"])}


@contextmanager
def plain(path: Path) -> Iterator[Path]:
    """The file itself, or what a gzipped one holds, in a temporary file."""
    with path.open("rb") as file:
        if file.read(2) != b"\x1f\x8b":
            yield path
            return
    with tempfile.TemporaryDirectory() as folder:
        unpacked = Path(folder) / path.stem
        try:
            with gzip.open(path) as packed, unpacked.open("wb") as out:
                shutil.copyfileobj(packed, out, 1 << 20)
        except (OSError, EOFError) as error:
            raise FormatError(f"{path}: expected a whole gzip file, got {error}") from error
        yield unpacked


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except (FormatError, OverflowError):
        raise
    except (OSError, LookupError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        expected = "a 10x feature-barcode matrix in HDF5"
        raise FormatError(f"{path}: expected {expected}, got {error}") from error


def _group(file: h5py.File, genome: str | None, path: Path) -> h5py.Group:
    """``/matrix``, or the group of a genome where a file has one each."""
    if "matrix" in file:
        return file["matrix"]
    genomes = [
        name for name in file if isinstance(file[name], h5py.Group) and "indptr" in file[name]
    ]
    if genome is None and len(genomes) == 1:
        return file[genomes[0]]
    if genome in genomes:
        return file[genome]
    if not genomes:
        raise FormatError(
            f"{path}: expected a 10x feature-barcode matrix in HDF5 (/matrix, or a group a "
            f"genome), got {sorted(file)}"
        )
    raise ValueError(f"{path}: expected genome= as one of {genomes}, got {genome!r}")


def _check_arrays(
    arrays: tuple[Dataset, Dataset, Dataset], sizes: tuple[int, int], names: int, path: Path
) -> None:
    data, indices, indptr = arrays
    n_barcodes = sizes[0]
    kinds = zip(arrays, ("iuf", "iu", "iu"), strict=True)
    if not all(a.stored.kind in kind and a.dataset.ndim == 1 for a, kind in kinds):
        found = ", ".join(f"{a.stored} {a.dataset.shape}" for a in arrays)
        raise FormatError(f"{path}: expected vectors of counts, indices and indptr, got {found}")
    faults = {
        f"{n_barcodes} barcodes by shape but {names} by name": names != n_barcodes,
        f"{sizes[1]} genes by shape": sizes[1] < 0,
        f"{len(indptr)} values in indptr": len(indptr) != n_barcodes + 1,
        f"{len(data)} values but {len(indices)} indices": len(data) != len(indices),
    }
    for found, bad in faults.items():
        if bad:
            raise FormatError(f"{path}: expected a consistent sparse matrix, got {found}")


def texts(names: Dataset) -> list[str]:
    """Texts of fixed length or of any, as Python has them."""
    if names.stored.kind != "S" or not names.stored.itemsize:
        return [str(text) for text in names.dataset.asstr()[:]]
    found: list[str] = []
    for start in range(0, len(names), _BLOCK):
        block = names.read(None, start, min(start + _BLOCK, len(names)))
        # A line each: one decoding for all of them instead of one for each.
        lines = np.full((len(block), names.stored.itemsize + 1), ord("\n"), np.uint8)
        lines[:, :-1] = block.view(np.uint8).reshape(len(block), -1)
        split = lines[lines != 0].tobytes().decode().split("\n")[:-1]
        found += split if len(split) == len(block) else [text.decode() for text in block.tolist()]
    return found


def parse_squares(
    names: list[str], size: int, threads: int
) -> tuple[NDArray[np.int32], NDArray[np.int32]] | None:
    """Row and column of each name, if all are names of squares of ``size`` µm."""
    if not names:
        return np.empty(0, np.int32), np.empty(0, np.int32)
    block = np.array([name.encode() for name in names])
    rows, cols = np.empty(len(block), np.int32), np.empty(len(block), np.int32)
    bits = block.view(np.uint8)
    good = _core.parse_squares(bits, block.itemsize, size, rows, cols, threads)
    return (rows, cols) if good else None


def unique_genes(names: list[str], path: Path) -> Any:
    """Symbols of genes, those that come again numbered as scanpy does."""
    index = _spatial.names(names)
    if index.is_unique:
        return index
    _log.info("%s: %d gene symbols come again: numbered", path, int(index.duplicated().sum()))
    return make_index_unique(index)


def named_barcodes(names: list[str], path: Path) -> pd.DataFrame:
    """``obs`` of barcodes; those that come again are numbered as scanpy does, and warned of.

    What they were is then kept as a column ``barcode``.
    """
    index = _spatial.names(names)
    # Of sorted names, as Space Ranger's are, pandas then knows this without hashing them.
    if (index.is_monotonic_increasing and index.is_unique) or index.is_unique:
        return pd.DataFrame(index=index)
    again = index[index.duplicated()]
    warn(
        f"{path}: expected each barcode once, got {len(again)} again (first {again[0]!r}): numbered"
    )
    return pd.DataFrame({"barcode": names}, index=make_index_unique(index))


def _word(value: Any) -> str:
    value = np.ravel(value)[0] if np.ndim(value) else value
    return value.decode() if isinstance(value, bytes) else str(value)
