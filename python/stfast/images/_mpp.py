"""How large a pixel is, where the file says so."""

import math
import re
from typing import Any

import tifffile

_PLAUSIBLE = (0.05, 20.0)
"""A resolution outside this range (72 dpi is 353 µm) describes a screen, not a slide."""

_UM = {"µm": 1.0, "μm": 1.0, "um": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6}
"""OME's units of length; both letters that look like a mu."""

Mpp = tuple[float, str] | tuple[None, None]


def plausible(mpp: float | None, source: str) -> Mpp:
    """µm per pixel and its source, if a slide could have it."""
    low, high = _PLAUSIBLE
    if mpp is None or not math.isfinite(mpp) or not low <= mpp <= high:
        return None, None
    return float(mpp), source


def tiff_mpp(tiff: tifffile.TiffFile, page: tifffile.TiffPage) -> Mpp:
    """From the vendor's words, else from the resolution tags; mean of x and y."""
    for source, read in (("aperio", _aperio), ("ome", _ome), ("philips", _philips)):
        found = plausible(read(tiff), source)
        if found[0] is not None:
            return found
    if page.resolutionunit in (2, 3):
        per_um = page.get_resolution("MICROMETER")
        if min(per_um) > 0 and math.isfinite(sum(per_um)):
            return plausible((1 / per_um[0] + 1 / per_um[1]) / 2, "resolution")
    return None, None


def _aperio(tiff: tifffile.TiffFile) -> float | None:
    if not tiff.is_svs:
        return None
    text = tiff.pages.first.description
    mpp = tifffile.tifffile.svs_description_metadata(text).get("MPP")
    return float(mpp) if isinstance(mpp, (int, float)) else None


def _ome(tiff: tifffile.TiffFile) -> float | None:
    if not tiff.is_ome or not tiff.ome_metadata:
        return None
    image: Any = tifffile.xml2dict(tiff.ome_metadata).get("OME", {}).get("Image", {})
    pixels = (image[0] if isinstance(image, list) else image).get("Pixels", {})
    sides = []
    for axis in "XY":
        size, unit = pixels.get(f"PhysicalSize{axis}"), pixels.get(f"PhysicalSize{axis}Unit", "µm")
        if not isinstance(size, (int, float)) or unit not in _UM:
            return None
        sides.append(size * _UM[unit])
    return sum(sides) / 2


def _philips(tiff: tifffile.TiffFile) -> float | None:
    """DICOM's pixel spacing in mm, of the first and largest image."""
    if not tiff.is_philips:
        return None
    text = tiff.pages.first.description
    found = re.search(r'DICOM_PIXEL_SPACING"[^>]*>(?:"|&quot;)([\d.eE+-]+)', text)
    return 1e3 * float(found[1]) if found else None
