"""Where a loader's consumer is, and what a saved state must say."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

VERSION = 1


@dataclass(frozen=True)
class Position:
    """A place between two batches.

    Attributes
    ----------
    epoch
        Number of the epoch.
    batch
        Batches of it that are done, or were another worker's.
    part
        In one of DataLoader's workers: (p, w), its batches are p, p + w, p + 2w, ….
    """

    epoch: int = 0
    batch: int = 0
    part: tuple[int, int] | None = None

    def begun(self, worker: tuple[int, int] | None) -> "Position":
        """The place in worker (number, workers), or in none of them."""
        workers = None if worker is None else worker[1]
        if self.part is not None and self.part[1] != workers:
            raise ValueError(f"state: expected {self.part[1]} workers, got {workers or 'none'}")
        if worker is None or self.part is not None:
            return self
        number, of = worker
        return Position(self.epoch, self.batch, ((self.batch + number) % of, of))

    def numbers(self, n: int) -> Sequence[int]:
        """Batches to come, of the epoch's ``n``."""
        first, step = self.part or (self.batch, 1)
        return range(self.batch + (first - self.batch) % step, n, step)

    def after(self, number: int) -> "Position":
        """The place after a batch."""
        return Position(self.epoch, number + 1, self.part)

    def settled(self, n: int) -> "Position":
        """The same place, or the next epoch's start where all of ``n`` batches are done.

        A worker cannot tell: others may have batches to come, and it then has none.
        """
        ended = self.part is None and 0 < n <= self.batch
        return Position(self.epoch + 1) if ended else self


def position_of(state: Any, mine: dict[str, Any]) -> Position:
    """The place that a state was saved at; ``mine`` is one of the loader that takes it.

    Raises
    ------
    ValueError
        The state is of other spots, another order or another global batch, or is none.
    """
    if not isinstance(state, dict) or state.get("version") != VERSION:
        found = state.get("version") if isinstance(state, dict) else state
        raise ValueError(f"state: expected version {VERSION}, got {found!r}")
    for key in mine.keys() - {"epoch", "batch", "part"}:
        if state.get(key) != mine[key]:
            raise ValueError(f"state: expected {key} {mine[key]!r}, got {state.get(key)!r}")
    for key in ("epoch", "batch"):
        if not isinstance(state.get(key), int) or state[key] < 0:
            raise ValueError(f"state: expected {key} from 0 on, got {state.get(key)!r}")
    part = state.get("part")
    return Position(state["epoch"], state["batch"], None if part is None else (part[0], part[1]))
