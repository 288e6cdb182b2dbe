"""Spots over the picture, to be looked at.

A ring around each spot where there is room; where spots lie close, faint marks and the outline
of all that is tissue. Drawn on arrays, so that half a million bins take no time.
"""

import os
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from stfast._output import whole
from stfast.alignment._slide import Slide
from stfast.alignment._tissue import discs

if TYPE_CHECKING:
    from PIL.Image import Image

_SIDE, HEADER, _GAP = 1000, 34, 10
_TISSUE, _OFF = (0, 140, 40), (230, 120, 0)
_ROOMY = 14.0
"""Pixels from spot to spot from which rings leave enough of the picture to be seen."""
_FAINT = 0.4


class Shown(NamedTuple):
    """A panel: its title, spots and their distance in pixels of the slide's picture."""

    title: str
    xy: NDArray[np.float64]
    pitch: float


def draw(path: str | os.PathLike[str], slide: Slide, shown: list[Shown]) -> None:
    """A PNG with a panel for each placement of the spots."""
    from PIL import Image

    scale = _SIDE / max(slide.pixels.shape[:2])
    height, width = (max(1, round(side * scale)) for side in slide.pixels.shape[:2])
    picture = Image.fromarray(slide.pixels).resize((width, height), Image.Resampling.BILINEAR)
    page = Image.new("RGB", ((width + _GAP) * len(shown) - _GAP, height + HEADER), "white")
    for number, (title, xy, pitch) in enumerate(shown):
        panel = _panel(np.asarray(picture), xy * scale, slide.in_tissue, pitch * scale)
        page.paste(Image.fromarray(panel), (number * (width + _GAP), HEADER))
        _write(page, (number * (width + _GAP) + 6, 8), title)
    with whole(path) as partial:
        page.save(partial, "PNG")


def _write(page: "Image", at: tuple[int, int], text: str) -> None:
    from PIL import ImageDraw, ImageFont

    ImageDraw.Draw(page).text(at, text, fill="black", font=ImageFont.load_default(16))


def _panel(
    pixels: NDArray[np.uint8],
    xy: NDArray[np.float64],
    in_tissue: NDArray[np.bool_],
    pitch: float,
) -> NDArray[np.uint8]:
    """The picture with its spots, green in tissue, orange off it."""
    out = pixels.astype(np.float64)
    roomy = pitch >= _ROOMY
    for colour, which in ((_OFF, ~in_tissue), (_TISSUE, in_tissue)):
        marks = _rings(xy[which], 0.35 * pitch, pixels.shape)
        share = 1.0 if roomy else _FAINT
        out[marks] = out[marks] * (1 - share) + np.array(colour) * share
    if not roomy:
        tissue, _ = discs(xy[in_tissue], max(pitch, 3.0), pixels.shape[:2])
        out[ndimage.binary_dilation(tissue) & ~ndimage.binary_erosion(tissue)] = _TISSUE
    return np.rint(out).astype(np.uint8)


def _rings(
    xy: NDArray[np.float64], radius: float, shape: tuple[int, ...]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Row and column of the pixels of circles around spots; of dots where they are too small."""
    steps = int(2 * np.pi * radius * 1.5) if radius >= 1.5 else 1
    angle = np.arange(steps) * (2 * np.pi / steps)
    ring = np.stack([np.cos(angle), np.sin(angle)], axis=1) * (radius if steps > 1 else 0)
    column, row = np.floor(xy[:, None] + ring).astype(np.int64).reshape(-1, 2).T
    inside = (row >= 0) & (row < shape[0]) & (column >= 0) & (column < shape[1])
    return row[inside], column[inside]
