"""Try a wheel as a user gets it: a clean venv, no compiler in sight, then a first call.

The checks run in a new process of the new venv, whose PATH holds the venv alone, away from
this checkout, so that only the wheel's own files can answer.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import stfast

TAG = re.compile(r"-cp311-abi3-(manylinux_?\d|macosx_\d|win_)[\w.]*\.whl$")
COMPILERS = ("cc", "gcc", "clang", "cargo", "rustc", "cmake", "nasm")

# What the base install alone must be able to do with a Visium HD slide, given as argument;
# tests/test_house.py runs it too. Making a slide takes more: see the extra `demo`.
FIRST_CALL = """
import sys
import stfast

heavy = {m for m in ("torch", "dask", "scanpy", "matplotlib") if sys.modules.get(m)}
assert not heavy, f"import stfast pulls in {heavy}"

import numpy as np
from PIL import Image
from scipy import sparse

squares = sparse.csr_matrix(np.arange(16, dtype=np.int32).reshape(16, 1))
rows, cols = np.divmod(np.arange(16), 4)
bins = stfast.aggregate_bins(squares, rows=rows, cols=cols, factor=2)
print("binned:", type(bins).__name__)

y, x = np.mgrid[:96, :96]
picture = np.stack([2 * x, 2 * y, x + y], axis=-1).astype(np.uint8)
for codec in ("raw", "tiff_adobe_deflate", "tiff_lzw", "jpeg"):
    Image.fromarray(picture).save("picture.tif", compression=codec)
    tile = stfast.extract_tiles("picture.tif", [(48.0, 48.0)], size=32)[0]
    off = np.abs(tile.astype(int) - picture[32:64, 32:64]).max()
    assert off <= (12 if codec == "jpeg" else 0), (codec, off)
    print("tile decoded:", codec)

slide = stfast.read(sys.argv[1])
best = stfast.highly_variable_genes(slide, n_top_genes=5, inplace=False)
print("slide read:", slide.shape, "best gene:", best.index[best["highly_variable"]][0])
"""
OWN_FILES = "import sys, stfast; assert stfast.__file__.startswith(sys.prefix), stfast.__file__"


def check_names(wheel: Path) -> None:
    """Check the wheel's tag and that licences and notices lie in it."""
    if not TAG.search(wheel.name):
        sys.exit(f"{wheel.name}: expected a cp311-abi3 wheel of manylinux, macosx or win")
    names = zipfile.ZipFile(wheel).namelist()
    for wanted in ("licenses/LICENSE", "licenses/THIRD_PARTY_NOTICES", "stfast/py.typed"):
        if not any(name.endswith(wanted) for name in names):
            sys.exit(f"{wheel.name}: no {wanted} inside")


def check_paths(wheel: Path) -> None:
    """Check that the native module does not tell where it was built."""
    with zipfile.ZipFile(wheel) as archive:
        native = next(n for n in archive.namelist() if n.endswith((".so", ".pyd")))
        if f"{Path.home()}{os.sep}".encode() in archive.read(native):
            sys.exit(f"{wheel.name}: {native} names the builder's home folder")


def try_wheel(wheel: Path, folder: Path) -> None:
    """Install the wheel into a new venv and make the first calls."""
    slide = stfast.synthesize_visium_hd(folder / "slide", side_um=100, n_genes=50)
    python = folder / ("venv/Scripts/python.exe" if os.name == "nt" else "venv/bin/python")
    environment = {"PATH": str(python.parent), "HOME": str(folder), "LANG": "C.UTF-8"}
    kept = {k: v for k, v in os.environ.items() if k.startswith(("PIP_", "UV_", "SSL_", "SYSTEM"))}

    def run(*command: str | Path) -> None:
        subprocess.run(command, check=True, cwd=folder, env=kept | environment)

    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    for name in COMPILERS:
        if shutil.which(name, path=str(python.parent)):
            sys.exit(f"the clean venv has {name}")
    run(python, "-m", "pip", "install", "--quiet", "--only-binary=:all:", wheel)
    run(python, "-I", "-c", OWN_FILES)
    run(python, "-I", "-c", FIRST_CALL, slide)
    run(python.parent / "stfast", "--version")


def main(name: str) -> None:
    """Run all checks on one wheel."""
    wheel = Path(name).resolve()
    check_names(wheel)
    check_paths(wheel)
    with tempfile.TemporaryDirectory() as folder:
        try_wheel(wheel, Path(folder))
    print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB, passes the smoke test")


if __name__ == "__main__":
    main(*sys.argv[1:])
