"""Passes over sources: the sums that flavors are made of.

Each takes sources one after another and their blocks in order. The first look at a
source also judges what is stored: values that are no expression raise, and rows that
are out of order, or have a gene twice, are put in order from then on.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from stfast import _check, _core
from stfast.hvg.source import Source

Floats: TypeAlias = NDArray[np.float64]
Progress: TypeAlias = Callable[[int], object]


_ROUNDING = 64 * float(np.finfo(np.float64).eps)


class Flags(NamedTuple):
    """What was seen of stored values; each is a fault of some method."""

    infinite: bool = False
    negative: bool = False
    fractional: bool = False
    large: bool = False
    disordered: bool = False

    def either(self, other: tuple[bool, ...]) -> "Flags":
        """What was seen here or there."""
        return Flags(*(a or b for a, b in zip(self, other, strict=True)))


@dataclass
class Run:
    """How passes run, and what there is to say when they are done."""

    threads: int
    progress: Progress | None = None
    done: int = 0
    notes: list[str] = field(default_factory=list)

    def advance(self, n: int) -> None:
        """Count spots as done."""
        self.done += n
        if self.progress is not None:
            self.progress(self.done)

    def say(self, note: str) -> None:
        """Have the caller warn of something, once."""
        if note not in self.notes:
            self.notes.append(note)


@dataclass
class Sums:
    """Sums per gene over spots: of whole counts as integers, else of values as floats.

    Attributes
    ----------
    n
        Spots.
    sum, squares
        uint64 and exact where all are counts, else float64.
    totals
        Sum of each spot, an array a source; ``None`` where only ``histogram`` is known.
    histogram
        Distinct totals and how many spots have each.
    fractional
        Whether some value is not whole.
    m2
        Sum of squared deviations from the mean, where values were summed with care.
    """

    n: int
    sum: NDArray[np.uint64] | Floats
    squares: NDArray[np.uint64] | Floats
    totals: list[Floats] | None
    histogram: tuple[Floats, Floats]
    fractional: bool = False
    m2: Floats | None = None

    @property
    def whole(self) -> bool:
        """Whether they are exact sums of counts."""
        return self.sum.dtype == np.uint64

    def mean_variance(self) -> tuple[Floats, Floats]:
        """Mean and variance (one degree of freedom less); exactly rounded for counts."""
        n = max(self.n, 1)
        if self.whole:
            return self.sum / n, _exact_variance(n, self.sum, self.squares)
        m2 = self.squares - self.sum * (self.sum / n) if self.m2 is None else self.m2
        return self.sum / n, np.maximum(m2, 0) / max(n - 1, 1)


def _exact_variance(n: int, total: NDArray[Any], squares: NDArray[Any]) -> Floats:
    """``(n Σx² - (Σx)²) / (n (n - 1))``, in whole numbers and rounded once."""
    denominator = max(n * (n - 1), 1)
    large = np.maximum(n * squares.astype(np.float64), total.astype(np.float64) ** 2) > 2**52
    small = np.where(large, 0, squares).astype(np.int64), np.where(large, 0, total).astype(np.int64)
    variance = (n * small[0] - small[1] ** 2) / denominator
    for gene in np.flatnonzero(large):
        numerator = n * int(squares[gene]) - int(total[gene]) ** 2
        variance[gene] = numerator / denominator
    return np.asarray(variance, dtype=np.float64)


def histogram_of(totals: Sequence[Floats]) -> tuple[Floats, Floats]:
    """Distinct totals, ascending, and how many there are of each."""
    values, numbers = np.unique(np.concatenate(totals), return_counts=True)
    return values, numbers.astype(np.float64)


def median_of(histogram: tuple[Floats, Floats], *, with_zeros: bool = False) -> float:
    """Median of totals; of those above zero, unless told otherwise. 1 where there are none."""
    values, numbers = histogram
    if not with_zeros:
        values, numbers = values[values > 0], numbers[values > 0]
    if not len(values):
        return 1.0
    n, up_to = int(numbers.sum()), np.cumsum(numbers)
    at = np.searchsorted(up_to, [(n - 1) // 2, n // 2], side="right")
    return float(values[at].mean())


def _judged(source: Source, seen: Flags) -> None:
    if seen.infinite or seen.negative:
        found = "NaN or infinite values" if seen.infinite else "negative values"
        raise ValueError(f"{source.name}: expected finite values of at least 0, got {found}")


def first_pass(
    source: Source,
    run: Run,
    kernel: Callable[[_check.Matrix, slice], tuple[bool, ...]],
    clear: Callable[[], None],
) -> Flags:
    """Give each block to a kernel that tells what it saw; start anew if rows need order."""
    seen, done = Flags(), run.done
    for part, block in source.blocks():
        seen = seen.either(kernel(block, part))
        _judged(source, seen)
        if seen.disordered and not source.untidy:
            source.seen_untidy()
            clear()
            run.done = done
            return first_pass(source, run, kernel, clear)
        run.advance(part.stop - part.start)
    return seen


def count(sources: Sequence[Source], run: Run) -> Sums:
    """Sums of counts as integers; of values as floats where some are not whole."""
    total = np.zeros((2, len(sources[0].genes)), dtype=np.uint64)
    totals = []
    for source in sources:
        sums, of_rows, seen = _count_source(source, run)
        if seen.fractional or seen.large:
            return _as_values(sources, run)
        if (total[1] > ~sums[1]).any():
            raise OverflowError(f"{source.name}: a gene's sum of squares does not fit uint64")
        total += sums[:2]
        totals.append(of_rows)
    n = sum(source.n for source in sources)
    return Sums(n, total[0], total[1], totals, histogram_of(totals))


def _count_source(source: Source, run: Run) -> tuple[NDArray[np.uint64], Floats, Flags]:
    sums, of_rows = np.zeros((3, len(source.genes)), dtype=np.uint64), np.zeros(source.n)

    def kernel(block: _check.Matrix, part: slice) -> tuple[bool, ...]:
        return _core.add_counts(block, sums.reshape(-1), of_rows[part], run.threads)

    seen = first_pass(source, run, kernel, lambda: sums.fill(0))
    return sums, of_rows, seen


def _as_values(sources: Sequence[Source], run: Run) -> Sums:
    scale: Scale = ("stored", 1.0, None)
    found = value_sums(sources, scale, run)
    total, squares = np.ascontiguousarray(found.sums.T)
    m2 = spread(sources, scale, found, run)
    histogram = histogram_of(found.totals)
    fractional = found.seen.fractional
    return Sums(found.n, total, squares, found.totals, histogram, fractional, m2)


class ValueSums(NamedTuple):
    """Sums of scaled values and of their squares (genes × 2), sums of rows, what was seen."""

    n: int
    sums: Floats
    totals: list[Floats]
    seen: Flags


Scale: TypeAlias = tuple[str, float, list[Floats] | None]
"""Name of a meaning, logarithm of the base, factors of the rows of each source."""


def value_sums(sources: Sequence[Source], scale: Scale, run: Run) -> ValueSums:
    """Sums of what stored values stand for, and of their squares."""
    sums, totals, seen = np.zeros((len(sources[0].genes), 2)), [], Flags()
    for at, source in enumerate(sources):
        of_rows, found = _add_source(source, at, scale, sums, run)
        seen = seen.either(found)
        totals.append(of_rows)
    return ValueSums(sum(source.n for source in sources), sums, totals, seen)


def _add_source(
    source: Source, at: int, scale: Scale, sums: Floats, run: Run
) -> tuple[Floats, Flags]:
    before, of_rows = sums.copy(), np.zeros(source.n)

    def kernel(block: _check.Matrix, part: slice) -> tuple[bool, ...]:
        meaning = _meaning(scale, at, part)
        return _core.add_values(block, meaning, sums.reshape(-1), of_rows[part], run.threads)

    seen = first_pass(source, run, kernel, lambda: np.copyto(sums, before))
    return of_rows, seen


def _meaning(scale: Scale, at: int, part: slice) -> tuple[str, float, Floats | None]:
    name, log_base, factors = scale
    return name, log_base, None if factors is None else factors[at][part]


def deviations(n: int, sums: Floats) -> Floats:
    """Sum of squared deviations from the mean, of sums and sums of squares alone.

    What is below the rounding of the squares is nothing.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        m2 = sums[:, 1] - sums[:, 0] * (sums[:, 0] / max(n, 1))
    m2[m2 <= _ROUNDING * sums[:, 1]] = 0
    return m2


