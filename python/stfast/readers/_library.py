"""Pictures, scale factors and µm per pixel of a slide, as scanpy keeps them.

Coordinates stay in full-resolution pixels, as AnnData's conventions ask. Which picture
is the best one at hand, and how much smaller it is, is recorded beside it, and what
cuts tiles scales by that.
"""

import gzip
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from anndata import AnnData
from numpy.typing import NDArray
from PIL import Image

from stfast import _spatial
from stfast._core import FormatError
from stfast._warn import warn
from stfast.images import open_image

SPOT_UM, PITCH_UM = 65.0, 100.0
"""What ``spot_diameter_fullres`` stands for on Visium, and the distance of its spots."""
_TOLERANCE = 0.01
_MPP_TOLERANCE = 0.05


def read_bytes(path: Path) -> bytes:
    """A small file's content, unpacked if it is gzipped."""
    content = path.read_bytes()
    if content[:2] != b"\x1f\x8b":
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError) as error:
        raise FormatError(f"{path}: expected a whole gzip file, got {error}") from error


def read_scalefactors(path: Path) -> dict[str, Any]:
    """Space Ranger's ``scalefactors_json.json``, by whatever name."""
    try:
        factors = json.loads(read_bytes(path))
    except ValueError as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(f"{path}: expected JSON, got {error}") from error
    if not isinstance(factors, dict) or "tissue_hires_scalef" not in factors:
        found = list(factors) if isinstance(factors, dict) else type(factors).__name__
        raise FormatError(f"{path}: expected Space Ranger's scale factors, got {found}")
    for name, value in factors.items():
        known = name.endswith(("_scalef", "_fullres", "_um", "_per_pixel"))
        if known and not (type(value) in (int, float) and 0 < value < np.inf):
            raise FormatError(f"{path}: expected a positive number as {name}, got {value!r}")
    return factors


def read_pixels(path: Path) -> NDArray[np.uint8]:
    """An overview picture, RGB."""
    try:
        with Image.open(io.BytesIO(read_bytes(path))) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError) as error:
        raise FormatError(f"{path}: expected a picture, got {error}") from error


def attach_picture(adata: AnnData, full: Path | None, overviews: dict[str, Path]) -> None:
    """Record the best picture at hand, check its size, flag spots off it.

    Parameters
    ----------
    full
        The full-resolution picture, if there is one.
    overviews
        Files of the hires and lowres pictures that are there.
    """
    _, library = _spatial.library(adata)
    metadata, factors = library["metadata"], library["scalefactors"]
    if full is not None:
        image = open_image(full)
        _check_size(full, image.shape, library)
        _check_mpp(full, image.mpp, factors)
        shape, scale = image.shape, 1.0
        metadata |= {"source_image": "full", "source_image_path": str(full)}
    else:
        kind = next((kind for kind in ("hires", "lowres") if kind in library["images"]), None)
        if kind is None or f"tissue_{kind}_scalef" not in factors:
            return
        scale = float(factors[f"tissue_{kind}_scalef"])
        shape = library["images"][kind].shape[:2]
        metadata |= {"source_image": kind, "source_image_scalef": scale}
        path = overviews.get(kind)
        # A gzipped picture cannot be read block by block: it is shown, but not cut.
        if path is not None and path.exists() and path.suffix != ".gz":
            metadata["source_image_path"] = str(path)
    xy = np.asarray(adata.obsm["spatial"], np.float64) * scale
    adata.obs["in_picture"] = _spatial.in_picture(xy, shape)


def fits(full: tuple[int, int], library: dict[str, Any]) -> bool:
    """Whether a picture has the size that the hires picture and its factor imply."""
    expected = _expected_shape(library)
    return expected is None or bool(np.abs(np.array(full) / expected - 1).max() <= _TOLERANCE)


def _expected_shape(library: dict[str, Any]) -> NDArray[np.float64] | None:
    for kind in ("hires", "lowres"):
        factor = library["scalefactors"].get(f"tissue_{kind}_scalef")
        if kind in library["images"] and factor:
            expected: NDArray[np.float64] = np.array(library["images"][kind].shape[:2]) / factor
            return expected
    return None


def _check_size(path: Path, shape: tuple[int, int], library: dict[str, Any]) -> None:
    expected = _expected_shape(library)
    if expected is None or fits(shape, library):
        return
    ratio = np.array(shape) / expected
    if abs(ratio[0] / ratio[1] - 1) <= _TOLERANCE:
        reason = f"it is the same picture at {ratio.mean():.3g} of the size"
    elif fits(shape[::-1], library):
        reason = "it is turned by a quarter"
    else:
        reason = "its shape is another: is it another picture?"
    warn(
        f"{path}: expected about {expected.round().astype(int).tolist()} pixels "
        f"(hires picture ÷ scale factor), got {list(shape)}: {reason}"
    )


def _check_mpp(path: Path, mpp: float | None, factors: dict[str, Any]) -> None:
    known = factors.get("microns_per_pixel")
    if mpp and known and abs(mpp / known - 1) > _MPP_TOLERANCE:
        warn(
            f"{path}: expected about {known:.4g} µm per pixel, as the array has it, "
            f"got {mpp:.4g} from the picture's own tag: the array's is taken"
        )
