"""Nuclei and fat cells, from a lattice of hashed cells.

A cell of the lattice draws its nucleus from a hash of (seed, its place), never
from a stream of random numbers. So a tile needs to look only at the cells around
it, and two tiles that share a nucleus draw the same one.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from stfast.synthetic.tissue import Floats, Tissue, clip

LATTICE_UM = 5.2
_ADIPOCYTE_UM = 38.0
# Half-sides (µm) of the patches that nuclei are drawn in, smallest that fits.
_PATCHES_UM = (4.2, 6.2, 9.5)
REACH_UM = _PATCHES_UM[-1] + LATTICE_UM

# By region, in the order of REGIONS: share of lattice cells that hold a nucleus,
# its long half-axis (µm), short over long axis, haematoxylin, and how strictly it
# follows its surroundings (1) instead of pointing anywhere (0).
_SHARE = np.array([0.60, 0.11, 0.88, 0.09, 0.30], np.float32)
_HALF_UM = np.array([4.4, 4.6, 2.9, 6.4, 3.2], np.float32)
_ASPECT = np.array([0.66, 0.40, 0.92, 0.27, 0.45], np.float32)
_STAIN = np.array([0.92, 1.15, 1.35, 1.02, 1.2], np.float32)
_ALONG = np.array([0.5, 0.75, 0.0, 0.93, 0.0], np.float32)

_8, _13, _15, _16 = (np.uint32(bits) for bits in (8, 13, 15, 16))


@dataclass(frozen=True)
class Nuclei:
    """Ellipses: centres and half-axes in µm, direction in radians, stain as OD."""

    x: Floats
    y: Floats
    half: Floats
    aspect: Floats
    angle: Floats
    stain: Floats

    def take(self, keep: NDArray[np.bool_]) -> Self:
        """Return those of ``keep``."""
        return type(self)(*(values[keep] for values in vars(self).values()))


def chance(key: tuple[int, int], i: NDArray[np.integer], j: NDArray[np.integer]) -> Floats:
    """Return uniform numbers in [0, 1) that depend on nothing but the arguments.

    The last lines are the 32-bit finaliser of MurmurHash3, in which every bit
    of the input sways every bit of the output.
    """
    seed, stream = key
    start = (seed * 0x9E3779B97F4A7C15 + stream * 0xBF58476D1CE4E5B9) >> 7 & 0xFFFFFFFF
    h: NDArray[np.uint32] = i.astype(np.uint32) * np.uint32(0x85EBCA6B) ^ np.uint32(start)
    h = (h ^ h >> _15) * np.uint32(0x2C1B3C6D) + j.astype(np.uint32) * np.uint32(0xC2B2AE35)
    h = (h ^ h >> _16) * np.uint32(0x85EBCA6B)
    h = (h ^ h >> _13) * np.uint32(0xC2B2AE35)
    return ((h ^ h >> _16) >> _8).astype(np.float32) * 2**-24


def _lattice(low: float, high: float, pitch: float) -> NDArray[np.int64]:
    return np.arange(np.floor(low / pitch), np.floor(high / pitch) + 1).astype(np.int64)


def nuclei_in(tissue: Tissue, x_um: tuple[float, float], y_um: tuple[float, float]) -> Nuclei:
    """Return the nuclei whose lattice cell meets a box."""
    columns, rows = (_lattice(*span, LATTICE_UM) for span in (x_um, y_um))
    i, j = (a.ravel() for a in np.meshgrid(columns, rows))
    dice = [chance((tissue.seed, stream), i, j) for stream in range(6)]
    x = ((i + 0.5 + (dice[0] - 0.5) * 0.75) * LATTICE_UM).astype(np.float32)
    y = ((j + 0.5 + (dice[1] - 0.5) * 0.75) * LATTICE_UM).astype(np.float32)
    inside, depth, gland, follicle = tissue.at(x, y, ("inside", "depth", "gland", "follicle"))
    region = np.argmax(np.stack(tissue.shares(depth, gland, follicle)), axis=0)
    half = _HALF_UM[region] * (0.78 + 0.44 * dice[2])
    aspect = clip(_ASPECT[region] * (0.8 + 0.4 * dice[3]), 0.2, 1)
    stain = _STAIN[region] * (0.75 + 0.4 * dice[3])
    keep = dice[4] < _share(tissue, region, gland, x, y)
    keep &= inside > 0.7 * half
    found = Nuclei(x, y, half, aspect, _direction(tissue, region, x, y, dice[5]), stain)
    return found.take(keep)


def _share(tissue: Tissue, region: NDArray[np.intp], gland: Floats, x: Floats, y: Floats) -> Floats:
    """Return the chance that a lattice cell holds a nucleus."""
    share: Floats = _SHARE[region]
    basal = 0.28 + 0.45 * np.exp(-(((gland - 5) / 5) ** 2))
    rim = 0.3 * np.exp(-(((gland - tissue.lumen + 7) / 5) ** 2))
    epithelium = (region == 0) & (gland < tissue.lumen - 3)
    share = np.where(region == 0, epithelium * (basal + rim), share)
    if np.any(region == 4):
        share = np.where(region == 4, share * (adipocyte_walls(x, y, tissue.seed) > 0.3), share)
    return share.astype(np.float32)


def _direction(
    tissue: Tissue, region: NDArray[np.intp], x: Floats, y: Floats, dice: Floats
) -> Floats:
    """Return the long axis: across the gland's wall, along the fibres, or any."""
    wobble = (dice - 0.5) * math.pi * (1 - _ALONG[region])
    names = ("gland", "v", "depth")
    step = 3.0
    right, left = tissue.at(x + step, y, names), tissue.at(x - step, y, names)
    down, up = tissue.at(x, y + step, names), tissue.at(x, y - step, names)
    gland, fibre, layer = (
        np.arctan2(down[k] - up[k], right[k] - left[k]) for k in range(len(names))
    )
    quarter = math.pi / 2
    along = np.where(region == 3, layer, fibre) + quarter
    return np.where(region == 0, gland, along).astype(np.float32) + wobble


