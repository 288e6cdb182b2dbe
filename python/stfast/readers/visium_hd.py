"""Visium HD: Space Ranger's ``binned_outputs``.

A bin size that is on disk is read as it is; another one is built from the raw
matrix of the smallest squares by Space Ranger's own rule (sum, then keep bins of
which any square is in tissue). The filtered matrix would not do: at the edge of
the tissue it lacks squares that Space Ranger counts.
"""

import os
import re
import warnings
from pathlib import Path

import numpy as np
import polars as pl
from anndata import AnnData

from stfast import _check, _spatial
from stfast._core import FormatError
from stfast.bins import aggregate_bins
from stfast.images import open_image
from stfast.readers import _tenx

_SQUARE = re.compile(r"square_(\d{3})um")
_IMAGES = ("microscope_image/*", "*tissue_image.*")
_PICTURES = {".btf", ".tif", ".tiff", ".jpg", ".jpeg", ".png", ".svs"}


def is_visium_hd(path: Path) -> bool:
    """Whether a folder holds Visium HD bins."""
    return path.is_dir() and bool(_folders(path))


def sizes_on_disk(path: Path) -> list[int]:
    """Bin sizes in µm that a folder holds."""
    return sorted(_folders(path))


def describe_visium_hd(path: Path) -> dict[str, object]:
    """What a folder holds, from headers alone: sizes of matrices, scale factors, picture."""
    found: dict[str, object] = {"technology": "Visium HD"}
    for size, folder in sorted(_folders(path).items()):
        for matrix in sorted(folder.glob("*_feature_bc_matrix.h5")):
            kind = matrix.name.split("_")[0]
            found[f"{size} µm {kind}"] = _tenx.count_sizes(matrix)
        found[f"{size} µm scalefactors"] = _tenx.read_scalefactors(folder / "spatial")
    image = _find_image(path)
    found["picture"] = None if image is None else str(image)
    return found


def read_visium_hd(
    path: str | os.PathLike[str],
    bin_size: int = 8,
    *,
    filtered: bool = True,
    image: str | os.PathLike[str] | None = None,
    workers: int | None = None,
) -> AnnData:
    """Read a Visium HD slide at a bin size.

    Parameters
    ----------
    path
        Space Ranger's output folder, its ``binned_outputs``, or one ``square_*um``.
    bin_size
        Side of a bin in µm; built from the smallest squares on disk, of whose side
        it must be a multiple, unless it is there itself.
    filtered
        Only bins in tissue; else all that have a count.
    image
        The full-resolution picture; ``None``: looked for in ``path``.
    workers
        Threads; ``None``: ``$STFAST_WORKERS``, else the CPUs of this process.

    Returns
    -------
    AnnData
        Bins × genes, int32 counts, by the conventions of :func:`stfast.read`;
        ``obs["in_picture"]`` is there when the picture is known.

    Raises
    ------
    FileNotFoundError
        A file that belongs to the folder is missing.
    FormatError
        A file is damaged, or positions do not match the barcodes.
    ValueError
        ``bin_size`` is no multiple of what is on disk.
    """
    path = Path(path)
    threads = _check.workers(workers)
    bin_size = _whole_um(bin_size)
    folders = _folders(path)
    if not folders:
        if not path.exists():
            raise FileNotFoundError(2, "No such file or directory", str(path))
        raise FormatError(f"{path}: expected square_*um folders, got none")
    if bin_size in folders:
        adata = _read_squares(folders[bin_size], "filtered" if filtered else "raw")
    else:
        adata = _build(folders, bin_size, threads, path)
        if filtered:
            adata = adata[adata.obs["in_tissue"] == 1].copy()
    _attach_image(adata, path, image)
    _spatial.stamp(adata, "read_visium_hd", bin_size=bin_size, filtered=filtered)
    return adata


def _whole_um(bin_size: float) -> int:
    if _check.positive(bin_size, "bin_size", "µm") % 1:
        raise ValueError(f"bin_size: expected a whole number of µm, got {bin_size!r}")
    return int(bin_size)


def _folders(path: Path) -> dict[int, Path]:
    """Folder of each bin size (µm) on disk."""
    path = path.absolute()
    if _SQUARE.fullmatch(path.name):
        candidates = [path]
    else:
        candidates = [*path.glob("square_*um"), *path.glob("binned_outputs/square_*um")]
    sizes = {_SQUARE.fullmatch(p.name): p for p in candidates if p.is_dir()}
    return {int(match[1]): p for match, p in sorted(sizes.items(), key=lambda i: i[1]) if match}


