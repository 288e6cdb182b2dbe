"""Squares summed into bins: against scipy's indicator product."""

from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

import stfast
from benches import data, peers
from benches.measure import Case, Contestant, threads

Places = NDArray[np.int64]
Answer = tuple[sparse.csr_matrix, Places, Places]


def square_bins(*, quick: bool) -> Case:
    side, factor = (400 if quick else 1580), 4
    matrix = data.counts(side * side, 18_000, 22.8)
    rows, cols = data.grid(side)
    n = threads()
    arrays = (matrix.data, matrix.indices)
    return Case(
        title=f"{side}² squares × 18 000 genes, {matrix.nnz / 1e6:.1f} M non-zeros, factor 4, i32",
        work=matrix.nnz / 1e6,
        unit="M non-zeros",
        contestants=[
            Contestant(
                name="stfast",
                role="ours",
                threads=n,
                call=partial(_ours, matrix, rows, cols, factor),
                warm=partial(_ours, matrix[:100], rows[:100], cols[:100], factor),
            ),
            Contestant(
                name="scipy",
                needs=("scipy",),
                call=partial(peers.scipy_bins, matrix, rows, cols, factor),
            ),
            Contestant(
                name="memory: copy data and indices",
                role="limit",
                threads=n,
                call=partial(peers.copy_arrays, arrays, n),
            ),
        ],
        equal=_bit_equal,
    )


def _ours(matrix: sparse.csr_matrix, rows: Places, cols: Places, factor: int) -> Answer:
    return stfast.aggregate_bins(matrix, rows=rows, cols=cols, factor=factor)


def _bit_equal(ours: Answer, theirs: Answer) -> None:
    for got, expected in zip(ours[1:], theirs[1:], strict=True):
        np.testing.assert_array_equal(got, expected)
    a, b = ours[0], theirs[0]
    assert a.dtype == b.dtype, f"{b.dtype} instead of {a.dtype}"
    for name in ("indptr", "indices", "data"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


CASES = {"squares": square_bins}
