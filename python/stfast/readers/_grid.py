"""A slide's grid of squares, found by row and column instead of by name.

The table of a Visium HD slide has eleven million squares, so of each column only what
is needed is held: for bins a byte a place, and pixel positions of their first squares.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
from numpy.typing import NDArray

from stfast import _core
from stfast._core import FormatError
from stfast.bins import bin_names
from stfast.readers._positions import GRID, PIXELS, check_numbers, read_parquet
from stfast.readers._tenx import parse_squares

_MOST = 65_535
"""Largest row or column that a grid in memory may have."""
_SAMPLE = 200_000
"""Squares that are enough to see how the grid lies, in a twentieth of the time of all."""


@dataclass(frozen=True)
class Grid:
    """Every square of a slide.

    Attributes
    ----------
    tissue, rows, cols, x, y
        A value a square: in tissue, position in the grid, centre in full-resolution px.
    at
        Which square of the table lies at (row, column); −1: none.
    """

    tissue: NDArray[np.bool_]
    rows: NDArray[np.int32]
    cols: NDArray[np.int32]
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    at: NDArray[np.int32]

    def locate(self, rows: NDArray[Any], cols: NDArray[Any]) -> NDArray[np.int64]:
        """Which square of the table lies at each position; −1: none."""
        return _locate(self.at, rows, cols)


def read_grid(path: Path, size: int) -> Grid | None:
    """The squares of ``tissue_positions.parquet``; ``None`` if barcodes are no squares'."""
    columns = _columns(path, size, [*GRID, *PIXELS])
    if columns is None:
        return None
    tissue, rows, cols, y, x = columns
    _check_finite(path, x, y)
    at = np.full((int(rows.max()) + 1, int(cols.max()) + 1), -1, np.int32)
    at[rows, cols] = np.arange(len(rows), dtype=np.int32)
    _check_once(path, int(np.count_nonzero(at >= 0)), len(rows))
    return Grid(tissue == 1, rows, cols, x, y, at)


def read_places(path: Path, size: int) -> NDArray[np.uint8] | None:
    """What the table says of each (row, column): 1 a square, 3 one in tissue, 0 none.

    ``None`` if barcodes are no squares'.
    """
    columns = _columns(path, size, GRID)
    if columns is None:
        return None
    tissue, rows, cols = columns
    places = np.zeros((int(rows.max()) + 1, int(cols.max()) + 1), np.uint8)
    places[rows, cols] = 1 + 2 * (tissue == 1)
    _check_once(path, int(np.count_nonzero(places)), len(rows))
    return places


@dataclass(frozen=True)
class SlideBins:
    """Bins that hold a square of the matrix, row by row.

    Attributes
    ----------
    rows, cols, in_tissue, n_squares
        A value a bin; in tissue if any place of it is, the matrix has it or not.
    groups
        The bin of each square; −1: none.
    again
        Squares that the matrix has had before.
    """

    rows: NDArray[np.int64]
    cols: NDArray[np.int64]
    in_tissue: NDArray[np.bool_]
    n_squares: NDArray[np.int64]
    groups: NDArray[np.int64]
    again: int

    def obs(self, bin_size: int) -> pd.DataFrame:
        """What is known of each bin of ``bin_size`` µm, by its name."""
        columns = dict(
            zip(GRID, (self.in_tissue.astype(np.int64), self.rows, self.cols), strict=True)
        )
        obs = pd.DataFrame(columns, index=bin_names(bin_size, self.rows, self.cols))
        obs["n_squares"] = self.n_squares
        return obs


def group_squares(
    squares: tuple[NDArray[np.int32], NDArray[np.int32]] | None,
    places: NDArray[np.uint8] | None,
    factor: int,
    *,
    raw: bool,
) -> SlideBins | None:
    """The bins of a matrix's squares (rows, columns): those in tissue, or all of them.

    ``None`` where squares or places are not known, or a square is at none of the places.
    """
    if squares is None or places is None:
        return None
    found = _core.group_squares(*squares, places, factor, raw)
    rows, cols, tissue, n_squares, groups, unplaced, again = found
    return None if unplaced else SlideBins(rows, cols, tissue, n_squares, groups, again)


