"""What macOS and Windows lack or do otherwise, tried where it is not so.

What a system lacks is taken away in a process of its own, and what only Windows has is stood
in for: its lock of bytes by this system's own, of the same bytes.
"""

import ctypes
import os
import subprocess
import sys
import textwrap
import types
from pathlib import Path

import pytest

from stfast import _check, _platform

PACKAGE = Path(__file__).parent.parent / "python/stfast"

BARE = """
    import os, signal, sys
    for name in ("fcntl", "resource", "pwd", "grp", "termios"):
        sys.modules[name] = None
    lost = ["fork", "register_at_fork", "sched_getaffinity", "getuid", "geteuid", "pread",
            "sysconf", "mkfifo", "killpg", "setsid", "getloadavg", "uname"]
    for name in lost:
        vars(os).pop(name, None)
    for name in ("SIGKILL", "SIGHUP", "SIGALRM", "alarm", "setitimer"):
        vars(signal).pop(name, None)
"""
"""A process that has no more of these than one on Windows."""

OTHERS = """
    import numpy, scipy.sparse, pandas, polars, anndata, h5py, zarr, tifffile, PIL.Image
    import rich.console, torch.utils.data, typer
"""
"""What others import where they find POSIX is theirs to mend."""

MSVCRT = """
    import fcntl, os, sys, types
    import stfast.dataset._lock  # what others import there is theirs to mend
    locks, msvcrt = fcntl, types.ModuleType("msvcrt")
    msvcrt.LK_UNLCK, msvcrt.LK_NBLCK = 0, 2

    def locking(descriptor, mode, n):
        how = locks.LOCK_EX | locks.LOCK_NB if mode == msvcrt.LK_NBLCK else locks.LOCK_UN
        try:
            locks.lockf(descriptor, how, n, os.lseek(descriptor, 0, os.SEEK_CUR), os.SEEK_SET)
        except BlockingIOError as error:
            raise PermissionError(13, "Permission denied") from error

    msvcrt.locking = locking
    sys.modules.update(msvcrt=msvcrt, fcntl=None)
    sys.platform = "win32"
"""
"""``msvcrt.locking`` by the record locks of POSIX: from where the file stands, so many bytes."""


def run(*parts, words=()):
    """What a process prints that runs the code."""
    code = "\n".join(map(textwrap.dedent, parts))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- without what only POSIX has ---------------------------------------------------------------


def test_every_module_is_imported_without_what_posix_alone_has():
    files = [f.relative_to(PACKAGE.parent).with_suffix("") for f in PACKAGE.rglob("*.py")]
    names = sorted(".".join(f.parts).removesuffix(".__init__") for f in files)
    names.remove("stfast.cli.__main__")  # it runs when it is imported
    names.remove("stfast.images.wsidata")  # only wsidata imports it
    assert len(names) > 100
    code = """
        import importlib
        for name in sys.argv[1:]:
            print(importlib.import_module(name).__name__)
    """
    assert run(OTHERS, BARE, code, words=names).split() == names


def test_the_main_job_runs_without_what_posix_alone_has(tmp_path):
    job = """
        import sys, anndata, stfast
        from stfast import _platform
        slide = stfast.synthesize_visium_hd(sys.argv[1], side_um=100, n_genes=50)
        bins = stfast.read_visium_hd(slide, 8)
        stfast.highly_variable_genes(bins, n_top_genes=5)
        print(bins.n_obs, _platform.cpus() >= 1)
    """
    n, good = run(OTHERS, BARE, job, words=[tmp_path / "slide"]).split()
    assert (int(n) > 0, good) == (True, "True")


def test_all_cpus_are_used_where_affinity_is_not_told(monkeypatch, tmp_path):
    monkeypatch.delenv("STFAST_WORKERS", raising=False)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(_platform, "_CONTROL", tmp_path)
    assert _check.workers(None) == os.cpu_count()


# --- memory ------------------------------------------------------------------------------------


def test_peak_memory_is_what_was_held_at_most():
    code = """
        import sys
        from stfast import _platform
        before = _platform.peak_bytes()
        held = b"1" * (before + (200 << 20))  # it begins with the peak of who started it
        print(_platform.peak_bytes() - before)
    """
    nowhere = "import pathlib; _platform._SELF = pathlib.Path('/nowhere')"
    for more in ("", nowhere):  # as Linux tells it, and as macOS does
        first, rest = textwrap.dedent(code).split("before", 1)
        grown = int(run(first + more + "\nbefore" + rest))
        assert 150 << 20 < grown < 260 << 20


def test_peak_memory_is_none_where_no_system_tells_it(monkeypatch, tmp_path):
    monkeypatch.setattr(_platform, "_SELF", tmp_path)
    monkeypatch.setattr(sys, "platform", "win32")
    assert _platform.peak_bytes() is None
    _platform.forget_peak()


def test_the_unit_of_peak_memory_is_the_systems(monkeypatch, tmp_path):
    monkeypatch.setattr(_platform, "_SELF", tmp_path)
    resource = types.SimpleNamespace(
        RUSAGE_SELF=0, getrusage=lambda who: types.SimpleNamespace(ru_maxrss=5000)
    )
    monkeypatch.setitem(sys.modules, "resource", resource)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert _platform.peak_bytes() == 5000
    monkeypatch.setattr(sys, "platform", "freebsd14")
    assert _platform.peak_bytes() == 5000 * 1024


