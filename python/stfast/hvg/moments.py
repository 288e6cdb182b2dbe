"""Sums per gene that are made once a slide, kept, and added over any cohort.

Counts are added as integers, so a cohort's sums are those that one pass over all its
slides would give, whatever the order. What is normalised to a median total is kept as
shares of each spot's total; totals are kept as a histogram, so that the median of any
cohort is exact and comes last.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import polars as pl

from stfast import _check, _core, _spatial
from stfast._core import FormatError
from stfast._output import whole
from stfast.hvg.files import Slide, open_source
from stfast.hvg.passes import Floats, Progress, Run, Sums, first_pass, histogram_of
from stfast.hvg.source import Source

_FORMAT_VERSION = 1
_COLUMNS = {
    "n": np.int64,
    "nnz": np.int64,
    "sum": np.uint64,
    "squares": np.uint64,
    "expression_sum": np.float64,
    "expression_squares": np.float64,
}


@dataclass(frozen=True, eq=False)
class GeneMoments:
    """Sums per gene of one slide, or of many.

    Attributes
    ----------
    table
        Genes × columns: ``n`` (spots), ``nnz`` (spots that have the gene), ``sum`` and
        ``squares`` of what is stored (uint64 for counts, exact; float64 for log1p data),
        and ``expression_sum``, ``expression_squares`` (float64) of each count's share of
        its spot's total, or of values taken for log1p with the logarithm undone.
    kind
        ``"counts"``, or ``"values"`` where some are not whole.
    totals
        Total of a spot → number of spots that have it.
    log_base
        Base of the logarithm; ``None`` for natural.

    Examples
    --------
    >>> parts = [stfast.gene_moments(slide) for slide in slides]
    >>> parts[0].write("slide.parquet")
    >>> cohort = stfast.GeneMoments.merge(parts)
    >>> table = stfast.highly_variable_genes(cohort, "seurat", 2000, normalize=True)
    """

    table: pd.DataFrame
    kind: Literal["counts", "values"]
    totals: "pd.Series[int]"
    log_base: float | None = None

    @property
    def n(self) -> int:
        """Number of spots."""
        return int(self.totals.sum())

    @property
    def covers_totals(self) -> bool:
        """Whether the genes are all those that spots' totals are of."""
        values, numbers = self._histogram()
        return self.kind == "counts" and int(values @ numbers) == int(self.table["sum"].sum())

    @classmethod
    def merge(cls, parts: Sequence["GeneMoments"]) -> "GeneMoments":
        """Add moments of several slides, over the genes that all of them have.

        Integers add up exactly, in any order; ``expression_*`` in the order given.

        Raises
        ------
        ValueError
            No parts, counts and log1p data together, no genes in common, or a gene twice.
        OverflowError
            A sum of squares beyond uint64.
        """
        if not parts:
            raise ValueError("moments: expected at least one, got none")
        kinds = {(part.kind, part.log_base) for part in parts}
        if len(kinds) > 1:
            raise ValueError(f"moments: expected one kind of data, got {sorted(map(str, kinds))}")
        genes = parts[0].table.index
        for part in parts:
            if len(parts) > 1 and not part.table.index.is_unique:
                raise ValueError("moments: expected each gene once, got one again")
            genes = genes if genes.equals(part.table.index) else genes[genes.isin(part.table.index)]
        if not len(genes) and len(parts[0].table):
            raise ValueError("moments: expected genes in common, got none")
        tables = [p.table if p.table.index.equals(genes) else p.table.loc[genes] for p in parts]
        table = tables[0].copy()
        for other in tables[1:]:
            table = table + other
            if (table["squares"] < other["squares"]).any():
                raise OverflowError("moments: a gene's sum of squares does not fit uint64")
        totals = pd.concat([part.totals for part in parts]).groupby(level=0).sum()
        return cls(table, parts[0].kind, totals, parts[0].log_base)

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write one Parquet file, whole or not at all."""
        columns = {name: self.table[name].to_numpy() for name in self.table}
        frame = pl.DataFrame({"gene": self.table.index.to_list(), **columns})
        about = {
            "format_version": _FORMAT_VERSION,
            "version": metadata.version("stfast"),
            "kind": self.kind,
            "log_base": self.log_base,
            "totals": self.totals.index.to_list(),
            "spots": self.totals.to_list(),
        }
        with whole(path) as partial:
            frame.write_parquet(partial, metadata={"stfast": json.dumps(about)})

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> "GeneMoments":
        """Read what :meth:`write` wrote.

        Raises
        ------
        FileNotFoundError
            No such file.
        FormatError
            Not moments of genes, damaged, or of a newer format.
        """
        path = Path(path)
        with path.open("rb"):
            pass
        try:
            about = json.loads(pl.read_parquet_metadata(path)["stfast"])
            version = about["format_version"]
            frame = pl.read_parquet(path)
            if version > _FORMAT_VERSION:
                found = f"format {version}: written by stfast {about['version']}"
                raise FormatError(f"{path}: expected at most format {_FORMAT_VERSION}, got {found}")
            columns = {name: frame[name].to_numpy() for name in _COLUMNS}
            index = _spatial.names(frame["gene"].to_list())
            totals = pd.Series(about["spots"], index=about["totals"], dtype=np.int64)
            table = pd.DataFrame(columns, index=index)
            return cls(table, about["kind"], totals, about["log_base"])
        except FormatError:
            raise
        except (pl.exceptions.PolarsError, OSError, LookupError, ValueError, TypeError) as error:
            raise FormatError(f"{path}: expected moments of genes, got {error}") from error

    def _sums(self) -> Sums:
        """As passes over the slides would give them."""
        table = self.table
        histogram = self._histogram()
        kind = np.uint64 if self.kind == "counts" else np.float64
        total, squares = (table[name].to_numpy(dtype=kind) for name in ("sum", "squares"))
        return Sums(self.n, total, squares, None, histogram, self.kind == "values")

    def _expression(self) -> Floats:
        columns = self.table[["expression_sum", "expression_squares"]]
        return np.ascontiguousarray(columns.to_numpy(dtype=np.float64))

    def _histogram(self) -> tuple[Floats, Floats]:
        totals = self.totals.sort_index()
        values = np.asarray(totals.index, dtype=np.float64)
        return values, np.asarray(totals, dtype=np.float64)


def gene_moments(
    adata: Slide | Any,
    *,
    layer: str | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> GeneMoments:
    """Sum each gene of a slide: once a slide, for every cohort it will be in.

    Parameters
    ----------
    adata
        Spots × genes, of counts or of log1p data: AnnData (in memory, backed or lazy), a
        matrix (sparse, dense, or of dask), or a path (h5ad, zarr, 10x h5, a slide's
        folder). Files are read, and dask arrays computed, block by block.
    layer
        Layer to use instead of ``X``.
    workers
        Threads; ``None``: ``$STFAST_WORKERS``, else the CPUs of this process.
        The answer does not depend on it.
    progress
        Called now and then with the number of spots done.

    Returns
    -------
    GeneMoments
        Exact integers for counts; to be written as Parquet, merged over slides, and
        given to :func:`highly_variable_genes`.

    Raises
    ------
    ValueError
        Negative, NaN or infinite values.
    FormatError
        A damaged file.
    """
    run = Run(_check.workers(workers), progress)
    return moments_of(open_source(adata, layer), run)


def moments_of(source: Source, run: Run) -> GeneMoments:
    """Moments of one source, in one pass if it holds counts, else in two."""
    n_genes = len(source.genes)
    ints = np.zeros((3, n_genes), dtype=np.uint64)
    pairs, totals, scratch = np.zeros((2, n_genes, 2)), np.zeros(source.n), np.zeros(source.n)

    def clear() -> None:
        ints.fill(0)
        pairs.fill(0)

    def counts(block: _check.Matrix, part: slice) -> tuple[bool, ...]:
        share = pairs[0].reshape(-1)
        _core.add_values(block, ("share", 1.0, None), share, scratch[part], run.threads)
        return _core.add_counts(block, ints.reshape(-1), totals[part], run.threads)

    def logs(block: _check.Matrix, part: slice) -> tuple[bool, ...]:
        base = 1.0 if source.log_base is None else float(np.log(source.log_base))
        undone, stored = pairs[0].reshape(-1), pairs[1].reshape(-1)
        present = np.bincount(block[1][block[0] != 0], minlength=n_genes)
        ints[2] += present.astype(np.uint64)
        _core.add_values(block, ("expm1", base, None), undone, scratch[part], run.threads)
        return _core.add_values(block, ("stored", 1.0, None), stored, totals[part], run.threads)

    seen = first_pass(source, run, counts, clear)
    whole_counts = not (seen.fractional or seen.large)
    if not whole_counts:
        clear()
        first_pass(source, run, logs, clear)
    sums = ints[:2] if whole_counts else pairs[1].T
    columns = [np.full(n_genes, source.n), ints[2], *sums, *pairs[0].T]
    named = zip(_COLUMNS, columns, strict=True)
    table = pd.DataFrame({name: column.copy() for name, column in named}, index=source.genes)
    table[["n", "nnz"]] = table[["n", "nnz"]].astype(np.int64)
    values, numbers = histogram_of([totals]) if whole_counts else ([0.0], [source.n])
    index = pd.Index(values).astype(np.int64)
    spots = pd.Series(numbers, index=index).astype(np.int64)
    base = None if whole_counts else source.log_base
    return GeneMoments(table, "counts" if whole_counts else "values", spots, base)
