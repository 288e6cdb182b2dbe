"""Where a built dataset keeps what: the one place that both its writer and its readers ask.

A dataset is a folder. Row i of the index, of the gene matrices and of the label
column is one spot, and rows lie in the order of their tiles in the shards, so
reading rows in order reads each shard from end to end.
"""

from pathlib import Path

import polars as pl

FORMAT_VERSION = 1

MARK = ".stfast-build"
"""By which a folder is known as one of a build."""

DESCRIPTION = "dataset.json"
"""Croissant metadata; the settings of the build are under ``SETTINGS``."""

CARD = "README.md"
"""A data card for people, and for Hugging Face."""

SETTINGS = "stfast"
"""Key of the settings: format_version, size, encoding, seed and what else was asked for."""

INDEX = "index.parquet"
"""A row a spot, with at least the columns of ``INDEX_SCHEMA``."""

SLIDE_TABLE = "slides.parquet"
"""A row a slide: the manifest's columns and what was measured; ``slide`` is its key."""

INDEX_SCHEMA: dict[str, type[pl.DataType]] = {
    "slide": pl.String,
    "spot": pl.String,  # the name in the slide's AnnData
    "x": pl.Float64,  # centre in pixels of the slide's picture, level 0
    "y": pl.Float64,
    "r": pl.Float64,  # radius in the same pixels
    "shard": pl.UInt32,
    "offset": pl.UInt64,  # of the encoded tile in its shard's file, in bytes
    "length": pl.UInt32,  # of the encoded tile, in bytes
    "label": pl.String,  # null: none
    "in_tissue": pl.Boolean,
    "n_counts": pl.Float64,
    "n_genes": pl.UInt32,
    "valid": pl.Float32,  # share of the tile's window that is picture
}

HVG = "genes/hvg.npy"
"""(n, genes) float32, C order: the recipe's matrix, by rank for ``hvg_rank_combined``."""

HVG_GENES = "genes/hvg.parquet"
"""``slide, rank, gene``: which gene is column ``rank`` (from 0) in that slide."""

COUNTS = "genes/counts"
"""The whole transcriptome as CSR: ``indptr.npy`` i64, ``indices.npy`` u16 or u32,
``values.npy``; a column a gene of ``GENES``."""

GENES = "genes/genes.parquet"
"""``gene``: the union of all slides' genes, in the order of the columns of ``COUNTS``."""


def shard(root: Path, number: int) -> Path:
    """A tar shard of encoded tiles; raw tiles are ``.npy`` members."""
    return root / "tiles" / f"{number:05}.tar"


def slide(root: Path, name: str) -> Path:
    """A slide's AnnData, zarr v3."""
    return root / "slides" / f"{name}.zarr"


def moments(root: Path, name: str) -> Path:
    """A slide's sums per gene, as ``GeneMoments`` reads them."""
    return root / "genes" / "moments" / f"{name}.parquet"
