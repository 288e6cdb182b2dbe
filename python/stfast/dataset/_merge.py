"""The second stage of a build: staged slides into one dataset, in one random order.

The order of all spots follows from the seed and the slides' fingerprints. Encoded
tiles are copied by it into shards, counts and chosen genes are written a slide at a
time to where it says; no pixel is decoded. Files are made in ``merge.part`` and take
their places when all are whole; ``dataset.json``, without which nothing is a dataset,
goes first and comes last.
"""

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import sparse

from stfast import _core
from stfast.dataset import _checks, _layout, _report, _stage
from stfast.tiles._names import Strings, strings

_ENDINGS = {"jpeg": "jpg", "png": "png", "raw": "npy"}
_BLOCK = 512
_PARTS = (
    *("tiles", "genes", _layout.INDEX, _layout.SLIDE_TABLE),
    *(_report.PICTURES, _report.PAGE, _layout.DESCRIPTION),
)

Slides = dict[str, dict[str, Any]]
"""What ``done.json`` says of each slide, by name in order."""


@dataclass(frozen=True)
class _Coded:
    """Where the encoded tiles lie, as the native module reads it."""

    sources: list[Path]
    source: NDArray[np.uint32]
    offset: NDArray[np.uint64]
    length: NDArray[np.uint32]
    notes: Strings
    extension: str
    first: int = 0


def merge(
    root: Path,
    table: pl.DataFrame,
    settings: _stage.Settings,
    *,
    seed: int,
    shard_bytes: int,
    workers: int,
) -> int:
    """Make the dataset of the slides of a table, all of them staged; its number of spots."""
    table = table.sort("slide")
    slides = {name: _staged(root, name) for name in table["slide"]}
    part = root / "merge.part"
    if part.exists():
        shutil.rmtree(part)
    (part / "tiles").mkdir(parents=True)
    (part / _layout.COUNTS).mkdir(parents=True)
    tables = [pl.read_parquet(_stage.folder(root, name) / _stage.SPOTS) for name in slides]
    order = _order(slides, sum(t.height for t in tables), seed)
    index = _copy(
        root,
        part,
        tables,
        order,
        encoding=settings.tiles,
        shard_bytes=shard_bytes,
        workers=workers,
    )
    index.write_parquet(part / _layout.INDEX)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    _write_hvg(root, part, slides, place, settings.n_top_genes)
    _write_counts(root, part, slides, place)
    _slide_table(table, slides).write_parquet(part / _layout.SLIDE_TABLE)
    asked = {"format_version": _layout.FORMAT_VERSION, "version": metadata.version("stfast")}
    asked |= asdict(settings) | {"encoding": settings.tiles, "seed": seed, "n_spots": index.height}
    text = json.dumps({"name": root.name, _layout.SETTINGS: asked}, indent=1)
    (part / _layout.DESCRIPTION).write_text(text + "\n")
    _write_report(root, part, slides)
    _publish(root, part)
    return index.height


def _staged(root: Path, slide: str) -> dict[str, Any]:
    found = _stage.staged(root, slide)
    if found is None:
        path = _stage.folder(root, slide) / _stage.DONE
        raise FileNotFoundError(2, "expected a staged slide; build it first", str(path))
    return found


def _publish(root: Path, part: Path) -> None:
    (root / _layout.DESCRIPTION).unlink(missing_ok=True)
    for name in _PARTS:
        old = root / name
        if old.is_dir():
            shutil.rmtree(old)
        (part / name).replace(old)
    part.rmdir()


def _order(slides: Slides, n: int, seed: int) -> NDArray[np.int64]:
    """The permutation of all spots, which are numbered slide by slide."""
    marks = json.dumps([seed, *((name, told["fingerprint"]) for name, told in slides.items())])
    digest = hashlib.blake2b(marks.encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "little")).permutation(n)


