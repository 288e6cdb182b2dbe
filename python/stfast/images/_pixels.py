"""Pixels of an opened image: a rectangle of a level, or the whole picture reduced.

Both are windows like those of tiles, and the same kernel of the native module cuts them.
"""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from stfast import _check, _core
from stfast._native import LARGEST, LARGEST_SPAN, Places, Style

if TYPE_CHECKING:
    from stfast.images import Level, SlideImage


def read_rectangle(
    image: "SlideImage",
    location: tuple[float, float],
    number: int,
    size: tuple[int, int],
    *,
    fill: int,
    workers: int | None,
) -> NDArray[np.uint8]:
    """Read a rectangle of any shape in one level, its corner at the nearest pixel."""
    n = len(image.levels)
    if not _check.is_whole(number) or not -n <= number < n:
        raise IndexError(f"{image.path}: expected a level from 0 to {n - 1}, got {number!r}")
    level = image.levels[number]
    corner = _check.points([location], "location") / level.downsample
    sides = [_check.at_least_one(side, "size") for side in size]
    if len(sides) != 2 or max(sides) > LARGEST:
        raise ValueError(f"size: expected width and height up to {LARGEST}, got {size}")
    style = Style(fill=_check.grey(fill, "fill"))
    shape = np.array(sides, dtype=np.float64).reshape(2, 1)
    out = np.empty((1, size[1], size[0], 3), dtype=np.uint8)
    places = _places(level, np.floor(corner + 0.5).T, shape, None)
    _core.extract_tiles(places, style, out, _check.workers(workers))
    region: NDArray[np.uint8] = out[0]
    return region


def reduced(
    image: "SlideImage", longest: int, workers: int | None
) -> tuple[NDArray[np.uint8], float]:
    """The whole picture with at most ``longest`` pixels a side, and its scale."""
    longest = _check.at_least_one(longest, "longest")
    height, width = image.shape
    # Pieces of 256 pixels, or smaller ones where their windows would be too large.
    size = max(1, min(256, LARGEST_SPAN * longest // max(height, width)))
    span = max(size, int(np.ceil(size * max(height, width) / longest)))
    down, across = -(-height // span), -(-width // span)
    level = image.best_level(span / size)
    top, left = np.indices((down, across)).reshape(2, -1) * float(span)
    corner = np.stack([left / level.downsample[0], top / level.downsample[1]])
    shape = np.tile(span / np.array(level.downsample).reshape(2, 1), down * across)
    tiles = np.empty((down * across, size, size, 3), dtype=np.uint8)
    places = _places(level, corner, shape, size)
    _core.extract_tiles(places, Style(border="edge"), tiles, _check.workers(workers))
    rows = tiles.reshape(down, across, size, size, 3).swapaxes(1, 2)
    whole = rows.reshape(down * size, across * size, 3)
    scale = size / span
    height, width = (max(1, round(side * scale)) for side in (height, width))
    return whole[:height, :width], scale


def _places(
    level: "Level", corner: NDArray[np.float64], shape: NDArray[np.float64], size: int | None
) -> Places:
    """Windows in a level's pixels; corners (x, y) and shapes (width, height) are columns."""
    left, top = np.ascontiguousarray(corner)
    width, height = np.ascontiguousarray(shape)
    source = np.zeros(len(left), dtype=np.uint32)
    return Places([level.native], source, left, top, width, height, size)
