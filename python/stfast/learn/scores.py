"""How well embeddings keep the annotated layers apart, slide by slide."""

from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import ArrayLike
from sklearn import metrics

from stfast.learn._splits import EXCLUDED, features, known, same_length


def cluster_scores(
    embeddings: ArrayLike,
    labels: Sequence[str | None],
    *,
    slides: Sequence[str],
    exclude: Sequence[str] = EXCLUDED,
) -> pl.DataFrame:
    """Silhouette, Calinski-Harabasz and Davies-Bouldin of each slide's labels.

    Parameters
    ----------
    embeddings
        (n, width), float.
    labels, slides
        A label and a slide's name a row.
    exclude
        Labels that are dropped, as missing ones are; the paper's by default.

    Returns
    -------
    polars.DataFrame
        ``slide, n_spots, n_dropped, silhouette, calinski_harabasz, davies_bouldin`` in
        the order of the slides' names; the scores are null where a slide has fewer than
        2 labels, or as many labels as spots.

    Raises
    ------
    ValueError
        For arrays of other lengths or shapes, or values not finite.

    Notes
    -----
    scikit-learn's functions with their defaults (STimage-1K4M, section 5).
    """
    x = features(embeddings)
    same_length(len(labels), len(x), "labels")
    same_length(len(slides), len(x), "slides")
    keep, names = known(labels, exclude), np.asarray(slides, dtype=np.str_)
    words = np.array([str(label) for label in labels])
    columns = ("silhouette", "calinski_harabasz", "davies_bouldin")
    rows = []
    for name in np.unique(names):
        here = (names == name) & keep
        x_here, y_here = x[here], words[here]
        scores: list[float | None] = [None, None, None]
        if 2 <= len(np.unique(y_here)) < len(y_here):
            scores = [float(getattr(metrics, f"{c}_score")(x_here, y_here)) for c in columns]
        dropped = int(((names == name) & ~keep).sum())
        rows.append([str(name), len(y_here), dropped, *scores])
    counts = {"n_spots": pl.Int64, "n_dropped": pl.Int64}
    schema = {"slide": pl.String, **counts, **dict.fromkeys(columns, pl.Float64)}
    return pl.DataFrame(rows, schema=schema, orient="row")
