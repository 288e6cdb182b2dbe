"""A tile for each spot.

Coordinates are (x, y) in level-0 pixels; the pixel in column ``i`` has its
centre at ``i + 1/2``. A window of side ``span`` around x starts at column
``floor(x - span/2 + 1/2)``: whole pixels, the nearest that can be had. Where a
tile has as many pixels as its window, it is those pixels, unchanged; otherwise
they are resized by the antialiased bicubic filter that Pillow uses, from the
most reduced level that is not coarser than the tile.
"""

import os
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stfast import _check, _core
from stfast.images import Level, SlideImage, open_image

_LARGEST = 65_535
"""Most pixels that a tile's side may have."""

_LARGEST_SPAN = 32_000
"""Most pixels that a window's side may have: 3 GiB a window."""


class Windows(NamedTuple):
    """Where tiles lie in one level of an image.

    Attributes
    ----------
    level
        The level to cut from.
    span
        Width and height of every window in the level's pixels.
    left, top
        Edges of each window in the level's pixels, float64 (n,).
    """

    level: Level
    span: tuple[float, float]
    left: NDArray[np.float64]
    top: NDArray[np.float64]


def plan_windows(
    image: SlideImage, centers: ArrayLike, size: int, span: float | None = None
) -> Windows:
    """Place a window on each centre, in the level of the image that suits the size.

    Parameters
    ----------
    image
        An opened image.
    centers
        (n, 2) positions (x, y) in level-0 pixels.
    size
        Side of a tile in pixels.
    span
        Side of a window in level-0 pixels, rounded to whole ones; ``None``: ``size``.

    Raises
    ------
    ValueError
        A coordinate is not finite, or a side is not positive.
    IndexError
        A centre lies outside the image.
    """
    centers = _check.points(centers)
    size = tile_side(size)
    span = _check.positive(size if span is None else span, "span", "pixels")
    if span > _LARGEST_SPAN:
        raise ValueError(f"span: expected at most {_LARGEST_SPAN} pixels, got {span:g}")
    side = max(1, int(np.floor(span + 0.5)))
    _inside(image, centers)
    corner = np.floor(centers - side / 2 + 0.5)
    level = image.best_level(side / size)
    dx, dy = level.downsample
    return Windows(level, (side / dx, side / dy), corner[:, 0] / dx, corner[:, 1] / dy)


