"""What the gene tower is given: the paper's two matrices, or every gene, sparse.

``"hvg"`` is the dataset's own matrix, by rank; ``"overlap"`` is chosen over the slides
that are trained on and held in memory, 100 numbers a spot; ``"counts"`` is the whole
transcriptome, brought to the median total and log1p'd, a batch at a time.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import polars as pl
import torch

from stfast.dataset import _layout
from stfast.loader import Batch, SparseRows

if TYPE_CHECKING:
    from stfast.dataset import Dataset
    from stfast.loader._batch import Genes

GeneInput = Literal["hvg", "overlap", "counts"]


@dataclass(frozen=True)
class Columns:
    """Names of the gene tower's inputs, and how a batch's are made."""

    kind: GeneInput
    names: list[str]
    target: float = 1.0
    matrix: torch.Tensor | None = None

    @property
    def asked(self) -> str:
        """What the loader is asked for."""
        return "counts" if self.kind == "counts" else "hvg"

    def __call__(self, batch: Batch) -> "Genes":
        """(n, genes) of a batch, where the batch is."""
        if self.matrix is not None:
            return self.matrix[batch.index.cpu()].to(batch.image.device)
        if isinstance(batch.genes, SparseRows):
            return normalized(batch.genes, self.target)
        return batch.genes


def columns_of(
    dataset: "Dataset", kind: GeneInput, *, n_top_genes: int = 100, workers: int | None = None
) -> Columns:
    """The gene tower's inputs for the spots of a dataset or of a view of one."""
    if kind == "hvg":
        matrix = np.load(dataset.root / _layout.HVG, mmap_mode="r")
        return Columns(kind, dataset._hvg_names(matrix.shape[1]))
    if kind == "counts":
        totals = dataset.index["n_counts"].to_numpy()
        return Columns(kind, dataset.genes, target=median_total(totals))
    if kind == "overlap":
        return _overlap(dataset, n_top_genes, workers)
    raise ValueError(f"genes: expected hvg, overlap or counts, got {kind!r}")


def median_total(totals: "np.ndarray[tuple[int], np.dtype[np.float64]]") -> float:
    """The median total of the spots that have counts."""
    some = totals[totals > 0]
    return float(np.median(some)) if len(some) else 1.0


def normalized(genes: SparseRows, target: float) -> SparseRows:
    """Each row brought to a total, then log1p: what is zero stays so."""
    rows = torch.repeat_interleave(genes.indptr.diff(), output_size=len(genes.values))
    totals = genes.values.new_zeros(len(genes)).index_add_(0, rows, genes.values)
    values = torch.log1p(genes.values * (target / totals.clamp(min=1e-30))[rows])
    return SparseRows(genes.indptr, genes.indices, values, genes.n_genes)


def _overlap(dataset: "Dataset", n_top_genes: int, workers: int | None) -> Columns:
    """The paper's Overlap-HVG over the slides of the view; zeros for spots without counts."""
    import stfast

    slides = sorted(set(dataset.index["slide"]))
    paths = {slide: _layout.slide(dataset.root, slide) for slide in slides}
    made = stfast.hvg_overlap(paths, n_top_genes, workers=workers)
    assert made is not None
    known = pl.DataFrame({name: made.obs[name].astype(str).to_list() for name in ("slide", "spot")})
    every = dataset._every.select("slide", "spot").with_row_index("row")
    rows = known.join(every, on=["slide", "spot"], how="left", maintain_order="left")["row"]
    matrix = np.zeros((dataset._every.height, made.n_vars), np.float32)
    matrix[rows.to_numpy()] = made.X
    return Columns("overlap", made.var_names.tolist(), matrix=torch.from_numpy(matrix))
