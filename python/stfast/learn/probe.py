"""Linear probing: how well a linear classifier tells the annotated layers from embeddings."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.linear_model import SGDClassifier
from sklearn.metrics import f1_score

from stfast.learn._splits import (
    ALPHAS,
    EXCLUDED,
    SEEDS,
    features,
    known,
    parts_of_rows,
    parts_of_slides,
    same_length,
)


@dataclass(frozen=True)
class Probe:
    """Macro-F1 of linear probing.

    Attributes
    ----------
    mean, sd
        Of the test parts over the seeds; the population's sd (numpy's default).
    alpha
        The strength of L2 with the best mean validation macro-F1.
    validation, test
        (alphas, seeds): macro-F1 of every fit.
    n_spots, n_dropped
        Rows used, and rows without a label or with an excluded one.
    """

    mean: float
    sd: float
    alpha: float
    validation: NDArray[np.float64]
    test: NDArray[np.float64]
    n_spots: int
    n_dropped: int


def linear_probe(
    embeddings: ArrayLike,
    labels: Sequence[str | None],
    *,
    slides: Sequence[str] | None = None,
    exclude: Sequence[str] = EXCLUDED,
) -> Probe:
    """Fit the paper's linear classifier at five alphas and five seeds.

    Parameters
    ----------
    embeddings
        (n, width), float.
    labels
        A label a row; missing ones are dropped.
    slides
        A slide's name a row: split whole slides instead of spots. Spots of one slide
        resemble each other, so the paper's split by spot flatters.
    exclude
        Labels that are dropped too; the paper's by default.

    Raises
    ------
    ValueError
        For arrays of other lengths or shapes, values not finite, fewer than 2 labels,
        10 spots or 3 slides.

    Notes
    -----
    ``SGDClassifier`` with log-loss, balanced classes, ``max_iter=10000`` and
    ``random_state=1`` over alphas 1 … 1e-4 (STimage-1K4M, section 5).
    """
    matrix = features(embeddings)
    same_length(len(labels), len(matrix), "labels")
    keep = known(labels, exclude)
    x, y = matrix[keep], np.array([label for label, k in zip(labels, keep, strict=True) if k])
    if len(np.unique(y)) < 2:
        raise ValueError(f"labels: expected at least 2 kinds, got {np.unique(y).tolist()}")
    if slides is not None:
        same_length(len(slides), len(matrix), "slides")
        kept = np.asarray(slides, dtype=np.str_)[keep]
        parts = [parts_of_slides(kept, seed) for seed in SEEDS]
    else:
        parts = [parts_of_rows(len(y), seed) for seed in SEEDS]
    f1 = np.array([[_f1(x, y, part, alpha) for part in parts] for alpha in ALPHAS])
    valid, test = f1[..., 0], f1[..., 1]
    best = int(valid.mean(axis=1).argmax())
    return Probe(
        mean=float(test[best].mean()),
        sd=float(test[best].std()),
        alpha=ALPHAS[best],
        validation=valid,
        test=test,
        n_spots=len(y),
        n_dropped=int((~keep).sum()),
    )


def _f1(
    x: NDArray[np.float32 | np.float64],
    y: NDArray[np.str_],
    parts: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]],
    alpha: float,
) -> tuple[float, float]:
    """Macro-F1 on the validation and the test rows."""
    train, *held = parts
    model = SGDClassifier(
        loss="log_loss", alpha=alpha, class_weight="balanced", max_iter=10_000, random_state=1
    )
    model.fit(x[train], y[train])
    valid, test = (f1_score(y[r], model.predict(x[r]), average="macro") for r in held)
    return float(valid), float(test)
