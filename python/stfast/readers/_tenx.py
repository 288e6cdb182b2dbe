"""10x Genomics' own files: count matrices in HDF5, positions, scale factors.

The layouts are those of cellranger's ``count_matrix`` (``/matrix``, version 2) and
of Space Ranger's ``spatial`` folder.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import pandas as pd
import polars as pl
from anndata.utils import make_index_unique
from numpy.typing import NDArray
from PIL import Image
from scipy import sparse

from stfast._core import FormatError

_POSITIONS = [
    "in_tissue",
    "array_row",
    "array_col",
    "pxl_row_in_fullres",
    "pxl_col_in_fullres",
]


class Counts(NamedTuple):
    """A 10x matrix: barcodes × genes, their names, and the file's attributes."""

    matrix: sparse.csr_matrix
    barcodes: pd.Index
    var: pd.DataFrame
    attributes: dict[str, str]


def read_counts(path: Path) -> Counts:
    """Read ``*_feature_bc_matrix.h5``."""
    with _open(path) as file:
        return _counts(file, path)


def count_sizes(path: Path) -> dict[str, int]:
    """Barcodes, genes and stored counts of a matrix, from its header alone."""
    with _open(path) as file:
        genes, barcodes = (int(n) for n in file["matrix/shape"][:])
        return {"barcodes": barcodes, "genes": genes, "nonzeros": len(file["matrix/data"])}


@contextmanager
def _open(path: Path) -> Iterator[h5py.File]:
    """An HDF5 file; what h5py finds wrong with it becomes a FormatError."""
    with path.open("rb"):
        pass
    try:
        with h5py.File(path) as file:
            yield file
    except FormatError:
        raise
    except (OSError, LookupError, TypeError, ValueError, AttributeError) as error:
        expected = "a 10x feature-barcode matrix in HDF5"
        raise FormatError(f"{path}: expected {expected}, got {error}") from error


def _counts(file: h5py.File, path: Path) -> Counts:
    group = file["matrix"]
    n_genes, n_barcodes = (int(n) for n in group["shape"][:])
    barcodes = _text(group["barcodes"])
    data, indices, indptr = (group[name][:] for name in ("data", "indices", "indptr"))
    _check_matrix((data, indices, indptr), (len(barcodes), n_barcodes, n_genes), path)
    if data.dtype.kind == "u":
        data = data.astype(np.int64 if data.dtype.itemsize > 2 else np.int32)
    matrix = sparse.csr_matrix(
        (data, indices.astype(np.int32), indptr.astype(np.int64)), shape=(n_barcodes, n_genes)
    )
    names = ("software_version", "chemistry_description")
    attributes = {name: _word(file.attrs[name]) for name in names if name in file.attrs}
    var, index = _var(group["features"]), pd.Index(barcodes)
    if len(var) != n_genes:
        raise FormatError(f"{path}: expected names of {n_genes} genes, got {len(var)}")
    if not index.is_unique:
        twice = index[index.duplicated()][0]
        raise FormatError(f"{path}: expected each barcode once, got {twice!r} again")
    return Counts(matrix, index, var, attributes)


def _check_matrix(
    arrays: tuple[NDArray[Any], NDArray[Any], NDArray[Any]], sizes: tuple[int, int, int], path: Path
) -> None:
    data, indices, indptr = arrays
    n_names, n_barcodes, n_genes = sizes
    kinds = (data.dtype.kind in "iuf", indices.dtype.kind in "iu", indptr.dtype.kind in "iu")
    if not all(kinds) or any(array.ndim != 1 for array in arrays):
        found = ", ".join(f"{array.dtype} {array.shape}" for array in arrays)
        raise FormatError(f"{path}: expected vectors of counts, indices and indptr, got {found}")
    faults = {
        f"{n_barcodes} barcodes by shape but {n_names} by name": n_names != n_barcodes,
        f"{len(indptr)} values in indptr": len(indptr) != n_barcodes + 1,
        f"{len(data)} values but {len(indices)} indices": len(data) != len(indices),
    }
    if not any(faults.values()):
        faults = {
            "indptr that does not rise from 0 to the number of values": indptr[0] != 0
            or indptr[-1] != len(data)
            or bool((np.diff(indptr.astype(np.int64)) < 0).any()),
            f"gene indices outside 0..{n_genes}": len(indices) > 0
            and not 0 <= int(indices.min()) <= int(indices.max()) < n_genes,
            "negative or infinite counts": len(data) > 0
            and not 0 <= float(data.min()) <= float(data.max()) < np.inf,
        }
    for found, bad in faults.items():
        if bad:
            raise FormatError(f"{path}: expected a consistent sparse matrix, got {found}")


