"""One level of an image, as its file's header describes it."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

NOTHING = 255
"""In ``pick``: a colour that no sample becomes."""


@dataclass(frozen=True, kw_only=True)
class Header:
    """A level's grid of blocks and their coding; the native module reads these names.

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


def picked(channels: Sequence[int]) -> tuple[int, int, int]:
    """One channel is grey, two are red and green, three are red, green and blue."""
    if len(channels) == 1:
        return channels[0], channels[0], channels[0]
    red, green, blue = [*channels, NOTHING][:3]
    return red, green, blue


def whole_file(path: str | os.PathLike[str], codec: str, size: tuple[int, int]) -> Header:
    """An image whose only block is its file."""
    width, height = size
    return Header(
        width=width,
        height=height,
        block_width=width,
        block_height=height,
        codec=codec,
        colour="stream",
        offsets=np.zeros(1, dtype=np.uint64),
        lengths=np.array([Path(path).stat().st_size], dtype=np.uint64),
    )
