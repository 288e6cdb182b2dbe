"""Genes as image channels: (C, H, W), aligned with the slide's picture, made where it is read.

A pixel has the values of the spot it lies in. Nothing of the raster's size is held: a
window asks a tree of the spots' centres, so that any resolution and any subset of genes
costs what is read of it.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from anndata import AnnData
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from scipy.spatial import cKDTree

from stfast import _check, _lazy, _spatial

# Of half a bin's side: a grid that is turned by up to 3° against the picture has no gaps.
_SLACK = 1.1
_STRIPE = 1 << 20
"""Pixels of the raster that are looked up at a time."""


class Raster:
    """Genes of a slide as an array (C, H, W) of float32 that is computed when it is sliced.

    Attributes
    ----------
    genes
        Names of the channels.
    shape
        (C, H, W).
    scale
        Pixels of the raster for one of the picture.
    span
        Side in pixels of the picture of the paper's window, 2r.
    """

    dtype = np.dtype(np.float32)
    ndim = 3

    def __init__(
        self,
        values: sparse.csr_matrix,
        xy: NDArray[np.float64],
        *,
        genes: list[str],
        picture: tuple[int, int],
        scale: float,
        span: float,
        square: bool,
    ) -> None:
        self.genes, self.scale, self.span, self.square = genes, scale, span, square
        self._values, self._xy = values, xy
        height, width = (max(1, round(side * scale)) for side in picture)
        self.shape = (len(genes), height, width)

    def __repr__(self) -> str:
        return f"Raster({self.shape}, {self.scale:g} pixels for one of the picture)"

    @cached_property
    def _tree(self) -> cKDTree:
        return cKDTree(self._xy)

    def spots(self, xy: NDArray[np.float64], *, workers: int | None = None) -> NDArray[np.int64]:
        """The spot at each place of the picture; −1: none.

        Parameters
        ----------
        xy
            (..., 2) places (x, y) in pixels of the picture.
        workers
            Threads; ``None``: ``$STFAST_WORKERS``, else the CPUs of this process.

        Returns
        -------
        (...) int64: the nearest of the spots that cover the place.
        """
        places = xy.reshape(-1, 2)
        reach = self.span / 2 * (_SLACK * np.sqrt(2) if self.square else 1)
        threads, bound = _check.workers(workers), np.nextafter(reach, np.inf)
        told: Any = self._tree.query(places, distance_upper_bound=bound, workers=threads)
        far, found = told
        inside = np.isfinite(far)
        if self.square:
            off = np.abs(places[inside] - self._xy[found[inside]]).max(axis=1, initial=0)
            inside[inside] = off <= self.span / 2 * _SLACK
        spot: NDArray[np.int64] = np.where(inside, found, -1).astype(np.int64)
        return spot.reshape(xy.shape[:-1])

    def __getitem__(self, key: Any) -> NDArray[np.float32]:
        """A part, as of an array: numbers or slices of channels, rows and columns."""
        keys = key if isinstance(key, tuple) else (key,)
        channels, rows, columns = (
            np.arange(n)[k]
            for n, k in zip(self.shape, (*keys, *(slice(None),) * 3)[:3], strict=True)
        )
        y, x = ((np.atleast_1d(at) + 0.5) / self.scale for at in (rows, columns))
        found = np.empty((len(np.atleast_1d(channels)), len(y), len(x)), np.float32)
        step = max(1, _STRIPE // max(len(x), 1))
        for first in range(0, len(y), step):
            part = y[first : first + step]
            grid = np.stack(np.meshgrid(x, part), axis=-1)
            found[:, first : first + step] = self._at(grid, np.atleast_1d(channels), None)
        whole = [i for i, at in enumerate((channels, rows, columns)) if np.ndim(at) == 0]
        return found.squeeze(axis=tuple(whole))

    def _at(
        self, xy: NDArray[np.float64], channels: NDArray[np.int64], workers: int | None
    ) -> NDArray[np.float32]:
        """(channels, ...) at places (..., 2)."""
        spot = self.spots(xy, workers=workers)
        used, place = np.unique(spot, return_inverse=True)
        table = np.zeros((len(channels), len(used)), np.float32)
        some = used >= 0
        table[:, some] = self._values[used[some]][:, channels].toarray().T
        return table[:, place.reshape(spot.shape)]

    def tiles(
        self,
        xy: ArrayLike,
        size: int,
        *,
        span: float | None = None,
        workers: int | None = None,
    ) -> NDArray[np.float32]:
        """Windows of all channels around places, as :func:`extract_tiles` cuts the picture.

        Parameters
        ----------
        xy
            (n, 2) centres in pixels of the picture.
        size
            Side of a tile in pixels.
        span
            Side of its window in pixels of the picture; ``None``: the paper's 2r.
        workers
            Threads; ``None``: ``$STFAST_WORKERS``, else the CPUs of this process.

        Returns
        -------
        (n, C, size, size) float32.
        """
        centers = np.asarray(xy, dtype=np.float64)
        side = self.span if span is None else _check.positive(span, "span", "pixels")
        steps = (np.arange(_check.at_least_one(size, "size")) + 0.5) * (side / size)
        start = np.floor(centers - side / 2 + 0.5)[:, None, :] + steps[None, :, None]
        x = np.broadcast_to(start[:, None, :, 0], (len(centers), size, size))
        y = np.broadcast_to(start[:, :, None, 1], (len(centers), size, size))
        found = self._at(np.stack([x, y], axis=-1), np.arange(self.shape[0]), workers)
        return np.ascontiguousarray(found.swapaxes(0, 1))

    def to_sparse(self, *, workers: int | None = None) -> sparse.csr_matrix:
        """All of it as a matrix, (C, H · W): row c is channel c, flat.

        Parameters
        ----------
        workers
            Threads; ``None``: ``$STFAST_WORKERS``, else the CPUs of this process.
        """
        _, height, width = self.shape
        x = (np.arange(width) + 0.5) / self.scale
        step, spots = max(1, _STRIPE // width), []
        for first in range(0, height, step):
            y = (np.arange(first, min(first + step, height)) + 0.5) / self.scale
            grid = np.stack(np.meshgrid(x, y), axis=-1)
            spots.append(self.spots(grid, workers=workers).ravel())
        spot = np.concatenate(spots)
        pixels = np.flatnonzero(spot >= 0)
        ones = (np.ones(len(pixels), np.float32), (spot[pixels], pixels))
        covers = sparse.csr_matrix(ones, shape=(len(self._xy), height * width))
        return sparse.csr_matrix(self._values.T @ covers)


def rasterize(
    adata: AnnData,
    genes: Sequence[str] | None = None,
    *,
    mpp: float | None = None,
    scale: float | None = None,
    layer: str | None = None,
) -> Raster:
    """Genes as channels of an image that is aligned with the slide's picture.

    Parameters
    ----------
    adata
        A slide as :func:`read` gives it: values, centres and the spots' diameter.
    genes
        Names of the channels; ``None``: all.
    mpp
        µm of a pixel.
    scale
        Pixels for one of the picture, instead; of neither, 1.
    layer
        Layer instead of ``X``.

    Returns
    -------
    Raster
        Sliced like an array (C, H, W); ``to_sparse`` and ``tiles`` give other forms. A spot
        is a circle of its diameter, a bin of Visium HD a square; where spots overlap, the
        nearest one counts.

    Raises
    ------
    ValueError
        A gene the slide does not have, both or bad resolutions, or pixels larger than a
        spot: sum the bins first (:func:`aggregate_bins`).
    """
    adata = _lazy.tables(adata)
    names = list(adata.var_names if genes is None else genes)
    columns = adata.var_names.get_indexer(names)
    if (columns < 0).any():
        lost = names[int(np.flatnonzero(columns < 0)[0])]
        raise ValueError(f"genes: expected the slide's, got {lost!r}")
    span, factor = _spatial.spot_span(adata), _scale(adata, mpp, scale)
    if factor * span < 1:
        raise ValueError(
            f"mpp: expected pixels no larger than a spot ({span:g} pixels of the picture), "
            f"got {1 / factor:g}; aggregate the bins first"
        )
    matrix = adata.X if layer is None else adata.layers[layer]
    values = _lazy.csr(matrix[:, columns], "X" if layer is None else layer)
    values = values.astype(np.float32, copy=False)
    square = "bin_size_um" in _spatial.library(adata)[1]["scalefactors"]
    return Raster(
        values,
        _spatial.centers(adata),
        genes=names,
        picture=_picture(adata),
        scale=factor,
        span=span,
        square=square,
    )


def _scale(adata: AnnData, mpp: float | None, scale: float | None) -> float:
    if mpp is not None and scale is not None:
        raise ValueError(f"scale: expected none beside mpp, got {scale!r}")
    if mpp is not None:
        return _spatial.mpp(adata) / _check.positive(mpp, "mpp", "µm")
    return 1.0 if scale is None else _check.positive(scale, "scale", "pixels")


def _picture(adata: AnnData) -> tuple[int, int]:
    """Height and width of the slide's picture."""
    from stfast.images import open_image

    height, width = open_image(_spatial.image_path(adata)).shape
    return height, width
