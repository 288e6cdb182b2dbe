"""Where spots come from: slides cut on the fly, a built dataset's shards, or arrays.

Each source knows its spots' slide, place and label, and puts the tiles and genes of some of
them into a caller's buffer. The loader and datasets both stand on it, and it needs no torch.
"""

import hashlib
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from stfast import _check, _core, _spatial
from stfast._native import Places, Style
from stfast.images import Level, SlideImage, open_image
from stfast.sources.genes import DenseGenes, GeneRows, SparseGenes
from stfast.tiles import Windows, plan_windows

Rows = NDArray[np.int64]
Faults = list[tuple[int, str]]
_WHOLE = re.compile(r"-?\d{1,18}")
Progress = Callable[[int], object]


@dataclass(frozen=True)
class Spots:
    """What is known of every spot of a source, row by row.

    Attributes
    ----------
    slide
        (n,) int32, which of ``slides``.
    xy
        (n, 2) float32, centres in pixels of the slide's picture.
    label
        (n,) int64, which of ``classes``; −1: none.
    slides, classes
        Names.
    """

    slide: NDArray[np.int32]
    xy: NDArray[np.float32]
    label: NDArray[np.int64]
    slides: list[str]
    classes: list[str]

    def __len__(self) -> int:
        return len(self.slide)

    def fingerprint(self) -> str:
        """Which spots, in which order: what a saved position in an epoch refers to."""
        digest = hashlib.blake2b(digest_size=8)
        for array in (self.slide, self.xy, self.label):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


class Source(Protocol):
    """Tiles of spots, by row."""

    spots: Spots
    genes: GeneRows
    size: int

    def cut(
        self, rows: Rows, out: NDArray[np.uint8], workers: int, *, lenient: bool, look: Progress
    ) -> Faults:
        """Fill ``out`` (n, size, size, 3); the tiles that failed, if ``lenient``."""


class HasSource(Protocol):
    """What gives its source of tiles when asked for it, as a built dataset does."""

    @property
    def rows(self) -> Rows | None:
        """Rows of the source that it is filtered to; ``None``: all."""

    def source(self, genes: Sequence[str] | str | None = None) -> Source:
        """All of its tiles."""


def labelled(
    columns: Sequence[Sequence[Any] | None], lengths: Sequence[int]
) -> tuple[NDArray[np.int64], list[str]]:
    """Labels of slides as numbers, and the classes; missing and empty ones are −1.

    Classes are sorted as texts, or as numbers if all are whole ones.
    """
    texts = [
        np.array(["" if _missing(value) else str(value) for value in column], dtype=object)
        if column is not None
        else np.full(n, "", dtype=object)
        for column, n in zip(columns, lengths, strict=True)
    ]
    every = np.concatenate(texts) if texts else np.empty(0, dtype=object)
    classes, numbers = np.unique(every.astype(str), return_inverse=True)
    empty = int(len(classes) > 0 and classes[0] == "")
    numbers, names = numbers.astype(np.int64) - empty, classes[empty:].tolist()
    if not all(_WHOLE.fullmatch(name) for name in names):
        return numbers, names
    order = sorted(range(len(names)), key=lambda at: int(names[at]))
    place = np.append(np.argsort(np.array(order, dtype=np.int64)), -1)  # the last is that of −1
    return place[numbers], [names[at] for at in order]


def _missing(value: Any) -> bool:
    scalar = value is None or value is pd.NA or np.isscalar(value)
    return scalar and bool(pd.isna(value))


