"""What a folder is, told from names and headers alone, as rows of a manifest."""

import bisect
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py

from stfast._core import FormatError
from stfast.manifest._terms import species_of_genome
from stfast.readers._files import Sample, find_samples
from stfast.readers._library import read_bytes
from stfast.readers.st import is_st
from stfast.readers.stimage import TECHNOLOGIES, read_stimage_meta
from stfast.readers.visium_hd import is_visium_hd

_TOLD = ("species", "tissue", "pmid", "title", "abstract", "keywords")
_MATRICES = ("filtered_h5", "raw_h5", "probe_h5")


@dataclass(frozen=True)
class Found:
    """A slide: what a manifest says of it, and its spots if they are known."""

    values: dict[str, Any]
    n_spots: int | None = None


def what_is(folder: Path) -> Iterator[Found | str]:
    """The slides that a folder is or holds as files; what only looks like one, as a text."""
    if is_visium_hd(folder):
        yield _row(folder, "VisiumHD", _name_of(folder))
        return
    samples = {name: one for name, one in find_samples(folder).items() if _has_counts(one)}
    shared = find_samples(folder).get("", Sample("", folder)).roles
    for name, sample in sorted(samples.items()):
        if "positions" in {**shared, **sample.roles} or (len(samples) == 1 and _placed(folder)):
            yield _visium(folder, sample, several=len(samples) > 1)
        else:
            where = f"{folder}/{name}*" if name else str(folder)
            yield f"{where}: expected positions of spots beside a 10x matrix, got none"
    if not samples and is_st(folder):
        yield _row(folder, "ST", _name_of(folder))
    for path in sorted(folder.glob("*.h5ad")):
        yield _h5ad(path)


def _placed(folder: Path) -> bool:
    return any("positions" in sample.roles for sample in find_samples(folder).values())


def _has_counts(sample: Sample) -> bool:
    return bool(sample.triplets) or any(role in sample.roles for role in _MATRICES)


def _row(path: Path, technology: str | None, slide: str, **more: str | None) -> Found:
    return Found({"slide": slide, "path": str(path), "technology": technology, **more})


def _name_of(folder: Path) -> str:
    """A folder's name, or that of the one around Space Ranger's own."""
    around = folder
    while around.name in ("outs", "binned_outputs") and around.parent != around:
        around = around.parent
    return around.name


def _visium(folder: Path, sample: Sample, *, several: bool) -> Found:
    name = sample.name or _name_of(folder)
    row = _row(folder, "Visium", name, sample=sample.name if several else None)
    matrix = next((sample.roles[role] for role in _MATRICES if role in sample.roles), None)
    if matrix is None:
        files = sample.triplet("filtered") or sample.triplet("raw") or {}
        n = _lines(files["barcodes"]) if "barcodes" in files else None
        return Found(row.values, n)
    try:
        with h5py.File(matrix) as file:
            group = file["matrix"]
            species = species_of_genome(_first_genome(group))
            return Found(row.values | {"species": species}, int(group["shape"][1]))
    except (OSError, KeyError, IndexError, TypeError):
        return row


def _first_genome(matrix: Any) -> str:
    genomes = matrix["features/genome"]
    first = genomes[0] if len(genomes) else b""
    return first.decode() if isinstance(first, bytes) else str(first)


def _lines(path: Path) -> int | None:
    try:
        return len(read_bytes(path).splitlines())
    except (FormatError, OSError):
        return None


def _h5ad(path: Path) -> Found | str:
    try:
        with h5py.File(path) as file:
            names = file["obs"][file["obs"].attrs.get("_index", "_index")]
            # Of pandas 3's text anndata writes a group: the values, and a mask of those missing.
            n = len(names["values"] if isinstance(names, h5py.Group) else names)
            placed = "obsm/spatial" in file
    except (OSError, KeyError, TypeError, AttributeError) as error:
        return f"{path}: expected an h5ad, got {error}"
    if not placed:
        return f"{path}: expected coordinates in obsm/spatial, got none"
    return Found(_row(path, None, path.stem).values, n)


# --- STimage-1K4M ------------------------------------------------------------------------------


def stimage_rows(root: Path) -> Iterator[Found | str]:
    """The slides of STimage-1K4M's table, else of its folders."""
    here = {
        path.name.removesuffix("_coord.csv"): path
        for technology in TECHNOLOGIES
        for path in sorted((root / technology / "coord").glob("*_coord.csv"))
    }
    annotated = _Annotations(root)
    known: set[str] = set()
    if any(root.glob("meta/meta_all_gene*.csv")):
        meta = read_stimage_meta(root)
        for row in meta.iter_rows(named=True):
            known.add(row["slide"])
            yield _of_meta(root, row, annotated)
        lost = [name for name in meta["slide"] if name not in here]
        if lost:
            yield (
                f"{root}: expected coord/*_coord.csv of {meta.height} slides, got none of "
                f"{len(lost)} of them, such as {lost[0]}"
            )
    for slide, path in here.items():
        if slide not in known:
            if known:
                yield f"{path}: expected its slide in the table of slides, got none"
            values = {"slide": slide, "path": str(path), "technology": path.parents[1].name}
            lines = _lines(path)
            n = None if lines is None else max(lines - 1, 0)
            yield Found(values | {"annotation": annotated.of(slide)}, n)


def _of_meta(root: Path, row: dict[str, Any], annotated: "_Annotations") -> Found:
    slide, technology = row["slide"], row.get("tech")
    path = root / str(technology) / "coord" / f"{slide}_coord.csv"
    values = {"slide": slide, "path": str(path), "technology": technology}
    values |= {name: row.get(name) for name in _TOLD}
    return Found(values | {"annotation": annotated.of(slide)}, row.get("spot_num"))


class _Annotations:
    """Which file of annotations speaks of a slide, by the names of its rows."""

    def __init__(self, root: Path) -> None:
        self._files: dict[str, list[str]] = {}
        folders = [root / "annotation", *(root / name / "annotation" for name in TECHNOLOGIES)]
        for folder in folders:
            for path in sorted(folder.glob("*.[ct]sv*")):
                lines = read_bytes(path).decode("utf-8", "replace").splitlines()
                self._files[str(path)] = sorted(line.lstrip('"') for line in lines)

    def of(self, slide: str) -> str | None:
        for path, lines in self._files.items():
            at = bisect.bisect_left(lines, f"{slide}_")
            if at < len(lines) and lines[at].startswith(f"{slide}_"):
                return path
        return None
