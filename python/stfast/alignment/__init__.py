"""Do spots and picture agree? A score, the likely cause where they do not, and a picture.

A slide whose picture was mirrored, or whose coordinates are those of another picture, is read
without any error and trains without any error. It is found by trying the mistakes that are
made: each flip and turn, x for y, the scale of another picture. Spots are put where
each would have them, and two things are asked: whether spots of tissue then fall on tissue,
and whether expression then changes where the picture does.
"""

import os
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stfast import _check
from stfast.alignment import _picture
from stfast.alignment._borders import Borders, lead, measure_borders
from stfast.alignment._placements import Placement, placements
from stfast.alignment._slide import Slide, slide_of
from stfast.alignment._tissue import Mask, agreement, share_on_tissue, tissue_of

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["Alignment", "check_alignment"]

Verdict = Literal["ok", "misplaced", "undecided"]

_LOGIT, _SIGMAS = 0.5, 4.0
"""Leads that decide alone: in the log odds of the tissue's overlap, and in standard errors of
what the borders explain."""
_ALIKE = 0.5
"""Among placements whose leads differ by less, the more usual mistake is told."""
_POOR, _FAIR = 0.2, 0.5
"""Overlaps below the first are equally bad; where none reaches the second, what was taken for
tissue is something else."""
_NEARLY = 0.95
"""Share of the spots on tissue from which tissue without spots speaks for no other scale."""


@dataclass(frozen=True, eq=False)
class Alignment:
    """Whether a slide's spots lie where its picture shows them.

    Attributes
    ----------
    verdict
        ``"ok"``: the given placement is the best by far; ``"misplaced"``: another one is;
        ``"undecided"``: neither, as where tissue fills the frame and expression is flat.
    score
        How far the given placement is ahead of the best other one: 1 and more decides for
        it, -1 and less against it.
    best
        The best placement: ``"given"``, or the name of another.
    cause
        What would explain it, in words; empty unless misplaced.
    scores
        A row a placement, the best first: ``placement``; ``tissue``, the overlap (Jaccard
        index) of spots and tissue from 0 to 1, null where the mask says nothing; ``borders``,
        the share of differences between neighbours' expression that the picture's explain,
        null without counts; ``lead`` over the given placement, in the unit of ``score``.
    """

    verdict: Verdict
    score: float
    best: str
    cause: str
    scores: pl.DataFrame
    _slide: Slide = field(repr=False)
    _best: Placement = field(repr=False)

    def picture(self, path: str | os.PathLike[str]) -> None:
        """Draw the spots over the picture, as given and, if misplaced, as they should be.

        Parameters
        ----------
        path
            A PNG to write, about 1000 pixels high; what is there is replaced.
        """
        title = f"{self.verdict}, score {self.score:+.2f}"
        slide, best = self._slide, self._best
        shown = [_picture.Shown(f"as given: {title}", slide.xy, slide.pitch)]
        if self.verdict == "misplaced":
            moved, pitch = best.move(slide.xy), slide.pitch * best.scale
            shown.append(_picture.Shown(f"likely: {self.cause}", moved, pitch))
        _picture.draw(path, slide, shown)


def check_alignment(adata: "AnnData", *, workers: int | None = None) -> Alignment:
    """Compare a slide's placement of spots with what other placements would show.

    Parameters
    ----------
    adata
        A slide, as :func:`stfast.read` returns it, with counts in ``X`` or without.
    workers
        Threads that read the picture; ``None``: ``$STFAST_WORKERS``, else the CPUs of this
        process. The answer does not depend on it.

    Returns
    -------
    Alignment
        The verdict, the scores of all placements, and a picture to look at.

    Raises
    ------
    ValueError
        No coordinates, no picture, or fewer than 10 spots in tissue.

    Notes
    -----
    Placements are the seven other flips and quarter turns of the picture (one of them swaps x
    and y), the same of the array in its place, and the scales of the full, hires and lowres
    pictures taken for one another.

    Tissue is where the saturation of the reduced picture, blurred, is above Otsu's threshold
    (Otsu 1979, "A threshold selection method from gray-level histograms"), and is compared
    with the discs of the spots that are in tissue. Borders: the differences of log
    expression of the 40 most variable genes between neighbouring spots are regressed on those of
    the picture's colour and texture; the lead of a placement is measured in its standard
    errors, by a jackknife over 64 parts of the slide (Efron and Stein 1981, "The jackknife
    estimate of variance").

    Spots may cover only a part of the tissue. Where none is known to be off it and nearly all
    lie on it as given, a placement is not better for covering more; and none is where borders
    alone decide for the given one.
    """
    slide = slide_of(adata, _check.workers(workers))
    mask = tissue_of(slide.pixels)
    borders = Borders.of(slide)
    rows = [_score(slide, mask, borders, placement) for placement in placements(slide)]
    if max(row.tissue or 0.0 for row in rows) < _FAIR:
        rows = [replace(row, tissue=None) for row in rows]
    given = rows[0]
    on = share_on_tissue(slide, mask) if slide.in_tissue.all() else 0.0
    leads = [_lead(row, given, on) for row in rows]
    most = max(leads[1:])
    score = round(0.0 - most, 2)
    verdict: Verdict = "ok" if score >= 1 else "misplaced" if score <= -1 else "undecided"
    best = given.placement
    if verdict == "misplaced":
        likely = (n for n, lead in enumerate(leads) if n and lead > most - _ALIKE)
        best = rows[next(likely)].placement
    return Alignment(verdict, score, best.name, best.cause, _table(rows, leads), slide, best)


@dataclass(frozen=True)
class _Score:
    """What was measured of a placement."""

    placement: Placement
    tissue: float | None
    borders: NDArray[np.float64] | None


def _score(slide: Slide, mask: Mask, borders: Borders | None, placement: Placement) -> _Score:
    overlap = agreement(slide, mask, placement) if mask.tells else None
    agree = None if borders is None else measure_borders(slide, borders, placement)
    return _Score(placement, overlap, agree)


def _table(rows: list[_Score], leads: list[float]) -> pl.DataFrame:
    """All placements, those with the largest lead first; the given one first among equals."""
    table = [
        {
            "placement": row.placement.name,
            "tissue": _rounded(row.tissue),
            "borders": _rounded(None if row.borders is None else row.borders.sum()),
            "lead": round(lead, 2),
        }
        for row, lead in zip(rows, leads, strict=True)
    ]
    kinds = {"placement": pl.String, "tissue": pl.Float64, "borders": pl.Float64}
    unsorted = pl.DataFrame(table, schema=kinds | {"lead": pl.Float64})
    return unsorted.sort("lead", descending=True, maintain_order=True)


def _lead(ours: _Score, given: _Score, on: float) -> float:
    """How far a placement is ahead of the given one, 1 where that decides.

    ``on`` is the share of the given placement's spots that lie on tissue, 0 where spots off
    it are known, which say how far the array reaches.
    """
    tissue = borders = 0.0
    if ours.tissue is not None and given.tissue is not None:
        tissue = (_logit(ours.tissue) - _logit(given.tissue)) / _LOGIT
    if ours.borders is not None and given.borders is not None:
        borders = lead(ours.borders, given.borders) / _SIGMAS
    if on == 1 or (on >= _NEARLY and ours.placement.scale != 1):
        tissue = min(tissue, 0.0)
    if borders <= -1:
        tissue = min(tissue, -borders)
    return tissue + borders


def _logit(share: float) -> float:
    bounded = min(max(share, _POOR), 0.99)
    return float(np.log(bounded / (1 - bounded)))


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(float(value), 4)
