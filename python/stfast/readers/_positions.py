"""Where spots and squares lie: Space Ranger's tables of positions, in all their shapes.

They are CSV without a header (Space Ranger 1) or with one (from 2 on), gzipped or not,
or Parquet (Visium HD), under names that uploaders change: content tells which.
"""

import gzip
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
from anndata import AnnData
from numpy.typing import NDArray

from stfast._core import FormatError
from stfast._warn import warn
from stfast.readers._tenx import parse_squares

GRID = ["in_tissue", "array_row", "array_col"]
PIXELS = ["pxl_row_in_fullres", "pxl_col_in_fullres"]
COLUMNS = ["barcode", *GRID, *PIXELS]


def read_positions(path: Path) -> pl.DataFrame:
    """A barcode a row, with grid and pixel position; whatever the table's shape."""
    table = _read_parquet(path) if _is_parquet(path) else _read_text(path)
    return _checked(table, path)


def _is_parquet(path: Path) -> bool:
    with path.open("rb") as file:
        return path.suffix == ".parquet" or file.read(4) == b"PAR1"


def _read_parquet(path: Path, columns: list[str] | None = None) -> pl.DataFrame:
    try:
        table = pl.read_parquet(path, columns=columns)
    except pl.exceptions.ColumnNotFoundError as error:
        raise FormatError(f"{path}: expected columns {columns}, got {error}") from error
    except (pl.exceptions.PolarsError, OSError) as error:
        raise FormatError(f"{path}: expected a Parquet table, got {error}") from error
    missing = set(columns or COLUMNS) - set(table.columns)
    if missing:
        raise FormatError(f"{path}: expected columns {sorted(missing)}, got {table.columns}")
    return table


def _read_text(path: Path) -> pl.DataFrame:
    content = path.read_bytes()
    try:
        content = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
        first = content.partition(b"\n")[0].decode("utf-8-sig")
        separator = max(",\t;", key=first.count)
        words = [word.strip().strip('"') for word in first.split(separator)]
        header = len(words) < 3 or not words[1].replace(".", "", 1).isdigit()
        table = pl.read_csv(
            io.BytesIO(content), separator=separator, has_header=header, infer_schema_length=None
        )
    except (pl.exceptions.PolarsError, OSError, EOFError, ValueError) as error:
        raise FormatError(f"{path}: expected a table of positions, got {error}") from error
    if not header and table.width == 6:
        table.columns = COLUMNS
    table = table.rename({name: name.strip().lower() for name in table.columns})
    if "barcode" not in table.columns and table.width:
        table = table.rename({table.columns[0]: "barcode"})
    missing = [name for name in COLUMNS if name not in table.columns]
    if missing:
        raise FormatError(
            f"{path}: expected positions as {', '.join(COLUMNS)}, got columns {table.columns}"
        )
    return table


def _checked(table: pl.DataFrame, path: Path) -> pl.DataFrame:
    if table["barcode"].dtype != pl.String:
        kinds = {name: table[name].dtype for name in COLUMNS}
        raise FormatError(f"{path}: expected barcodes as text and numbers, got {kinds}")
    return table.select("barcode", *_numbers(table, path))


def _numbers(table: pl.DataFrame, path: Path) -> list[pl.Series]:
    """Grid positions as integers, pixels as float64; both checked."""
    wrong = {n: table[n].dtype for n in (*GRID, *PIXELS) if not table[n].dtype.is_numeric()}
    if wrong:
        raise FormatError(f"{path}: expected barcodes as text and numbers, got {wrong}")
    if not all(_whole(table[name]) for name in GRID):
        raise FormatError(f"{path}: expected whole {', '.join(GRID)}, got others")
    return [table[name].cast(pl.Int32) for name in GRID] + [
        table[name].cast(pl.Float64) for name in PIXELS
    ]


def _whole(column: pl.Series) -> bool:
    """Whether all are whole numbers of 32 bits."""
    if column.null_count():
        return False
    fractions = not column.dtype.is_integer() and not (
        bool(column.is_finite().all()) and bool((column == column.floor()).all())
    )
    ends: Any = (column.min(), column.max())
    return not fractions and (not len(column) or -(2**31) <= ends[0] <= ends[1] < 2**31)


def join_positions(
    adata: AnnData, positions: pl.DataFrame, path: Path
) -> tuple[AnnData, dict[str, int]]:
    """The barcodes of a matrix that have a position, with it.

    Also how many had none, and how many positions in tissue have no counts.
    """
    barcodes = adata.obs.get("barcode", adata.obs_names)
    names = pl.Series("barcode", barcodes.to_numpy(), dtype=pl.String)
    if len(names) and not names.is_in(positions["barcode"].implode()).any():
        # A suffix -1 may be on one side alone.
        bare = pl.col("barcode").str.strip_suffix("-1")
        positions, names = positions.with_columns(bare), names.str.strip_suffix("-1")
    wanted = names.to_frame()
    joined = wanted.join(positions, on="barcode", how="left", maintain_order="left")
    if len(joined) != len(wanted):
        raise FormatError(f"{path}: expected each barcode once, got some twice")
    placed = joined["array_row"].is_not_null().to_numpy()
    _report_unplaced(placed, adata.obs_names, path)
    joined = joined.filter(pl.Series(placed, dtype=pl.Boolean))
    xy = joined.select(PIXELS[::-1]).to_numpy()
    if not np.isfinite(xy).all():
        raise FormatError(f"{path}: expected finite pixel positions, got NaN or infinite ones")
    tissue = positions.filter(pl.col("in_tissue") == 1)["barcode"]
    empty = len(tissue) - int(tissue.is_in(names.implode()).sum())
    adata = adata if placed.all() else adata[placed].copy()
    columns = {name: joined[name].to_numpy().astype(np.int64) for name in GRID}
    adata.obs = pd.concat([pd.DataFrame(columns, index=adata.obs_names), adata.obs], axis=1)
    adata.obsm["spatial"] = np.ascontiguousarray(xy)
    missed = {
        "barcodes_without_position": int((~placed).sum()),
        "tissue_positions_without_counts": empty,
    }
    return adata, missed


