"""Counts on disk as sources: h5ad, zarr, 10x HDF5, backed AnnData, folders of slides.

Headers (shapes, names of genes, what kind of matrix) are read here by h5py, zarr and
anndata; a file is open only while blocks of it are read, so a cohort of a thousand
slides needs no thousand open files.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import h5py
import numpy as np
import pandas as pd
from anndata import AnnData
from anndata.io import read_elem
from anndata.utils import make_index_unique
from scipy import sparse

from stfast import _check, _lazy, _spatial
from stfast._core import FormatError
from stfast.h5 import opened as opened_h5
from stfast.hvg.source import Read, Source, of_matrix
from stfast.readers import read

Slide: TypeAlias = AnnData | str | os.PathLike[str]
Slides: TypeAlias = Sequence[Slide] | Mapping[str, Slide]


def open_source(data: Any, layer: str | None = None) -> Source:
    """The source of an AnnData (backed, lazy or neither), a matrix, or a path."""
    if isinstance(data, AnnData):
        return _of_anndata(data, layer, "counts")
    if isinstance(data, (str, os.PathLike)):
        return _of_path(Path(data), layer)
    if layer is not None:
        raise ValueError(f"layer: expected none with a matrix, got {layer!r}")
    return of_matrix(data)


def open_slides(slides: Slides, layer: str | None = None) -> dict[str, Source]:
    """A source a slide, by name: the mapping's, else the file's or the position."""
    if isinstance(slides, Mapping):
        named = dict(slides)
    else:
        named = {}
        for at, slide in enumerate(slides):
            name = str(at) if isinstance(slide, AnnData) else Path(slide).stem
            while name in named:
                name = f"{name}-{at}"
            named[name] = slide
    if not named:
        raise ValueError("slides: expected at least one, got none")
    sources = {}
    for name, slide in named.items():
        sources[name] = open_source(slide, layer)
        if isinstance(slide, AnnData):
            sources[name].name = f"slide {name}"
    return sources


def _of_anndata(adata: AnnData, layer: str | None, name: str) -> Source:
    if layer is not None and layer not in adata.layers:
        raise KeyError(f"layer: expected one of {list(_spatial.layers(adata))}, got {layer!r}")
    matrix: Any = adata.X if layer is None else adata.layers[layer]
    genes = _lazy.in_memory(adata.var).index
    if hasattr(matrix, "to_memory") and hasattr(matrix, "group"):
        group = matrix.group
        source = _stored(lambda: nullcontext(group), genes, str(adata.filename))
    elif isinstance(matrix, h5py.Dataset):
        source = _stored(lambda: nullcontext(matrix), genes, str(adata.filename))
    else:
        source = of_matrix(matrix, genes, name)
    source.table = lambda: _lazy.in_memory(adata.obs)
    return _with_logarithm(source, _lazy.in_memory(adata.uns.get("log1p")))


def _of_path(path: Path, layer: str | None) -> Source:
    if not path.exists():
        raise FileNotFoundError(2, "No such file or directory", str(path))
    if path.suffix == ".h5ad" or (path / ".zgroup").exists() or (path / "zarr.json").exists():
        return _of_store(path, layer)
    if path.suffix in (".h5", ".hdf5"):
        if layer is not None:
            raise ValueError(f"layer: expected none with {path}, got {layer!r}")
        return _of_tenx(path)
    adata = read(path)
    tissue = _spatial.flags(adata.obs, "in_tissue") == 1
    return _of_anndata(adata[tissue].copy(), layer, str(path))


@contextmanager
def _reading(path: Path | str, expected: str) -> Iterator[None]:
    """What a library finds wrong with a file becomes a FormatError that names it."""
    try:
        yield
    except (FormatError, FileNotFoundError, PermissionError):
        raise
    except (OSError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise FormatError(f"{path}: expected {expected}, got {error}") from error


def _open_store(path: Path) -> AbstractContextManager[Any]:
    if path.suffix == ".h5ad" or not path.is_dir():
        return opened_h5(path)
    import zarr

    return nullcontext(zarr.open_group(path, mode="r"))


def _of_store(path: Path, layer: str | None) -> Source:
    where = "X" if layer is None else f"layers/{layer}"
    with _reading(path, "an AnnData in HDF5 or zarr"), _open_store(path) as store:
        genes = read_elem(store["var"]).index
        logarithm = read_elem(store["uns/log1p"]) if "uns/log1p" in store else None
        layers = list(store["layers"]) if "layers" in store else []
    if layer is not None and layer not in layers:
        raise KeyError(f"layer: expected one of {layers}, got {layer!r} ({path})")

    @contextmanager
    def opened() -> Iterator[Any]:
        with _reading(path, f"a matrix in {where}"):
            manager = _open_store(path)
        with manager as store:
            yield store[where]

    def table() -> pd.DataFrame:
        with _reading(path, "a table obs"), _open_store(path) as store:
            obs: pd.DataFrame = read_elem(store["obs"])
            return obs

    source = _stored(opened, genes, str(path))
    source.table = table
    return _with_logarithm(source, logarithm)


def _of_tenx(path: Path) -> Source:
    with _reading(path, "a 10x feature-barcode matrix in HDF5"), opened_h5(path) as file:
        names = file["matrix/features/name"].asstr()[:]

    @contextmanager
    def opened() -> Iterator[Any]:
        with opened_h5(path) as file:
            yield file["matrix"]

    def table() -> pd.DataFrame:
        with _reading(path, "barcodes"), opened_h5(path) as file:
            return pd.DataFrame(index=_spatial.names(file["matrix/barcodes"].asstr()[:]))

    genes = make_index_unique(_spatial.names(names))
    source = _stored(opened, genes, str(path))
    source.table = table
    return source


def _with_logarithm(source: Source, logarithm: Any) -> Source:
    """Note what ``uns["log1p"]`` says."""
    source.logged = logarithm is not None
    base = logarithm.get("base") if isinstance(logarithm, Mapping) else None
    source.log_base = None if base is None else float(base)
    return source


def _stored(
    opened: Callable[[], AbstractContextManager[Any]], genes: "pd.Index[str]", name: str
) -> Source:
    """The source of a group of compressed rows, or of a dense dataset, in a file."""
    with _reading(name, "a matrix of spots × genes"), opened() as stored:
        dense = hasattr(stored, "dtype")
        shape = _shape(stored, dense=dense)
        density = shape[1] if dense else stored["data"].shape[0] / max(shape[0], 1)
        kind = "dense" if dense else str(stored.attrs.get("encoding-type", "csr_matrix"))
    if kind == "csc_matrix":
        raise NotImplementedError(
            f"{name}: expected rows compressed (CSR) or dense on disk, got {kind}: load it first"
        )
    if shape[1] != len(genes):
        raise FormatError(f"{name}: expected names of {shape[1]} genes, got {len(genes)}")

    @contextmanager
    def reader() -> Iterator[Read]:
        with opened() as stored:
            rows = _dense_rows if dense else _compressed_rows
            yield partial(rows, stored, name, shape[1])

    return Source(
        name=name, genes=genes, size=shape[0], density=density, opened=reader, is_sparse=not dense
    )


def _shape(stored: Any, *, dense: bool) -> tuple[int, int]:
    """Spots and genes; 10x has a dataset of genes and barcodes instead of an attribute."""
    if dense:
        n, genes = stored.shape
    elif "shape" in stored.attrs:
        n, genes = stored.attrs["shape"]
    else:
        genes, n = stored["shape"][:]
    return int(n), int(genes)


def _compressed_rows(
    group: Any, name: str, n_genes: int, first: int, last: int
) -> sparse.csr_matrix:
    """Rows of a range: the one place where compressed rows are read from a file."""
    with _reading(name, f"rows {first} to {last} of a sparse matrix"):
        indptr = group["indptr"][first : last + 1].astype(np.int64)
        start, end = int(indptr[0]), int(indptr[-1])
        data, indices = group["data"][start:end], group["indices"][start:end]
        if not len(data) == len(indices) == end - start or (np.diff(indptr) < 0).any():
            raise ValueError("an indptr that does not rise to the number of values")
        if len(indices) and not 0 <= indices.min() <= indices.max() < n_genes:
            raise ValueError(f"gene indices outside 0..{n_genes}")
        data = data.astype(_check.scipy_dtype(data.dtype), copy=False)
        return sparse.csr_matrix((data, indices, indptr - start), shape=(last - first, n_genes))


def _dense_rows(dataset: Any, name: str, n_genes: int, first: int, last: int) -> sparse.csr_matrix:
    with _reading(name, f"rows {first} to {last} of {n_genes} numbers"):
        return _check.csr(dataset[first:last], name)
