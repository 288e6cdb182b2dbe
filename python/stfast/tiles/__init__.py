"""A tile for each spot.

Each block of the image that some tile needs is decoded once and serves all of
them. Where a tile has as many pixels as its window, it is those pixels,
unchanged; otherwise they are resized by an antialiased filter, bit for bit as
Pillow does it, from the most reduced level that is not coarser than the tile.
"""

import os
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stfast import _check, _core
from stfast._native import Style
from stfast._warn import warn
from stfast.images import SlideImage
from stfast.tiles._grid import tissue_grid
from stfast.tiles._report import TileReport, report_of
from stfast.tiles._windows import (
    Border,
    Filter,
    Mode,
    OnError,
    Windows,
    image_of,
    plan_windows,
    span_in_pixels,
    style,
    tile_side,
)

__all__ = [
    "TileReport",
    "Windows",
    "extract_tiles",
    "plan_windows",
    "tile_side",
    "tissue_grid",
]

Image = str | os.PathLike[str] | SlideImage
Progress = Callable[[int], object]


def extract_tiles(
    image: Image,
    centers: ArrayLike,
    size: int | None = 224,
    *,
    span: float | None = None,
    span_um: float | None = None,
    mpp: float | None = None,
    mode: Mode = "center",
    resample: Filter = "bicubic",
    border: Border = "fill",
    fill: int | None = None,
    on_error: OnError = "raise",
    out: NDArray[np.uint8] | None = None,
    valid: NDArray[np.float32] | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> NDArray[np.uint8]:
    """Cut a square tile around each centre.

    Each block of the image that some tile needs is decoded once and serves all
    of them, in parallel and without the interpreter; the answer is the same for
    any number of workers.

    Parameters
    ----------
    image
        A path, or what :func:`open_image` returned.
    centers
        (n, 2) positions (x, y) in level-0 pixels; pixel centres lie at halves.
    size
        Side of a tile in pixels. ``None``: that of its window.
    span
        Side of a tile's window in level-0 pixels, rounded to whole ones.
        ``None``: ``size``, so that no pixel is resampled.
    span_um
        The same in µm, turned into pixels by ``mpp``.
    mpp
        µm per level-0 pixel. ``None``: what the file says.
    mode
        ``"center"``: the window starts at ``floor(x - span/2 + 1/2)``.
        ``"pil-crop"``: it is ``crop((x - r, y - r, x + r, y + r))`` of Pillow with
        ``r = span / 2``, each edge rounded to even on its own, black outside (the
        recipe of STimage-1K4M, Chen et al. 2024).
    resample
        The filter by which a window becomes a tile of another size: Pillow's
        ``"box"``, ``"bilinear"``, ``"bicubic"`` or ``"lanczos"``, antialiased.
    border
        What a tile shows outside the picture: ``"fill"``: one grey level; ``"edge"``
        or ``"reflect"``: what :func:`numpy.pad` makes of the part inside. Windows
        wholly outside are filled.
    fill
        That grey level, 0 to 255. ``None``: white; black in mode ``"pil-crop"``.
    on_error
        What a damaged block does: ``"raise"``, or ``"fill"`` its pixels and go on;
        then a warning counts the tiles and lists the first.
    out
        Array to fill instead of a new one: (n, size, size, 3) uint8, C order
        (a memory map, or the ``numpy()`` view of a pinned tensor).
    valid
        Array to fill with the share of each window that is pixels of the picture:
        (n,) float32, 1 inside it, 0 wholly outside. Without it, a warning counts
        the windows wholly outside.
    workers
        Threads; ``None``: ``$STFAST_WORKERS``, else the CPUs of this process.
    progress
        Called now and then with the number of tiles done.

    Returns
    -------
    ndarray
        (n, size, size, 3) uint8, RGB.

    Raises
    ------
    FormatError
        A block is damaged, or ends before it should; names file and block.
    ValueError
        A coordinate is not finite or absurdly far away, a side is not positive,
        ``out`` does not fit, or µm are given where no µm per pixel are known.
    NotImplementedError
        The image is of a kind that is not decoded.
    """
    image = image_of(image, mpp)
    look = style(fill, border, resample, on_error, mode)
    span = span_in_pixels(image, span, span_um)
    windows = plan_windows(image, centers, size, span=span, mode=mode)
    out = _output(out, (len(windows), *windows.tile_shape(), 3), np.uint8, "out")
    if valid is not None:
        _output(valid, (len(windows),), np.float32, "valid")
    report = _cut(windows, out, look, _check.workers(workers), progress)
    if valid is not None:
        valid[:] = report.valid
    _report(image, report, outside=valid is None)
    return out


def _report(image: SlideImage, report: TileReport, *, outside: bool) -> None:
    """Say which tiles are not what was asked for."""
    n = len(report.valid)
    if report.bad:
        first = "; ".join(f"tile {number}: {fault}" for number, fault in report.first_bad())
        warn(f"{image.path}: {len(report.bad)} of {n} tiles lie on damaged blocks: {first}")
    if outside and report.outside:
        height, width = image.shape
        warn(
            f"{image.path}: {report.outside} of {n} windows lie wholly outside "
            f"{width} × {height} pixels"
        )


def _cut(
    windows: Windows,
    out: NDArray[np.uint8],
    look: Style,
    threads: int,
    progress: Progress | None = None,
) -> TileReport:
    told = _core.extract_tiles(windows.places(), look, out, threads, progress=progress)
    return report_of(told)


def _output(
    out: NDArray[Any] | None, shape: tuple[int, ...], dtype: type, name: str
) -> NDArray[Any]:
    """The caller's array, if it fits, else a new one."""
    if out is None:
        return np.empty(shape, dtype=dtype)
    array: object = out
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{name}: expected a numpy array, got {type(array).__name__}")
    flags = out.flags.c_contiguous and out.flags.writeable
    if out.shape != shape or out.dtype != dtype or not flags:
        wanted = f"a writeable C-ordered {np.dtype(dtype).name} array {shape}"
        raise ValueError(f"{name}: expected {wanted}, got {out.dtype} {out.shape}")
    return out
