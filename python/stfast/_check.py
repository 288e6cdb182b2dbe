"""Coercion of arguments, in one place.

Python coerces, Rust checks: a function here turns what users pass (a scipy
matrix of any kind, a list, ``None`` for workers) into the few types that the
native module takes, or raises the exception that names what it found.
"""

import math
import os
import sys
from typing import Any, TypeAlias, TypeGuard, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from stfast import _platform

Matrix: TypeAlias = tuple[NDArray[Any], NDArray[Any], NDArray[Any], int]

_MOST_WORKERS = 512
"""More threads than any one machine has use for; starting thousands takes minutes."""

_COUNT_DTYPES = ("int32", "int64", "float32", "float64")
_INDEX_DTYPES = ("int32", "int64")


def workers(n: int | None) -> int:
    """Threads to use: ``n``, else ``$STFAST_WORKERS``, else what this process may use.

    Inside a worker process of torch's ``DataLoader`` the default is 1: there
    the processes are the parallelism.
    """
    if n is None:
        n = _workers_from_environment()
    n = at_least_one(n, "workers")
    if n > _MOST_WORKERS:
        raise ValueError(f"workers: expected at most {_MOST_WORKERS}, got {n}")
    return n


def _workers_from_environment() -> int:
    text = os.environ.get("STFAST_WORKERS")
    if text:
        if not text.isdecimal():
            raise ValueError(f"STFAST_WORKERS: expected an integer of at least 1, got {text!r}")
        return int(text)
    return 1 if _in_torch_worker() else _platform.cpus()


def _in_torch_worker() -> bool:
    torch_data = sys.modules.get("torch.utils.data")
    return torch_data is not None and torch_data.get_worker_info() is not None


def matrix(x: Any, name: str = "matrix") -> Matrix:
    """A matrix of counts as the native module takes it: data, indices, indptr, columns.

    Nothing is copied when ``x`` is a CSR matrix of int32, int64, float32 or
    float64. Other kinds (CSC, COO, dense) and narrower numbers are converted.
    """
    rows: Any = _compressed(x, name)
    same = rows.indices.dtype == rows.indptr.dtype and rows.indices.dtype.name in _INDEX_DTYPES
    index = rows.indices.dtype if same else np.dtype(np.int64)
    data = rows.data.astype(_exact_dtype(rows.data, name), copy=False)
    indices = np.ascontiguousarray(rows.indices, dtype=index)
    indptr = np.ascontiguousarray(rows.indptr, dtype=index)
    return np.ascontiguousarray(data), indices, indptr, int(rows.shape[1])


def csr(x: Any, name: str = "matrix") -> sparse.csr_matrix:
    """A matrix of any kind in memory (scipy's matrices and arrays, pydata's, dense) as CSR."""
    rows = _compressed(x, name)
    return rows if isinstance(rows, sparse.csr_matrix) else sparse.csr_matrix(rows)


def tidied(rows: sparse.csr_matrix, name: str = "matrix") -> sparse.csr_matrix:
    """The same matrix with columns in order, each once a row: what is there twice is added.

    What was given may be somebody else's, and is left as it was. Integers are added as
    int64: bytes do not hold the sum of two bytes.
    """
    exact = _exact_dtype(rows.data, name)
    tidy = rows.astype(np.int64 if exact.kind == "i" else exact, copy=True)
    tidy.sum_duplicates()
    return tidy


def _compressed(x: Any, name: str) -> Any:
    """As CSR, a matrix or an array: what is that already is not looked into."""
    if hasattr(x, "to_memory"):
        raise NotImplementedError(f"{name}: expected a matrix in memory, got a backed one")
    stored = scipy_or_numpy(x, name)
    if stored.ndim != 2:
        raise ValueError(f"{name}: expected 2 dimensions, got {stored.ndim}")
    count_dtype(stored.dtype, name)
    stored = stored.astype(scipy_dtype(stored.dtype), copy=False)
    kind = getattr(stored, "format", "")
    if kind == "coo":  # scipy adds what is there twice, and bytes do not hold the sum
        stored = stored.astype(_exact_dtype(stored.data, name), copy=False)
    return stored if kind == "csr" else sparse.csr_matrix(stored)


def scipy_or_numpy(x: Any, name: str = "matrix") -> Any:
    """What is in memory, as it is or as scipy (pydata's sparse arrays) or numpy has it."""
    if np.ma.is_masked(x):
        raise ValueError(f"{name}: expected all numbers, got masked ones; fill them first")
    if hasattr(x, "to_scipy_sparse"):
        return x.to_scipy_sparse()
    return x if sparse.issparse(x) else np.asarray(x)