@pytest.mark.skipif(not hasattr(os, "sysconf"), reason="needs POSIX")
def test_free_memory_is_half_of_all_where_no_file_tells_it(monkeypatch, tmp_path):
    everything = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    monkeypatch.setattr(_platform, "_CONTROL", tmp_path)
    if _platform._MEMORY.exists():
        assert 1 << 20 <= _platform.free_bytes() <= everything
    monkeypatch.setattr(_platform, "_MEMORY", tmp_path / "none")
    assert _platform.free_bytes() == everything // 2


def test_a_control_groups_memory_is_a_limit(monkeypatch, tmp_path):
    monkeypatch.setattr(_platform, "_CONTROL", tmp_path)
    (tmp_path / "memory.max").write_text("50000000\n")
    (tmp_path / "memory.current").write_text("20000000\n")
    assert _platform.free_bytes() == 30_000_000
    (tmp_path / "memory.max").write_text("max\n")
    assert _platform.free_bytes() > 30_000_000


class MemoryStatusEx(ctypes.Structure):
    """``MEMORYSTATUSEX`` as Windows documents it."""

    _fields_ = (
        ("dwLength", ctypes.c_uint32),
        ("dwMemoryLoad", ctypes.c_uint32),
        ("ullTotalPhys", ctypes.c_uint64),
        ("ullAvailPhys", ctypes.c_uint64),
        ("ullTotalPageFile", ctypes.c_uint64),
        ("ullAvailPageFile", ctypes.c_uint64),
        ("ullTotalVirtual", ctypes.c_uint64),
        ("ullAvailVirtual", ctypes.c_uint64),
        ("ullAvailExtendedVirtual", ctypes.c_uint64),
    )


@pytest.mark.parametrize("answers", [True, False])
def test_free_memory_on_windows_is_what_the_kernel_says(monkeypatch, tmp_path, answers):
    def ask(buffer):
        status = MemoryStatusEx.from_buffer(buffer)
        if status.dwLength != ctypes.sizeof(MemoryStatusEx) or not answers:
            return 0
        status.ullTotalPhys, status.ullAvailPhys, status.ullAvailPageFile = 9 << 30, 3 << 30, 77
        return 1

    kernel = types.SimpleNamespace(GlobalMemoryStatusEx=ask)
    monkeypatch.setattr(ctypes, "windll", types.SimpleNamespace(kernel32=kernel), raising=False)
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(_platform, "_CONTROL", tmp_path)
    if answers:
        assert _platform.free_bytes() == 3 << 30
    else:
        with pytest.raises(OSError, match="expected Windows to tell its memory"):
            _platform.free_bytes()


# --- locks -------------------------------------------------------------------------------------

HOLD = """
    import sys
    from pathlib import Path
    from stfast.dataset._lock import locked
    with locked(Path(sys.argv[1])):
        print("held", flush=True)
        sys.stdin.readline()
"""
TRY = """
    import sys
    from pathlib import Path
    from stfast.dataset._lock import locked
    try:
        with locked(Path(sys.argv[1]), float(sys.argv[2])):
            print("got it")
    except BlockingIOError as error:
        print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="stands in for Windows elsewhere")
@pytest.mark.parametrize("system", ["", MSVCRT], ids=["here", "windows"])
@pytest.mark.parametrize("end", ["ends", "dies"])
def test_a_lock_is_held_by_one_process_until_it_ends_or_dies(tmp_path, system, end):
    path = tmp_path / "locks" / "a"
    code = "\n".join(map(textwrap.dedent, (system, HOLD)))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, "-c", code, path]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, env=environment, **pipes) as owner:
        assert owner.stdout.readline().strip() == b"held"
        said = run(system, TRY, words=[path, 0.1])
        assert f"process {owner.pid}" in said
        assert "expected no other build of this part" in said
        if end == "dies":
            owner.kill()
        else:
            owner.communicate(b"\n")
    assert run(system, TRY, words=[path, 5]) == "got it\n"


@pytest.mark.skipif(sys.platform == "win32", reason="stands in for Windows elsewhere")
@pytest.mark.parametrize("system", ["", MSVCRT], ids=["here", "windows"])
def test_a_lock_is_free_again_and_names_its_last_owner(tmp_path, system):
    again = "\n".join(map(textwrap.dedent, (TRY, TRY)))
    path = tmp_path / "locks" / "a"
    path.parent.mkdir()
    path.write_text("host of a very long name indeed, process 1234567890123\n" * 3)
    assert run(system, again, words=[path, 0]).split("\n") == ["got it", "got it", ""]
    (line,) = path.read_text().splitlines()
    assert line.startswith("host ")
    assert path.stat().st_size < 1000


@pytest.mark.parametrize(
    ("files", "most"),
    [
        ({"cpu.max": "max 100000"}, None),
        ({"cpu.max": "200000 100000"}, 2),
        ({"cpu.max": "150000 100000"}, 2),
        ({"cpu.max": "5000 100000"}, 1),
        ({"cpu.max": "garbage"}, None),
        ({"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ({}, None),
    ],
)
def test_a_control_groups_quota_is_kept(monkeypatch, tmp_path, files, most):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    monkeypatch.setattr(_platform, "_CONTROL", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)
    assert _platform.cpus() == (64 if most is None else most)
