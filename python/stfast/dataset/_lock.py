"""One build of a part at a time: a lock that names its owner.

The system frees the lock of a process that dies, so none is ever stale.
"""

import errno
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stfast import _platform

_LOOK_S = 0.05


@contextmanager
def locked(path: Path, wait_s: float = 0.0) -> Iterator[None]:
    """Hold the lock of a part of a build while the block runs.

    Raises
    ------
    BlockingIOError
        Another process still holds it after ``wait_s`` seconds; names its host and process.
    """
    path.parent.mkdir(exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    with os.fdopen(descriptor, "r+", encoding="utf-8", newline="") as file:
        end = time.monotonic() + wait_s
        while not _platform.lock(file):
            if time.monotonic() >= end:
                file.seek(0)
                owner = file.read().strip() or "another process"
                message = f"expected no other build of this part, got one of {owner}"
                raise BlockingIOError(errno.EAGAIN, message, str(path))
            time.sleep(_LOOK_S)
        file.truncate(0)
        file.write(f"host {socket.gethostname()}, process {os.getpid()}\n")
        file.flush()
        try:
            yield
        finally:
            _platform.unlock(file)


def slide_lock(root: Path, slide: str) -> Path:
    """Of a slide's stage."""
    return root / ".locks" / f"slide-{slide}"


def part_lock(root: Path, number: int, parts: int) -> Path:
    """Of a part of the slides."""
    return root / ".locks" / f"part-{number}-of-{parts}"


def merge_lock(root: Path) -> Path:
    """Of the second stage."""
    return root / ".locks" / "merge"