def _report_unplaced(placed: NDArray[np.bool_], barcodes: pd.Index, path: Path) -> None:
    """Warn of barcodes that have no position; raise if none has one."""
    lost = np.flatnonzero(~placed)
    if not len(lost):
        return
    message = (
        f"{path}: expected a position for each of {len(placed)} barcodes of the matrix, "
        f"got none for {len(lost)} of them (first {barcodes[lost[0]]!r})"
    )
    if len(lost) == len(placed):
        raise FormatError(message)
    warn(f"{message}: left out")


@dataclass(frozen=True)
class Grid:
    """Every square of a slide, found by row and column instead of by name.

    Attributes
    ----------
    tissue, rows, cols, x, y
        A value a square: in tissue, position in the grid, centre in full-resolution px.
    at
        Which square of the table lies at (row, column); −1: none.
    """

    path: Path
    tissue: NDArray[np.bool_]
    rows: NDArray[np.int32]
    cols: NDArray[np.int32]
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    at: NDArray[np.int32]

    def locate(self, rows: NDArray[Any], cols: NDArray[Any]) -> NDArray[np.int64]:
        """Which square of the table lies at each position; −1: none."""
        height, width = self.at.shape
        inside = (rows >= 0) & (rows < height) & (cols >= 0) & (cols < width)
        found = self.at[np.where(inside, rows, 0), np.where(inside, cols, 0)].astype(np.int64)
        found[~inside] = -1
        return found

    def bins_in_tissue(self, factor: int) -> NDArray[np.bool_]:
        """Bins (row, column) of which any square is in tissue."""
        shape = (int(self.rows.max()) // factor + 1, int(self.cols.max()) // factor + 1)
        bins = np.zeros(shape, np.bool_)
        bins[self.rows[self.tissue] // factor, self.cols[self.tissue] // factor] = True
        return bins

    def step(self) -> NDArray[np.float64]:
        """Affine map from (column, row) to (x, y), rows: column, row, origin; (3, 2).

        A few hundred thousand squares are as good as all, and a twentieth of the time.
        """
        some = slice(None, None, max(len(self.rows) // 200_000, 1))
        at = np.column_stack([self.cols[some], self.rows[some], np.ones_like(self.rows[some])])
        xy = np.column_stack([self.x[some], self.y[some]])
        return np.asarray(np.linalg.lstsq(at.astype(np.float64), xy, rcond=None)[0], np.float64)

    def bin_centers(
        self, rows: NDArray[np.int64], cols: NDArray[np.int64], factor: int
    ) -> NDArray[np.float64]:
        """(x, y) of the centres of whole bins.

        Space Ranger's rule: the corner square's centre plus half of what the bin's other
        squares add. A bin whose corner the table lacks is placed by the affine map.
        """
        affine = self.step()
        half = (factor - 1) / 2 * (affine[0] + affine[1])
        found = self.locate(rows * factor, cols * factor)
        centers: NDArray[np.float64] = np.column_stack([self.x[found], self.y[found]]) + half
        lost = found < 0
        at = np.column_stack([cols[lost], rows[lost]]) * factor + (factor - 1) / 2
        centers[lost] = at @ affine[:2] + affine[2]
        return centers


def read_grid(path: Path, size: int) -> Grid | None:
    """The squares of ``tissue_positions.parquet``; ``None`` if barcodes are no squares'."""
    if not _named_by_place(path, size):
        return None
    table = _read_parquet(path, [*GRID, *PIXELS])
    columns = _numbers(table, path)
    del table
    tissue, rows, cols = (column.to_numpy() for column in columns[:3])
    y, x = (column.to_numpy() for column in columns[3:])
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise FormatError(f"{path}: expected finite pixel positions, got NaN or infinite ones")
    if not len(rows) or min(rows.min(), cols.min()) < 0 or max(rows.max(), cols.max()) > 65_535:
        return None
    at = np.full((int(rows.max()) + 1, int(cols.max()) + 1), -1, np.int32)
    at[rows, cols] = np.arange(len(rows), dtype=np.int32)
    if int(np.count_nonzero(at >= 0)) != len(rows):
        raise FormatError(f"{path}: expected each place once, got some twice")
    return Grid(path, tissue == 1, rows, cols, x, y, at)


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
