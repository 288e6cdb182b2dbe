"""Slides in parallel on one machine, within a budget of threads and of memory.

Largest first, each slide starts as soon as a thread is free and its estimated need fits
beside those at work. Threads are shared among the slides that can start together, so that
many small slides get one each and a last large one gets all. A process that dies costs its
slide one more try.

Tasks and what comes of them go through the processes' stdin and stdout, which any system
has; a thread for each process hears what it says.
"""

import os
import pickle
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from stfast.dataset import _task
from stfast.dataset._journal import Progress
from stfast.dataset._need import Need
from stfast.dataset._task import Outcome, Task
from stfast.dataset._worker import COMMAND

_TRIES = 2
_LOOK_S = 0.5
"""Between two looks for a Ctrl-C, which Windows tells nobody who waits."""

FEW_SPOTS = 10_000
"""Fewer than these are staged by this process: another takes seconds to begin."""

Needs = list[tuple[Task, Need]]
"""Tasks, and what each is estimated to need."""


class _Process:
    """A worker process."""

    def __init__(self, heard: "Heard") -> None:
        paths = [p for p in (*sys.path, os.environ.get("PYTHONPATH", "")) if p]
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", COMMAND],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))},
        )
        self.heard = heard
        threading.Thread(target=self._listen, daemon=True).start()

    def send(self, task: Task, threads: int) -> None:
        """Have it stage a slide."""
        assert self.process.stdin is not None
        pickle.dump((task, threads), self.process.stdin)
        self.process.stdin.flush()

    def _listen(self) -> None:
        """Pass on what it says; last of all, that it says no more."""
        assert self.process.stdout is not None
        # It may die in the middle of a word.
        with self.process.stdout as said, suppress(EOFError, OSError, pickle.UnpicklingError):
            while True:
                self.heard.put((self, pickle.load(said)))
        self.heard.put((self, None))

    def kill(self) -> int:
        """End it, if it has not ended; its exit status."""
        self.process.kill()
        assert self.process.stdin is not None
        with suppress(OSError):  # a task that it did not hear
            self.process.stdin.close()
        return self.process.wait()


Heard = queue.SimpleQueue[tuple[_Process, Any]]
"""Who said what; ``None``: it has died."""


@dataclass
class _Pool:
    """Who is at work on what, and what is left."""

    workers: int
    memory: int
    waiting: Needs
    progress: Progress | None
    idle: list[_Process] = field(default_factory=list)
    busy: dict[_Process, tuple[Task, Need, int]] = field(default_factory=dict)
    heard: Heard = field(default_factory=queue.SimpleQueue)
    tries: dict[str, int] = field(default_factory=dict)

    def threads(self) -> int:
        """Threads for the slide that waits first; 0: it must go on waiting."""
        free = self.workers - sum(threads for *_, threads in self.busy.values())
        left = self.memory - sum(need.memory for _, need, _ in self.busy.values())
        need = max(self.waiting[0][1].memory, 1)
        together = left // need if self.busy else max(left // need, 1)
        return free // min(free, together, len(self.waiting)) if min(free, together) > 0 else 0

    def start(self) -> None:
        """Send slides to work until no more fit."""
        while self.waiting and (threads := self.threads()):
            task, need = self.waiting.pop(0)
            process = self.idle.pop() if self.idle else _Process(self.heard)
            self.busy[process] = (task, need, threads)
            self.tries[task.slide] = self.tries.get(task.slide, 0) + 1
            with suppress(OSError):  # it died idle, which is heard
                process.send(task, threads)

    def outcome(self) -> Iterator[Outcome]:
        """What came of a slide, if the next that is heard tells."""
        try:
            process, said = self.heard.get(timeout=_LOOK_S)
        except queue.Empty:
            return
        if isinstance(said, Outcome):
            del self.busy[process]
            self.idle.append(process)
            yield said
        elif said is None:
            yield from self._buried(process)
        elif self.progress is not None:
            self.progress(*said)

    def _buried(self, process: _Process) -> Iterator[Outcome]:
        """A process has died: its slide is tried again, alone; then it has failed."""
        status = process.kill()
        if process in self.idle:
            self.idle.remove(process)
            return
        task, need, _ = self.busy.pop(process)
        if self.tries[task.slide] < _TRIES:
            self.waiting.append((task, replace(need, memory=self.memory)))
            return
        died = f"signal {-status}" if status < 0 else f"exit status {status}"
        hint = "; out of memory? try a smaller memory= (--memory)" if status == -9 else ""
        yield Outcome(task.slide, fault=f"its process died {_TRIES} times, by {died}{hint}")

    def close(self) -> None:
        """End all processes."""
        for process in [*self.idle, *self.busy]:
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
            for outcome in pool.outcome():
                tell(outcome)
    finally:
        pool.close()
