"""Any slide image as levels of blocks.

tifffile and Pillow read the headers, which they know in every vendor's dialect;
the files here turn what they found into tables of blocks (offset, length, codec)
that the native module decodes. No pixel passes through here.

The kind of a file is told from its first bytes, never from its name: slides
named ``.png`` that are JPEG or TIFF are common.
"""

import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from stfast import _check, _core
from stfast._core import FormatError
from stfast._native import Header
from stfast.images._fallback import spooled
from stfast.images._mpp import Mpp, plausible, tiff_mpp
from stfast.images._pixels import read_rectangle, reduced
from stfast.images._plain import kind_of, open_plain
from stfast.images._tiff import tiff_levels

__all__ = ["Header", "Level", "SlideImage", "open_image", "thumbnail"]

_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_HEADER_FAULTS = (
    tifffile.TiffFileError,
    SyntaxError,
    struct.error,
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


@dataclass(frozen=True)
class Level:
    """A level of an image.

    Attributes
    ----------
    path
        The file it lies in.
    header
        Its size in pixels, and its blocks.
    downsample
        Level-0 pixels per pixel of this level, along x and y.
    """

    path: Path
    header: Header
    downsample: tuple[float, float]

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) in pixels of this level."""
        return self.header.height, self.header.width

    @cached_property
    def native(self) -> _core.Level:
        """The level as the native module decodes it."""
        if self.header.codec == "imagecodecs":
            return spooled(self.path, self.header)
        return _core.Level(self.path, self.header)

    @property
    def access(self) -> tuple[str, int, int]:
        """How its pixels are reached, in a word, and width and height of a block.

        ``"blocks"``: each on its own, as the file stores it. ``"restart markers"``:
        bands of a JPEG. ``"tiles within"``: of a JPEG 2000 picture. ``"one pass"``:
        only from top to bottom. ``"imagecodecs"``: decoded to a temporary file first.
        """
        if self.header.codec == "imagecodecs":
            return "imagecodecs", self.header.block_width, self.header.block_height
        return self.native.access(_check.workers(None))

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the open file, which is opened again where it is needed."""
        return {name: value for name, value in vars(self).items() if name != "native"}


