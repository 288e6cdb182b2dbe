"""A manifest: the table that says which slides make a dataset, and all that is known of them.

A row a slide, as CSV or Parquet. A build runs for hours, so whatever is wrong with any row
is found before it starts and said at once, in one message.
"""

import io
import math
import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
import pandas as pd
import polars as pl
from numpy.typing import NDArray

from stfast._core import FormatError
from stfast._platform import is_file_name
from stfast._warn import warn
from stfast.manifest._draft import Draft, draft_manifest
from stfast.manifest._terms import clean_terms
from stfast.readers._library import read_bytes
from stfast.readers.stimage import TECHNOLOGIES

__all__ = [
    "COLUMNS",
    "PATHS",
    "Draft",
    "Manifest",
    "clean_terms",
    "draft_manifest",
    "involve_cancer",
    "read_manifest",
]

_REQUIRED = ("slide", "path")
PATHS = ("path", "image", "annotation")
_TERMS = ("license", "source_url", "consent")
COLUMNS = (
    *("slide", "path", "sample", "technology", "image", "species", "tissue", "patient", "pmid"),
    *("title", "abstract", "keywords", "annotation", "mpp", *_TERMS),
)

_CANCER = re.compile("cancer | cancer|tumor | tumor|metastasis | metastasis|tme | tme")

Texts = list[Any] | NDArray[Any] | pl.Series


@dataclass(frozen=True, eq=False)
class Manifest:
    """The slides of a dataset.

    Attributes
    ----------
    path
        The file that was read.
    table
        A row a slide, in the file's order: ``slide``, ``path``, ``sample``, ``technology``,
        ``image``, ``species``, ``tissue``, ``patient``, ``pmid``, ``title``, ``abstract``,
        ``keywords``, ``annotation``, ``mpp`` (µm per pixel, float64), ``license``,
        ``source_url`` and ``consent``; all but ``mpp`` are texts, and what the file does not
        say is null. ``path``, ``image`` and ``annotation`` are absolute.
    """

    path: Path
    table: pl.DataFrame


def read_manifest(path: str | os.PathLike[str]) -> Manifest:
    """Read a manifest and check every row of it.

    Parameters
    ----------
    path
        CSV (commas, tabs or semicolons, may be gzipped) or Parquet, told apart by content.
        ``slide`` and ``path`` are required. Relative paths are relative to its folder.

    Returns
    -------
    Manifest
        Its ``table`` has every column, null where the file says nothing.

    Raises
    ------
    FileNotFoundError
        No such manifest.
    FormatError
        No table, or a known column that does not hold texts or numbers.
    ValueError
        All that is wrong, a line a problem; rows count from 1 below the header. No column
        ``slide`` or ``path``; names that cannot be a file's, or are given twice (upper and
        lower case are the same); paths, images or annotations that are not there; an
        unknown technology; one image for two slides; an ``mpp`` that is no positive number.

    Warns
    -----
    UserWarning
        Unknown columns, which are left out; no row with ``license``, ``source_url`` or
        ``consent``.
    """
    path = Path(path)
    raw = _read(path)
    rows = _known(path, raw)
    problems = [
        f"expected a column {name}, got {', '.join(raw.columns)}"
        for name in _REQUIRED
        if name not in raw.columns
    ]
    problems += _problems(rows, [name for name in _REQUIRED if name in raw.columns])
    if problems:
        count = f"{len(problems)} problem{'s' * (len(problems) > 1)}"
        raise ValueError("\n  ".join([f"{path}: {count}", *problems]))
    table = rows.select(COLUMNS).with_columns(pl.col("mpp").cast(pl.Float64))
    _warn(path, table, [name for name in raw.columns if name not in COLUMNS])
    return Manifest(path, table)


def _read(path: Path) -> pl.DataFrame:
    """Read the file as it is; the cells of CSV are texts."""
    content = read_bytes(path)
    try:
        if content.startswith(b"PAR1"):
            return pl.read_parquet(io.BytesIO(content))
        header = content.partition(b"\n")[0].decode("utf-8", "replace")
        separator = max(",\t;", key=header.count)
        return pl.read_csv(io.BytesIO(content), separator=separator, infer_schema_length=0)
    except pl.exceptions.PolarsError as error:
        raise FormatError(f"{path}: expected a CSV or Parquet table, got {error}") from error


def _known(path: Path, raw: pl.DataFrame) -> pl.DataFrame:
    """Return all columns as texts, with absolute paths and the row's number; no blank rows."""
    filled = raw.select(pl.any_horizontal(pl.all().is_not_null())).to_series()
    here = [name for name in COLUMNS if name in raw.columns]
    # Whole numbers beside nulls, as pandas writes them, are floats.
    whole = [
        name
        for name in here
        if name != "mpp" and raw[name].dtype.is_float() and (raw[name] == raw[name].floor()).all()
    ]
    try:
        texts = raw.select(pl.col(here)).with_columns(pl.col(whole).cast(pl.Int64))
        texts = texts.cast(pl.String)
    except pl.exceptions.PolarsError as error:
        raise FormatError(f"{path}: expected texts and numbers, got {error}") from error
    texts = texts.with_columns(
        pl.when(pl.col(here).str.strip_chars() != "").then(pl.col(here)).name.keep()
    )
    # "P1 " and "P1" are one patient; names of slides and files are as they are.
    words = [name for name in here if name not in ("slide", *PATHS)]
    texts = texts.with_columns(pl.col(words).str.strip_chars())
    absent = [pl.lit(None, pl.String).alias(name) for name in COLUMNS if name not in here]
    rows = raw.select(pl.int_range(1, pl.len() + 1).alias("row")).hstack(texts).filter(filled)
    folder = path.absolute().parent
    absolute = [
        pl.Series(name, [cell and str(folder / cell) for cell in rows[name]], pl.String)
        for name in PATHS
        if name in here
    ]
    return rows.with_columns(*absent, *absolute)


