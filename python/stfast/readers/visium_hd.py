"""Visium HD: Space Ranger's ``binned_outputs`` and ``segmented_outputs``.

A bin size that is on disk is read as it is; another one is built from the raw matrix of
the smallest squares by Space Ranger's own rule (sum, then keep bins of which any square
is in tissue), while that matrix passes through in stretches. The filtered matrix would
not do: at the edge of the tissue it lacks squares that Space Ranger counts.
"""

import logging
import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from stfast import _check, _core, _spatial
from stfast._core import FormatError
from stfast._warn import warn
from stfast.bins import aggregate_bins, bin_names
from stfast.readers import _segments, _tenx
from stfast.readers._feature_slice import describe_feature_slice
from stfast.readers._files import find_sample
from stfast.readers._library import attach_picture, read_pixels, read_scalefactors
from stfast.readers._positions import GRID, join_positions, read_grid, read_positions
from stfast.readers.tenx import read_matrix

_SQUARE = re.compile(r"square_(\d{3})um")
_IMAGES = ("microscope_image/*", "*tissue_image.*")
_PICTURES = {".btf", ".tif", ".tiff", ".jpg", ".jpeg", ".png", ".svs"}
_REGISTERED_SINCE = (3, 1, 2)
_log = logging.getLogger("stfast")

Progress = Callable[[int], object]


def is_visium_hd(path: Path) -> bool:
    """Whether a folder holds Visium HD bins or cells."""
    return path.is_dir() and (bool(_folders(path)) or _segments.find(path) is not None)


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
        factors = read_scalefactors(folder / "spatial" / "scalefactors_json.json")
        found[f"{size} µm scalefactors"] = factors
    segmented = _segments.find(path)
    if segmented is not None:
        found["segmented"] = str(segmented)
    image = _find_image(path)
    found["picture"] = None if image is None else str(image)
    return found


