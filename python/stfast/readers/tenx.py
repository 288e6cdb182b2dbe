"""10x Genomics' count matrices alone: HDF5 of any age, or three texts."""

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
from anndata import AnnData
from scipy import sparse

from stfast import _check, _spatial
from stfast._core import FormatError
from stfast.readers._files import find_sample
from stfast.readers._tenx import open_matrix
from stfast.readers._triplet import read_triplet


def read_10x(
    path: str | os.PathLike[str],
    *,
    genome: str | None = None,
    sample: str | None = None,
    workers: int | None = None,
) -> AnnData:
    """Read a 10x count matrix.

    Parameters
    ----------
    path
        ``*_bc_matrix.h5``; or ``matrix.mtx[.gz]``, or the folder that it lies in with
        ``barcodes.tsv[.gz]`` and ``features.tsv[.gz]`` or ``genes.tsv[.gz]``.
    genome
        Of files with several genomes (Cell Ranger 1 and 2 have a matrix for each): the
        one to read. In current files it selects genes.
    sample
        In a folder of several samples: the name before the files' own (``GSM123_A``).
    workers
        Threads; ``None``: ``$STFAST_WORKERS``, else the CPUs of this process.

    Returns
    -------
    AnnData
        Barcodes × genes, counts in CSR: int32, int64 where they do not fit, or as
        stored where they are no whole numbers. ``var_names`` are symbols, made unique
        as scanpy does; ``var`` has ``gene_ids``, ``feature_types`` and ``genome`` where
        the file says them, probe matrices also ``probe_ids``, ``probe_region``,
        ``gene_name`` and ``filtered_probes``. All types of features are kept.

    Raises
    ------
    FileNotFoundError
        No such file, or one of the three texts is missing.
    FormatError
        A file that is not what it should be.
    ValueError
        Several genomes, of which ``genome`` is none.

    Notes
    -----
    Read as cellranger's ``count_matrix`` writes it, straight from the HDF5 chunks; see
    :func:`stfast.read_h5_dataset`.
    """
    path = Path(path)
    threads = _check.workers(workers)
    files: Path | Mapping[str, Path] | None = path
    if path.is_dir():
        found = find_sample(path, sample)
        files = found.counts("filtered") or found.counts("raw") or found.roles.get("probe_h5")
        if files is None:
            raise FormatError(f"{path}: expected a 10x matrix (.h5 or matrix.mtx), got none")
    elif path.name.removesuffix(".gz").endswith(".mtx"):
        files = _beside(path)
    adata, _ = read_matrix(files, genome, threads)
    _spatial.stamp(adata, "read_10x", genome=genome)
    return adata


def read_matrix(
    files: Path | Mapping[str, Path] | None, genome: str | None, threads: int
) -> tuple[AnnData, dict[str, str]]:
    """The matrix of files that :mod:`_files` found, and what it says of itself."""
    if isinstance(files, Mapping):
        adata, attributes = _anndata(*read_triplet(files, threads)), {}
    else:
        assert files is not None
        # Names become texts while the core reads counts, without the interpreter.
        with open_matrix(files, genome, threads) as matrix, ThreadPoolExecutor(1) as beside:
            barcodes = beside.submit(matrix.barcodes)
            counts = matrix.counts()
            adata = _anndata(counts, matrix.obs(barcodes.result()), matrix.var())
            attributes = matrix.attributes()
    if genome is not None and "genome" in adata.var:
        genomes = sorted(set(adata.var["genome"]))
        if genome not in genomes:
            raise ValueError(f"{files}: expected genome= as one of {genomes}, got {genome!r}")
        if len(genomes) > 1:
            adata = adata[:, adata.var["genome"] == genome].copy()
    return adata, attributes


def _anndata(counts: sparse.csr_matrix, obs: pd.DataFrame, var: pd.DataFrame) -> AnnData:
    return AnnData(X=counts, obs=obs, var=var)


def _beside(path: Path) -> dict[str, Path]:
    """The three texts of which ``path`` is the matrix, of whatever prefix."""
    prefix = path.name.removesuffix(".gz").removesuffix("matrix.mtx")
    files = {"matrix": path}
    roles = {"barcodes": ("barcodes.tsv",), "features": ("features.tsv", "genes.tsv")}
    for role, names in roles.items():
        places = [
            path.with_name(f"{prefix}{name}{zipped}") for name in names for zipped in ("", ".gz")
        ]
        found = [place for place in places if place.exists()]
        if found:
            files[role] = found[0]
    return files
