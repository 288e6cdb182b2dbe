"""AnnData's conventions for spatial data, read and written in one place.

``obsm["spatial"]`` holds (x, y) in full-resolution pixels, and
``uns["spatial"][library]`` images, scale factors and metadata: what scanpy,
squidpy and spatialdata read without conversion.
"""

from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import ArrayLike, NDArray


def library(adata: AnnData) -> tuple[str, dict[str, Any]]:
    """Name and contents of the one library in ``uns["spatial"]``."""
    libraries = adata.uns.get("spatial", {})
    if len(libraries) != 1:
        names = ", ".join(map(repr, libraries)) or "none"
        raise ValueError(f'uns["spatial"]: expected one library, got {names}')
    name, contents = next(iter(libraries.items()))
    return str(name), contents


def scalefactor(adata: AnnData, name: str) -> float:
    """A scale factor of the library."""
    factors = library(adata)[1].get("scalefactors", {})
    if name not in factors:
        raise ValueError(f"scalefactors: expected {name!r}, got {', '.join(factors) or 'none'}")
    return float(factors[name])


def centers(adata: AnnData) -> NDArray[np.float64]:
    """Spot centres (x, y) in pixels of the picture that is used, (n, 2)."""
    return full_centers(adata) * image_scale(adata)


def full_centers(adata: AnnData) -> NDArray[np.float64]:
    """Spot centres (x, y) in full-resolution pixels, (n, 2)."""
    if "spatial" not in adata.obsm:
        found = ", ".join(map(repr, adata.obsm)) or "none"
        raise ValueError(f'obsm: expected "spatial", got {found}')
    return np.asarray(adata.obsm["spatial"], dtype=np.float64)


def flags(obs: Any, name: str) -> NDArray[np.float64]:
    """A column of ``obs`` that says yes or no of each spot, as 1 and 0; what is missing is a no.

    Numbers and booleans of any kind, and texts of them, are understood.
    """
    yes = np.zeros(len(obs))
    column: Any = obs[name]
    known = column.notna().to_numpy(dtype=bool)
    values = column[known]
    if not pd.api.types.is_numeric_dtype(values.dtype):
        texts = values.astype(str).str.strip().str.lower()
        values = texts.replace({"true": "1", "false": "0"})
    try:
        yes[known] = values.to_numpy(dtype=np.float64)
    except ValueError:
        wrong = next(text for text in values.unique() if not _is_number(text))
        raise ValueError(f'obs["{name}"]: expected 1 or 0 of each spot, got {wrong!r}') from None
    yes[np.isnan(yes)] = 0  # of the text "nan"
    other = yes[(yes != 0) & (yes != 1)]
    if len(other):
        raise ValueError(f'obs["{name}"]: expected 1 or 0 of each spot, got {other[0]:g}')
    return yes


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def spot_span(adata: AnnData) -> float:
    """Side in pixels of the paper's window: the square of side 2r around a spot."""
    return scalefactor(adata, "spot_diameter_fullres") * image_scale(adata)


def mpp(adata: AnnData) -> float:
    """µm per pixel of the picture that is used."""
    return scalefactor(adata, "microns_per_pixel") / image_scale(adata)


def image_scale(adata: AnnData) -> float:
    """Pixels of the picture that is used for one of full resolution.

    Below 1 where only the hires or the lowres picture is at hand.
    """
    libraries = adata.uns.get("spatial", {})
    metadata = library(adata)[1].get("metadata", {}) if len(libraries) == 1 else {}
    return float(metadata.get("source_image_scalef", 1.0))


def image_path(adata: AnnData) -> Path:
    """The best picture at hand: full resolution, else hires, else lowres."""
    name, contents = library(adata)
    path = contents.get("metadata", {}).get("source_image_path")
    if not path:
        raise ValueError(f"{name}: expected a full-resolution image, got none; give image=")
    return Path(path)


def names(texts: ArrayLike) -> "pd.Index[str]":
    """Names of spots or genes in the dtype that pandas gives text: ``str`` from 3.0 on.

    An index that is forced to be ``object`` equals no other there, such as the same names
    read back from a file. Of no names at all, pandas would not know that they are text.
    """
    index: pd.Index[str] = pd.Index(np.asarray(texts, dtype=object), dtype="str")
    return index


def layers(adata: AnnData) -> dict[str, Any]:
    """The named layers; from anndata 0.13 on, ``adata.layers`` lists ``X`` too, under ``None``."""
    return {name: layer for name, layer in adata.layers.items() if name is not None}


def in_picture(xy: NDArray[np.float64], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Which centres lie within a picture of (height, width) pixels."""
    height, width = shape
    x, y = xy.T
    inside: NDArray[np.bool_] = (x >= 0) & (y >= 0) & (x <= width) & (y <= height)
    return inside


def stamp(adata: AnnData, step: str, **parameters: Any) -> None:
    """Record in ``uns["stfast"]`` what made the object."""
    record = adata.uns.setdefault("stfast", {})
    record["format_version"] = 1
    record["version"] = metadata.version("stfast")
    record[step] = {name: value for name, value in parameters.items() if value is not None}