@dataclass(frozen=True)
class Corners:
    """Centres of the first square of each bin, and how the grid lies in the picture.

    Attributes
    ----------
    x, y
        Centres of some squares, in full-resolution px.
    at
        Which of them is the first of the bin at (row, column); −1: the table lacks it.
    affine
        From (column, row, 1) of squares to (x, y); (3, 2).
    factor
        Squares along a bin's side.
    """

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    at: NDArray[np.int64]
    affine: NDArray[np.float64]
    factor: int

    def centers(self, rows: NDArray[np.int64], cols: NDArray[np.int64]) -> NDArray[np.float64]:
        """(x, y) of the centres of whole bins.

        Space Ranger's rule: the first square's centre plus half of what the bin's other
        squares add. A bin whose first square the table lacks is placed by the affine map.
        """
        beyond = (self.factor - 1) / 2
        found = _locate(self.at, rows, cols)
        half = beyond * (self.affine[0] + self.affine[1])
        centers: NDArray[np.float64] = np.column_stack([self.x[found], self.y[found]]) + half
        lost = found < 0
        at = np.column_stack([cols[lost], rows[lost]]) * self.factor + beyond
        centers[lost] = at @ self.affine[:2] + self.affine[2]
        return centers


def read_corners(path: Path, factor: int) -> Corners:
    """Where bins of ``factor`` squares lie, of a table that :func:`read_places` has read."""
    names = [*GRID[1:], *PIXELS]
    try:
        table = pl.scan_parquet(path)
        step = max(int(table.select(pl.len()).collect().item()) // _SAMPLE, 1)
        first = (pl.col(GRID[1]) % factor == 0) & (pl.col(GRID[2]) % factor == 0)
        sample = (pl.int_range(pl.len()) % step == 0).alias("sample")
        some = table.select(*names, sample).filter(first | pl.col("sample")).collect()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise FormatError(f"{path}: expected a table of positions, got {error}") from error
    rows, cols, y, x = _arrays(some, path, names)
    _check_finite(path, x, y)
    chosen = some["sample"].to_numpy()
    places = np.column_stack([cols[chosen], rows[chosen], np.ones_like(rows[chosen])])
    xy = np.column_stack([x[chosen], y[chosen]])
    affine = np.asarray(np.linalg.lstsq(places.astype(np.float64), xy, rcond=None)[0])
    of_bins = np.flatnonzero((rows % factor == 0) & (cols % factor == 0))
    bin_rows, bin_cols = rows[of_bins] // factor, cols[of_bins] // factor
    shape = (int(bin_rows.max(initial=0)) + 1, int(bin_cols.max(initial=0)) + 1)
    at = np.full(shape, -1, np.int64)
    at[bin_rows, bin_cols] = of_bins
    return Corners(x, y, at, affine, factor)


def _locate(at: NDArray[Any], rows: NDArray[Any], cols: NDArray[Any]) -> NDArray[np.int64]:
    height, width = at.shape
    inside = (rows >= 0) & (rows < height) & (cols >= 0) & (cols < width)
    found = at[np.where(inside, rows, 0), np.where(inside, cols, 0)].astype(np.int64)
    found[~inside] = -1
    return found


def _columns(path: Path, size: int, names: Sequence[str]) -> list[NDArray[Any]] | None:
    """Columns of the table, if it names squares of ``size`` µm within a grid's bounds."""
    if not _named_by_place(path, size):
        return None
    table = read_parquet(path, list(names))
    columns = _arrays(table, path, names)
    rows, cols = columns[1:3]
    if not len(rows) or min(rows.min(), cols.min()) < 0 or max(rows.max(), cols.max()) > _MOST:
        return None
    return columns


def _arrays(table: pl.DataFrame, path: Path, names: Sequence[str]) -> list[NDArray[Any]]:
    """Grid positions as int32, without a copy where they are 32 bits wide; pixels as float64."""
    check_numbers(table, path, names)
    arrays = [table[name].to_numpy() for name in names]
    return [
        array.view(np.int32)
        if array.dtype == np.uint32
        else array.astype(np.int32 if name in GRID else np.float64, copy=False)
        for name, array in zip(names, arrays, strict=True)
    ]


def _named_by_place(path: Path, size: int) -> bool:
    """Whether barcodes say where squares lie, by the first of them."""
    with path.open("rb"):
        pass
    try:
        first = pl.scan_parquet(path).select("barcode", *GRID[1:]).head(64).collect()
    except (pl.exceptions.PolarsError, OSError):
        return False
    if first["barcode"].dtype != pl.String or not len(first):
        return False
    places = parse_squares(first["barcode"].to_list(), size, 1)
    named = zip(GRID[1:], places or (), strict=False)
    return places is not None and all(first[name].to_list() == p.tolist() for name, p in named)


def _check_finite(path: Path, x: NDArray[np.float64], y: NDArray[np.float64]) -> None:
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise FormatError(f"{path}: expected finite pixel positions, got NaN or infinite ones")


def _check_once(path: Path, places: int, squares: int) -> None:
    if places != squares:
        raise FormatError(f"{path}: expected each place once, got some twice")
