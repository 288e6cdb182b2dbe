"""TIFF in all its dialects: tifffile reads the tags, this file makes tables of blocks of them.

Tags and codes are those of TIFF 6.0 and its technical notes; vendors' compressions
(33003 to 34712) those that tifffile names.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from stfast._core import FormatError
from stfast._native import Header
from stfast.images._header import picked

_CODECS = {
    1: "raw",
    5: "lzw",
    7: "jpeg",
    8: "deflate",
    32773: "packbits",
    32946: "deflate",
    33003: "jpeg2000",
    33005: "jpeg2000",
    34712: "jpeg2000",
    34926: "zstd",
    34927: "webp",
    50000: "zstd",
    50001: "webp",
}
_BYTES = ("raw", "lzw", "deflate", "packbits", "zstd")
_APERIO_YCBCR = 33003
_COLOURS = {0: "grey-inverted", 1: "grey", 2: "rgb", 3: "palette", 5: "cmyk", 6: "ycbcr"}

_ROWS_PER_STRIP, _COLOUR_MAP = 278, 320
_CHROMA, _COEFFICIENTS, _BLACK_WHITE = 530, 529, 532
_BT601 = (0.299, 0.587, 0.114)
_FULL_RANGE = (0, 255, 128, 255, 128, 255)

_RAW_ROWS = 64
"""Rows that an uncompressed strip is cut into, so that a window reads no more."""


def tiff_levels(
    tiff: tifffile.TiffFile, path: Path, channels: Sequence[int] | None
) -> list[Header]:
    """The first series' levels, from the largest on."""
    levels = tiff.series[0].levels
    pages = [_pages_of(level, path) for level in levels]
    return [
        _one_page(level[0], path, channels)
        if len(level) == 1
        else _many_pages(tiff, level, path, channels)
        for level in pages
    ]


def _pages_of(level: tifffile.TiffPageSeries, path: Path) -> list[tifffile.TiffPage]:
    """A level's pages, all of which must be in this file and in its list of pages."""
    if level.is_truncated:
        raise NotImplementedError(
            f"{path}: expected a page for each plane, got {level.shape} in one"
        )
    pages = [page.aspage() for page in level.pages if page is not None]
    others = {page.parent.filehandle.path for page in pages} - {pages[0].parent.filehandle.path}
    if others:
        raise NotImplementedError(
            f"{path}: expected all pages in one file, got some in {others.pop()}"
        )
    return pages


def _one_page(page: tifffile.TiffPage, path: Path, channels: Sequence[int] | None) -> Header:
    header = _page_header(page, path)
    if channels is None:
        if header.colour.startswith("grey") and header.samples > 2:
            names = ", ".join(map(str, range(header.samples)))
            raise NotImplementedError(
                f"{path}: expected grey or colour, got {header.samples} samples a pixel; "
                f"give channels=, up to three of {names}"
            )
        return header
    _check_channels(channels, header.samples, path)
    return dataclasses.replace(header, pick=picked(channels))


def _many_pages(
    tiff: tifffile.TiffFile,
    pages: list[tifffile.TiffPage],
    path: Path,
    channels: Sequence[int] | None,
) -> Header:
    """Pages of one sample each: those chosen become planes of one picture."""
    if channels is None:
        raise NotImplementedError(
            f"{path}: expected one page a level, got {len(pages)} "
            f"({', '.join(_page_names(tiff, pages))}); give channels=, up to three of them"
        )
    _check_channels(channels, len(pages), path)
    first, *others = (_page_header(pages[channel], path) for channel in channels)
    if first.samples != 1:
        raise NotImplementedError(f"{path}: expected pages of one sample, got {first.samples}")
    for other in others:
        if _grid(other) != _grid(first):
            raise NotImplementedError(f"{path}: expected pages alike, got {_grid(other)}")
    headers = [first, *others]
    return dataclasses.replace(
        first,
        samples=len(headers),
        planar=True,
        pick=picked(range(len(headers))),
        offsets=np.concatenate([header.offsets for header in headers]),
        lengths=np.concatenate([header.lengths for header in headers]),
    )


