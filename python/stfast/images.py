"""Any slide image as levels of blocks.

tifffile and Pillow read the headers, which they know in every vendor's dialect;
this file turns what they found into tables of blocks (offset, length, codec)
that the native module decodes. No pixel passes through here.

The kind of a file is told from its first bytes, never from its name: slides
named ``.png`` that are JPEG or TIFF are common.
"""

import math
import os
import struct
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import JpegImagePlugin, PngImagePlugin

from stfast import _core
from stfast._core import FormatError

_CODECS = {
    1: "raw",
    5: "lzw",
    7: "jpeg",
    8: "deflate",
    32946: "deflate",
    34926: "zstd",
    50000: "zstd",
}
_COLOURS = {0: "grey-inverted", 1: "grey", 2: "rgb", 6: "ycbcr"}

_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_HEADER_FAULTS = (
    tifffile.TiffFileError,
    SyntaxError,
    struct.error,
    ArithmeticError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)

_RAW_ROWS = 64
"""Rows that an uncompressed strip is cut into, so that a window reads no more."""

_PLAUSIBLE_MPP = (0.05, 20.0)
"""Resolution tags outside this range (72 dpi is 353 µm) describe a screen, not a slide."""


@dataclass(frozen=True, kw_only=True)
class Header:
    """One level as its file's header describes it; the native module reads these names.

    ``offsets`` and ``lengths`` locate the blocks in the file, in bytes, row by
    row of the grid; where samples are stored in planes, plane by plane.
    """

    width: int
    height: int
    block_width: int
    block_height: int
    padded: bool
    samples: int
    planar: bool
    codec: str
    differenced: bool
    colour: str
    offsets: NDArray[np.uint64] = field(repr=False)
    lengths: NDArray[np.uint64] = field(repr=False)
    tables: bytes = field(default=b"", repr=False)


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
        return _core.Level(self.path, self.header)

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
        ``"tiff"``, ``"jpeg"`` or ``"png"``, told from the content.
    levels
        From the largest to the most reduced.
    mpp
        µm per level-0 pixel (mean of x and y), where the file says so.
    mpp_source
        What said so: ``"aperio"`` or ``"resolution"`` (TIFF tags).
    """

    path: Path
    kind: str
    levels: tuple[Level, ...]
    mpp: float | None = None
    mpp_source: str | None = None

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

    def __reduce__(self) -> tuple[Any, tuple[Path]]:
        return open_image, (self.path,)


def open_image(path: str | os.PathLike[str]) -> SlideImage:
    """Open a slide image: read its header, no pixels.

    Reads TIFF and BigTIFF (Aperio SVS, 10x ``.btf`` and generic pyramids among
    them; tiled or striped; JPEG, deflate, LZW, Zstandard or uncompressed; 8-bit
    grey, RGB or RGBA) and plain JPEG and PNG, whatever their names.

    Parameters
    ----------
    path
        The image file.

    Returns
    -------
    SlideImage
        Levels with their shapes in pixels, and µm per pixel where known.

    Raises
    ------
    FileNotFoundError, IsADirectoryError, PermissionError
        The file cannot be read.
    FormatError
        It is no TIFF, JPEG or PNG, or its header is damaged.
    NotImplementedError
        Its pixels are of a kind that stfast does not decode yet.
    """
    path = Path(path)
    with path.open("rb") as file:
        start = file.read(8)
    if start.startswith(_TIFF_STARTS):
        opener = _open_tiff
    elif start.startswith(b"\xff\xd8\xff"):
        opener = _open_jpeg
    elif start.startswith(b"\x89PNG\r\n\x1a\n"):
        opener = _open_png
    else:
        raise FormatError(f"{path}: expected a TIFF, JPEG or PNG image, got {start!r}")
    try:
        return opener(path)
    except (FormatError, NotImplementedError):
        raise
    except _HEADER_FAULTS as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        message = f"{path}: expected an image header that can be read, got {error}"
        raise FormatError(message) from error


def _open_tiff(path: Path) -> SlideImage:
    with tifffile.TiffFile(path) as tiff:
        series = tiff.series[0]
        pages = [_single_page(level, path) for level in series.levels]
        headers = [_tiff_header(page, path) for page in pages]
        mpp, source = _tiff_mpp(tiff, pages[0])
    height, width = headers[0].height, headers[0].width
    levels = tuple(
        Level(path, header, (width / header.width, height / header.height)) for header in headers
    )
    return SlideImage(path, "tiff", levels, mpp, source)


def _single_page(level: tifffile.TiffPageSeries, path: Path) -> tifffile.TiffPage:
    pages = [page for page in level.pages if page is not None]
    if len(pages) != 1:
        raise NotImplementedError(
            f"{path}: expected one page a level, got {len(pages)} ({level.axes} {level.shape})"
        )
    return pages[0].aspage()


def _check_tags(page: tifffile.TiffPage, path: Path) -> bytes:
    """Refuse tags that no picture has; return the page's JPEG tables, if it needs any."""
    sides: list[Any] = [page.imagewidth, page.imagelength]
    sides += [page.tilewidth, page.tilelength] if page.is_tiled else [page.rowsperstrip or 1]
    if not all(isinstance(side, int) and 1 <= side < 2**32 for side in sides):
        raise FormatError(f"{path}: expected sides of at least 1 pixel, got {sides}")
    samples: Any = page.samplesperpixel
    if not isinstance(samples, int) or not 1 <= samples < 2**16:
        raise FormatError(f"{path}: expected at least 1 sample a pixel, got {samples!r}")
    tables: Any = (page.jpegtables or b"") if int(page.compression) == 7 else b""
    if not isinstance(tables, bytes):
        raise FormatError(f"{path}: expected JPEG tables in bytes, got {type(tables).__name__}")
    return tables