def _read_squares(folder: Path, kind: str) -> AnnData:
    counts = _tenx.read_counts(folder / f"{kind}_feature_bc_matrix.h5")
    positions_path = folder / "spatial" / "tissue_positions.parquet"
    positions = _tenx.read_positions(positions_path)
    obs, xy = _tenx.join_positions(counts.barcodes, positions, positions_path)
    library = _tenx.read_library(folder / "spatial")
    library["metadata"] = counts.attributes
    library["scalefactors"].setdefault("bin_size_um", float(folder.name[7:10]))
    return AnnData(
        X=counts.matrix,
        obs=obs,
        var=counts.var,
        obsm={"spatial": xy},
        uns={"spatial": {_library_name(folder): library}},
    )


def _library_name(folder: Path) -> str:
    """The sample's name: the folder around ``binned_outputs``, or around the squares."""
    around = folder.absolute().parent
    if around.name == "binned_outputs":
        around = around.parent
    return around.parent.name if around.name == "outs" else around.name


def _build(folders: dict[int, Path], bin_size: int, threads: int, path: Path) -> AnnData:
    square, folder = min(folders.items())
    if bin_size % square:
        raise ValueError(
            f"bin_size: expected a multiple of {square} µm or one of {sorted(folders)} µm, "
            f"got {bin_size} µm ({path})"
        )
    binned = aggregate_bins(_read_squares(folder, "raw"), bin_size, workers=threads)
    mark_tissue(binned, path)
    return binned


def mark_tissue(binned: AnnData, path: Path) -> None:
    """Mark bins as in tissue by all squares of the grid, those without a count included."""
    square, folder = min(_folders(path).items())
    grid = _tenx.read_positions(folder / "spatial" / "tissue_positions.parquet")
    factor = round(_spatial.scalefactor(binned, "bin_size_um")) // square
    place = ["array_row", "array_col"]
    tissue = grid.filter(pl.col("in_tissue") == 1).select(pl.col(place) // factor).unique()
    bins = pl.DataFrame({name: binned.obs[name].to_numpy() for name in place})
    marked = bins.join(
        tissue.with_columns(in_tissue=pl.lit(1)), on=place, how="left", maintain_order="left"
    )
    binned.obs["in_tissue"] = marked["in_tissue"].fill_null(0).to_numpy().astype(np.int64)


def _attach_image(adata: AnnData, path: Path, given: str | os.PathLike[str] | None) -> None:
    """Record the full-resolution picture, check its size, flag spots outside it."""
    image_path = Path(given) if given is not None else _find_image(path)
    if image_path is None:
        return
    image = open_image(image_path)
    _, library = _spatial.library(adata)
    library["metadata"]["source_image_path"] = str(image_path)
    hires = library["images"].get("hires")
    if hires is not None:
        expected = np.array(hires.shape[:2]) / library["scalefactors"]["tissue_hires_scalef"]
        if np.abs(np.array(image.shape) / expected - 1).max() > 0.01:
            warnings.warn(
                f"{image_path}: expected about {expected.round().astype(int).tolist()} pixels "
                f"(hires picture ÷ scale factor), got {list(image.shape)}: is it another picture?",
                stacklevel=3,
            )
    adata.obs["in_picture"] = _spatial.in_picture(_spatial.centers(adata), image.shape)


def _find_image(path: Path) -> Path | None:
    """The one full-resolution picture in the folder or those around the bins."""
    path = path.absolute()
    around = [path]
    if _SQUARE.fullmatch(path.name):
        around += path.parents[:2]
    elif path.name == "binned_outputs":
        around.append(path.parent)
    found = {p for folder in around for pattern in _IMAGES for p in folder.glob(pattern)}
    files = sorted(
        p
        for p in found
        if p.is_file() and p.suffix.lower() in _PICTURES and not p.name.startswith(".")
    )
    if len(files) > 1:
        warnings.warn(
            f"{path}: expected one full-resolution picture, got {[p.name for p in files]}; "
            f"taking {files[0].name}: give image= to choose",
            stacklevel=4,
        )
    return files[0] if files else None
