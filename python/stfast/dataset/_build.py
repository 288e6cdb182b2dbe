"""``build``: from a table of raw slides to a dataset, on one machine.

Slides are staged one after the other, each by all workers, then merged. A slide that
cannot be read is told at the end and stops no other.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import polars as pl

from stfast import _check
from stfast.dataset import _checks, _merge, _stage
from stfast.dataset._lock import locked

Tiles = Literal["jpeg", "png", "raw"]

_FAULTS = (OSError, ValueError, IndexError, KeyError, NotImplementedError, OverflowError)


@dataclass(frozen=True)
class BuildReport:
    """What a build did.

    Attributes
    ----------
    root
        The dataset's folder.
    n_spots
        Rows of its index; 0 where no slide could be staged.
    staged
        Slides that were staged now; the others of the dataset were before.
    failed
        The reason by slide of those that are not in it.
    dropped
        Slides that an earlier build staged and the table no longer has.
    """

    root: Path
    n_spots: int = 0
    staged: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)


def build(
    manifest: Any,
    out: str | os.PathLike[str],
    *,
    bin_size: float = 8,
    size: int = 224,
    span_um: float | None = None,
    hvg: str = "pearson:128",
    tiles: Tiles = "jpeg",
    quality: int = 95,
    seed: int = 0,
    shard_bytes: int = 1 << 28,
    strict: bool = False,
    workers: int | None = None,
) -> BuildReport:
    """Make one training set of many raw slides.

    Slides that a former call staged from the same files and settings are not read again.
    The bytes of the dataset do not depend on ``workers``.

    Parameters
    ----------
    manifest
        A row a slide: the path of a file that :func:`read_manifest` reads, its
        :class:`Manifest`, or a polars frame with ``slide``, ``path`` and any other columns.
    out
        Folder of the dataset; new, empty, or of a former build.
    bin_size
        Side in µm of the bins of Visium HD.
    size
        Side of a tile in pixels.
    span_um
        Side of a tile's window in µm; ``None``: the spot's diameter 2r, the paper's.
    hvg
        ``"pearson:N"``: each slide's N best genes by Pearson residuals, a column a rank,
        as :func:`hvg_rank_combined`; spots without counts are rows of zeros.
    tiles
        How tiles are encoded: ``"jpeg"`` (4:4:4), ``"png"`` or ``"raw"`` (``.npy``).
    quality
        Of JPEG, 1 to 100.
    seed
        Of the order of spots in the shards.
    shard_bytes
        Bytes after which a new shard begins.
    strict
        Leave out slides whose spots do not lie where the picture shows them, as failed; see
        :func:`check_alignment`. Otherwise they are marked in ``slides.parquet`` and the report.
    workers
        Threads; ``None``: ``$STFAST_WORKERS``, else the CPUs of this process.

    Returns
    -------
    BuildReport
        What was done, and which slides failed and why.

    Raises
    ------
    FileExistsError
        The folder holds something else.
    BlockingIOError
        Another build of the same part is running there.
    ValueError
        The table lacks columns, names a slide twice or by what is no file name, or an
        argument does not fit.
    """
    settings = _settings(
        bin_size=bin_size, size=size, span_um=span_um, hvg=hvg, tiles=tiles, quality=quality
    )
    most = _check.at_least_one(shard_bytes, "shard_bytes")
    threads, table, root = _check.workers(workers), slides_of(manifest), Path(out)
    _claim(root)
    with locked(root / ".lock-merge"):
        staged: list[str] = []
        failed: dict[str, str] = {}
        for row in table.iter_rows(named=True):
            try:
                anew = _stage.stage(root, row, settings, threads)
                if strict:
                    _refuse_misplaced(root, row["slide"])
                if anew:
                    staged.append(row["slide"])
            except _FAULTS as error:
                failed[row["slide"]] = f"{type(error).__name__}: {error}"
        good = table.filter(~pl.col("slide").is_in(list(failed)))
        known = {path.name for path in (root / "staging").iterdir()}
        dropped = sorted(known - set(table["slide"]))
        n = 0
        if good.height:
            n = _merge.merge(root, good, settings, seed=seed, shard_bytes=most, workers=threads)
    return BuildReport(root, n, staged, failed, dropped)


def _refuse_misplaced(root: Path, slide: str) -> None:
    _checks.refuse_misplaced(_stage.staged(root, slide), _stage.folder(root, slide))


def slides_of(manifest: Any) -> pl.DataFrame:
    """The table of a manifest, its names of slides checked."""
    if isinstance(manifest, str | os.PathLike):
        from stfast.manifest import read_manifest

        manifest = read_manifest(manifest)
    table: pl.DataFrame = getattr(manifest, "table", manifest)
    lost = [name for name in ("slide", "path") if name not in table.columns]
    if lost:
        raise ValueError(f"manifest: expected a column {lost[0]!r}, got {table.columns}")
    table = table.with_columns(pl.col("slide").cast(pl.String))
    bad = [name for name in table["slide"] if not _is_file_name(name)]
    twice = table["slide"].filter(table["slide"].is_duplicated()).unique().to_list()
    problems = [f"expected a file name for a slide, got {name!r}" for name in bad]
    problems += [f"expected each slide once, got {name!r} again" for name in twice if name]
    if not table.height:
        problems = ["expected slides, got none"]
    if problems:
        raise ValueError("manifest: " + "; ".join(problems))
    return table


def _is_file_name(name: str | None) -> bool:
    if not name or name.startswith(".") or name != name.strip() or len(name.encode()) > 200:
        return False
    return not any(char in '/\\:*?"<>|' or ord(char) < 32 for char in name)


def _settings(
    *, bin_size: float, size: int, span_um: float | None, hvg: str, tiles: str, quality: int
) -> _stage.Settings:
    recipe, _, number = hvg.partition(":")
    if recipe != "pearson" or not number.isdecimal() or int(number) < 1:
        raise ValueError(f"hvg: expected pearson:N, got {hvg!r}")
    if tiles not in ("jpeg", "png", "raw"):
        raise ValueError(f"tiles: expected jpeg, png or raw, got {tiles!r}")
    return _stage.Settings(
        bin_size=_check.positive(bin_size, "bin_size", "µm"),
        size=_check.at_least_one(size, "size"),
        span_um=None if span_um is None else _check.positive(span_um, "span_um", "µm"),
        n_top_genes=int(number),
        tiles=tiles,
        quality=quality,
    )


def _claim(root: Path) -> None:
    """Make the folder, or see that what is in it comes from a build."""
    root.mkdir(exist_ok=True)
    found = {path.name for path in root.iterdir()}
    if found and "staging" not in found:
        raise FileExistsError(17, "expected an empty folder or one of a build", str(root))
    (root / "staging").mkdir(exist_ok=True)
