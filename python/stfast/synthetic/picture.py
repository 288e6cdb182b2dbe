"""The microscope picture: one tile of H&E at a time.

Light follows Beer and Lambert: each pixel holds amounts of haematoxylin and
eosin, an optical density per colour, and the exponential makes the colour.
The amounts come from the tissue model, from textures that repeat but are bent
by the model's smooth fields, and from hashed nuclei, so any tile can be made
alone. Only tiles in flight are held; the hires picture grows as sums of boxes.
"""

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from stfast.synthetic._stream import Step, in_order
from stfast.synthetic.layout import Layout
from stfast.synthetic.nuclei import REACH_UM, adipocyte_walls, draw_nuclei, nuclei_in
from stfast.synthetic.tissue import Floats, Tissue, clip, ramp

TILE = 256
_QUALITY = 90
_TEXTURE = 1024
_TEXTURE_UM = 0.25
# Optical density per unit of stain, by colour (R, G, B).
_HAEMATOXYLIN = (0.88, 1.10, 0.55)
_EOSIN = (0.11, 0.66, 0.37)
_GLASS, _NOISE = 243.0, 2.0
# Beyond this the rough edge of the tissue does not reach.
_ROUGH_UM = 10.0
_SHOWN = ("depth", "gland", "follicle", "along", "u", "v", "tone")

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Painter:
    """Paints any tile of a slide.

    Attributes
    ----------
    fibre, wave, grain, noise
        Periodic textures, shape (1024, 1024), unit variance: streaks along the
        columns, blobs about 8 and 1 µm wide, and the camera's noise.
    """

    layout: Layout
    tissue: Tissue
    fibre: Floats
    wave: Floats
    grain: Floats
    noise: Floats

    def tile(self, row: int, column: int) -> Pixels:
        """Return tile (row, column), shape (256, 256, 3), beyond the edges too."""
        mpp = self.layout.mpp
        x = (np.arange(TILE, dtype=np.float32) + (column * TILE + 0.5)) * mpp
        y = (np.arange(TILE, dtype=np.float32) + (row * TILE + 0.5)) * mpp
        noise = self.noise[_wrapped(row), _wrapped(column)]
        (inside,) = self.tissue.window(x, y, ("inside",))
        if inside.max() < -_ROUGH_UM:
            return _develop(None, None, noise)
        return _develop(*self._stains(x, y, inside), noise)

    def _stains(self, x: Floats, y: Floats, inside: Floats) -> tuple[Floats, Floats]:
        """Return haematoxylin and eosin, as multiples of their optical densities."""
        depth, gland, follicle, along, u, v, tone = self.tissue.window(x, y, _SHOWN)
        grain = _sample(self.grain, x[None, :], y[:, None])
        wave = _sample(self.wave, x[None, :], y[:, None])
        fibre = _sample(self.fibre, u + 2.5 * wave, v + 1.6 * wave)
        strand = _sample(self.fibre, along * 0.5, (depth + wave) * 0.35)
        mask = ramp(inside + wave * 1.5, 2.0)
        edge = wave * 2.0
        shares = self.tissue.shares(depth + edge, gland + edge, follicle + edge)
        body = shares[0] * (1 - 0.96 * self.tissue.hollow(gland))
        haematoxylin = body * (0.26 + 0.05 * grain + 0.04 * wave) + shares[2] * 0.2 + 0.02
        eosin = body * (0.46 + 0.05 * grain + 0.06 * wave) + shares[1] * _stroma(fibre, wave)
        eosin += shares[2] * (0.36 + 0.06 * grain + 0.06 * wave) + shares[3] * _muscle(
            strand, fibre
        )
        if shares[4].any():
            walls = adipocyte_walls(x[None, :] + wave, y[:, None] - wave, self.tissue.seed)
            eosin += shares[4] * (0.03 + walls * (0.5 + 0.15 * grain))
        nuclei = self._nuclei(x, y, grain)
        bare = 1 - np.minimum(nuclei, 1)
        cover = mask * (1 + 0.10 * tone)
        haematoxylin = haematoxylin * bare * cover + nuclei * (1 + 0.16 * grain)
        return haematoxylin, eosin * cover * (0.35 + 0.65 * bare)

    def _nuclei(self, x: Floats, y: Floats, grain: Floats) -> Floats:
        spans = [(float(a[0]) - REACH_UM, float(a[-1]) + REACH_UM) for a in (x, y)]
        nuclei = nuclei_in(self.tissue, *spans)
        half = self.layout.mpp / 2
        corner = (float(x[0]) - half, float(y[0]) - half)
        return draw_nuclei(nuclei, grain, corner=corner, mpp=self.layout.mpp)


