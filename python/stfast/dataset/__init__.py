"""Many slides as one training set: a folder of shards, an index and gene matrices.

``_layout`` says what the folder holds; what builds it and what reads it both go by
that. A :class:`Dataset` is a view of some of its rows: choosing and splitting copy
nothing but row numbers.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stfast import FormatError, _check
from stfast._warn import warn
from stfast.dataset import _layout

if TYPE_CHECKING:
    from anndata import AnnData
    from scipy import sparse

    from stfast.loader import TileLoader
    from stfast.sources import ShardSource
    from stfast.sources.genes import GeneRows, SparseGenes

SplitBy = Literal["slide", "patient", "tissue", "species", "spot"]


class Dataset:
    """A built dataset, or some rows of it.

    Parameters
    ----------
    root
        The folder that ``stfast build`` wrote.

    Attributes
    ----------
    root
        The folder.
    settings
        What the build was asked for, and ``format_version``.
    slides
        A row a slide: the manifest's columns and what was measured.

    Raises
    ------
    FileNotFoundError
        There is no ``dataset.json``.
    FormatError
        The folder is of a newer format, or its index lacks columns.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root).absolute()  # shards are opened later, wherever that is
        self.settings = _settings(self.root)
        self.slides = pl.read_parquet(self.root / _layout.SLIDE_TABLE)
        self._every = _index(self.root)
        self._rows: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        """Spots of this view."""
        return self._every.height if self._rows is None else len(self._rows)

    def __repr__(self) -> str:
        part = "" if self._rows is None else f" of {self._every.height}"
        return f"Dataset({str(self.root)!r}: {len(self)}{part} spots, {self.slides.height} slides)"

    @property
    def rows(self) -> NDArray[np.int64] | None:
        """Row numbers of this view in the whole index; ``None``: all of them."""
        return self._rows

    @property
    def index(self) -> pl.DataFrame:
        """A row a spot of this view, in the order of the shards."""
        return self._every if self._rows is None else self._every[self._rows]

    @property
    def hvg(self) -> NDArray[np.float32]:
        """(n, genes): the recipe's matrix; a memory map, or of a view a copy of its rows."""
        matrix: NDArray[np.float32] = np.load(self.root / _layout.HVG, mmap_mode="r")
        return matrix if self._rows is None else np.asarray(matrix[self._rows])

    @property
    def counts(self) -> "sparse.csr_matrix":
        """(n, genes): all counts of all genes; memory-mapped, or of a view a copy of its rows."""
        from scipy import sparse

        found = self._counts()
        shape = (self._every.height, len(found.names))
        matrix = sparse.csr_matrix(shape, dtype=found.values.dtype)
        matrix.data, matrix.indices = found.values, found.indices
        matrix.indptr = found.indptr  # type: ignore[assignment]
        return matrix if self._rows is None else _rows_of(found, self._rows)

    @property
    def genes(self) -> list[str]:
        """Names of the columns of ``counts``."""
        names: list[str] = pl.read_parquet(self.root / _layout.GENES)["gene"].to_list()
        return names

    @property
    def hvg_genes(self) -> pl.DataFrame:
        """``slide, rank, gene``: which gene is column ``rank`` of ``hvg`` in that slide."""
        return pl.read_parquet(self.root / _layout.HVG_GENES)

    def adata(self, slide: str) -> "AnnData":
        """A slide's AnnData, all of its spots, as it was read.

        Raises
        ------
        ValueError
            The dataset has no such slide.
        """
        import anndata

        if slide not in self.slides["slide"]:
            raise ValueError(f"{self.root}: expected one of its slides, got {slide!r}")
        return anndata.read_zarr(_layout.slide(self.root, slide))

    def filter(self, *predicates: pl.Expr, **equal: Any) -> "Dataset":
        """The spots for which all predicates hold, of the columns of index and slides.

        Parameters
        ----------
        predicates
            polars expressions, such as ``pl.col("n_counts") > 100``.
        equal
            A column and the value, or the list or array of values, that it must have;
            ``None`` is the value where nothing is known.

        Raises
        ------
        ValueError
            There is no such column.
        """
        table = self._joined()
        for column, value in equal.items():
            self._expect(column, table)
            predicates += (pl.col(column).is_in(_values(value), nulls_equal=True),)
        try:
            kept = table.filter(*predicates) if predicates else table
        except pl.exceptions.ColumnNotFoundError as error:
            raise ValueError(f"{self.root}: expected columns of index or slides, {error}") from None
        return self._view(kept["row"].to_numpy())

    def split(
        self,
        by: SplitBy = "slide",
        fractions: Sequence[float] = (0.8, 0.1, 0.1),
        *,
        seed: int = 0,
        names: Sequence[str] = ("train", "val", "test"),
    ) -> "dict[str, Dataset]":
        """Divide the spots so that no slide (or patient, tissue, …) is in two parts.

        Groups are shuffled by the seed, and each, large ones first, goes to the part that
        lacks most of its share of the spots. Groups that are unknown (null) count as one.

        Parameters
        ----------
        by
            What must not be divided. ``"spot"``: nothing; neighbouring spots overlap and
            look alike, so what is measured then is not what a new slide would give.
        fractions
            Shares of the spots, summing to 1.
        seed
            Of the shuffle.
        names
            Of the parts.

        Returns
        -------
        dict of Dataset
            By name; each spot in exactly one.

        Raises
        ------
        ValueError
            Fractions do not sum to 1, or there are fewer groups than parts.
        """
        if not (min(fractions, default=0) > 0 and abs(sum(fractions) - 1) <= 1e-9):
            raise ValueError(f"fractions: expected shares that sum to 1, got {tuple(fractions)}")
        if len(set(names)) != len(fractions) or len(names) != len(fractions):
            raise ValueError(f"names: expected {len(fractions)} different ones, got {list(names)}")
        if by == "spot":
            warn("split by spot: neighbours of a training spot, nearly alike, are in the test set")
            group = np.arange(len(self))
        else:
            self._expect(by, table := self._joined())
            values = table[by].cast(pl.String).fill_null("")
            group = values.rank("dense").to_numpy().astype(np.int64) - 1
        part = _assign(group, fractions, seed, by)
        rows = np.arange(self._every.height) if self._rows is None else self._rows
        return {name: self._view(rows[part == number]) for number, name in enumerate(names)}

    def loader(self, **options: Any) -> "TileLoader":
        """``TileLoader(self, **options)``."""
        from stfast.loader import TileLoader

        return TileLoader(self, **options)

    def source(self, genes: Sequence[str] | str | None = None) -> "ShardSource":
        """All of the dataset's tiles, as a loader takes them."""
        from stfast.sources import ShardSource, Spots, labelled

        index = self._every
        slides = self.slides["slide"].to_list()
        number = index["slide"].replace_strict(
            dict(zip(slides, range(len(slides)), strict=True)), return_dtype=pl.Int32
        )
        labels, classes = labelled([index["label"].to_list()], [index.height])
        xy = index.select("x", "y").to_numpy().astype(np.float32)
        spots = Spots(number.to_numpy(), np.ascontiguousarray(xy), labels, slides, classes)
        shard, offset, length = (index[name].to_numpy() for name in ("shard", "offset", "length"))
        paths = [_layout.shard(self.root, n) for n in range(int(shard.max(initial=0)) + 1)]
        where = (shard, offset, length)
        rows, size = self._gene_rows(genes), int(self.settings["size"])
        return ShardSource(paths, where, spots=spots, genes=rows, size=size)

    def _gene_rows(self, genes: Sequence[str] | str | None) -> "GeneRows":
        from stfast.sources.genes import DenseGenes, PickedGenes, column_numbers

        if genes is None or genes == "hvg":
            matrix = np.load(self.root / _layout.HVG, mmap_mode="r")
            return DenseGenes(self._hvg_names(matrix.shape[1]), matrix.view(np.ndarray))
        counts = self._counts()
        if genes == "counts":
            return counts
        if isinstance(genes, str):
            raise ValueError(f'genes: expected names, "hvg" or "counts", got {genes!r}')
        column_numbers(genes, counts.names, str(self.root))
        return PickedGenes(list(genes), counts)

    def _hvg_names(self, n: int) -> list[str]:
        """Genes of the columns; their ranks where a column is another gene in each slide."""
        table = self.hvg_genes.group_by("rank").agg(pl.col("gene").unique()).sort("rank")
        genes = table["gene"].to_list()
        same = len(genes) == n and all(len(names) == 1 for names in genes)
        return [names[0] for names in genes] if same else [str(rank) for rank in range(n)]

    def _counts(self) -> "SparseGenes":
        from stfast.sources.genes import SparseGenes

        folder = self.root / _layout.COUNTS
        indptr, indices, values = (
            np.load(folder / f"{name}.npy", mmap_mode="r").view(np.ndarray)
            for name in ("indptr", "indices", "values")
        )
        return SparseGenes(self.genes, indptr, indices, values)

    def _joined(self) -> pl.DataFrame:
        """The view's index with the columns of its slides, and ``row`` numbers."""
        numbers = np.arange(self._every.height) if self._rows is None else self._rows
        known = self.index.columns
        others = [name for name in self.slides.columns if name not in known or name == "slide"]
        table = self.index.with_columns(pl.Series("row", numbers, dtype=pl.Int64))
        return table.join(self.slides.select(others), on="slide", how="left", maintain_order="left")

    def _expect(self, column: str, table: pl.DataFrame) -> None:
        if column not in table.columns:
            known = ", ".join(table.columns)
            raise ValueError(f"{self.root}: expected one of the columns {known}, got {column!r}")

    def _view(self, rows: NDArray[np.int64]) -> "Dataset":
        view = object.__new__(Dataset)
        vars(view).update(vars(self), _rows=rows)
        return view


