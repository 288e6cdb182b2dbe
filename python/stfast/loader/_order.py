"""Which spot stands where in an epoch: orders, and how ranks share them.

An order is a function of (seed, epoch, position). The shuffled ones hold nothing,
whatever the number of spots; those that look at slides or labels are laid out once
an epoch. A global batch is a stretch of the order, and rank r takes every
``world``-th of its positions from r on: 1, 2 and 8 ranks see the same global batches.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from stfast import _core

Sampler = Literal["global", "block", "stratified", "within-slide", "balanced"]

Indices = NDArray[np.int64]

POOL_BLOCKS = 1024
"""Blocks that are shuffled together by ``sampler="block"``."""


@dataclass
class Order:
    """The items ``0..n`` in the order of an epoch.

    ``groups`` is the slide of each item, or its label for ``"balanced"``; global
    batches of ``batch`` items are what ``"within-slide"`` fills from one slide.
    """

    n_items: int
    kind: Sampler | Literal["sequential"]
    seed: int
    batch: int
    block: int = 64
    groups: NDArray[Any] | None = None
    workers: int = 1
    _laid: tuple[int, Indices] | None = field(default=None, init=False)

    @property
    def n(self) -> int:
        """Positions in an epoch; without a label there is none in a balanced one."""
        if self.kind == "balanced":
            return int((self._groups >= 0).sum())
        return self.n_items

    def take(self, epoch: int, start: int, step: int, count: int) -> Indices:
        """The items at positions ``start``, ``start + step``, …, ``count`` of them."""
        positions = start + step * np.arange(count, dtype=np.int64)
        if self.kind == "sequential":
            return positions
        if self.kind == "global":
            return self._permuted(self.n_items, epoch, positions)
        if self.kind == "block":
            return self._blocks(epoch, positions)
        if self._laid is None or self._laid[0] != epoch:
            self._laid = (epoch, self._lay_out(epoch))
        return self._laid[1][positions]

    def _permuted(self, n: int, epoch: int, positions: Indices, stream: int = 0) -> Indices:
        """Items of the permutation of ``0..n``; streams of an epoch are independent."""
        key = (epoch + (stream << 40)) % (1 << 64)
        items = positions.copy()
        _core.epoch_order(n, self.seed % (1 << 64), key, items, self.workers)
        return items

    def _blocks(self, epoch: int, positions: Indices) -> Indices:
        """Blocks in a shuffled order, and items of some blocks shuffled together.

        The items are a ring that starts elsewhere each epoch, so the few that fill
        no block, which come last, are others each time.
        """
        n, size = self.n_items, min(self.block, self.n_items)
        n_blocks, pool = n // size, size * POOL_BLOCKS
        turned = int(self._permuted(n, epoch, np.zeros(1, np.int64), stream=1)[0])
        rows = positions.copy()
        for number in np.unique(positions // pool).tolist():
            held = max(0, min(pool, n_blocks * size - number * pool))
            here = (positions >= number * pool) & (positions < number * pool + held)
            if not here.any():
                continue
            inside = self._permuted(held, epoch, positions[here] - number * pool, 2 + number)
            slot = number * POOL_BLOCKS + inside // size
            rows[here] = self._permuted(n_blocks, epoch, slot) * size + inside % size
        return (rows + turned) % n

    @property
    def _groups(self) -> NDArray[Any]:
        assert self.groups is not None
        return self.groups

    def _lay_out(self, epoch: int) -> Indices:
        every = np.arange(self.n_items, dtype=np.int64)
        shuffled = self._permuted(self.n_items, epoch, every)
        lay = {
            "stratified": self._stratified,
            "within-slide": self._within,
            "balanced": self._balanced,
        }[self.kind]
        return lay(shuffled, epoch)

    def _stratified(self, shuffled: Indices, epoch: int) -> Indices:
        """Each stretch has slides in the shares that they have of the whole."""
        slides = self._groups[shuffled]
        rank, count = _ranks(slides)
        return shuffled[np.argsort((rank + 0.5) / count, kind="stable")]

    def _within(self, shuffled: Indices, epoch: int) -> Indices:
        """Each global batch is of one slide; what fills none is mixed at the end."""
        slides = self._groups[shuffled]
        rank, count = _ranks(slides)
        full = rank < count // self.batch * self.batch
        whole = shuffled[full][np.argsort(slides[full], kind="stable")].reshape(-1, self.batch)
        numbers = np.arange(len(whole), dtype=np.int64)
        turns = self._permuted(len(whole), epoch, numbers, stream=1) if len(whole) else numbers
        return np.concatenate([whole[turns].ravel(), shuffled[~full]])

    def _balanced(self, shuffled: Indices, epoch: int) -> Indices:
        """Labels in turn; one with few spots starts over, in another order."""
        labels = self._groups[shuffled]
        kept, classes = shuffled[labels >= 0], np.unique(labels[labels >= 0])
        turns = np.arange(len(kept), dtype=np.int64)
        items = np.empty(len(kept), dtype=np.int64)
        for place, label in enumerate(classes.tolist()):
            mine, own = turns % len(classes) == place, shuffled[labels == label]
            lap, at = np.divmod(turns[mine] // len(classes), len(own))
            turned = self._permuted(int(lap.max(initial=0)) + 1, epoch, lap, stream=1 + place)
            chosen = self._permuted(len(own), epoch, (at + turned) % len(own), stream=1 + place)
            items[mine] = own[chosen]
        return items


def _ranks(groups: NDArray[Any]) -> tuple[Indices, Indices]:
    """How many of its group stand before each item, and how large its group is."""
    order = np.argsort(groups, kind="stable")
    _, starts, counts = np.unique(groups[order], return_index=True, return_counts=True)
    rank, count = np.empty(len(groups), np.int64), np.empty(len(groups), np.int64)
    rank[order] = np.arange(len(groups)) - np.repeat(starts, counts)
    count[order] = np.repeat(counts, counts)
    return rank, count


@dataclass(frozen=True)
class Shares:
    """How an epoch's batches are divided over ranks.

    Attributes
    ----------
    n
        Positions of the epoch.
    batch
        Spots of a batch on one rank.
    rank, world
        Which rank this is, of how many.
    drop_last
        Leave out the last global batch if it is not full.
    """

    n: int
    batch: int
    rank: int
    world: int
    drop_last: bool

    @property
    def global_batch(self) -> int:
        """Spots of a batch on all ranks together."""
        return self.batch * self.world

    def __len__(self) -> int:
        full, rest = divmod(self.n, self.global_batch)
        return full + (rest > 0 and not self.drop_last)

    def count(self, number: int) -> int:
        """Spots of this rank's part of a global batch."""
        left = min(self.global_batch, self.n - number * self.global_batch) - self.rank
        return -(-left // self.world)


@dataclass(frozen=True)
class ShuffleReport:
    """How well an order mixes slides, which contrastive learning depends on.

    Attributes
    ----------
    companions
        Of a spot in its global batch: other spots of its slide, on average over the
        batches looked at.
    expected
        The same of a full shuffle: (batch − 1) Σ p², p a slide's share of the spots.
    batches
        Batches looked at.
    batch
        Spots of a global batch.
    """

    companions: float
    expected: float
    batches: int
    batch: int

    def __str__(self) -> str:
        return (
            f"{self.companions:.1f} of the {self.batch - 1} others in a batch are of a spot's "
            f"own slide; {self.expected:.1f} in a full shuffle ({self.batches} batches)"
        )


def report_on(order: Order, slides: NDArray[Any], batch: int, epoch: int) -> ShuffleReport:
    """Look at up to 64 batches all over an epoch."""
    batch = min(batch, order.n)
    if batch == 0:
        return ShuffleReport(0.0, 0.0, 0, 0)
    chosen = np.unique(np.linspace(0, order.n // batch - 1, 64).astype(int))
    companions = []
    for number in chosen.tolist():
        counts = np.bincount(slides[order.take(epoch, number * batch, 1, batch)])
        companions.append(float((counts * (counts - 1)).sum() / batch))
    shares = np.bincount(slides) / max(len(slides), 1)
    expected = float((batch - 1) * (shares**2).sum())
    return ShuffleReport(float(np.mean(companions)), expected, len(chosen), batch)
