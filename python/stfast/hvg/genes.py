"""``highly_variable_genes``: arguments to batches, a table to where it goes."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, TypeGuard, get_args

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from stfast import _check, _spatial
from stfast._warn import warn
from stfast.hvg.dispersion import Cutoffs
from stfast.hvg.files import Slide, Slides, open_slides, open_source
from stfast.hvg.flavors import Batch, Flavor, Options, dispersed, ranked
from stfast.hvg.moments import GeneMoments
from stfast.hvg.passes import Progress, Run
from stfast.hvg.source import Source, shared_genes

Data: TypeAlias = Slide | Slides | GeneMoments | Any

_DISPERSION = ("seurat", "cell_ranger")


def highly_variable_genes(
    adata: Data,
    flavor: Flavor = "pearson_residuals",
    n_top_genes: int | None = None,
    *,
    batch_key: str | None = None,
    theta: float = 100.0,
    clip: float | None = None,
    span: float = 0.3,
    min_mean: float = 0.0125,
    max_mean: float = 3.0,
    min_disp: float = 0.5,
    max_disp: float = np.inf,
    n_bins: int = 20,
    normalize: bool = False,
    layer: str | None = None,
    subset: bool = False,
    inplace: bool = True,
    moments: GeneMoments | None = None,
    scanpy_compat: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
) -> pd.DataFrame | None:
    """Mark the genes whose expression varies most.

    Parameters
    ----------
    adata
        Spots × genes: AnnData, in memory, backed or lazy; a matrix, sparse, dense or of
        dask; a path (h5ad, zarr, 10x h5, a slide's folder), read block by block; a sequence
        or a mapping of AnnData and paths, taken together over the genes they share; or
        :class:`GeneMoments`, for flavors that need no more.
    flavor
        ``"pearson_residuals"``: variance of analytic Pearson residuals, on raw counts
        (Lause et al. 2021). ``"seurat_v3"``, ``"seurat_v3_paper"``: variance after
        clipping over what a local regression expects at the mean, on raw counts
        (Stuart et al. 2019). ``"seurat"``: normalised dispersion, on log1p data (Satija
        et al. 2015). ``"cell_ranger"``: the same with medians (Zheng et al. 2017).
    n_top_genes
        How many genes; needed by Pearson residuals, 2000 for ``"seurat_v3"`` unless
        given. ``None`` with the dispersions: those between the four cutoffs.
    batch_key
        Column of ``obs`` whose values are batches, ranked apart and combined as scanpy
        does; ``"slide"`` with several slides: each is a batch.
    theta, clip
        Pearson: overdispersion, and the residual's bound (``None``: the square root of
        the number of spots of the batch).
    span
        seurat_v3: share of the genes that a local fit looks at.
    min_mean, max_mean, min_disp, max_disp
        Dispersions: cutoffs, all excluded, when ``n_top_genes`` is ``None``.
    n_bins
        Seurat: bins of log mean expression that dispersion is normalised in.
    normalize
        Dispersions: take raw counts, and normalise each spot to the median of spots
        with counts and log1p on the way, without a copy.
    layer
        Layer to use instead of ``X``.
    subset
        Keep only the chosen genes.
    inplace
        Write to ``adata.var`` and ``adata.uns["hvg"]``; else return the table. What is
        no AnnData has its table returned.
    moments
        Merged :func:`gene_moments` of the same spots: spares the first pass.
    scanpy_compat
        Choose the genes that scanpy 1.11.5 chooses where stfast differs on purpose: ties
        at the cut, their order, the first batch's clip, the median over empty spots. So
        does scanpy 1.12.0 to 1.12.3; 1.12.4 takes that median as stfast does without
        ``scanpy_compat``, and from 1.12.2 on batches of ``"seurat_v3"`` have numbers
        that depend on the order of the spots, which is not followed.
    workers
        Threads; ``None``: ``$STFAST_WORKERS``, else the CPUs of this process.
        The answer does not depend on it.
    progress
        Called now and then with the number of spots done, over all passes.

    Returns
    -------
    DataFrame or None
        Genes × columns as scanpy names them: ``means``, ``highly_variable``, and
        ``variances``, ``residual_variances`` or ``variances_norm``,
        ``highly_variable_rank``; or ``dispersions``, ``dispersions_norm``. With
        ``batch_key``, of one batch too, also ``highly_variable_nbatches`` and, but for
        ``"seurat_v3"``, ``highly_variable_intersection``.

    Raises
    ------
    ValueError
        Negative, NaN or infinite values, raw counts where log1p data are needed, fewer
        than two spots, ``n_top_genes`` missing or below 1, spots without a batch.
    KeyError
        No such layer or column of ``obs``.
    FormatError
        A damaged file.

    Warns
    -----
    UserWarning
        Values that are not whole where counts are needed, fewer genes than asked for, a
        batch of one spot (left out), a trend that no quadratic fits.

    Notes
    -----
    Values equal scanpy's (1.11.5 to 1.12.4, but for the above). Counts are summed as
    integers, floats over fixed blocks of 4,096 rows in order. Ties go to the gene that
    comes first.
    """
    options = Options(
        flavor,
        _how_many(flavor, n_top_genes),
        theta=theta,
        clip=clip,
        span=span,
        cutoffs=Cutoffs(min_mean, max_mean, min_disp, max_disp),
        n_bins=n_bins,
        normalize=normalize and flavor in _DISPERSION,
        scanpy_compat=scanpy_compat,
        batched=batch_key is not None,
    )
    run = Run(_check.workers(workers), progress)
    table = _found(*_batches(adata, batch_key, layer, moments, run), options, run)
    for note in run.notes:
        warn(note)
    return _deliver(adata, table, options, batch_key, layer, subset=subset, inplace=inplace)


def _how_many(flavor: str, n_top_genes: int | None) -> int | None:
    if flavor not in get_args(Flavor):
        raise ValueError(f"flavor: expected one of {get_args(Flavor)}, got {flavor!r}")
    if n_top_genes is not None:
        return _check.at_least_one(n_top_genes, "n_top_genes")
    if flavor == "pearson_residuals":
        raise ValueError(f"n_top_genes: expected a number with {flavor}, got None")
    return None if flavor in _DISPERSION else 2000


def _batches(
    data: Data, batch_key: str | None, layer: str | None, moments: GeneMoments | None, run: Run
) -> tuple[list[Batch], "pd.Index[str]"]:
    """What is ranked apart, and the genes that all of it has."""
    if isinstance(data, GeneMoments):
        if batch_key is not None or layer is not None or moments is not None:
            raise ValueError("moments: expected no batch_key, layer or moments= with moments")
        _enough_spots(data.n)
        return [Batch([], data)], data.table.index
    sources = _sources(data, layer)
    genes = shared_genes(sources) if moments is None else moments.table.index
    sources = [_taken(source, genes) for source in sources]
    n = sum(source.n for source in sources)
    _enough_spots(n)
    if len({source.log_base for source in sources}) > 1:
        raise ValueError("slides: expected logarithms of one base, got several")
    if batch_key is None:
        if moments is not None and moments.n != n:
            raise ValueError(f"moments: expected those of {n} spots, got {moments.n}")
        return [Batch(sources, moments)], genes
    if moments is not None:
        raise ValueError("moments: expected none with batch_key, got some")
    apart = _by_slide if batch_key == "slide" and _is_cohort(data) else _by_column
    return _with_two_spots(apart(sources, batch_key), run), genes


def _sources(data: Data, layer: str | None) -> list[Source]:
    return (
        list(open_slides(data, layer).values()) if _is_cohort(data) else [open_source(data, layer)]
    )


def _is_cohort(data: Data) -> TypeGuard[Slides]:
    if isinstance(data, str) or not isinstance(data, (Mapping, Sequence)):
        return False
    items = data.values() if isinstance(data, Mapping) else data
    return all(isinstance(item, (AnnData, str, os.PathLike)) for item in items)


def _taken(source: Source, genes: "pd.Index[str]") -> Source:
    missing = ~genes.isin(source.genes)
    if missing.any():
        first = genes[missing][0]
        raise ValueError(f"{source.name}: expected the genes of moments, got no {first!r}")
    return source.take(genes)


def _enough_spots(n: int) -> None:
    if n < 2:
        raise ValueError(f"spots: expected at least 2, got {n}")


def _by_slide(sources: Sequence[Source], _: str) -> dict[Any, list[Source]]:
    return {f"{at} ({source.name})": [source] for at, source in enumerate(sources)}


def _by_column(sources: Sequence[Source], batch_key: str) -> dict[Any, list[Source]]:
    """The rows of each value of a column of ``obs``, in the order in which they appear.

    Not in that of the values: names of batches shall not change the order of sums.
    """
    batches: dict[Any, list[Source]] = {}
    columns = [_column(source, batch_key) for source in sources]
    if len({column.dtype.kind in "iuf" for column in columns}) > 1:
        # A number equals no text: its spots would be in no batch.
        columns = [column.astype(np.str_) for column in columns]
    for value in pd.unique(np.concatenate(columns).astype(object)):
        of_value = [(s, c == value) for s, c in zip(sources, columns, strict=True)]
        batches[value] = [source.choose(rows) for source, rows in of_value if rows.any()]
    return batches


def _column(source: Source, batch_key: str) -> NDArray[Any]:
    obs = source.table()
    if batch_key not in obs:
        raise KeyError(f"batch_key: expected one of {list(obs)}, got {batch_key!r}")
    column = obs[batch_key]
    missing = int(column.isna().sum())
    if missing:
        raise ValueError(f"batch_key: expected a batch for each spot, got none for {missing}")
    if isinstance(column.dtype, pd.CategoricalDtype):
        column = column.astype(column.cat.categories.dtype)
    return column.to_numpy() if column.dtype.kind in "iuf" else column.to_numpy(dtype=np.str_)


def _with_two_spots(batches: dict[Any, list[Source]], run: Run) -> list[Batch]:
    """Batches that have a variance; one of a single spot has none and is left out."""
    kept = []
    for name, sources in batches.items():
        if sum(source.n for source in sources) < 2:
            run.say(f"batch {name}: expected at least 2 spots, got 1: left out")
        else:
            kept.append(Batch(sources, None, name))
    if not kept:
        raise ValueError("batches: expected one of at least 2 spots, got none")
    return kept


def _found(
    batches: list[Batch], genes: "pd.Index[str]", options: Options, run: Run
) -> pd.DataFrame:
    """The table of all genes; fewer chosen than asked for is said."""
    table = (dispersed if options.flavor in _DISPERSION else ranked)(batches, options, run)
    chosen, wanted = int(table["highly_variable"].sum()), options.n_top_genes
    if wanted is not None and chosen < wanted:
        run.say(f"n_top_genes: expected {wanted} genes with a score, got {chosen}: all are chosen")
    return table.set_index(genes)


def _deliver(
    adata: Data,
    table: pd.DataFrame,
    options: Options,
    batch_key: str | None,
    layer: str | None,
    *,
    subset: bool,
    inplace: bool,
) -> pd.DataFrame | None:
    """Return the table, or write it where scanpy writes it."""
    of_batches = ["highly_variable_nbatches", "highly_variable_intersection"]
    if batch_key is None:
        table = table.drop(columns=[name for name in of_batches if name in table])
    if not (inplace and isinstance(adata, AnnData)):
        return table.loc[table["highly_variable"]] if subset else table
    for column in table:
        adata.var[column] = table[column].to_numpy()
    adata.uns["hvg"] = {"flavor": options.flavor}
    if options.flavor == "pearson_residuals":
        adata.uns["hvg"]["computed_on"] = layer or "adata.X"
    asked = {"flavor": options.flavor, "n_top_genes": options.n_top_genes, "batch_key": batch_key}
    _spatial.stamp(adata, "highly_variable_genes", **asked, scanpy_compat=options.scanpy_compat)
    if subset:
        adata._inplace_subset_var(table["highly_variable"].to_numpy())
    return None
