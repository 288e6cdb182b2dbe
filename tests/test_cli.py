"""The command line: the functions' answers, one line an error, and nothing half written.

Commands run in this process through `stfast.cli.main`; a few run as a process of their own,
for what only a process has: a signal, a terminal, an exit status.
"""

import json
import os
import signal
import subprocess
import sys
import time

import anndata
import numpy as np
import polars as pl
import pytest

import oracles
import stfast
from conftest import SQUARE
from oracles import assert_same, tree

COMMAND = [sys.executable, "-m", "stfast.cli"]


# --- what commands answer ----------------------------------------------------------------------


def test_the_version_is_printed(stfast_says):
    assert stfast_says("--version") == (0, stfast.__version__ + "\n", "")


def test_info_says_what_an_image_is(found, stfast_says, picture):
    said = found("info", picture[0])
    assert said["kind"] == "png"
    assert said["mpp"] is None
    (level,) = said["levels"]
    assert (level["width"], level["height"], level["blocks"]) == (160, 120, 1)
    status, out, err = stfast_says("info", picture[0])
    assert (status, err) == (0, "")
    assert "160 × 120 px" in out


def test_info_says_what_a_slide_is(found, slide, st_folder):
    said = found("info", slide)
    assert said["path"] == str(slide)
    assert "spots" in found("info", st_folder)
    assert found("info", st_folder)["spots"] == 15
    assert found("info", st_folder)["in_picture"] == 14
    assert found("info", st_folder)["library"] == "mini"


def test_bin_writes_what_the_reader_reads(found, slide, bins, tmp_path):
    said = found("bin", slide, "-o", tmp_path / "b.h5ad", "--workers", 2)
    written = anndata.read_h5ad(tmp_path / "b.h5ad")
    assert_same(written.X, bins.X)
    assert list(written.obs_names) == list(bins.obs_names)
    np.testing.assert_array_equal(written.obsm["spatial"], bins.obsm["spatial"])
    assert said["bins"] == bins.n_obs
    assert said["counts"] == bins.X.sum()
    assert tree(tmp_path) == ["b.h5ad"]


def test_bin_takes_squares_from_an_h5ad(found, squares, tmp_path):
    squares.write_h5ad(tmp_path / "squares.h5ad")
    found("bin", tmp_path / "squares.h5ad", "--bin-size", 16, "--output", tmp_path / "b.h5ad")
    expected = stfast.aggregate_bins(squares, 16)
    assert_same(anndata.read_h5ad(tmp_path / "b.h5ad").X, expected.X)


def test_names_are_printed_as_they_are(stfast_says, slide, tmp_path):
    """Brackets in a path are no markup."""
    output = tmp_path / "[bold]a[red].h5ad"
    assert output.name in stfast_says("bin", slide, "-o", output)[1].replace("\n", "")


# --- what goes wrong ---------------------------------------------------------------------------


def assert_refused(said, message):
    status, out, err = said
    assert status == 1
    assert out == ""
    assert err.startswith("stfast: ")
    assert err.count("\n") == 1, err
    assert message in err


