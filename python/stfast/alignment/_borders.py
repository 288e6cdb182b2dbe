"""Where the picture changes, expression should change.

Neighbouring spots are compared, so that a gradient of light or of tissue across the slide,
which agrees with anything, plays no part.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, sparse
from scipy.spatial import KDTree

from stfast.alignment._placements import Placement
from stfast.alignment._slide import Slide

_EXPRESSED, _GENES = 1000, 40
"""Of the genes with most counts, the most variable ones."""
_LEAST_SHARE = 0.05
"""Share of places that a gene must be found in."""
_NEIGHBOURS = 4
_PARTS = 8
"""The slide is cut into 8 × 8 parts."""
_BLUR = 0.2
"""Of the distance of places: the picture is looked at as spots see it."""
_LEAST_PLACES = 50

Floats = NDArray[np.float64]


@dataclass
class Borders:
    """Pairs of neighbours and how their expression differs.

    ``expression`` (m, genes) is standardised; ``first``, ``second`` and ``part`` are of pairs.
    """

    expression: Floats
    first: NDArray[np.int64]
    second: NDArray[np.int64]
    part: NDArray[np.int64]
    looks: dict[float, Floats] = field(default_factory=dict)

    @classmethod
    def of(cls, slide: Slide) -> "Borders | None":
        """None where there are no counts, or too few of them."""
        if slide.counts is None or len(slide.places) < _LEAST_PLACES:
            return None
        expression = _expression(slide.counts)
        if not expression.shape[1]:
            return None
        near = min(_NEIGHBOURS, len(slide.places) - 1) + 1
        far, who = KDTree(slide.places).query(slide.places, near)
        first = np.repeat(np.arange(len(slide.places)), near - 1)
        second = np.asarray(who)[:, 1:].ravel().astype(np.int64)
        close = np.array(far)[:, 1:].ravel() <= 2 * slide.spacing
        part = _parts(slide.places)[first]
        return cls(expression, first[close], second[close], part[close])


def _expression(counts: sparse.csr_matrix) -> Floats:
    """Log expression of the most variable genes, and the log of all counts; standardised."""
    total = np.asarray(counts.sum(axis=1), dtype=np.float64).ravel()
    scale = np.median(total[total > 0]) / np.maximum(total, 1e-9)
    sums = np.bincount(counts.indices, counts.data, counts.shape[1])
    logged: Any = counts[:, np.sort(np.argsort(-sums, kind="stable")[:_EXPRESSED])]
    logged = sparse.csr_matrix(logged, dtype=np.float64)
    rows = np.repeat(np.arange(len(total)), np.diff(logged.indptr))
    logged.data = np.log1p(np.maximum(logged.data, 0) * scale[rows])
    n, genes = logged.shape
    columns = [np.bincount(logged.indices, of, genes) / n for of in (logged.data, logged.data**2)]
    found = np.bincount(logged.indices, minlength=genes) / n
    variance = np.where(found < _LEAST_SHARE, 0, columns[1] - columns[0] ** 2)
    best = np.argsort(-variance, kind="stable")[:_GENES]
    best = best[variance[best] > 0]
    values = np.column_stack([logged[:, best].toarray(), np.log1p(total)])
    values -= values.mean(axis=0)
    spread = np.asarray(values.std(axis=0))
    chosen: Floats = values[:, spread > 1e-9] / spread[spread > 1e-9]
    return chosen


def _parts(xy: Floats) -> NDArray[np.int64]:
    """The part of the slide that each place lies in: equally many in each column, and row."""
    rank = np.argsort(np.argsort(xy, axis=0, kind="stable"), axis=0, kind="stable")
    column, row = (rank * _PARTS // len(xy)).T
    return np.asarray(column * _PARTS + row, dtype=np.int64)


def measure_borders(slide: Slide, borders: Borders, placement: Placement) -> Floats:
    """What the picture's differences explain of expression's, a share a part of the slide."""
    look = borders.looks.get(placement.scale)
    if look is None:
        look = borders.looks[placement.scale] = _look(slide, placement.scale)
    xy = placement.move(slide.places)
    height, width = slide.pixels.shape[:2]
    inside = np.all((xy >= 0) & (xy <= [width, height]), axis=1)
    seen = np.stack(
        [ndimage.map_coordinates(one, xy.T[::-1] - 0.5, order=1, mode="nearest") for one in look],
        axis=1,
    )
    known = inside[borders.first] & inside[borders.second]
    ours, theirs = borders.first[known], borders.second[known]
    image = seen[ours] - seen[theirs]
    expression = borders.expression[ours] - borders.expression[theirs]
    # einsum, not BLAS: the same sums for any number of its threads.
    square = np.einsum("ij,ik->jk", image, image)
    square += np.eye(len(square)) * (1e-9 + 1e-6 * np.trace(square))
    slope = np.linalg.solve(square, np.einsum("ij,ik->jk", image, expression))
    rest = expression - np.einsum("ij,jk->ik", image, slope)
    whole = borders.expression[borders.first] - borders.expression[borders.second]
    whole_squares = (whole**2).sum(axis=0)
    gain = ((expression**2 - rest**2) / np.maximum(whole_squares, 1e-9)).mean(axis=1)
    return np.bincount(borders.part[known], gain, minlength=_PARTS**2).astype(np.float64)


def _look(slide: Slide, scale: float) -> Floats:
    """Colour (optical density) and texture of the picture as a spot sees it, (4, h, w)."""
    density = -np.log((slide.pixels.astype(np.float64) + 8) / 263)
    blur = max(_BLUR * slide.spacing * scale, 0.6)
    blur = min(blur, max(slide.pixels.shape[:2]) / 8)
    colour = [ndimage.gaussian_filter(density[..., band], blur) for band in range(3)]
    grey = density.mean(axis=-1)
    mean = ndimage.gaussian_filter(grey, blur)
    texture = np.sqrt(np.maximum(ndimage.gaussian_filter(grey**2, blur) - mean**2, 0))
    return np.stack([*colour, texture])


def lead(ours: Floats, theirs: Floats) -> float:
    """How many standard errors a placement explains more than another."""
    more = ours - theirs
    n = len(more)
    error = np.sqrt(n / (n - 1) * ((more - more.mean()) ** 2).sum())
    return float(more.sum() / max(error, 1e-9))