def _grid(header: Header) -> tuple[Any, ...]:
    shared = (header.width, header.height, header.block_width, header.block_height)
    return (*shared, header.codec, header.bits, header.differenced, header.tables)


def _check_channels(channels: Sequence[int], n: int, path: Path) -> None:
    if not 1 <= len(channels) <= 3 or not all(0 <= channel < n for channel in channels):
        raise ValueError(
            f"channels: expected one to three of 0 to {n - 1}, got {list(channels)} ({path})"
        )


def _page_names(tiff: tifffile.TiffFile, pages: list[tifffile.TiffPage]) -> list[str]:
    """Pages by number, and by the name that OME-XML or PerkinElmer's XML gives them."""
    names = [""] * len(pages)
    if tiff.is_ome and tiff.ome_metadata:
        image = tifffile.xml2dict(tiff.ome_metadata)["OME"]["Image"]
        pixels = (image[0] if isinstance(image, list) else image)["Pixels"]
        found = pixels.get("Channel", [])
        found = found if isinstance(found, list) else [found]
        names = [str(channel.get("Name", "")) for channel in found]
    elif tiff.is_qpi:
        texts = [tifffile.xml2dict(page.description) for page in pages]
        names = [str(next(iter(text.values())).get("Name", "")) for text in texts]
    names += [""] * (len(pages) - len(names))
    return [f"page {i} {name}".strip() for i, name in enumerate(names[: len(pages)])]


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


def _page_header(page: tifffile.TiffPage, path: Path) -> Header:
    tables = _check_tags(page, path)
    colour, chroma = _colour(page, path)
    codec = _codec(page, colour)
    offsets, lengths, rows = _blocks(page, codec, path)
    scans = codec == "jpeg" and page.jpegheader is not None
    return Header(
        width=page.imagewidth,
        height=page.imagelength,
        block_width=page.tilewidth if page.is_tiled else page.imagewidth,
        block_height=page.tilelength if page.is_tiled else rows,
        padded=page.is_tiled,
        samples=page.samplesperpixel,
        planar=int(page.planarconfig) == 2 and page.samplesperpixel > 1,
        bits=16 if page.bitspersample == 16 and codec in _BYTES else 8,
        big_endian=page.parent.byteorder == ">",
        codec="jpeg-scan" if scans else codec,
        differenced=int(page.predictor) == 2 and codec in _BYTES,
        colour=colour,
        chroma=chroma,
        palette=_palette(page, path) if colour == "palette" else b"",
        tables=(page.jpegheader or b"") if scans else tables,
        offsets=offsets,
        lengths=lengths,
        page=page.index,
    )


def _colour(page: tifffile.TiffPage, path: Path) -> tuple[str, tuple[int, int]]:
    """What samples mean, and how many pixels share chroma along x and y."""
    colour = _COLOURS.get(int(page.photometric))
    supported = {
        f"photometric {page.photometric!r}": colour is not None,
        f"{page.imagedepth} planes in depth": page.imagedepth == 1,
        f"samples of format {page.sampleformat!r}": int(page.sampleformat or 1) == 1,
        f"{page.bitspersample} bits a sample": 1 <= page.bitspersample <= 16,
        f"predictor {page.predictor!r}": int(page.predictor) in (1, 2),
    }
    for found, good in supported.items():
        if not good:
            raise NotImplementedError(
                f"{path}: expected grey or colour of 1 to 16 bits, got {found}"
            )
    assert colour is not None
    if int(page.compression) == _APERIO_YCBCR:
        return "ycbcr", (1, 1)
    if colour == "ycbcr" and _CODECS.get(int(page.compression)) in _BYTES:
        return colour, _chroma(page, path)
    if colour == "ycbcr" and int(page.compression) != 7:
        return "rgb", (1, 1)
    return colour, (1, 1)


