"""80/10/10 parts of rows, by spot as in the paper or by whole slides, from a seed."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from sklearn.model_selection import train_test_split

from stfast import _check

ALPHAS = (1.0, 1e-1, 1e-2, 1e-3, 1e-4)
SEEDS = (0, 1, 2, 3, 4)
EXCLUDED = ("undetermined", "Exclude")
"""Labels that the paper leaves out."""

Rows = NDArray[np.int64]
Parts = tuple[Rows, Rows, Rows]


def parts_of_rows(n: int, seed: int) -> Parts:
    """Training, validation and test rows of 0 … n-1, in sorted order before the draw."""
    if n < 10:
        raise ValueError(f"rows: expected at least 10 for parts of 80/10/10, got {n}")
    train, rest = train_test_split(np.arange(n), test_size=0.2, random_state=seed)
    valid, test = train_test_split(rest, test_size=0.5, random_state=seed)
    return train, valid, test


def parts_of_slides(slides: NDArray[np.str_], seed: int) -> Parts:
    """Rows of the slides of each part; no slide is in two parts."""
    names = np.unique(slides)
    if len(names) < 3:
        raise ValueError(f"slides: expected at least 3 to split by slide, got {len(names)}")
    order = np.random.default_rng(seed).permutation(names)
    held = max(1, round(len(names) / 10))
    groups = order[2 * held :], order[held : 2 * held], order[:held]
    train, valid, test = (np.flatnonzero(np.isin(slides, group)) for group in groups)
    return train, valid, test


def features(x: ArrayLike, name: str = "embeddings") -> NDArray[np.float32 | np.float64]:
    """A finite matrix of floats, dense; what is sparse, or of dask, is made so."""
    given: Any = x  # users also pass scipy's matrices, which are no ArrayLike
    array = _check.csr(given, name).toarray() if sparse.issparse(given) else np.asarray(given)
    if array.dtype.kind == "c":
        raise ValueError(f"{name}: expected real numbers, got dtype {array.dtype}")
    if array.dtype not in (np.float32, np.float64):
        array = array.astype(np.float64)
    if array.ndim != 2:
        raise ValueError(f"{name}: expected shape (n, width), got {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name}: expected finite values, got NaN or infinity")
    return array


def same_length(found: int, expected: int, name: str) -> None:
    """Check that there is one value a row."""
    if found != expected:
        raise ValueError(f"{name}: expected {expected} values, one a row, got {found}")


def known(labels: Sequence[str | None], exclude: Sequence[str]) -> NDArray[np.bool_]:
    """Rows whose label is neither missing, empty nor excluded; NaN is missing."""
    return np.array([isinstance(v, str) and v != "" and v not in exclude for v in labels], bool)
