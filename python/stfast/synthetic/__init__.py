"""A synthetic Visium HD slide, in the very files that Space Ranger leaves.

Real slides of this kind are several GB and none is small and free, so tests,
benches and the demo make their own. The layout of the files is Space Ranger's;
the content comes from one model of tissue that both the picture and the counts
obey, hence what is true of a real slide (a nucleus lies where its genes are)
can be checked on this one, at any size up to a whole slide.
"""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stfast import _check
from stfast._core import __version__
from stfast._output import whole
from stfast.synthetic._stream import Step, in_order, progress_bar
from stfast.synthetic.counts import (
    BAND_ROWS,
    HOUSEKEEPING,
    MARKERS,
    Band,
    Genes,
    Sampler,
    barcodes,
    invent_genes,
    set_up_sampler,
)
from stfast.synthetic.layout import Layout, lay_out
from stfast.synthetic.matrix import PYTHON, RUST, SOFTWARE_VERSION, MatrixWriter
from stfast.synthetic.picture import Overviews, set_up_painter, tiles_of, write_picture
from stfast.synthetic.tissue import grow_tissue

__all__ = ["FORMAT_VERSION", "HOUSEKEEPING", "MARKERS", "synthesize_visium_hd"]

FORMAT_VERSION = 1
# Least, most and unit of an argument. 3 µm round to 4 squares, 6 700 µm are a full slide;
# beyond the others memory per tile or band, which the slide's size does not touch, would grow.
_SIDE_UM = (3.0, 6700.0, "µm")
_UMI = (1e-6, 500.0, "molecules")
_MPP = (0.05, 10.0, "µm per pixel")


def synthesize_visium_hd(
    folder: str | os.PathLike[str],
    *,
    side_um: float = 1000.0,
    n_genes: int = 18_000,
    umi_per_square: float = 20.0,
    mpp: float = 0.27376,
    seed: int = 0,
    progress: bool = False,
) -> Path:
    """Write a synthetic Visium HD slide in Space Ranger's layout.

    Parameters
    ----------
    folder
        Folder to make. It appears whole or not at all.
    side_um
        Side of the square grid, 3 to 6 700 µm, rounded to 2 µm squares; 6 700 is a
        full slide (3350 x 3350 squares).
    n_genes
        Genes, the 38 markers and housekeeping genes among them.
    umi_per_square
        Molecules in a 2 µm square of tissue, on average, at most 500; 2 % of that
        off the tissue.
    mpp
        µm per pixel of the microscope picture, 0.05 to 10.
    seed
        The same seed and arguments give the same slide, whatever the number of
        threads.
    progress
        Show a bar on stderr when it is a terminal.

    Returns
    -------
    The folder, with ``binned_outputs/square_002um`` (raw and filtered matrix,
    positions, scale factors, overview pictures), ``microscope_image`` and
    ``stfast.json``, which tells the parameters, the array-to-pixel map and the
    markers of each region.

    Raises
    ------
    ValueError
        An argument is out of its range.
    FileExistsError
        The folder exists and is not empty.
    FileNotFoundError
        The folder that is to hold it does not exist.
    """
    folder = Path(folder)
    parameters: dict[str, Any] = {
        "side_um": _between(side_um, "side_um", _SIDE_UM),
        "n_genes": _at_least(
            n_genes, "n_genes", len(HOUSEKEEPING) + sum(map(len, MARKERS.values()))
        ),
        "umi_per_square": _between(umi_per_square, "umi_per_square", _UMI),
        "mpp": _between(mpp, "mpp", _MPP),
        "seed": _at_least(seed, "seed", 0),
    }
    _refuse_occupied(folder)
    with whole(folder) as made, ThreadPoolExecutor(_check.workers(None)) as pool:
        _write_slide(made, parameters, pool, progress=progress)
    return folder


def _between(value: float, name: str, limits: tuple[float, float, str]) -> float:
    low, high, unit = limits
    number = _check.positive(value, name, unit)
    if not low <= number <= high:
        raise ValueError(f"{name}: expected {low:g} to {high:g} {unit}, got {value!r}")
    return number