def _problems(rows: pl.DataFrame, required: list[str]) -> Iterator[str]:
    """Tell all that is wrong with the rows, in their order."""
    if rows.is_empty():
        yield "expected a row a slide, got none"
    slides: dict[str, int] = {}
    images: dict[tuple[int, int], int] = {}
    for row in rows.iter_rows(named=True):
        for problem in _row_problems(row, required, slides, images):
            slide = f" ({row['slide']!r})" if row["slide"] else ""
            yield f"row {row['row']}{slide}: {problem}"


def _row_problems(
    row: dict[str, Any],
    required: list[str],
    slides: dict[str, int],
    images: dict[tuple[int, int], int],
) -> Iterator[str]:
    """Tell what is wrong with a row; remember its slide and image for those that follow."""
    yield from (f"{name}: expected one, got none" for name in required if row[name] is None)
    if row["slide"] is not None:
        if not is_file_name(row["slide"]):
            yield "slide: expected a name that a file can have on any system"
        first = slides.setdefault(row["slide"].casefold(), row["row"])
        if first != row["row"]:
            yield f"slide: expected a name of its own, got that of row {first}"
    if row["technology"] not in (None, *TECHNOLOGIES):
        yield f"technology: expected one of {TECHNOLOGIES}, got {row['technology']!r}"
    found = {name: _stat(row[name]) for name in PATHS if row[name] is not None}
    for name, status in found.items():
        what = "a file or folder" if name == "path" else "a file"
        if status is None:
            yield f"{name}: expected {what}, got none at {row[name]}"
        elif name != "path" and not stat.S_ISREG(status.st_mode):
            yield f"{name}: expected {what}, got a folder, {row[name]}"
    if (image := found.get("image")) is not None and stat.S_ISREG(image.st_mode):
        first = images.setdefault((image.st_dev, image.st_ino), row["row"])
        if first != row["row"]:
            yield f"image: expected one of its own, got that of row {first}, {row['image']}"
    if row["mpp"] is not None and not _is_positive(row["mpp"]):
        yield f"mpp: expected a positive number of µm per pixel, got {row['mpp']!r}"


def _stat(path: str) -> os.stat_result | None:
    """Return a path's status, or None where nothing is or nothing can be."""
    try:
        return Path(path).stat()
    except (OSError, ValueError):  # ValueError: a null character
        return None


def _is_positive(text: str) -> bool:
    """Tell whether polars, which makes the table's numbers, finds a positive one."""
    number = pl.Series([text]).cast(pl.Float64, strict=False)[0]
    return number is not None and math.isfinite(number) and number > 0


def _warn(path: Path, table: pl.DataFrame, unknown: list[str]) -> None:
    """Warn of columns that are left out, and of terms that no slide has."""
    if unknown:
        warn(f"{path}: unknown columns are left out: {', '.join(unknown)}")
    missing = [name for name in _TERMS if table[name].is_null().all()]
    if missing:
        warn(f"{path}: no slide says its {', '.join(missing)}: may others use the dataset?")


@overload
def involve_cancer(title: str | None, abstract: str | None, keywords: str | None) -> bool: ...


@overload
def involve_cancer(title: Texts, abstract: Texts, keywords: Texts) -> NDArray[np.bool_]: ...


def involve_cancer(
    title: str | Texts | None, abstract: str | Texts | None, keywords: str | Texts | None
) -> bool | NDArray[np.bool_]:
    """Tell whether a study is about cancer, by STimage-1K4M's rule.

    Parameters
    ----------
    title, abstract, keywords
        Of one study, or columns of n studies each; null is no text.

    Returns
    -------
    bool or ndarray
        Whether ``cancer``, ``tumor``, ``metastasis`` or ``tme``, with a space before or
        after it, is in the three joined by spaces, in lower case; of shape (n,) for columns.

    Raises
    ------
    ValueError
        Columns of different lengths.
    TypeError
        Something that is neither text nor null, or texts beside columns.

    Notes
    -----
    One space is enough, so parts of words count too: ``cancerous`` or ``cancer.`` after
    a space. The rule is that of STimage-1K4M (Chen et al., 2024), whose published column
    it equals for each of its 1,149 slides.
    """
    given = (title, abstract, keywords)
    single = [text is None or isinstance(text, str) for text in given]
    if all(single):
        return bool(_CANCER.search(_joined(given)))
    if any(single):
        raise TypeError(
            "title, abstract, keywords: expected three texts or three columns, got both"
        )
    lengths = [len(column) for column in given if column is not None]
    if len(set(lengths)) > 1:
        raise ValueError(f"title, abstract, keywords: expected equal lengths, got {lengths}")
    rows = zip(title, abstract, keywords, strict=True)  # type: ignore[arg-type]
    return np.array([_CANCER.search(_joined(row)) is not None for row in rows], dtype=bool)


def _joined(texts: Sequence[Any]) -> str:
    """Join texts in lower case, None and NaN as none."""
    for text in texts:
        if not isinstance(text, str) and pd.isna(text) is not True:
            raise TypeError(f"title, abstract, keywords: expected texts, got {text!r}")
    return " ".join(text if isinstance(text, str) else "" for text in texts).lower()