def extract_tiles(
    image: str | os.PathLike[str] | SlideImage,
    centers: ArrayLike,
    size: int = 224,
    *,
    span: float | None = None,
    fill: int = 255,
    out: NDArray[np.uint8] | None = None,
    workers: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> NDArray[np.uint8]:
    """Cut a square tile around each centre.

    Each block of the image that some tile needs is decoded once and serves all
    of them, in parallel and without the interpreter; the answer is the same for
    any number of workers.

    Parameters
    ----------
    image
        A path, or what :func:`open_image` returned.
    centers
        (n, 2) positions (x, y) in level-0 pixels; pixel centres lie at halves.
    size
        Side of a tile in pixels.
    span
        Side of a tile's window in level-0 pixels, rounded to whole ones.
        ``None``: ``size``, so that no pixel is resampled.
    fill
        Grey level of what lies outside the image, 0 to 255.
    out
        Array to fill instead of a new one: (n, size, size, 3) uint8, C order
        (a memory map, or the ``numpy()`` view of a pinned tensor).
    workers
        Threads; ``None``: ``$STFAST_WORKERS``, else the CPUs of this process.
    progress
        Called now and then with the number of tiles done.

    Returns
    -------
    ndarray
        (n, size, size, 3) uint8, RGB.

    Raises
    ------
    FormatError
        A block is damaged, or ends before it should; names file and block.
    IndexError
        A centre lies outside the image.
    ValueError
        A coordinate is not finite, a side is not positive, ``out`` does not fit.
    NotImplementedError
        The image is of a kind that is not decoded yet.
    """
    image = image if isinstance(image, SlideImage) else open_image(image)
    windows = plan_windows(image, centers, size, span)
    out = _output(out, (len(windows.left), size, size, 3))
    fill, threads = grey_level(fill), _check.workers(workers)
    _cut(windows, out, fill, threads, progress)
    return out


def _cut(
    windows: Windows,
    out: NDArray[np.uint8],
    fill: int,
    threads: int,
    progress: Callable[[int], object] | None = None,
) -> None:
    if len(out):
        one = np.zeros(len(out), dtype=np.uint32)
        places = ([windows.level.native], [windows.span], one, windows.left, windows.top)
        _core.extract_tiles(places, out, fill, threads, progress=progress)


def thumbnail(
    image: str | os.PathLike[str] | SlideImage, longest: int = 2000, *, workers: int | None = None
) -> tuple[NDArray[np.uint8], float]:
    """The whole picture, reduced until no side has more than ``longest`` pixels.

    Parameters
    ----------
    image
        A path, or what :func:`open_image` returned.
    longest
        Most pixels a side may have; the picture is never magnified.
    workers
        Threads; ``None``: ``$STFAST_WORKERS``, else the CPUs of this process.

    Returns
    -------
    pixels
        (height, width, 3) uint8.
    scale
        Pixels of the thumbnail per level-0 pixel, at most 1.
    """
    image = image if isinstance(image, SlideImage) else open_image(image)
    longest = _check.at_least_one(longest, "longest")
    height, width = image.shape
    size = 256
    span = max(size, int(np.ceil(size * max(height, width) / longest)))
    down, across = -(-height // span), -(-width // span)
    top, left = (np.indices((down, across)).reshape(2, -1) * span).astype(np.float64)
    level = image.best_level(span / size)
    dx, dy = level.downsample
    tiles = np.empty((down * across, size, size, 3), dtype=np.uint8)
    windows = Windows(level, (span / dx, span / dy), left / dx, top / dy)
    _cut(windows, tiles, 255, _check.workers(workers))
    rows = tiles.reshape(down, across, size, size, 3).swapaxes(1, 2)
    whole = rows.reshape(down * size, across * size, 3)
    scale = size / span
    height, width = (max(1, round(side * scale)) for side in (height, width))
    return whole[:height, :width], scale


def grey_level(fill: int) -> int:
    """``fill`` if it is a grey level of 8 bits."""
    if not _check.is_whole(fill) or not 0 <= fill <= 255:
        raise ValueError(f"fill: expected a grey level from 0 to 255, got {fill!r}")
    return int(fill)


def tile_side(size: int) -> int:
    """``size`` if a tile's side can have so many pixels."""
    if not _check.is_whole(size) or not 1 <= size <= _LARGEST:
        raise ValueError(f"size: expected 1 to {_LARGEST} pixels, got {size!r}")
    return int(size)


def _inside(image: SlideImage, centers: NDArray[np.float64]) -> None:
    height, width = image.shape
    outside = ((centers < 0) | (centers > (width, height))).any(axis=1)
    if outside.any():
        first = int(np.flatnonzero(outside)[0])
        raise IndexError(
            f"{image.path}: expected centers within {width} × {height} pixels, got "
            f"{tuple(centers[first].tolist())} at row {first} ({int(outside.sum())} such)"
        )


def _output(out: NDArray[np.uint8] | None, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    if out is None:
        return np.empty(shape, dtype=np.uint8)
    array: object = out
    if not isinstance(array, np.ndarray):
        raise ValueError(f"out: expected a numpy array, got {type(array).__name__}")
    flags = out.flags.c_contiguous and out.flags.writeable
    if out.shape != shape or out.dtype != np.uint8 or not flags:
        found = f"{out.dtype} {out.shape}"
        raise ValueError(f"out: expected a writeable C-ordered uint8 array {shape}, got {found}")
    return out