def _values(value: Any) -> list[Any]:
    """One value or many as a list."""
    if isinstance(value, np.ndarray | np.generic):
        return np.ravel(value).tolist()
    several = isinstance(value, list | tuple | set | frozenset | pl.Series)
    return list(value) if several else [value]


def _settings(root: Path) -> dict[str, Any]:
    path = root / _layout.DESCRIPTION
    try:
        settings: dict[str, Any] = json.loads(path.read_bytes())[_layout.SETTINGS]
        version = settings["format_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise FormatError(f"{path}: expected the settings of a build, got {error}") from None
    if version > _layout.FORMAT_VERSION:
        raise FormatError(
            f"{path}: expected format_version up to {_layout.FORMAT_VERSION}, got {version}: "
            "a newer stfast wrote it"
        )
    return settings


def _index(root: Path) -> pl.DataFrame:
    path = root / _layout.INDEX
    table = pl.read_parquet(path)
    lost = [name for name in _layout.INDEX_SCHEMA if name not in table.columns]
    if lost:
        raise FormatError(f"{path}: expected a column {lost[0]!r}, got {table.columns}")
    return table.cast({name: _layout.INDEX_SCHEMA[name] for name in _layout.INDEX_SCHEMA})


def _rows_of(counts: "SparseGenes", rows: NDArray[np.int64]) -> "sparse.csr_matrix":
    from scipy import sparse

    ends = counts.ends(rows)
    total = int(ends[-1]) if len(ends) else 0
    indices, values = np.empty(total, np.int32), np.empty(total, np.float32)
    counts.fill(rows, ends, (indices, values), _check.workers(None))
    indptr = np.concatenate([[0], ends])
    return sparse.csr_matrix((values, indices, indptr), shape=(len(rows), len(counts.names)))


def _assign(
    group: NDArray[np.int64], fractions: Sequence[float], seed: int, by: str
) -> NDArray[np.int64]:
    """The part of each spot: groups in a random order, each to where most is lacking."""
    sizes = np.bincount(group)
    if len(sizes) < len(fractions):
        raise ValueError(f"by: expected at least {len(fractions)} of {by!r}, got {len(sizes)}")
    order = np.random.default_rng(seed).permutation(len(sizes))
    if by == "spot":
        ends = np.rint(np.cumsum(fractions) * len(sizes)).astype(int)
        place = np.empty(len(sizes), np.int64)
        place[order] = np.searchsorted(ends, np.arange(len(sizes)), side="right")
        return place[group]
    order = order[np.argsort(-sizes[order], kind="stable")]
    place, lacking = np.zeros(len(sizes), np.int64), np.array(fractions) * len(group)
    for turn, number in enumerate(order.tolist()):
        left = len(sizes) - turn
        empty = [p for p in range(len(fractions)) if p not in place[order[:turn]]]
        choice = empty[0] if len(empty) == left else int(np.argmax(lacking))
        place[number] = choice
        lacking[choice] -= sizes[number]
    return place[group]
