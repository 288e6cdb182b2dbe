"""What users do today, written as well as we can write it.

Each peer gets the threads it can use, writes into the caller's array where it can, and
is handed its work in the order that suits it best. Modules are imported when called, so
that a bench runs with the peers that are there.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from scipy import sparse

Pixels = NDArray[np.uint8]
Batch = Sequence[Any]
"""Tensors of tiles, genes and spots' indices."""


def copy_arrays(arrays: Sequence[NDArray[Any]], threads: int) -> None:
    """Copy arrays by all threads: the rate of the memory."""
    parts = [part for array in arrays for part in np.array_split(array, 8 * threads)]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(np.copy, parts))


def scipy_bins(
    matrix: sparse.csr_matrix, rows: NDArray[np.int64], cols: NDArray[np.int64], factor: int
) -> tuple[sparse.csr_matrix, NDArray[np.int64], NDArray[np.int64]]:
    """Indicator product, canonical: bins × squares of ones times squares × genes."""
    across = int(cols.max()) // factor + 1
    bins, bin_of_square = np.unique(rows // factor * across + cols // factor, return_inverse=True)
    ones = np.ones(len(rows), dtype=matrix.dtype)
    squares = np.arange(len(rows))
    shape = (len(bins), len(rows))
    summed = sparse.csr_matrix((ones, (bin_of_square, squares)), shape=shape) @ matrix
    summed.sum_duplicates()
    summed.eliminate_zeros()
    return summed, bins // across, bins % across


def scanpy_pearson(matrix: sparse.csr_matrix, n_top_genes: int) -> pd.DataFrame:
    """Pearson-residual genes by scanpy's numba code, on all of its threads."""
    import scanpy as sc

    adata = AnnData(matrix)
    find = sc.experimental.pp.highly_variable_genes
    return find(adata, n_top_genes=n_top_genes, flavor="pearson_residuals", inplace=False)


def scanpy_seurat(matrix: sparse.csr_matrix, n_top_genes: int) -> pd.DataFrame:
    """Seurat's dispersions from raw counts: normalise, log1p, choose."""
    import scanpy as sc

    adata = AnnData(matrix.astype(np.float32))
    sc.pp.normalize_total(adata)
    sc.pp.log1p(adata)
    return sc.pp.highly_variable_genes(
        adata, n_top_genes=n_top_genes, flavor="seurat", inplace=False
    )


def scanpy_seurat_v3(matrix: sparse.csr_matrix, n_top_genes: int) -> pd.DataFrame:
    """seurat_v3's genes by scanpy's numba code and skmisc's loess."""
    import scanpy as sc

    find = sc.pp.highly_variable_genes
    return find(AnnData(matrix), n_top_genes=n_top_genes, flavor="seurat_v3", inplace=False)


def scanpy_pearson_file(path: Path, n_top_genes: int) -> pd.DataFrame:
    """A file loaded by anndata, its genes by scanpy."""
    import anndata

    return scanpy_pearson(anndata.read_h5ad(path).X, n_top_genes)


def scanpy_rank_combined(slides: Mapping[str, Path], n_top_genes: int) -> AnnData:
    """The paper's steps for each slide, dense as it has them, and all slides together."""
    import anndata
    import scanpy as sc

    parts, genes = [], {}
    for name, path in slides.items():
        adata = anndata.read_h5ad(path)
        sc.pp.filter_cells(adata, min_genes=1)
        sc.experimental.pp.highly_variable_genes(adata, n_top_genes=n_top_genes)
        order = adata.var["highly_variable_rank"].dropna().sort_values().index
        best = adata[:, order]
        dense = AnnData(best.X.toarray().astype(np.float32))
        sc.pp.normalize_total(dense)
        sc.pp.log1p(dense)
        parts.append(dense.X)
        genes[name] = list(order)
    table = pd.DataFrame.from_dict(genes, orient="index")
    return AnnData(np.concatenate(parts), uns={"hvg_genes": table})


def read_rows(path: Path) -> None:
    """The arrays of a file's compressed rows, and nothing else."""
    import h5py

    with h5py.File(path) as file:
        for name in ("data", "indices", "indptr"):
            file["X"][name][:]


def read_all(paths: Sequence[Path]) -> None:
    """The arrays of files, one after another."""
    for path in paths:
        read_rows(path)


def numba_marginals() -> Callable[[sparse.csr_matrix], None]:
    """A bare pass: one look at each count, its row summed, its gene added to."""
    import numba

    @numba.njit(parallel=True, boundscheck=False)
    def marginals(data: Any, indices: Any, indptr: Any, n_genes: int, threads: int) -> Any:
        genes = np.zeros((threads, n_genes, 2))
        rows = np.zeros(len(indptr) - 1)
        per = -(-len(rows) // threads)
        for thread in numba.prange(threads):
            mine = genes[thread]
            for row in range(thread * per, min(len(rows), (thread + 1) * per)):
                total = 0.0
                for at in range(indptr[row], indptr[row + 1]):
                    value = float(data[at])
                    total += value
                    mine[indices[at], 0] += value
                    mine[indices[at], 1] += value * value
                rows[row] = total
        return rows, genes

    def call(matrix: sparse.csr_matrix) -> None:
        threads = numba.get_num_threads()
        marginals(matrix.data, matrix.indices, matrix.indptr, matrix.shape[1], threads)

    return call


def numba_two_passes() -> Callable[[sparse.csr_matrix], None]:
    """A bare pass, then another that scatters two numbers a count to its gene."""
    import numba

    marginals = numba_marginals()

    @numba.njit(parallel=True, boundscheck=False)
    def scatter(data: Any, indices: Any, indptr: Any, means: Any, threads: int) -> Any:
        genes = np.zeros((threads, len(means), 2))
        rows = len(indptr) - 1
        per = -(-rows // threads)
        for thread in numba.prange(threads):
            mine = genes[thread]
            for row in range(thread * per, min(rows, (thread + 1) * per)):
                for at in range(indptr[row], indptr[row + 1]):
                    away = data[at] - means[indices[at]]
                    mine[indices[at], 0] += away
                    mine[indices[at], 1] += away * away
        return genes

    def call(matrix: sparse.csr_matrix) -> None:
        marginals(matrix)
        means = np.full(matrix.shape[1], 0.5)
        scatter(matrix.data, matrix.indices, matrix.indptr, means, numba.get_num_threads())

    return call


def scanpy_squares(folder: Path) -> AnnData:
    """The raw 2 µm matrix with positions: scanpy's reader and a join by pandas."""
    import scanpy as sc

    square = folder / "binned_outputs" / "square_002um"
    adata = sc.read_10x_h5(square / "raw_feature_bc_matrix.h5")
    adata.var_names_make_unique()
    positions = pd.read_parquet(square / "spatial" / "tissue_positions.parquet")
    adata.obs = adata.obs.join(positions.set_index("barcode"))
    return adata


def scanpy_bins(folder: Path, factor: int) -> AnnData:
    """2 µm squares binned by scipy, those kept of which any square is in tissue."""
    squares = scanpy_squares(folder)
    rows = squares.obs["array_row"].to_numpy(np.int64)
    cols = squares.obs["array_col"].to_numpy(np.int64)
    summed, bin_rows, bin_cols = scipy_bins(squares.X, rows, cols, factor)
    square = folder / "binned_outputs" / "square_002um"
    positions = pd.read_parquet(square / "spatial" / "tissue_positions.parquet")
    tissue = positions.loc[positions["in_tissue"] == 1, ["array_row", "array_col"]] // factor
    kept = pd.MultiIndex.from_arrays([bin_rows, bin_cols]).isin(
        pd.MultiIndex.from_frame(tissue.drop_duplicates())
    )
    obs = pd.DataFrame({"array_row": bin_rows[kept], "array_col": bin_cols[kept]})
    obs.index = [
        f"s_008um_{row:05}_{col:05}-1"
        for row, col in zip(obs["array_row"], obs["array_col"], strict=True)
    ]
    return AnnData(summed[kept], obs=obs, var=squares.var)


def scanpy_h5(path: Path) -> AnnData:
    """A 10x matrix by scanpy's reader."""
    import scanpy as sc

    adata = sc.read_10x_h5(path)
    adata.var_names_make_unique()
    return adata


def scanpy_mtx(folder: Path) -> AnnData:
    """A 10x matrix in three texts by scanpy's reader; its CSC made CSR."""
    import scanpy as sc

    adata = sc.read_10x_mtx(folder)
    adata.X = sparse.csr_matrix(adata.X)
    return adata


def inflate_chunks(path: Path, threads: int) -> None:
    """Inflate counts and genes of a 10x matrix by zlib and throw them away: the codec's rate."""
    import zlib

    import h5py

    def inflate(mine: Sequence[tuple[int, int]]) -> None:
        with path.open("rb") as file:
            for offset, size in mine:
                file.seek(offset)
                zlib.decompress(file.read(size))

    chunks: list[tuple[int, int]] = []
    with h5py.File(path) as file:
        for name in ("data", "indices"):
            file[f"matrix/{name}"].id.chunk_iter(lambda c: chunks.append((c.byte_offset, c.size)))
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(inflate, [chunks[first::threads] for first in range(threads)]))


def scipy_mtx(path: Path) -> sparse.csr_matrix:
    """Triplets on all threads, then barcodes × genes in CSR."""
    import scipy.io

    # scipy 1.18 warns that 1.20 will return a sparse array unless asked; older ones know no option.
    knows = "spmatrix" in inspect.signature(scipy.io.mmread).parameters
    asked: dict[str, Any] = {"spmatrix": True} if knows else {}
    turned: Any = scipy.io.mmread(path, **asked)
    return sparse.csr_matrix(turned.T)


def torch_epoch(
    files: Sequence[Path], genes: NDArray[np.float32], *, batch_size: int, processes: int
) -> list[Batch]:
    """The paper's way: a PNG a spot, Pillow, genes dense in memory; uint8, not float."""
    import torch

    loader: Any = torch.utils.data.DataLoader(
        PngDataset(files, genes),  # type: ignore[arg-type]
        batch_size=batch_size,
        shuffle=True,
        num_workers=processes,
    )
    return list(loader)


class PngDataset:
    """Tile, genes and index of a spot."""

    def __init__(self, files: Sequence[Path], genes: NDArray[np.float32]) -> None:
        self.files, self.genes = list(files), genes

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Pixels, NDArray[np.float32], int]:
        from PIL import Image

        with Image.open(self.files[index]) as picture:
            return np.array(picture.convert("RGB")), self.genes[index], index
