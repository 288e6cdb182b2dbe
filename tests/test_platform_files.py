"""Files as any system takes them: their names, their texts, and none moved while it is open.

Windows' refusal to move, replace or delete an open file is stood in for by a look at what this
process holds open.
"""

import ast
import json
import os
import pathlib
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import tifffile
from PIL import Image

import oracles
import stfast
from oracles import tree
from stfast import _platform
from test_build import SETTINGS, one_thread, raw

__all__ = ["one_thread", "raw"]

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "python/stfast"
linux = pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's /proc")


# --- files that are open -----------------------------------------------------------------------


def held_open(path):
    """Files that this process holds open or mapped, of a path or below it."""
    files = [os.path.realpath(link) for link in Path("/proc/self/fd").iterdir()]
    maps = Path("/proc/self/maps").read_text().splitlines()
    files += [line.split(maxsplit=5)[5] for line in maps if line.count("/")]
    here = os.path.realpath(path)
    return [file for file in files if file == here or file.startswith(here + os.sep)]


@pytest.fixture
def as_windows(monkeypatch):
    """No open file is moved, replaced or deleted, as on Windows; how often one was asked to."""
    asked = []

    def refuse(*paths):
        asked.extend(paths)
        for path in paths:
            if found := held_open(path):
                raise PermissionError(13, "being used by another process", found[0])

    def guarded(function, n):
        def call(*args, **options):
            refuse(*args[:n])
            return function(*args, **options)

        return call

    for owner, name, n in (
        (pathlib.Path, "replace", 2),
        (pathlib.Path, "rename", 2),
        (pathlib.Path, "unlink", 1),
        (pathlib.Path, "rmdir", 1),
        (shutil, "rmtree", 1),
        (os, "replace", 2),
        (os, "rename", 2),
    ):
        monkeypatch.setattr(owner, name, guarded(getattr(owner, name), n))
    return asked


@linux
def test_the_stand_in_for_windows_refuses_what_is_open(as_windows, tmp_path):
    np.save(tmp_path / "a.npy", np.zeros(5000))
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r")
    with pytest.raises(PermissionError, match="being used"):
        (tmp_path / "a.npy").rename(tmp_path / "b.npy")
    with pytest.raises(PermissionError, match="being used"):
        shutil.rmtree(tmp_path)
    del mapped
    with (tmp_path / "a.npy").open("rb"), pytest.raises(PermissionError, match="being used"):
        (tmp_path / "a.npy").unlink()
    (tmp_path / "a.npy").rename(tmp_path / "b.npy")
    assert tree(tmp_path) == ["b.npy"]


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "he.png"
    Image.fromarray(oracles.picture(90, 120)).save(path)
    return path


@linux
@pytest.mark.parametrize("output", ["t.npy", "t.zarr", "t", "wds"])
def test_tiles_are_closed_before_they_are_moved(as_windows, picture, tmp_path, output):
    centers = np.random.default_rng(0).uniform(0, 90, (7, 2))
    options = {"container": {"t": "folder", "wds": "wds"}.get(output)}
    made = stfast.write_tiles(
        picture, centers, tmp_path / output, size=8, span=12, **options
    ).output
    assert made.exists()
    assert as_windows
    assert not [name for name in tree(tmp_path) if "part" in name]


@linux
def test_a_build_and_those_over_it_close_what_they_move(as_windows, raw, tmp_path):
    out = tmp_path / "out"
    for table, settings in ((raw, SETTINGS), (raw, SETTINGS | {"seed": 1}), (raw[:2], SETTINGS)):
        report = stfast.build(table, out, workers=1, **settings)
        assert report.failed == {}
        assert len(stfast.Dataset(out).slides) == table.height
    assert len(as_windows) > 20


@linux
def test_a_codec_of_imagecodecs_opens_no_file_twice(monkeypatch, tmp_path):
    """A temporary file can be opened once on Windows: nobody opens it by its name."""
    pytest.importorskip("imagecodecs")
    data = oracles.picture(70, 90)
    path = tmp_path / "lerc.tif"
    tifffile.imwrite(path, data, photometric="rgb", tile=(32, 32), compression="lerc")
    opened, usual = [], Path.open

    def note(self, *args, **options):
        opened.append(self)
        return usual(self, *args, **options)

    monkeypatch.setattr(Path, "open", note)
    monkeypatch.delattr(os, "pread", raising=False)
    with pytest.warns(UserWarning, match="temporary file"):
        found = stfast.extract_tiles(path, [[45, 35]], size=40, span=40)
    assert opened
    assert {p.name for p in opened if p.suffix in (".raw", ".tif")} == {"lerc.tif"}
    np.testing.assert_array_equal(found[0], data[15:55, 25:65])


