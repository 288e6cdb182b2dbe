"""STimage-1K4M's dense tables of counts, written and read: against pandas."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from benches import data
from benches.measure import Case, Contestant, threads
from stfast import _check, _core
from stfast.readers.stimage import read_dense


def write(*, quick: bool) -> Case:
    matrix = _matrix(quick=quick)
    cells = matrix.shape[0] * matrix.shape[1]
    path = data.cached("dense-written", lambda folder: folder.mkdir())
    names = [f"s{i}" for i in range(matrix.shape[0])]
    genes = [f"g{i}" for i in range(matrix.shape[1])]
    return Case(
        title=f"{matrix.shape[0]} spots × {matrix.shape[1]} genes to a dense CSV",
        work=cells / 1e6,
        unit="M cells",
        contestants=[
            Contestant(
                name="stfast",
                role="ours",
                threads=threads(),
                call=partial(_write, path / "ours.csv", matrix, names, genes),
            ),
            Contestant(
                name="pandas",
                needs=("pandas",),
                call=partial(_pandas_write, path / "pandas.csv", matrix, names, genes),
            ),
        ],
        equal=_same_text,
    )


def read(*, quick: bool) -> Case:
    matrix = _matrix(quick=quick)
    names = [f"s{i}" for i in range(matrix.shape[0])]
    genes = [f"g{i}" for i in range(matrix.shape[1])]
    path = data.cached(f"dense-{matrix.shape[0]}.csv", lambda to: _write(to, matrix, names, genes))
    return Case(
        title=f"{matrix.shape[0]} spots × {matrix.shape[1]} genes from a dense CSV to CSR",
        work=matrix.shape[0] * matrix.shape[1] / 1e6,
        unit="M cells",
        contestants=[
            Contestant(name="stfast", role="ours", threads=threads(), call=partial(_read, path)),
            Contestant(name="pandas + scipy", needs=("pandas",), call=partial(_pandas_read, path)),
        ],
        equal=_same_counts,
    )


def _matrix(*, quick: bool) -> sparse.csr_matrix:
    return data.counts(200 if quick else 4000, 18_000, 300.0)


def _write(path: Path, matrix: Any, names: list[str], genes: list[str]) -> Path:
    header = ",".join(["", *genes])
    _core.write_table(path, header, names, ord(","), _check.matrix(matrix), threads())
    return path


def _pandas_write(path: Path, matrix: Any, names: list[str], genes: list[str]) -> Path:
    pd.DataFrame(matrix.toarray(), names, genes).to_csv(path)
    return path


def _read(path: Path) -> sparse.csr_matrix:
    return read_dense(path, threads())[0]


def _pandas_read(path: Path) -> sparse.csr_matrix:
    return sparse.csr_matrix(pd.read_csv(path, index_col=0).to_numpy())


def _same_text(ours: Path, theirs: Path) -> None:
    assert ours.read_bytes() == theirs.read_bytes(), "other text"


def _same_counts(ours: sparse.csr_matrix, theirs: sparse.csr_matrix) -> None:
    for name in ("indptr", "indices", "data"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name), err_msg=name)


CASES = {"write": write, "read": read}