def draw_nuclei(
    nuclei: Nuclei, grain: Floats, *, corner: tuple[float, float], mpp: float
) -> Floats:
    """Return the haematoxylin of nuclei, as OD, in the shape of ``grain``.

    ``corner`` is the (x, y) of the window's corner in µm; ``grain`` roughens
    the outlines.
    """
    canvas = np.zeros(grain.size, np.float32)
    biggest = 0.0
    for patch in _PATCHES_UM:
        size = nuclei.half + 0.6
        fitting = nuclei.take((size <= patch) & (size > biggest))
        biggest = patch
        for at, value in _patches(fitting, corner, mpp, patch, grain):
            np.maximum.at(canvas, at, value)
    return canvas.reshape(grain.shape)


def _patches(
    nuclei: Nuclei, corner: tuple[float, float], mpp: float, patch: float, grain: Floats
) -> Iterator[tuple[NDArray[np.intp], Floats]]:
    """Yield pixels and their stain, for up to 64 nuclei at a time."""
    height, width = grain.shape
    reach = int(np.ceil(patch / mpp))
    offsets = np.arange(-reach, reach + 1)
    shift = (offsets[:, None] * width + offsets).ravel()
    for start in range(0, nuclei.x.size, 64):
        some = Nuclei(*(v[start : start + 64, None, None] for v in vars(nuclei).values()))
        px, py = (some.x - corner[0]) / mpp, (some.y - corner[1]) / mpp
        i, j = np.floor(px).astype(np.intp), np.floor(py).astype(np.intp)
        dx = ((offsets + 0.5 - (px - i)) * mpp).astype(np.float32)
        dy = ((offsets[:, None] + 0.5 - (py - j)) * mpp).astype(np.float32)
        far = _far(some, dx, dy)
        drawn = far < 1.3
        drawn &= (i + offsets >= 0) & (i + offsets < width)
        drawn &= (j + offsets[:, None] >= 0) & (j + offsets[:, None] < height)
        flat = np.flatnonzero(drawn)
        which, place = np.divmod(flat, shift.size)
        at = (j * width + i).ravel()[which] + shift[place]
        yield at, _stain(far.ravel()[flat], some, which, grain.ravel()[at])


def _far(nuclei: Nuclei, dx: Floats, dy: Floats) -> Floats:
    """Return squared distances from the centres, in half-axes."""
    c, s = np.cos(nuclei.angle) / nuclei.half, np.sin(nuclei.angle) / nuclei.half
    along: Floats = dx * c + dy * s
    across: Floats = dy * (c / nuclei.aspect) - dx * (s / nuclei.aspect)
    along *= along
    across *= across
    return along + across


def _stain(far: Floats, some: Nuclei, which: NDArray[np.intp], grain: Floats) -> Floats:
    """Return the stain at squared distances ``far`` from centres, in half-axes."""
    r: Floats = np.sqrt(far) + 0.045 * grain
    short = (some.half * some.aspect).ravel()[which]
    solid = clip((r - 1) * short * (-1 / 0.7) + 0.5, 0, 1)
    return solid * some.stain.ravel()[which] * (r * r * 0.25 + 0.82)


def adipocyte_walls(x: Floats, y: Floats, seed: int) -> Floats:
    """Return how much of a point is membrane between fat cells, 0 to 1.

    Fat cells are the Voronoi cells of a jittered lattice; a point is near a
    wall where its two nearest centres are about equally far. ``x`` and ``y``
    broadcast against each other.
    """
    columns = _lattice(float(x.min()), float(x.max()), _ADIPOCYTE_UM)
    rows = _lattice(float(y.min()), float(y.max()), _ADIPOCYTE_UM)
    columns = np.arange(columns[0] - 2, columns[-1] + 3)
    rows = np.arange(rows[0] - 2, rows[-1] + 3)
    i, j = (a.ravel() for a in np.meshgrid(columns, rows))
    jx, jy = (chance((seed, stream), i, j) * 0.9 for stream in (11, 12))
    shape = np.broadcast_shapes(x.shape, y.shape)
    first = np.full(shape, np.inf, np.float32)
    second = first.copy()
    centres = np.stack([i + jx, j + jy], axis=1, dtype=np.float32) * _ADIPOCYTE_UM
    for cx, cy in centres:
        far = (x - cx) ** 2 + (y - cy) ** 2
        np.minimum(second, np.maximum(first, far), out=second)
        np.minimum(first, far, out=first)
    gap: Floats = np.sqrt(second) - np.sqrt(first)
    return clip(gap * -0.55 + 1.6, 0, 1)
