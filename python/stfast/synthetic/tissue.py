"""The tissue: which region lies where, as smooth functions of (x, y) in µm.

The picture and the counts both ask this model, so they agree by construction.
Every field is smooth, hence sampled once on a coarse grid for the whole slide
(a few MB) and interpolated where it is wanted: a tile or a band can be made
alone and is the same whatever was made before it.

The cut runs through an invented bowel wall: glands of an epithelium, stroma
with lymphoid follicles, muscle, fat. The layers follow ``depth``, a distance
across the wall; the thresholds below turn fields into regions.
"""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from stfast.synthetic.layout import Layout

Floats: TypeAlias = NDArray[np.floating]
"""float32 at run time; numpy's stubs take float32 times a Python float for float64."""

REGIONS = ("epithelium", "stroma", "lymphoid", "muscle", "adipose")
"""Regions, in the order of every array over regions here."""

FIELDS = ("inside", "depth", "gland", "follicle", "along", "u", "v", "tone", "rna")
"""Fields: the first four are µm from a border, positive within; ``along`` is µm
along the wall, ``u`` and ``v`` along and across the fibres of the stroma; the
last two are unit noise."""

# Standard deviation of a cubic B-spline surface over unit white noise.
_SPLINE_SD = 151 / 315
# Depth (share of the slide's side) at which a layer ends.
_EPITHELIUM_END, _MUSCLE_START, _ADIPOSE_START = -0.02, 0.14, 0.29
_BLEND_UM = 2.0


@dataclass(frozen=True)
class Tissue:
    """Sampled fields of one slide.

    Attributes
    ----------
    side_um, seed
        Side of the grid, µm, and what all of the slide's chance derives from.
    pitch
        µm between samples.
    fields
        Shape (fields, rows, columns), float32; sample (0, 0) lies at the
        picture's corner.
    lumen
        ``gland`` (µm) beyond which a gland is hollow.
    """

    side_um: float
    seed: int
    pitch: float
    fields: Floats
    lumen: float

    def window(self, x: Floats, y: Floats, names: tuple[str, ...]) -> list[Floats]:
        """Interpolate fields on the lattice of ``y`` by ``x`` (µm, increasing)."""
        (i, fx), (j, fy) = self._locate(x, 2), self._locate(y, 1)
        rows = slice(int(j[0]), int(j[-1]) + 2)
        j, fy = j - j[0], fy[:, None]
        out = []
        for name in names:
            part = self.fields[FIELDS.index(name), rows]
            across = part[:, i] * (1 - fx) + part[:, i + 1] * fx
            above, below = across[j], across[j + 1]
            above *= 1 - fy
            below *= fy
            above += below
            out.append(above)
        return out

    def at(self, x: Floats, y: Floats, names: tuple[str, ...]) -> list[Floats]:
        """Interpolate fields at scattered points, µm."""
        (i, fx), (j, fy) = self._locate(x, 2), self._locate(y, 1)
        corner = j * self.fields.shape[2] + i
        out = []
        for name in names:
            flat = self.fields[FIELDS.index(name)].ravel()
            below = corner + self.fields.shape[2]
            top = flat[corner] * (1 - fx) + flat[corner + 1] * fx
            bottom = flat[below] * (1 - fx) + flat[below + 1] * fx
            out.append(top * (1 - fy) + bottom * fy)
        return out

    def shares(self, depth: Floats, gland: Floats, follicle: Floats) -> list[Floats]:
        """Return the share of each of `REGIONS` where these fields have these values.

        The shares sum to 1. Regions blend into each other over some µm.
        """
        adipose = ramp(depth - _ADIPOSE_START * self.side_um, _BLEND_UM)
        muscle = ramp(depth - _MUSCLE_START * self.side_um, _BLEND_UM)
        muscle -= adipose
        rest = 1 - muscle - adipose
        lymphoid = ramp(follicle, 2 * _BLEND_UM) * rest
        rest -= lymphoid
        nest = np.minimum(gland, _EPITHELIUM_END * self.side_um - depth)
        epithelium = ramp(nest, _BLEND_UM) * rest
        return [epithelium, rest - epithelium, lymphoid, muscle, adipose]

    def hollow(self, gland: Floats) -> Floats:
        """Return how much of the epithelium is the hollow of a gland, 0 to 1."""
        return ramp(gland - self.lumen, _BLEND_UM)

    def _locate(self, um: Floats, axis: int) -> tuple[NDArray[np.int32], Floats]:
        """Return the sample before each coordinate, and the share of the next."""
        steps = um / self.pitch
        before = np.clip(steps.astype(np.int32), 0, self.fields.shape[axis] - 2)
        return before, clip(steps - before, 0, 1).astype(np.float32)


def clip(values: Floats, low: float, high: float) -> Floats:
    """Return the values, those out of bounds moved to the nearest bound."""
    return np.minimum(np.maximum(values, low), high)


def ramp(um: Floats, softness: float) -> Floats:
    """Return 0 well outside a border, 1 well within, linear in between."""
    return clip(um * (1 / softness) + 0.5, 0, 1)


