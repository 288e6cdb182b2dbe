"""10x matrices as three texts: ``matrix.mtx``, ``barcodes.tsv``, ``features.tsv``.

Version 3 names genes in ``features.tsv.gz`` (id, symbol, type), version 2 in ``genes.tsv``
(id, symbol). Rust parses the matrix; the other two are short.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from stfast import _core
from stfast._core import FormatError
from stfast.readers._library import read_bytes
from stfast.readers._tenx import named_barcodes, narrowed, unique_genes


def read_triplet(
    files: Mapping[str, Path],
    threads: int,
    progress: Callable[[int], object] | None = None,
) -> tuple[sparse.csr_matrix, pd.DataFrame, pd.DataFrame]:
    """Counts (barcodes × genes), ``obs`` and ``var`` of a matrix in three texts."""
    matrix = read_mtx(files["matrix"], threads, progress)
    missing = [role for role in ("barcodes", "features") if role not in files]
    if missing:
        name = "features.tsv or genes.tsv" if "features" in missing else "barcodes.tsv"
        raise FileNotFoundError(2, f"expected {name}, got none", str(files["matrix"].parent))
    barcodes = [row[0] for row in _rows(files["barcodes"])]
    features = _rows(files["features"])
    for role, rows, n in (("barcodes", barcodes, 0), ("features", features, 1)):
        if len(rows) != matrix.shape[n]:
            what = ("barcodes", "genes")[n]
            if len(rows) == matrix.shape[1 - n]:
                what = f"{what}, as the matrix has them (is it transposed?)"
            raise FormatError(f"{files[role]}: expected {matrix.shape[n]} {what}, got {len(rows)}")
    return matrix, named_barcodes(barcodes, files["barcodes"]), _var(features, files["features"])


def read_mtx(
    path: Path, threads: int, progress: Callable[[int], object] | None = None
) -> sparse.csr_matrix:
    """A matrix-market file turned: barcodes × genes of 10x's genes × barcodes."""
    for dtype in ("int32", "int64", "float64"):
        try:
            (data, indices, indptr), n_cols = _core.read_mtx(path, dtype, threads, progress)
            break
        except OverflowError:
            if dtype == "float64":
                raise
    data = narrowed(data) if dtype == "float64" else data
    if len(data) and not 0 <= float(data.min()) <= float(data.max()) < np.inf:
        raise FormatError(f"{path}: expected counts from 0 on, got negative or infinite ones")
    matrix = sparse.csr_matrix((data, indices, indptr), shape=(len(indptr) - 1, n_cols))
    matrix.sum_duplicates()
    return matrix


def _rows(path: Path) -> list[list[str]]:
    try:
        text = read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FormatError(f"{path}: expected text, got {error}") from error
    return [line.rstrip("\r").split("\t") for line in text.split("\n") if line.strip()]


def _var(features: list[list[str]], path: Path) -> pd.DataFrame:
    width = min(map(len, features), default=2)
    columns: dict[str, Any] = {"gene_ids": [row[0] for row in features]}
    if width > 2:
        columns["feature_types"] = [row[2] for row in features]
    names = [row[1] if width > 1 else row[0] for row in features]
    return pd.DataFrame(columns, index=unique_genes(names, path))