# --- names and texts ---------------------------------------------------------------------------

REFUSED = ["", " a", "a ", "a.", ".a", "a/b", "a\\b", "a:b", "a?", "a\n", "a" * 201, "é" * 101]
DEVICES = ["nul", "NUL", "con.txt", "Aux.tar.gz", "COM1", "lpt9", "COM¹", "PRN "]
FINE = ["a", "nulls", "com0", "com10", "console", "a.nul", "lpt", "é" * 100, "a b", "a.b"]


@pytest.mark.parametrize("name", REFUSED + DEVICES + FINE)
def test_a_slide_has_a_name_that_any_system_takes(tmp_path, name):
    assert _platform.is_file_name(name) == (name in FINE)
    table = pl.DataFrame({"slide": [name], "path": [str(tmp_path / "none.h5ad")]})
    if name not in FINE:
        with pytest.raises(ValueError, match=r"file name for a slide|name that a file can"):
            stfast.build(table, tmp_path / "out")


def test_tiles_of_spots_named_as_devices_have_other_names(picture, tmp_path):
    names = ["nul", "Com1.x", "COM10", "aux", "b"]
    options = {"names": names, "container": "folder", "encoding": "png", "size": 8, "span": 8}
    centers = [[20 + 5 * n, 20] for n in range(5)]
    output = stfast.write_tiles(picture, centers, tmp_path / "t", **options).output
    stems = {path.name.removesuffix(".png") for path in output.glob("*.png")}
    assert stems == {"%6Eul", "%43om1.x", "COM10", "%61ux", "b"}
    assert pl.read_parquet(output / "spots.parquet").sort("row")["spot"].to_list() == names


def careless(source):
    """Lines that read or write text in whatever encoding, or with whatever ends of lines."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        said = {word.arg for word in node.keywords}
        modes = [a.value for a in node.args if isinstance(a, ast.Constant)]
        mode = next((m for m in modes if isinstance(m, str) and set(m) <= set("rwaxbt+")), "r")
        plain = name == "open" and not node.args  # path.open()
        opens = plain or (name in ("open", "fdopen") and mode in modes and "b" not in mode)
        writes = name == "write_text" or (opens and set(mode) & set("wax+"))
        needed = {"encoding"} if opens or name in ("read_text", "write_text") else set()
        if (needed | ({"newline"} if writes else set())) - said:
            yield node.lineno


def test_texts_are_the_same_bytes_on_any_system():
    faults = [
        f"{file.relative_to(ROOT).as_posix()}:{line}"
        for file in sorted(PACKAGE.rglob("*.py"))
        for line in careless(file.read_text(encoding="utf-8"))
    ]
    assert not faults, "say encoding and newline, or write bytes: " + ", ".join(faults)


def test_careless_texts_are_seen():
    assert list(careless("p.read_text()\np.write_text(x, encoding='utf-8')\np.open()")) == [1, 2, 3]
    assert list(careless("p.open('a')\nopen(p, 'w', encoding='utf-8')\ngzip.open(p, 'rt')")) == [
        1,
        2,
        3,
    ]
    assert not list(careless("p.open('rb')\nopen(p, 'wb')\nImage.open(p)\np.read_bytes()"))


def test_what_a_terminal_cannot_show_is_escaped(picture):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    environment["PYTHONIOENCODING"] = "ascii"
    environment.pop("PYTHONUTF8", None)
    named = picture.with_name("µ.png")
    picture.rename(named)
    for words, status in ((["info", named], 0), (["info", named.with_name("ä.png")], 1)):
        done = subprocess.run(
            [sys.executable, "-m", "stfast.cli", *map(str, words)],
            capture_output=True,
            text=True,
            env=environment,
            check=False,
        )
        assert done.returncode == status, done.stderr
        assert ("120 \\xd7 90 px" in done.stdout) == (status == 0)
        assert ("\\xe4.png" in done.stderr) == (status == 1)
    said = subprocess.check_output(
        [sys.executable, "-m", "stfast.cli", "info", str(named), "--json"], env=environment
    )
    assert json.loads(said)["path"] == str(named)
