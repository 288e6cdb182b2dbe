"""Which file of a folder is what.

Space Ranger's folders are nested and plainly named; downloads from 10x carry a sample's
name before each file's; GEO has everything in one folder, prefixed with ``GSM…_`` and
gzipped. All are one thing here: a file's role is told by the end of its name, what comes
before that is its sample.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path

from stfast._core import FormatError

_FOLDERS = (
    ".",
    "spatial",
    "outs",
    "outs/spatial",
    "filtered_feature_bc_matrix",
    "raw_feature_bc_matrix",
    "outs/filtered_feature_bc_matrix",
    "outs/raw_feature_bc_matrix",
    "microscope_image",
    "outs/microscope_image",
)
_PICTURE = r"(?:btf|tiff?|jpe?g|png|svs|ndpi)"
_ROLES = {
    "probe_h5": r"raw_probe_bc_matrix\.h5",
    "filtered_h5": r"filtered_(?:feature_bc_matrix|gene_bc_matrices_h5|gene_bc_matrices)\.h5",
    "raw_h5": r"raw_(?:feature_bc_matrix|gene_bc_matrices_h5|gene_bc_matrices)\.h5",
    "matrix": r"matrix\.mtx",
    "barcodes": r"barcodes\.tsv",
    "features": r"(?:features|genes)\.tsv",
    "positions": r"(?:tissue_)?positions(?:_list)?\.(?:csv|txt|tsv|parquet)",
    "scalefactors": r"scalefactors(?:_json)?\.json",
    "hires": r"tissue_hires_image\.(?:png|jpe?g|tiff?)",
    "lowres": r"tissue_lowres_image\.(?:png|jpe?g|tiff?)",
    "quality": r"(?:detected_tissue|aligned_tissue)_image\.jpe?g",
    "cytassist": r"cytassist_image\.tiff?",
    "full": rf"(?:tissue_image|microscope_image|full(?:res)?_image|_image)\.{_PICTURE}",
}
_PATTERNS = {
    role: re.compile(rf"(.*?)[._-]?{pattern}(?:\.gz)?", re.IGNORECASE)
    for role, pattern in _ROLES.items()
}
_SURROUNDINGS = re.compile(r"[._-]?(?:spatial|filtered|raw|outs|filtered_feature_bc_matrix)$")


@dataclass
class Sample:
    """The files of one sample by role; of the matrix triplet, by the folder it lies in."""

    name: str
    folder: Path
    roles: dict[str, Path] = field(default_factory=dict)
    triplets: dict[str, dict[str, Path]] = field(default_factory=dict)

    def triplet(self, kind: str) -> dict[str, Path] | None:
        """Matrix, barcodes and features; of a flat folder whatever kind they are."""
        for place in (kind, ""):
            found = self.triplets.get(place, {})
            if "matrix" in found:
                return found
        return None

    def counts(self, kind: str) -> Path | dict[str, Path] | None:
        """The matrix of a kind (filtered, raw), in HDF5 or as a triplet."""
        return self.roles.get(f"{kind}_h5") or self.triplet(kind)


def find_sample(folder: Path, sample: str | None = None) -> Sample:
    """The files of a folder's one sample, or of the one that is named."""
    found = find_samples(folder)
    with_counts = {
        name: one
        for name, one in found.items()
        if one.triplets or {"filtered_h5", "raw_h5", "probe_h5"} & set(one.roles)
    }
    if sample is None and len(with_counts) > 1:
        names = ", ".join(sorted(filter(None, with_counts)))
        raise FormatError(f"{folder}: expected one sample, or sample= as one of them, got {names}")
    if sample is not None and sample not in with_counts:
        names = ", ".join(sorted(filter(None, with_counts))) or "none"
        raise ValueError(
            f"{folder}: expected sample= as one of those there, got {sample!r} ({names})"
        )
    if not with_counts:
        return found.get("", Sample("", folder))
    chosen = with_counts[sample] if sample is not None else next(iter(with_counts.values()))
    # What has no sample's name belongs to each.
    shared = found.get("", Sample("", folder)).roles
    chosen.roles = {**shared, **chosen.roles}
    if len(with_counts) == 1:
        for other in found.values():
            chosen.roles = {**other.roles, **chosen.roles}
    return chosen


def find_samples(folder: Path) -> dict[str, Sample]:
    """All samples of a folder by the name before their files' own."""
    samples: dict[str, Sample] = {}
    for place in _FOLDERS:
        here = folder / place
        if not here.is_dir():
            continue
        for path in sorted(p for p in here.iterdir() if p.is_file() and p.name[0] != "."):
            _add(samples, folder, path)
    return samples


def _add(samples: dict[str, Sample], folder: Path, path: Path) -> None:
    for role, pattern in _PATTERNS.items():
        match = pattern.fullmatch(path.name)
        if match is None:
            continue
        name, kind = _sample_name(match[1]), _kind(path, match[1])
        sample = samples.setdefault(name, Sample(name, folder))
        if role in ("matrix", "barcodes", "features"):
            sample.triplets.setdefault(kind, {}).setdefault(role, path)
        else:
            sample.roles.setdefault(role, path)
        return


def _kind(path: Path, before: str) -> str:
    place = f"{path.parent.name} {before}"
    return next((kind for kind in ("filtered", "raw") if f"{kind}_feature" in place), "")


def _sample_name(before: str) -> str:
    name = before.rstrip("._-")
    while (shorter := _SURROUNDINGS.sub("", name)) != name:
        name = shorter.rstrip("._-")
    return "" if name in ("spatial", "filtered", "raw", "outs", "tissue") else name
