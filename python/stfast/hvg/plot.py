"""The picture that people look at: genes by mean and variability, the chosen ones marked."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

_SCORES = {
    "residual_variances": "variance of Pearson residuals",
    "variances_norm": "standardised variance",
    "dispersions_norm": "normalised dispersion",
}
_NAMED = 10


def draw(table: pd.DataFrame, path: Path, *, title: str = "") -> None:
    """Draw a table of :func:`stfast.highly_variable_genes` into a picture.

    Left what is found of a gene (variance, or dispersion) over its mean, right the score
    that genes are chosen by; the best are named. Needs matplotlib.
    """
    from matplotlib.figure import Figure

    score = next(name for name in _SCORES if name in table)
    found = "dispersions" if score == "dispersions_norm" else "variances"
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    _scatter(left, table, found, "dispersion (log)" if found == "dispersions" else "variance")
    _scatter(right, table, score, _SCORES[score])
    best = table[table["highly_variable"]].nlargest(_NAMED, score)
    # Names in a column of their own: the best genes lie close together.
    for rank, (name, gene) in enumerate(best.iterrows()):
        right.annotate(
            str(name),
            (gene["means"], gene[score]),
            xytext=(1.04, 0.97 - rank * 0.06),
            textcoords="axes fraction",
            arrowprops={"arrowstyle": "-", "lw": 0.4, "color": "#9aa5b1"},
            fontsize=7,
            va="center",
        )
    n = int(table["highly_variable"].sum())
    figure.suptitle(f"{title}: {n} of {len(table)} genes".removeprefix(": "))
    figure.savefig(path, dpi=130)


def _scatter(axes: Any, table: pd.DataFrame, column: str, label: str) -> None:
    """Genes with a positive mean; logarithmic axes where values are no logarithms yet."""
    finite = np.isfinite(table[column].to_numpy()) & (table["means"].to_numpy() > 0)
    logged = "dispersions" in table
    if not logged:
        finite &= table[column].to_numpy() > 0
    shown, chosen = table[finite], table["highly_variable"].to_numpy()[finite]
    kinds = {"other genes": (~chosen, "#9aa5b1", 4), "highly variable": (chosen, "#c0392b", 7)}
    for name, (mask, colour, size) in kinds.items():
        genes = shown[mask]
        axes.scatter(genes["means"], genes[column], s=size, c=colour, lw=0, alpha=0.8, label=name)
    axes.set(xlabel="mean (log1p)" if logged else "mean", ylabel=label)
    if not logged:
        axes.set(xscale="log", yscale="log")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="best")
