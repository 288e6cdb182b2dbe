"""What users do today to cut tiles from pictures, written as well as we can write it.

As in `peers.py`: all threads that each can use, the caller's array, the order that suits it.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Corners = NDArray[np.int64]
"""Left and top of each tile, (n, 2)."""


def decode_jpegs(blocks: Sequence[bytes], shape: tuple[int, int], threads: int) -> None:
    """Decode JPEG streams and throw the pixels away: libjpeg-turbo's raw rate."""
    import imagecodecs

    def decode(mine: Sequence[bytes]) -> None:
        out = np.empty((*shape, 3), dtype=np.uint8)
        for block in mine:
            imagecodecs.jpeg8_decode(block, out=out)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(decode, [blocks[first::threads] for first in range(threads)]))


def _by_thread(corners: Corners, threads: int) -> list[range]:
    """Runs of neighbouring tiles, one a thread: each keeps its own blocks in its cache."""
    edges = np.linspace(0, len(corners), threads + 1).astype(int).tolist()
    return [range(a, b) for a, b in pairwise(edges)]


def openslide_tiles(path: Path, corners: Corners, out: Pixels, threads: int) -> Pixels:
    """``read_region``, a handle a thread, its cache large enough for two rows of blocks."""
    import openslide

    size = out.shape[1]

    def cut(mine: range) -> None:
        with openslide.OpenSlide(path) as slide:
            slide.set_cache(openslide.OpenSlideCache(256 << 20))
            for i in mine:
                x, y = corners[i].tolist()
                region = slide.read_region((x, y), 0, (size, size))
                out[i] = np.asarray(region)[..., :3]

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(cut, _by_thread(corners, threads)))
    return out


def pyvips_tiles(path: Path, corners: Corners, out: Pixels, threads: int) -> Pixels:
    """``Region.fetch``, an image a thread, with libvips's own cache of blocks."""
    import pyvips

    pyvips.cache_set_max(0)  # or it would keep the last run's blocks
    size = out.shape[1]

    def cut(mine: range) -> None:
        region = pyvips.Region.new(pyvips.Image.new_from_file(str(path), access="random"))
        for i in mine:
            x, y = corners[i].tolist()
            pixels = np.frombuffer(region.fetch(x, y, size, size), dtype=np.uint8)
            out[i] = pixels.reshape(size, size, -1)[..., :3]

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(cut, _by_thread(corners, threads)))
    return out


def tifffile_tiles(path: Path, corners: Corners, out: Pixels, threads: int) -> Pixels:
    """The whole picture decoded on all threads, then sliced."""
    import tifffile

    return _slice(tifffile.imread(path, maxworkers=threads), corners, out)


def zarr_tiles(path: Path, corners: Corners, out: Pixels, threads: int) -> Pixels:
    """Windows of tifffile's zarr store, tile after tile, on as many threads."""
    import tifffile
    import zarr

    size = out.shape[1]
    picture: Any = zarr.open(tifffile.imread(path, aszarr=True, maxworkers=1), mode="r")

    def cut(mine: range) -> None:
        for i in mine:
            x, y = corners[i].tolist()
            out[i] = picture[y : y + size, x : x + size]

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(cut, _by_thread(corners, threads)))
    return out


def tiffslide_tiles(path: Path, corners: Corners, out: Pixels, threads: int) -> Pixels:
    """``read_region`` of tiffslide, an open slide a thread."""
    import tiffslide

    size = out.shape[1]

    def cut(mine: range) -> None:
        with tiffslide.TiffSlide(path) as slide:
            for i in mine:
                x, y = corners[i].tolist()
                out[i] = slide.read_region((x, y), 0, (size, size), as_array=True)[..., :3]

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(cut, _by_thread(corners, threads)))
    return out


def fastslide_tiles(path: Path, corners: Corners, out: Pixels, threads: int) -> Pixels:
    """``read_region`` of FastSlide, whose slides and cache are made for threads."""
    import fastslide

    size = out.shape[1]
    slide = fastslide.FastSlide.from_file_path(str(path))

    def cut(mine: range) -> None:
        for i in mine:
            x, y = corners[i].tolist()
            out[i] = slide.read_region((x, y), 0, (size, size)).numpy()[..., :3]

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(cut, _by_thread(corners, threads)))
    return out


def decode_jp2k(blocks: Sequence[bytes], threads: int) -> None:
    """Decode JPEG 2000 streams and throw the pixels away: OpenJPEG's raw rate."""
    import imagecodecs

    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(lambda block: imagecodecs.jpeg2k_decode(block) is None, blocks):
            pass


def inflate(strips: Sequence[bytes], size: int, threads: int) -> None:
    """Inflate and sum differences, and throw the rows away: libdeflate's raw rate."""
    import imagecodecs

    def decode(strip: bytes) -> None:
        rows = np.frombuffer(imagecodecs.deflate_decode(strip, out=size), dtype=np.uint8)
        del rows

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(decode, strips))


def paper_tiles(path: Path, corners: Corners, size: int, folder: Path) -> Path:
    """STimage-1K4M's recipe: open, crop, save a PNG a spot, one after another."""
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None
    with Image.open(path) as picture:
        for i, (x, y) in enumerate(corners.tolist()):
            picture.crop((x, y, x + size, y + size)).save(folder / f"{i}.png")
    return folder


def pillow_tiles(path: Path, corners: Corners, out: Pixels) -> Pixels:
    """A plain picture decoded by Pillow, then sliced."""
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None
    with Image.open(path) as picture:
        return _slice(np.asarray(picture.convert("RGB")), corners, out)


def pyvips_whole(path: Path, corners: Corners, out: Pixels) -> Pixels:
    """A plain picture decoded by libvips in one pass, then sliced."""
    import pyvips

    pyvips.cache_set_max(0)
    picture = pyvips.Image.new_from_file(str(path), access="sequential")
    return _slice(picture.numpy(), corners, out)


def _slice(pixels: Pixels, corners: Corners, out: Pixels) -> Pixels:
    size = out.shape[1]
    for i, (x, y) in enumerate(corners.tolist()):
        out[i] = pixels[y : y + size, x : x + size]
    return out
