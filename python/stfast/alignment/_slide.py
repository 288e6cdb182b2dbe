"""What the check looks at: a reduced picture, spots in its pixels, a sample of the counts."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.spatial import KDTree

from stfast import _check, _lazy, _spatial
from stfast.images import thumbnail

if TYPE_CHECKING:
    from anndata import AnnData

_LONGEST = 1000
_MOST_PLACES, _FEWEST_PLACES = 2500, 400
_DEPTH = 500
"""Counts that a place needs on average: those of a bin of a few µm are mostly chance."""
_LEAST_SPOTS = 10


@dataclass(frozen=True)
class Slide:
    """A slide at the size at which it is compared.

    Attributes
    ----------
    pixels
        (height, width, 3) uint8, the reduced picture.
    xy, in_tissue
        (n, 2) and (n,): all spots, in its pixels.
    pitch
        Distance of neighbouring spots, in its pixels.
    places, counts
        (m, 2) and CSR (m, genes): spots in tissue, neighbours summed where there are many;
        counts are None where there are none.
    spacing
        Distance of neighbouring places, in its pixels.
    scales
        By how much coordinates may be too large, by cause.
    """

    pixels: NDArray[np.uint8]
    xy: NDArray[np.float64]
    in_tissue: NDArray[np.bool_]
    pitch: float
    places: NDArray[np.float64]
    counts: sparse.csr_matrix | None
    spacing: float
    scales: dict[str, float]


def slide_of(adata: "AnnData", workers: int) -> Slide:
    """Reduce a slide's picture, and its spots with it."""
    adata = _lazy.tables(adata)
    pixels, xy, scales = _picture(adata, workers)
    tissue = np.ones(adata.n_obs, bool)
    if "in_tissue" in adata.obs:
        tissue = _spatial.flags(adata.obs, "in_tissue") == 1
    if not np.isfinite(xy).all():
        raise ValueError('obsm["spatial"]: expected finite coordinates, got others')
    if tissue.sum() < _LEAST_SPOTS:
        raise ValueError(f"expected {_LEAST_SPOTS} spots in tissue or more, got {tissue.sum()}")
    places, counts = _places(xy, adata, np.flatnonzero(tissue))
    pitch, spacing = _spacing(xy[tissue]), _spacing(places)
    return Slide(pixels, xy, tissue, pitch, places, counts, spacing, scales)


def _picture(
    adata: "AnnData", workers: int
) -> tuple[NDArray[np.uint8], NDArray[np.float64], dict[str, float]]:
    """The reduced picture, spots in its pixels, and the scales that may be mistaken."""
    name, library = _spatial.library(adata)
    factors, images = library.get("scalefactors", {}), library.get("images", {})
    scale = _spatial.image_scale(adata)
    path = library.get("metadata", {}).get("source_image_path")
    if path and Path(path).exists():
        pixels, reduction = thumbnail(path, _LONGEST, workers=workers)
    else:
        kind = next((kind for kind in ("hires", "lowres") if kind in images), None)
        if kind is None or f"tissue_{kind}_scalef" not in factors:
            raise ValueError(f"{name}: expected a picture, got none; give image= to the reader")
        scale = float(factors[f"tissue_{kind}_scalef"])
        pixels, reduction = _reduced(np.asarray(images[kind]))
    longest = max(pixels.shape) / reduction
    scales = {
        kind: float(factors.get(f"tissue_{kind}_scalef", min(side / longest, 1))) / scale
        for kind, side in (("hires", 2000), ("lowres", 600))
    }
    return pixels, _spatial.full_centers(adata) * scale * reduction, {"full": 1 / scale, **scales}


def _reduced(image: NDArray[Any]) -> tuple[NDArray[np.uint8], float]:
    """A picture in memory, reduced; floats are from 0 to 1, as scanpy has them."""
    from PIL import Image

    if image.dtype.kind == "f":
        image = np.rint(np.clip(image, 0, 1) * 255)
    picture = Image.fromarray(image.astype(np.uint8)).convert("RGB")
    reduction = min(1.0, _LONGEST / max(picture.size))
    size = (max(1, round(picture.width * reduction)), max(1, round(picture.height * reduction)))
    return np.asarray(picture.resize(size, Image.Resampling.BOX)), reduction


def _places(
    xy: NDArray[np.float64], adata: "AnnData", rows: NDArray[np.int64]
) -> tuple[NDArray[np.float64], sparse.csr_matrix | None]:
    """Spots in tissue and their counts; of many, the sums of the squares of a grid."""
    counts = None if adata.X is None else _lazy.csr(adata.X, "X")
    if counts is not None and not counts.has_canonical_format:
        counts = _check.tidied(counts, "X")  # a sum has another logarithm than its parts
    if counts is not None and not (counts.nnz and np.isfinite(counts.data.sum())):
        counts = None
    xy, most = xy[rows], _MOST_PLACES
    if counts is not None:
        depth = counts.sum(dtype=np.float64) * len(rows) / adata.n_obs
        most = int(np.clip(depth / _DEPTH, _FEWEST_PLACES, most))
    if len(xy) <= most:
        return xy, None if counts is None else counts[rows]
    side = max(float(np.sqrt(np.prod(np.ptp(xy, axis=0)) / most)), 1e-9)
    cell = np.floor((xy - xy.min(axis=0)) / side).astype(np.int64)
    _, number, members = np.unique(cell @ [1 << 32, 1], return_inverse=True, return_counts=True)
    middle = [np.bincount(number, axis) / members for axis in xy.T]
    if counts is None:
        return np.column_stack(middle), None
    # Of the type that counts have, no copy of them is made; narrower ones would not hold sums.
    ones = np.ones(len(rows), _check.count_dtype(counts.dtype, "X"))
    belongs: Any = sparse.csr_matrix((ones, (number, rows)), (len(members), adata.n_obs))
    return np.column_stack(middle), belongs @ counts


def _spacing(xy: NDArray[np.float64]) -> float:
    """Median distance to the nearest other spot."""
    far = KDTree(xy).query(xy, 2)[0]
    return max(float(np.median(np.asarray(far)[:, 1])), 1e-6)
