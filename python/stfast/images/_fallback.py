"""Levels in codecs that the native module does not have.

imagecodecs decodes them, block by block, into a file of plain pixels that the
native module then reads as any other. The file lies in the system's folder for
temporary files, is as large as the level's pixels, and is gone when the level is.
"""

import dataclasses
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from stfast import _check, _core
from stfast._core import FormatError
from stfast._native import Header
from stfast._warn import warn

_OLD_JPEG = 6


def spooled(path: Path, header: Header) -> _core.Level:
    """Decode a level, all of it, to a file without a name."""
    try:
        import imagecodecs
    except ImportError as error:
        raise ImportError(
            f"{path}: expected imagecodecs for its compression, got none; pip install imagecodecs"
        ) from error
    with tifffile.TiffFile(path) as tiff:
        page = _find_page(tiff, header)
        warn(
            f"{path}: {page.compression!r} is decoded by imagecodecs, slower, "
            f"by way of a temporary file"
        )
        whole = int(page.compression) == _OLD_JPEG
        with tempfile.NamedTemporaryFile(prefix="stfast-", suffix=".raw") as file:
            plain = (
                _write_whole(imagecodecs, page, path, header, file)
                if whole
                else _write_blocks(page, path, header, file)
            )
            file.flush()
            return _core.Level(Path(file.name), plain)


def _find_page(tiff: tifffile.TiffFile, header: Header) -> tifffile.TiffPage:
    levels = tiff.series[0].levels
    pages = [page.aspage() for level in levels for page in level.pages if page is not None]
    size = (header.width, header.height)
    alike = (page for page in pages if (page.imagewidth, page.imagelength) == size)
    return next(page for page in alike if page.index == header.page)


def _write_blocks(page: tifffile.TiffPage, path: Path, header: Header, file: IO[bytes]) -> Header:
    """Write each block as interleaved samples of 8 bits, one after another."""
    page.init_decode()
    n = -(-header.width // header.block_width) * -(-header.height // header.block_height)
    planes = header.samples if header.planar else 1
    if {len(header.offsets), len(header.lengths)} != {n * planes}:
        raise FormatError(f"{path}: expected {n * planes} blocks, got {len(header.offsets)}")
    bytes_of_block = header.block_width * header.block_height * header.samples
    lengths = np.zeros(n, dtype=np.uint64)

    def decode(index: int) -> NDArray[np.uint8] | None:
        return _decode_planes(page, path, header, range(index, n * planes, n))

    with ThreadPoolExecutor(_check.workers(None)) as pool:
        for start in range(0, n, 64):  # no more than these are in memory
            batch = range(start, min(n, start + 64))
            for index, block in zip(batch, pool.map(decode, batch), strict=True):
                if block is not None:
                    file.seek(index * bytes_of_block)
                    file.write(block.tobytes())
                    lengths[index] = bytes_of_block
    jpeg = header.colour == "ycbcr" and int(page.compression) == 7
    return dataclasses.replace(
        _plain(header),
        colour="rgb" if jpeg else header.colour,
        offsets=np.arange(n, dtype=np.uint64) * np.uint64(bytes_of_block),
        lengths=lengths,
    )


def _decode_planes(
    page: tifffile.TiffPage, path: Path, header: Header, stored: range
) -> NDArray[np.uint8] | None:
    """A block of full size, its planes interleaved; nothing where the file has none."""
    parts = []
    for at in stored:
        offset, length = int(header.offsets[at]), int(header.lengths[at])
        if not length:
            return None
        with path.open("rb") as source:  # of its own: not every system has reads at an offset
            there = source.seek(0, os.SEEK_END)
            if offset + length > there:
                raise FormatError(
                    f"block {at}: expected {length} bytes at offset {offset}, "
                    f"got a file of {there} bytes ({path})"
                )
            source.seek(offset)
            coded = source.read(length)
        parts.append(_decode_block(page, path, coded, at % len(page.dataoffsets)))
    whole: NDArray[np.uint8] = np.concatenate(parts, axis=-1)
    out = np.zeros((header.block_height, header.block_width, header.samples), np.uint8)
    height, width = min(whole.shape[0], len(out)), min(whole.shape[1], out.shape[1])
    out[:height, :width] = whole[:height, :width, : header.samples]
    return out


def _decode_block(
    page: tifffile.TiffPage, path: Path, coded: bytes, index: int
) -> NDArray[np.uint8]:
    """A block's samples, rows × columns × samples, in 8 bits."""
    try:
        tables = page.jpegtables
        found: Any = page.decode(coded, index, jpegtables=tables, _fullsize=True)[0]
    except Exception as error:  # what a codec raises is its own
        raise FormatError(
            f"block {index}: expected {page.compression!r} that imagecodecs decodes, "
            f"got {error} ({path})"
        ) from error
    return _eight_bits(np.asarray(found)[0], int(page.bitspersample), int(page.photometric))


def _eight_bits(samples: NDArray[Any], bits: int, photometric: int) -> NDArray[np.uint8]:
    """The upper 8 bits of deeper samples; shallower ones spread, but for palettes' indices."""
    if bits > 8:
        return (samples >> (bits - 8)).astype(np.uint8)
    if bits < 8 and photometric != 3:
        return (samples.astype(np.uint16) * 255 // ((1 << bits) - 1)).astype(np.uint8)
    return samples.astype(np.uint8)


def _write_whole(
    imagecodecs: Any, page: tifffile.TiffPage, path: Path, header: Header, file: IO[bytes]
) -> Header:
    """Old-style JPEG, whose blocks are no streams of their own: libtiff reads all of it."""
    try:
        pixels = imagecodecs.tiff_decode(path.read_bytes(), page.index, asrgb=True)
    except Exception as error:
        raise FormatError(
            f"{path}: expected old-style JPEG that libtiff decodes, got {error}"
        ) from error
    rgb = np.ascontiguousarray(pixels[..., :3])
    file.write(rgb.tobytes())
    return dataclasses.replace(
        _plain(header),
        samples=3,
        colour="rgb",
        padded=False,
        block_width=header.width,
        block_height=1,
        offsets=np.arange(header.height, dtype=np.uint64) * np.uint64(header.width * 3),
        lengths=np.full(header.height, header.width * 3, dtype=np.uint64),
    )


def _plain(header: Header) -> Header:
    return dataclasses.replace(
        header,
        codec="raw",
        bits=8,
        planar=False,
        padded=True,
        differenced=False,
        tables=b"",
        chroma=(1, 1),
    )