class SlideSource:
    """Virtual tiles: cut and decoded from the slides' pictures when they are needed."""

    def __init__(
        self,
        slides: Sequence[AnnData],
        genes: GeneRows,
        *,
        size: int,
        span: float | None,
        label: str | None,
        cache_bytes: int,
    ) -> None:
        planned = [_windows(adata, size, span) for adata in slides]
        self.size, self.genes = size, genes
        self._levels: list[Level] = [windows.level for windows in planned]
        sides = ("left", "top", "width", "height")
        self._sides = [np.concatenate([getattr(w, side) for w in planned]) for side in sides]
        lengths = [adata.n_obs for adata in slides]
        labels = [_column(adata, label) for adata in slides]
        if label is not None and all(column is None for column in labels):
            raise ValueError(f"label: expected a column {label!r} in obs, got none")
        numbers, classes = labelled(labels, lengths)
        self.spots = Spots(
            slide=np.repeat(np.arange(len(slides), dtype=np.int32), lengths),
            xy=np.concatenate([_spatial.centers(a).astype(np.float32) for a in slides]),
            label=numbers,
            slides=[_name(adata, number) for number, adata in enumerate(slides)],
            classes=classes,
        )
        self._cache_bytes = cache_bytes
        self._cache: tuple[int, _core.Cache] | None = None

    def cut(
        self, rows: Rows, out: NDArray[np.uint8], workers: int, *, lenient: bool, look: Progress
    ) -> Faults:
        """Cut the spots' windows from the slides."""
        native = [level.native for level in self._levels]
        left, top, width, height = (side[rows] for side in self._sides)
        source = self.spots.slide[rows].astype(np.uint32)
        places = Places(native, source, left, top, width, height, self.size)
        style, cache = Style(lenient=lenient), self._block_cache()
        *_, faults = _core.extract_tiles(places, style, out, workers, cache=cache, progress=look)
        out[[number for number, _ in faults]] = 255  # what was cut of other blocks is there
        return faults

    def _block_cache(self) -> _core.Cache:
        """The process's own cache: one made before a fork may be locked for ever."""
        if self._cache is None or self._cache[0] != os.getpid():
            self._cache = (os.getpid(), _core.Cache(self._cache_bytes))
        return self._cache[1]

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_cache": None}


def _column(adata: AnnData, label: str | None) -> Sequence[Any] | None:
    return None if label is None or label not in adata.obs else adata.obs[label].tolist()


def _name(adata: AnnData, number: int) -> str:
    return next(iter(adata.uns.get("spatial", {})), str(number))


def _windows(adata: AnnData, size: int, span: float | None) -> Windows:
    image = open_image(_spatial.image_path(adata))
    centers = _spatial.centers(adata)
    windows = plan_windows(
        image, centers, size, span=_spatial.spot_span(adata) if span is None else span
    )
    _check_inside(image, centers)
    return windows


def _check_inside(image: SlideImage, centers: NDArray[np.float64]) -> None:
    outside = ~_spatial.in_picture(centers, image.shape)
    if outside.any():
        height, width = image.shape
        first = int(np.flatnonzero(outside)[0])
        raise IndexError(
            f"{image.path}: expected centers within {width} × {height} pixels, got "
            f"{tuple(centers[first].tolist())} at row {first} ({int(outside.sum())} such)"
        )


class ShardSource:
    """Tiles that lie encoded in the shards of a built dataset."""

    def __init__(
        self,
        paths: Sequence[str | os.PathLike[str]],
        where: tuple[NDArray[np.uint32], NDArray[np.uint64], NDArray[np.uint32]],
        *,
        spots: Spots,
        genes: GeneRows,
        size: int,
    ) -> None:
        self.spots, self.genes, self.size = spots, genes, size
        self._paths, self._where = list(paths), where
        self._shards = _core.TileShards(self._paths)

    def cut(
        self, rows: Rows, out: NDArray[np.uint8], workers: int, *, lenient: bool, look: Progress
    ) -> Faults:
        """Read and decode the spots' tiles."""
        where = self._places(rows)
        return _core.decode_tiles(self._shards, where, out, workers, lenient=lenient, progress=look)

    def read(self, rows: Rows, workers: int) -> tuple[NDArray[np.uint8], Rows]:
        """The encoded tiles, end to end, and where each ends."""
        where = self._places(rows)
        ends = np.cumsum(where[2], dtype=np.int64)
        coded = np.empty(int(ends[-1]) if len(ends) else 0, np.uint8)
        _core.read_tiles(self._shards, where, coded, workers)
        return coded, ends

    def _places(
        self, rows: Rows
    ) -> tuple[NDArray[np.uint32], NDArray[np.uint64], NDArray[np.uint32]]:
        shard, offset, length = self._where
        return shard[rows], offset[rows], length[rows]

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_shards": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._shards = _core.TileShards(self._paths)


