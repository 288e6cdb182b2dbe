"""``run.jsonl``: the only file of a dataset with times, hosts and durations in it.

A line a slide and a merge, added by whichever process did the work; all other files are
the same bytes however they were made.
"""

import json
import os
import socket
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from stfast import _platform
from stfast.dataset._lock import locked

NAME = "run.jsonl"

Progress = Callable[[str, str, int, int], object]
"""Called with a slide (empty: the whole), a step, how much of it is done, and of how much."""


class Steps:
    """Seconds by step of a piece of work, and its progress as it is told."""

    def __init__(self, name: str, progress: Progress | None = None) -> None:
        self.name, self.seconds = name, dict[str, float]()
        self._progress, self._begun = progress, time.perf_counter()
        self._step, self._total = "", 0
        self._cpu = time.process_time()
        _platform.forget_peak()

    def begin(self, step: str, total: int = 0) -> None:
        """End the step that was, and begin another of ``total`` pieces."""
        now = time.perf_counter()
        if self._step:
            before = self.seconds.get(self._step, 0.0)
            self.seconds[self._step] = round(before + now - self._begun, 4)
        self._step, self._total, self._begun = step, total, now
        if step:
            self.advance(0)

    def advance(self, done: int) -> None:
        """Tell how much of the step is done."""
        if self._progress is not None:
            self._progress(self.name, self._step, done, self._total)

    def ended(self) -> dict[str, Any]:
        """Times, place and memory of the work, as its line has them."""
        self.begin("")
        return {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "host": socket.gethostname(),
            "process": os.getpid(),
            "seconds": round(sum(self.seconds.values()), 4),
            "cpu_seconds": round(time.process_time() - self._cpu, 4),
            "steps": self.seconds,
            "peak_bytes": _platform.peak_bytes(),
        }


def note(root: Path, line: dict[str, Any]) -> None:
    """Add a line, whole, whoever else adds one."""
    with locked(root / ".locks" / "run", wait_s=60), (root / NAME).open("ab") as file:
        file.write(f"{json.dumps(line, default=str)}\n".encode())
