"""Slides as their makers write them, read into AnnData.

One file a technology; :func:`read` looks at what lies in a folder and calls the
one that fits.
"""

import os
from pathlib import Path
from typing import Any

from anndata import AnnData

from stfast._core import FormatError
from stfast.readers.st import is_st, read_st
from stfast.readers.visium_hd import is_visium_hd, read_visium_hd

__all__ = ["read", "read_st", "read_visium_hd"]


def read(path: str | os.PathLike[str], **options: Any) -> AnnData:
    """Read a slide, whatever technology it is of.

    Parameters
    ----------
    path
        Folder of a slide: Space Ranger's output for Visium HD (8 µm bins unless
        told otherwise), or a legacy Spatial Transcriptomics folder with counts
        and a picture.
    **options
        Passed on to :func:`read_visium_hd` or :func:`read_st`.

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
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(2, "No such file or directory", str(path))
    if is_visium_hd(path):
        return read_visium_hd(path, **options)
    if is_st(path):
        return read_st(path, **options)
    found = ", ".join(sorted(p.name for p in path.iterdir())[:8]) if path.is_dir() else "a file"
    raise FormatError(
        f"{path}: expected a Visium HD folder (binned_outputs/square_*um) or a Spatial "
        f"Transcriptomics folder (counts .tsv and a picture), got {found or 'an empty folder'}"
    )