def spread(sources: Sequence[Source], scale: Scale, found: ValueSums, run: Run) -> Floats:
    """Sum of squared deviations from each gene's mean.

    Where squares would cancel, deviations are summed in a pass of their own; what is
    then below the rounding of the mean is nothing.
    """
    n, sums = found.n, found.sums
    m2 = deviations(n, sums)
    cancelled = (m2 < 1e-6 * sums[:, 1]) & (sums[:, 1] > 0)
    if not cancelled.any():
        return m2
    mean, away = sums[:, 0] / max(n, 1), np.zeros_like(sums)
    for at, source in enumerate(sources):
        for part, block in source.blocks():
            meaning = _meaning(scale, at, part)
            _core.add_deviations(block, meaning, mean, away.reshape(-1), run.threads)
    exact = away[:, 0] + (n - away[:, 1]) * mean**2
    exact[exact <= _ROUNDING**2 * sums[:, 1]] = 0
    m2[cancelled] = exact[cancelled]
    return m2


def excess(sources: Sequence[Source], bounds: Floats, run: Run) -> Floats:
    """What counts have above their gene's bound, and their squares; genes × 2."""
    sums = np.zeros((len(bounds), 2))
    for source in sources:
        for part, block in source.blocks():
            _core.add_excess(block, bounds, sums.reshape(-1), run.threads)
            run.advance(part.stop - part.start)
    return sums


def residuals(
    sources: Sequence[Source], counts: Sums, model: tuple[float, float], run: Run
) -> Floats:
    """Population variance of clipped Pearson residuals; 0 for genes without counts."""
    col_sums = np.asarray(counts.sum, dtype=np.float64)
    full_model = (*model, float(col_sums.sum()))
    stored = np.zeros((len(col_sums), 2))
    for at, source in enumerate(sources):
        for part, block in source.blocks():
            rows = row_sums(block) if counts.totals is None else counts.totals[at][part]
            out = stored.reshape(-1)
            _core.add_residuals(block, (rows, col_sums), full_model, out, run.threads)
            run.advance(part.stop - part.start)
    values, numbers = counts.histogram
    some = values > 0
    histogram = values[some], numbers[some]
    zero = _core.zero_residuals(histogram, col_sums, full_model, run.threads).reshape(-1, 2)
    mean = (zero[:, 0] + stored[:, 0]) / counts.n
    variance = (zero[:, 1] + stored[:, 1]) / counts.n - mean * mean
    # Less than the rounding of its parts: the gene follows the model exactly.
    rounding = 32 * np.finfo(float).eps * zero[:, 1] / counts.n
    variance[(col_sums == 0) | (variance < rounding)] = 0
    return np.asarray(variance, dtype=np.float64)


def row_sums(block: _check.Matrix) -> Floats:
    """Sum of each row of a block; exact for counts."""
    up_to = np.concatenate([[0.0], np.cumsum(block[0], dtype=np.float64)])
    return np.diff(up_to[block[2]])
