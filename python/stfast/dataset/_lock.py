"""One build of a part at a time: a lock that names its owner.

The system frees the lock of a process that dies, so none is ever stale.
"""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a part of a build while the block runs.

    Raises
    ------
    BlockingIOError
        Another process holds it; names its host and process.
    """
    import fcntl

    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    with os.fdopen(descriptor, "r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = file.read().strip() or "another process"
            raise BlockingIOError(
                11, f"expected no other build of this part, got one of {owner}", str(path)
            ) from None
        file.truncate(0)
        file.write(f"host {socket.gethostname()}, process {os.getpid()}\n")
        file.flush()
        yield
