"""The two matrices of genes that the paper trains on (Chen et al. 2024, STimage-1K4M).

Both are what the paper's code does, scanpy's steps one by one, but streamed: a slide at
a time, a slide on disk block by block. Its traps are kept and said: column k of the
rank-combined matrix is a rank, hence another gene in each slide.
"""

import os
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from scipy import sparse

from stfast import _check, _spatial
from stfast.hvg import dispersion, passes
from stfast.hvg._write import Part, gather
from stfast.hvg.files import Slides, open_slides
from stfast.hvg.moments import GeneMoments, moments_of
from stfast.hvg.passes import Floats, Progress, Run
from stfast.hvg.source import Source, shared_genes

_NOTE = (
    "Column k is the k-th most variable gene of that slide, another gene in each slide: "
    "a column is a rank, not a gene. Names of genes are in hvg_genes, slides by ranks."
)


def hvg_rank_combined(
    slides: Slides,
    n_top_genes: int = 128,
    *,
    layer: str | None = None,
    output: str | os.PathLike[str] | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> AnnData | None:
    """Each slide's most variable genes, best first, all slides below each other.

    Per slide: spots without counts are dropped, genes ranked by Pearson residuals, the
    best kept; then each spot is normalised to the median total of the kept genes, over
    spots that have some, and log1p is taken. The paper's "HVG".

    Parameters
    ----------
    slides
        AnnData or paths (h5ad, zarr, 10x h5, folders) of raw counts: a sequence, or a
        mapping from names.
    n_top_genes
        Genes of each slide.
    layer
        Layer to use instead of ``X``.
    output
        ``.parquet`` or ``.zarr`` to write, a slide at a time, instead of returning.
    workers
        Threads; ``None``: ``$STFAST_WORKERS``, else the CPUs of this process.
        The answer does not depend on it.
    progress
        Called with the number of slides done.

    Returns
    -------
    AnnData or None
        Spots of all slides × ranks (``"0"``, ``"1"``, …), float32, dense; ``obs`` with
        ``slide`` and ``spot``; ``uns["hvg_genes"]``, slides × ranks, has the names of
        genes and ``uns["note"]`` says that a column is a rank. In Parquet: columns
        ``slide``, ``spot`` and the ranks, the names in the file's metadata ``stfast``.

    Raises
    ------
    ValueError
        A slide with fewer genes, without counts, or of values that are not counts.

    Notes
    -----
    Ties go to the gene that comes first. Genes that do not vary are ranked too, as in
    the paper, if a slide has no others.
    """
    n_top = _check.at_least_one(n_top_genes, "n_top_genes")
    sources = open_slides(slides, layer)
    threads = _check.workers(workers)
    genes: dict[str, list[str]] = {}

    def parts() -> Iterator[Part]:
        for done, (name, source) in enumerate(sources.items(), 1):
            chosen, part = _rank_slide(name, source, n_top, Run(threads))
            genes[name] = chosen
            yield part
            if progress is not None:
                progress(done)

    var = pd.DataFrame(index=_spatial.names([str(rank) for rank in range(n_top)]))

    def about() -> dict[str, object]:
        table = pd.DataFrame.from_dict(genes, orient="index", columns=var.index)
        return {"note": _NOTE, "hvg_genes": table}

    return gather(parts(), var, about, output)


def _rank_slide(name: str, source: Source, n_top: int, run: Run) -> tuple[list[str], Part]:
    if len(source.genes) < n_top:
        found = len(source.genes)
        raise ValueError(f"{source.name}: expected at least {n_top} genes, got {found}")
    source = source.held()
    counts = _raw(source, run)
    totals = (counts.totals or [])[0]
    some = totals > 0
    source = source.choose(some)
    kept = replace(
        counts,
        n=source.n,
        totals=[totals[some]],
        histogram=passes.histogram_of([totals[some]]),
    )
    model = (100.0, float(np.sqrt(source.n)))
    variance = passes.residuals([source], kept, model, run)
    best = np.argsort(-variance, kind="stable")[:n_top]
    matrix = _columns(source, best)
    totals = matrix.sum(axis=1, dtype=np.float64)
    _normalize(matrix, totals, passes.median_of(passes.histogram_of([totals])))
    return source.genes[best].tolist(), Part(name, _names(source), matrix)


def _raw(source: Source, run: Run) -> passes.Sums:
    """Sums of a slide's counts, of which there must be some, and only counts."""
    counts = passes.count([source], run)
    if not counts.whole:
        raise ValueError(f"{source.name}: expected raw counts, got values that are not whole")
    if not counts.sum.any():
        raise ValueError(f"{source.name}: expected counts, got none in {source.n} spots")
    return counts


def _columns(source: Source, columns: NDArray[np.intp]) -> NDArray[np.float32]:
    """Some columns, dense."""
    out = np.empty((source.n, len(columns)), dtype=np.float32)
    for part, (data, indices, indptr, n_genes) in source.blocks():
        shape = (len(indptr) - 1, n_genes)
        block = sparse.csr_matrix((data, indices, indptr), shape=shape)
        out[part] = block[:, columns].toarray()
    return out


def _normalize(matrix: NDArray[np.float32], totals: Floats, target: float) -> None:
    """Bring each row to the target total and take log1p, in place, in double precision."""
    factors = np.divide(target, totals, out=np.ones_like(totals), where=totals > 0)
    for first in range(0, len(matrix), 1 << 14):
        rows = slice(first, first + (1 << 14))
        matrix[rows] = np.log1p(matrix[rows] * factors[rows, None])


def _names(source: Source) -> NDArray[np.object_]:
    names = source.table().index.to_numpy(dtype=object)
    return names if source.rows is None else names[source.rows]


def hvg_overlap(
    slides: Slides,
    n_top_genes: int = 100,
    *,
    layer: str | None = None,
    output: str | os.PathLike[str] | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> AnnData | None:
    """The most variable of the genes that all slides have, over all of their spots.

    Genes in common are found from headers; spots and genes without counts are dropped,
    each spot is normalised to the median total of all spots and log1p taken, genes are
    chosen by ``seurat``'s dispersion. The paper's "Overlap-HVG". Slides are read twice,
    block by block, and never together.

    Parameters
    ----------
    slides
        AnnData or paths (h5ad, zarr, 10x h5, folders) of raw counts: a sequence, or a
        mapping from names.
    n_top_genes
        Genes to choose.
    layer
        Layer to use instead of ``X``.
    output
        ``.parquet`` or ``.zarr`` to write, a slide at a time, instead of returning.
    workers
        Threads; ``None``: ``$STFAST_WORKERS``, else the CPUs of this process.
        The answer does not depend on it.
    progress
        Called with the number of slides done, each counted once a pass.

    Returns
    -------
    AnnData or None
        Spots of all slides × chosen genes in the order of the first slide, float32,
        dense; ``obs`` with ``slide`` and ``spot``; ``var`` with scanpy's columns. In
        Parquet: columns ``slide``, ``spot`` and the genes.

    Raises
    ------
    ValueError
        No genes in common, no counts, or values that are not counts.
    """
    n_top = _check.at_least_one(n_top_genes, "n_top_genes")
    named = open_slides(slides, layer)
    genes = shared_genes(list(named.values()))
    named = {name: source.take(genes) for name, source in named.items()}
    run = Run(_check.workers(workers))
    advance = Run(1, progress).advance
    moments = []
    for source in named.values():
        moments.append(moments_of(source, run))
        if moments[-1].kind != "counts":
            raise ValueError(f"{source.name}: expected raw counts, got values that are not whole")
        advance(1)
    cohort = GeneMoments.merge(moments)
    chosen, target = _overlap_genes(cohort, n_top)

    def parts() -> Iterator[Part]:
        for name, source in named.items():
            yield _overlap_slide(name, source, genes.get_indexer(chosen.index), target)
            advance(1)

    return gather(parts(), chosen, dict, output)


def _overlap_genes(cohort: GeneMoments, n_top: int) -> tuple[pd.DataFrame, float]:
    """The chosen genes with what is known of them, and the total of normalised spots."""
    totals, numbers = cohort._histogram()
    n = int(numbers[totals > 0].sum())
    if n < 2:
        raise ValueError(f"slides: expected at least 2 spots with counts, got {n}")
    expressed = cohort.table["nnz"].to_numpy() > 0
    target = passes.median_of((totals, numbers))
    sums = cohort._expression()[expressed]
    m2 = passes.deviations(n, sums)
    table = dispersion.seurat(target * sums[:, 0] / n, target**2 * m2 / (n - 1), 20)
    table.index = cohort.table.index[expressed]
    score = table["dispersions_norm"].to_numpy()
    return table[dispersion.highest(score, n_top, with_ties=False)], target


def _overlap_slide(name: str, source: Source, columns: NDArray[np.intp], target: float) -> Part:
    totals = np.empty(source.n)
    for part, block in source.blocks():
        totals[part] = passes.row_sums(block)
    source = source.choose(totals > 0)
    matrix = _columns(source, columns)
    _normalize(matrix, totals[totals > 0], target)
    return Part(name, _names(source), matrix)
