"""The five flavors: what each needs, and the table it makes of a cohort's batches."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stfast import _core
from stfast.hvg import dispersion, passes
from stfast.hvg.dispersion import Cutoffs
from stfast.hvg.moments import GeneMoments
from stfast.hvg.passes import Floats, Run, Sums
from stfast.hvg.ranking import rank
from stfast.hvg.source import Source

Flavor: TypeAlias = Literal[
    "pearson_residuals", "seurat", "seurat_v3", "seurat_v3_paper", "cell_ranger"
]


@dataclass(frozen=True)
class Options:
    """What a call asks for; names are those of :func:`highly_variable_genes`."""

    flavor: Flavor
    n_top_genes: int | None
    theta: float
    clip: float | None
    span: float
    cutoffs: Cutoffs
    n_bins: int
    normalize: bool
    scanpy_compat: bool
    batched: bool = False
    """Whether batches were asked for, of which there may be one."""

    @property
    def raw(self) -> bool:
        """Whether raw counts are wanted."""
        return self.normalize or self.flavor not in ("seurat", "cell_ranger")


@dataclass
class Batch:
    """Spots that genes are ranked over, of one slide or several, and what is known of them."""

    sources: list[Source]
    moments: GeneMoments | None
    name: Any = ""

    @property
    def n(self) -> int:
        """Number of spots."""
        if self.moments is not None:
            return self.moments.n
        return sum(source.n for source in self.sources)

    def counts(self, options: Options, run: Run) -> Sums:
        """Sums of raw counts; what is not whole is said."""
        moments = self.moments
        if moments is not None and options.flavor == "pearson_residuals":
            # Residuals are of totals over the same genes; merging may have lost some.
            moments = moments if moments.covers_totals else None
        sums = moments._sums() if moments else passes.count(self.sources, run)
        if sums.fractional:
            logged = any(source.logged for source in self.sources)
            found = "log1p data" if logged else "values that are not whole, as log1p data are"
            run.say(f"{options.flavor}: expected raw counts, got {found}")
        return sums


def ranked(batches: Sequence[Batch], options: Options, run: Run) -> pd.DataFrame:
    """Pearson residuals and seurat_v3: scores in each batch, ranks over all."""
    n_top, pearson = options.n_top_genes or 0, options.flavor == "pearson_residuals"
    if not all(batch.sources for batch in batches):
        raise ValueError(
            f"{options.flavor}: expected slides for a second pass, got moments alone; "
            "give the slides, and moments="
        )
    counts = [batch.counts(options, run) for batch in batches]
    if pearson:
        clip = options.clip
        if clip is None and options.scanpy_compat:
            clip = float(np.sqrt(min(batches, key=lambda batch: batch.name).n))
        scores = [
            _pearson(batch, sums, options.theta, clip, run)
            for batch, sums in zip(batches, counts, strict=True)
        ]
    else:
        scores = [
            _standardized(batch, sums, options.span, run)
            for batch, sums in zip(batches, counts, strict=True)
        ]
    stacked = np.stack(scores)
    first = options.flavor == "seurat_v3"
    found = rank(stacked, n_top, rank_first=first, as_scanpy=options.scanpy_compat)
    means, variances = _together(counts).mean_variance()
    table = pd.DataFrame({"means": means, "variances": variances})
    of_batches = {"highly_variable_nbatches": found.n_batches}
    if pearson:
        table["residual_variances"] = stacked.mean(axis=0)
        of_batches["highly_variable_intersection"] = found.n_batches == len(batches)
        table = table.assign(highly_variable_rank=found.rank, **of_batches)
    else:
        table = table.assign(**of_batches, highly_variable_rank=found.rank)
        table["variances_norm"] = stacked.mean(axis=0)
    return table.assign(highly_variable=found.chosen)


def _together(counts: Sequence[Sums]) -> Sums:
    """Sums over all batches."""
    if len(counts) == 1:
        return counts[0]
    whole = all(sums.whole for sums in counts)
    kind = np.dtype(np.uint64 if whole else np.float64)
    if whole and sum(float(sums.squares.max(initial=0)) for sums in counts) >= 2**64:
        raise OverflowError("counts: a gene's sum of squares does not fit uint64")
    n = sum(sums.n for sums in counts)
    total: Any = np.stack([sums.sum for sums in counts]).astype(kind).sum(axis=0)
    squares: Any = np.stack([sums.squares for sums in counts]).astype(kind).sum(axis=0)
    return Sums(n, total, squares, None, counts[0].histogram)


def _pearson(batch: Batch, sums: Sums, theta: float, clip: float | None, run: Run) -> Floats:
    bound = np.sqrt(sums.n) if clip is None else clip
    return passes.residuals(batch.sources, sums, (float(theta), float(bound)), run)


def _standardized(batch: Batch, sums: Sums, span: float, run: Run) -> Floats:
    """Variance after clipping, over what is expected at the mean (Stuart et al. 2019)."""
    mean, variance = sums.mean_variance()
    expected = 10 ** _trend(mean, variance, span, run)
    bounds = np.sqrt(expected) * np.sqrt(sums.n) + mean
    above = passes.excess(batch.sources, bounds, run)
    # About the unclipped mean: n m² + Σ min(x, c)² - 2 m Σ min(x, c), with the sums exact.
    clipped = above[:, 1] - 2 * mean * above[:, 0]
    standardized = (variance * (sums.n - 1) - clipped) / ((sums.n - 1) * expected)
    return np.asarray(standardized, dtype=np.float64)


def _trend(mean: Floats, variance: Floats, span: float, run: Run) -> Floats:
    """Log10 variance expected at a gene's mean; 0 for genes that do not vary."""
    trend, varies = np.zeros(len(mean)), variance > 0
    x, y = np.log10(mean[varies]), np.log10(variance[varies])
    trend[varies], direct = _core.loess(x, y, float(span), run.threads)
    if direct:
        run.say(
            f"seurat_v3: expected means spread enough for a quadratic over span={span:g} of "
            f"{len(x)} genes, got too many alike: each gene was fitted by itself"
        )
    return trend


