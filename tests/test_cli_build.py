"""`stfast build`: what it says before and after, and its exit status."""

import json
import time

import polars as pl
import pytest

import stfast
from stfast.cli._show import build_bars
from test_build import built, digests, one_thread, raw

__all__ = ["built", "one_thread", "raw"]

OPTIONS = ["--bin-size", 8, "--size", 24, "--hvg", "pearson:5", "--tiles", "png"]
OPTIONS += ["--shard-bytes", 60_000]
TERMS = {name: pl.lit("said") for name in ("license", "source_url", "consent")}


@pytest.fixture
def manifest(raw, tmp_path):
    path = tmp_path / "manifest.csv"
    raw.with_columns(**TERMS).write_csv(path)
    return path


def rows_of(out):
    """Files that have a row a spot; those of other columns of the manifest differ."""
    return {k: v for k, v in digests(out).items() if k.startswith(("tiles", "genes", "index"))}


def test_build_says_its_need_first_and_what_it_did(stfast_says, manifest, built, tmp_path):
    status, said, first = stfast_says("build", manifest, tmp_path / "out", *OPTIONS)
    assert status == 0
    n = len(stfast.Dataset(built))
    assert "spots to stage: about 0." in first
    assert "GB are free" in first
    assert "n_spots" in said
    assert str(n) in said
    assert rows_of(tmp_path / "out") == rows_of(built)
    status, said, first = stfast_says("build", manifest, tmp_path / "out", *OPTIONS)
    assert first == "every slide is staged\n"
    assert "staged" not in said


def test_a_failed_slide_makes_the_exit_status(stfast_says, manifest, raw, tmp_path):
    bad = tmp_path / "bad.csv"
    (tmp_path / "empty").mkdir()
    raw.with_columns(
        **TERMS, path=pl.when(slide="a").then(pl.lit("empty")).otherwise("path")
    ).write_csv(bad)
    status, said, _ = stfast_says("build", bad, tmp_path / "out", *OPTIONS)
    assert status == 1
    assert "failed a" in said
    assert "FormatError" in said
    status, said, _ = stfast_says("build", bad, tmp_path / "out", *OPTIONS, "--json")
    assert status == 1
    assert list(json.loads(said)["failed"]) == ["a"]


def test_shards_and_merge(stfast_says, found, manifest, built, tmp_path):
    out = tmp_path / "out"
    for part in (2, 1):
        assert found("build", manifest, out, *OPTIONS, "--shard", f"{part}/2")["n_spots"] == 0
    said = found("build", manifest, out, *OPTIONS, "--merge", "--memory", "1G")
    assert said["n_spots"] == len(stfast.Dataset(built))
    assert rows_of(out) == rows_of(built)
    status, _, complaint = stfast_says("build", manifest, out, "--merge", "--shard", "1/2")
    assert status == 1
    assert "merge: expected no shard= and no dask= with it" in complaint


def test_bars_show_the_whole_and_the_slides_at_work(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with build_bars() as advance:
        for event in [("", "slides", 0, 2), ("[b]a", "read", 0, 0), ("[b]a", "tiles", 5, 9)]:
            advance(*event)
        time.sleep(0.3)  # it is drawn ten times a second
        shown = capsys.readouterr().err
        advance("[b]a", "done", 1, 1)
        advance("never begun", "failed", 1, 1)
        advance("", "slides", 1, 2)
    assert "[b]a tiles" in shown + capsys.readouterr().err


def test_a_warning_is_a_line_without_code(stfast_says, raw, tmp_path):
    raw.write_csv(tmp_path / "manifest.csv")
    status, _, told = stfast_says("build", tmp_path / "manifest.csv", tmp_path / "out", *OPTIONS)
    assert status == 0
    lines = [line for line in told.splitlines() if "no slide says its license" in line]
    assert len(lines) == 1
    assert lines[0].startswith("stfast: warning: ")
    assert ".py" not in told
