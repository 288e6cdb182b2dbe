"""Tables of labels as studies publish them, made into one shape.

With a header or without, labels in a column or a column a label, spots down or across, one
slide or a whole study.
"""

import csv
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
from numpy.typing import NDArray

from stfast._core import FormatError
from stfast.annotations._names import look_like_spots

_SPOTS = {"", "spot", "spots", "spot_id", "spotid", "barcode", "barcodes", "cell", "cell_id"}
_SPOTS |= {"index", "id", "row.names", "unnamed: 0", "__index_level_0__"}
_SLIDES = {"slide", "slide_id", "sample", "sample_id", "sample_name", "section", "library_id"}
_LABELS = {"v2", "label", "labels", "annotation", "annotations", "layer", "region"}
_YES, _NO = ["1", "1.0", "true"], ["0", "0.0", "false"]
_NUMBER = "\0number"  # no file's column
_PLACES = (
    ("xaxis", "yaxis"),
    ("pixel_x", "pixel_y"),
    ("pxl_col_in_fullres", "pxl_row_in_fullres"),
    ("imagecol", "imagerow"),
    ("x", "y"),
)


@dataclass(frozen=True)
class Rows:
    """A slide's rows of a table: what they name, or where they lie, and their labels.

    ``spot`` is without the slide's name; ``xy`` (n, 2) in pixels; either may be None.
    ``number`` counts the file's rows, those of other slides too, from 1.
    """

    spot: pl.Series | None
    xy: NDArray[np.float64] | None
    label: pl.Series
    number: pl.Series

    def names(self) -> pl.Series:
        """What to call each row: its spot's name, else its number below the header."""
        if self.spot is not None:
            return self.spot.fill_null("")
        return self.number.cast(pl.String)


def read_rows(
    path: Path, content: bytes, slide: str, column: str | None, spots: "pd.Index[str]"
) -> Rows:
    """The rows of one slide."""
    table = _read(path, content, slide, spots)
    names = {name: name.strip().casefold() for name in table.columns}
    usual = [name for name, plain in names.items() if plain in _SPOTS]
    spot = _spot_column(table, usual, slide, spots)
    axes = next((pair for pair in _PLACES if set(pair) <= set(names.values())), ())
    place = [next(n for n, plain in names.items() if plain == axis) for axis in axes]
    if spot is None and not place:
        raise ValueError(
            f"{path}: expected a column of spots, such as 'barcode', or of coordinates, such "
            f"as 'x' and 'y', got {table.columns[:8]}"
        )
    others = [name for name in names if name not in (spot, column, *place)]
    of_slide = _slide_column(table, slide, spot, others, spots, labelled=column is not None)
    table = table.with_columns(pl.int_range(1, pl.len() + 1).alias(_NUMBER))
    table, spot_names = _of_slide(path, table, slide, (spot, of_slide), spots)
    number = table.drop_in_place(_NUMBER)
    rest = [name for name in others if name != of_slide]
    # Rows are numbered too: such a column is no label, unless nothing else is left.
    rest = [name for name in rest if name not in usual] or rest
    label = _label(path, table, column, rest)
    xy = None
    if place:
        xy = table.select(pl.col(place).cast(pl.Float64, strict=False)).to_numpy()
    return Rows(spot_names, xy, label, number)


def _read(path: Path, content: bytes, slide: str, spots: "pd.Index[str]") -> pl.DataFrame:
    """The table as texts, a row a spot."""
    try:
        if content.startswith(b"PAR1"):
            return pl.read_parquet(io.BytesIO(content)).cast(pl.String)
        separator, first, second = _heading(content)
        if len(second) == len(first) + 1:  # R's write.table gives no name to row names
            content = separator.encode() + content.removeprefix(b"\xef\xbb\xbf")
            first = ["", *first]
        cell = pl.Series([name.strip() for name in first[:1]], dtype=pl.String)
        own = cell.str.strip_prefix(f"{slide}_").append(cell).is_in(spots.astype(str).tolist())
        bare = bool(own.any() or look_like_spots(cell).any())
        table = pl.read_csv(
            io.BytesIO(content), separator=separator, infer_schema_length=0, has_header=not bare
        )
        table = _upright(table)
    except pl.exceptions.PolarsError as error:
        raise FormatError(f"{path}: expected a table of labels, got {error}") from error
    if table.width < 2 or not table.height:
        raise FormatError(
            f"{path}: expected spots and labels, got {table.height} rows of columns {table.columns}"
        )
    return table


def _upright(table: pl.DataFrame) -> pl.DataFrame:
    """The table turned, if its columns are spots."""
    across = pl.Series(table.columns[1:], dtype=pl.String)
    if look_like_spots(across).sum() * 2 <= len(across):
        return table
    return table.transpose(include_header=True, header_name="spot", column_names=table.columns[0])


