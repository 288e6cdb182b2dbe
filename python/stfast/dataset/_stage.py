"""The first stage of a build: one slide, read and its tiles encoded, once.

What it leaves in ``staging/SLIDE`` is all that the second stage reads. A slide is
staged when its ``done.json`` is there; the fingerprint inside says of which files
and settings it was made.
"""

import hashlib
import json
import shutil
import threading
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import sparse

from stfast import _check, _spatial
from stfast._output import whole
from stfast._warn import warn
from stfast.dataset import _checks, _hvg, _layout
from stfast.dataset._journal import Steps
from stfast.h5 import opened

if TYPE_CHECKING:
    from anndata import AnnData

    from stfast.images import SlideImage
    from stfast.tiles import TileReport

DONE, SPOTS, TILES, HVG = "done.json", "spots.parquet", "tiles", "hvg.npy"
MOMENTS, STORE = "moments.parquet", "slide.zarr"
FACTS = ("fingerprint", "n_spots", "n_genes", "width", "height", "span", "r")
"""What the table of slides says of each, as it was measured."""
COUNTS = ("indptr.npy", "indices.npy", "values.npy")
_ENDS = 1 << 20
"""Bytes of a file's start and end that its fingerprint is of."""
_PICTURE = "metadata/source_image_path"
_ZARR = threading.Lock()
"""anndata's settings are the process's, and a worker of Dask may stage several slides."""