def dispersed(batches: Sequence[Batch], options: Options, run: Run) -> pd.DataFrame:
    """Seurat and cell_ranger: normalised dispersions, averaged over batches."""
    tables, chosen = [], []
    for batch in batches:
        table, expressed = _dispersions(batch, options, run)
        tables.append(table)
        chosen.append(_chosen(table, options) & expressed)
    if not options.batched:
        return tables[0].assign(highly_variable=chosen[0])
    table, n_batches = dispersion.combine(tables, chosen)
    if options.n_top_genes is None:
        table["dispersions_norm"] = table["dispersions_norm"].fillna(0)
        best = _chosen(table, options)
    else:
        keys = [-table["dispersions_norm"].to_numpy(), -n_batches]
        if options.scanpy_compat:
            # Equal genes by name, not by position.
            keys.insert(0, np.argsort(np.argsort(batches[0].sources[0].genes)))
        order = np.lexsort(keys)
        best = np.zeros(len(table), dtype=np.bool_)
        best[order[: options.n_top_genes]] = True
    table["highly_variable"] = best
    table["highly_variable_nbatches"] = n_batches
    table["highly_variable_intersection"] = n_batches == len(batches)
    return table


def _chosen(table: pd.DataFrame, options: Options) -> NDArray[np.bool_]:
    score = table["dispersions_norm"].to_numpy()
    if options.n_top_genes is None:
        return options.cutoffs.within(table["means"].to_numpy(), score)
    return dispersion.highest(score, options.n_top_genes, with_ties=options.scanpy_compat)


def _dispersions(
    batch: Batch, options: Options, run: Run
) -> tuple[pd.DataFrame, NDArray[np.bool_]]:
    """Table of a batch, and which genes are in it.

    A batch, also an only one, is told of the genes that it expresses; the others enter
    with zeros, as in scanpy.
    """
    mean, variance = _expression(batch, options, run)
    if not np.isfinite(mean).all():
        raise ValueError(f"{options.flavor}: expected log1p data, got values beyond any logarithm")
    kept = mean > 0 if options.batched else np.ones(len(mean), dtype=np.bool_)
    if options.flavor == "seurat":
        table = dispersion.seurat(mean[kept], variance[kept], options.n_bins)
    else:
        table = dispersion.cell_ranger(mean[kept], variance[kept])
    if not kept.all():
        table = table.set_index(np.flatnonzero(kept)).reindex(range(len(mean)), fill_value=0.0)
    return table, kept


def _expression(batch: Batch, options: Options, run: Run) -> tuple[Floats, Floats]:
    """Mean and variance of what the flavor looks at: expression, or its logarithm."""
    seurat = options.flavor == "seurat"
    if batch.moments is not None:
        return _from_moments(batch.moments, options)
    sources, factor = batch.sources, 1.0
    scale: passes.Scale = ("stored", 1.0, None)
    if options.normalize and seurat:
        scale = ("share", 1.0, None)
    elif options.normalize:
        counts = batch.counts(options, run)
        target = _target(counts.histogram, sources, options)
        scale = ("log1p", 1.0, [_factors(totals, target) for totals in counts.totals or []])
    elif seurat:
        base = sources[0].log_base
        scale = ("expm1", 1.0 if base is None else float(np.log(base)), None)
    found = passes.value_sums(sources, scale, run)
    _wants(options, found.seen, found.sums, run)
    if scale[0] == "share":
        factor = _target(passes.histogram_of(found.totals), sources, options)
    m2 = passes.spread(sources, scale, found, run)
    n = found.n
    return factor * found.sums[:, 0] / n, factor**2 * m2 / (n - 1)


def _wants(options: Options, seen: passes.Flags, sums: Floats, run: Run) -> None:
    """Refuse raw counts where logarithms are needed; say the reverse."""
    if options.normalize and seen.fractional:
        found = "values that are not whole, as log1p data are"
        run.say(f"{options.flavor}: expected raw counts, got {found}")
    if not options.raw and not seen.fractional and sums.any():
        raise ValueError(
            f"{options.flavor}: expected log1p data, got whole numbers; "
            "give normalize=True for raw counts"
        )


def _target(histogram: tuple[Floats, Floats], sources: Sequence[Source], options: Options) -> float:
    """The total that spots are normalised to: the median, of spots with counts."""
    # scanpy's path for sparse matrices takes the median over all spots.
    with_zeros = options.scanpy_compat and all(source.is_sparse for source in sources)
    return passes.median_of(histogram, with_zeros=with_zeros and len(sources) > 0)


def _factors(totals: Floats, target: float) -> Floats:
    """What to multiply each spot by to reach the target; 1 for those without counts."""
    return np.divide(target, totals, out=np.ones_like(totals), where=totals > 0)


def _from_moments(moments: GeneMoments, options: Options) -> tuple[Floats, Floats]:
    counts = moments.kind == "counts"
    if counts != options.normalize:
        found = "those of counts; give normalize=True" if counts else "those of log1p data"
        raise ValueError(f"{options.flavor}: expected moments of other data, got {found}")
    if options.flavor == "cell_ranger":
        if counts:
            raise ValueError("cell_ranger: expected slides for a second pass, got moments alone")
        return moments._sums().mean_variance()
    factor = _target(moments._histogram(), [], options) if counts else 1.0
    sums, n = moments._expression(), moments.n
    return factor * sums[:, 0] / n, factor**2 * passes.deviations(n, sums) / (n - 1)
