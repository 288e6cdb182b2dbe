"""Visium: Space Ranger 1 to 4, 6.5 and 11 mm, as pipelines, downloads and GEO have it."""

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
from anndata import AnnData
from numpy.typing import NDArray

from stfast import _check, _spatial
from stfast._core import FormatError
from stfast._warn import warn
from stfast.images import open_image
from stfast.readers._files import Sample, find_sample, find_samples
from stfast.readers._library import (
    PITCH_UM,
    SPOT_UM,
    attach_picture,
    fits,
    read_pixels,
    read_scalefactors,
)
from stfast.readers._positions import join_positions, read_positions
from stfast.readers.tenx import read_matrix

_PICTURE = re.compile(r".*\.(btf|tiff?|jpe?g|png|svs|ndpi)", re.IGNORECASE)
_NO_SLIDE = re.compile(
    r"(detected|aligned|tissue_(hires|lowres)|cytassist|spatial_)", re.IGNORECASE
)


def is_visium(path: Path) -> bool:
    """Whether a folder holds a matrix of 10x with positions of spots."""
    if not path.is_dir():
        return False
    samples = find_samples(path).values()
    counts = any(
        s.triplets or {"filtered_h5", "raw_h5", "probe_h5"} & set(s.roles) for s in samples
    )
    return counts and any("positions" in s.roles for s in samples)


def read_visium(
    path: str | os.PathLike[str],
    *,
    raw: bool = False,
    sample: str | None = None,
    genome: str | None = None,
    image: str | os.PathLike[str] | None = None,
    workers: int | None = None,
) -> AnnData:
    """Read a Visium slide.

    Parameters
    ----------
    path
        Space Ranger's output folder (or the ``outs`` in it), a folder of files as 10x or
        GEO offer them, prefixed, gzipped or not, in one place or in ``spatial``.
    raw
        All spots of the raw matrix, off the tissue too; else those of the filtered one.
    sample
        In a folder of several samples: the name before the files' own (``GSM123_A``).
    genome
        Of several genomes, the one to read.
    image
        The full-resolution picture; ``None``: looked for in ``path``.
    workers
        Threads; ``None``: ``$STFAST_WORKERS``, else the CPUs of this process.

    Returns
    -------
    AnnData
        Spots × genes by the conventions of :func:`stfast.read`. ``metadata`` says which
        picture is used (``source_image``: full, hires or lowres), how much smaller it is
        than full resolution (``source_image_scalef``), and where µm per pixel are from
        (``mpp_source``). ``obs["in_picture"]`` tells which spots lie on that picture.

    Raises
    ------
    FileNotFoundError
        A file that belongs to the slide is missing.
    FormatError
        A file is not what it should be, no barcode has a position, or several samples.
    ValueError
        No such ``sample`` or ``genome``.

    Notes
    -----
    ``spot_diameter_fullres`` is Space Ranger's: 65 µm of the array (70 µm before 1.1),
    not the 55 µm of a spot. Where no scale factors are, it is derived from the pitch.
    """
    path = Path(path)
    threads = _check.workers(workers)
    if not path.exists():
        raise FileNotFoundError(2, "No such file or directory", str(path))
    found = find_sample(path, sample)
    adata, attributes = read_matrix(_counts(found, raw=raw), genome, threads)
    table = _needed(found, "positions", "positions of spots (tissue_positions*.csv)")
    adata, missed = join_positions(adata, read_positions(table), table)
    name = found.name or _folder_name(path)
    adata.uns["spatial"] = {name: _library(found, adata, attributes, table)}
    full = Path(image) if image is not None else _find_picture(found, adata)
    overviews = {k: path for k, path in found.roles.items() if k in ("hires", "lowres")}
    attach_picture(adata, full, overviews)
    lost = {name: n or None for name, n in missed.items()}
    _spatial.stamp(adata, "read_visium", raw=raw, sample=sample, **lost)
    return adata