def _at_least(value: object, name: str, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise ValueError(f"{name}: expected an integer of at least {least}, got {value!r}")
    return int(value)


def _refuse_occupied(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"expected a new or empty folder, found content: {folder}")


def _write_slide(
    folder: Path, parameters: dict[str, Any], pool: ThreadPoolExecutor, *, progress: bool
) -> None:
    side_um, seed = parameters["side_um"], parameters["seed"]
    layout = lay_out(side_um, parameters["mpp"])
    tissue = grow_tissue(layout, side_um, seed)
    genes = invent_genes(parameters["n_genes"], seed)
    sampler = set_up_sampler(layout, tissue, genes, umi_per_square=parameters["umi_per_square"])
    painter = set_up_painter(layout, tissue)
    square = folder / "binned_outputs" / "square_002um"
    spatial, microscope = square / "spatial", folder / "microscope_image"
    spatial.mkdir(parents=True)
    microscope.mkdir()
    overviews = Overviews(layout)
    total = sum(1 for _ in tiles_of(layout)) + layout.squares
    with progress_bar("synthesize", total, shown=progress) as step:
        write_picture(painter, microscope / "tissue_image.btf", overviews, pool=pool, step=step)
        overviews.save(spatial)
        in_tissue = _write_matrices(square, sampler, genes, pool, step)
    _write_positions(spatial / "tissue_positions.parquet", layout, in_tissue)
    _write_json(spatial / "scalefactors_json.json", layout.scalefactors())
    _write_json(folder / "stfast.json", _provenance(parameters, layout))


def _write_matrices(
    folder: Path, sampler: Sampler, genes: Genes, pool: ThreadPoolExecutor, step: Step
) -> NDArray[np.bool_]:
    """Write both matrices; return which squares of the grid lie in the tissue."""
    in_tissue = []
    with (
        MatrixWriter(folder / "raw_feature_bc_matrix.h5", RUST, genes, pool=pool) as raw,
        MatrixWriter(
            folder / "filtered_feature_bc_matrix.h5", PYTHON, genes, pool=pool
        ) as filtered,
    ):
        starts = range(0, sampler.layout.squares, BAND_ROWS)
        for band in in_order(pool, sampler.band, starts):
            _append(raw, sampler.layout, band)
            _append(filtered, sampler.layout, band.within())
            in_tissue.append(band.in_tissue)
            step(band.in_tissue.size // sampler.layout.squares)
    return np.concatenate(in_tissue)


def _append(writer: MatrixWriter, layout: Layout, band: Band) -> None:
    writer.append(barcodes(layout, band, writer.style.barcode), band)


def _write_positions(path: Path, layout: Layout, in_tissue: NDArray[np.bool_]) -> None:
    """Write every square of the grid, in one row group as Space Ranger 4 does."""
    n = layout.squares
    rows, columns = np.divmod(np.arange(n * n, dtype=np.uint32), np.uint32(n))
    x, y = layout.pixels(rows, columns)
    padded = [pl.col(f"array_{axis}").cast(pl.String).str.zfill(5) for axis in ("row", "col")]
    pl.DataFrame(
        {
            "in_tissue": in_tissue.view(np.uint8),
            "array_row": rows,
            "array_col": columns,
            "pxl_row_in_fullres": y,
            "pxl_col_in_fullres": x,
        }
    ).select(pl.format("s_002um_{}_{}-1", *padded).alias("barcode"), pl.all()).write_parquet(
        path, compression="zstd", compression_level=3, row_group_size=n * n
    )


def _provenance(parameters: dict[str, Any], layout: Layout) -> dict[str, Any]:
    return {
        "format_version": FORMAT_VERSION,
        "stfast": __version__,
        "synthetic": True,
        "software_version": SOFTWARE_VERSION,
        "parameters": parameters,
        "affine_array_colrow_to_pixel_xy": layout.affine.tolist(),
        "picture_height_width": [layout.height, layout.width],
        "markers": MARKERS,
    }


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_bytes(f"{json.dumps(content, indent=2)}\n".encode())