@dataclass(frozen=True)
class Settings:
    """What the bytes of a staged slide depend on, beside its files.

    ``n_top_genes`` is 0 where genes are chosen among all slides.
    """

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
        "files": [_file(root, path) for root in inputs(row) for path in below(root)],
        "mpp": row.get("mpp"),
        "sample": row.get("sample"),
        "settings": asdict(settings),
        "format_version": _layout.FORMAT_VERSION,
        "stfast": metadata.version("stfast"),
    }
    text = json.dumps(made, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def inputs(row: dict[str, Any]) -> list[Path]:
    """Files and folders that a slide is made of."""
    from stfast.readers.stimage import files_of

    path, others = Path(row["path"]), (row.get(column) for column in ("image", "annotation"))
    found = [path, *files_of(path)[1:]]
    if row.get("sample") and path.is_dir():
        found = _files_of_sample(path, row["sample"])
    found += [Path(other) for other in others if other]
    return found if row.get("image") else [*found, *_pictures_named_by(path)]


def _files_of_sample(folder: Path, sample: str) -> list[Path]:
    """Those of one sample among several in a folder: the others may come and go."""
    from stfast.readers._files import find_sample

    found = find_sample(folder, sample)
    files = [*found.roles.values(), *(p for t in found.triplets.values() for p in t.values())]
    return sorted(set(files))


def _pictures_named_by(path: Path) -> list[Path]:
    """Pictures that an h5ad says it is of, those that are there."""
    if path.suffix != ".h5ad" or not path.is_file():
        return []
    with opened(path) as file:
        libraries = file["uns/spatial"].values() if "uns/spatial" in file else ()
        named = [x[_PICTURE] for x in libraries if isinstance(x, h5py.Group) and _PICTURE in x]
        paths = [Path(text.asstr()[()]) for text in named]
    return [picture for picture in paths if picture.is_file()]


def below(root: Path) -> list[Path]:
    """The files of a folder and of the folders it links to, or the file itself."""
    if not root.exists():
        raise FileNotFoundError(2, "No such file or directory", str(root))
    return sorted(_files(root, set())) if root.is_dir() else [root]


def _files(folder: Path, seen: set[Path]) -> Iterator[Path]:
    """What lies in a folder, each real folder once; a build's own folder is none of a slide's."""
    real = folder.resolve()
    if real in seen or (folder / _layout.MARK).exists():
        return
    seen.add(real)
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            yield from _files(path, seen)
        elif path.is_file():
            yield path


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
        told: dict[str, Any] = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return told


def store(root: Path, slide: str) -> Path:
    """The slide's AnnData: staged, or where a merge has moved it."""
    path = folder(root, slide) / STORE
    return path if path.exists() else _layout.slide(root, slide)


def is_current(root: Path, slide: str, mark: str) -> bool:
    """Whether a slide is staged whole, of the files and settings of a fingerprint."""
    found = staged(root, slide)
    if found is None or found.get("fingerprint") != mark:
        return False
    names = [SPOTS, TILES, MOMENTS, *COUNTS, *([HVG] if found.get("hvg_genes") else [])]
    files = [store(root, slide), *(folder(root, slide) / name for name in names)]
    return all(path.exists() for path in files)


def stage(
    root: Path, row: dict[str, Any], settings: Settings, workers: int, *, steps: Steps
) -> bool:
    """Stage a slide unless it is; whether there was anything to do."""
    slide, mark = row["slide"], fingerprint(row, settings)
    if is_current(root, slide, mark):
        return False
    target = folder(root, slide)
    begun = target / "begun"
    if target.exists() and not _says(begun, mark):
        (target / DONE).unlink(missing_ok=True)  # first: a merge may be looking
        shutil.rmtree(target)
    target.mkdir(parents=True, exist_ok=True)
    begun.write_bytes(mark.encode())
    steps.begin("read")
    adata = _read(row, settings, workers)
    steps.begin("check")
    checked = _checks.label(adata, row) | _checks.align(adata, target, workers)
    facts = _write(root, adata, row, settings, workers, steps=steps) | checked
    text = json.dumps({"fingerprint": mark, **facts}, indent=1) + "\n"
    with whole(target / DONE) as partial:
        partial.write_bytes(text.encode())
    return True


def _says(path: Path, text: str) -> bool:
    return path.exists() and path.read_bytes() == text.encode()


def _read(row: dict[str, Any], settings: Settings, workers: int) -> "AnnData":
    import stfast

    path = Path(row["path"])
    options = {name: row[name] for name in ("image", "sample") if row.get(name)}
    adata = stfast.read(path, **options | _options(path, settings, workers))
    if not adata.n_obs:
        raise ValueError(f"{path}: expected spots, got none")
    values = sparse.csr_matrix(adata.X).data
    if not values.any():
        raise ValueError(f"{path}: expected counts, got none in {adata.n_obs} spots")
    if values.min() < 0 or not np.array_equal(values, np.rint(values)):
        raise ValueError(f"{path}: expected raw counts, got fractions or negative ones")
    if not adata.obs_names.is_unique:
        again = int(adata.obs_names.duplicated().sum())
        warn(f"{path}: {again} names of spots come again; they are numbered")
        adata.obs_names_make_unique()
    if not adata.var_names.is_unique:
        again = int(adata.var_names.duplicated().sum())
        warn(f"{path}: {again} names of genes come again; they are numbered")
        adata.var_names_make_unique()
    return adata


def _options(path: Path, settings: Settings, workers: int) -> dict[str, Any]:
    """What the slide's reader is to be told."""
    from stfast.readers.visium_hd import is_visium_hd

    bins = {"bin_size": settings.bin_size} if path.is_dir() and is_visium_hd(path) else {}
    return {"workers": workers, **bins}


def _write(
    root: Path,
    adata: "AnnData",
    row: dict[str, Any],
    settings: Settings,
    workers: int,
    *,
    steps: Steps,
) -> dict[str, Any]:
    """The staged files of a slide and its AnnData; what was measured."""
    import stfast

    target = folder(root, row["slide"])
    image = stfast.open_image(_spatial.image_path(adata))
    diameter = _spatial.spot_span(adata)
    span = _span(adata, row, settings, diameter)
    steps.begin("tiles", adata.n_obs)
    report = _cut(image, adata, target, settings, span=span, workers=workers, steps=steps)
    steps.begin("genes")
    counts = _counts(adata)
    n_top = settings.n_top_genes
    genes = _write_genes(adata, counts, target, slide=row["slide"], n_top=n_top, workers=workers)
    spots = _spots(row["slide"], adata, counts, _places(target)).with_columns(
        r=diameter / 2,
        label=pl.Series(_checks.labels(adata, row), dtype=pl.String),
        valid=pl.Series(report.valid),
    )
    _write_spots(spots, target / SPOTS)
    steps.begin("store")
    _write_store(adata, target / STORE)
    height, width = image.shape
    return {
        "n_spots": adata.n_obs,
        "n_genes": adata.n_vars,
        "picture": _file(image.path.parent, image.path)[1:],
        "width": width,
        "height": height,
        "span": span,
        "r": diameter / 2,
        **genes,
    }


def _write_spots(spots: pl.DataFrame, path: Path) -> None:
    kinds = _layout.INDEX_SCHEMA.items()
    spots.select(pl.col(name).cast(kind) for name, kind in kinds).write_parquet(path)


def _write_genes(
    adata: "AnnData",
    counts: sparse.csr_matrix,
    target: Path,
    *,
    slide: str,
    n_top: int,
    workers: int,
) -> dict[str, Any]:
    """The slide's counts, moments and chosen genes; what the merge must know of them."""
    import stfast

    arrays = _smallest(counts)
    for name, array in zip(COUNTS, arrays, strict=True):
        np.save(target / name, array)
    stfast.gene_moments(adata, workers=workers).write(target / MOMENTS)
    chosen: list[str] = []
    if n_top:
        matrix, chosen = _hvg.of_slide(slide, adata, n_top, workers)
        np.save(target / HVG, matrix)
    return {
        "values": arrays[2].dtype.str,
        "genes": adata.var_names.tolist(),
        "hvg_genes": chosen,
    }


def _places(target: Path) -> pl.DataFrame:
    """Where the encoded tile of each spot lies, in the order of the slide's spots."""
    places = pl.read_parquet(target / TILES / "spots.parquet").sort("row")
    return places.select("shard", "offset", "length")


def _cut(
    image: "SlideImage",
    adata: "AnnData",
    target: Path,
    settings: Settings,
    *,
    span: float,
    workers: int,
    steps: Steps,
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
        progress=steps.advance,
    )


def _span(adata: "AnnData", row: dict[str, Any], settings: Settings, diameter: float) -> float:
    """Side in pixels of a tile's window: what was asked for, else the paper's 2r."""
    if settings.span_um is None:
        return diameter
    return settings.span_um / (row.get("mpp") or _spatial.mpp(adata))


def _counts(adata: "AnnData") -> sparse.csr_matrix:
    """The slide's counts in canonical form; zeros that are stored are none."""
    counts = _check.csr(adata.X, "X")
    if not counts.has_canonical_format:
        counts = _check.tidied(counts, "X")
    if not counts.data.all():
        counts = counts.copy()
        counts.eliminate_zeros()
    return counts


def _smallest(counts: sparse.csr_matrix) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """A matrix's three arrays; counts in the smallest type that holds them, the largest float32."""
    values, most = counts.data, int(counts.data.max(initial=0))
    wide = np.min_scalar_type(most).type if most < 1 << 32 else np.float32
    indptr = counts.indptr.astype(np.int64)
    return indptr, counts.indices.astype(np.int32), values.astype(wide)


def _spots(
    slide: str, adata: "AnnData", counts: sparse.csr_matrix, places: pl.DataFrame
) -> pl.DataFrame:
    """The slide's rows of the index, in the order of its spots; shards are staged ones."""
    xy, n = _spatial.centers(adata), adata.n_obs
    tissue = np.ones(n, bool)
    if "in_tissue" in adata.obs:
        tissue = _spatial.flags(adata.obs, "in_tissue") == 1
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


def _write_store(adata: "AnnData", path: Path) -> None:
    """The slide's AnnData, there when it is whole."""
    import anndata

    partial = path.with_name(path.name + ".part")
    for old in (partial, path):
        if old.exists():
            shutil.rmtree(old)
    options: dict[str, Any] = {}
    if tuple(map(int, metadata.version("anndata").split(".")[:2])) < (0, 13):
        options["zarr_write_format"] = 3  # what 0.13 writes unasked; 0.14 will know no such option
    if hasattr(anndata.settings, "auto_shard_zarr_v3"):
        options["auto_shard_zarr_v3"] = False  # the same files, whichever anndata writes them
    with _ZARR, anndata.settings.override(**options), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Consolidated metadata")
        adata.write_zarr(partial)
    partial.rename(path)
