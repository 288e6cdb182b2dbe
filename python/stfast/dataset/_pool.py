"""Slides in parallel on one machine, within a budget of threads and of memory.

Largest first, each slide starts as soon as a thread is free and its estimated need fits
beside those at work. Threads are shared among the slides that can start together, so that
many small slides get one each and a last large one gets all. A process that dies costs its
slide one more try.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any

from stfast.dataset import _task
from stfast.dataset._journal import Progress
from stfast.dataset._need import Need
from stfast.dataset._task import Outcome, Task
from stfast.dataset._worker import COMMAND

_TRIES = 2
FEW_SPOTS = 10_000
"""Fewer than these are staged by this process: another takes seconds to begin."""

Needs = list[tuple[Task, Need]]
"""Tasks, and what each is estimated to need."""


class _Process:
    """A worker process, and what it is at."""

    def __init__(self) -> None:
        self.connection, theirs = Pipe()
        paths = [p for p in (*sys.path, os.environ.get("PYTHONPATH", "")) if p]
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", COMMAND, str(theirs.fileno())],
                stdin=subprocess.PIPE,
                pass_fds=[theirs.fileno()],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))},
            )

    def kill(self) -> int:
        """End it, if it has not ended; its exit status."""
        self.process.kill()
        if self.process.stdin is not None:
            self.process.stdin.close()
        self.connection.close()
        return self.process.wait()


@dataclass
class _Pool:
    """Who is at work on what, and what is left."""

    workers: int
    memory: int
    waiting: Needs
    progress: Progress | None
    idle: list[_Process] = field(default_factory=list)
    busy: dict[Connection, tuple[_Process, Task, Need, int]] = field(default_factory=dict)
    tries: dict[str, int] = field(default_factory=dict)

    def threads(self) -> int:
        """Threads for the slide that waits first; 0: it must go on waiting."""
        free = self.workers - sum(threads for *_, threads in self.busy.values())
        left = self.memory - sum(need.memory for _, _, need, _ in self.busy.values())
        need = max(self.waiting[0][1].memory, 1)
        together = left // need if self.busy else max(left // need, 1)
        return free // min(free, together, len(self.waiting)) if min(free, together) > 0 else 0

    def start(self) -> None:
        """Send slides to work until no more fit."""
        while self.waiting and (threads := self.threads()):
            task, need = self.waiting.pop(0)
            process = self.idle.pop() if self.idle else _Process()
            self.busy[process.connection] = (process, task, need, threads)
            self.tries[task.slide] = self.tries.get(task.slide, 0) + 1
            with suppress(OSError):  # it died idle: told when its connection is read
                process.connection.send((task, threads))

    def outcomes(self) -> Iterator[Outcome]:
        """What came of slides since, in whatever order."""
        for connection in wait(list(self.busy)):
            assert isinstance(connection, Connection)
            try:
                said = connection.recv()
            except (EOFError, OSError):
                yield from self._buried(connection)
                continue
            if isinstance(said, Outcome):
                self.idle.append(self.busy.pop(connection)[0])
                yield said
            elif self.progress is not None:
                self.progress(*said)

    def _buried(self, connection: Connection) -> Iterator[Outcome]:
        """A process has died: its slide is tried again, alone; then it has failed."""
        process, task, need, _ = self.busy.pop(connection)
        status = process.kill()
        if self.tries[task.slide] < _TRIES:
            self.waiting.append((task, replace(need, memory=self.memory)))
            return
        died = f"signal {-status}" if status < 0 else f"exit status {status}"
        hint = "; out of memory? try a smaller memory= (--memory)" if status == -9 else ""
        yield Outcome(task.slide, fault=f"its process died {_TRIES} times, by {died}{hint}")

    def close(self) -> None:
        """End all processes."""
        for process in [*self.idle, *(busy[0] for busy in self.busy.values())]:
            process.kill()


def run(
    tasks: Needs,
    *,
    workers: int,
    memory: int,
    progress: Progress | None,
    tell: Callable[[Outcome], Any],
) -> None:
    """Run tasks, telling each one's outcome when it has ended."""
    if workers == 1 or len(tasks) == 1 or sum(need.spots for _, need in tasks) < FEW_SPOTS:
        for task, _ in tasks:
            tell(_task.run(task, workers, progress))
        return
    waiting = sorted(tasks, key=lambda task: -task[1].memory)
    pool = _Pool(workers, memory, waiting, progress)
    try:
        while pool.waiting or pool.busy:
            pool.start()
            for outcome in pool.outcomes():
                tell(outcome)
    finally:
        pool.close()
