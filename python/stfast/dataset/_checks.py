"""What a build asks of a slide beside its bytes: its labels, its alignment, what it is.

The answers go into ``slides.parquet`` and the report; none of them changes a tile.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anndata import AnnData

    from stfast.annotations import Labels

PICTURE = "alignment.png"
FACTS = (
    "read_as",
    "alignment",
    "alignment_score",
    "alignment_cause",
    "n_labelled",
    "n_excluded",
    "n_unmatched_spots",
    "n_unmatched_rows",
)
"""Columns of the slides' table; those about labels are null where there is no annotation."""

_TECHNOLOGY = {"read_visium_hd": "VisiumHD", "read_visium": "Visium", "read_st": "ST"}


def align(adata: "AnnData", target: Path, workers: int) -> dict[str, Any]:
    """Check where a slide's spots lie, and draw them; what cannot be checked is undecided."""
    from stfast.alignment import check_alignment

    facts: dict[str, Any] = {"read_as": _read_as(adata)}
    (target / PICTURE).unlink(missing_ok=True)
    try:
        found = check_alignment(adata, workers=workers)
    except ValueError as error:
        reason = f"not checked: {error}"
        return facts | _aligned("undecided", 0.0, reason)
    found.picture(target / PICTURE)
    return facts | _aligned(found.verdict, found.score, found.cause)


def _aligned(verdict: str, score: float, cause: str) -> dict[str, Any]:
    return {"alignment": verdict, "alignment_score": score, "alignment_cause": cause}


def _read_as(adata: "AnnData") -> str | None:
    """The technology, by the reader that read it."""
    steps = adata.uns.get("stfast", {})
    if "read_stimage" in steps:
        return str(steps["read_stimage"]["technology"])
    return next((name for step, name in _TECHNOLOGY.items() if step in steps), None)


def label(adata: "AnnData", row: dict[str, Any]) -> dict[str, Any]:
    """Put the labels of a manifest's annotation into ``obs["label"]``; what did not fit."""
    if not row.get("annotation"):
        return {}
    from stfast.annotations import labels_of

    found: Labels = labels_of(row["annotation"], adata, slide=row["slide"])
    adata.obs["label"] = found.label
    return {
        "n_labelled": int(found.label.notna().sum()),
        "n_excluded": sum(found.excluded.values()),
        "n_unmatched_spots": len(found.unmatched_spots),
        "n_unmatched_rows": len(found.unmatched_rows),
    }


def labels(adata: "AnnData", row: dict[str, Any]) -> list[str | None]:
    """The index's labels: what :func:`label` put there, and none from elsewhere."""
    return adata.obs["label"].tolist() if row.get("annotation") else [None] * adata.n_obs


def refuse_misplaced(told: dict[str, Any] | None, folder: Path) -> None:
    """Raise where the spots of a staged slide do not lie where its picture shows them."""
    if told is not None and told.get("alignment") == "misplaced":
        raise ValueError(
            f"expected spots where the picture shows them, got {told['alignment_cause']} "
            f"(score {told['alignment_score']:+.2f}): see {folder / PICTURE}"
        )
