"""``README.md``: a data card for Hugging Face, and a datasheet after Gebru et al. (2021).

Sections and questions are those of "Datasheets for Datasets" (Communications of the ACM
64(12)); answers are what the manifest says and the build measured. What neither knows is
said to be missing, not guessed.
"""

import re
from collections.abc import Iterable
from typing import Any

import numpy as np
import polars as pl

_TERMS = ("license", "consent", "source_url")
_LICENSES = {
    *("apache-2.0", "mit", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0"),
    *("cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc-by-nc-nd-4.0", "cc-by-nd-4.0", "cc-by-3.0"),
    *("artistic-2.0", "odc-by", "odbl", "pddl", "gpl-3.0"),
}
"""Identifiers that Hugging Face knows, as far as slides come under them."""
_SIZES = (1_000, 10_000, 100_000, 1_000_000, 10_000_000, 100_000_000)
_UNKNOWN = "*The manifest does not say.*"


def card(
    name: str, settings: dict[str, Any], *, slides: pl.DataFrame, index: pl.DataFrame, n_genes: int
) -> str:
    """The text of the card."""
    parts = [
        _header(name, slides, index.height),
        f"# {_plain(name)}",
        _missing(slides),
        _motivation(slides),
        _composition(slides, index, n_genes),
        _collection(slides),
        _processing(settings),
        _use(settings),
        _terms(slides),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def missing(slides: pl.DataFrame) -> dict[str, int]:
    """How many slides lack each of the terms that others need to use them."""
    lost = {term: slides.height - len(values(slides, term)) for term in _TERMS}
    return {term: n for term, n in lost.items() if n}


def values(slides: pl.DataFrame, column: str) -> list[str]:
    """What is said in a column, each on one line."""
    said: Iterable[Any] = slides[column].drop_nulls() if column in slides.columns else ()
    return [line for value in said if (line := " ".join(str(value).split()))]


def _plain(text: object) -> str:
    """A text as Markdown shows it, whatever is in it, on one line."""
    return re.sub(r"([\\`*_{}\[\]<>#|])", r"\\\1", " ".join(str(text).split()))


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _header(name: str, slides: pl.DataFrame, n: int) -> str:
    found = sorted(set(values(slides, "license")))
    if "license" in missing(slides):
        found.append("not said")
    known = found[0].lower() if len(found) == 1 and found[0].lower() in _LICENSES else ""
    words = "; ".join(found)
    license_ = (
        [f"license: {known}"] if known else ["license: other", f"license_name: {_quoted(words)}"]
    )
    below = next((size for size in _SIZES if n < size), None)
    smaller = [size for size in _SIZES if size <= n]
    size = f"{_short(smaller[-1])}<n<{_short(below)}" if below and smaller else "n<1K"
    if below is None:
        size = "n>100M"
    lines = [
        *license_,
        f"pretty_name: {_quoted(' '.join(name.split()))}",
        "tags: [spatial-transcriptomics, histology, gene-expression, biology]",
        f'size_categories: ["{size}"]',
        "configs:",
        "- config_name: spots",
        "  data_files: index.parquet",
        "  default: true",
        "- config_name: slides",
        "  data_files: slides.parquet",
    ]
    return "\n".join(["---", *lines, "---"])


def _short(n: int) -> str:
    return f"{n // 1_000_000}M" if n >= 1_000_000 else f"{n // 1000}K"


def _missing(slides: pl.DataFrame) -> str:
    lost = missing(slides)
    if not lost:
        return ""
    words = ", ".join(f"`{term}` of {n} of {slides.height}" for term, n in lost.items())
    return f"> **Before you share this:** the manifest lacks, of its slides, {words}."


def _table(head: list[str], rows: list[tuple[object, ...]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(_plain, line))} |" for line in lines)


def _studies(slides: pl.DataFrame) -> str:
    said = [c for c in ("pmid", "title") if c in slides.columns]
    if not said:
        return ""
    rows = slides.select(said).unique(maintain_order=True).iter_rows()
    studies = (": ".join(_plain(v) for v in row if v is not None) for row in rows)
    return "\n".join(f"- {study}" for study in studies if study)


def _motivation(slides: pl.DataFrame) -> str:
    text = (
        "Pictures of tissue beside the expression of genes at the same place, for models "
        "that relate the two. The slides come from these studies:"
    )
    return "\n\n".join(["## Motivation", text, _studies(slides) or _UNKNOWN])


def _composition(slides: pl.DataFrame, index: pl.DataFrame, n_genes: int) -> str:
    counts = float(index["n_counts"].sum())
    partial, empty = int((index["valid"] < 1).sum()), int((index["n_counts"] == 0).sum())
    facts: list[tuple[object, ...]] = [
        ("slides", f"{slides.height:,}"),
        ("spots, each a tile and a row of counts", f"{index.height:,}"),
        ("of these in tissue", f"{int(index['in_tissue'].sum()):,}"),
        ("of these with a label", f"{index.height - index['label'].null_count():,}"),
        ("tiles partly outside their picture", f"{partial:,}"),
        ("spots without counts", f"{empty:,}"),
        ("genes, the union of all slides'", f"{n_genes:,}"),
        ("counts", f"{counts:,.0f}"),
        ("median counts of a spot", f"{np.median(index['n_counts'].to_numpy()):,.0f}"),
    ]
    parts = ["## Composition", _table(["what", "how many"], facts)]
    spots = index.group_by("slide").len("spots")
    joined = slides.drop("spots", strict=False).join(spots, on="slide", how="left")
    for column in ("technology", "species", "tissue"):
        if values(slides, column):
            grouped = joined.group_by(column).agg(pl.len().alias("slides"), pl.col("spots").sum())
            rows = grouped.sort("spots", column, descending=[True, False]).rows()
            named = [(v if v is not None else "not said", *rest) for v, *rest in rows]
            parts.append(_table([column, "slides", "spots"], named))
    labels = index["label"].drop_nulls().value_counts().sort("label")
    if labels.height:
        parts.append(_table(["label", "spots"], labels.rows()))
    parts.append("Spots of a slide overlap and look alike: split by slide or by patient.")
    return "\n\n".join(parts)


def _collection(slides: pl.DataFrame) -> str:
    patients = sorted(set(values(slides, "patient")))
    said = (
        f"{len(patients)} patients are told apart." if patients else "Patients are not told apart."
    )
    consent = sorted(set(values(slides, "consent")))
    return "\n\n".join(
        [
            "## Collection process",
            "By the studies above; each slide's source is in `slides.parquet`. " + said,
            "Consent and review: " + ("; ".join(map(_plain, consent)) or _UNKNOWN),
        ]
    )


def _processing(settings: dict[str, Any]) -> str:
    window = f"{settings['span_um']:g} µm" if settings["span_um"] else "the spot's diameter, 2r"
    coding = settings["encoding"]
    coding += f" of quality {settings['quality']}, 4:4:4" if coding == "jpeg" else ""
    rows: list[tuple[object, ...]] = [
        ("window around a spot", window),
        ("tile", f"{settings['size']} px, {coding}"),
        ("bins of Visium HD", f"{settings['bin_size']:g} µm"),
        ("chosen genes", settings["hvg"]),
        ("order of spots", f"mixed over all slides, seed {settings['seed']}"),
        ("made by", f"stfast {settings['version']}, format {settings['format_version']}"),
    ]
    text = (
        "Counts are as their makers counted them; nothing was normalised but `genes/hvg.npy` "
        "(totals, then log1p). Label and macro pictures of slide scanners, which may show "
        "names of patients, are not in it."
    )
    return "\n\n".join(["## Preprocessing", _table(["step", "setting"], rows), text])


def _use(settings: dict[str, Any]) -> str:
    ending = {"jpeg": "jpg"}.get(settings["encoding"], settings["encoding"])
    code = [
        "```python",
        "import stfast",
        'dataset = stfast.Dataset(".")',
        "for batch in dataset.loader(batch_size=256): ...",
        "```",
    ]
    text = (
        f"Shards in `tiles/` are plain WebDataset (`.{ending}` and `.json` a spot), and "
        "`index.parquet` is plain Parquet. Not for diagnosis."
    )
    return "\n\n".join(["## Uses", "\n".join(code), text])


def _terms(slides: pl.DataFrame) -> str:
    terms = [c for c in ("license", "source_url") if values(slides, c)]
    if not terms:
        return f"## Distribution and maintenance\n\n{_UNKNOWN}"
    grouped = slides.group_by(terms).len("slides").sort(terms)
    rows = [tuple("not said" if v is None else v for v in row) for row in grouped.rows()]
    return "## Distribution and maintenance\n\n" + _table([*terms, "slides"], rows)
