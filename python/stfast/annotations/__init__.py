"""Pathologists' labels, joined to a slide's spots.

They come as tables, one file a study, whose rows name spots or places, or as polygons that
were drawn on the picture. Both are joined here, and what found no partner is told on both
sides: a join that loses a third of its rows in silence looks just like one that works.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import polars as pl
from scipy.spatial import KDTree

from stfast import _check, _spatial
from stfast._core import FormatError
from stfast.annotations._names import join_names
from stfast.annotations._table import Rows, read_rows
from stfast.readers._library import read_bytes

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["Labels", "labels_of"]

_NO_LABEL = ("", "NA", "NaN", "nan", "None", "undetermined", "Exclude", "Ignore*")
"""What says nothing of a spot: STimage-1K4M's list, and QuPath's class to leave out."""


@dataclass(frozen=True, eq=False)
class Labels:
    """Labels of a slide's spots, and what did not fit.

    ``len(label)`` spots are the labelled, the excluded and the unmatched ones together.

    Attributes
    ----------
    path
        The file they are from.
    label
        A label a spot in the order of ``adata.obs_names``, None where there is none.
    joined_by
        ``"name"``; ``"barcode"``: names without their ``-1``; ``"place"``: places on the
        array, rounded; ``"coordinates"``; ``"centre"`` or ``"area"`` in polygons.
    tolerance
        Pixels from a row's coordinates within which a spot was taken; None: not joined so.
    unmatched_spots
        Names of the spots that the file does not speak of.
    unmatched_rows
        Names (or numbers) of the slide's rows, or polygons, that no spot belongs to.
    excluded
        Spots by what the file says of them that is no label, such as ``undetermined``.
    """

    path: Path
    label: "pd.Series[str]"
    joined_by: str
    tolerance: float | None
    unmatched_spots: list[str]
    unmatched_rows: list[str]
    excluded: dict[str, int]


def labels_of(
    path: str | os.PathLike[str],
    adata: "AnnData",
    *,
    slide: str | None = None,
    column: str | None = None,
    tolerance: float | None = None,
    cover: float | None = None,
) -> Labels:
    """Join pathologists' labels to the spots of a slide.

    Parameters
    ----------
    path
        A table (CSV with commas, tabs or semicolons, or Parquet; with a header or, where its
        first cell names a spot, without), or GeoJSON as QuPath exports it; either may be
        gzipped. Told apart by content.
    adata
        The slide, as :func:`stfast.read` returns it.
    slide
        Its name in the file, for a file of a whole study: rows named ``{slide}_{spot}``, or
        those that a column of slides gives to it. ``None``: its library's name.
    column
        The column of labels; ``None``: ``V2``, ``label`` and their like, the only one left,
        or several of 0 and 1, of which the one with 1 names the label.
    tolerance
        Pixels between a row's coordinates and the centre of its spot, where a table's rows
        do not name spots; ``None``: the spot's radius.
    cover
        Least share of a spot's disc (of a bin's square) that polygons of a label must cover,
        up to 1; the label that covers most is taken. ``None``: a spot has the label of the
        smallest polygon that its centre lies in.

    Returns
    -------
    Labels
        A label a spot, and all that did not fit.

    Raises
    ------
    FileNotFoundError
        No such file.
    FormatError
        Neither a table nor GeoJSON; no row or polygon that fits any spot.
    ValueError
        No or several columns that could be the labels'; a spot with two labels.
    ImportError
        GeoJSON without shapely: ``pip install 'stfast[geojson]'``.

    Notes
    -----
    A file's coordinates are pixels (x, y) of the picture that the slide uses. What is no
    label is STimage-1K4M's list (Chen et al., 2024): empty, missing, ``undetermined`` and
    ``Exclude``; and QuPath's ``Ignore*``. An excluded polygon within a larger one takes its
    spots out of it.
    """
    path = Path(path)
    name = _spatial.library(adata)[0] if slide is None else slide
    content = read_bytes(path)
    if content.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"{", b"["):
        from stfast.annotations import _polygons

        share = None if cover is None else _check.positive(cover, "cover", "of a spot")
        if share is not None and share > 1:
            raise ValueError(f"cover: expected a share of at most 1, got {share:g}")
        joined, alone = _polygons.join(path, content, adata, share)
        return _labels(path, adata, joined, alone, by="centre" if share is None else "area")
    rows = read_rows(path, content, name, column, adata.obs_names)
    joined, by, within = _join(path, rows, adata, tolerance)
    # Of a label and what is none, or of the same with a blank, the spot has the label.
    joined = joined.with_columns(pl.col("label").fill_null("").str.strip_chars())
    _check_once(path, joined.filter(~pl.col("label").is_in(_NO_LABEL)))
    lone = np.ones(len(rows.label), bool)
    lone[joined["row"].to_numpy()] = False
    alone = rows.names().filter(pl.Series(lone)).to_list()
    joined = joined.sort(pl.col("label").is_in(_NO_LABEL), "row").unique("spot", keep="first")
    return _labels(path, adata, joined, alone, by=by, tolerance=within)


def _join(
    path: Path, rows: Rows, adata: "AnnData", tolerance: float | None
) -> tuple[pl.DataFrame, str, float | None]:
    """``spot``, ``row`` and ``label`` of each row that has a spot."""
    if rows.spot is not None:
        pairs, by = join_names(rows.spot, adata.obs_names)
        if by is not None:
            return pairs.with_columns(label=rows.label.gather(pairs["row"])), by, None
    if rows.xy is None:
        ours, theirs = list(adata.obs_names[:2]), rows.names()[:2].to_list()
        raise FormatError(f"{path}: expected names of spots such as {ours}, got {theirs}")
    if tolerance is None:
        tolerance = _spatial.spot_span(adata) / 2
    within = _check.positive(tolerance, "tolerance", "pixels")
    known = np.isfinite(rows.xy).all(axis=1)
    tree = KDTree(_spatial.centers(adata))
    far, spot = map(np.asarray, tree.query(rows.xy[known], distance_upper_bound=within))
    near = np.isfinite(far)
    if not near.any():
        low, high = _spatial.centers(adata).min(axis=0), _spatial.centers(adata).max(axis=0)
        raise FormatError(
            f"{path}: expected coordinates within {within:g} px of spots, which lie from "
            f"{low.round().tolist()} to {high.round().tolist()}, got {rows.xy[0].tolist()}"
        )
    row = np.flatnonzero(known)[near]
    table = pl.DataFrame({"spot": spot[near], "row": row, "far": far[near]})
    table = table.with_columns(label=rows.label.gather(row))
    nearest = pl.col("far") == pl.col("far").min().over("spot")
    return table.filter(nearest).select("spot", "row", "label"), "coordinates", within


def _check_once(path: Path, joined: pl.DataFrame) -> None:
    """See that no spot has two labels; the same one twice is one."""
    several = joined.group_by("spot").agg(pl.col("label").unique(), pl.col("row").min())
    several = several.filter(pl.col("label").list.len() > 1).sort("row")
    if several.height:
        found = several["label"][0].sort().to_list()
        raise ValueError(
            f"{path}: expected one label a spot, got {found} for one of them, and several "
            f"for {several.height} of {joined['spot'].n_unique()}"
        )


def _labels(
    path: Path,
    adata: "AnnData",
    joined: pl.DataFrame,
    alone: list[str],
    *,
    by: str,
    tolerance: float | None = None,
) -> Labels:
    """Split what was joined (``spot`` and ``label``) into labels and the rest."""
    text = joined["label"].fill_null("").str.strip_chars()
    nothing = text.is_in(_NO_LABEL)
    counted = text.filter(nothing).replace("", "empty").value_counts(sort=True)
    label = np.full(adata.n_obs, None, dtype=object)
    good = joined.with_columns(label=text).filter(~nothing)
    label[good["spot"].to_numpy()] = good["label"].to_numpy()
    silent = np.ones(adata.n_obs, bool)
    silent[joined["spot"].to_numpy()] = False
    return Labels(
        path=path,
        label=pd.Series(label, index=adata.obs_names, name="label", dtype=object),
        joined_by=by,
        tolerance=tolerance,
        unmatched_spots=adata.obs_names[silent].tolist(),
        unmatched_rows=alone,
        excluded=dict(counted.rows()),
    )