def grow_tissue(layout: Layout, side_um: float, seed: int) -> Tissue:
    """Sample the fields of a slide."""
    rng = np.random.default_rng([seed, 1])
    pitch = min(max(side_um / 250, 0.5), 6.0)
    shape = tuple(int(n * layout.mpp / pitch) + 3 for n in (layout.height, layout.width))
    y, x = (np.arange(n, dtype=np.float32) * pitch for n in shape)
    x, y = x[None, :] - layout.width * layout.mpp / 2, y[:, None] - layout.height * layout.mpp / 2
    grow = _Noise(rng, shape, pitch)
    along, depth = _wall(grow, x, y, side_um)
    length = min(max(side_um / 10, 8.0), 60.0)
    gland = (grow(length) + grow(0.4 * length) * 0.45 + 0.3) * (0.55 * length)
    u, v = _fibres(grow, x, y, side_um)
    fields: list[Floats] = [
        _outline(grow, x, y, side_um),
        depth,
        gland,
        _follicles(grow, x, depth, side_um),
        along,
        u,
        v,
        grow(min(side_um / 4, 300.0)),
        grow(min(side_um / 20, 14.0)),
    ]
    return Tissue(side_um, seed, pitch, np.stack(fields).astype(np.float32), 0.55 * length * 1.9)


class _Noise:
    """Smooth unit noise over the grid of samples, of any length in µm."""

    def __init__(self, rng: np.random.Generator, shape: tuple[int, ...], pitch: float) -> None:
        self.rng, self.shape, self.pitch = rng, shape, pitch

    def __call__(self, length: float) -> Floats:
        """Return a cubic B-spline surface over white noise ``length`` µm apart."""
        steps = [np.arange(n) * (self.pitch / length) for n in self.shape]
        knots = self.rng.standard_normal([int(s[-1]) + 4 for s in steps])
        surface = knots.astype(np.float32)
        for axis, position in enumerate(steps):
            first = position.astype(np.intp)
            surface = _bend(surface, (position - first).astype(np.float32), first, axis)
        surface /= _SPLINE_SD
        return surface


def _bend(knots: Floats, share: Floats, first: NDArray[np.intp], axis: int) -> Floats:
    """Evaluate a uniform cubic B-spline along one axis."""
    t = share[:, None] if axis == 0 else share[None, :]
    u = -t + 1
    before = knots.take(first, axis) * (u * u * u)
    near = knots.take(first + 1, axis) * (t * t * (t * 3 - 6) + 4)
    next_ = knots.take(first + 2, axis) * (u * u * (u * 3 - 6) + 4)
    after = knots.take(first + 3, axis) * (t * t * t)
    return (before + near + next_ + after) * (1 / 6)


def _outline(grow: _Noise, x: Floats, y: Floats, side_um: float) -> Floats:
    """Return µm within the tissue: a rough superellipse with some holes."""
    shift = grow.rng.uniform(-0.03, 0.03, 2) * side_um
    far = np.cbrt(np.abs(x - shift[0]) ** 3 + np.abs(y - shift[1]) ** 3)
    rough = 0.05 * grow(0.25 * side_um) + 0.012 * grow(0.05 * side_um)
    hole = min(max(0.09 * side_um, 8.0), 180.0)
    outline: Floats = np.minimum((0.47 + rough) * side_um - far, (1.75 - grow(hole)) * (0.5 * hole))
    return outline


def _wall(grow: _Noise, x: Floats, y: Floats, side_um: float) -> tuple[Floats, Floats]:
    """Return µm along the wall and across it, both 0 near the slide's middle."""
    angle = grow.rng.uniform(0.2, 0.7)
    bent = 0.045 * grow(0.3 * side_um) + 0.008 * grow(0.08 * side_um)
    along = x * np.cos(angle) - y * np.sin(angle)
    return along, x * np.sin(angle) + y * np.cos(angle) + bent * side_um


def _follicles(grow: _Noise, x: Floats, depth: Floats, side_um: float) -> Floats:
    """Return µm within the nearest follicle, strung along the inner stroma."""
    n = max(2, round(side_um / 900))
    centres = (np.arange(n) + 0.5 + grow.rng.uniform(-0.2, 0.2, n)) / n - 0.5
    radius = min(0.09 * side_um, 260.0)
    out = np.full(depth.shape, -np.inf, np.float32)
    for centre, size, sink in zip(
        centres, grow.rng.uniform(0.75, 1.1, n), grow.rng.uniform(0, 0.08, n), strict=True
    ):
        far = np.hypot(x - 0.8 * centre * side_um, depth - sink * side_um)
        np.maximum(out, size * radius - far, out=out)
    return out + 0.18 * radius * grow(0.6 * radius)


def _fibres(grow: _Noise, x: Floats, y: Floats, side_um: float) -> tuple[Floats, Floats]:
    """Return µm along and across wavy fibres."""
    angle, length = grow.rng.uniform(0, np.pi), min(max(side_um / 6, 30.0), 150.0)
    u = x * np.cos(angle) + y * np.sin(angle) + 0.35 * length * grow(length)
    v = y * np.cos(angle) - x * np.sin(angle) + 0.45 * length * grow(length)
    return u, v
