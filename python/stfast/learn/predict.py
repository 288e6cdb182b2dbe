"""Expression from embeddings: ridge regression a gene, within a slide or on another one."""

from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray
from sklearn.linear_model import Ridge

from stfast.learn._splits import ALPHAS, SEEDS, Parts, features, parts_of_rows, same_length

Matrix = NDArray[np.float32 | np.float64]


class GeneFit:
    """A ridge a gene, each at the alpha with the least mean validation error.

    Attributes
    ----------
    table
        ``gene, alpha, mse, mse_sd, pearson, pearson_sd``: over the test parts of five
        seeds. ``pearson`` is null where truth or prediction is constant in a part.
    """

    def __init__(self, table: pl.DataFrame, weights: NDArray[np.float64]) -> None:
        self.table = table
        self._weights = weights

    def predict(self, embeddings: ArrayLike) -> NDArray[np.float64]:
        """(n, genes) for embeddings of this or another slide, by fits on all given rows."""
        x = features(embeddings)
        if x.shape[1] != len(self._weights):
            raise ValueError(f"embeddings: expected {len(self._weights)} wide, got {x.shape[1]}")
        predicted: NDArray[np.float64] = x.astype(np.float64) @ self._weights
        return predicted

    def score(self, embeddings: ArrayLike, expression: ArrayLike) -> pl.DataFrame:
        """``gene, mse, pearson`` on another slide, as the paper's H1 → H2."""
        predicted, truth = self.predict(embeddings), features(expression, "expression")
        if predicted.shape != truth.shape:
            raise ValueError(f"expression: expected {predicted.shape}, got {truth.shape}")
        pearson = [_pearson(t, p) for t, p in zip(truth.T, predicted.T, strict=True)]
        mse = np.square(truth - predicted).mean(axis=0)
        scores = {"gene": self.table["gene"], "mse": mse, "pearson": pearson}
        return pl.DataFrame(scores, schema_overrides={"pearson": pl.Float64})


def predict_genes(embeddings: ArrayLike, expression: ArrayLike, *, genes: Sequence[str]) -> GeneFit:
    """Predict genes from embeddings with the paper's ridge, alphas and splits.

    Parameters
    ----------
    embeddings
        (n, width), float.
    expression
        (n, genes), dense; as it should be predicted (say, log-normalised).
    genes
        Name of each column of ``expression``.

    Raises
    ------
    ValueError
        For arrays of other lengths or shapes, values not finite, or fewer than 20 rows:
        a correlation needs two in each test part.

    Notes
    -----
    ``Ridge(solver="lsqr", fit_intercept=False)``, alphas 1 … 1e-4, 80/10/10 by spot
    (STimage-1K4M's repository). Afterwards each gene is fitted on all rows.
    """
    x, y = features(embeddings), features(expression, "expression")
    same_length(len(y), len(x), "expression")
    same_length(len(genes), y.shape[1], "genes")
    if len(x) < 20:
        raise ValueError(f"embeddings: expected at least 20 rows, got {len(x)}")
    parts = [parts_of_rows(len(x), seed) for seed in SEEDS]
    rows, weights = [], []
    for gene, values in zip(genes, y.T, strict=True):
        row, weight = _fit_gene(x, values, parts)
        rows.append({"gene": gene, **row})
        weights.append(weight)
    columns = ("alpha", "mse", "mse_sd", "pearson", "pearson_sd")
    schema = {"gene": pl.String, **dict.fromkeys(columns, pl.Float64)}
    empty = np.empty((x.shape[1], 0))
    return GeneFit(
        pl.DataFrame(rows, schema=schema), np.stack(weights, axis=1) if weights else empty
    )


def _fit_gene(
    x: Matrix, y: Matrix, parts: list[Parts]
) -> tuple[dict[str, float | None], NDArray[np.float64]]:
    """The gene's row of the table, and its weights fitted on all rows."""
    valid = np.empty((len(ALPHAS), len(parts)))
    test: list[list[tuple[float, float | None]]] = [[] for _ in ALPHAS]
    for a, alpha in enumerate(ALPHAS):
        for s, (train, held, last) in enumerate(parts):
            model = _ridge(x[train], y[train], alpha)
            valid[a, s] = np.square(y[held] - model.predict(x[held])).mean()
            predicted = model.predict(x[last])
            mse = float(np.square(y[last] - predicted).mean())
            test[a].append((mse, _pearson(y[last], predicted)))
    best = int(valid.mean(axis=1).argmin())
    errors, pearson = zip(*test[best], strict=True)
    constant = None in pearson
    row = {
        "alpha": ALPHAS[best],
        "mse": float(np.mean(errors)),
        "mse_sd": float(np.std(errors)),
        "pearson": None if constant else float(np.mean(pearson)),
        "pearson_sd": None if constant else float(np.std(pearson)),
    }
    return row, np.asarray(_ridge(x, y, ALPHAS[best]).coef_, dtype=np.float64)


def _ridge(x: Matrix, y: Matrix, alpha: float) -> Ridge:
    return Ridge(alpha=alpha, solver="lsqr", fit_intercept=False).fit(x, y)


def _pearson(truth: Matrix, predicted: Matrix) -> float | None:
    """Correlation; none where either is constant."""
    if np.ptp(truth) == 0 or np.ptp(predicted) == 0:
        return None
    return float(np.corrcoef(truth, predicted)[0, 1])