class ArraySource:
    """Tiles and genes that are arrays already, in memory or memory-mapped.

    Parameters
    ----------
    image
        (n, size, size, 3) uint8, C order.
    genes
        (n, genes) float32, or a scipy matrix or array, whose rows stay sparse (best CSR).
    coords
        (n, 2) centres in pixels; ``None``: zeros.
    slide, label
        (n,) names or numbers; ``None``: all of one slide, without a label.
    gene_names
        Of the columns; ``None``: their numbers.

    Raises
    ------
    ValueError
        Lengths, shapes or dtypes do not fit.
    """

    def __init__(
        self,
        image: NDArray[np.uint8],
        genes: Any,
        *,
        coords: ArrayLike | None = None,
        slide: Sequence[Any] | None = None,
        label: Sequence[Any] | None = None,
        gene_names: Sequence[str] | None = None,
    ) -> None:
        if image.ndim != 4 or image.shape[1] != image.shape[2] or image.shape[3] != 3:
            raise ValueError(f"image: expected (n, size, size, 3), got {image.shape}")
        if image.dtype != np.uint8 or not image.flags.c_contiguous:
            order = "C" if image.flags.c_contiguous else "another"
            raise ValueError(f"image: expected uint8 in C order, got {image.dtype} in {order}")
        n = len(image)
        self.size, self.image = image.shape[1], image
        self.genes = _gene_rows(genes, gene_names)
        number, slides = labelled([["0"] * n if slide is None else slide], [n])
        labels, classes = labelled([label], [n])
        xy = np.ascontiguousarray(np.zeros((n, 2)) if coords is None else coords, dtype=np.float32)
        if xy.ndim != 2 or xy.shape[1] != 2:
            raise ValueError(f"coords: expected (n, 2), got {xy.shape}")
        if (number < 0).any():
            row = int(np.argmax(number < 0))
            raise ValueError(f"slide: expected a name for each spot, got none at row {row}")
        self.spots = Spots(number.astype(np.int32), xy, labels, slides, classes)
        lengths = {"genes": genes.shape[0], "coords": len(self.spots.xy)}
        lengths |= {"slide": len(number), "label": len(labels)}
        for name, found in lengths.items():
            if found != n:
                raise ValueError(f"{name}: expected {n} rows as image has, got {found}")

    def cut(
        self, rows: Rows, out: NDArray[np.uint8], workers: int, *, lenient: bool, look: Progress
    ) -> Faults:
        """Copy the spots' tiles."""
        n = len(self.image)
        flat = self.image.reshape(n, -1).view(np.ndarray)
        _core.gather_dense((flat, out.reshape(len(rows), -1)), rows, workers)
        return []


def _gene_rows(genes: Any, names: Sequence[str] | None) -> GeneRows:
    names = [str(i) for i in range(genes.shape[1])] if names is None else list(names)
    if len(names) != genes.shape[1]:
        raise ValueError(f"gene_names: expected {genes.shape[1]}, got {len(names)}")
    if sparse.issparse(genes):
        rows = _check.csr(genes, "genes")
        values = rows.data.astype(np.float32, copy=False)
        return SparseGenes(names, rows.indptr.astype(np.int64), rows.indices, values)
    if not isinstance(genes, np.ndarray):
        found = type(genes).__name__
        raise ValueError(f"genes: expected an array in memory or a scipy matrix, got {found}")
    if genes.dtype != np.float32 or not genes.flags.c_contiguous:
        order = "C" if genes.flags.c_contiguous else "another"
        raise ValueError(f"genes: expected float32 in C order or CSR, got {genes.dtype} in {order}")
    return DenseGenes(names, genes.view(np.ndarray))
