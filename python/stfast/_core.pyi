"""The native module. `rust/py/src` has the words; `make check` holds this to it."""

from collections.abc import Callable, Sequence
from os import PathLike
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from stfast._native import Chunks, Coded, Header, Output, Places, Style

__all__ = [
    "Cache",
    "Chunked",
    "FormatError",
    "Level",
    "TileShards",
    "__version__",
    "add_counts",
    "add_deviations",
    "add_excess",
    "add_residuals",
    "add_values",
    "assign_bins",
    "codec_rate",
    "copy_tiles",
    "count_cells",
    "decode_tiles",
    "epoch_order",
    "extract_tiles",
    "gather_dense",
    "gather_rows",
    "gather_sparse",
    "group_squares",
    "loess",
    "look_up_tiles",
    "parse_squares",
    "read_chunks",
    "read_mtx",
    "read_table",
    "read_tiles",
    "resize_tiles",
    "sum_groups",
    "sum_stored",
    "tile_order",
    "write_table",
    "write_tiles",
    "zero_residuals",
]

__version__: str

_Matrix = tuple[NDArray[Any], NDArray[Any], NDArray[Any], int]
_Progress = Callable[[int], object]

_Where = tuple[NDArray[np.uint32], NDArray[np.uint64], NDArray[np.uint32]]
_Told = tuple[int, int, int, NDArray[np.float32], list[tuple[int, str]]]

class FormatError(ValueError): ...

@final
class Chunked:
    def __new__(cls, path: str | PathLike[str], header: Chunks) -> Chunked: ...

@final
class Level:
    def __new__(cls, path: str | PathLike[str], header: Header) -> Level: ...
    def access(self, workers: int) -> tuple[str, int, int]: ...

@final
class Cache:
    def __new__(cls, capacity: int) -> Cache: ...

@final
class TileShards:
    def __new__(cls, paths: Sequence[str | PathLike[str]]) -> TileShards: ...

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
def group_squares(
    rows: NDArray[np.int32],
    cols: NDArray[np.int32],
    places: NDArray[np.uint8],
    factor: int,
    all: bool,
) -> tuple[
    NDArray[np.int64],
    NDArray[np.int64],
    NDArray[np.bool_],
    NDArray[np.int64],
    NDArray[np.int64],
    int,
    int,
]: ...
def read_chunks(
    dataset: Chunked, start: int, target: tuple[str, int | None], out: NDArray[Any], workers: int
) -> None: ...
def sum_stored(
    matrix: tuple[Chunked, Chunked, NDArray[np.int64], int, bool, int],
    group_of_row: NDArray[np.int64],
    n_groups: int,
    dtype: str,
    workers: int,
    progress: _Progress | None = None,
) -> tuple[NDArray[Any], NDArray[np.int32], NDArray[np.int64]]: ...
def parse_squares(
    texts: NDArray[np.uint8],
    width: int,
    size: int,
    rows: NDArray[np.int32],
    cols: NDArray[np.int32],
    workers: int,
) -> bool: ...
def read_mtx(
    path: str | PathLike[str], dtype: str, workers: int, progress: _Progress | None = None
) -> tuple[tuple[NDArray[Any], NDArray[np.int32], NDArray[np.int64]], int]: ...
def read_table(
    path: str | PathLike[str],
    separator: int,
    n_cols: int,
    dtype: str,
    workers: int,
    progress: _Progress | None = None,
) -> tuple[bytes, bytes, tuple[NDArray[Any], NDArray[np.int32], NDArray[np.int64]]]: ...
def write_table(
    path: str | PathLike[str],
    header: str,
    names: list[str],
    separator: int,
    matrix: _Matrix,
    workers: int,
    progress: _Progress | None = None,
) -> None: ...

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
    n: int, seed: int, epoch: int, positions: NDArray[np.int64], workers: int
) -> None: ...
def decode_tiles(
    shards: TileShards,
    tiles: _Where,
    out: NDArray[np.uint8],
    workers: int,
    *,
    lenient: bool,
    progress: _Progress | None = None,
) -> list[tuple[int, str]]: ...
def read_tiles(shards: TileShards, tiles: _Where, out: NDArray[np.uint8], workers: int) -> None: ...
def gather_rows(
    matrix: _Matrix, rows: NDArray[np.int64], out: NDArray[np.float32], workers: int
) -> None: ...
def gather_dense(
    from_to: tuple[NDArray[Any], NDArray[Any]], rows: NDArray[np.int64], workers: int
) -> None: ...
def gather_sparse(
    matrix: tuple[NDArray[np.int64], NDArray[Any], NDArray[Any]],
    rows: NDArray[np.int64],
    ends: NDArray[np.int64],
    out: tuple[NDArray[np.int32], NDArray[np.float32]],
    workers: int,
) -> None: ...
def look_up_tiles(
    tiles: NDArray[np.uint8],
    turns: NDArray[np.uint8],
    lookup: tuple[NDArray[Any], NDArray[Any]],
    workers: int,
) -> None: ...
def extract_tiles(
    places: Places,
    style: Style,
    out: NDArray[np.uint8],
    workers: int,
    *,
    cache: Cache | None = None,
    progress: _Progress | None = None,
) -> _Told: ...
def codec_rate(places: Places, workers: int) -> float: ...
def count_cells(
    path: str | PathLike[str],
    property: str,
    spots: tuple[_Floats, _Floats],
    by: str,
    progress: _Progress | None = None,
) -> tuple[list[str], _Floats, list[int]]: ...
def resize_tiles(
    tiles: NDArray[np.uint8], filter: str, out: NDArray[np.uint8], workers: int
) -> None: ...
def tile_order(places: Places, workers: int) -> NDArray[np.uint32]: ...
def write_tiles(
    places: Places,
    style: Style,
    output: Output,
    workers: int,
    *,
    progress: _Progress | None = None,
) -> _Told: ...
def copy_tiles(
    tiles: Coded,
    shards: Sequence[tuple[str | PathLike[str], int, int]],
    workers: int,
    *,
    progress: _Progress | None = None,
) -> NDArray[np.uint64]: ...
