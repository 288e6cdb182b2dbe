"""Which row is which spot, by name.

Names of spots are written in several ways: barcodes lose their ``-1`` in spreadsheets, and
places on an array are ``16.92x9.015`` in one file and ``17_9`` in the next.
"""

import pandas as pd
import polars as pl

_PLACE = r"^\s*(-?\d+(?:\.\d+)?)\s*[x_]\s*(-?\d+(?:\.\d+)?)\s*$"
_SPOT = (
    r"^(?:.*_)?(?:[ACGTN]{10,}(?:-\d+)?|s_\d+um_\d+_\d+(?:-\d+)?"
    r"|-?\d+(?:\.\d+)?[x_]-?\d+(?:\.\d+)?)$"
)
_END = pl.col("name").str.extract(r"(-\d+)$").fill_null("")
"""The end of a barcode, ``-1``: in a file of several samples, which of them."""


def look_like_spots(names: pl.Series) -> pl.Series:
    """Which texts look like a spot's name: a barcode, a bin or a place on an array."""
    return names.str.contains(_SPOT).fill_null(value=False)


def join_names(rows: pl.Series, spots: "pd.Index[str]") -> tuple[pl.DataFrame, str | None]:
    """Pairs of numbers, ``spot`` and ``row``, by the way of writing that fits most rows.

    Exact names win if any fits: without their end, barcodes of other samples are alike. So
    rows that are joined without it share one, and it is none that the spots have.
    """
    ours = pl.DataFrame({"name": spots.astype(str).tolist()}).with_row_index("spot")
    theirs = pl.DataFrame({"name": rows}).with_row_index("row")
    best, by = pl.DataFrame(schema={"spot": pl.UInt32, "row": pl.UInt32}), None
    for way, key in _keys().items():
        keyed = ours.select("spot", key=key).drop_nulls()
        if keyed["key"].is_duplicated().any():
            continue
        keys = theirs.select("row", key=key, end=_END).drop_nulls()
        pairs = keys.join(keyed, on="key", how="inner")
        if way == "barcode":
            pairs = pairs.filter(~pl.col("end").is_in(ours.select(_END).to_series().to_list()))
            if pairs["end"].n_unique() > 1:
                continue
        if pairs.height > best.height:
            best, by = pairs.select("spot", "row"), way
        if by == "name":
            break
    return best.sort("row"), by


def _keys() -> dict[str, pl.Expr]:
    name = pl.col("name")
    x, y = (name.str.extract(_PLACE, group).cast(pl.Float64).round() for group in (1, 2))
    place = pl.concat_str(x.cast(pl.Int64), y.cast(pl.Int64), separator=" ")
    return {"name": name, "barcode": name.str.replace(r"-\d+$", ""), "place": place}