def read_visium_hd(
    path: str | os.PathLike[str],
    bin_size: int = 8,
    *,
    raw: bool = False,
    segments: Literal["cells", "nuclei"] | None = None,
    image: str | os.PathLike[str] | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> AnnData:
    """Read a Visium HD slide at a bin size, or its cells.

    Parameters
    ----------
    path
        Space Ranger's output folder, its ``binned_outputs``, or one ``square_*um``.
    bin_size
        Side of a bin in µm; built from the smallest squares on disk, of whose side
        it must be a multiple, unless it is there itself.
    raw
        All bins that have a count; else those in tissue.
    segments
        Instead of bins, what Space Ranger 4 segmented: ``"cells"`` (its own matrix, or
        summed from the squares by ``barcode_mappings.parquet``) or ``"nuclei"`` (squares
        in a nucleus, summed by cell).
    image
        The full-resolution picture; ``None``: looked for in ``path``.
    workers
        Threads; ``None``: ``$STFAST_WORKERS``, else the CPUs of this process.
    progress
        Called now and then with the number of bins built.

    Returns
    -------
    AnnData
        Bins × genes, int32 counts, by the conventions of :func:`stfast.read`;
        ``obs["in_picture"]`` is there when a picture is known, and ``n_squares``, squares
        that have counts, where bins were built.

    Raises
    ------
    FileNotFoundError
        A file that belongs to the folder is missing.
    FormatError
        A file is damaged, or positions do not match the barcodes.
    ValueError
        ``bin_size`` is no multiple of what is on disk.

    Notes
    -----
    Of a matrix that is summed, a few million counts are held at a time. Centres follow
    Space Ranger's rule: the corner square's, plus half of what the others add.
    """
    path = Path(path)
    threads = _check.workers(workers)
    bin_size = _whole_um(bin_size)
    folders = _folders(path)
    if not path.exists():
        raise FileNotFoundError(2, "No such file or directory", str(path))
    if segments is not None:
        adata = _segmented(path, segments, raw=raw, threads=threads, progress=progress)
    elif not folders:
        hint = "; segments= reads cells" if _segments.find(path) is not None else ""
        raise FormatError(f"{path}: expected square_*um folders, got none{hint}")
    elif bin_size in folders:
        adata = _read_squares(folders[bin_size], "raw" if raw else "filtered", threads)
    else:
        adata = _build(folders, bin_size, path, raw=raw, threads=threads, progress=progress)
    _attach(adata, path, image, folders)
    chosen: dict[str, Any] = {"segments": segments} if segments else {"bin_size": bin_size}
    _spatial.stamp(adata, "read_visium_hd", **chosen, raw=raw)
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
        patterns = ("square_*um", "binned_outputs/square_*um", "outs/binned_outputs/square_*um")
        candidates = [p for pattern in patterns for p in path.glob(pattern)]
    sizes = {_SQUARE.fullmatch(p.name): p for p in candidates if p.is_dir()}
    return {int(match[1]): p for match, p in sorted(sizes.items(), key=lambda i: i[1]) if match}


def _size_of(folder: Path) -> int:
    return int(folder.name[7:10])


def _counts(folder: Path, kind: str) -> Any:
    """The matrix of a kind, in HDF5 or as a triplet."""
    path = folder / f"{kind}_feature_bc_matrix.h5"
    return path if path.exists() else find_sample(folder).counts(kind) or path


def _read_squares(folder: Path, kind: str, threads: int) -> AnnData:
    table = folder / "spatial" / "tissue_positions.parquet"
    counts, size = _counts(folder, kind), _size_of(folder)
    adata, attributes = read_matrix(counts, None, threads)
    places = _places(counts, adata, size, threads)
    grid = read_grid(table, size) if places is not None and adata.n_obs else None
    found = None if grid is None or places is None else grid.locate(*places)
    if grid is None or found is None or (found < 0).any():
        adata, _ = join_positions(adata, read_positions(table), table)
    else:
        named = zip(GRID, (grid.tissue, grid.rows, grid.cols), strict=True)
        columns = {name: column[found].astype(np.int64) for name, column in named}
        adata.obs = pd.concat([pd.DataFrame(columns, index=adata.obs_names), adata.obs], axis=1)
        adata.obsm["spatial"] = np.column_stack([grid.x[found], grid.y[found]])
    adata.uns["spatial"] = {_library_name(folder): _library(folder, attributes)}
    return adata


def _places(
    counts: Any, adata: AnnData, size: int, threads: int
) -> tuple[NDArray[np.int32], NDArray[np.int32]] | None:
    """Row and column of each barcode, if all are squares of ``size`` µm."""
    if not isinstance(counts, Path):
        return _tenx.parse_squares(list(adata.obs_names), size, threads)
    with _tenx.open_matrix(counts, None, threads) as matrix:
        return matrix.squares(size)


def _library(folder: Path, attributes: dict[str, str], factor: int = 1) -> dict[str, Any]:
    """Images, scale factors and metadata of bins of ``factor`` squares a side."""
    spatial = folder / "spatial"
    images = {
        kind: read_pixels(spatial / f"tissue_{kind}_image.png")
        for kind in ("hires", "lowres")
        if (spatial / f"tissue_{kind}_image.png").exists()
    }
    factors = read_scalefactors(spatial / "scalefactors_json.json")
    factors.setdefault("bin_size_um", float(_size_of(folder)))
    metadata: dict[str, Any] = dict(attributes)
    if "microns_per_pixel" in factors:
        metadata["mpp_source"] = "scale factors"
    elif "spot_diameter_fullres" in factors:
        factors["microns_per_pixel"] = factors["bin_size_um"] / factors["spot_diameter_fullres"]
        metadata["mpp_source"] = "bin size"
    if factor != 1:
        factors["bin_size_um"] = float(factors["bin_size_um"] * factor)
        if "spot_diameter_fullres" in factors:
            factors["spot_diameter_fullres"] *= factor
    _warn_of_old_registration(attributes.get("software_version", ""), folder)
    return {"images": images, "scalefactors": factors, "metadata": metadata}


def _warn_of_old_registration(version: str, folder: Path) -> None:
    """Before Space Ranger 3.1.2, slides of CytAssist firmware 2.1 are shifted by 16 µm."""
    numbers = re.search(r"(\d+)\.(\d+)\.(\d+)", version)
    if numbers and tuple(map(int, numbers.groups())) < _REGISTERED_SINCE:
        _log.warning(
            "%s: made by Space Ranger %s: with CytAssist firmware 2.1, versions before 3.1.2 "
            "shift positions by 16 µm",
            folder,
            version,
        )


def _library_name(folder: Path) -> str:
    """The sample's name: the folder around ``binned_outputs``, or around the squares."""
    around = folder.absolute().parent
    if around.name == "binned_outputs":
        around = around.parent
    return around.parent.name if around.name == "outs" else around.name


def _build(
    folders: dict[int, Path],
    bin_size: int,
    path: Path,
    *,
    raw: bool,
    threads: int,
    progress: Progress | None,
) -> AnnData:
    """Bins from the raw matrix of the smallest squares, never held as a whole."""
    square, folder = min(folders.items())
    if bin_size % square:
        raise ValueError(
            f"bin_size: expected a multiple of {square} µm or one of {sorted(folders)} µm, "
            f"got {bin_size} µm ({path})"
        )
    factor, counts = bin_size // square, _counts(folder, "raw")
    table = folder / "spatial" / "tissue_positions.parquet"
    if not isinstance(counts, Path):
        return _build_in_memory(folder, bin_size, path, raw=raw, threads=threads)
    # The table's few columns are decoded while the barcodes' places are read.
    with _tenx.open_matrix(counts, None, threads) as matrix, ThreadPoolExecutor(1) as beside:
        reading = beside.submit(read_grid, table, square)
        places, grid = matrix.squares(square), reading.result()
        found = None if grid is None or places is None else grid.locate(*places)
        if grid is None or places is None or found is None or (found < 0).any():
            return _build_in_memory(folder, bin_size, path, raw=raw, threads=threads)
        _warn_of_doubles(found, counts)
        tissue = grid.bins_in_tissue(factor)
        bins = _bins_of_squares(places, tissue, factor, raw=raw, threads=threads)
        rows, cols, groups = bins
        summed = matrix.sums(groups, len(rows), progress)
        var, attributes = matrix.var(), matrix.attributes()
    columns = {"in_tissue": tissue[rows, cols], "array_row": rows, "array_col": cols}
    obs = pd.DataFrame(columns, index=bin_names(bin_size, rows, cols))
    obs["in_tissue"] = obs["in_tissue"].astype(np.int64)
    obs["n_squares"] = np.bincount(groups[groups >= 0], minlength=len(rows))
    adata = AnnData(X=summed, obs=obs, var=var)
    adata.obsm["spatial"] = grid.bin_centers(rows, cols, factor)
    adata.uns["spatial"] = {_library_name(folder): _library(folder, attributes, factor)}
    return adata


def _warn_of_doubles(found: NDArray[np.int64], path: Path) -> None:
    again = len(found) - int(np.count_nonzero(np.bincount(found)))
    if again:
        warn(f"{path}: expected each barcode once, got {again} again: summed into their bins")


def _bins_of_squares(
    places: tuple[NDArray[np.int32], NDArray[np.int32]],
    tissue: NDArray[np.bool_],
    factor: int,
    *,
    raw: bool,
    threads: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Rows and columns of bins, and the bin of each square; −1 off the tissue."""
    rows, cols = places
    keep = slice(None) if raw else tissue[rows // factor, cols // factor]
    chosen = (rows[keep].astype(np.int64), cols[keep].astype(np.int64))
    bin_rows, bin_cols, bin_of_square = _core.assign_bins(*chosen, factor, threads)
    groups = np.full(len(rows), -1, np.int64)
    groups[keep] = bin_of_square
    return bin_rows, bin_cols, groups


def _build_in_memory(
    folder: Path, bin_size: int, path: Path, *, raw: bool, threads: int
) -> AnnData:
    """Bins of squares that are named otherwise, or whose matrix is text."""
    binned = aggregate_bins(_read_squares(folder, "raw", threads), bin_size, workers=threads)
    mark_tissue(binned, path)
    return binned if raw else binned[binned.obs["in_tissue"] == 1].copy()


def mark_tissue(binned: AnnData, path: Path) -> None:
    """Mark bins as in tissue by all squares of the grid, those without a count included."""
    square, folder = min(_folders(path).items())
    grid = read_positions(folder / "spatial" / "tissue_positions.parquet")
    factor = round(_spatial.scalefactor(binned, "bin_size_um")) // square
    inside = grid.filter(grid["in_tissue"] == 1)
    place = zip(inside["array_row"] // factor, inside["array_col"] // factor, strict=True)
    tissue = pd.MultiIndex.from_tuples(list(set(place)) or [(-1, -1)])
    bins = pd.MultiIndex.from_frame(binned.obs[["array_row", "array_col"]])
    binned.obs["in_tissue"] = bins.isin(tissue).astype(np.int64)


def _segmented(
    path: Path, segments: str, *, raw: bool, threads: int, progress: Progress | None
) -> AnnData:
    if segments not in ("cells", "nuclei"):
        raise ValueError(f"segments: expected 'cells' or 'nuclei', got {segments!r}")
    folder = _segments.find(path)
    if folder is None:
        raise FileNotFoundError(2, "expected segmented_outputs, got none", str(path))
    squares = _folders(path)
    smallest = squares[min(squares)] if squares else None
    return _segments.read_segments(
        folder, segments, smallest, raw=raw, threads=threads, progress=progress
    )


def _attach(
    adata: AnnData,
    path: Path,
    given: str | os.PathLike[str] | None,
    folders: dict[int, Path],
) -> None:
    """The picture, and what ``feature_slice.h5`` adds."""
    _, library = _spatial.library(adata)
    full = Path(given) if given is not None else _find_image(path)
    bin_size = round(library["scalefactors"].get("bin_size_um", 0))
    folder = folders.get(bin_size) or (min(folders.items())[1] if folders else path)
    overviews = {k: folder / "spatial" / f"tissue_{k}_image.png" for k in library["images"]}
    attach_picture(adata, full, overviews)
    library["metadata"] |= describe_feature_slice(path)


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
        warn(
            f"{path}: expected one full-resolution picture, got {[p.name for p in files]}; "
            f"taking {files[0].name}: give image= to choose"
        )
    return files[0] if files else None
