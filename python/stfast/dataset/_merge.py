"""The second stage of a build: staged slides into one dataset, in one random order.

The order of all spots follows from the seed and the slides' fingerprints. Encoded
tiles are copied by it into shards, counts and chosen genes are written a slide at a
time to where it says; no pixel is decoded. Files are made in ``merge.part`` and take
their places when all are whole; ``dataset.json``, without which nothing is a dataset,
goes first and comes last.
"""

import errno
import hashlib
import json
import logging
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import sparse

from stfast import _core
from stfast._native import Coded, strings
from stfast.dataset import _card, _checks, _croissant, _hvg, _layout, _report, _stage
from stfast.dataset._journal import Steps
from stfast.dataset._lock import locked, slide_lock
from stfast.dataset._plan import Plan

_ENDINGS = {"jpeg": "jpg", "png": "png", "raw": "npy"}
_BLOCK = 512
_STRETCH = 1 << 20
"""Counts that are put in their places at a time."""
_PARTS = (
    *("tiles", "genes", _layout.INDEX, _layout.SLIDE_TABLE, _layout.CARD),
    *(_report.PICTURES, _report.PAGE, _layout.DESCRIPTION),
)
_log = logging.getLogger("stfast")

Slides = dict[str, dict[str, Any]]
"""What ``done.json`` says of each slide, by name in order."""


def merge(plan: Plan, table: pl.DataFrame, steps: Steps) -> tuple[int, bool]:
    """Make the dataset of the slides of a table, all of them staged, unless it is made.

    Its number of spots, and whether there was anything to do.
    """
    root, table = plan.root, table.sort("slide")
    slides = {name: _staged(root, name) for name in table["slide"]}
    asked = _asked(plan, table, slides)
    if (n := _made(root, asked, list(slides))) is not None:
        return n, False
    part = root / "merge.part"
    if part.exists():
        shutil.rmtree(part)
    (part / "tiles").mkdir(parents=True)
    (part / _layout.COUNTS).mkdir(parents=True)
    index = _write_rows(plan, part, slides, steps)
    _copy_moments(root, part, slides)
    told_of = _slide_table(table, slides)
    told_of.write_parquet(part / _layout.SLIDE_TABLE)
    _describe(part, root.name, asked | {"n_spots": index.height}, index=index, slides=told_of)
    _write_report(root, part, slides)
    for name, told in slides.items():
        if _staged(root, name)["fingerprint"] != told["fingerprint"]:
            again = "expected no slide staged anew meanwhile, got one"
            raise BlockingIOError(errno.EAGAIN, again, name)
    _publish(root, part, slides)
    return index.height, True


def _write_rows(plan: Plan, part: Path, slides: Slides, steps: Steps) -> pl.DataFrame:
    """All files that have a row a spot, in the order that is theirs; the index of them."""
    root = plan.root
    tables = [pl.read_parquet(_stage.folder(root, name) / _stage.SPOTS) for name in slides]
    order = _order(slides, sum(table.height for table in tables), plan.seed)
    steps.begin("shards", len(order))
    index = _copy(plan, part, tables, order, steps)
    steps.begin("genes")
    index.write_parquet(part / _layout.INDEX)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    _write_hvg(part, _chosen(plan, part, tables), slides, place)
    _write_counts(root, part, slides, place)
    return index


def _describe(
    part: Path, name: str, settings: dict[str, Any], *, index: pl.DataFrame, slides: pl.DataFrame
) -> None:
    """What the dataset is, for machines and for people."""
    n_genes = pl.read_parquet(part / _layout.GENES).height
    card = _card.card(name, settings, slides=slides, index=index, n_genes=n_genes)
    (part / _layout.CARD).write_bytes(card.encode())
    for term, n in _card.missing(slides).items():
        if n < slides.height:  # where none has any, the manifest's reader has said so
            _log.warning("%s: %d of %d slides have none", term, n, slides.height)
    described = _croissant.describe(part, name, settings, slides)
    (part / _layout.DESCRIPTION).write_bytes(described.encode())


def _asked(plan: Plan, table: pl.DataFrame, slides: Slides) -> dict[str, Any]:
    """All that the bytes of the dataset depend on."""
    settings = asdict(plan.settings)
    return {
        "format_version": _layout.FORMAT_VERSION,
        "version": metadata.version("stfast"),
        **settings,
        "encoding": settings["tiles"],
        "hvg": str(plan.recipe),
        "seed": plan.seed,
        "shard_bytes": plan.shard_bytes,
        "slides": _digest(table, slides),
    }


