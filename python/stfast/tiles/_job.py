"""What is to be written: the arguments of :func:`write_tiles`, checked and at rest."""

import hashlib
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray

from stfast import _check, _core
from stfast._native import Style
from stfast.images import SlideImage
from stfast.tiles._names import file_names
from stfast.tiles._windows import Mode, Windows, image_of, plan_windows

Container = Literal["wds", "zarr", "folder", "npy"]
Encoding = Literal["jpeg", "png", "raw", "zstd"]

FORMAT_VERSION = 1

_ENCODINGS: dict[str, tuple[str, ...]] = {
    "wds": ("jpeg", "png", "raw"),
    "zarr": ("raw", "zstd"),
    "folder": ("png", "jpeg", "raw"),
    "npy": ("raw",),
}
"""What each container can hold; the first is the default."""

_FINGERPRINT = 1 << 20
"""Bytes of an image's start and end that its fingerprint is of."""


_SAMPLE = 16
"""Tiles encoded to estimate the size of all."""


@dataclass(frozen=True)
class Job:
    """A call of :func:`write_tiles`, its arguments checked."""

    image: SlideImage
    output: Path
    centers: NDArray[np.float64]
    names: pl.Series
    files: pl.Series
    windows: Windows
    look: Style
    container: str
    encoding: str
    quality: int
    per_shard: int
    workers: int

    def estimate_bytes(self) -> int:
        """Bytes of all tiles on disk: exact for raw ones, else from a few that are encoded."""
        n = len(self.windows)
        pixels = 3 * int((np.ceil(self._sides()[0]) * np.ceil(self._sides()[1])).sum())
        if self.encoding not in ("jpeg", "png") or n == 0:
            return pixels
        chosen = self._sample()
        some = self.windows.some(chosen)
        tiles = np.empty((len(chosen), *some.tile_shape(), 3), np.uint8)
        _core.extract_tiles(some.places(), self.look, tiles, self.workers)
        return sum(map(self._coded_bytes, tiles)) * n // len(chosen)

    def _sides(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        size, windows = self.windows.size, self.windows
        if size is None:
            return windows.height, windows.width
        side = np.full(len(windows), size, dtype=np.float64)
        return side, side

    def _sample(self) -> NDArray[np.int64]:
        """A few tiles all over; of a picture read in one pass, those that come first."""
        n = len(self.windows)
        if self.windows.level.access[0] == "one pass":
            return np.argsort(self.windows.top, kind="stable")[:1]
        return np.unique(np.linspace(0, n - 1, min(n, _SAMPLE)).astype(np.int64))

    def _coded_bytes(self, tile: NDArray[np.uint8]) -> int:
        from PIL import Image

        coded = io.BytesIO()
        options: dict[str, Any] = {"quality": self.quality, "subsampling": 0}
        if self.encoding == "png":
            options = {"compress_level": 1}
        Image.fromarray(tile).save(coded, self.encoding, **options)
        return coded.tell()

    def codec_rate(self) -> float | None:
        """Pixels a second that the codec alone decodes here; none of a picture in one pass."""
        if self.windows.level.access[0] == "one pass" or not len(self.windows):
            return None
        return _core.codec_rate(self.windows.places(), self.workers)


def prepare(
    image: str | os.PathLike[str] | SlideImage,
    centers: ArrayLike,
    output: str | os.PathLike[str],
    *,
    look: Style,
    names: Sequence[str] | None = None,
    container: str | None = None,
    encoding: str | None = None,
    quality: int = 95,
    shard_size: int = 1024,
    size: int | None = 224,
    span: float | None = None,
    mode: Mode = "center",
    mpp: float | None = None,
    workers: int | None = None,
) -> Job:
    """Check the arguments of :func:`write_tiles` and plan its windows."""
    image, output = image_of(image, mpp), Path(output)
    kind, coding = _kind(output, container, encoding)
    windows = plan_windows(image, centers, size, span=span, mode=mode)
    if kind in ("npy", "zarr"):
        windows.tile_shape()
    spots = _named(names, len(windows))
    return Job(
        image=image,
        output=output,
        centers=_check.points(centers),
        names=spots,
        files=file_names(spots, dots=kind == "folder"),
        windows=windows,
        look=look,
        container=kind,
        encoding=coding,
        quality=_quality(quality),
        per_shard=min(_check.at_least_one(shard_size, "shard_size"), max(len(windows), 1)),
        workers=_check.workers(workers),
    )


def _kind(output: Path, container: str | None, encoding: str | None) -> tuple[str, str]:
    if container is None:
        container = {".npy": "npy", ".zarr": "zarr"}.get(output.suffix)
    if container is None:
        raise ValueError(
            f"container: expected wds, zarr, folder or npy for {output.name}, got none"
        )
    _check.choice(container, Container, "container")
    if container == "npy" and output.suffix != ".npy":
        raise ValueError(f"output: expected a name ending in .npy, got {output}")
    known = _ENCODINGS[container]
    encoding = known[0] if encoding is None else encoding
    if encoding not in known:
        raise ValueError(
            f"encoding: expected one of {', '.join(known)} for {container}, got {encoding!r}"
        )
    return container, encoding


def _quality(quality: int) -> int:
    if not _check.is_whole(quality) or not 1 <= quality <= 100:
        raise ValueError(f"quality: expected 1 to 100, got {quality!r}")
    return int(quality)


def _named(names: Sequence[str] | None, n: int) -> pl.Series:
    try:
        series = pl.Series("spot", range(n) if names is None else list(names)).cast(pl.String)
    except (TypeError, pl.exceptions.PolarsError) as error:
        raise ValueError(f"names: expected texts, got {error}") from error
    if series.null_count():
        raise ValueError(f"names: expected texts, got {series.null_count()} missing ones")
    if len(series) != n:
        raise ValueError(f"names: expected {n}, got {len(series)}")
    if series.n_unique() != n:
        twice = series.filter(series.is_duplicated())[0]
        raise ValueError(f"names: expected unique ones, got {twice!r} more than once")
    return series


def settings_of(job: Job) -> dict[str, Any]:
    """All that the bytes of the output depend on."""
    windows = job.windows
    spots = hashlib.blake2b(digest_size=16)
    for array in (job.centers, windows.left, windows.top, windows.width, windows.height):
        spots.update(array.tobytes())
    spots.update("\0".join(job.names).encode())
    return {
        "format_version": FORMAT_VERSION,
        "stfast": metadata.version("stfast"),
        "image": {"name": job.image.path.name, **_fingerprint(job.image.path)},
        "mpp": job.image.mpp,
        "mpp_source": job.image.mpp_source,
        "channels": job.image.channels,
        "level": job.image.levels.index(windows.level),
        "spots": {"n": len(windows), "blake2b": spots.hexdigest()},
        "size": windows.size,
        "style": vars(job.look),
        "container": job.container,
        "encoding": job.encoding,
        "quality": job.quality if job.encoding == "jpeg" else None,
        "shard_size": job.per_shard,
    }


def _fingerprint(path: Path) -> dict[str, Any]:
    """Size of a file, and a hash of its first and last MiB."""
    digest, length = hashlib.blake2b(digest_size=16), path.stat().st_size
    with path.open("rb") as file:
        digest.update(file.read(_FINGERPRINT))
        file.seek(max(length - _FINGERPRINT, 0))
        digest.update(file.read(_FINGERPRINT))
    return {"bytes": length, "blake2b": digest.hexdigest()}