def _var(features: h5py.Group) -> pd.DataFrame:
    names = make_index_unique(pd.Index(_text(features["name"]), dtype=object))
    columns = {"gene_ids": "id", "feature_types": "feature_type", "genome": "genome"}
    found = {new: _text(features[old]) for new, old in columns.items() if old in features}
    return pd.DataFrame(found, index=names)


def _text(dataset: h5py.Dataset) -> NDArray[np.object_]:
    return np.asarray(dataset.asstr()[:], dtype=object)


def _word(value: Any) -> str:
    value = np.ravel(value)[0] if np.ndim(value) else value
    return value.decode() if isinstance(value, bytes) else str(value)


def read_positions(path: Path) -> pl.DataFrame:
    """Read ``tissue_positions.parquet``: a barcode a row, with grid and pixel position."""
    with path.open("rb"):
        pass
    try:
        table = pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise FormatError(f"{path}: expected a Parquet table, got {error}") from error
    missing = {"barcode", *_POSITIONS} - set(table.columns)
    if missing:
        raise FormatError(f"{path}: expected columns {sorted(missing)}, got {table.columns}")
    kinds = {name: table[name].dtype for name in ("barcode", *_POSITIONS)}
    numbers = all(kinds[name].is_numeric() for name in _POSITIONS)
    if kinds["barcode"] != pl.String or not numbers:
        raise FormatError(f"{path}: expected barcodes as text and numbers, got {kinds}")
    grid = pl.col(_POSITIONS[:3])
    finite = grid.cast(pl.Float64).is_finite().fill_null(value=False)
    whole = table.select((finite & (grid == grid.floor())).all())
    if not all(whole.row(0)):
        raise FormatError(f"{path}: expected whole {', '.join(_POSITIONS[:3])}, got others")
    return table.select(
        pl.col("barcode"),
        grid.cast(pl.Int64),
        pl.col(_POSITIONS[3:]).cast(pl.Float64),
    )


def join_positions(
    barcodes: pd.Index, positions: pl.DataFrame, path: Path
) -> tuple[pd.DataFrame, NDArray[np.float64]]:
    """``obs`` and (x, y) in full-resolution pixels of the barcodes of a matrix."""
    wanted = pl.DataFrame({"barcode": pl.Series(barcodes.to_numpy(), dtype=pl.String)})
    joined = wanted.join(positions, on="barcode", how="left", maintain_order="left")
    if len(joined) != len(wanted):
        raise FormatError(f"{path}: expected each barcode once, got some twice")
    unknown = joined["array_row"].is_null()
    if unknown.any():
        first = joined["barcode"].filter(unknown)[0]
        raise FormatError(
            f"{path}: expected a position for each of {len(joined)} barcodes of the matrix, "
            f"got none for {unknown.sum()} of them (first {first!r})"
        )
    xy = joined.select("pxl_col_in_fullres", "pxl_row_in_fullres").to_numpy()
    if not np.isfinite(xy).all():
        raise FormatError(f"{path}: expected finite pixel positions, got NaN or infinite ones")
    obs = pd.DataFrame({name: joined[name].to_numpy() for name in _POSITIONS[:3]}, index=barcodes)
    return obs, np.ascontiguousarray(xy)


def read_library(spatial: Path) -> dict[str, Any]:
    """Images and scale factors of a ``spatial`` folder, as scanpy keeps them."""
    images = {
        name: _pixels(spatial / f"tissue_{name}_image.png")
        for name in ("hires", "lowres")
        if (spatial / f"tissue_{name}_image.png").exists()
    }
    return {"images": images, "scalefactors": read_scalefactors(spatial)}


def read_scalefactors(spatial: Path) -> dict[str, Any]:
    """Read ``scalefactors_json.json`` of a ``spatial`` folder."""
    path = spatial / "scalefactors_json.json"
    try:
        factors = json.loads(path.read_bytes())
    except ValueError as error:
        raise FormatError(f"{path}: expected JSON, got {error}") from error
    if not isinstance(factors, dict) or "tissue_hires_scalef" not in factors:
        found = list(factors) if isinstance(factors, dict) else type(factors).__name__
        raise FormatError(f"{path}: expected Space Ranger's scale factors, got {found}")
    for name, value in factors.items():
        known = name.endswith(("_scalef", "_fullres", "_um", "_per_pixel"))
        if known and not (type(value) in (int, float) and 0 < value < np.inf):
            raise FormatError(f"{path}: expected a positive number as {name}, got {value!r}")
    return factors


def _pixels(path: Path) -> NDArray[np.uint8]:
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError) as error:
        raise FormatError(f"{path}: expected a picture, got {error}") from error
