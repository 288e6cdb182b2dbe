"""Folders as 10x, GEO and STimage-1K4M lay them out, small, made at test time.

Contents are invented; shapes, names and types are those of formats.md. Each is written
in the plainest way, by h5py, scipy.io, json and csv.
"""

import gzip
import inspect
import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import scipy.io
from PIL import Image
from scipy import sparse

import oracles

VISIUM_FACTORS = {
    "spot_diameter_fullres": 26.0,
    "fiducial_diameter_fullres": 42.0,
    "tissue_hires_scalef": 0.5,
    "tissue_lowres_scalef": 0.15,
}
HEADER = "barcode,in_tissue,array_row,array_col,pxl_row_in_fullres,pxl_col_in_fullres"


def counts(n, genes, seed=0, density=0.2):
    """Counts of barcodes × genes, CSR, int32."""
    rng = np.random.default_rng(seed)
    return sparse.csr_matrix(rng.poisson(density, (n, genes)).astype(np.int32))


def names(n, prefix):
    return [f"{prefix}{i:04}" for i in range(n)]


def read_mtx(path):
    """What scipy reads of a Matrix Market file, as a sparse matrix.

    scipy 1.20 will return a sparse array unless asked, and 1.18 warns of it; older ones
    know no such option.
    """
    knows = "spmatrix" in inspect.signature(scipy.io.mmread).parameters
    return scipy.io.mmread(path, **({"spmatrix": True} if knows else {}))


