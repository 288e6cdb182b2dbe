"""The native module. `rust/py/src` has the words; `make check` holds this to it."""

from collections.abc import Callable, Sequence
from os import PathLike
from typing import Any, Protocol, final

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Cache",
    "FormatError",
    "Level",
    "__version__",
    "add_counts",
    "add_deviations",
    "add_excess",
    "add_residuals",
    "add_values",
    "assign_bins",
    "epoch_order",
    "extract_tiles",
    "gather_rows",
    "loess",
    "sum_groups",
    "zero_residuals",
]

__version__: str

_Matrix = tuple[NDArray[Any], NDArray[Any], NDArray[Any], int]
_Progress = Callable[[int], object]

_Places = tuple[
    Sequence[Level],
    Sequence[tuple[float, float]],
    NDArray[np.uint32],
    NDArray[np.float64],
    NDArray[np.float64],
]

class FormatError(ValueError): ...

class _Header(Protocol):
    @property
    def width(self) -> int: ...
    @property
    def height(self) -> int: ...
    @property
    def block_width(self) -> int: ...
    @property
    def block_height(self) -> int: ...
    @property
    def padded(self) -> bool: ...
    @property
    def samples(self) -> int: ...
    @property
    def planar(self) -> bool: ...
    @property
    def codec(self) -> str: ...
    @property
    def differenced(self) -> bool: ...
    @property
    def colour(self) -> str: ...
    @property
    def tables(self) -> bytes: ...
    @property
    def offsets(self) -> NDArray[np.uint64]: ...
    @property
    def lengths(self) -> NDArray[np.uint64]: ...

@final
class Level:
    def __new__(cls, path: str | PathLike[str], header: _Header) -> Level: ...

@final
class Cache:
    def __new__(cls, capacity: int) -> Cache: ...

def assign_bins(
    rows: NDArray[np.int64], cols: NDArray[np.int64], factor: int, workers: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]: ...
def sum_groups(
    matrix: _Matrix,
    group_of_row: NDArray[np.int64],
    n_groups: int,
    workers: int,
    progress: _Progress | None = None,
) -> tuple[NDArray[Any], NDArray[np.int32], NDArray[np.int64]]: ...

_Floats = NDArray[np.float64]
_Flags = tuple[bool, bool, bool, bool, bool]
_Scale = tuple[str, float, _Floats | None]

def add_counts(
    matrix: _Matrix,
    sums: NDArray[np.uint64],
    totals: _Floats,
    workers: int,
) -> _Flags: ...
def add_values(
    matrix: _Matrix, scale: _Scale, sums: _Floats, totals: _Floats, workers: int
) -> _Flags: ...
def add_deviations(
    matrix: _Matrix, scale: _Scale, mean: _Floats, sums: _Floats, workers: int
) -> None: ...
def add_excess(matrix: _Matrix, bounds: _Floats, sums: _Floats, workers: int) -> None: ...
def add_residuals(
    matrix: _Matrix,
    marginals: tuple[_Floats, _Floats],
    model: tuple[float, float, float],
    sums: _Floats,
    workers: int,
) -> None: ...
def zero_residuals(
    rows: tuple[_Floats, _Floats],
    col_sums: _Floats,
    model: tuple[float, float, float],
    workers: int,
) -> _Floats: ...
def loess(x: _Floats, y: _Floats, span: float, workers: int) -> tuple[_Floats, bool]: ...
def epoch_order(
    n: int, seed: int, epoch: int, start: int, out: NDArray[np.int64], workers: int
) -> None: ...
def gather_rows(
    matrix: _Matrix, rows: NDArray[np.int64], out: NDArray[np.float32], workers: int
) -> None: ...
def extract_tiles(
    places: _Places,
    out: NDArray[np.uint8],
    fill: int,
    workers: int,
    *,
    cache: Cache | None = None,
    progress: _Progress | None = None,
) -> tuple[int, int, int]: ...
