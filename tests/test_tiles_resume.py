"""Tiles in files when something goes wrong on the way: killed runs, full disks, large slides.

A run is killed with SIGKILL at several moments and resumed; it must end in the same bytes.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile

import oracles
from stfast import write_tiles

HEIGHT, WIDTH, N = 300, 400, 130
NAMES = ["a/b", "c.d", "50%", "µ 1", "..", " x ", *(f"spot-{i}" for i in range(N - 6))]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("write") / "picture.tif"
    options = {"photometric": "rgb", "compression": "deflate", "tile": (64, 64)}
    tifffile.imwrite(path, oracles.picture(HEIGHT, WIDTH), **options)
    return path


@pytest.fixture(scope="module")
def centers():
    """Spots in no order, some of them partly or wholly off the picture."""
    return np.random.default_rng(0).uniform(-0.1, 1.1, (N, 2)) * (WIDTH, HEIGHT)


def contents(folder):
    """Every file below a folder, byte for byte."""
    files = (p for p in Path(folder).rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


CALL = {"size": 40, "span": 50, "shard_size": 32}


# --- resume ------------------------------------------------------------------------------------


SCRIPT = """
import sys, numpy as np
from stfast import write_tiles
path, centers, output, container, encoding = sys.argv[1:]
write_tiles(path, np.load(centers), output, container=container, encoding=encoding,
            size=224, shard_size=16, resume=True, workers=2)