def _chroma(page: tifffile.TiffPage, path: Path) -> tuple[int, int]:
    """Pixels that share chroma, of a page whose luma and chroma no codec turns to RGB."""
    across, down = (int(n) for n in page.tags.valueof(_CHROMA, (2, 2)))
    if across not in (1, 2, 4) or down not in (1, 2, 4):
        raise FormatError(f"{path}: expected chroma of 1, 2 or 4 pixels, got {across}, {down}")
    if int(page.planarconfig) == 2 and (across, down) != (1, 1):
        raise NotImplementedError(f"{path}: expected chroma beside luma, got planes of two sizes")
    coefficients = _fractions(page.tags.valueof(_COEFFICIENTS, _BT601), 3)
    levels = _fractions(page.tags.valueof(_BLACK_WHITE, _FULL_RANGE), 6)
    if not np.allclose(coefficients, _BT601, atol=1e-3) or not np.allclose(levels, _FULL_RANGE):
        raise NotImplementedError(
            f"{path}: expected YCbCr of BT.601 and full range, "
            f"got coefficients {coefficients} and levels {levels}"
        )
    return across, down


def _fractions(value: Any, n: int) -> list[float]:
    """Rationals as tifffile gives them: numerators and denominators in turn."""
    numbers = [float(v) for v in value]
    if len(numbers) == 2 * n:
        return [a / b if b else 0.0 for a, b in zip(numbers[::2], numbers[1::2], strict=True)]
    return numbers


def _codec(page: tifffile.TiffPage, colour: str) -> str:
    """How blocks are coded: ``"imagecodecs"`` where the native module cannot."""
    codec = _CODECS.get(int(page.compression), "imagecodecs")
    whole_bytes = page.bitspersample in (8, 16) if codec in _BYTES else page.bitspersample == 8
    if codec == "jpeg2000":
        whole_bytes = True
    planes = int(page.planarconfig) == 2 and page.samplesperpixel > 1
    native = whole_bytes and page.fillorder == 1 and not (planes and colour == "cmyk")
    if colour == "palette" and page.bitspersample != 8:
        native = False
    if colour == "ycbcr" and codec in _BYTES and page.bitspersample != 8:
        native = False
    return codec if native else "imagecodecs"


def _palette(page: tifffile.TiffPage, path: Path) -> bytes:
    """256 colours, RGB: the upper bytes of the colour map's 16 bits."""
    colours: NDArray[Any] = np.asarray(page.tags.valueof(_COLOUR_MAP, ())).ravel()
    n = 1 << min(int(page.bitspersample), 8)
    if colours.size != 3 * n:
        raise FormatError(f"{path}: expected a colour map of {n} colours, got {colours.size / 3:g}")
    if int(colours.max()) > 255:  # some writers have 8 bits
        colours = colours >> 8
    table = np.zeros((256, 3), dtype=np.uint8)
    table[:n] = colours.reshape(3, n).T
    return table.tobytes()


def _blocks(
    page: tifffile.TiffPage, codec: str, path: Path
) -> tuple[NDArray[np.uint64], NDArray[np.uint64], int]:
    """Offsets and lengths of a page's tiles or strips, and rows in a strip."""
    offsets = np.asarray(page.dataoffsets, dtype=np.uint64)
    lengths = np.asarray(page.databytecounts, dtype=np.uint64)
    height = page.imagelength
    rows = int(page.tags.valueof(_ROWS_PER_STRIP, 0)) or height
    # A last strip may be stored whole; a number out of all proportion means "one strip".
    rows = rows if rows <= 2 * height + 16 else height
    shared = int(page.photometric) == 6
    if page.is_tiled or codec != "raw" or int(page.predictor) != 1 or rows < height or shared:
        return offsets, lengths, rows
    planes = page.samplesperpixel if int(page.planarconfig) == 2 else 1
    row_bytes = page.imagewidth * page.samplesperpixel // planes * (page.bitspersample // 8)
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
