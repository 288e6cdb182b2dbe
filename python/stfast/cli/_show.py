"""What commands say: tables and JSON on stdout, progress on stderr, tables of genes in files.

rich is imported where something is drawn: neither ``--help`` nor ``--json`` waits for it.
"""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from stfast._output import whole

if TYPE_CHECKING:
    import polars as pl
    from rich.progress import Progress

Rows: TypeAlias = list[tuple[str, ...]]


def show(found: dict[str, Any], as_json: bool, header: tuple[str, ...], rows: Rows) -> None:
    if as_json:
        print(json.dumps(found, default=str))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*header, box=None, show_header=any(header), pad_edge=False)
    for row in rows:
        table.add_row(*(Text(word, overflow="fold") for word in row))
    # What is no terminal may be read by a program: no line is broken for it.
    Console(width=None if sys.stdout.isatty() else 10_000).print(table, crop=False)


def say(text: str) -> None:
    """A line on stderr; nothing where that is no terminal."""
    if sys.stderr.isatty():
        print(text, file=sys.stderr)


@contextmanager
def progress_bar(what: str, total: int | None) -> Iterator[Callable[[int], object] | None]:
    """A bar on stderr; nothing where that is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    with _progress(what) as progress:
        task = progress.add_task(what, total=total)
        yield lambda done: progress.update(task, completed=done)


@contextmanager
def tile_bar(total: int, estimate: int) -> Iterator[Callable[[int], object] | None]:
    """A bar for tiles, with tiles and MB a second; nothing where stderr is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    with _progress("tiles", "{task.fields[rate]}") as progress:
        task = progress.add_task("tiles", total=total, rate="")

        def advance(done: int) -> None:
            speed = progress.tasks[0].speed or 0.0
            megabytes = speed * estimate / max(total, 1) / 1e6
            words = f"{speed:,.0f} tiles/s {megabytes:,.0f} MB/s"
            progress.update(task, completed=done, rate=words)

        yield advance


@contextmanager
def build_bars() -> Iterator[Callable[[str, str, int, int], None] | None]:
    """A bar for all slides, and one for each that is at work; nothing where no terminal is."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.markup import escape

    with _progress("{task.description}") as progress:
        tasks: dict[str, Any] = {}

        def advance(slide: str, step: str, done: int, total: int) -> None:
            key = slide or step
            if slide and step in ("done", "failed"):
                if key in tasks:
                    progress.remove_task(tasks.pop(key))
                return
            if key not in tasks:
                tasks[key] = progress.add_task("", total=None)
            words = escape(f"{slide} {step}".strip())
            progress.update(tasks[key], description=words, completed=done, total=total or None)

        yield advance


def _progress(text: str, *more: str) -> "Progress":
    """Bars on stderr: a text, how far it is, what ``more`` says of it, and the time left."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    done = (TextColumn(text), BarColumn(), MofNCompleteColumn(), *map(TextColumn, more))
    return Progress(*done, TimeRemainingColumn(), console=Console(stderr=True))


def rows_of(found: dict[str, Any]) -> Rows:
    """What was found, a line each; what is nested under the name it has."""
    rows: Rows = []
    for key, value in found.items():
        nested = value.items() if isinstance(value, dict) else [("", value)]
        rows += [(f"{key} {inner}".strip(), _word(item)) for inner, item in nested]
    return rows


def _word(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def write_table(table: "pl.DataFrame", output: Path) -> None:
    if output.suffix not in (".parquet", ".csv"):
        raise ValueError(f"output: expected a name ending in .parquet or .csv, got {output}")
    with whole(output) as partial:
        if output.suffix == ".csv":
            table.write_csv(partial)
        else:
            table.write_parquet(partial)
