"""A tile per spot: against those who read slides, and the JPEG codec's own rate."""

from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import stfast
from benches import data, peers
from benches.measure import Case, Contestant, threads

SIZE = 224


def tiled(*, quick: bool) -> Case:
    """Every block is touched, so that decoding all of them at once is open to each peer."""
    side, per_side = (5120, 17) if quick else (20_480, 70)
    path, centers = data.slide(side), data.spots(side, per_side)
    ours, theirs = _outputs(len(centers))
    return Case(
        title=f"{per_side}² spots of {SIZE} px on a {side}² slide, JPEG blocks of 256²",
        work=len(centers),
        unit="tiles",
        contestants=[
            _ours(path, centers, ours),
            *_slide_readers(path, _corners(centers), theirs),
            *_raw_rates(data.coded_blocks(path)),
        ],
        equal=np.testing.assert_array_equal,
    )


def _ours(path: Path, centers: NDArray[np.float64], out: peers.Pixels) -> Contestant:
    return Contestant(
        name="stfast",
        role="ours",
        threads=threads(),
        call=lambda: stfast.extract_tiles(path, centers, SIZE, out=out),
        warm=lambda: stfast.extract_tiles(path, centers[:1], SIZE),
    )


def _slide_readers(path: Path, corners: peers.Corners, out: peers.Pixels) -> list[Contestant]:
    calls = {
        "openslide": peers.openslide_tiles,
        "pyvips": peers.pyvips_tiles,
        "tifffile": peers.tifffile_tiles,
        "tifffile + zarr": peers.zarr_tiles,
    }
    return [
        Contestant(
            name=name,
            needs=tuple(name.split(" + ")),
            threads=threads(),
            call=partial(call, path, corners, out, threads()),
        )
        for name, call in calls.items()
    ]


def _raw_rates(blocks: list[bytes]) -> list[Contestant]:
    """On all threads; and on one, whose time for its share is what many could reach."""
    n, shape = threads(), (data.BLOCK, data.BLOCK)
    shares = {f"{n} threads": (blocks, n), f"1 thread × {n}": (blocks[::n], 1)}
    return [
        Contestant(
            name=f"libjpeg-turbo raw, {name}",
            role="limit",
            threads=workers,
            needs=("imagecodecs",),
            call=partial(peers.decode_jpegs, mine, shape, workers),
        )
        for name, (mine, workers) in shares.items()
    ]


def plain(*, quick: bool) -> Case:
    """A picture that is one JPEG stream leaves no work for a second thread."""
    side, per_side = (2400, 8) if quick else (9600, 32)
    path, centers = data.plain_jpeg(side), data.spots(side, per_side)
    corners = _corners(centers)
    ours, theirs = _outputs(len(centers))
    stream = [path.read_bytes()]
    return Case(
        title=f"{per_side}² spots of {SIZE} px on a plain JPEG of {side}²",
        work=len(centers),
        unit="tiles",
        contestants=[
            _ours(path, centers, ours),
            Contestant(
                name="Pillow",
                needs=("PIL",),
                call=partial(peers.pillow_tiles, path, corners, theirs),
            ),
            Contestant(
                name="pyvips",
                needs=("pyvips",),
                call=partial(peers.pyvips_whole, path, corners, theirs),
            ),
            Contestant(
                name="libjpeg-turbo raw, 1 thread",
                role="limit",
                needs=("imagecodecs",),
                call=partial(peers.decode_jpegs, stream, (side, side), 1),
            ),
        ],
        equal=np.testing.assert_array_equal,
    )


def _corners(centers: NDArray[np.float64]) -> peers.Corners:
    return np.floor(centers - SIZE / 2 + 0.5).astype(np.int64)


def _outputs(n: int) -> tuple[peers.Pixels, peers.Pixels]:
    """Arrays for our tiles and the peers', their pages in memory before anyone is timed."""
    shape = (n, SIZE, SIZE, 3)
    return np.full(shape, 1, dtype=np.uint8), np.full(shape, 2, dtype=np.uint8)


CASES = {"tiled": tiled, "plain": plain}
