"""A process of a build: stages the slides that it is sent, one after the other.

A process of its own for each slide at work, not a thread: half of a small slide's time
is Python's, its memory goes back to the system, and one that dies takes no other with it.
It is started as a plain interpreter, so that a script that calls ``build`` needs no guard.
"""

import os
import pickle
import queue
import signal
import sys
import threading
from typing import BinaryIO

from stfast.dataset import _task

COMMAND = "from stfast.dataset._worker import main; main()"


def main() -> None:
    """Stage the slides that stdin names, and tell stdout what comes of them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to hear
    tasks: queue.SimpleQueue[tuple[_task.Task, int]] = queue.SimpleQueue()
    threading.Thread(target=_hear, args=(tasks,), daemon=True).start()
    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)  # what others print is no word of ours

        def tell(*event: object) -> None:
            _say(out, event)

        while True:
            task, workers = tasks.get()
            _say(out, _task.run(task, workers, tell))


def _say(out: BinaryIO, what: object) -> None:
    """Write something as one piece."""
    out.write(pickle.dumps(what))
    out.flush()


def _hear(tasks: "queue.SimpleQueue[tuple[_task.Task, int]]") -> None:
    """Take in tasks; end at once when the parent does, however it does: stdin closes."""
    while True:
        try:
            tasks.put(pickle.load(sys.stdin.buffer))
        except (EOFError, OSError, pickle.UnpicklingError):
            os._exit(1)