"""


def shards_in(part):
    """How many shards say that they are done; the folder may go while we look."""
    try:
        return len(list(part.rglob(".shard-*.tsv")))
    except FileNotFoundError:
        return 0


@pytest.mark.parametrize(
    ("container", "encoding"), [("wds", "png"), ("zarr", "raw"), ("folder", "jpeg")]
)
def test_a_killed_run_is_resumed_to_the_same_bytes(tmp_path, container, encoding):
    """Killed with SIGKILL again and again, each time a little later."""
    path = tmp_path / "picture.tif"
    options = {"photometric": "rgb", "compression": "zstd", "tile": (256, 256)}
    tifffile.imwrite(path, oracles.picture(2048, 2048), **options)
    centers = np.random.default_rng(0).uniform(0, 2048, (400, 2))
    np.save(tmp_path / "centers.npy", centers)
    call = {"container": container, "encoding": encoding, "size": 224, "shard_size": 16}
    whole = contents(write_tiles(path, centers, tmp_path / "whole", **call).output)
    words = [sys.executable, "-c", SCRIPT, path, tmp_path / "centers.npy", tmp_path / "out"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    kills, seen = 0, set()
    for attempt in range(60):
        run = subprocess.Popen([*map(str, words), container, encoding], env=environment)
        deadline = time.monotonic() + 60
        target = 2 + 7 * attempt
        part = tmp_path / "out.part"
        while run.poll() is None and time.monotonic() < deadline:
            if shards_in(part) >= target:
                run.kill()
            time.sleep(0.002)
        kills += run.wait() != 0
        seen.add(shards_in(part))
        if (tmp_path / "out").exists():
            break
    assert kills >= 2
    assert len(seen) >= 2
    assert contents(tmp_path / "out") == whole


def test_shards_that_are_done_are_not_done_again(path, centers, tmp_path):
    call = CALL | {"container": "wds", "names": NAMES}
    whole = write_tiles(path, centers, tmp_path / "out", **call)
    expected = contents(whole.output)
    part = tmp_path / "out.part"
    whole.output.rename(part)
    (part / "spots.parquet").unlink()
    lines = "\n".join(["1\t\t512\t1"] * 32) + "\n"
    for number in (0, 2):
        (part / f".shard-{number:06}.tsv").write_text(lines)
    stamps = {p.name: p.stat().st_mtime_ns for p in part.glob("*.tar")}
    report = write_tiles(path, centers, tmp_path / "out", resume=True, **call)
    assert report.written == N - 64
    again = {p.name: p.stat().st_mtime_ns for p in report.output.glob("*.tar")}
    assert {name for name in stamps if stamps[name] == again[name]} == {
        "tiles-000000.tar",
        "tiles-000002.tar",
    }
    found = contents(report.output)
    assert {n: c for n, c in found.items() if n.endswith(".tar")} == {
        n: c for n, c in expected.items() if n.endswith(".tar")
    }


def test_a_whole_output_is_left_as_it_is(path, centers, tmp_path):
    call = CALL | {"container": "wds"}
    expected = contents(write_tiles(path, centers, tmp_path / "out", **call).output)
    with pytest.raises(FileExistsError, match="expected nothing there yet"):
        write_tiles(path, centers, tmp_path / "out", **call)
    report = write_tiles(path, centers, tmp_path / "out", resume=True, **call)
    assert report.written == 0
    assert contents(tmp_path / "out") == expected


@pytest.mark.parametrize(
    "other", [{"size": 41}, {"fill": 0}, {"quality": 90}, {"shard_size": 31}, {"encoding": "png"}]
)
def test_another_run_is_not_resumed(path, centers, tmp_path, other):
    call = CALL | {"container": "wds"}
    write_tiles(path, centers, tmp_path / "out", **call).output.rename(tmp_path / "out.part")
    with pytest.raises(FileExistsError, match="remains of an interrupted run"):
        write_tiles(path, centers, tmp_path / "out", **call)
    with pytest.raises(ValueError, match=r"tiles\.json: expected the same settings, got"):
        write_tiles(path, centers, tmp_path / "out", resume=True, **call | other)


def test_spots_that_moved_by_less_than_a_pixel_are_others(path, centers, tmp_path):
    """Their tiles are the same, but not what is said of them."""
    call = CALL | {"container": "wds"}
    write_tiles(path, centers, tmp_path / "out", **call).output.rename(tmp_path / "out.part")
    with pytest.raises(ValueError, match="expected the same settings, got spots"):
        write_tiles(path, centers + 1e-9, tmp_path / "out", resume=True, **call)


def test_settings_are_recorded(path, centers, tmp_path):
    output = write_tiles(path, centers, tmp_path / "out", container="wds", mpp=0.5, **CALL).output
    settings = json.loads((output / "tiles.json").read_text())
    assert settings["format_version"] == 1
    assert (settings["mpp"], settings["mpp_source"]) == (0.5, "given")
    assert settings["image"]["name"] == "picture.tif"
    assert settings["spots"]["n"] == N


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 600 kB, where we may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(folder)]
    if (
        shutil.which("mount") is None
        or subprocess.run(mount, capture_output=True, check=False).returncode
    ):
        pytest.skip("may not mount a small disk here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("container", ["wds", "zarr", "folder"])
def test_a_full_disk_is_an_error_and_can_be_resumed(path, centers, tmp_path, small_disk, container):
    call = CALL | {"container": container, "encoding": "raw"}
    with pytest.raises(OSError, match="No space left on device"):
        write_tiles(path, centers, small_disk / "out", **call)
    assert not (small_disk / "out").exists()
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    output = write_tiles(path, centers, small_disk / "out", resume=True, **call).output
    expected = write_tiles(path, centers, tmp_path / "out", **call).output
    assert contents(output) == contents(expected)


# --- memory ------------------------------------------------------------------------------------


PEAK = """
import itertools, sys
from pathlib import Path
import numpy as np
from stfast import write_tiles
path, side, output = sys.argv[1], int(sys.argv[2]), sys.argv[3]
at = np.arange(112, side - 111, 64.0)
centers = np.array(list(itertools.product(at, at)))
write_tiles(path, centers[:4], output + "-warm", container="wds")
def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 1024
Path("/proc/self/clear_refs").write_text("5")  # ru_maxrss would be the parent's peak
before = status("VmRSS")
write_tiles(path, np.random.default_rng(0).permutation(centers), output, container="wds")
print(status("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_memory_is_flat_when_the_slide_grows_fourfold(tmp_path):
    """Overlapping tiles of a slide and of one of four times its area: the front is all there is."""
    peaks = []
    for side in (2048, 4096):
        path = tmp_path / f"{side}.tif"
        options = {"photometric": "rgb", "compression": "jpeg", "tile": (256, 256)}
        tifffile.imwrite(path, oracles.picture(side, side), **options)
        words = [sys.executable, "-c", PEAK, str(path), str(side), str(tmp_path / f"out-{side}")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
        peaks.append(float(done.stdout))
    delivered = ((4096 - 223) // 64 + 1) ** 2 * 224**2 * 3 / 2**20
    print(f"{peaks} MB beside {delivered:.0f} MB of tiles")
    assert 0 < peaks[1] < delivered / 8
    assert peaks[1] < 2.5 * max(peaks[0], 10)