def _stroma(fibre: Floats, wave: Floats) -> Floats:
    """Return the eosin of stroma: wavy collagen, with gaps where it is loose."""
    dense = fibre * 0.17 + wave * 0.08 + 0.55
    gaps = clip((fibre + wave * 0.8 + 1.7) * 2, 0.15, 1)
    return clip(dense, 0.1, 1.2) * gaps


def _muscle(strand: Floats, fibre: Floats) -> Floats:
    """Return the eosin of muscle: broad even fibres with clefts between some."""
    cleft = clip((strand + 2.0) * 2.0, 0.2, 1)
    return (0.88 + 0.09 * strand + 0.05 * fibre) * cleft


def set_up_painter(layout: Layout, tissue: Tissue) -> Painter:
    """Make the textures that a slide is painted with."""
    rng = np.random.default_rng([tissue.seed, 2])
    streaks = _texture(rng, 9.0, 0.6) + 0.7 * _texture(rng, 22.0, 1.6)
    wave = _texture(rng, 3.5, 3.5) + 0.5 * _texture(rng, 1.6, 1.6)
    grain = _texture(rng, 0.45, 0.45) + 0.5 * _texture(rng, 1.1, 1.1)
    noise = _texture(rng, 0.18, 0.18)
    textures = [(t / t.std()).astype(np.float32) for t in (streaks, wave, grain, noise)]
    return Painter(layout, tissue, *textures)


