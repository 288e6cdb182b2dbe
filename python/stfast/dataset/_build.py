"""``build``: from a table of raw slides to a dataset, on one machine or on many.

Slides are staged side by side, each by itself; whatever staged them, one merge makes the
dataset. A slide that cannot be read is told at the end and stops no other.
"""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import polars as pl

from stfast._warn import warn
from stfast.dataset import _checks, _journal, _layout, _merge, _need, _pool, _stage, _task
from stfast.dataset._journal import Progress, Steps
from stfast.dataset._lock import locked, merge_lock, part_lock
from stfast.dataset._plan import Plan, Rows, prepare
from stfast.dataset._task import Outcome, Task

Tiles = Literal["jpeg", "png", "raw"]

_NOT_STAGED = "not staged, or of other files or settings: build it, or its shard, first"
_log = logging.getLogger("stfast")


@dataclass(frozen=True)
class BuildReport:
    """What a build did.

    Attributes
    ----------
    root
        The dataset's folder.
    n_spots
        Rows of its index; 0 where no slide could be staged, and of a part of the slides.
    staged
        Slides that were staged now; the others of the dataset were before.
    failed
        The reason by slide of those that are not in it.
    dropped
        Slides that an earlier build staged and the table no longer has.
    warnings
        What was noticed of slides that were staged now, by slide.
    """

    root: Path
    n_spots: int = 0
    staged: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)
    warnings: dict[str, list[str]] = field(default_factory=dict)


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
    memory: int | str | None = None,
    shard: str | None = None,
    merge: bool = False,
    dask: str | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> BuildReport:
    """Make one training set of many raw slides.

    Slides that a former call staged from the same files and settings are not read again.
    The bytes of the dataset depend neither on ``workers`` and ``memory`` nor on who staged
    its slides; only ``run.jsonl`` says when and where that was.

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
        as :func:`hvg_rank_combined`. ``"overlap:N"``: the N best of the genes that all
        slides have, as :func:`hvg_overlap`. Spots without counts are rows of zeros.
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
    memory
        Bytes that slides staged side by side may take together by estimate, such as
        ``"16G"``; a slide that needs more is staged alone. ``None``: four fifths of what
        the machine has free.
    shard
        ``"2/8"``: stage the second of eight parts of the slides, and make no dataset of
        them. Parts may run at the same time, on machines that share the folder.
    merge
        Stage nothing: make the dataset of what the shards have staged.
    dask
        Address of a running dask.distributed scheduler, such as ``"tcp://host:8786"``,
        whose workers stage the slides; all must see the same folders.
    workers
        Threads, of slides and within them; of each process of a cluster.
        ``None``: ``$STFAST_WORKERS``, else the CPUs of this process.
    progress
        Called with a slide (empty: all of them), a step, how much of it is done, and of
        how much.

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
    ConnectionError
        The scheduler cannot be reached, or went away. What is staged remains so.
    ImportError
        ``dask=`` without distributed.
    ValueError
        The table lacks columns, names a slide twice or by what is no file name, or an
        argument does not fit.
    """
    settings: dict[str, Any] = {"bin_size": bin_size, "size": size, "span_um": span_um}
    settings |= {"tiles": tiles, "quality": quality}
    plan = prepare(
        manifest,
        out,
        hvg=hvg,
        seed=seed,
        shard_bytes=shard_bytes,
        strict=strict,
        memory=memory,
        shard=shard,
        merge=merge,
        dask=dask,
        workers=workers,
        **settings,
    )
    report = run(plan, progress)
    for slide, texts in report.warnings.items():
        warn(f"{slide}: {'; '.join(texts)}")
    return report


def run(plan: Plan, progress: Progress | None = None) -> BuildReport:
    """Do what a plan says; see :func:`build`."""
    report = BuildReport(plan.root)
    if plan.merge != "only":
        with locked(part_lock(plan.root, *plan.part)):
            _stage_all(plan, report, progress)
    if plan.merge != "never":
        with locked(merge_lock(plan.root)):
            report = _merge_all(plan, report, progress)
    return report


def _stage_all(plan: Plan, report: BuildReport, progress: Progress | None) -> None:
    """Stage the slides of the part; note in the report what became of them."""
    todo, faults = plan.todo[0], dict(plan.todo[1])
    n = len(plan.rows())
    ended = n - len(todo)

    def tell(outcome: Outcome) -> None:
        nonlocal ended
        ended += 1
        if outcome.fault is not None:
            faults[outcome.slide] = outcome.fault
            _log.warning("%s: %s", outcome.slide, outcome.fault)
        elif outcome.staged:
            report.staged.append(outcome.slide)
        if outcome.warnings:
            report.warnings[outcome.slide] = outcome.warnings
        if progress is not None:
            progress("", "slides", ended, n)

    if progress is not None:
        progress("", "slides", ended, n)
    _stage_some(plan, todo, progress, tell)
    order = plan.table["slide"].to_list()
    report.staged.sort(key=order.index)
    report.failed.update({slide: faults[slide] for slide in order if slide in faults})


def _stage_some(
    plan: Plan, todo: Rows, progress: Progress | None, tell: Callable[[Outcome], None]
) -> None:
    """Have slides staged by this machine's processes, or by a cluster's."""
    tasks = [Task(plan.root, row, plan.settings) for row in todo]
    if plan.dask is not None:
        from stfast.dataset import _cluster

        _cluster.run(tasks, plan.dask, workers=plan.workers, tell=tell)
        return
    needs = [(task, _need.of_slide(task.row, task.settings)) for task in tasks]
    _pool.run(needs, workers=plan.threads, memory=plan.memory, progress=progress, tell=tell)


def _misplaced(plan: Plan, failed: dict[str, str]) -> dict[str, str]:
    """Why slides that are staged are left out if the build is strict."""
    found: dict[str, str] = {}
    for slide in plan.table["slide"]:
        folder = _stage.folder(plan.root, slide)
        try:
            _checks.refuse_misplaced(_stage.staged(plan.root, slide), folder)
        except ValueError as error:
            found[slide] = _task.told(error)
    return {slide: said for slide, said in found.items() if slide not in failed}


def _merge_all(plan: Plan, report: BuildReport, progress: Progress | None) -> BuildReport:
    """Make the dataset of all slides that are staged."""
    failed = dict(report.failed)
    if plan.merge == "only":
        todo, failed = plan.todo[0], dict(plan.todo[1])
        for row in todo:
            slide = row["slide"]
            failed[slide] = _task.fault_of(plan.root, slide) or _NOT_STAGED
    if plan.strict:
        failed |= _misplaced(plan, failed)
    good = plan.table.filter(~pl.col("slide").is_in(list(failed)))
    known = {path.name for path in (plan.root / "staging").iterdir()}
    dropped = sorted(known - set(plan.table["slide"]))
    if not good.height:
        if (plan.root / _layout.DESCRIPTION).exists():
            warn(f"{plan.root}: no slide is left: the dataset of an earlier build stays as it was")
        return replace(report, failed=failed, dropped=dropped)
    steps = Steps("", progress)
    n, made = _merge.merge(plan, good, steps)
    for twins in _merge.same_pictures(plan.root, good["slide"].sort().to_list()):
        report.warnings[", ".join(twins)] = ["expected a picture each, got the same one"]
    if made:
        _journal.note(plan.root, {"merge": n, "slides": good.height} | steps.ended())
    return replace(report, n_spots=n, failed=failed, dropped=dropped)
