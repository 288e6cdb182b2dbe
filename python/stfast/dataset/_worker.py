"""A process of a build: stages the slides that it is sent, one after the other.

A process of its own for each slide at work, not a thread: half of a small slide's time
is Python's, its memory goes back to the system, and one that dies takes no other with it.
It is started as a plain interpreter, so that a script that calls ``build`` needs no guard.
"""

import os
import signal
import sys
import threading
from multiprocessing.connection import Connection

from stfast.dataset import _task

COMMAND = "from stfast.dataset._worker import main; main()"


def main() -> None:
    """Serve the connection whose descriptor is the first argument."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to hear
    threading.Thread(target=_die_with_parent, daemon=True).start()
    connection = Connection(int(sys.argv[1]))
    while True:
        try:
            task, workers = connection.recv()
        except EOFError:
            return

        def progress(*event: object) -> None:
            connection.send(event)

        connection.send(_task.run(task, workers, progress))


def _die_with_parent() -> None:
    """End at once when the parent does, however it does: its end of our stdin closes."""
    while sys.stdin.buffer.read(1 << 10):
        pass
    os._exit(1)
