"""Where spots and squares lie: Space Ranger's tables of positions, in all their shapes.

They are CSV without a header (Space Ranger 1) or with one (from 2 on), gzipped or not,
or Parquet (Visium HD), under names that uploaders change: content tells which.
"""

import gzip
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
from anndata import AnnData
from numpy.typing import NDArray

from stfast._core import FormatError
from stfast._warn import warn

GRID = ["in_tissue", "array_row", "array_col"]
PIXELS = ["pxl_row_in_fullres", "pxl_col_in_fullres"]
COLUMNS = ["barcode", *GRID, *PIXELS]


def read_positions(path: Path) -> pl.DataFrame:
    """A barcode a row, with grid and pixel position; whatever the table's shape."""
    table = read_parquet(path) if _is_parquet(path) else _read_text(path)
    return _checked(table, path)


def _is_parquet(path: Path) -> bool:
    with path.open("rb") as file:
        return path.suffix == ".parquet" or file.read(4) == b"PAR1"


def read_parquet(path: Path, columns: list[str] | None = None) -> pl.DataFrame:
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
    check_numbers(table, path, (*GRID, *PIXELS))
    return table.select("barcode", pl.col(GRID).cast(pl.Int32), pl.col(PIXELS).cast(pl.Float64))


def check_numbers(table: pl.DataFrame, path: Path, names: Sequence[str]) -> None:
    """Grid positions are whole numbers of 32 bits, pixels numbers."""
    wrong = {n: table[n].dtype for n in names if not table[n].dtype.is_numeric()}
    if wrong:
        raise FormatError(f"{path}: expected barcodes as text and numbers, got {wrong}")
    if not all(_whole(table[name]) for name in names if name in GRID):
        raise FormatError(f"{path}: expected whole {', '.join(GRID)}, got others")


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
