"""A grid of tiles over the tissue of a slide that has no spots.

Tissue is what is coloured: the saturation of a reduced picture, split by Otsu's
threshold (Otsu 1979, "A threshold selection method from gray-level histograms").
"""

import os
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stfast import _check
from stfast.images import SlideImage, open_image

_LONGEST = 2000
"""Pixels of the reduced picture's longer side."""

_LEAST_SATURATION = 13
"""Below this (5 % of 255) what differs is the noise of an empty slide, not tissue."""


class Grid(NamedTuple):
    """A grid's windows that lie on tissue.

    Attributes
    ----------
    centers
        (n, 2) float64, (x, y) in level-0 pixels, row after row.
    place
        (n, 2) int64, row and column in the grid.
    tissue
        (n,) float64, share of the window that is tissue.
    """

    centers: NDArray[np.float64]
    place: NDArray[np.int64]
    tissue: NDArray[np.float64]


def tissue_grid(
    image: str | os.PathLike[str] | SlideImage,
    span: float,
    *,
    step: float | None = None,
    min_tissue: float = 0.5,
    workers: int | None = None,
) -> Grid:
    """Windows of a regular grid, those of them that show tissue.

    Parameters
    ----------
    image
        A path, or what :func:`open_image` returned.
    span
        Side of a window in level-0 pixels.
    step
        From one window to the next, in level-0 pixels; ``None``: ``span``.
    min_tissue
        Least share of a window that is tissue, 0 to 1; 0 keeps all of the grid.
    workers
        Threads; ``None``: ``$STFAST_WORKERS``, else the CPUs of this process.

    Returns
    -------
    Grid
        Centres, places in the grid and shares of tissue. Windows that would reach
        over the picture's right or bottom edge are not part of the grid.

    Raises
    ------
    ValueError
        A side is not positive, or larger than the picture.
    """
    image = image if isinstance(image, SlideImage) else open_image(image)
    span = _check.positive(span, "span", "pixels")
    step = _check.positive(span if step is None else step, "step", "pixels")
    if not 0 <= min_tissue <= 1:
        raise ValueError(f"min_tissue: expected a share from 0 to 1, got {min_tissue!r}")
    height, width = image.shape
    if span > min(height, width):
        raise ValueError(f"span: expected at most {min(height, width)} pixels, got {span:g}")
    counts = [int((side - span) // step) + 1 for side in (height, width)]
    place = np.indices(counts).reshape(2, -1).T
    centers = (place[:, ::-1] * step + span / 2).astype(np.float64)
    tissue = _shares(image, centers, span, workers)
    kept = tissue >= min_tissue
    return Grid(centers[kept], place[kept], tissue[kept])


def _shares(
    image: SlideImage, centers: NDArray[np.float64], span: float, workers: int | None
) -> NDArray[np.float64]:
    """Share of each window that is tissue, from sums over the mask's rectangles."""
    from stfast.images import thumbnail

    pixels, scale = thumbnail(image, _LONGEST, workers=workers)
    mask = tissue_mask(pixels)
    sums = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1))
    sums[1:, 1:] = mask.cumsum(axis=0).cumsum(axis=1)
    most = np.array(mask.shape[::-1])
    start = np.clip(np.floor((centers - span / 2) * scale), 0, most - 1).astype(int)
    end = np.clip(np.ceil((centers + span / 2) * scale), start + 1, most).astype(int)
    (x0, y0), (x1, y1) = start.T, end.T
    inside = sums[y1, x1] - sums[y0, x1] - sums[y1, x0] + sums[y0, x0]
    share: NDArray[np.float64] = inside / ((x1 - x0) * (y1 - y0))
    return share


def tissue_mask(pixels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which pixels of a picture (height, width, 3) are tissue."""
    most = pixels.max(axis=-1).astype(np.int64)
    least = pixels.min(axis=-1)
    saturation = np.where(most > 0, (most - least) * 255 // np.maximum(most, 1), 0)
    mask: NDArray[np.bool_] = saturation > max(otsu(saturation), _LEAST_SATURATION)
    return mask


def otsu(levels: NDArray[np.int64]) -> int:
    """The level from 0 to 255 whose split has the largest variance between classes."""
    counts = np.bincount(levels.ravel(), minlength=256).astype(np.float64)
    below = counts.cumsum()
    above = below[-1] - below
    sums = (counts * np.arange(256)).cumsum()
    with np.errstate(divide="ignore", invalid="ignore"):
        gap = sums / below - (sums[-1] - sums) / above
    between = np.where((below > 0) & (above > 0), below * above * gap**2, 0)
    return int(between.argmax())
