"""Visium HD from raw files: against scanpy's reader, pandas' join and scipy's product."""

from functools import partial
from pathlib import Path

import numpy as np
from anndata import AnnData

import stfast
from benches import data, peers
from benches.measure import Case, Contestant, threads


def bins(*, quick: bool) -> Case:
    few, folder, title = _slides(quick=quick)
    return Case(
        title=f"{title}: raw 2 µm file to 8 µm bins in tissue",
        work=1,
        unit="slides",
        contestants=[
            Contestant(
                name="stfast",
                role="ours",
                threads=threads(),
                call=lambda: stfast.read_visium_hd(folder, 8),
                warm=lambda: stfast.read_visium_hd(few, 8),
            ),
            Contestant(
                name="scanpy + pandas + scipy",
                needs=("scanpy",),
                call=partial(peers.scanpy_bins, folder, 4),
                warm=partial(peers.scanpy_bins, few, 4),
            ),
        ],
        equal=_equal,
    )


def squares(*, quick: bool) -> Case:
    few, folder, title = _slides(quick=quick)
    return Case(
        title=f"{title}: raw 2 µm file as it is",
        work=1,
        unit="slides",
        contestants=[
            Contestant(
                name="stfast",
                role="ours",
                threads=threads(),
                call=lambda: stfast.read_visium_hd(folder, 2, raw=True),
                warm=lambda: stfast.read_visium_hd(few, 2),
            ),
            Contestant(
                name="scanpy + pandas",
                needs=("scanpy",),
                call=partial(peers.scanpy_squares, folder),
                warm=partial(peers.scanpy_squares, few),
            ),
        ],
        equal=_equal,
    )


def _slides(*, quick: bool) -> tuple[Path, Path, str]:
    """A small one to get warm with, the one to read, and what to call it."""
    side_um = 300.0 if quick else 2000.0
    title = f"Visium HD slide of {side_um / 1000:g} mm"
    return data.visium_hd(100.0), data.visium_hd(side_um), title


def _equal(ours: AnnData, theirs: AnnData) -> None:
    assert list(ours.obs_names) == list(theirs.obs_names), "other barcodes"
    assert list(ours.var_names) == list(theirs.var_names), "other genes"
    for column in ("array_row", "array_col"):
        np.testing.assert_array_equal(ours.obs[column], theirs.obs[column])
    assert (ours.X != theirs.X).nnz == 0, "other counts"


CASES = {"bins": bins, "squares": squares}