def _counts(found: Sample, *, raw: bool) -> Any:
    """The matrix that is asked for; the only one, where there is but one."""
    wanted, other = ("raw", "filtered") if raw else ("filtered", "raw")
    files = found.counts(wanted)
    if files is None and raw and found.counts(other) is not None:
        raise FileNotFoundError(2, "expected a raw matrix, got the filtered one", str(found.folder))
    files = files or found.counts(other) or found.roles.get("probe_h5")
    if files is None:
        what = "expected a 10x matrix (*_feature_bc_matrix.h5 or matrix.mtx), got none"
        raise FileNotFoundError(2, what, str(found.folder))
    return files


def _needed(found: Sample, role: str, what: str) -> Path:
    if role not in found.roles:
        raise FileNotFoundError(2, f"expected {what}, got none", str(found.folder))
    return found.roles[role]


def _folder_name(path: Path) -> str:
    around = path.absolute()
    return around.parent.name if around.name == "outs" else around.name


def _library(
    found: Sample, adata: AnnData, attributes: dict[str, str], table: Path
) -> dict[str, Any]:
    kinds = [kind for kind in ("hires", "lowres") if kind in found.roles]
    images = {kind: read_pixels(found.roles[kind]) for kind in kinds}
    obs = adata.obs
    places = (obs["array_row"].to_numpy(), obs["array_col"].to_numpy())
    pitch = spot_pitch(*places, np.asarray(adata.obsm["spatial"]))
    factors = _scalefactors(found, pitch, table)
    metadata: dict[str, Any] = dict(attributes)
    if "microns_per_pixel" in factors:
        metadata["mpp_source"] = "scale factors"
    elif pitch is not None:
        factors["microns_per_pixel"] = PITCH_UM / pitch
        metadata["mpp_source"] = "array pitch"
    last = obs[["array_row", "array_col"]].max()
    if len(obs):
        metadata["slide_mm"] = 6.5 if last["array_row"] < 78 and last["array_col"] < 128 else 11.0
    return {"images": images, "scalefactors": factors, "metadata": metadata}


def _scalefactors(found: Sample, pitch: float | None, table: Path) -> dict[str, Any]:
    if "scalefactors" in found.roles:
        return read_scalefactors(found.roles["scalefactors"])
    if pitch is None:
        _needed(found, "scalefactors", "scale factors (scalefactors_json.json)")
    assert pitch is not None
    warn(
        f"{table.parent}: expected scalefactors_json.json, got none: the diameter of spots is "
        f"taken as {SPOT_UM:g} µm of the array's pitch, and pictures have no scale"
    )
    return {"spot_diameter_fullres": SPOT_UM / PITCH_UM * pitch}


def spot_pitch(
    rows: NDArray[np.int64], cols: NDArray[np.int64], xy: NDArray[np.float64]
) -> float | None:
    """Pixels from a spot to the next of its row; ``None`` where spots lie on a line.

    Spots of a row are two columns apart, which is 100 µm, and rows 100 · √3 / 2 µm. The
    distance is that of the affine map of all spots, so that rounded positions do not show.
    """
    at = np.column_stack([cols, rows]).astype(np.float64)
    if len(at) < 3 or np.linalg.matrix_rank(at - at.mean(axis=0)) < 2:
        return None
    step = np.linalg.lstsq(at - at.mean(axis=0), xy - xy.mean(axis=0), rcond=None)[0]
    return float(2 * np.hypot(*step[0]))


def _find_picture(found: Sample, adata: AnnData) -> Path | None:
    """The full-resolution picture in the folder: by name, else by its size.

    Without a microscope's picture, positions refer to CytAssist's.
    """
    if "full" in found.roles and found.roles["full"].suffix != ".gz":
        return found.roles["full"]
    _, library = _spatial.library(adata)
    folders = [found.folder / place for place in (".", "microscope_image", "outs", "spatial")]
    others = sorted(
        p
        for folder in folders
        if folder.is_dir()
        for p in folder.iterdir()
        if _PICTURE.fullmatch(p.name) and not _NO_SLIDE.match(p.name)
    )
    candidates = [*others, *[found.roles[r] for r in ("cytassist",) if r in found.roles]]
    known = library["images"] and "tissue_hires_scalef" in library["scalefactors"]
    return next((p for p in candidates if known and _has_size(p, library)), None)


def _has_size(path: Path, library: dict[str, Any]) -> bool:
    try:
        return fits(open_image(path).shape, library)
    except (FormatError, NotImplementedError, OSError):
        return False
