"""Slides in other packages' and data sets' shapes: SpatialData, STimage-1K4M, h5ad, zarr.

What comes out is what their own tools read; what a shape cannot hold is not written and
is named in the docs.
"""

import csv
import io
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from anndata import AnnData
from numpy.typing import NDArray

from stfast import _check, _core, _lazy, _spatial
from stfast._output import whole
from stfast.readers.stimage import TECHNOLOGIES, read_stimage_meta

Progress = Callable[[int], object]

_SUFFIXES = {".h5ad": "h5ad", ".zarr": "zarr"}
KINDS = ("h5ad", "zarr", "spatialdata", "stimage")
"""What :func:`save` writes."""
_TECHNOLOGY_OF = {"read_st": "ST", "read_visium": "Visium", "read_visium_hd": "VisiumHD"}
_META = ["slide", "species", "tissue", "pmid", "title", "abstract", "keywords"]
_META += ["involve_cancer", "tech", "spot_num", "gene_num"]


def to_spatialdata(adata: AnnData) -> Any:
    """Turn a slide into SpatialData.

    Parameters
    ----------
    adata
        A slide as :func:`stfast.read` gives it.

    Returns
    -------
    spatialdata.SpatialData
        ``{library}_hires_image`` and ``{library}_lowres_image``; spots as circles of
        ``spot_diameter_fullres``, bins of Visium HD as squares, named by the library;
        ``table`` annotating them. Coordinate systems are those of spatialdata-io:
        ``{library}`` (full-resolution pixels), ``{library}_downscaled_hires`` and
        ``{library}_downscaled_lowres``.

    Raises
    ------
    ImportError
        spatialdata is not installed.
    ValueError
        No library, or no positions.
    """
    try:
        from spatialdata import SpatialData
        from spatialdata.models import Image2DModel, ShapesModel, TableModel
        from spatialdata.transformations import Identity, Scale
    except ImportError as error:
        found = f"expected spatialdata (pip install 'stfast[spatialdata]'), got {error}"
        raise ImportError(found) from error

    adata = _lazy.tables(adata)
    name, library = _spatial.library(adata)
    factors, images = library["scalefactors"], library["images"]
    scales = {kind: factors[f"tissue_{kind}_scalef"] for kind in images}
    systems: dict[str, Any] = {name: Identity()}
    for kind, scale in scales.items():
        systems[f"{name}_downscaled_{kind}"] = Scale([scale, scale], axes=("x", "y"))
    shapes = ShapesModel.parse(_shapes(adata, factors), transformations=systems)
    pictures = {}
    for kind, pixels in images.items():
        back = Scale([1 / scales[kind]] * 2, axes=("x", "y"))
        places = {f"{name}_downscaled_{kind}": Identity(), name: back}
        pictures[f"{name}_{kind}_image"] = Image2DModel.parse(
            np.moveaxis(pixels, -1, 0), dims=("c", "y", "x"), transformations=places
        )
    table = adata.copy()
    table.obs["spot_id"] = np.arange(table.n_obs)
    table.obs["region"] = name
    table.obs["region"] = table.obs["region"].astype("category")
    table = TableModel.parse(table, region=name, region_key="region", instance_key="spot_id")
    return SpatialData(images=pictures, shapes={name: shapes}, tables={"table": table})


def _shapes(adata: AnnData, factors: Mapping[str, Any]) -> Any:
    """Squares of Visium HD along their grid; circles of all others."""
    import shapely
    from geopandas import GeoDataFrame

    xy = _spatial.full_centers(adata)
    if "bin_size_um" not in factors or len(xy) < 3:
        radius = np.full(len(xy), factors["spot_diameter_fullres"] / 2)
        return GeoDataFrame({"radius": radius}, geometry=shapely.points(xy))
    at = adata.obs[["array_col", "array_row"]].to_numpy(np.float64)
    step = np.linalg.lstsq(at - at.mean(axis=0), xy - xy.mean(axis=0), rcond=None)[0]
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1], [-1, -1]]) / 2 @ step
    return GeoDataFrame(geometry=shapely.polygons(xy[:, None] + corners))


