"""Slides staged by a cluster: a real scheduler and workers on loopback, some of which die."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest

import stfast
from stfast.dataset._lock import slide_lock
from test_build import SETTINGS, built, digests, one_thread, raw

__all__ = ["built", "one_thread", "raw"]

pytest.importorskip("distributed", reason="pip install 'stfast[distributed]'")

SMALL = {**SETTINGS, "shard_bytes": 60_000}


class Cluster:
    """A scheduler and its workers, each a process."""

    def __init__(self, folder, workers, threads=1):
        self.file = folder / "scheduler.json"
        where = ["--scheduler-file", self.file]
        options = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard"]
        self.scheduler = self.start("scheduler", *options, *where)
        while not self.file.exists() or not self.file.read_text():
            assert self.scheduler.poll() is None, "the scheduler did not start"
            time.sleep(0.05)
        self.address = json.loads(self.file.read_text())["address"]
        here = ["--no-nanny", "--no-dashboard", "--local-directory", folder]
        self.workers = [
            self.start("worker", self.address, "--nthreads", threads, *here) for _ in range(workers)
        ]

    @staticmethod
    def start(what, *options):
        command = [sys.executable, "-m", "dask", what, *options]
        return subprocess.Popen(list(map(str, command)), stderr=subprocess.DEVNULL)

    def close(self):
        for process in [*self.workers, self.scheduler]:
            process.kill()
            process.wait()


@pytest.fixture
def cluster(tmp_path):
    made = []

    def make(workers, threads=1):
        made.append(Cluster(tmp_path, workers, threads))
        return made[-1]

    yield make
    for one in made:
        one.close()


def owner_of(out, slide):
    """Process of the worker that stages a slide; None: nobody does yet."""
    path = slide_lock(out, slide)
    found = re.search(r"process (\d+)", path.read_text()) if path.exists() else None
    return found and int(found[1])


def when_begun(out, slides, do):
    """Do something as soon as one of the slides is being staged."""

    def wait():
        end = time.monotonic() + 60
        while time.monotonic() < end:
            for slide in slides:
                if (number := owner_of(out, slide)) is not None:
                    do(number)
                    return
            time.sleep(0.002)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


@pytest.mark.slow
def test_a_worker_is_killed_and_the_bytes_are_the_same(raw, built, tmp_path, cluster):
    out, three, killed = tmp_path / "out", cluster(3), []

    def kill(number):
        killed.append(number)
        os.kill(number, signal.SIGKILL)

    thread = when_begun(out, raw["slide"], kill)
    report = stfast.build(raw, out, **SMALL, dask=three.address, workers=1)
    thread.join()
    assert not report.failed
    assert len(report.staged) == 3
    assert [p.pid for p in three.workers if p.poll() is not None] == killed
    assert digests(out) == digests(built)
    lines = [json.loads(line) for line in (out / "run.jsonl").read_text().splitlines()]
    assert {line["process"] for line in lines if "slide" in line} <= {p.pid for p in three.workers}


@pytest.mark.slow
def test_a_scheduler_that_goes_away_is_told_and_the_build_resumed(raw, built, tmp_path, cluster):
    out, one = tmp_path / "out", cluster(1)
    thread = when_begun(out, raw["slide"], lambda number: one.scheduler.kill())
    with pytest.raises(ConnectionError, match=r"went away with \d of 3 slides to go; the same"):
        stfast.build(raw, out, **SMALL, dask=one.address)
    thread.join()
    one.close()
    assert not stfast.build(raw, out, **SMALL).failed
    assert digests(out) == digests(built)


@pytest.mark.slow
def test_threads_of_a_worker_share_its_number(raw, built, tmp_path, cluster):
    """Slides that fail are listed, not tried again; two at a time get half of the threads."""
    out, two = tmp_path / "out", cluster(1, threads=2)
    table = raw.vstack(raw[:1].with_columns(slide=raw["slide"][:1] + "x"))
    table[3, "path"] = str(tmp_path / "none")
    report = stfast.build(table, out, **SMALL, dask=two.address, workers=5)
    assert "FileNotFoundError" in report.failed["bx"]
    lines = [json.loads(line) for line in (out / "run.jsonl").read_text().splitlines()]
    assert {line["workers"] for line in lines if "slide" in line} == {2}
    assert digests(out) == digests(built)


def test_no_scheduler_is_told(raw, tmp_path, monkeypatch):
    monkeypatch.setattr("stfast.dataset._cluster._CONNECT_S", 1)
    with pytest.raises(ConnectionError, match=r"expected a scheduler at tcp://127\.0\.0\.1:9"):
        stfast.build(raw, tmp_path / "out", **SMALL, dask="tcp://127.0.0.1:9")
