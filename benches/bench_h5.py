"""Counts and genes of a Visium HD matrix as they are stored: against h5py."""

from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

import stfast
from benches import data
from benches.measure import Case, Contestant, threads

NAMES = ("data", "indices")
Arrays = list[NDArray[Any]]


def chunks(*, quick: bool) -> Case:
    few = data.raw_squares(100, 23.4)
    path, few = (_matrix(f) for f in (data.raw_squares(300 if quick else 2340, 23.4), few))
    with h5py.File(path) as file:
        n = len(file["matrix/data"])
    return Case(
        title=f"{n / 1e6:.1f} M counts and genes as Space Ranger stores them (int32, int64)",
        work=n / 1e6,
        unit="M non-zeros",
        contestants=[
            Contestant(
                name="stfast",
                role="ours",
                threads=threads(),
                call=partial(_ours, path),
                warm=partial(_ours, few),
            ),
            Contestant(name="h5py", needs=("h5py",), call=partial(_h5py, path)),
        ],
        equal=_equal,
    )


def _matrix(folder: Path) -> Path:
    return folder / "binned_outputs" / "square_002um" / "raw_feature_bc_matrix.h5"


def _ours(path: Path) -> Arrays:
    return [stfast.read_h5_dataset(path, f"matrix/{name}") for name in NAMES]


def _h5py(path: Path) -> Arrays:
    with h5py.File(path) as file:
        return [file[f"matrix/{name}"][()] for name in NAMES]


def _equal(ours: Arrays, theirs: Arrays) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == b.dtype, f"{b.dtype} instead of {a.dtype}"
        np.testing.assert_array_equal(a, b)


CASES = {"chunks": chunks}
