"""Spots of tissue should lie on tissue, and tissue below the array under spots."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from stfast.alignment._placements import Placement
from stfast.alignment._slide import Slide
from stfast.tiles._grid import otsu

_LONGEST = 400
_BLUR = 2.0
_APART = 0.75
"""Share of the variance that lies between Otsu's two classes; an even field has 0.64 to 0.75."""
_FILLED = 0.95
_REACH = 0.7
"""Of the pitch: the radius of discs that leave no gap between neighbouring spots."""


@dataclass(frozen=True)
class Mask:
    """Where tissue is, at ``scale`` of the slide's picture; ``tells``: not all over it."""

    tissue: NDArray[np.bool_]
    scale: float
    tells: bool


def tissue_of(pixels: NDArray[np.uint8]) -> Mask:
    """Split a picture's blurred saturation at Otsu's threshold."""
    step = max(1, -(-max(pixels.shape[:2]) // _LONGEST))
    values = pixels.astype(np.float64)
    most, least = values.max(axis=-1), values.min(axis=-1)
    saturation = np.where(most > 0, (most - least) * 255 / np.maximum(most, 1), 0)
    blurred = ndimage.gaussian_filter(saturation, _BLUR * step)[
        step // 2 :: step, step // 2 :: step
    ]
    level = otsu(blurred.astype(np.int64))
    tissue = blurred >= level + 1
    share = float(tissue.mean())
    if share in (0, 1):
        return Mask(tissue, 1 / step, tells=False)
    gap = blurred[tissue].mean() - blurred[~tissue].mean()
    apart = share * (1 - share) * gap**2 / blurred.var()
    return Mask(tissue, 1 / step, bool(apart >= _APART and share <= _FILLED))


def agreement(slide: Slide, mask: Mask, placement: Placement) -> float:
    """Jaccard index of tissue and the discs of spots in tissue, as far as the array reaches.

    Where spots off the tissue are known they say how far that is. What lies off the picture
    is on no tissue.
    """
    xy = placement.move(slide.xy) * mask.scale
    pitch = slide.pitch * placement.scale * mask.scale
    spots, off = discs(xy[slide.in_tissue], pitch, mask.tissue.shape)
    reach = np.ones_like(spots)
    if not slide.in_tissue.all():
        reach, _ = discs(xy, pitch, mask.tissue.shape)
    both = (spots & mask.tissue & reach).sum()
    either = ((spots | mask.tissue) & reach).sum() + off * pitch**2
    return float(both / max(either, 1))


def share_on_tissue(slide: Slide, mask: Mask) -> float:
    """How many of the spots in tissue lie on it as given, from 0 to 1."""
    height, width = mask.tissue.shape
    column, row = np.floor(slide.xy[slide.in_tissue] * mask.scale).astype(np.int64).T
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    return float(mask.tissue[row[inside], column[inside]].sum() / len(row))


def discs(
    xy: NDArray[np.float64], pitch: float, shape: tuple[int, ...]
) -> tuple[NDArray[np.bool_], int]:
    """Pixels near a spot, and how many spots lie off the picture."""
    height, width = shape
    column, row = np.floor(xy).astype(np.int64).T
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    empty = np.ones((height, width), bool)
    empty[row[inside], column[inside]] = False
    off = int((~inside).sum())
    if not inside.any():
        return ~empty, off
    return ndimage.distance_transform_edt(empty) <= max(_REACH * pitch, 0.8), off