def _digest(table: pl.DataFrame, slides: Slides) -> str:
    """Of all that is merged: what was staged, and what the manifest says of it."""
    marks = [told["fingerprint"] for told in slides.values()]
    text = json.dumps([marks, table.rows(named=True)], sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _made(root: Path, asked: dict[str, Any], slides: list[str]) -> int | None:
    """Spots of the dataset that is there, if it is the one that is asked for."""
    try:
        found = json.loads((root / _layout.DESCRIPTION).read_bytes())[_layout.SETTINGS]
        n = int(found.pop("n_spots"))
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return n if found == asked and all(path.exists() for path in _files(root, slides)) else None


def _files(root: Path, slides: list[str]) -> Iterator[Path]:
    """All files that a dataset has, its stores as their folders."""
    yield from (root / name for name in (*_PARTS, _layout.HVG, _layout.HVG_GENES, _layout.GENES))
    yield from (root / _layout.COUNTS / f"{name}.npy" for name in ("indptr", "indices", "values"))
    for slide in slides:
        yield _layout.slide(root, slide)
        yield _layout.moments(root, slide)
        if (_stage.folder(root, slide) / _checks.PICTURE).exists():
            yield root / _report.PICTURES / f"{slide}.png"
    last = pl.scan_parquet(root / _layout.INDEX).select(pl.col("shard").max()).collect().item()
    yield from (_layout.shard(root, number) for number in range(0 if last is None else last + 1))


def _staged(root: Path, slide: str) -> dict[str, Any]:
    found = _stage.staged(root, slide)
    if found is None:
        path = _stage.folder(root, slide) / _stage.DONE
        raise FileNotFoundError(2, "expected a staged slide; build it first", str(path))
    found["genes"] = list(map(sys.intern, found["genes"]))  # a thousand slides name the same
    return found


def same_pictures(root: Path, slides: list[str]) -> list[list[str]]:
    """Slides whose pictures are one, as far as size and first and last MiB tell."""
    found: dict[str, list[str]] = {}
    for slide in slides:
        found.setdefault(str(_staged(root, slide)["picture"]), []).append(slide)
    return [twins for twins in found.values() if len(twins) > 1]


def _publish(root: Path, part: Path, slides: Slides) -> None:
    (root / _layout.DESCRIPTION).unlink(missing_ok=True)
    for name in _PARTS[:-1]:
        _replace(part / name, root / name)
    (root / "slides").mkdir(exist_ok=True)
    for slide in slides:
        staged = _stage.folder(root, slide) / _stage.STORE
        if staged.exists():
            _replace(staged, _layout.slide(root, slide))
    for path in sorted((root / "slides").glob("*.zarr")):
        if path.stem not in slides:
            _withdraw(root, path)
    _replace(part / _layout.DESCRIPTION, root / _layout.DESCRIPTION)
    part.rmdir()


def _replace(new: Path, old: Path) -> None:
    if old.is_dir():
        shutil.rmtree(old)
    new.replace(old)


def _withdraw(root: Path, path: Path) -> None:
    """Take out the store of a slide that is no longer in; what is staged of it stays staged."""
    with locked(slide_lock(root, path.stem), wait_s=60):
        target = _stage.folder(root, path.stem) / _stage.STORE
        if target.exists() or _stage.staged(root, path.stem) is None:
            shutil.rmtree(path)
        else:
            path.replace(target)


def _copy_moments(root: Path, part: Path, slides: Slides) -> None:
    for slide in slides:
        path = _layout.moments(part, slide)
        path.parent.mkdir(exist_ok=True)
        shutil.copyfile(_stage.folder(root, slide) / _stage.MOMENTS, path)


def _order(slides: Slides, n: int, seed: int) -> NDArray[np.int64]:
    """The permutation of all spots, which are numbered slide by slide."""
    marks = json.dumps([seed, *((name, told["fingerprint"]) for name, told in slides.items())])
    digest = hashlib.blake2b(marks.encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "little")).permutation(n)


