"""Where tiles are cut: a window around each centre, in the level that suits the tile.

Coordinates are (x, y) in level-0 pixels; the pixel in column ``i`` has its
centre at ``i + 1/2``. A window of side ``span`` around x starts at column
``floor(x - span/2 + 1/2)``: whole pixels, the nearest that can be had.
"""

import os
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stfast import _check
from stfast._native import LARGEST, LARGEST_SPAN, Places, Style
from stfast.images import Level, SlideImage, open_image

Mode = Literal["center", "pil-crop"]
Filter = Literal["box", "bilinear", "bicubic", "lanczos"]
Border = Literal["fill", "edge", "reflect"]
OnError = Literal["raise", "fill"]


@dataclass(frozen=True)
class Windows:
    """Windows in one level of an image.

    Attributes
    ----------
    level
        The level to cut from.
    left, top, width, height
        Edges and sides of each window in the level's pixels, float64 (n,).
    size
        Side of a tile in pixels; ``None``: a tile is its window.
    """

    level: Level
    left: NDArray[np.float64]
    top: NDArray[np.float64]
    width: NDArray[np.float64]
    height: NDArray[np.float64]
    size: int | None

    def __len__(self) -> int:
        return len(self.left)

    def some(self, chosen: NDArray[np.int64]) -> "Windows":
        """A few of them."""
        sides = (self.left, self.top, self.width, self.height)
        left, top, width, height = (side[chosen] for side in sides)
        return Windows(self.level, left, top, width, height, self.size)

    def tile_shape(self) -> tuple[int, int]:
        """(height, width) of each tile, which must be the same for all."""
        if self.size is not None:
            return self.size, self.size
        shapes = np.unique(np.stack([self.height, self.width]), axis=1).T.tolist()
        if len(shapes) > 1:
            found = " and ".join(f"{height:g} × {width:g}" for height, width in shapes[:4])
            raise ValueError(
                f"size: expected the side of a tile where windows differ, got None for {found}"
            )
        height, width = shapes[0] if shapes else (0, 0)
        return int(height), int(width)

    def places(self) -> Places:
        """The windows as the native module takes them."""
        sides = (self.left, self.top, self.width, self.height)
        source = np.zeros(len(self), dtype=np.uint32)
        return Places([self.level.native], source, *sides, self.size)


def plan_windows(
    image: SlideImage,
    centers: ArrayLike,
    size: int | None,
    *,
    span: float | None = None,
    mode: Mode = "center",
) -> Windows:
    """Place a window on each centre, in the level of the image that suits the size.

    Parameters
    ----------
    image
        An opened image.
    centers
        (n, 2) positions (x, y) in level-0 pixels.
    size
        Side of a tile in pixels; ``None``: that of its window.
    span
        Side of a window in level-0 pixels; ``None``: ``size``.
    mode
        ``"center"``: the span rounded to whole pixels, around the centre.
        ``"pil-crop"``: each edge rounded on its own, as Pillow's ``crop`` does it.

    Raises
    ------
    ValueError
        A coordinate is not finite, or a side is not positive.
    """
    centers = _check.points(centers)
    _check.choice(mode, Mode, "mode")
    if size is None and span is None:
        raise ValueError("size: expected a side of tiles or of windows, got neither")
    size = None if size is None else tile_side(size)
    span = _check.positive(size if span is None else span, "span", "pixels")
    if span > LARGEST_SPAN:
        raise ValueError(f"span: expected at most {LARGEST_SPAN} pixels, got {span:g}")
    if mode == "pil-crop":
        start, end = np.rint(centers - span / 2), np.rint(centers + span / 2)
    else:
        span = max(1, int(np.floor(span + 0.5)))
        start = np.floor(centers - span / 2 + 0.5)
        end = start + span
    level = image.best_level(1 if size is None else span / size)
    left, top = np.ascontiguousarray((start / level.downsample).T)
    width, height = np.ascontiguousarray(((end - start) / level.downsample).T)
    return Windows(level, left, top, width, height, size)


def image_of(image: str | os.PathLike[str] | SlideImage, mpp: float | None) -> SlideImage:
    """An opened image; ``mpp``, if given, wins over the file's."""
    image = image if isinstance(image, SlideImage) else open_image(image)
    if mpp is None:
        return image
    return replace(image, mpp=_check.positive(mpp, "mpp", "µm"), mpp_source="given")


def span_in_pixels(image: SlideImage, span: float | None, span_um: float | None) -> float | None:
    """The side of a window in level-0 pixels, given in them or in µm."""
    if span_um is None:
        return span
    if span is not None:
        raise ValueError(f"span: expected pixels or µm, got span={span} and span_um={span_um}")
    if image.mpp is None:
        raise ValueError(
            f"{image.path}: expected µm per pixel to turn µm into pixels, "
            f"got none from the file; give mpp= (--mpp)"
        )
    return _check.positive(span_um, "span_um", "µm") / image.mpp


def tile_side(size: int) -> int:
    """``size`` if a tile's side can have so many pixels."""
    if not _check.is_whole(size) or not 1 <= size <= LARGEST:
        raise ValueError(f"size: expected 1 to {LARGEST} pixels, got {size!r}")
    return int(size)


def style(
    fill: int | None, border: Border, filter_: Filter, on_error: OnError, mode: Mode
) -> Style:
    """How tiles are cut, from what users say; Pillow's crop is black outside."""
    if fill is None:
        fill = 0 if mode == "pil-crop" else 255
    return Style(
        fill=_check.grey(fill, "fill"),
        border=_check.choice(border, Border, "border"),
        filter=_check.choice(filter_, Filter, "resample"),
        lenient=_check.choice(on_error, OnError, "on_error") == "fill",
    )