def barcodes(n):
    """Different words of A, C, G, T with the suffix of the first library."""
    return ["".join("ACGT"[i // 4**k % 4] for k in range(8)) + "-1" for i in range(n)]


def write_10x(path, matrix, cells=None, *, genomes=None, texts=None, types=None, **options):
    """A matrix as Space Ranger's Python writer stores it; options change the data sets."""
    n, genes = matrix.shape
    options = {
        "compression": "gzip",
        "shuffle": True,
        "chunks": (80,),
        "maxshape": (None,),
    } | options
    dtypes = {"data": "<i4", "indices": "<i8", "indptr": "<i8", **(types or {})}
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        for name, dtype in dtypes.items():
            group.create_dataset(name, data=getattr(matrix, name).astype(dtype), **options)
        group["shape"] = np.array([genes, n], "i4")
        features = group.create_group("features")
        columns = {
            "id": names(genes, "ENSG"),
            "name": names(genes, "G"),
            "feature_type": ["Gene Expression"] * genes,
            "genome": genomes or ["GRCh38"] * genes,
        }
        cells = cells if cells is not None else barcodes(n)
        for where, name, column in [(group, "barcodes", cells)] + [
            (features, name, column) for name, column in columns.items()
        ]:
            kind = h5py.string_dtype() if texts == "vlen" else None
            array = np.array(column, object if kind else "S")
            where.create_dataset(name, data=array, dtype=kind)
        file.attrs["software_version"] = "spaceranger-2.1.0"
        file.attrs["chemistry_description"] = np.array([b"Visium"])
        file.attrs["library_ids"] = np.array([b"sample"])
    return path


def write_legacy(path, matrices):
    """A matrix a genome, as Cell Ranger 1 and 2 write them."""
    with h5py.File(path, "w") as file:
        for genome, matrix in matrices.items():
            group = file.create_group(genome)
            n, genes = matrix.shape
            for name in ("data", "indices", "indptr"):
                group.create_dataset(name, data=getattr(matrix, name), compression="gzip")
            group["shape"] = np.array([genes, n], "i4")
            group["barcodes"] = np.array(barcodes(n), "S")
            group["genes"] = np.array(names(genes, f"{genome}_ENSG"), "S")
            group["gene_names"] = np.array(names(genes, f"{genome}_G"), "S")
    return path


def write_triplet(folder, matrix, *, version=3, zipped=True, prefix="", cells=None):
    """matrix.mtx, barcodes.tsv and features.tsv (genes.tsv of version 2)."""
    folder.mkdir(parents=True, exist_ok=True)
    n, genes = matrix.shape
    rows = zip(names(genes, "ENSG"), names(genes, "G"), strict=True)
    kind = "\tGene Expression" if version == 3 else ""
    texts = {
        "barcodes.tsv": "\n".join(cells or barcodes(n)) + "\n",
        "features.tsv" if version == 3 else "genes.tsv": "".join(
            f"{gene}\t{name}{kind}\n" for gene, name in rows
        ),
    }
    for name, text in texts.items():
        (folder / f"{prefix}{name}").write_text(text)
    scipy.io.mmwrite(folder / f"{prefix}matrix.mtx", matrix.T.tocoo(), field="integer")
    if zipped:
        for name in (*texts, "matrix.mtx"):
            gzip_in_place(folder / f"{prefix}{name}")
    return folder


def gzip_in_place(path):
    with path.open("rb") as file, gzip.open(f"{path}.gz", "wb") as out:
        shutil.copyfileobj(file, out)
    path.unlink()


def spots(rows=20, cols=32, pitch=40.0):
    """Positions of a hexagonal array turned by a few degrees: a table as Space Ranger has it."""
    row, col = np.divmod(np.arange(rows * cols), cols)
    col = 2 * (col // 2) + row % 2 if cols > 1 else col
    keep = ~pd.MultiIndex.from_arrays([row, col]).duplicated()
    row, col = row[keep], col[keep]
    turn = np.deg2rad(3.0)
    u, v = col * pitch / 2, row * pitch * np.sqrt(3) / 2
    x = 60 + u * np.cos(turn) - v * np.sin(turn) + 50
    y = 60 + u * np.sin(turn) + v * np.cos(turn)
    inside = ((row > 3) & (row < 17)).astype(int)
    columns = [barcodes(len(row)), inside, row, col, y, x]
    return pd.DataFrame(dict(zip(HEADER.split(","), columns, strict=True)))


def write_visium(folder, *, header=True, genes=30, seed=0, full=False):
    """Space Ranger's ``outs``: filtered and raw matrix, positions, factors, pictures."""
    spatial = folder / "spatial"
    spatial.mkdir(parents=True)
    table = spots()
    raw = counts(len(table), genes, seed)
    inside = table["in_tissue"].to_numpy() == 1
    cells = table["barcode"].to_numpy()
    write_10x(folder / "raw_feature_bc_matrix.h5", raw, cells)
    write_10x(folder / "filtered_feature_bc_matrix.h5", raw[inside], cells[inside])
    name = "tissue_positions.csv" if header else "tissue_positions_list.csv"
    shown = table if header else table.assign(**{c: table[c].round().astype(int) for c in PIXELS})
    shown.to_csv(spatial / name, header=header, index=False)
    (spatial / "scalefactors_json.json").write_text(json.dumps(VISIUM_FACTORS))
    picture = oracles.picture(900, 800, seed)
    for kind in ("hires", "lowres"):
        scale = VISIUM_FACTORS[f"tissue_{kind}_scalef"]
        size = (round(800 * scale), round(900 * scale))
        Image.fromarray(picture).resize(size).save(spatial / f"tissue_{kind}_image.png")
    if full:
        Image.fromarray(picture).save(folder / "tissue_image.tif")
    return folder


PIXELS = ["pxl_row_in_fullres", "pxl_col_in_fullres"]


def flatten(folder, flat, prefix, *, zipped=True):
    """The files of ``outs`` as GEO has them: prefixed, gzipped, in one folder."""
    flat.mkdir(exist_ok=True)
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        if path.name == "raw_feature_bc_matrix.h5":
            continue
        target = flat / f"{prefix}_{path.name}"
        shutil.copy(path, target)
        if zipped:
            gzip_in_place(target)
    return flat


def write_squares(folder, tissue, *, genes=20, seed=0, kept=0.9, k=1, style=None):
    """A square_002um folder of a grid; ``tissue`` is a (rows, columns) mask.

    Pixels follow an affine map with a reflection and a turn; a tenth of the squares has no
    counts. Style: ``rust`` and ``python`` are Space Ranger's two writers.
    """
    square = folder / f"binned_outputs/square_{2 * k:03}um"
    (square / "spatial").mkdir(parents=True)
    rows, cols = (a.ravel() for a in np.indices(tissue.shape))
    cells = np.array([f"s_{2 * k:03}um_{r:05}_{c:05}-1" for r, c in zip(rows, cols, strict=True)])
    rng = np.random.default_rng(seed)
    matrix = counts(len(rows), genes, seed)
    has = rng.random(len(rows)) < kept
    has[[0, -1]] = True
    filters = {"rust": {"compression_opts": 1, "chunks": (655,)}, None: {}}[style]
    write_10x(square / "raw_feature_bc_matrix.h5", matrix[has], cells[has], **filters)
    inside = has & tissue.ravel()
    write_10x(square / "filtered_feature_bc_matrix.h5", matrix[inside], cells[inside])
    table = pd.DataFrame(
        {
            "barcode": cells,
            "in_tissue": tissue.ravel().astype(np.uint8),
            "array_row": rows.astype(np.uint32),
            "array_col": cols.astype(np.uint32),
            "pxl_row_in_fullres": 900.0 - 7.1 * rows + 0.3 * cols,
            "pxl_col_in_fullres": 40.0 + 0.3 * rows + 7.1 * cols,
        }
    )
    table.to_parquet(square / "spatial/tissue_positions.parquet")
    factors = VISIUM_FACTORS | {
        "spot_diameter_fullres": 7.1 * k,
        "bin_size_um": 2.0 * k,
        "microns_per_pixel": 2 / 7.1,
    }
    (square / "spatial/scalefactors_json.json").write_text(json.dumps(factors))
    return folder, matrix[has], np.column_stack([rows, cols])[has]


def tree_of(path):
    return sorted(p.name for p in Path(path).iterdir())