TILE = ["tile", "in/he.png", "--spots", "in/xy.csv", "-o", "t.npy"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["info", "gone"], "No such file"),
        (["info", "in/xy.csv"], "xy.csv: expected a TIFF, JPEG, PNG"),
        (["info", "in"], "in: expected a Visium HD folder"),
        (["bin", "gone", "-o", "o.h5ad"], "gone"),
        (["bin", "gone.h5ad", "-o", "o.h5ad"], "gone.h5ad"),
        (["bin", "in/fake.h5ad", "-o", "o.h5ad"], ""),
        (["bin", "HD", "--bin-size", "7", "-o", "o.h5ad"], "bin_size: expected a multiple of 2"),
        (["bin", "HD", "--bin-size", "0", "-o", "o.h5ad"], "bin_size: expected a positive"),
        (["bin", "HD", "--workers", "0", "-o", "o.h5ad"], "workers: expected an integer"),
        (["bin", "HD", "-o", "gone/o.h5ad"], "gone"),
        (["bin", "HD", "-o", "in"], "in"),
        (["tile", "in/he.png", "-o", "t.npy"], "expected --spots or --grid with an image"),
        (["convert", "gone", "o.h5ad"], "gone"),
        (["convert", "HD", "o.xlsx"], "--to: expected one of"),
        (["convert", "HD", "o.h5ad", "--to", "x"], "--to: expected one of"),
        (["convert", "HD", "o.h5ad", "--bin-size", "7"], "bin_size: expected a multiple of 2"),
        (["convert", "HD", "gone/o.h5ad"], "gone"),
        (["tile", "in/he.png", "--spots", "gone.csv", "-o", "t.npy"], "gone.csv"),
        (["tile", "in/he.png", "--spots", "in/he.png", "-o", "t.npy"], "he.png: expected"),
        (["tile", "in/he.png", "--spots", "in/nan.csv", "-o", "t.npy"], "nan.csv: expected finite"),
        (["tile", "in/he.png", "--spots", "in/text.csv", "-o", "t.npy"], "text.csv"),
        (
            ["tile", "in/he.png", "--spots", "in/none.csv", "-o", "t.npy"],
            "none.csv: expected columns x, y",
        ),
        (
            ["tile", "in/he.png", "--spots", "in/xy.csv", "-o", "t.npz"],
            "container: expected wds, zarr, folder or npy",
        ),
        ([*TILE, "--size", "0"], "size: expected a side of tiles or of windows"),
        ([*TILE, "--size", "-8"], "size: expected 1 to"),
        ([*TILE, "--size", "99999"], "size: expected 1 to"),
        ([*TILE, "--grid"], "he.png: expected --grid with an image and no --spots"),
        ([*TILE, "--channels", "x"], "channels: expected numbers"),
        ([*TILE, "--channels", "1"], "channels: expected a TIFF"),
        ([*TILE, "--mode", "best"], "mode: expected one of center, pil-crop"),
        ([*TILE, "--resample", "best"], "resample: expected one of box"),
        ([*TILE, "--border", "best"], "border: expected one of fill"),
        ([*TILE, "--fill", "256"], "fill: expected a grey level"),
        ([*TILE, "--encoding", "png"], "encoding: expected one of raw for npy"),
        ([*TILE, "--resume"], "resume: expected wds, zarr or folder"),
        ([*TILE[:-1], "t", "--format", "wds", "--quality", "0"], "quality: expected 1 to 100"),
        ([*TILE[:-1], "t", "--format", "wds", "--shard-size", "0"], "shard_size: expected"),
        ([*TILE[:-1], "gone/t", "--format", "wds"], "gone"),
        ([*TILE, "--span-um", "9"], "he.png: expected µm per pixel"),
        ([*TILE, "--span-um", "-9", "--mpp", "1"], "span_um: expected a positive"),
        ([*TILE, "--span-um", "9", "--mpp", "0"], "mpp: expected a positive"),
        (["tile", "in/cut.png", "--spots", "in/xy.csv", "-o", "t.npy"], "cut.png"),
        (["tile", "HD", "-o", "gone/t.npy"], "gone"),
        (["hvg", "HD", "--flavor", "best"], "flavor: expected one of"),
        (["hvg", "HD", "--n-top", "0"], "n_top_genes: expected an integer of at least 1"),
        (["hvg", "HD", "-o", "genes.xlsx"], "expected a name ending in .parquet or .csv"),
        (["hvg", "gone"], "No such file"),
        (["demo", "--slide", "gone", "--folder", "d"], "gone"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_error_is_one_line_and_leaves_nothing(
    *, stfast_says, monkeypatch, slide, picture, tmp_path, words, message
):
    folder = tmp_path / "in"
    (folder / "fake.h5ad").write_bytes(b"no HDF5")
    (folder / "nan.csv").write_text("x,y\n1,2\nNaN,3\n")
    (folder / "text.csv").write_text("x,y\n1,2\nfar,3\n")
    (folder / "none.csv").write_text("a,b\n1,2\n")
    (folder / "cut.png").write_bytes(picture[0].read_bytes()[:2000])
    before = tree(tmp_path)
    monkeypatch.chdir(tmp_path)
    said = stfast_says(*(str(slide) if word == "HD" else word for word in words))
    assert_refused(said, message)
    assert [path for path in tree(tmp_path) if path != "d"] == before


def test_an_earlier_output_is_not_overwritten(stfast_says, picture, tmp_path):
    output = tmp_path / "t.npy"
    for existing in (output, output.with_suffix(".csv")):
        existing.write_text("precious")
        said = stfast_says("tile", picture[0], "--spots", picture[1], "-o", output)
        assert_refused(said, "expected nothing there yet")
        assert existing.read_text() == "precious"
        existing.unlink()


def test_the_table_of_spots_is_not_overwritten_by_that_of_tiles(stfast_says, picture):
    """`--spots he.csv -o he.npy` would write its own he.csv: it must say so instead."""
    image, spots, _, _ = picture
    before = spots.read_bytes()
    stfast_says("tile", image, "--spots", spots, "--size", 8, "-o", spots.with_suffix(".npy"))
    assert spots.read_bytes() == before


@pytest.mark.parametrize(
    "words",
    [
        ["frobnicate"],
        ["info"],
        ["info", "--colour", "x"],
        ["bin", "x"],
        ["bin", "x", "-o", "y", "--bin-size", "big"],
        ["tile", "x", "-o", "y", "--workers", "1.5"],
    ],
    ids=" ".join,
)
def test_a_misspelt_command_ends_with_2_and_no_traceback(stfast_says, words):
    status, out, err = stfast_says(*words)
    assert status == 2
    assert out == ""
    assert "Error" in err or "Usage" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("words", [[], ["bin"], ["tile"]])
def test_help_names_every_option(stfast_says, words):
    status, out, _ = stfast_says(*words, "--help")
    assert status == 0
    assert "stfast" in out
    for option in {
        "bin": ["--bin-size", "--workers", "--json"],
        "tile": ["--span-um", "--size", "--format", "--resume", "--grid", "--workers"],
    }.get("".join(words), ["info", "hvg", "demo", "convert"]):
        assert option in out


# --- as a process ------------------------------------------------------------------------------


def process(*words, **options):
    """A command as a process."""
    where = os.pathsep.join(p for p in sys.path if p)
    environment = {**os.environ, "PYTHONPATH": where, "COLUMNS": "200"}
    return subprocess.run(
        [*COMMAND, *map(str, words)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=100,
        check=False,
        **options,
    )


HEAVY = {
    "numpy",
    "scipy",
    "pandas",
    "polars",
    "anndata",
    "h5py",
    "zarr",
    "tifffile",
    "PIL",
    "torch",
}


def process_time(code):
    """CPU seconds of a process that runs the code, its start included: the least of five."""
    code += "\nimport time; print(time.process_time())"
    return min(
        float(subprocess.check_output([sys.executable, "-c", code], text=True).split()[-1])
        for _ in range(5)
    )


def test_help_imports_nothing_heavy():
    code = f"""
import sys, typer
from stfast.cli import app
for name in typer.main.get_command(app).commands:
    app([name, "--help"], standalone_mode=False)
app(["--help"], standalone_mode=False)
print(sorted({HEAVY} & set(sys.modules)))
"""
    said = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert said.count("Usage:") > 10
    assert said.splitlines()[-1] == "[]"


def test_help_is_as_quick_as_typer():
    # CPU seconds grow on a machine that others use too: typer's own are the measure then.
    most = max(0.35, 2 * process_time("import typer"))
    for words in (["--help"], ["tile", "--help"], ["--version"]):
        spent = process_time(f"from stfast.cli import app\napp({words}, standalone_mode=False)")
        assert spent < most, f"stfast {' '.join(words)}: {spent:.2f} s"


def test_importing_stfast_takes_no_50_ms():
    assert process_time("import stfast") - process_time("pass") < 0.05


def test_a_process_ends_with_its_status_and_without_a_traceback(tmp_path):
    assert process("--version").stdout.strip() == stfast.__version__
    gone = process("info", tmp_path / "gone.tif")
    assert_refused((gone.returncode, gone.stdout, gone.stderr), "gone.tif")


def test_progress_is_shown_on_a_terminal_and_nowhere_else(picture, tmp_path):
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    words = ["tile", picture[0], "--spots", picture[1], "--size", 8, "-o", tmp_path / "t.npy"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    environment["TERM"] = "xterm"
    command = [*COMMAND, *map(str, words), "--json"]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=theirs, env=environment, timeout=100, check=True
    )
    os.close(theirs)
    assert json.loads(done.stdout)["tiles"] == 9
    assert b"tiles" in os.read(ours, 100_000)
    os.close(ours)


def test_ctrl_c_ends_a_command_with_130_and_leaves_nothing(tmp_path):
    import tifffile

    data = oracles.picture(1024, 1024)
    tifffile.imwrite(tmp_path / "he.tif", data, photometric="rgb", tile=(128, 128))
    xy = np.random.default_rng(0).uniform(0, 1024, (20_000, 2))
    pl.DataFrame({"x": xy[:, 0], "y": xy[:, 1], "r": [250.0] * 20_000}).write_csv(
        tmp_path / "xy.csv"
    )
    words = ["tile", "he.tif", "--spots", "xy.csv", "--size", "64", "-o", "t.npy"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = subprocess.Popen(
        [*COMMAND, *words], cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True
    )
    end = time.monotonic() + 60
    while len(tree(tmp_path)) < 3 and time.monotonic() < end:
        time.sleep(0.02)
    time.sleep(0.3)
    command.send_signal(signal.SIGINT)
    _, err = command.communicate(timeout=60)
    assert command.returncode == 130
    assert "Traceback" not in err
    assert tree(tmp_path) == ["he.tif", "xy.csv"]


def test_a_slide_without_its_matrix_is_told_from_the_command_line_too(stfast_says, slide, tmp_path):
    import shutil

    copy = shutil.copytree(slide, tmp_path / "copy")
    (copy / SQUARE / "raw_feature_bc_matrix.h5").write_bytes(b"")
    said = stfast_says("bin", copy, "-o", tmp_path / "o.h5ad")
    assert_refused(said, "raw_feature_bc_matrix.h5: expected a 10x feature-barcode matrix")
    assert not (tmp_path / "o.h5ad").exists()
