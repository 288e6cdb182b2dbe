"""The first stage of a build: one slide, read and its tiles encoded, once.

What it leaves in ``staging/SLIDE`` is all that the second stage reads. A slide is
staged when its ``done.json`` is there; the fingerprint inside says of which files
and settings it was made.
"""

import hashlib
import json
import shutil
import warnings
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import sparse

from stfast import _spatial
from stfast._output import whole
from stfast._warn import warn
from stfast.dataset import _checks, _layout

if TYPE_CHECKING:
    from anndata import AnnData

    from stfast.images import SlideImage
    from stfast.tiles import TileReport

DONE, SPOTS, TILES, HVG = "done.json", "spots.parquet", "tiles", "hvg.npy"
COUNTS = ("indptr.npy", "indices.npy", "values.npy")
_ENDS = 1 << 20
"""Bytes of a file's start and end that its fingerprint is of."""


@dataclass(frozen=True)
class Settings:
    """What the bytes of a staged slide depend on, beside its files."""

    bin_size: float
    size: int
    span_um: float | None
    n_top_genes: int
    tiles: str
    quality: int


def folder(root: Path, slide: str) -> Path:
    """Where a slide is staged."""
    return root / "staging" / slide


def fingerprint(row: dict[str, Any], settings: Settings) -> str:
    """Of a slide's files (names, sizes, first and last MiB) and of the settings."""
    made = {
        "slide": row["slide"],
        "files": [_file(root, path) for root in inputs(row) for path in _below(root)],
        "mpp": row.get("mpp"),
        "sample": row.get("sample"),
        "settings": asdict(settings),
        "format_version": _layout.FORMAT_VERSION,
        "stfast": metadata.version("stfast"),
    }
    text = json.dumps(made, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def inputs(row: dict[str, Any]) -> list[Path]:
    from stfast.readers.stimage import files_of

    named = (row.get(column) for column in ("path", "image", "annotation"))
    return [*(Path(path) for path in named if path), *files_of(Path(row["path"]))[1:]]


def _below(root: Path) -> list[Path]:
    if not root.exists():
        raise FileNotFoundError(2, "No such file or directory", str(root))
    return sorted(p for p in root.rglob("*") if p.is_file()) if root.is_dir() else [root]


def _file(root: Path, path: Path) -> tuple[str, int, str]:
    digest, length = hashlib.blake2b(digest_size=16), path.stat().st_size
    with path.open("rb") as file:
        digest.update(file.read(_ENDS))
        file.seek(max(length - _ENDS, 0))
        digest.update(file.read(_ENDS))
    return path.relative_to(root.parent).as_posix(), length, digest.hexdigest()


def staged(root: Path, slide: str) -> dict[str, Any] | None:
    """What ``done.json`` says of a slide; ``None``: it is not staged."""
    path = folder(root, slide) / DONE
    try:
        told: dict[str, Any] = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None
    return told


def stage(root: Path, row: dict[str, Any], settings: Settings, workers: int) -> bool:
    """Stage a slide unless it is; whether there was anything to do."""
    slide, mark = row["slide"], fingerprint(row, settings)
    found = staged(root, slide)
    if found is not None and found["fingerprint"] == mark and _layout.slide(root, slide).exists():
        return False
    target = folder(root, slide)
    begun = target / "begun"
    if target.exists() and not _says(begun, mark):
        shutil.rmtree(target)
    target.mkdir(parents=True, exist_ok=True)
    begun.write_text(mark)
    adata = _read(row, settings)
    checked = _checks.label(adata, row) | _checks.align(adata, target, workers)
    facts = _write(root, adata, row, settings, workers) | checked
    text = json.dumps({"fingerprint": mark, **facts}, indent=1) + "\n"
    with whole(target / DONE) as partial:
        partial.write_text(text)
    return True


def _says(path: Path, text: str) -> bool:
    return path.exists() and path.read_text() == text


def _read(row: dict[str, Any], settings: Settings) -> "AnnData":
    import stfast
    from stfast.readers.visium_hd import is_visium_hd

    path = Path(row["path"])
    options = {name: row[name] for name in ("image", "sample") if row.get(name)}
    if path.is_dir() and is_visium_hd(path):
        options["bin_size"] = settings.bin_size
    adata = stfast.read(path, **options)
    if not adata.var_names.is_unique:
        again = int(adata.var_names.duplicated().sum())
        warn(f"{path}: {again} names of genes come again; they are numbered")
        adata.var_names_make_unique()
    return adata


def _write(
    root: Path, adata: "AnnData", row: dict[str, Any], settings: Settings, workers: int
) -> dict[str, Any]:
    """The staged files of a slide and its AnnData; what was measured."""
    import stfast

    slide, target = row["slide"], folder(root, row["slide"])
    image = stfast.open_image(_spatial.image_path(adata))
    diameter = _spatial.spot_span(adata)
    span = _span(adata, row, settings, diameter)
    report = _cut(image, adata, target, settings, span=span, workers=workers)
    counts = _counts(adata)
    arrays = _smallest(counts)
    for name, array in zip(COUNTS, arrays, strict=True):
        np.save(target / name, array)
    matrix, genes = _hvg(slide, adata, settings, workers)
    np.save(target / HVG, matrix)
    places = pl.read_parquet(target / TILES / "spots.parquet").sort("row")
    spots = _spots(slide, adata, counts, places.select("shard", "offset", "length"))
    spots = spots.with_columns(
        pl.lit(diameter / 2).alias("r"),
        pl.Series("label", _checks.labels(adata, row), dtype=pl.String),
        pl.Series("valid", report.valid),
    )
    schema = _layout.INDEX_SCHEMA
    spots = spots.select(pl.col(name).cast(kind) for name, kind in schema.items())
    spots.write_parquet(target / SPOTS)
    _write_slide(adata, target / "slide.zarr", _layout.slide(root, slide))
    height, width = image.shape
    return {
        "n_spots": adata.n_obs,
        "n_genes": adata.n_vars,
        "width": width,
        "height": height,
        "span": span,
        "r": diameter / 2,
        "values": arrays[2].dtype.str,
        "genes": adata.var_names.tolist(),
        "hvg_genes": genes,
    }


def _cut(
    image: "SlideImage",
    adata: "AnnData",
    target: Path,
    settings: Settings,
    *,
    span: float,
    workers: int,
) -> "TileReport":
    """The slide's encoded tiles; those that a killed run left whole are kept."""
    import stfast

    return stfast.write_tiles(
        image,
        _spatial.centers(adata),
        target / TILES,
        names=[str(n) for n in range(adata.n_obs)],
        container="wds",
        encoding=settings.tiles,  # type: ignore[arg-type]
        quality=settings.quality,
        size=settings.size,
        span=span,
        resume=True,
        workers=workers,
    )


def _span(adata: "AnnData", row: dict[str, Any], settings: Settings, diameter: float) -> float:
    """Side in pixels of a tile's window: what was asked for, else the paper's 2r."""
    if settings.span_um is None:
        return diameter
    return settings.span_um / (row.get("mpp") or _spatial.mpp(adata))


def _counts(adata: "AnnData") -> sparse.csr_matrix:
    counts = sparse.csr_matrix(adata.X)
    counts.sum_duplicates()
    return counts


def _smallest(counts: sparse.csr_matrix) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """A matrix's three arrays; counts in the smallest type that holds them, others as float32."""
    values = counts.data
    wide: type[Any] = np.float32
    if values.min(initial=0) >= 0 and np.array_equal(values, np.rint(values)):
        most = int(values.max(initial=0))
        wide = np.min_scalar_type(most).type if most < 1 << 32 else np.float32
    indptr = counts.indptr.astype(np.int64)
    return indptr, counts.indices.astype(np.int32), values.astype(wide)


def _hvg(
    slide: str, adata: "AnnData", settings: Settings, workers: int
) -> tuple[NDArray[np.float32], list[str]]:
    """The paper's matrix with a row a spot, zeros where a spot has no counts; its genes."""
    import stfast

    made = stfast.hvg_rank_combined({slide: adata}, settings.n_top_genes, workers=workers)
    assert made is not None
    matrix = np.zeros((adata.n_obs, settings.n_top_genes), np.float32)
    matrix[adata.obs_names.get_indexer(made.obs["spot"])] = made.X
    return matrix, made.uns["hvg_genes"].loc[slide].tolist()


def _spots(
    slide: str, adata: "AnnData", counts: sparse.csr_matrix, places: pl.DataFrame
) -> pl.DataFrame:
    """The slide's rows of the index, in the order of its spots; shards are staged ones."""
    xy, n = _spatial.centers(adata), adata.n_obs
    tissue = np.ones(n, bool)
    if "in_tissue" in adata.obs:
        tissue = adata.obs["in_tissue"].to_numpy() == 1
    columns = {
        "slide": [slide] * n,
        "spot": adata.obs_names.tolist(),
        "x": xy[:, 0],
        "y": xy[:, 1],
        "in_tissue": tissue,
        "n_counts": np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel(),
        "n_genes": np.diff(counts.indptr).astype(np.uint32),
    }
    return pl.DataFrame(columns).hstack(places)


def _write_slide(adata: "AnnData", partial: Path, path: Path) -> None:
    """The slide's AnnData, made where only its own stage sees a part of it."""
    import anndata

    if partial.exists():
        shutil.rmtree(partial)
    options: dict[str, Any] = {"zarr_write_format": 3}
    if hasattr(anndata.settings, "auto_shard_zarr_v3"):
        options["auto_shard_zarr_v3"] = False  # the same files, whichever anndata writes them
    with anndata.settings.override(**options), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Consolidated metadata")
        adata.write_zarr(partial)
    if path.exists():
        shutil.rmtree(path)
    path.parent.mkdir(exist_ok=True)
    partial.rename(path)
