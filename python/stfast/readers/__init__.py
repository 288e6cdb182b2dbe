"""Slides as their makers write them, read into AnnData.

One file a technology; :func:`read` looks at what lies in a folder and calls the
one that fits.
"""

import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from anndata import AnnData

from stfast._core import FormatError
from stfast.h5 import read_h5ad
from stfast.readers.st import is_st, read_st
from stfast.readers.stimage import read_stimage, read_stimage_coord, read_stimage_meta
from stfast.readers.tenx import read_10x
from stfast.readers.visium import is_visium, read_visium
from stfast.readers.visium_hd import is_visium_hd, read_visium_hd

__all__ = [
    "read",
    "read_10x",
    "read_st",
    "read_stimage",
    "read_stimage_meta",
    "read_visium",
    "read_visium_hd",
]

_FOLDERS = (
    (is_visium_hd, read_visium_hd),
    (is_visium, read_visium),
    (is_st, read_st),
)


def read(path: str | os.PathLike[str], **options: Any) -> AnnData:
    """Read a slide, whatever technology it is of.

    Parameters
    ----------
    path
        Folder of a slide: Space Ranger's output for Visium HD (8 µm bins unless
        told otherwise) or Visium, as it is or as GEO has it, or a legacy Spatial
        Transcriptomics folder with counts and a picture. Or a file: ``.h5ad``, a 10x
        matrix (``.h5``, ``.mtx``), which has no positions, or one of STimage-1K4M's
        ``coord/{slide}_coord.csv``, which stands for its slide.
    **options
        Passed on to :func:`read_visium_hd`, :func:`read_visium`, :func:`read_st` or
        :func:`read_10x`.

    Returns
    -------
    AnnData
        Spots × genes: counts in CSR ``X``; ``obs`` with ``in_tissue``,
        ``array_row``, ``array_col`` and ``in_picture``; ``obsm["spatial"]`` (x, y)
        in full-resolution pixels; ``uns["spatial"][library]`` with images, scale
        factors and metadata.

    Raises
    ------
    FileNotFoundError
        No such folder.
    FormatError
        Nothing in it is recognised.
    ValueError
        An option that the reader does not have.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(2, "No such file or directory", str(path))
    for fits, reader in _FOLDERS:
        if fits(path):
            return _call(reader, path, options)
    suffixes = [suffix for suffix in path.suffixes[-2:] if suffix != ".gz"]
    if path.is_file() and suffixes[-1:] == [".h5ad"]:
        return _call(read_h5ad, path, options)
    if path.is_file() and path.name.endswith("_coord.csv"):
        return _call(read_stimage_coord, path, options)
    if path.is_file() and suffixes[-1:] in ([".h5"], [".mtx"]):
        return _call(read_10x, path, options)
    found = ", ".join(sorted(p.name for p in path.iterdir())[:8]) if path.is_dir() else "a file"
    raise FormatError(
        f"{path}: expected a Visium HD folder (binned_outputs/square_*um), a Visium folder "
        f"(a 10x matrix and tissue_positions) or a Spatial Transcriptomics folder "
        f"(counts .tsv and a picture), got {found or 'an empty folder'}"
    )


def _call(reader: Callable[..., AnnData], path: Path, options: dict[str, Any]) -> AnnData:
    """Call a reader; an option that it does not have is told which it has."""
    _, *known = inspect.signature(reader).parameters
    unknown = [name for name in options if name not in known]
    if unknown:
        raise ValueError(
            f"{path}: expected options of {reader.__name__} ({', '.join(known)}), got {unknown[0]}"
        )
    return reader(path, **options)
