"""The records that cross the border to Rust, each once: the native module reads their names.

Rust asks for a record's fields by attribute, so these are plain frozen dataclasses, and
``_core.pyi`` names the same classes. What a field means is said here and nowhere else.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import polars as pl

    from stfast._core import Level

Strings = tuple[NDArray[np.uint8], NDArray[np.int64]]
"""Bytes of texts laid end to end, and where each starts and the last one ends."""


LARGEST = 65_535
"""Most pixels that a tile's side may have."""

LARGEST_SPAN = 32_000
"""Most pixels that a window's side may have: 3 GiB a window."""


@dataclass(frozen=True, kw_only=True)
class Header:
    """A level's grid of blocks and their coding.

    ``offsets`` and ``lengths`` locate the blocks in the file, in bytes, row by
    row of the grid; where samples are stored in planes, plane by plane. A block
    that the file leaves out has length 0. ``pick`` says which samples are shown as
    red, green and blue (``None``: what they mean), ``chroma`` how many columns and
    rows share a chroma sample. ``codec`` is ``"imagecodecs"`` where the native
    module has none.
    """

    width: int
    height: int
    block_width: int
    block_height: int
    codec: str
    colour: str
    offsets: NDArray[np.uint64] = field(repr=False)
    lengths: NDArray[np.uint64] = field(repr=False)
    samples: int = 3
    padded: bool = False
    planar: bool = False
    bits: int = 8
    big_endian: bool = False
    differenced: bool = False
    chroma: tuple[int, int] = (1, 1)
    pick: tuple[int, int, int] | None = None
    palette: bytes = field(default=b"", repr=False)
    tables: bytes = field(default=b"", repr=False)
    page: int = 0


@dataclass(frozen=True)
class Places:
    """Windows in levels: edges and sides in a level's pixels; ``size``: side of a tile in pixels.

    ``source`` numbers the level of each window. Without a size a tile is its window.
    """

    levels: "Sequence[Level]"
    source: NDArray[np.uint32]
    left: NDArray[np.float64]
    top: NDArray[np.float64]
    width: NDArray[np.float64]
    height: NDArray[np.float64]
    size: int | None


@dataclass(frozen=True)
class Style:
    """How tiles are cut: the grey of what lies outside, the border, the filter, leniency.

    A lenient cut fills the tiles of damaged blocks and names them; else they are an error.
    """

    fill: int = 255
    border: str = "fill"
    filter: str = "bicubic"
    lenient: bool = False


@dataclass(frozen=True)
class Output:
    """Where and how tiles are written; ``done``: those that an earlier run wrote."""

    container: str
    encoding: str
    quality: int
    folder: PathLike[str]
    names: Strings
    notes: Strings
    order: NDArray[np.uint32]
    per_shard: int
    done: NDArray[np.bool_]


@dataclass(frozen=True)
class Coded:
    """Encoded tiles in files: which file, and where in it; ``first``: number of the first."""

    sources: Sequence[str | PathLike[str]]
    source: NDArray[np.uint32]
    offset: NDArray[np.uint64]
    length: NDArray[np.uint32]
    notes: Strings
    extension: str
    first: int = 0


@dataclass(frozen=True)
class Chunks:
    """The chunks of an HDF5 dataset: their coding, and where they lie in the file."""

    name: str
    shape: tuple[int, ...]
    chunk: tuple[int, ...]
    kind: str
    size: int
    big_endian: bool
    shuffle: int | None
    deflate: int | None
    offsets: NDArray[np.uint64]
    lengths: NDArray[np.uint64]
    masks: NDArray[np.uint32]
    places: NDArray[np.uint64]


def strings(series: "pl.Series") -> Strings:
    """The texts of a series for the native module."""
    lengths = series.str.len_bytes().to_numpy()
    joined = "".join(series.to_list()).encode()
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return np.frombuffer(joined, dtype=np.uint8), offsets


def no_strings() -> Strings:
    """No texts at all."""
    return np.empty(0, dtype=np.uint8), np.empty(0, dtype=np.int64)