def _texture(rng: np.random.Generator, along_um: float, across_um: float) -> NDArray[np.float64]:
    """Return periodic noise of unit variance, smoothed by a Gaussian per axis."""
    white = np.fft.rfft2(rng.standard_normal((_TEXTURE, _TEXTURE)))
    frequency = np.fft.fftfreq(_TEXTURE, _TEXTURE_UM)
    down = np.exp(-2 * (np.pi * frequency * across_um) ** 2)[:, None]
    right = np.exp(-2 * (np.pi * frequency[: _TEXTURE // 2 + 1] * along_um) ** 2)
    smooth = np.fft.irfft2(white * down * right, (_TEXTURE, _TEXTURE))
    result: NDArray[np.float64] = smooth / smooth.std()
    return result


def _sample(texture: Floats, x: Floats, y: Floats) -> Floats:
    """Return the texture at (x, y), µm, broadcast, as if it covered the plane."""
    scale = 1 / _TEXTURE_UM
    # The shift keeps the truncation below a floor: warped µm may be negative.
    column = (x * scale + (1 << 20)).astype(np.int32) & (_TEXTURE - 1)
    row = (y * scale + (1 << 20)).astype(np.int32) & (_TEXTURE - 1)
    return texture.ravel()[row * _TEXTURE + column]


def _wrapped(tile: int) -> slice:
    start = tile * TILE % _TEXTURE
    return slice(start, start + TILE)


def _develop(haematoxylin: Floats | None, eosin: Floats | None, noise: Floats) -> Pixels:
    """Return the colours that two stains let through, with the camera's noise."""
    out = np.empty((*noise.shape, 3), np.uint8)
    for colour, (h, e) in enumerate(zip(_HAEMATOXYLIN, _EOSIN, strict=True)):
        light = noise * _NOISE + _GLASS
        if haematoxylin is not None and eosin is not None:
            light += _GLASS * np.expm1(haematoxylin * -h - eosin * e)
        out[..., colour] = clip(light, 0, 255)
    return out


class Overviews:
    """The hires and lowres pictures, summed up box by box while tiles pass."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._factor = layout.hires_factor
        shape = [-(-side // self._factor) for side in (layout.height, layout.width)]
        self._sums = np.zeros((*shape, 3), np.uint32)

    def add(self, row: int, column: int, boxes: NDArray[np.uint32]) -> None:
        """Add what `box_sums` made of tile (row, column)."""
        y, x = row * TILE // self._factor, column * TILE // self._factor
        self._sums[y : y + boxes.shape[0], x : x + boxes.shape[1]] += boxes

    def save(self, folder: Path) -> None:
        """Write ``tissue_hires_image.png`` and ``tissue_lowres_image.png``."""
        hires = self._mean(self._sums, self._factor)
        _save_png(hires, folder / "tissue_hires_image.png")
        ratio = self._layout.lowres_factor // self._factor
        lowres = self._mean(_boxes(self._sums, 0, 0, ratio), self._layout.lowres_factor)
        _save_png(lowres, folder / "tissue_lowres_image.png")

    def _mean(self, sums: NDArray[np.uint32], factor: int) -> Pixels:
        """Divide by the pixels of each box; the last row and column may hold fewer."""
        high, wide = (
            np.minimum(factor, side - np.arange(0, side, factor))
            for side in (self._layout.height, self._layout.width)
        )
        area = (high[:, None] * wide)[:, :, None].astype(np.uint32)
        return ((sums + area // 2) // area).astype(np.uint8)


def box_sums(layout: Layout, row: int, column: int, tile: Pixels) -> NDArray[np.uint32]:
    """Return the sums over the hires boxes that a tile meets, within the picture."""
    y, x = row * TILE, column * TILE
    return _boxes(tile[: layout.height - y, : layout.width - x], y, x, layout.hires_factor)


def _boxes(pixels: NDArray[Any], y: int, x: int, factor: int) -> NDArray[np.uint32]:
    """Sum over boxes of a lattice; (y, x) is where the first pixel lies on it."""
    rows, columns = (
        np.maximum(np.arange(start // factor * factor, start + size, factor) - start, 0)
        for start, size in ((y, pixels.shape[0]), (x, pixels.shape[1]))
    )
    wide = np.add.reduceat(pixels, rows, axis=0, dtype=np.uint32)
    result: NDArray[np.uint32] = np.add.reduceat(wide, columns, axis=1)
    return result


def _save_png(pixels: Pixels, path: Path) -> None:
    Image.fromarray(pixels).save(path, compress_level=1)


def write_picture(
    painter: Painter, path: Path, overviews: Overviews, *, pool: ThreadPoolExecutor, step: Step
) -> None:
    """Write the picture as a BigTIFF of JPEG tiles, adding each to the overviews."""
    layout = painter.layout
    per_cm = 1e4 / layout.mpp
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        tiff.write(
            _jpegs(painter, overviews, pool, step),
            shape=(layout.height, layout.width, 3),
            dtype=np.uint8,
            photometric="ycbcr",
            subsampling=(2, 2),
            compression="jpeg",
            tile=(TILE, TILE),
            resolution=(per_cm, per_cm),
            resolutionunit="CENTIMETER",
            metadata=None,
            software="stfast",
        )


def _jpegs(
    painter: Painter, overviews: Overviews, pool: ThreadPoolExecutor, step: Step
) -> Iterator[bytes]:
    """Yield the tiles in the file's order, encoded."""

    def paint(place: tuple[int, int]) -> tuple[bytes, NDArray[np.uint32]]:
        tile = painter.tile(*place)
        return _jpeg(tile), box_sums(painter.layout, *place, tile)

    places = list(tiles_of(painter.layout))
    for place, (jpeg, boxes) in zip(places, in_order(pool, paint, places), strict=True):
        overviews.add(*place, boxes)
        yield jpeg
        step(1)


def tiles_of(layout: Layout) -> Iterator[tuple[int, int]]:
    """Yield (row, column) of each tile, row by row."""
    rows, columns = (-(-side // TILE) for side in (layout.height, layout.width))
    return product(range(rows), range(columns))


def _jpeg(tile: Pixels) -> bytes:
    file = io.BytesIO()
    Image.fromarray(tile).save(file, "JPEG", quality=_QUALITY, subsampling="4:2:0")
    return file.getvalue()
