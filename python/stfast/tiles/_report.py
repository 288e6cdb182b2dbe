"""What became of the tiles of a call: nothing is lost silently."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Told = tuple[int, int, int, NDArray[np.float32], list[tuple[int, str]]]
"""What the native module says of a call."""


@dataclass(frozen=True)
class TileReport:
    """What a call cut, and from what.

    Attributes
    ----------
    valid
        (n,) float32: share of each window that is pixels of the picture; 1 inside
        it, 0 wholly outside.
    bad
        Tiles that a damaged block belongs to (``on_error="fill"``): number and fault.
    blocks
        Blocks of the image that were touched.
    touched
        Their pixels.
    decoded
        Pixels that were decoded for them.
    output
        Where tiles were written, if they were.
    written
        Tiles written by this call; less than all where it resumed another.
    """

    valid: NDArray[np.float32] = field(repr=False)
    bad: dict[int, str] = field(repr=False)
    blocks: int
    touched: int
    decoded: int
    output: Path | None = None
    written: int = 0

    @property
    def amplification(self) -> float:
        """Pixels decoded per pixel of the blocks touched: 1 if each was decoded once."""
        return self.decoded / self.touched if self.touched else 1.0

    @property
    def outside(self) -> int:
        """Windows that lie wholly outside the picture."""
        return int((self.valid == 0).sum() - sum(self.valid[i] == 0 for i in self.bad))

    @property
    def partial(self) -> int:
        """Windows that lie in part outside the picture, or on damaged blocks."""
        return int(((self.valid > 0) & (self.valid < 1)).sum())

    def first_bad(self, n: int = 10) -> list[tuple[int, str]]:
        """The first few damaged tiles and their faults."""
        return sorted(self.bad.items())[:n]


def report_of(told: Told, **more: Any) -> TileReport:
    """The native module's answer as a report."""
    blocks, touched, decoded, valid, bad = told
    return TileReport(valid, dict(bad), blocks, touched, decoded, **more)
