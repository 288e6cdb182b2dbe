"""Highly variable genes: against scanpy, its JIT warm; from memory, from disk, over a cohort."""

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

import stfast
from benches import data, peers
from benches.measure import Case, Contestant, threads

TOP = 2000
SLIDES, OF_PAPER = 200, 1149


def pearson(*, quick: bool) -> Case:
    return _pearson_of(_matrix(quick=quick))


def whole_slide(*, quick: bool) -> Case:
    """A slide of Visium HD at 8 µm."""
    return _pearson_of(data.filled(data.counts(*_whole_slide(quick=quick))))


def _whole_slide(*, quick: bool) -> tuple[int, int, float]:
    return (20_000 if quick else 500_000), 18_000, 150.0


def _pearson_of(matrix: sparse.csr_matrix) -> Case:
    return _case(
        f"Pearson residuals, {_shape(matrix)}, int32",
        matrix,
        ours=lambda m: _genes(AnnData(m), flavor="pearson_residuals"),
        theirs=partial(peers.scanpy_pearson, n_top_genes=TOP),
        equal=partial(_equal, score="residual_variances", rtol=1e-6),
    )


def seurat(*, quick: bool) -> Case:
    matrix = _matrix(quick=quick)
    return _case(
        f"normalize + log1p + seurat from raw counts, {_shape(matrix)}, int32",
        matrix,
        ours=lambda m: _genes(AnnData(m), flavor="seurat", normalize=True),
        theirs=partial(peers.scanpy_seurat, n_top_genes=TOP),
        # scanpy normalises and squares in single precision.
        equal=partial(_equal, score="dispersions_norm", rtol=1e-3),
    )


def seurat_v3(*, quick: bool) -> Case:
    matrix = _matrix(quick=quick)
    return _case(
        f"seurat_v3, {_shape(matrix)}, int32",
        matrix,
        ours=lambda m: _genes(AnnData(m), flavor="seurat_v3"),
        theirs=partial(peers.scanpy_seurat_v3, n_top_genes=TOP),
        equal=partial(_equal, score="variances_norm", rtol=1e-6),
        needs=("scanpy", "skmisc"),
    )


def _case(
    title: str,
    matrix: sparse.csr_matrix,
    *,
    ours: Callable[[sparse.csr_matrix], pd.DataFrame],
    theirs: Callable[[sparse.csr_matrix], pd.DataFrame],
    equal: Callable[[pd.DataFrame, pd.DataFrame], None],
    needs: tuple[str, ...] = ("scanpy",),
) -> Case:
    few = matrix[:2000]
    input_mb = (matrix.data.nbytes + matrix.indices.nbytes + matrix.indptr.nbytes) / 1e6
    return Case(
        title=f"{title}, {input_mb:.0f} MB",
        work=matrix.nnz / 1e6,
        unit="M non-zeros",
        contestants=[
            Contestant(
                name="stfast",
                role="ours",
                threads=threads(),
                call=lambda: ours(matrix),
                warm=lambda: ours(few),
            ),
            Contestant(
                name="scanpy",
                needs=needs,
                threads=threads(),
                call=lambda: theirs(matrix),
                warm=lambda: theirs(few),
            ),
            _bare(matrix, "bare pass: marginals in numba", peers.numba_marginals),
            _bare(matrix, "bare passes: marginals, then a scatter", peers.numba_two_passes),
        ],
        equal=equal,
    )


def _bare(
    matrix: sparse.csr_matrix,
    name: str,
    make: Callable[[], Callable[[sparse.csr_matrix], None]],
) -> Contestant:
    made: list[Callable[[sparse.csr_matrix], None]] = []

    def warm() -> None:
        made.append(make())
        made[0](matrix[:500])

    return Contestant(
        name=name,
        role="limit",
        threads=threads(),
        needs=("numba",),
        call=lambda: made[0](matrix),
        warm=warm,
    )


def streamed(*, quick: bool) -> Case:
    """The whole slide from an h5ad: scanpy has to load it."""
    size = _whole_slide(quick=quick)
    path, few = data.h5ad(*size), data.h5ad(2000, *size[1:])
    matrix = data.filled(data.counts(*size))
    file_mb = path.stat().st_size / 1e6
    return Case(
        title=f"Pearson residuals from an h5ad, {_shape(matrix)}, {file_mb:.0f} MB",
        work=matrix.nnz / 1e6,
        unit="M non-zeros",
        contestants=[
            Contestant(
                name="stfast",
                role="ours",
                threads=threads(),
                call=lambda: _genes(path, flavor="pearson_residuals"),
                warm=lambda: _genes(few, flavor="pearson_residuals"),
            ),
            Contestant(
                name="anndata + scanpy",
                needs=("scanpy",),
                threads=threads(),
                call=partial(peers.scanpy_pearson_file, path, n_top_genes=TOP),
                warm=partial(peers.scanpy_pearson_file, few, n_top_genes=TOP),
            ),
            Contestant(
                name="reading the file twice with h5py",
                role="limit",
                needs=("h5py",),
                call=partial(peers.read_all, [path, path]),
            ),
        ],
        equal=partial(_equal, score="residual_variances", rtol=1e-6),
    )


