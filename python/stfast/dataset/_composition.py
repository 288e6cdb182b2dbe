"""The figure of what a dataset is made of: slides and spots by technology, species, tissue.

As in STimage-1K4M's Fig. 1c (Chen et al., 2024), in bars, since the shares of a hundred
tissues cannot be read off a ring.
"""

from html import escape

import polars as pl

COLUMNS = ("technology", "species", "tissue")
_MOST = 12
_LEFT, _WIDTH, _ROW, _BAR = 190, 330, 26, 9
_SLIDES, _SPOTS, _INK, _QUIET = "#3b6ea5", "#e0913a", "#1d2733", "#52606d"


def figure(slides: pl.DataFrame) -> str:
    """SVG: for each column, a pair of bars a value, the share of slides and of spots."""
    top, parts = 28, [_legend()]
    for column in COLUMNS:
        parts.append(_text(0, top + 12, column.capitalize(), weight=600))
        top += 22
        for row in shares(slides, column).iter_rows(named=True):
            parts.append(_bars(top, row))
            top += _ROW
        top += 12
    width = _LEFT + _WIDTH + 260
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{top}" '
        f'viewBox="0 0 {width} {top}" role="img" aria-label="composition of the dataset" '
        f'font-family="system-ui, sans-serif" font-size="13">{"".join(parts)}</svg>'
    )


def shares(slides: pl.DataFrame, column: str) -> pl.DataFrame:
    """``value``, ``slides`` and ``spots``, most spots first; the rest of many as one."""
    value = pl.col(column).cast(pl.String).fill_null("not said")
    counted = slides.group_by(value.alias("value")).agg(
        pl.len().alias("slides"), pl.col("n_spots").sum().alias("spots")
    )
    counted = counted.sort(["spots", "value"], descending=[True, False])
    rest = counted[_MOST:]
    if rest.height > 1:
        name = f"{rest.height} others"
        others = rest.select(pl.lit(name).alias("value"), pl.col("slides", "spots").sum())
        counted = pl.concat([counted[:_MOST], others])
    return counted.with_columns(
        (pl.col(name) / pl.col(name).sum().clip(1)).alias(f"{name}_share")
        for name in ("slides", "spots")
    )


def _legend() -> str:
    return (
        _rect(_LEFT, 6, 12, _SLIDES) + _text(_LEFT + 18, 16, "slides", colour=_QUIET)
        + _rect(_LEFT + 80, 6, 12, _SPOTS) + _text(_LEFT + 98, 16, "spots", colour=_QUIET)
    )  # fmt: skip


def _bars(top: int, row: dict[str, float | str]) -> str:
    name = str(row["value"])
    name = name if len(name) <= 26 else name[:25] + "…"
    found = _text(_LEFT - 10, top + 13, name, anchor="end")
    for number, (what, colour) in enumerate((("slides", _SLIDES), ("spots", _SPOTS))):
        found += _rect(
            _LEFT, top + number * (_BAR + 1), float(row[f"{what}_share"]) * _WIDTH, colour
        )
    words = (
        f"{row['slides']:,} slides ({float(row['slides_share']):.1%}), "
        f"{row['spots']:,} spots ({float(row['spots_share']):.1%})"
    )
    return found + _text(_LEFT + _WIDTH + 10, top + 13, words, colour=_QUIET, size=11)


def _rect(x: float, y: float, width: float, colour: str) -> str:
    return f'<rect x="{x}" y="{y}" width="{max(width, 1):.1f}" height="{_BAR}" fill="{colour}"/>'


def _text(
    x: float,
    y: float,
    words: str,
    *,
    anchor: str = "start",
    weight: int = 400,
    colour: str = _INK,
    size: int = 13,
) -> str:
    return (
        f'<text x="{x}" y="{y}" text-anchor="{anchor}" font-weight="{weight}" '
        f'font-size="{size}" fill="{colour}">{escape(words)}</text>'
    )