def _heading(content: bytes) -> tuple[str, list[str], list[str]]:
    """What separates cells, and the cells of the first two lines."""
    lines = [*content[: 1 << 20].decode("utf-8-sig", "replace").splitlines()[:2], "", ""][:2]

    def cells(separator: str) -> list[list[str]]:
        return [next(csv.reader([line], delimiter=separator), []) for line in lines]

    def fits(separator: str) -> tuple[bool, int]:
        first, second = map(len, cells(separator))
        return first > 1 and second - first in (0, 1), first + second

    separator = max("\t;,", key=fits)
    first, second = cells(separator)
    return separator, first, second


def _names_spots(cells: pl.Series, slide: str, spots: "pd.Index[str]") -> bool:
    named = cells.str.starts_with(f"{slide}_") | cells.is_in(spots.astype(str).tolist())
    return bool((named | look_like_spots(cells)).any())


def _spot_column(
    table: pl.DataFrame, usual: list[str], slide: str, spots: "pd.Index[str]"
) -> str | None:
    """The column of spots: of those named so the one that fits, since rows are numbered too."""
    fitting = (n for n in [*usual, *table.columns] if _names_spots(table[n], slide, spots))
    return next(fitting, next(iter(usual), None))


def _slide_column(
    table: pl.DataFrame,
    slide: str,
    spot: str | None,
    others: list[str],
    spots: "pd.Index[str]",
    *,
    labelled: bool,
) -> str | None:
    """The column that says of which slide a row is; one that is named so, or holds its name.

    A cluster may be called as the slide is: the latter only where spots alone do not tell,
    and another column is left for labels.
    """
    holding = [name for name in others if (table[name] == slide).any()]
    named = [name for name in others if name.strip().casefold() in _SLIDES]
    if named:
        return next((name for name in named if name in holding), named[0])
    if len(others) < 2 and not labelled:
        return None
    if spot is not None:
        bare = table[spot].str.strip_prefix(f"{slide}_")
        ours = bare.filter(bare.is_in(spots.astype(str).tolist()))
        if len(ours) and not ours.is_duplicated().any():
            return None
    labels = {name for name in holding if name.strip().casefold() in _LABELS}
    return next((n for n in holding if n not in labels and not _is_one_hot(table.select(n))), None)


def _of_slide(
    path: Path,
    table: pl.DataFrame,
    slide: str,
    columns: tuple[str | None, str | None],
    spots: "pd.Index[str]",
) -> tuple[pl.DataFrame, pl.Series | None]:
    """The slide's rows by its column, and their spots without its name if that is in front."""
    spot, of_slide = columns
    if of_slide is not None:
        known = table[of_slide].unique().drop_nulls().sort()
        table = table.filter(pl.col(of_slide) == slide)
        if not table.height:
            found = known[:8].to_list()
            raise FormatError(
                f"{path}: expected rows of slide {slide!r} in {of_slide!r}, got {found}; "
                "say which by slide="
            )
    if spot is None:
        return table, None
    names, ours = table[spot].str.strip_chars(), spots.astype(str).tolist()
    bare = names.str.strip_prefix(f"{slide}_")
    if names.is_in(ours).sum() > bare.is_in(ours).sum():  # the spots have it in front too
        return table, names
    marked = names.str.starts_with(f"{slide}_").fill_null(value=False)
    return (table.filter(marked), bare.filter(marked)) if marked.any() else (table, bare)


def _label(path: Path, table: pl.DataFrame, column: str | None, rest: list[str]) -> pl.Series:
    """The labels: the column that is asked for, that has their name, or what is left."""
    if column is not None:
        if column not in table.columns:
            raise ValueError(f"{path}: expected a column {column!r}, got {table.columns}")
        return table[column]
    for wanted in (["v2"], _LABELS):
        named = [name for name in rest if name.strip().casefold() in wanted]
        if len(named) == 1:
            return table[named[0]]
    if len(rest) > 1 and _is_one_hot(table.select(rest)):
        return _from_one_hot(path, table.select(rest))
    if len(rest) != 1:
        raise ValueError(
            f"{path}: expected one column of labels, or several of 0 and 1, got {rest}; "
            "say which by column="
        )
    return table[rest[0]]


def _is_one_hot(table: pl.DataFrame) -> bool:
    plain = pl.all().str.strip_chars().str.to_lowercase().fill_null("")
    return all(table.select(plain.is_in(["", *_YES, *_NO]).all()).row(0))


def _from_one_hot(path: Path, table: pl.DataFrame) -> pl.Series:
    """The name of the column with 1; null where there is none."""
    plain = pl.all().str.strip_chars().str.to_lowercase().fill_null("")
    ones = table.select(plain.is_in(_YES)).to_numpy()
    several = int((ones.sum(axis=1) > 1).sum())
    if several:
        raise ValueError(
            f"{path}: expected at most one 1 a row, got several in {several} of {len(ones)} rows"
        )
    label = np.array(table.columns, dtype=object)[ones.argmax(axis=1)]
    label[~ones.any(axis=1)] = None
    return pl.Series("label", label, dtype=pl.String)
