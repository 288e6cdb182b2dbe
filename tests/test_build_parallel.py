"""Slides side by side, in shards, on a cluster: the same bytes, and each failure told."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import polars as pl
import pytest

import stfast
from stfast.dataset import _need, _pool
from stfast.dataset._lock import locked, merge_lock, slide_lock
from test_build import SETTINGS, built, digests, one_thread, raw

__all__ = ["built", "one_thread", "raw"]

SMALL = {**SETTINGS, "shard_bytes": 60_000}


@pytest.fixture(autouse=True)
def processes(monkeypatch):
    """However few the spots are."""
    monkeypatch.setattr("stfast.dataset._pool.FEW_SPOTS", 0)


@pytest.mark.parametrize(("workers", "memory"), [(1, None), (2, "1K"), (5, None)], ids=str)
def test_bytes_do_not_depend_on_workers_nor_on_memory(raw, built, tmp_path, workers, memory):
    out = tmp_path / "out"
    stfast.build(raw, out, **SMALL, workers=workers, memory=memory)
    assert digests(out) == digests(built)


def test_a_few_spots_are_staged_by_this_process(raw, built, tmp_path, monkeypatch):
    monkeypatch.setattr("stfast.dataset._pool.FEW_SPOTS", 1000)
    out = tmp_path / "out"
    stfast.build(raw, out, **SMALL, workers=5)
    lines = [json.loads(line) for line in (out / "run.jsonl").read_text().splitlines()]
    assert {line["process"] for line in lines} == {os.getpid()}
    assert digests(out) == digests(built)


def test_times_and_hosts_are_in_one_file(built):
    lines = [json.loads(line) for line in (built / "run.jsonl").read_text().splitlines()]
    assert sorted(line.get("slide", "merge") for line in lines) == ["a", "b", "c", "merge"]
    for line in lines:
        assert line["seconds"] >= 0
        assert line["peak_bytes"] > 1 << 20
    (slide, *_) = [line for line in lines if "slide" in line]
    assert list(slide["steps"]) == ["read", "check", "tiles", "genes", "store"]
    assert {line["workers"] for line in lines if "slide" in line} == {1}


def test_slides_start_as_threads_and_memory_allow():
    def started(workers, memory, needs):
        waiting = [(None, _need.Need(1, need, 1)) for need in needs]
        pool = _pool._Pool(workers, memory, waiting, None)
        threads = []
        while pool.waiting and (n := pool.threads()):
            _, need = pool.waiting.pop(0)
            pool.busy[len(threads)] = (None, need, n)
            threads.append(n)
        return threads

    assert started(8, 100, [1] * 20) == [1] * 8
    assert started(8, 100, [50, 50, 50]) == [4, 4]
    assert started(8, 100, [500, 1]) == [8]
    assert started(5, 100, [1, 1, 1]) == [1, 2, 2]
    assert started(8, 100, [60, 60]) == [8]


@pytest.mark.parametrize(
    ("said", "found"), [("16G", 16 << 30), ("0.5k", 512), (100, 100), ("2GiB", 2 << 30)]
)
def test_memory_is_read(said, found):
    assert _need.memory_of(said) == found


@pytest.mark.parametrize("said", ["", "much", "-1G", 0, True, "16X"])
def test_memory_that_is_none_is_refused(raw, tmp_path, said):
    with pytest.raises(ValueError, match="memory: expected bytes"):
        stfast.build(raw, tmp_path / "out", **SMALL, memory=said)


def test_a_process_that_dies_is_tried_again(raw, built, tmp_path):
    """One is killed at its first progress; the slide is staged by another."""
    out, killed = tmp_path / "out", []

    def progress(slide, step, done, total):
        if slide and not killed:
            killed.append(kill_the_process_of(out, slide))

    report = stfast.build(raw, out, **SMALL, workers=2, progress=progress)
    assert killed
    assert not report.failed
    assert digests(out) == digests(built)


def test_a_process_that_dies_each_time_fails_its_slide_alone(raw, tmp_path):
    out = tmp_path / "out"

    def progress(slide, step, done, total):
        if slide == "a" and step == "read":
            kill_the_process_of(out, slide)

    report = stfast.build(raw, out, **SMALL, workers=2, progress=progress)
    assert list(report.failed) == ["a"]
    assert "its process died 2 times, by signal 9; out of memory?" in report.failed["a"]
    assert set(stfast.Dataset(out).index["slide"]) == {"b", "c"}


def kill_the_process_of(out, slide):
    """Kill who holds the lock of a slide."""
    owner = slide_lock(out, slide).read_text()
    number = int(owner.split("process")[1])
    assert number != os.getpid()
    os.kill(number, signal.SIGKILL)
    return number


@pytest.mark.parametrize("workers", [1, 2])
def test_progress_is_told_of_the_whole_and_of_each_slide(raw, built, tmp_path, workers):
    told = []
    spots = dict(stfast.Dataset(built).slides.select("slide", "n_spots").iter_rows())
    stfast.build(
        raw, tmp_path / "out", **SMALL, workers=workers, progress=lambda *e: told.append(e)
    )
    assert [e for e in told if e[:2] == ("", "slides")] == [("", "slides", n, 3) for n in range(4)]
    for slide in raw["slide"]:
        steps = list(dict.fromkeys(e[1] for e in told if e[0] == slide))
        assert steps == ["read", "check", "tiles", "genes", "store", "done"]
        n = spots[slide]
        assert ("tiles", n, n) in {e[1:] for e in told if e[0] == slide}
    n = sum(spots.values())
    assert ("", "shards", n, n) in told


# --- shards ------------------------------------------------------------------------------------


def test_shards_and_a_merge_give_the_bytes_of_one_build(raw, built, tmp_path):
    out, n = tmp_path / "out", len(stfast.Dataset(built))
    reports = []

    def part(number):
        reports.append(stfast.build(raw, out, **SMALL, shard=f"{number}/2", workers=1))

    threads = [threading.Thread(target=part, args=(n,)) for n in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(slide for r in reports for slide in r.staged) == ["a", "b", "c"]
    assert {len(r.staged) for r in reports} == {1, 2}
    assert not (out / "dataset.json").exists()
    report = stfast.build(raw, out, **SMALL, merge=True)
    assert (report.n_spots, report.staged, report.failed) == (n, [], {})
    assert digests(out) == digests(built)


def test_a_merge_lists_what_no_shard_staged(raw, tmp_path):
    out = tmp_path / "out"
    bad = raw.with_columns(path=pl.when(slide="a").then(pl.lit("/none")).otherwise("path"))
    assert list(stfast.build(bad, out, **SMALL, shard="1/2").failed) == ["a"]
    report = stfast.build(bad, out, **SMALL, merge=True)
    assert "No such file" in report.failed["a"]
    assert "not staged" in report.failed["b"]
    assert set(stfast.Dataset(out).index["slide"]) == {"c"}
    with pytest.raises(FileNotFoundError):
        stfast.Dataset(stfast.build(raw, tmp_path / "new", **SMALL, merge=True).root)


@pytest.mark.parametrize("shard", ["0/2", "3/2", "1", "a/b", "1/0", "-1/2"])
def test_a_shard_that_is_none_is_refused(raw, tmp_path, shard):
    with pytest.raises(ValueError, match="shard: expected one of 1/n to n/n"):
        stfast.build(raw, tmp_path / "out", **SMALL, shard=shard)


def test_a_part_or_merge_that_runs_is_refused_by_its_owner(raw, built):
    from stfast.dataset._lock import part_lock

    with locked(part_lock(built, 1, 2)):
        with pytest.raises(BlockingIOError, match=f"process {os.getpid()}"):
            stfast.build(raw, built, **SMALL, shard="1/2")
        stfast.build(raw, built, **SMALL, shard="2/2")
    with locked(merge_lock(built)), pytest.raises(BlockingIOError, match="host"):
        stfast.build(raw, built, **SMALL, merge=True)


def test_a_slide_that_another_stages_fails_by_its_owner(raw, tmp_path, monkeypatch):
    monkeypatch.setattr("stfast.dataset._task._WAIT_S", 0.1)
    out = tmp_path / "out"
    stfast.build(raw[:1], out, **SMALL)
    with locked(slide_lock(out, "a")):
        task = stfast.build(raw[:2], out, **SMALL, workers=1)
    assert f"process {os.getpid()}" in task.failed["a"]


def test_nothing_is_copied_again_where_nothing_changed(raw, tmp_path):
    out = tmp_path / "out"
    stfast.build(raw[:2], out, **SMALL)
    before = (out / "index.parquet").stat().st_mtime_ns
    time.sleep(0.01)
    assert stfast.build(raw[:2], out, **SMALL).n_spots == len(stfast.Dataset(out))
    assert (out / "index.parquet").stat().st_mtime_ns == before
    stfast.build(raw[:2], out, **SMALL, seed=1)
    assert (out / "index.parquet").stat().st_mtime_ns != before
    assert Path(out / "run.jsonl").read_text().count('"merge"') == 2
