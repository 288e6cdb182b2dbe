"""What slides will need of memory and of disk, estimated from headers before any is read.

Estimates decide which slides run side by side, never what comes out. They count spots and
stored counts where a header says them, and file sizes where none does; the factors are
those measured by ``benches/bench_build.py``.
"""

import gzip
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stfast import _platform
from stfast.dataset import _stage

_BASE = 350 << 20
"""Bytes of a process that has read and stored a small slide."""
_BYTES_A_COUNT = 24
"""Of memory: values and columns as read, once more as written, and what compresses them."""
_STORED_A_COUNT = 8
_BYTES_A_PIXEL = {"jpeg": 0.5, "png": 1.7, "raw": 3.0}
_BYTES_A_MEMBER = 2560
_LARGEST_PICTURE = 1 << 30
"""Most bytes that the decoding of a picture is taken to hold."""
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


@dataclass(frozen=True)
class Need:
    """Of one slide, or of many.

    Attributes
    ----------
    spots
        Number of tiles.
    memory
        Bytes while it is staged.
    disk
        Bytes that it will take in ``staging/``, and about as many in the dataset.
    """

    spots: int
    memory: int
    disk: int


def of_slide(row: dict[str, Any], settings: _stage.Settings) -> Need:
    """What a slide will need."""
    spots, counts, picture = 5000, 0, 0
    # Whatever is wrong with its files is told by its stage.
    with suppress(Exception):
        spots, counts = _sizes(Path(row["path"]), settings)
    with suppress(Exception):
        picture = min(_picture(row), _LARGEST_PICTURE)
    pixels = settings.size**2 * _BYTES_A_PIXEL[settings.tiles]
    disk = spots * (pixels + _BYTES_A_MEMBER + 4 * settings.n_top_genes)
    memory = _BASE + counts * _BYTES_A_COUNT + picture
    return Need(spots, memory, int(disk) + counts * _STORED_A_COUNT)


def of_all(needs: list[Need]) -> Need:
    """What many slides will need: memory of the largest, disk of all."""
    return Need(
        sum(need.spots for need in needs),
        max((need.memory for need in needs), default=0),
        sum(need.disk for need in needs),
    )


def _sizes(path: Path, settings: _stage.Settings) -> tuple[int, int]:
    """Spots and stored counts of a slide."""
    from stfast.readers._files import find_sample
    from stfast.readers.st import is_st
    from stfast.readers.visium_hd import is_visium_hd

    if path.suffix == ".h5ad":
        return _of_h5ad(path)
    if is_visium_hd(path):
        return _of_visium_hd(path, settings.bin_size)
    if is_st(path):
        return _of_text(path)
    files = find_sample(path).counts("filtered") if path.is_dir() else path
    return _of_matrix(files["matrix"] if isinstance(files, dict) else files)


def _of_matrix(path: Path | None) -> tuple[int, int]:
    from stfast.readers._tenx import count_sizes

    if path is None:
        return 5000, 0
    if ".mtx" not in path.suffixes:
        if path.suffix == ".gz":  # its header costs unpacking all of it
            return 5000, path.stat().st_size
        sizes = count_sizes(path)
        return sizes["barcodes"], sizes["nonzeros"]
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        header = next(line for line in file if not line.startswith(b"%"))
    _, spots, counts = map(int, header.split())
    return spots, counts


def _of_visium_hd(path: Path, bin_size: float) -> tuple[int, int]:
    """Of the bins if they are on disk, else of the squares that they are summed of."""
    from stfast.readers.visium_hd import _folders

    folders = _folders(path)
    size = int(bin_size) if int(bin_size) in folders else min(folders)
    spots, counts = _of_matrix(next(iter(sorted(folders[size].glob("filtered*.h5"))), None))
    return -(-spots * size**2 // int(bin_size**2)), counts


def _of_h5ad(path: Path) -> tuple[int, int]:
    from stfast.h5 import opened

    with opened(path) as file:
        matrix = file["X"]
        if hasattr(matrix, "shape"):
            return int(matrix.shape[0]), int(np.prod(matrix.shape))
        return int(matrix.attrs["shape"][0]), len(matrix["data"])


def _of_text(path: Path) -> tuple[int, int]:
    from stfast.readers.st import _counts_files

    counts = _counts_files(path)[0]
    with gzip.open(counts, "rb") if counts.suffix == ".gz" else counts.open("rb") as file:
        lines = sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))
        size = file.tell()
    return max(lines - 1, 1), 2 * size  # a table is read whole, zeros too


def _picture(row: dict[str, Any]) -> int:
    """Bytes of the slide's largest file but for its counts: its picture, most often."""
    files = [path for root in _stage.inputs(row) for path in _stage.below(root)]
    others = (f for f in files if not re.search(r"\.(h5|h5ad|mtx|[ct]sv|parquet)(\.gz)?$", f.name))
    return max((file.stat().st_size for file in others), default=0)


def memory_of(said: int | str | None) -> int:
    """Bytes of ``"16G"``; by default four fifths of what this machine has free."""
    if said is None:
        return _platform.free_bytes() * 4 // 5
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", str(said).strip(), re.IGNORECASE)
    if isinstance(said, bool) or match is None or float(match[1]) <= 0:
        raise ValueError(f"memory: expected bytes, or a number with K, M, G or T, got {said!r}")
    return int(float(match[1]) * _UNITS[match[2].upper()])
