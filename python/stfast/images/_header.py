"""What readers of headers share: which channels are shown, and an image that is one block."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from stfast._native import Header

NOTHING = 255
"""In ``pick``: a colour that no sample becomes."""


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