def _tiff_header(page: tifffile.TiffPage, path: Path) -> Header:
    tables = _check_tags(page, path)
    codec = _CODECS.get(int(page.compression))
    colour = _COLOURS.get(int(page.photometric))
    differenced = int(page.predictor) == 2
    supported = {
        f"compression {page.compression!r}": codec is not None,
        f"photometric {page.photometric!r}": colour is not None
        and (colour != "ycbcr" or codec == "jpeg"),
        f"{page.bitspersample} bits a sample": page.bitspersample == 8,
        f"predictor {page.predictor!r}": int(page.predictor) in (1, 2),
        f"{page.imagedepth} planes in depth": page.imagedepth == 1,
        f"fill order {page.fillorder}": page.fillorder == 1,
    }
    for found, good in supported.items():
        if not good:
            raise NotImplementedError(
                f"{path}: expected 8-bit grey or RGB in a known codec, got {found}"
            )
    assert codec is not None
    assert colour is not None
    offsets, lengths, rows = _tiff_blocks(page, codec, path)
    return Header(
        width=page.imagewidth,
        height=page.imagelength,
        block_width=page.tilewidth if page.is_tiled else page.imagewidth,
        block_height=page.tilelength if page.is_tiled else rows,
        padded=page.is_tiled,
        samples=page.samplesperpixel,
        planar=int(page.planarconfig) == 2 and page.samplesperpixel > 1,
        codec=codec,
        differenced=differenced,
        colour=colour,
        tables=tables,
        offsets=offsets,
        lengths=lengths,
    )


def _tiff_blocks(
    page: tifffile.TiffPage, codec: str, path: Path
) -> tuple[NDArray[np.uint64], NDArray[np.uint64], int]:
    """Offsets and lengths of a page's tiles or strips, and rows in a strip."""
    offsets = np.asarray(page.dataoffsets, dtype=np.uint64)
    lengths = np.asarray(page.databytecounts, dtype=np.uint64)
    height = page.imagelength
    rows = min(page.rowsperstrip or height, height)
    if page.is_tiled or codec != "raw" or int(page.predictor) != 1 or rows < height:
        return offsets, lengths, rows
    planes = page.samplesperpixel if int(page.planarconfig) == 2 else 1
    row_bytes = page.imagewidth * page.samplesperpixel // planes
    if lengths.size != planes or int(lengths.min()) < row_bytes * height:
        raise FormatError(
            f"{path}: expected {planes} strips of {row_bytes * height} bytes, "
            f"got {lengths.tolist()[:8]}"
        )
    starts = np.arange(0, height, _RAW_ROWS, dtype=np.uint64)
    ends = np.minimum(starts + np.uint64(_RAW_ROWS), np.uint64(height))
    offsets = (offsets[:, None] + starts * np.uint64(row_bytes)).ravel()
    lengths = np.tile((ends - starts) * np.uint64(row_bytes), planes)
    return offsets, lengths, min(_RAW_ROWS, height)


def _tiff_mpp(
    tiff: tifffile.TiffFile, page: tifffile.TiffPage
) -> tuple[float, str] | tuple[None, None]:
    low, high = _PLAUSIBLE_MPP
    if tiff.is_svs:
        mpp = tifffile.tifffile.svs_description_metadata(page.description).get("MPP")
        if isinstance(mpp, (int, float)) and low <= mpp <= high:
            return float(mpp), "aperio"
    if page.resolutionunit in (2, 3):
        per_um = page.get_resolution("MICROMETER")
        if min(per_um) > 0 and math.isfinite(sum(per_um)):
            mpp = (1 / per_um[0] + 1 / per_um[1]) / 2
            if low <= mpp <= high:
                return mpp, "resolution"
    return None, None


def _open_jpeg(path: Path) -> SlideImage:
    with JpegImagePlugin.JpegImageFile(path) as image:
        if image.mode not in ("L", "RGB"):
            raise NotImplementedError(f"{path}: expected a grey or RGB JPEG, got {image.mode}")
        return _whole_file(path, "jpeg", image.size)


def _open_png(path: Path) -> SlideImage:
    with PngImagePlugin.PngImageFile(path) as image:
        if image.mode not in ("1", "L", "LA", "P", "RGB", "RGBA"):
            raise NotImplementedError(f"{path}: expected an 8-bit PNG, got {image.mode}")
        return _whole_file(path, "png", image.size)


def _whole_file(path: Path, kind: str, size: tuple[int, int]) -> SlideImage:
    """An image whose only block is its file."""
    width, height = size
    header = Header(
        width=width,
        height=height,
        block_width=width,
        block_height=height,
        padded=False,
        samples=3,
        planar=False,
        codec=kind,
        differenced=False,
        colour="stream",
        offsets=np.zeros(1, dtype=np.uint64),
        lengths=np.array([path.stat().st_size], dtype=np.uint64),
    )
    return SlideImage(path, kind, (Level(path, header, (1.0, 1.0)),))