def _copy(
    root: Path,
    part: Path,
    tables: list[pl.DataFrame],
    order: NDArray[np.int64],
    *,
    encoding: str,
    shard_bytes: int,
    workers: int,
) -> pl.DataFrame:
    """Copy the tiles into shards by the order; the index."""
    sources: list[Path] = []
    number = []
    for table in tables:
        folder = _stage.folder(root, table["slide"][0]) / _stage.TILES
        number.append(table["shard"].to_numpy() + len(sources))
        sources += [folder / f"tiles-{n:06}.tar" for n in range(int(table["shard"].max()) + 1)]  # type: ignore[arg-type]
    rows = pl.concat(tables)[order]
    said = ("slide", "spot", "x", "y", "r", "label")
    notes = rows.select(pl.struct(said).struct.json_encode()).to_series()
    length = rows["length"].to_numpy()
    padded = [-(-n.astype(np.int64) // _BLOCK) * _BLOCK for n in (length, _bytes(notes))]
    shard = _shards(padded[0] + padded[1] + 2 * _BLOCK, shard_bytes)
    ends = np.cumsum(np.bincount(shard)).tolist()
    ranges = zip([0, *ends[:-1]], ends, strict=True)
    wanted = [(_layout.shard(part, n), start, end) for n, (start, end) in enumerate(ranges)]
    coded = _Coded(
        sources=sources,
        source=np.concatenate(number)[order].astype(np.uint32),
        offset=rows["offset"].to_numpy(),
        length=length,
        notes=strings(notes),
        extension=_ENDINGS[encoding],
    )
    offset = _core.copy_tiles(coded, wanted, workers)
    return rows.with_columns(shard=pl.Series(shard, dtype=pl.UInt32), offset=pl.Series(offset))


def _bytes(texts: pl.Series) -> NDArray[np.uint32]:
    return texts.str.len_bytes().to_numpy()


def _shards(entries: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """The shard of each tile: tiles in order, a new shard about every ``most`` bytes."""
    begun = (np.cumsum(entries) - entries) // most
    shard: NDArray[np.int64] = np.unique(begun, return_inverse=True)[1].astype(np.int64)
    return shard


def _write_hvg(
    root: Path, part: Path, slides: Slides, place: NDArray[np.int64], n_top: int
) -> None:
    shape = (len(place), n_top)
    out = np.lib.format.open_memmap(part / _layout.HVG, "w+", np.float32, shape)
    start = 0
    for name, told in slides.items():
        rows = place[start : start + told["n_spots"]]
        out[rows] = np.load(_stage.folder(root, name) / _stage.HVG)
        start += len(rows)
    out.flush()
    genes = {
        "slide": [name for name in slides for _ in range(n_top)],
        "rank": pl.Series(np.tile(np.arange(n_top), len(slides)), dtype=pl.UInt32),
        "gene": [gene for told in slides.values() for gene in told["hvg_genes"]],
    }
    pl.DataFrame(genes).write_parquet(part / _layout.HVG_GENES)


def _write_counts(root: Path, part: Path, slides: Slides, place: NDArray[np.int64]) -> None:
    """All counts as CSR, a slide at a time, each row to its place."""
    genes = list(dict.fromkeys(gene for told in slides.values() for gene in told["genes"]))
    pl.DataFrame({"gene": genes}, schema={"gene": pl.String}).write_parquet(part / _layout.GENES)
    column = {gene: number for number, gene in enumerate(genes)}
    lengths = np.empty(len(place), np.int64)
    ends_of = (np.load(_stage.folder(root, name) / "indptr.npy") for name in slides)
    lengths[place] = np.concatenate([np.diff(ends) for ends in ends_of])
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    folder = part / _layout.COUNTS
    np.save(folder / "indptr.npy", indptr)
    kind = np.uint16 if len(genes) <= 1 << 16 else np.uint32
    types = [np.dtype(told["values"]) for told in slides.values()]
    dtype = max(types) if all(t.kind == "u" for t in types) else np.dtype(np.float32)
    shape = (int(indptr[-1]),)
    indices = np.lib.format.open_memmap(folder / "indices.npy", "w+", kind, shape)
    values = np.lib.format.open_memmap(folder / "values.npy", "w+", dtype, shape)
    start = 0
    for name, told in slides.items():
        rows = place[start : start + told["n_spots"]]
        ours = _counts_of(root, name, [column[gene] for gene in told["genes"]])
        to = np.repeat(indptr[rows] - ours.indptr[:-1], np.diff(ours.indptr)) + np.arange(ours.nnz)
        indices[to], values[to] = ours.indices, ours.data
        start += len(rows)
    indices.flush()
    values.flush()


def _counts_of(root: Path, slide: str, columns: list[int]) -> sparse.csr_matrix:
    """A slide's staged counts with its genes at other columns, in order."""
    folder = _stage.folder(root, slide)
    ends, indices, values = (np.load(folder / name) for name in _stage.COUNTS)
    n, named = len(ends) - 1, np.array(columns, np.int64)
    shape = (n, int(named.max(initial=0)) + 1)
    ours = sparse.csr_matrix((values, named[indices], ends), shape=shape)
    ours.sort_indices()
    return ours


def _write_report(root: Path, part: Path, slides: Slides) -> None:
    (part / _report.PICTURES).mkdir()
    for slide in slides:
        path = _stage.folder(root, slide) / _checks.PICTURE
        if path.exists():
            shutil.copyfile(path, _report.picture(part, slide))
    _report.write_report(part)


def _slide_table(table: pl.DataFrame, slides: Slides) -> pl.DataFrame:
    facts = ("fingerprint", "n_spots", "n_genes", "width", "height", "span", "r")
    told = [{"slide": name} | {key: said[key] for key in facts} for name, said in slides.items()]
    for row, said in zip(told, slides.values(), strict=True):
        row |= {key: said.get(key) for key in _checks.FACTS}
    return table.join(
        pl.DataFrame(told, infer_schema_length=None), on="slide", how="left", maintain_order="left"
    )
