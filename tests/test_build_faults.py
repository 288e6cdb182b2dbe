"""Builds that are killed, and slides that cannot be built whole."""

import os
import subprocess
import sys
import time

import numpy as np
import polars as pl
import pytest

import stfast
from test_build import SETTINGS, built, digests, one_thread, raw

__all__ = ["built", "one_thread", "raw"]

SCRIPT = """
import sys, polars, stfast
from stfast.dataset import _pool
_pool.FEW_SPOTS = 0  # slides side by side, however few the spots are
settings = dict(bin_size=8, size=24, hvg="pearson:5", tiles="png", shard_bytes=60_000, workers=2)
stfast.build(polars.read_parquet(sys.argv[1]), sys.argv[2], **settings)
"""


def killed(table, out, ready):
    """A build killed as soon as ``ready`` says; whether it was before its end."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    run = subprocess.Popen([sys.executable, "-c", SCRIPT, table, out], env=environment)
    end = time.monotonic() + 60
    while run.poll() is None and not ready() and time.monotonic() < end:
        time.sleep(0.001)
    run.kill()
    return run.wait() != 0


def resumed(raw, out):
    stfast.build(raw, out, **SETTINGS, shard_bytes=60_000, workers=1)
    return digests(out)


@pytest.mark.parametrize(
    "appears",
    ["staging/b/begun", "staging/b/tiles", "staging/a/slide.zarr", "merge.part", "slides/a.zarr"],
)
def test_a_build_killed_at_a_stage_is_resumed_to_the_same_bytes(raw, built, tmp_path, appears):
    raw.write_parquet(tmp_path / "raw.parquet")
    out = tmp_path / "out"
    assert killed(tmp_path / "raw.parquet", out, (out / appears).exists)
    assert resumed(raw, out) == digests(built)


@pytest.mark.slow
@pytest.mark.parametrize("moment", range(20))
def test_a_build_killed_at_any_moment_is_resumed_to_the_same_bytes(raw, built, tmp_path, moment):
    raw.write_parquet(tmp_path / "raw.parquet")
    out, wait = tmp_path / "out", np.random.default_rng(moment).uniform(0, 6)
    begun = []

    def ready():
        if not begun and (out / "staging").exists():
            begun.append(time.monotonic())
        return bool(begun) and time.monotonic() > begun[0] + wait

    killed(tmp_path / "raw.parquet", out, ready)
    assert resumed(raw, out) == digests(built)


def test_a_slide_with_annotations_fails_and_stops_no_other(raw, tmp_path):
    (tmp_path / "labels.csv").write_text("spot,label\n")
    notes = pl.Series("annotation", [str(tmp_path / "labels.csv"), None, None])
    report = stfast.build(raw.with_columns(notes), tmp_path / "out", **SETTINGS)
    assert list(report.failed) == ["b"]
    assert "expected spots and labels" in report.failed["b"]
    assert report.staged == ["a", "c"]
