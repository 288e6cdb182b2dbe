"""The matrix of chosen genes that a dataset has: a recipe's name, and how many genes.

``pearson`` chooses in each slide by itself, so it is part of the slide's stage;
``overlap`` chooses among the genes of all slides, so it is part of the merge.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stfast import _check

if TYPE_CHECKING:
    from anndata import AnnData

RECIPES = ("pearson", "overlap")
PER_SLIDE = ("pearson",)

Chosen = tuple[NDArray[np.float32], list[str]]
"""A slide's matrix, spots × genes, and the genes of its columns."""


@dataclass(frozen=True)
class Recipe:
    """What ``hvg=`` says."""

    name: str
    n: int

    def __str__(self) -> str:
        return f"{self.name}:{self.n}"

    @property
    def per_slide(self) -> int:
        """Genes that a slide's stage is to choose; 0: none."""
        return self.n if self.name in PER_SLIDE else 0


def parse(text: str) -> Recipe:
    """The recipe of ``"pearson:128"``."""
    name, _, number = str(text).partition(":")
    if name not in RECIPES or not number.isdecimal() or int(number) < 1:
        known = " or ".join(f"{recipe}:N" for recipe in RECIPES)
        raise ValueError(f"hvg: expected {known}, got {text!r}")
    return Recipe(name, int(number))


def of_slide(slide: str, adata: "AnnData", n: int, workers: int) -> Chosen:
    """The paper's matrix with a row a spot, zeros where a spot has no counts; its genes."""
    import stfast

    made = stfast.hvg_rank_combined({slide: adata}, n, workers=workers)
    assert made is not None
    matrix = np.zeros((adata.n_obs, n), np.float32)
    matrix[adata.obs_names.get_indexer(made.obs["spot"])] = made.X
    return matrix, made.uns["hvg_genes"].loc[slide].tolist()


def of_all(
    stores: dict[str, Path], spots: dict[str, pl.Series], n: int, *, scratch: Path, workers: int
) -> tuple[int, Iterator[Chosen]]:
    """Each slide's part of the matrix of genes that all share, and its number of columns."""
    import stfast

    _check.at_least_one(len(stores), "slides")
    stfast.hvg_overlap(stores, n, output=scratch, workers=workers)
    made = pl.scan_parquet(scratch)
    genes = [name for name in made.collect_schema().names() if name not in ("slide", "spot")]

    def parts() -> Iterator[Chosen]:
        for slide, names in spots.items():
            rows = made.filter(pl.col("slide") == slide).drop("slide").collect()
            every = pl.DataFrame({"spot": names}).join(
                rows, on="spot", how="left", maintain_order="left"
            )
            yield every.select(pl.col(genes).fill_null(0)).to_numpy().astype(np.float32), genes

    return len(genes), parts()
