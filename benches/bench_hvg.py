"""Highly variable genes: against scanpy, its JIT warm."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

import stfast
from benches import data, peers
from benches.measure import Case, Contestant, threads

TOP = 2000


def pearson(*, quick: bool) -> Case:
    matrix = _matrix(quick=quick)
    return _case(
        f"Pearson residuals, {_shape(matrix)}, int32",
        matrix,
        ours=lambda m: _genes(m, flavor="pearson_residuals"),
        theirs=partial(peers.scanpy_pearson, n_top_genes=TOP),
        equal=partial(_equal, score="residual_variances", rtol=1e-6),
    )


def seurat(*, quick: bool) -> Case:
    matrix = _matrix(quick=quick)
    return _case(
        f"normalize + log1p + seurat from raw counts, {_shape(matrix)}, int32",
        matrix,
        ours=lambda m: _genes(m, flavor="seurat", normalize=True),
        theirs=partial(peers.scanpy_seurat, n_top_genes=TOP),
        # scanpy normalises and squares in single precision.
        equal=partial(_equal, score="dispersions_norm", rtol=1e-3),
    )


def _case(
    title: str,
    matrix: sparse.csr_matrix,
    *,
    ours: Callable[[sparse.csr_matrix], pd.DataFrame],
    theirs: Callable[[sparse.csr_matrix], pd.DataFrame],
    equal: Callable[[pd.DataFrame, pd.DataFrame], None],
) -> Case:
    few = matrix[:500]
    return Case(
        title=title,
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
                needs=("scanpy",),
                threads=threads(),
                call=lambda: theirs(matrix),
                warm=lambda: theirs(few),
            ),
            _bare_pass(matrix),
        ],
        equal=equal,
    )


def _bare_pass(matrix: sparse.csr_matrix) -> Contestant:
    made: list[Callable[[sparse.csr_matrix], None]] = []

    def warm() -> None:
        made.append(peers.numba_marginals())
        made[0](matrix[:500])

    return Contestant(
        name="bare pass: marginals in numba",
        role="limit",
        threads=threads(),
        needs=("numba",),
        call=lambda: made[0](matrix),
        warm=warm,
    )


def _matrix(*, quick: bool) -> sparse.csr_matrix:
    return data.counts(9_000 if quick else 90_000, 18_000, 900.0, seed=1)


def _shape(matrix: sparse.csr_matrix) -> str:
    return f"{matrix.shape[0]} × {matrix.shape[1]}, {matrix.nnz / 1e6:.1f} M non-zeros"


def _genes(matrix: sparse.csr_matrix, **arguments: object) -> pd.DataFrame:
    table = stfast.highly_variable_genes(
        AnnData(matrix),
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


CASES = {"pearson": pearson, "seurat": seurat}
