"""``report.html``: one page that says what a dataset is, and what to look at before training.

All that it shows is inside it: no script, no font and no picture comes from elsewhere. What
manifests say is text by others and is escaped. The figure is SVG that is written here, so that
its bytes depend on the dataset alone and no plotting library is needed.
"""

import base64
import io
import json
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import polars as pl
from PIL import Image

from stfast._output import whole
from stfast.alignment._picture import HEADER
from stfast.dataset import _checks, _composition, _layout

PAGE, PICTURES = "report.html", "report"
MEASURED = ("median_counts", "median_genes", "n_empty", "n_over_edge", "labels", "genes")
"""What the page says of a slide beside the table of slides."""
_SIDE, _GENES = 240, 8
_TERMS = ("license", "source_url", "consent")

_ASKED = (
    *(*_composition.COLUMNS, *_TERMS, *_checks.FACTS),
    *("patient", "title", "annotation"),
)

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1d2733; max-width: 1180px;
       margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: 0; } h2 { margin-top: 2.2rem; font-size: 1.2rem; }
.lead { color: #52606d; margin-top: .2rem; }
.facts { display: flex; flex-wrap: wrap; gap: 1rem 2.4rem; margin: 1.2rem 0; }
.facts b { display: block; font-size: 1.5rem; font-weight: 600; }
.card { display: flex; gap: 1.2rem; border-top: 1px solid #d9e0e7; padding: 1rem 0; }
.card div { min-width: 0; flex: 1; } .card a { flex: none; } .card img { max-width: 480px; }
.card h3 { margin: 0; overflow-wrap: anywhere; } .card p { margin: .2rem 0; }
.quiet { color: #52606d; overflow-wrap: anywhere; }
.ok, .undecided, .misplaced { border-radius: 3px; padding: 0 .4em; color: #fff; }
.ok { background: #2e7d4f; } .undecided { background: #7b8794; } .misplaced { background: #b3261e; }
li { overflow-wrap: anywhere; } svg { max-width: 100%; height: auto; }
"""
_GUARD = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def picture(root: Path, slide: str) -> Path:
    """The picture of a slide's spots."""
    return root / PICTURES / f"{slide}.png"


def write_report(root: Path) -> None:
    """Write the page of a built dataset, from its files."""
    description = json.loads((root / _layout.DESCRIPTION).read_bytes())
    slides = _slides(root)
    name = str(description["name"])
    parts = [
        _head(name, slides, description[_layout.SETTINGS]),
        "<h2>Composition</h2>",
        _composition.figure(slides),
        _warnings(slides),
        f"<h2>Slides</h2>{''.join(_card(root, row) for row in slides.iter_rows(named=True))}",
    ]
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_GUARD}">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{escape(name)}</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )
    with whole(root / PAGE) as partial:
        partial.write_bytes(page.encode())


def _slides(root: Path) -> pl.DataFrame:
    """The slides' table, and what the index says of each of them."""
    table = pl.read_parquet(root / _layout.SLIDE_TABLE)
    table = table.with_columns(
        pl.lit(None).alias(name) for name in _ASKED if name not in table.columns
    )
    technology = pl.coalesce(pl.col("technology", "read_as").cast(pl.String))
    spots = pl.scan_parquet(root / _layout.INDEX).group_by("slide").agg(
        pl.col("n_counts").median().alias("median_counts"),
        pl.col("n_genes").median().alias("median_genes"),
        pl.col("n_counts").eq(0).sum().alias("n_empty"),
        pl.col("valid").lt(1).sum().alias("n_over_edge"),
        pl.col("label").drop_nulls().unique().sort().alias("labels"),
    )  # fmt: skip
    table = table.with_columns(technology=technology).join(spots.collect(), on="slide", how="left")
    return table.join(_genes(root), on="slide", how="left").sort("slide")


def _genes(root: Path) -> pl.DataFrame:
    """The first chosen genes of each slide."""
    path = root / _layout.HVG_GENES
    if not path.exists():
        return pl.DataFrame(schema={"slide": pl.String, "genes": pl.List(pl.String)})
    table = pl.read_parquet(path).filter(pl.col("rank") < _GENES).sort("slide", "rank")
    return table.group_by("slide", maintain_order=True).agg(pl.col("gene").alias("genes"))


def _head(name: str, slides: pl.DataFrame, settings: dict[str, Any]) -> str:
    facts = {
        "slides": slides.height,
        "spots": int(slides["n_spots"].sum()),
        "labelled spots": int(slides["n_labelled"].cast(pl.Int64).sum()),
        "tissues": slides["tissue"].n_unique() - int(slides["tissue"].has_nulls()),
        "px a tile's side": settings["size"],
    }
    words = "".join(f"<span><b>{value:,}</b>{escape(what)}</span>" for what, value in facts.items())
    said = f"stfast {settings['version']}, tiles as {settings['encoding']}, seed {settings['seed']}"
    return (
        f'<h1>{escape(name)}</h1><p class="lead">{escape(said)}</p><div class="facts">{words}</div>'
    )


def _warnings(slides: pl.DataFrame) -> str:
    """What to look at, a line a thing."""
    found = []
    for row in slides.iter_rows(named=True):
        found += [f"{row['slide']}: {problem}" for problem in _problems(row)]
    lacking = [name for name in _TERMS if slides[name].is_null().any()]
    for name in lacking:
        n = slides[name].null_count()
        found.append(f"{name}: not said of {n:,} of {slides.height:,} slides")
    lines = "".join(f"<li>{escape(line)}</li>" for line in found)
    return f"<h2>Warnings</h2><ul>{lines or '<li>none</li>'}</ul>"


def _problems(row: dict[str, Any]) -> list[str]:
    """What is odd about a slide."""
    found = []
    if row["alignment"] == "misplaced":
        found.append(f"spots and picture do not agree: {row['alignment_cause']}")
    elif row["alignment"] == "undecided" and row["alignment_cause"]:
        found.append(f"alignment {row['alignment_cause']}")
    counts = {
        "spots without counts": row["n_empty"],
        "tiles over the picture's edge": row["n_over_edge"],
        "spots that its annotation does not speak of": row["n_unmatched_spots"],
        "rows of its annotation without a spot": row["n_unmatched_rows"],
    }
    return found + [f"{what}: {n:,}" for what, n in counts.items() if n]


def _card(root: Path, row: dict[str, Any]) -> str:
    """All about one slide."""
    kind = [row[name] for name in ("technology", "species", "tissue", "patient")]
    lines = [" · ".join(str(word) for word in kind if word)]
    lines.append(
        f"{row['n_spots']:,} spots, {row['n_genes']:,} genes; median {row['median_counts']:,.0f} "
        f"counts and {row['median_genes']:,.0f} genes a spot; {row['width']:,} × "
        f"{row['height']:,} px"
    )
    if row["annotation"]:
        named = ", ".join(row["labels"])
        lines.append(f"{row['n_labelled'] or 0:,} spots labelled: {named}")
    if row["genes"]:
        lines.append(f"most variable: {', '.join(row['genes'])}")
    quiet = "".join(f'<p class="quiet">{escape(line)}</p>' for line in lines if line)
    title = f"<p>{escape(str(row['title']))}</p>" if row["title"] else ""
    heading = f"<h3>{escape(row['slide'])}</h3>{title}"
    words = f"<div>{heading}{quiet}{_verdict(row)}</div>"
    return f'<section class="card">{_image(root, row)}{words}</section>'


def _verdict(row: dict[str, Any]) -> str:
    if not row["alignment"]:
        return ""
    verdict, cause = escape(row["alignment"]), escape(row["alignment_cause"] or "")
    score = f"{row['alignment_score']:+.2f}"
    return f'<p>alignment <span class="{verdict}">{verdict}</span> {score} {cause}</p>'


def _image(root: Path, row: dict[str, Any]) -> str:
    """The picture, reduced and inside the page."""
    path = picture(root, row["slide"])
    if not path.exists():
        return ""
    coded = io.BytesIO()
    with Image.open(path) as full:
        small = full.convert("RGB").crop((0, HEADER, *full.size))
    small.thumbnail((2 * _SIDE, _SIDE), Image.Resampling.BOX)
    small.save(coded, "JPEG", quality=80)
    data = base64.b64encode(coded.getvalue()).decode()
    name, link = escape(row["slide"]), escape(quote(f"{PICTURES}/{path.name}"))
    shown = f'<img alt="spots of {name} over its picture" src="data:image/jpeg;base64,{data}">'
    return f'<a href="{link}">{shown}</a>'