@dataclass(frozen=True)
class SlideImage:
    """A slide image that is open: its levels, and how large a pixel is.

    It holds no cursor and no pixels, may be used from any thread, and can be
    pickled and sent to other processes.

    Attributes
    ----------
    path
        The file.
    kind
        ``"tiff"``, ``"jpeg"``, ``"png"``, ``"jpeg2000"`` or ``"webp"``, told from
        the content.
    levels
        From the largest to the most reduced.
    mpp
        µm per level-0 pixel (mean of x and y), where it is known.
    mpp_source
        What said so: ``"given"``, ``"aperio"``, ``"ome"``, ``"philips"`` or
        ``"resolution"`` (of TIFF's tags, or a plain picture's).
    channels
        Which pages or samples are shown, of a file that is not plain colour.
    """

    path: Path
    kind: str
    levels: tuple[Level, ...]
    mpp: float | None = None
    mpp_source: str | None = None
    channels: tuple[int, ...] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) in level-0 pixels."""
        return self.levels[0].shape

    def best_level(self, reduction: float) -> Level:
        """The most reduced level that keeps at least one pixel for each one wanted.

        Parameters
        ----------
        reduction
            Level-0 pixels per pixel wanted; below 1 it magnifies.
        """
        fine = (level for level in self.levels if max(level.downsample) <= reduction * (1 + 1e-9))
        return max(fine, key=lambda level: level.downsample, default=self.levels[0])

    def read_region(
        self,
        location: tuple[float, float],
        level: int,
        size: tuple[int, int],
        *,
        fill: int = 255,
        workers: int | None = None,
    ) -> NDArray[np.uint8]:
        """Read a rectangle of a level, as OpenSlide's function of this name does.

        Parameters
        ----------
        location
            (x, y) of its top left corner in level-0 pixels; in the level it starts
            at the nearest whole pixel.
        level
            Number of the level, 0 the largest; negative ones count from the end.
        size
            (width, height) in pixels of that level.
        fill
            Grey level of what lies outside the level, 0 to 255.
        workers
            Threads; ``None``: ``$STFAST_WORKERS``, else the CPUs of this process.

        Returns
        -------
        ndarray
            (height, width, 3) uint8, RGB.

        Raises
        ------
        FormatError
            A block is damaged; names file and block.
        IndexError
            There is no such level.
        ValueError
            A coordinate is not finite, or a side is not positive.
        """
        return read_rectangle(self, location, level, size, fill=fill, workers=workers)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return _reopen, (self.path, self.channels, self.mpp, self.mpp_source)


def _reopen(
    path: Path, channels: tuple[int, ...] | None, mpp: float | None, source: str | None
) -> SlideImage:
    return replace(open_image(path, channels=channels), mpp=mpp, mpp_source=source)


def open_image(
    path: str | os.PathLike[str],
    *,
    channels: Sequence[int] | None = None,
    mpp: float | None = None,
) -> SlideImage:
    """Open a slide image: read its header, no pixels.

    Reads TIFF and BigTIFF (Aperio SVS, Hamamatsu NDPI, OME-TIFF, QPTIFF, 10x
    ``.btf``, COG and generic pyramids among them; tiled, striped, planar, sparse)
    and plain JPEG, PNG, JPEG 2000 and WebP, whatever their names. docs/images.md
    has the table of layouts and codecs.

    Parameters
    ----------
    path
        The image file.
    channels
        For fluorescence and stacks of pages: one to three numbers of pages (or of
        samples, where one page holds them) to show as grey, as red and green, or as
        red, green and blue.
    mpp
        µm per pixel, where the file does not say or is wrong.

    Returns
    -------
    SlideImage
        Levels with their shapes in pixels, and µm per pixel where known.

    Raises
    ------
    FileNotFoundError, IsADirectoryError, PermissionError
        The file cannot be read.
    FormatError
        It is no image that stfast knows, or its header is damaged.
    NotImplementedError
        Its pixels are neither grey nor colour of 1 to 16 bits; or they are several
        pages, which the message names, and ``channels`` was not given.
    ValueError
        There is no such channel, or ``mpp`` is not positive.
    """
    path = Path(path).absolute()
    if channels is not None:
        channels = tuple(_check.integers(channels, "channels").tolist())
    with path.open("rb") as file:
        start = file.read(12)
    try:
        kind, headers, found = _read_headers(path, start, channels)
    except (FormatError, NotImplementedError):
        raise
    except _HEADER_FAULTS as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        if isinstance(error, ValueError) and str(error).startswith("channels:"):
            raise
        message = f"{path}: expected an image header that can be read, got {error}"
        raise FormatError(message) from error
    if mpp is not None:
        found = _check.positive(mpp, "mpp", "µm"), "given"
    width, height = headers[0].width, headers[0].height
    levels = tuple(
        Level(path, header, (width / header.width, height / header.height)) for header in headers
    )
    return SlideImage(path, kind, levels, found[0], found[1], channels)


def thumbnail(
    image: str | os.PathLike[str] | SlideImage,
    longest: int = 2000,
    *,
    workers: int | None = None,
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
    opened = image if isinstance(image, SlideImage) else open_image(image)
    return reduced(opened, longest, workers)


def _read_headers(
    path: Path, start: bytes, channels: tuple[int, ...] | None
) -> tuple[str, list[Header], Mpp]:
    if start.startswith(_TIFF_STARTS):
        with tifffile.TiffFile(path) as tiff:
            headers = tiff_levels(tiff, path, channels)
            return "tiff", headers, tiff_mpp(tiff, tiff.pages.first)
    kind = kind_of(start)
    if kind is None:
        raise FormatError(
            f"{path}: expected a TIFF, JPEG, PNG, JPEG 2000 or WebP image, got {start[:8]!r}"
        )
    if channels is not None:
        raise ValueError(f"channels: expected a TIFF of several, got {kind} ({path})")
    header, mpp = open_plain(path, kind)
    return kind, [header], plausible(mpp, "resolution")
