"""The arguments of a build, checked before anything is read: what is to be made of what.

All that is wrong with the table or an argument is said here, for a build runs for hours.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import polars as pl

from stfast import _check
from stfast._platform import is_file_name
from stfast._warn import warn
from stfast.dataset import _checks, _hvg, _layout, _need, _report, _stage, _task
from stfast.dataset._need import Need

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Plan:
    """A call of :func:`build`, its arguments checked."""

    root: Path
    table: pl.DataFrame
    settings: _stage.Settings
    recipe: _hvg.Recipe
    seed: int
    shard_bytes: int
    workers: int | None
    memory: int
    part: tuple[int, int] = (1, 1)
    merge: Literal["last", "only", "never"] = "last"
    dask: str | None = None
    strict: bool = False

    @property
    def threads(self) -> int:
        """Threads of this machine."""
        return _check.workers(self.workers)

    def rows(self) -> Rows:
        """The slides of this part; parts take turns, so that no study is one part's."""
        number, parts = self.part
        return self.table.sort("slide").rows(named=True)[number - 1 :: parts]

    @cached_property
    def todo(self) -> tuple[Rows, dict[str, str]]:
        """The rows that were not staged when first asked, and why some cannot be looked for."""

        def look(row: dict[str, Any]) -> bool | str:
            try:
                mark = _stage.fingerprint(row, self.settings)
            except Exception as error:  # the slide's: told at the end
                return _task.told(error)
            return _stage.is_current(self.root, row["slide"], mark)

        rows = self.rows()
        with ThreadPoolExecutor(8) as threads:
            found = list(zip(rows, threads.map(look, rows), strict=True))
        faults = {row["slide"]: said for row, said in found if isinstance(said, str)}
        return [row for row, said in found if said is False], faults

    def need(self) -> Need:
        """What the slides that are still to be staged will need."""
        return _need.of_all([_need.of_slide(row, self.settings) for row in self.todo[0]])


def prepare(
    manifest: Any,
    out: str | os.PathLike[str],
    *,
    hvg: str,
    seed: int,
    shard_bytes: int,
    memory: int | str | None,
    shard: str | None,
    merge: bool,
    dask: str | None,
    workers: int | None,
    strict: bool = False,
    **settings: Any,
) -> Plan:
    """Check the arguments of :func:`build`; make its folder, or see that it is one of a build."""
    if merge and (shard is not None or dask is not None):
        raise ValueError("merge: expected no shard= and no dask= with it, for it stages no slide")
    if workers is not None or dask is None:
        workers = _check.workers(workers)
    recipe = _hvg.parse(hvg)
    plan = Plan(
        root=Path(out).absolute(),
        table=slides_of(manifest),
        settings=_settings(n_top_genes=recipe.per_slide, **settings),
        recipe=recipe,
        seed=seed,
        shard_bytes=_check.at_least_one(shard_bytes, "shard_bytes"),
        workers=workers,
        memory=_need.memory_of(memory),
        part=_part(shard),
        merge="only" if merge else "last" if shard is None else "never",
        dask=dask,
        strict=strict,
    )
    _claim(plan.root)
    return plan


def _part(shard: str | None) -> tuple[int, int]:
    """The part and the number of parts that ``"2/8"`` says."""
    if shard is None:
        return 1, 1
    number, _, parts = str(shard).partition("/")
    if not (number.isdecimal() and parts.isdecimal() and 1 <= int(number) <= int(parts)):
        raise ValueError(f"shard: expected one of 1/n to n/n, got {shard!r}")
    return int(number), int(parts)


def slides_of(manifest: Any) -> pl.DataFrame:
    """The table of a manifest, its names of slides checked."""
    if isinstance(manifest, str | os.PathLike):
        from stfast.manifest import read_manifest

        manifest = read_manifest(manifest)
    table: pl.DataFrame = getattr(manifest, "table", manifest)
    lost = [name for name in ("slide", "path") if name not in table.columns]
    if lost:
        raise ValueError(f"manifest: expected a column {lost[0]!r}, got {table.columns}")
    folder = Path.cwd()
    here = [name for name in ("path", "image", "annotation") if name in table.columns]
    absolute = [
        pl.Series(name, [cell and str(folder / str(cell)) for cell in table[name]], pl.String)
        for name in here
    ]
    table = table.with_columns(pl.col("slide").cast(pl.String), *absolute)
    known = {*_stage.FACTS, *_checks.FACTS, *_report.MEASURED}
    measured = [name for name in table.columns if name in known]
    if measured:
        warn(f"manifest: {', '.join(measured)}: measured by the build, not taken from the table")
        table = table.drop(measured)
    problems = _problems(table)
    if problems:
        raise ValueError("manifest: " + "; ".join(problems))
    return table


def _problems(table: pl.DataFrame) -> list[str]:
    """What is wrong with the names of slides and of their images."""
    if not table.height:
        return ["expected slides, got none"]
    bad = [name for name in table["slide"] if not (name and is_file_name(name))]
    problems = [f"expected a file name for a slide, got {name!r}" for name in bad]
    problems += [
        f"expected a path for slide {s!r}, got none"
        for s, path in table.select("slide", "path").iter_rows()
        if not path
    ]
    # Where file systems take no notice of case, two such slides would be one.
    problems += [
        f"expected each slide once, got {name!r} again"
        for name in _again(table["slide"], str.casefold)
    ]
    if "image" in table.columns:
        problems += [
            f"expected an image for each slide, got {name!r} for two"
            for name in _again(table["image"], os.path.realpath)
        ]
    return problems


def _again(names: pl.Series, key: Callable[[str], str]) -> list[str]:
    """The names that are there already, in the eyes of ``key``."""
    seen: set[str] = set()
    again = []
    for name in filter(None, names):
        if key(name) in seen:
            again.append(name)
        seen.add(key(name))
    return again


def _settings(
    *, bin_size: float, size: int, span_um: float | None, n_top_genes: int, tiles: str, quality: int
) -> _stage.Settings:
    from stfast.tiles._job import _quality
    from stfast.tiles._windows import tile_side

    if tiles not in ("jpeg", "png", "raw"):
        raise ValueError(f"tiles: expected jpeg, png or raw, got {tiles!r}")
    return _stage.Settings(
        bin_size=_check.positive(bin_size, "bin_size", "µm"),
        size=tile_side(size),
        span_um=None if span_um is None else _check.positive(span_um, "span_um", "µm"),
        n_top_genes=n_top_genes,
        tiles=tiles,
        quality=_quality(quality),
    )


def _claim(root: Path) -> None:
    """Make the folder, or see that what is in it comes from a build."""
    root.mkdir(exist_ok=True)
    found = {path.name for path in root.iterdir()}
    if found and _layout.MARK not in found:
        raise FileExistsError(17, "expected an empty folder or one of a build", str(root))
    (root / _layout.MARK).touch()
    (root / "staging").mkdir(exist_ok=True)
