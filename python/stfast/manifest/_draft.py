"""A first manifest, from what lies in a folder of downloads.

Every folder below is looked at by the readers' own eyes. What is recognised becomes a row;
what looks like a slide and cannot be one is told, all of it at once.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from stfast.manifest._sources import Found, stimage_rows, what_is
from stfast.readers.stimage import is_stimage

_ARCHIVES = (".tar", ".tar.gz", ".tgz", ".zip", ".rar", ".7z")
_NO_NAME = re.compile(r'[<>:"/\\|?*\x00-\x1f\x7f-\x9f\s]+')
_PARTS = {"outs", "spatial", "microscope_image", "binned_outputs", "segmented_outputs"}
_PARTS |= {"filtered_feature_bc_matrix", "raw_feature_bc_matrix"}
"""Folders that belong to the slide around them."""


@dataclass(frozen=True, eq=False)
class Draft:
    """What was found in a folder, as rows of a manifest.

    Attributes
    ----------
    folder
        Where it was looked for.
    table
        A row a slide with the columns of a :class:`Manifest`, all texts but ``mpp``; null
        what the files do not say. Paths are absolute.
    n_spots
        Spots a slide (UInt32), as its headers or tables have them; null where only reading
        the counts would tell.
    problems
        What looks like a slide and is none as it lies there, a line a thing.
    """

    folder: Path
    table: pl.DataFrame
    n_spots: pl.Series
    problems: list[str]

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the rows as CSV, for :func:`read_manifest`.

        Parameters
        ----------
        path
            A file that is not there yet. Paths below its folder are relative to it.

        Raises
        ------
        FileExistsError
            The file is there: it may have been edited.
        """
        from stfast.manifest import PATHS

        path = Path(path)
        parent = path.absolute().parent
        table = self.table.with_columns(
            pl.Series(name, [_relative(cell, parent) for cell in self.table[name]], pl.String)
            for name in PATHS
        )
        if path.exists():
            raise FileExistsError(17, "expected no such file yet", str(path))
        with path.open("x", encoding="utf-8", newline="") as file:
            file.write(table.write_csv())


def _relative(cell: str | None, parent: Path) -> str | None:
    if cell is None or not Path(cell).is_relative_to(parent):
        return cell
    return Path(cell).relative_to(parent).as_posix()


def draft_manifest(folder: str | os.PathLike[str]) -> Draft:
    """Draft a manifest of the slides that lie below a folder.

    Parameters
    ----------
    folder
        Downloads of any depth: Space Ranger's outputs, folders as 10x or GEO offer them
        (several samples in one, prefixed and gzipped, too), legacy Spatial
        Transcriptomics, ``.h5ad``, and roots of STimage-1K4M, whose table of slides is taken
        over with species, tissue, study, annotation and spots.

    Returns
    -------
    Draft
        The rows, to be written, looked through and completed.

    Raises
    ------
    FileNotFoundError
        No such folder.
    NotADirectoryError
        It is a file.
    FormatError
        STimage-1K4M's table of slides is none.
    """
    folder = Path(folder).resolve()
    if not folder.exists():
        raise FileNotFoundError(2, "No such file or directory", str(folder))
    if not folder.is_dir():
        raise NotADirectoryError(20, "expected a folder, got a file", str(folder))
    found: list[Found] = []
    problems: list[str] = []
    for thing in _walk(folder):
        if isinstance(thing, Found):
            found.append(thing)
        else:
            problems.append(thing)
    return _draft(folder, found, problems)


def _walk(folder: Path) -> Iterator[Found | str]:
    """All that is found in a folder and below it."""
    if is_stimage(folder):
        yield from stimage_rows(folder)
        return
    things = list(what_is(folder))
    yield from things
    for path in sorted(folder.iterdir()):
        is_part = path.name in _PARTS or path.name.startswith("square_")
        if path.name.startswith(".") or path.is_symlink() or (things and is_part):
            continue
        if path.is_dir():
            yield from _walk(path)
        elif path.name.lower().endswith(_ARCHIVES):
            yield f"{path}: expected it unpacked, got an archive"


def _draft(folder: Path, found: list[Found], problems: list[str]) -> Draft:
    from stfast.manifest import COLUMNS

    names = _names([one.values["slide"] for one in found], [one.values["path"] for one in found])
    rows: list[dict[str, Any]] = [
        dict.fromkeys(COLUMNS) | one.values | {"slide": name}
        for one, name in zip(found, names, strict=True)
    ]
    schema = {name: pl.Float64() if name == "mpp" else pl.String() for name in COLUMNS}
    spots = pl.Series("n_spots", [one.n_spots for one in found], pl.UInt32)
    return Draft(folder, pl.DataFrame(rows, schema=schema), spots, problems)


def _names(wanted: list[str], paths: list[str]) -> list[str]:
    """Names of files, each its own: with that of the folder around where it comes again."""
    plain = [_NO_NAME.sub("_", name).strip("._ ") or "slide" for name in wanted]
    again = {name.casefold() for name in plain if _folded(plain).count(name.casefold()) > 1}
    for number, path in enumerate(map(Path, paths)):
        if plain[number].casefold() in again:
            around = [part for part in path.parent.parts if part not in _PARTS]
            before = _NO_NAME.sub("_", around[-1]).strip("._ ") if around else ""
            plain[number] = f"{before}_{plain[number]}".lstrip("_")
    seen: dict[str, int] = {}
    for number, name in enumerate(plain):
        seen[name.casefold()] = seen.get(name.casefold(), 0) + 1
        if seen[name.casefold()] > 1:
            plain[number] = f"{name}_{seen[name.casefold()]}"
    return plain


def _folded(names: list[str]) -> list[str]:
    return [name.casefold() for name in names]
