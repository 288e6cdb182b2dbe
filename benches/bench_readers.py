"""Slides and matrices from raw files: against scanpy's readers, pandas' join, scipy's product."""

import gzip
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
from anndata import AnnData

import stfast
from benches import data, peers
from benches.measure import Case, Contestant, threads
from stfast.readers._triplet import read_mtx

UMI = 23.4
"""Molecules a square: 5.47 M squares and 124.6 M non-zeros, as in a mouse intestine."""


def bins(*, quick: bool) -> Case:
    few, folder, title = _slides(quick=quick)
    return Case(
        title=f"{title}: raw 2 µm file to 8 µm bins in tissue",
        work=1,
        unit="slides",
        contestants=[
            _ours(lambda: stfast.read_visium_hd(folder, 8), lambda: stfast.read_visium_hd(few, 8)),
            Contestant(
                name="scanpy + pandas + scipy",
                needs=("scanpy",),
                call=partial(peers.scanpy_bins, folder, 4),
                warm=partial(peers.scanpy_bins, few, 4),
            ),
        ],
        equal=_equal,
    )


def full(*, quick: bool) -> Case:
    """A whole slide, three times as many counts: time should be linear, memory flat."""
    few, _, _ = _slides(quick=True)
    folder = data.raw_squares(600 if quick else data.GRID, 37.0)
    return Case(
        title=f"whole slide of 3350² squares, {_nonzeros(_matrix_of(folder))}: to 8 µm bins",
        work=1,
        unit="slides",
        contestants=[
            _ours(lambda: stfast.read_visium_hd(folder, 8), lambda: stfast.read_visium_hd(few, 8)),
            Contestant(
                name="zlib: inflate the chunks",
                role="limit",
                threads=threads(),
                call=partial(peers.inflate_chunks, _matrix_of(folder), threads()),
            ),
        ],
        equal=_equal,
    )


def matrix(*, quick: bool) -> Case:
    few, path = (data.binned_matrix(n, UMI) for n in (100, 300 if quick else 2340))
    return _matrix_case(path, few, "8 µm matrix as it is")


def squares(*, quick: bool) -> Case:
    """Five million names to make take as long as the counts."""
    few, folder, _ = _slides(quick=quick)
    return _matrix_case(_matrix_of(folder), _matrix_of(few), "2 µm matrix as it is")


def _matrix_case(path: Path, few: Path, title: str) -> Case:
    return Case(
        title=f"{title}, {_nonzeros(path)}",
        work=1,
        unit="matrices",
        contestants=[
            _ours(lambda: stfast.read_10x(path), lambda: stfast.read_10x(few)),
            Contestant(
                name="scanpy.read_10x_h5",
                needs=("scanpy",),
                call=partial(peers.scanpy_h5, path),
                warm=partial(peers.scanpy_h5, few),
            ),
        ],
        equal=_equal_counts,
    )


def mtx_gz(*, quick: bool) -> Case:
    folder, few = (_triplet(n) for n in (500 if quick else 20_000, 100))
    return Case(
        title=f"10x matrix in three gzipped texts, {_size(folder / 'matrix.mtx.gz')}",
        work=1,
        unit="matrices",
        contestants=[
            _ours(lambda: stfast.read_10x(folder), lambda: stfast.read_10x(few)),
            Contestant(
                name="scanpy.read_10x_mtx",
                needs=("scanpy",),
                call=partial(peers.scanpy_mtx, folder),
                warm=partial(peers.scanpy_mtx, few),
            ),
        ],
        equal=_equal_counts,
    )


def mtx(*, quick: bool) -> Case:
    path = _triplet(500 if quick else 20_000) / "matrix.mtx"
    return Case(
        title=f"matrix-market text alone, {_size(path)}",
        work=1,
        unit="matrices",
        contestants=[
            Contestant(
                name="stfast",
                role="ours",
                threads=threads(),
                call=lambda: read_mtx(path, threads()),
            ),
            Contestant(
                name="scipy.io.mmread",
                needs=("scipy",),
                threads=threads(),
                call=partial(peers.scipy_mtx, path),
            ),
        ],
        equal=_same_arrays,
    )


def _ours(call: Callable[[], Any], warm: Callable[[], Any]) -> Contestant:
    return Contestant(name="stfast", role="ours", threads=threads(), call=call, warm=warm)


def _slides(*, quick: bool) -> tuple[Path, Path, str]:
    """A small one to get warm with, the one to read, and what to call it."""
    few, folder = data.raw_squares(100, UMI), data.raw_squares(300 if quick else 2340, UMI)
    return few, folder, f"Visium HD, {_nonzeros(_matrix_of(folder))}"


def _matrix_of(folder: Path) -> Path:
    return folder / "binned_outputs/square_002um/raw_feature_bc_matrix.h5"


def _nonzeros(path: Path) -> str:
    barcodes, nonzeros = data.sizes(path)
    return f"{barcodes / 1e6:.2f} M barcodes, {nonzeros / 1e6:.1f} M non-zeros"


def _size(path: Path) -> str:
    return f"{path.stat().st_size / 1e6:.0f} MB"


def _triplet(n: int) -> Path:
    """Counts of n cells of 18 000 genes, gzipped, and the matrix also plain."""

    def make(folder: Path) -> None:
        folder.mkdir()
        counts = data.counts(n, 18_000, 2000.0)
        plain = folder / "matrix.mtx"
        scipy.io.mmwrite(plain, counts.T, field="integer")
        texts = {
            "barcodes": [f"CELL{i}-1" for i in range(n)],
            "features": [f"ENSG{i}\tG{i}\tGene Expression" for i in range(18_000)],
        }
        for name, lines in texts.items():
            with gzip.open(folder / f"{name}.tsv.gz", "wt") as out:
                out.write("\n".join(lines) + "\n")
        with plain.open("rb") as file, gzip.open(f"{plain}.gz", "wb", 6) as packed:
            shutil.copyfileobj(file, packed)

    return data.cached(f"triplet-{n}", make)


def _equal(ours: AnnData, theirs: AnnData) -> None:
    for column in ("array_row", "array_col"):
        np.testing.assert_array_equal(ours.obs[column], theirs.obs[column])
    _equal_counts(ours, theirs)


def _equal_counts(ours: AnnData, theirs: AnnData) -> None:
    assert list(ours.obs_names) == list(theirs.obs_names), "other barcodes"
    assert list(ours.var_names) == list(theirs.var_names), "other genes"
    _same_arrays(ours.X, theirs.X)


def _same_arrays(ours: Any, theirs: Any) -> None:
    theirs.sort_indices()
    for name in ("indptr", "indices", "data"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name), err_msg=name)


CASES = {
    "bins": bins,
    "full": full,
    "matrix": matrix,
    "squares": squares,
    "mtx gz": mtx_gz,
    "mtx": mtx,
}
