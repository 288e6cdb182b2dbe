"""Try a wheel as a user gets it: a clean venv, no compiler in sight, then a first call.

The checks run in a new process of the new venv, whose PATH holds the venv alone, away from
this checkout, so that only the wheel's own files can answer.
"""

import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

TAG = re.compile(r"-cp311-abi3-manylinux_\d+_\d+_\w+\.whl$|-cp311-abi3-manylinux\d+_\w+")
COMPILERS = ("cc", "gcc", "clang", "cargo", "rustc", "cmake", "nasm")

FIRST_CALL = """
import sys
import stfast
heavy = {"torch", "dask", "scanpy", "matplotlib"} & set(sys.modules)
assert not heavy, f"import stfast pulls in {heavy}"
assert sys.prefix in stfast.__file__, stfast.__file__

import numpy as np
from scipy import sparse
squares = sparse.csr_matrix(np.arange(16, dtype=np.int32).reshape(16, 1))
rows, cols = np.divmod(np.arange(16), 4)
binned = stfast.aggregate_bins(squares, rows=rows, cols=cols, factor=2)
print("first call:", type(binned).__name__)
"""


def check_names(wheel: Path) -> None:
    """Check the wheel's tag and that licences and notices lie in it."""
    if not TAG.search(wheel.name):
        sys.exit(f"{wheel.name}: expected a cp311-abi3-manylinux wheel")
    names = zipfile.ZipFile(wheel).namelist()
    for wanted in ("licenses/LICENSE", "licenses/THIRD_PARTY_NOTICES", "stfast/py.typed"):
        if not any(name.endswith(wanted) for name in names):
            sys.exit(f"{wheel.name}: no {wanted} inside")


def check_paths(wheel: Path) -> None:
    """Check that the native module does not tell where it was built."""
    with zipfile.ZipFile(wheel) as archive:
        native = next(n for n in archive.namelist() if n.endswith(".so"))
        if str(Path.home()).encode() + b"/" in archive.read(native):
            sys.exit(f"{wheel.name}: {native} names the builder's home folder")


def try_wheel(wheel: Path, folder: Path) -> None:
    """Install the wheel into a new venv and make the first calls."""
    python = folder / "venv/bin/python"
    environment = {"PATH": str(python.parent), "HOME": str(folder), "LANG": "C.UTF-8"}
    kept = {k: v for k, v in os.environ.items() if k.startswith(("PIP_", "UV_", "SSL_"))}

    def run(*command: str | Path) -> None:
        subprocess.run(command, check=True, cwd=folder, env=kept | environment)

    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    for name in COMPILERS:
        if (python.parent / name).exists():
            sys.exit(f"the clean venv has {name}")
    run(python, "-m", "pip", "install", "--quiet", "--only-binary=:all:", wheel)
    run(python, "-I", "-c", FIRST_CALL)
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