def ranked(*, quick: bool) -> Case:
    """The paper's matrix of ranks, a slide at a time; both read the same files."""
    n = 2 if quick else 8
    slides = _slides(n)
    few = dict(list(slides.items())[:1])
    return Case(
        title=f"hvg_rank_combined: {n} slides of 3 000 × 18 000 from h5ad, 128 genes",
        work=n,
        unit="slides",
        contestants=[
            Contestant(
                name="stfast",
                role="ours",
                threads=threads(),
                call=lambda: stfast.hvg_rank_combined(slides),
                warm=lambda: stfast.hvg_rank_combined(few),
            ),
            Contestant(
                name="anndata + scanpy, as the paper",
                needs=("scanpy",),
                threads=threads(),
                call=partial(peers.scanpy_rank_combined, slides, 128),
                warm=partial(peers.scanpy_rank_combined, few, 128),
            ),
        ],
        equal=_equal_spots,
    )


def cohort(*, quick: bool) -> Case:
    """Moments of many slides, merged and ranked; then ranked again from the moments alone."""
    n = 4 if quick else SLIDES
    slides = _slides(n)
    return Case(
        title=f"{n} slides of 3 000 × 18 000 from h5ad: moments, merged, seurat",
        work=n,
        unit="slides",
        contestants=[
            Contestant(name="stfast", role="ours", threads=threads(), call=lambda: _cohort(slides)),
            Contestant(
                name="reading the files with h5py",
                role="limit",
                needs=("h5py",),
                call=partial(peers.read_all, list(slides.values())),
            ),
        ],
        equal=_equal_spots,
    )


def _cohort(slides: Mapping[str, Path]) -> pd.DataFrame:
    start = time.perf_counter()
    moments = stfast.GeneMoments.merge([stfast.gene_moments(path) for path in slides.values()])
    each = (time.perf_counter() - start) / len(slides)
    start = time.perf_counter()
    table = _genes(moments, flavor="seurat", normalize=True)
    again = time.perf_counter() - start
    print(
        f"  {each * 1e3:.0f} ms a slide, {OF_PAPER} would take {each * OF_PAPER:.0f} s; "
        f"ranked again from moments in {again * 1e3:.0f} ms",
        flush=True,
    )
    return table


def _slides(n: int) -> dict[str, Path]:
    """Slides by name; four different ones in turn, so that a disk can hold them."""
    paths = [data.h5ad(3000, 18_000, 5000.0, seed=seed) for seed in range(4)]
    return {f"slide{at}": paths[at % 4] for at in range(n)}


def _matrix(*, quick: bool) -> sparse.csr_matrix:
    return data.counts(9_000 if quick else 90_000, 18_000, 900.0, seed=1)


def _shape(matrix: sparse.csr_matrix) -> str:
    return f"{matrix.shape[0]} × {matrix.shape[1]}, {matrix.nnz / 1e6:.1f} M non-zeros"


def _genes(counts: object, **arguments: object) -> pd.DataFrame:
    table = stfast.highly_variable_genes(
        counts,
        n_top_genes=TOP,
        inplace=False,
        **arguments,  # type: ignore[arg-type]
    )
    assert table is not None
    return table


def _equal(ours: pd.DataFrame, theirs: pd.DataFrame, *, score: str, rtol: float) -> None:
    """Every score equal within ``rtol``; the chosen genes equal but for ties at the cut."""
    theirs = theirs.reindex(ours.index)
    a, b = ours[score].to_numpy(), theirs[score].to_numpy()
    np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * np.nanstd(b))
    cut = np.sort(a[~np.isnan(a)])[-TOP]
    differ = ours["highly_variable"].to_numpy() != theirs["highly_variable"].to_numpy()
    np.testing.assert_allclose(a[differ], cut, rtol=2 * rtol, err_msg="another gene chosen")


def _equal_spots(ours: AnnData, theirs: AnnData) -> None:
    """The same genes by rank, and the same values."""
    assert ours.shape == theirs.shape, "other spots"
    mine = ours.uns["hvg_genes"].to_numpy()
    other = theirs.uns["hvg_genes"].to_numpy()
    assert (mine != other).mean() < 0.02, "other genes"
    np.testing.assert_allclose(ours.X[:, :10], theirs.X[:, :10], rtol=1e-5)


CASES = {
    "pearson": pearson,
    "seurat": seurat,
    "seurat_v3": seurat_v3,
    "whole slide": whole_slide,
    "streamed": streamed,
    "ranked": ranked,
    "cohort": cohort,
}