def write_stimage(
    adata: AnnData,
    root: str | os.PathLike[str],
    slide: str,
    *,
    technology: str | None = None,
    meta: Mapping[str, Any] | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write a slide in STimage-1K4M's layout.

    Parameters
    ----------
    adata
        A slide as :func:`stfast.read` gives it. Coordinates and radius are written in
        pixels of its best picture, as the paper has them.
    root
        Folder of the data set; made if it is not there.
    slide
        Name of the slide; must not contain a slash.
    technology
        ``ST``, ``Visium`` or ``VisiumHD``; ``None``: by what read the slide.
    meta
        Columns of the slide's row in ``meta/meta_all_gene.csv``, such as ``species``;
        ``tech``, ``spot_num`` and ``gene_num`` are filled in.
    workers
        Threads; ``None``: ``$STFAST_WORKERS``, else the CPUs of this process.
    progress
        Called now and then with the number of spots whose counts are written.

    Returns
    -------
    Path
        ``{root}/{technology}``.

    Raises
    ------
    ValueError
        No such technology, counts that are no CSR, or a name that cannot be a file's.

    Notes
    -----
    Counts are dense text, as published: 8 µm bins of Visium HD make 20 GB a slide. They
    pass through in stretches. The picture is copied as ``image/{slide}.png`` whatever it
    is, as the data set does. ``obs["annotation"]`` goes to ``annotation/{slide}.csv``.
    """
    threads, adata = _check.workers(workers), _lazy.tables(adata)
    if not slide or Path(slide).name != slide:
        raise ValueError(f"slide: expected a name without slashes, got {slide!r}")
    technology = technology or _technology(adata)
    if technology not in TECHNOLOGIES:
        raise ValueError(f"technology: expected one of {TECHNOLOGIES}, got {technology!r}")
    folder = Path(root) / technology
    for name in ("coord", "gene_exp", "image", "annotation"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    names = [f"{slide}_{spot}" for spot in adata.obs_names]
    _write_counts(adata, folder / "gene_exp" / f"{slide}_count.csv", names, threads, progress)
    _write_coord(adata, folder / "coord" / f"{slide}_coord.csv", names)
    _write_annotation(adata, folder / "annotation" / f"{slide}.csv", names)
    metadata = _spatial.library(adata)[1].get("metadata", {})
    if metadata.get("source_image_path"):
        with whole(folder / "image" / f"{slide}.png") as partial:
            shutil.copyfile(metadata["source_image_path"], partial)
    counted = {"tech": technology, "spot_num": adata.n_obs, "gene_num": adata.n_vars}
    _write_meta(Path(root), {"slide": slide, **(meta or {}), **counted})
    return folder


def _technology(adata: AnnData) -> str:
    steps = adata.uns.get("stfast", {})
    if "read_stimage" in steps:
        return str(steps["read_stimage"]["technology"])
    known = [name for step, name in _TECHNOLOGY_OF.items() if step in steps]
    if not known:
        raise ValueError(f"technology: expected one of {TECHNOLOGIES}, got none and cannot tell")
    return known[0]


def _write_counts(
    adata: AnnData, path: Path, names: list[str], threads: int, progress: Progress | None
) -> None:
    counts = _lazy.csr(adata.X, "X")
    if not counts.has_canonical_format:
        counts = _check.tidied(counts, "X")
    matrix = _check.matrix(counts)
    if matrix[0].dtype.kind == "f" and bool((matrix[0] == np.trunc(matrix[0])).all()):
        # Whole counts are written as such: 3, not 3.0.
        matrix = (matrix[0].astype(np.int64), *matrix[1:])
    header = ",".join(["", *map(_field, adata.var_names)])
    with whole(path) as partial:
        quoted = list(map(_field, names))
        _core.write_table(partial, header, quoted, ord(","), matrix, threads, progress)


def _field(text: str) -> str:
    """A field of a CSV, quoted where it must be."""
    if any(sign in text for sign in ',"\n\r'):
        out = io.StringIO()
        csv.writer(out, lineterminator="").writerow([text])
        return out.getvalue()
    return text


def _write_coord(adata: AnnData, path: Path, names: list[str]) -> None:
    xy: NDArray[np.float64] = _spatial.centers(adata)
    radius = _spatial.spot_span(adata) / 2
    columns = {"": names, "yaxis": xy[:, 1], "xaxis": xy[:, 0], "r": np.full(len(xy), radius)}
    with whole(path) as partial:
        pl.DataFrame(columns).write_csv(partial)


def _write_annotation(adata: AnnData, path: Path, names: list[str]) -> None:
    if "annotation" not in adata.obs:
        return
    annotation = adata.obs["annotation"].astype(object)
    labels = annotation.where(annotation.notna(), None).tolist()
    with whole(path) as partial:
        pl.DataFrame({"": names, "V2": pl.Series(labels, dtype=pl.String)}).write_csv(
            partial, separator="\t"
        )


def _write_meta(root: Path, row: Mapping[str, Any]) -> None:
    """Put the slide's row into the table of slides, in place of an older one."""
    (root / "meta").mkdir(exist_ok=True)
    tables = sorted((root / "meta").glob("meta_all_gene*.csv"))
    path = tables[-1] if tables else root / "meta" / "meta_all_gene.csv"
    mine = {name: None if value is None else str(value) for name, value in row.items()}
    rows = pl.DataFrame([mine])
    if tables:
        old = read_stimage_meta(path).with_columns(pl.all().cast(pl.String))
        rows = pl.concat([old.filter(pl.col("slide") != row["slide"]), rows], how="diagonal")
    columns = [*_META, *(name for name in rows.columns if name not in _META)]
    missing = [pl.lit(None, pl.String).alias(n) for n in columns if n not in rows.columns]
    with whole(path) as partial:
        rows.with_columns(missing).select(columns).write_csv(partial, quote_style="non_numeric")


def kind_of(path: Path) -> str:
    """What a name asks for: h5ad, zarr, or nothing that can be told."""
    return _SUFFIXES.get(path.suffix, "stimage" if not path.suffix else "")


def save(
    adata: AnnData,
    path: str | os.PathLike[str],
    kind: str | None = None,
    *,
    slide: str | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write a slide as h5ad, zarr, SpatialData's zarr or in STimage-1K4M's layout.

    Parameters
    ----------
    adata
        A slide.
    path
        File or folder to write; of STimage-1K4M's layout the root.
    kind
        ``h5ad``, ``zarr``, ``spatialdata`` or ``stimage``; ``None``: by the suffix of
        ``path``: ``.h5ad``, ``.zarr`` (AnnData's), none (STimage-1K4M's layout).
    slide
        Name of the slide in STimage-1K4M's layout; ``None``: its library's.
    workers, progress
        As in :func:`write_stimage`.

    Returns
    -------
    Path
        What was written.
    """
    path, adata = Path(path), _lazy.tables(adata)
    kind = kind or kind_of(path)
    if kind not in KINDS:
        raise ValueError(f"to: expected one of {KINDS}, got {kind or path.suffix!r}")
    if kind == "stimage":
        name = slide or _spatial.library(adata)[0]
        return write_stimage(adata, path, name, workers=workers, progress=progress)
    with whole(path) as partial:
        if kind == "h5ad":
            adata.write_h5ad(partial, compression="gzip")
        elif kind == "zarr":
            adata.write_zarr(partial)
        else:
            to_spatialdata(adata).write(partial)
    return path