def _copy(
    plan: Plan, part: Path, tables: list[pl.DataFrame], order: NDArray[np.int64], steps: Steps
) -> pl.DataFrame:
    """Copy the tiles into shards by the order; the index."""
    sources: list[Path] = []
    number = []
    for table in tables:
        folder = _stage.folder(plan.root, table["slide"][0]) / _stage.TILES
        number.append(table["shard"].to_numpy() + len(sources))
        sources += sorted(folder.glob("*.tar"))  # as numbered: names are of one width
    rows = pl.concat(tables)[order]
    said = ("slide", "spot", "x", "y", "r", "label")
    notes = rows.select(pl.struct(said).struct.json_encode()).to_series()
    length = rows["length"].to_numpy()
    padded = [-(-n.astype(np.int64) // _BLOCK) * _BLOCK for n in (length, _bytes(notes))]
    shard = _shards(padded[0] + padded[1] + 2 * _BLOCK, plan.shard_bytes)
    ends = np.cumsum(np.bincount(shard)).tolist()
    ranges = zip([0, *ends[:-1]], ends, strict=True)
    wanted = [(_layout.shard(part, n), start, end) for n, (start, end) in enumerate(ranges)]
    coded = Coded(
        sources=sources,
        source=np.concatenate(number)[order].astype(np.uint32),
        offset=rows["offset"].to_numpy(),
        length=length,
        notes=strings(notes),
        extension=_ENDINGS[plan.settings.tiles],
    )
    offset = _core.copy_tiles(coded, wanted, plan.threads, progress=steps.advance)
    return rows.with_columns(shard=pl.Series(shard, dtype=pl.UInt32), offset=pl.Series(offset))


def _bytes(texts: pl.Series) -> NDArray[np.uint32]:
    return texts.str.len_bytes().to_numpy()


def _shards(entries: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """The shard of each tile: tiles in order, a new shard about every ``most`` bytes."""
    begun = (np.cumsum(entries) - entries) // most
    shard: NDArray[np.int64] = np.unique(begun, return_inverse=True)[1].astype(np.int64)
    return shard


def _chosen(
    plan: Plan, part: Path, tables: list[pl.DataFrame]
) -> tuple[int, Iterator[_hvg.Chosen]]:
    """The number of columns of the matrix of chosen genes, and its slides' parts in order."""
    root, recipe = plan.root, plan.recipe
    spots = {table["slide"][0]: table["spot"] for table in tables}
    if not recipe.per_slide:
        stores = {slide: _stage.store(root, slide) for slide in spots}
        scratch = part / "overlap.parquet"
        return _hvg.of_all(stores, spots, recipe.n, scratch=scratch, workers=plan.threads)
    folders = [_stage.folder(root, slide) for slide in spots]
    genes = [json.loads((folder / _stage.DONE).read_bytes())["hvg_genes"] for folder in folders]
    matrices = (np.load(folder / _stage.HVG) for folder in folders)
    return recipe.n, zip(matrices, genes, strict=True)


def _write_hvg(
    part: Path,
    chosen: tuple[int, Iterator[_hvg.Chosen]],
    slides: Slides,
    place: NDArray[np.int64],
) -> None:
    n, parts = chosen
    out = np.lib.format.open_memmap(part / _layout.HVG, "w+", np.float32, (len(place), n))
    start, named = 0, list[str]()
    for matrix, genes in parts:
        out[place[start : start + len(matrix)]] = matrix
        start += len(matrix)
        named += genes
    out.flush()
    (part / "overlap.parquet").unlink(missing_ok=True)
    columns = {
        "slide": [name for name in slides for _ in range(n)],
        "rank": pl.Series(np.tile(np.arange(n), len(slides)), dtype=pl.UInt32),
        "gene": named,
    }
    pl.DataFrame(columns).write_parquet(part / _layout.HVG_GENES)


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
        columns = np.array([column[gene] for gene in told["genes"]], np.int64)
        for stretch, ours in _counts_of(_stage.folder(root, name), columns):
            to = np.repeat(indptr[rows[stretch]] - ours.indptr[:-1], np.diff(ours.indptr))
            to += np.arange(ours.nnz)
            indices[to], values[to] = ours.indices, ours.data
        start += len(rows)
    indices.flush()
    values.flush()


def _counts_of(
    folder: Path, columns: NDArray[np.int64]
) -> Iterator[tuple[slice, sparse.csr_matrix]]:
    """Stretches of rows of a slide's staged counts, with its genes at other columns, in order."""
    ends, indices, values = (np.load(folder / name, mmap_mode="r") for name in _stage.COUNTS)
    width, first = int(columns.max(initial=0)) + 1, 0
    while first < len(ends) - 1:
        last = max(int(np.searchsorted(ends, ends[first] + _STRETCH, "right")) - 1, first + 1)
        start, end = int(ends[first]), int(ends[last])
        arrays = (
            np.array(values[start:end]),
            columns[indices[start:end]],
            ends[first : last + 1] - start,
        )
        ours = sparse.csr_matrix(arrays, shape=(last - first, width))
        ours.sort_indices()
        yield slice(first, last), ours
        first = last


def _write_report(root: Path, part: Path, slides: Slides) -> None:
    (part / _report.PICTURES).mkdir()
    for slide in slides:
        path = _stage.folder(root, slide) / _checks.PICTURE
        if path.exists():
            shutil.copyfile(path, _report.picture(part, slide))
    _report.write_report(part)


def _slide_table(table: pl.DataFrame, slides: Slides) -> pl.DataFrame:
    told = [
        {"slide": name} | {key: said[key] for key in _stage.FACTS} for name, said in slides.items()
    ]
    for row, said in zip(told, slides.values(), strict=True):
        row |= {key: said.get(key) for key in _checks.FACTS}
    found = pl.DataFrame(told, infer_schema_length=None)
    return table.join(found, on="slide", how="left", maintain_order="left")