def scipy_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype itself; of halves and of other byte orders, one that scipy computes with."""
    return np.dtype(np.float32) if dtype.str[1:] == "f2" else dtype.newbyteorder("=")


def count_dtype(dtype: np.dtype[Any], name: str) -> np.dtype[Any]:
    """The first of the four dtypes that holds all numbers of another; int64 for uint64."""
    if dtype.kind not in "biuf" or dtype.itemsize > 8:
        raise ValueError(f"{name}: expected numbers of at most 64 bits, got dtype {dtype}")
    if dtype.kind == "u" and dtype.itemsize == 8:
        return np.dtype(np.int64)
    return next(w for w in map(np.dtype, _COUNT_DTYPES) if np.can_cast(dtype, w, "safe"))


def _exact_dtype(data: NDArray[Any], name: str) -> np.dtype[Any]:
    """The same, and of uint64 no number that int64 does not hold."""
    if data.dtype.kind == "u" and data.dtype.itemsize == 8:
        largest = int(data.max(initial=0))
        if largest > np.iinfo(np.int64).max:
            raise ValueError(f"{name}: expected counts below 2**63, got {largest}")
    return count_dtype(data.dtype, name)


def integers(x: ArrayLike, name: str, n: int | None = None) -> NDArray[np.int64]:
    """A vector of whole numbers as int64; ``n`` is the length it must have."""
    array = np.asarray(_without_missing(x, name))
    if array.ndim != 1 or (n is not None and array.size != n):
        wanted = "a vector" if n is None else f"{n} values"
        raise ValueError(f"{name}: expected {wanted}, got shape {array.shape}")
    if array.dtype.kind not in "iuf":
        raise ValueError(f"{name}: expected whole numbers, got dtype {array.dtype}")
    if array.dtype.kind != "i":
        # NaN and infinity fail a comparison too.
        good = (array < 2**63) & (array >= -(2**63))
        good &= np.trunc(np.where(good, array, 0)) == array
        if not good.all():
            bad = array[~good][0]
            raise ValueError(f"{name}: expected whole numbers of 64 bits, got {bad}")
    return np.ascontiguousarray(array, dtype=np.int64)


def _without_missing(x: Any, name: str) -> Any:
    """The numbers of pandas' nullable types, of which none may be missing; all else as it is."""
    dtype = getattr(x, "dtype", None)
    from pandas.api.extensions import ExtensionDtype  # not for each command that checks

    if not isinstance(dtype, ExtensionDtype) or dtype.kind not in "iufb":
        return x
    missing = int(x.isna().sum())
    if missing:
        raise ValueError(f"{name}: expected whole numbers, got none for {missing}")
    return x.to_numpy(dtype=dtype.kind + "8" if dtype.kind != "b" else bool)


def positive(x: Any, name: str, unit: str = "") -> float:
    """A finite number above zero."""
    number = isinstance(x, (int, float, np.number)) and not isinstance(x, (bool, complex))
    if not number or not math.isfinite(x) or x <= 0:
        raise ValueError(f"{name}: expected a positive number{unit and f' of {unit}'}, got {x!r}")
    return float(x)


def is_whole(x: object) -> TypeGuard[int]:
    """Whether ``x`` is an integer, Python's or numpy's; booleans are not."""
    return isinstance(x, (int, np.integer)) and not isinstance(x, bool)


def at_least_one(n: object, name: str) -> int:
    """A whole number from 1 on."""
    if not is_whole(n) or n < 1:
        raise ValueError(f"{name}: expected an integer of at least 1, got {n!r}")
    return int(n)


def grey(level: object, name: str) -> int:
    """A grey level from 0 to 255."""
    if not is_whole(level) or not 0 <= level <= 255:
        raise ValueError(f"{name}: expected a grey level from 0 to 255, got {level!r}")
    return int(level)


def points(x: ArrayLike, name: str = "centers") -> NDArray[np.float64]:
    """Coordinates as (n, 2) float64, all finite."""
    array = np.asarray(x, dtype=np.float64)
    if array.ndim != 2 or array.shape[1] != 2:
        raise ValueError(f"{name}: expected shape (n, 2), got {array.shape}")
    bad = np.flatnonzero(~np.isfinite(array).all(axis=1))
    if bad.size:
        where = f"{tuple(array[bad[0]].tolist())} at row {bad[0]}"
        raise ValueError(f"{name}: expected finite coordinates, got {where} ({bad.size} such)")
    return array


def choice(word: str, words: Any, name: str) -> str:
    """``word`` if it is one of a Literal's words."""
    known = get_args(words)
    if word not in known:
        raise ValueError(f"{name}: expected one of {', '.join(known)}, got {word!r}")
    return word
