"""What each system does in its own way: CPUs, memory, locks, and names of files.

The only platform calls of the Python side. Linux tells much by files below ``/proc`` and
``/sys``; macOS and Windows tell less, by other calls. What a system does not tell is ``None``
or taken to be without a limit, never made up.
"""

import math
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

_CONTROL = Path("/sys/fs/cgroup")
_SELF = Path("/proc/self")
_MEMORY = Path("/proc/meminfo")

_NO_FILE_NAME = re.compile(r'[<>:"/\\|?*\x00-\x1f\x7f-\x9f]|\A[.\s]|[.\s]\Z')
DEVICES = r"(con|prn|aux|nul|com[1-9¹²³]|lpt[1-9¹²³])"
"""What Windows takes for a device, in any case and whatever follows its first dot."""
_DEVICE = re.compile(rf"{DEVICES}[ ]*(\.|\Z)", re.IGNORECASE)
_LONGEST_NAME = 200
"""Bytes of a name; most systems take 255, of which an ending takes some."""

_LOCKED_AT = 1 << 30
"""The byte that is locked on Windows, where nobody can read what is locked: behind all text."""


def cpus() -> int:
    """CPUs of this process: its affinity, capped by its control group's quota."""
    affinity = getattr(os, "sched_getaffinity", None)
    found = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, min(found, _quota()))


def _quota() -> int:
    """CPUs that control groups grant, rounded up; many where none limits.

    See the kernel's cgroup-v2 ``cpu.max`` and cgroup-v1 ``cpu.cfs_quota_us``.
    """
    try:
        if (_CONTROL / "cpu.max").exists():
            quota, period = (_CONTROL / "cpu.max").read_bytes().split()
        else:
            quota = (_CONTROL / "cpu/cpu.cfs_quota_us").read_bytes()
            period = (_CONTROL / "cpu/cpu.cfs_period_us").read_bytes()
        if int(quota) <= 0 or int(period) <= 0:
            return sys.maxsize
    except (OSError, ValueError):  # "max" is no number
        return sys.maxsize
    return math.ceil(int(quota) / int(period))


def free_bytes() -> int:
    """Bytes of memory that may still be used, by the machine and by the control group."""
    found = [_free_bytes()]
    with suppress(OSError, ValueError):
        most = int((_CONTROL / "memory.max").read_bytes())
        found.append(most - int((_CONTROL / "memory.current").read_bytes()))
    return max(min(found), 1 << 20)


def _free_bytes() -> int:
    if sys.platform == "win32":
        import ctypes
        import struct

        # GlobalMemoryStatusEx fills 64 bytes, their number first; ullAvailPhys is at 16.
        status = ctypes.create_string_buffer(struct.pack("<I60x", 64), 64)
        if not ctypes.windll.kernel32.GlobalMemoryStatusEx(status):
            raise OSError("expected Windows to tell its memory, got nothing")
        return int(struct.unpack_from("<Q", status, 16)[0])
    with suppress(OSError):
        for line in _MEMORY.read_bytes().splitlines():
            if line.startswith(b"MemAvailable"):
                return 1024 * int(line.split()[1])
    # Elsewhere no file tells what is free: half of all there is.
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def forget_peak() -> None:
    """Let :func:`peak_bytes` count from here, where the system can be told so."""
    with suppress(OSError):
        (_SELF / "clear_refs").write_bytes(b"5")


def peak_bytes() -> int | None:
    """Most memory that this process has held; ``None`` where the system does not tell."""
    with suppress(OSError):
        for line in (_SELF / "status").read_bytes().splitlines():
            if line.startswith(b"VmHWM"):
                return 1024 * int(line.split()[1])
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024)


def lock(file: IO[str]) -> bool:
    """Lock an open file, unless another process holds it; whether it is ours.

    The system frees the lock of a process that dies.
    """
    if sys.platform == "win32":
        import msvcrt

        try:
            with _behind_text(file) as descriptor:
                msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except PermissionError:
            return False
        return True
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def unlock(file: IO[str]) -> None:
    """Free the lock at once: Windows takes its time when a locked file is closed."""
    if sys.platform == "win32":
        import msvcrt

        with _behind_text(file) as descriptor:
            msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)


@contextmanager
def _behind_text(file: IO[str]) -> Iterator[int]:
    """The file's descriptor, standing behind all text while the block runs."""
    descriptor = file.fileno()
    at = os.lseek(descriptor, 0, os.SEEK_CUR)
    os.lseek(descriptor, _LOCKED_AT, os.SEEK_SET)
    try:
        yield descriptor
    finally:
        os.lseek(descriptor, at, os.SEEK_SET)


def is_file_name(name: str) -> bool:
    """Whether a file can have this name, and an ending to it, on any system.

    None is hidden, Windows takes no dot or space at the end and keeps the names of devices.
    """
    refused = not name or _NO_FILE_NAME.search(name) or _DEVICE.match(name)
    return not refused and len(name.encode()) <= _LONGEST_NAME
