"""A slide's stage as a task: locked, timed, and its fault told rather than raised.

The one thing that a thread, a process and a worker of Dask all run, each on a slide of
its own; what comes back is small and can be pickled.
"""

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stfast._warn import kept
from stfast.dataset import _journal, _layout, _stage
from stfast.dataset._journal import Progress, Steps
from stfast.dataset._lock import locked, slide_lock

FAILED = "failed.txt"
_WAIT_S = 10.0
"""For the lock of a slide whose former process is just dying."""


@dataclass(frozen=True)
class Task:
    """A slide to stage, and how."""

    root: Path
    row: dict[str, Any]
    settings: _stage.Settings
    wait_s: float | None = None

    @property
    def slide(self) -> str:
        """Its name."""
        return str(self.row["slide"])


@dataclass(frozen=True)
class Outcome:
    """What became of a slide."""

    slide: str
    staged: bool = False
    fault: str | None = None
    warnings: list[str] = field(default_factory=list)
    transient: bool = False  # the fault is one that may be gone when tried again


def run(task: Task, workers: int, progress: Progress | None = None) -> Outcome:
    """Stage a slide under its lock, and add its line to ``run.jsonl``."""
    root, slide = task.root, task.slide
    if not (root / _layout.MARK).exists():
        expected = f"{root}: expected the build's folder, which all machines share"
        return Outcome(slide, fault=f"{expected}, got none")
    steps, staged, transient = Steps(slide, progress), False, False
    fault: str | None = None
    with kept() as said:
        try:
            with locked(slide_lock(root, slide), _WAIT_S if task.wait_s is None else task.wait_s):
                staged = _staged(task, workers, steps)
        except Exception as error:  # whatever it is, it is the slide's: the others go on
            fault, transient = told(error), _may_pass(error)
    if staged or fault:
        line = {"slide": slide, "fault": fault, "warnings": said, "workers": workers}
        try:
            _journal.note(root, line | steps.ended())
        except OSError as error:
            said.append(f"{_journal.NAME}: {told(error)}")
    if progress is not None:
        progress(slide, "failed" if fault else "done", 1, 1)
    return Outcome(slide, staged, fault, said, transient)


def _staged(task: Task, workers: int, steps: Steps) -> bool:
    """Stage a slide whose lock is held, and leave its fault, if any, beside what is staged."""
    try:
        staged = _stage.stage(task.root, task.row, task.settings, workers, steps=steps)
    except Exception as error:
        _keep(task.root, task.slide, told(error))
        raise
    (_stage.folder(task.root, task.slide) / FAILED).unlink(missing_ok=True)
    return staged


def _may_pass(error: Exception) -> bool:
    """Whether a fault is the disk's or the network's, rather than the slide's."""
    lasting = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
    return isinstance(error, OSError) and not isinstance(error, lasting)


def told(error: BaseException) -> str:
    """An error in a line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _keep(root: Path, slide: str, fault: str) -> None:
    """Leave the fault where a merge on another machine finds it, if the disk lets us."""
    with suppress(OSError):
        folder = _stage.folder(root, slide)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / FAILED).write_bytes(f"{fault}\n".encode())


def fault_of(root: Path, slide: str) -> str | None:
    """Why a slide failed when it was last tried; ``None``: nobody knows."""
    try:
        return (_stage.folder(root, slide) / FAILED).read_bytes().decode().strip()
    except OSError:
        return None
