"""Section 5's tables over whole datasets: one row a model, a slide or a gene.

The protocols are in ``probe``, ``scores`` and ``predict``, on arrays; here they are given
what a dataset and files of embeddings hold.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stfast.learn._genes import median_total
from stfast.learn._splits import EXCLUDED, known
from stfast.learn.embedding import read_embeddings
from stfast.learn.predict import predict_genes
from stfast.learn.probe import linear_probe
from stfast.learn.scores import cluster_scores

if TYPE_CHECKING:
    from stfast.dataset import Dataset

Embeddings = Mapping[str, str | os.PathLike[str]]


_PROBE: dict[str, type[pl.DataType]] = {
    "model": pl.String,
    "split": pl.String,
    "f1": pl.Float64,
    "f1_sd": pl.Float64,
    "alpha": pl.Float64,
    "n_spots": pl.Int64,
    "n_dropped": pl.Int64,
}


def probe_models(
    dataset: "Dataset",
    embeddings: Embeddings,
    *,
    labels: str | os.PathLike[str] | None = None,
    exclude: Sequence[str] = EXCLUDED,
) -> pl.DataFrame:
    """Linear probing of several models, split by spot and by slide.

    Parameters
    ----------
    dataset
        A dataset or a view of one.
    embeddings
        A file that :func:`embed` wrote by each model's name.
    labels
        CSV or Parquet of ``slide, spot, label``; ``None``: the dataset's own.
    exclude
        Labels that are dropped.

    Returns
    -------
    polars.DataFrame
        ``model, split, f1, f1_sd, alpha, n_spots, n_dropped``: test macro-F1 and its
        deviation over five seeds. Split ``"spot"`` is the paper's; in ``"slide"`` no slide
        is in two parts, and it is left out where fewer than 3 slides have labels.

    Raises
    ------
    ValueError
        Spots without embeddings, fewer than 2 labels or 10 labelled spots.
    """
    words, slides = labels_of(dataset, labels), dataset.index["slide"].to_list()
    kept = known(words, exclude)
    many = len({slide for slide, keep in zip(slides, kept, strict=True) if keep}) >= 3
    rows = []
    for name, path in embeddings.items():
        matrix = read_embeddings(path, dataset)[1]
        for split in ("spot", "slide") if many else ("spot",):
            groups = slides if split == "slide" else None
            found = linear_probe(matrix, words, slides=groups, exclude=exclude)
            told = (found.mean, found.sd, found.alpha, found.n_spots, found.n_dropped)
            rows.append((name, split, *told))
    return pl.DataFrame(rows, schema=_PROBE, orient="row")


def cluster_models(
    dataset: "Dataset",
    embeddings: Embeddings,
    *,
    labels: str | os.PathLike[str] | None = None,
    exclude: Sequence[str] = EXCLUDED,
) -> pl.DataFrame:
    """Scores of the labels as clusters, a row a model and slide.

    Parameters
    ----------
    dataset
        A dataset or a view of one.
    embeddings
        A file that :func:`embed` wrote by each model's name.
    labels
        CSV or Parquet of ``slide, spot, label``; ``None``: the dataset's own.
    exclude
        Labels that are dropped.

    Returns
    -------
    polars.DataFrame
        ``model`` and the columns of :func:`cluster_scores`.
    """
    words, slides = labels_of(dataset, labels), dataset.index["slide"].to_list()
    tables = []
    for name, path in embeddings.items():
        matrix = read_embeddings(path, dataset)[1]
        table = cluster_scores(matrix, words, slides=slides, exclude=exclude)
        tables.append(table.select(pl.lit(name).alias("model"), pl.all()))
    return pl.concat(tables)


def tsne(embeddings: NDArray[np.float32], *, seed: int = 0) -> NDArray[np.float32]:
    """Two numbers a spot by scikit-learn's t-SNE with its defaults.

    Parameters
    ----------
    embeddings
        (n, width), of one slide.
    seed
        Its ``random_state``.

    Returns
    -------
    (n, 2) float32; the perplexity is 30, or less where there are not 91 spots.

    Raises
    ------
    ValueError
        There are fewer than 4 spots.
    """
    from sklearn.manifold import TSNE

    if len(embeddings) < 4:
        raise ValueError(f"embeddings: expected at least 4 spots for t-SNE, got {len(embeddings)}")
    near = min(30.0, (len(embeddings) - 1) / 3)
    found: NDArray[np.float32] = TSNE(perplexity=near, random_state=seed).fit_transform(embeddings)
    return found


@dataclass(frozen=True)
class GenePrediction:
    """Genes predicted from embeddings.

    Attributes
    ----------
    within
        ``gene, alpha, mse, mse_sd, pearson, pearson_sd`` over the training slides' own
        test parts.
    across
        ``slide, gene, mse, pearson`` of each slide that was not trained on.
    spots
        ``slide, spot, x, y`` and, of each gene, ``GENE`` and ``GENE predicted``, of the
        slides that were not trained on.
    """

    within: pl.DataFrame
    across: pl.DataFrame
    spots: pl.DataFrame


def predict_slides(
    dataset: "Dataset",
    embeddings: str | os.PathLike[str],
    *,
    genes: Sequence[str],
    train: Sequence[str],
    test: Sequence[str] = (),
) -> GenePrediction:
    """Predict expression from embeddings, trained on some slides and tried on others.

    Parameters
    ----------
    dataset
        A built dataset.
    embeddings
        What :func:`embed` wrote.
    genes
        Names of genes.
    train, test
        Names of slides: the paper's H1 and H2.

    Raises
    ------
    ValueError
        A gene or a slide that the dataset does not have, a slide in both, or fewer than
        20 training spots.

    Notes
    -----
    Expression is log1p of counts at the median total of the dataset's spots, so that
    slides are on one scale.
    """
    known_slides, both = dataset.slides["slide"].to_list(), set(train) & set(test)
    lost = [name for name in (*train, *test) if name not in known_slides]
    if lost or both or not train:
        wrong = (lost or sorted(both) or ["none to train on"])[0]
        raise ValueError(f"slides: expected different ones of {known_slides}, got {wrong!r}")
    first = dataset.filter(slide=list(train))
    x, y = read_embeddings(embeddings, first)[1], expression(first, genes)
    fit = predict_genes(x, y, genes=genes)
    scores, spots = [], []
    for slide in test:
        part = dataset.filter(slide=slide)
        matrix, truth = read_embeddings(embeddings, part)[1], expression(part, genes)
        scores.append(fit.score(matrix, truth).select(pl.lit(slide).alias("slide"), pl.all()))
        columns = {gene: truth[:, g] for g, gene in enumerate(genes)}
        predicted = fit.predict(matrix).astype(np.float32)
        columns |= {f"{gene} predicted": predicted[:, g] for g, gene in enumerate(genes)}
        keys = part.index.select("slide", "spot", "x", "y")
        spots.append(keys.hstack(pl.DataFrame(columns)))
    empty = pl.DataFrame()
    return GenePrediction(
        fit.table, pl.concat(scores) if scores else empty, pl.concat(spots) if spots else empty
    )


def expression(dataset: "Dataset", genes: Sequence[str]) -> NDArray[np.float32]:
    """Log-normalised expression, (n, genes) float32.

    Parameters
    ----------
    dataset
        A dataset or a view of one.
    genes
        Names of genes.

    Raises
    ------
    ValueError
        The dataset does not have a gene.
    """
    from stfast.sources.genes import column_numbers

    columns = column_numbers(genes, dataset.genes, str(dataset.root))
    totals = dataset.index["n_counts"].to_numpy()
    target = median_total(dataset._every["n_counts"].to_numpy())
    picked = dataset.counts[:, columns].toarray().astype(np.float64)
    picked *= np.divide(target, totals, out=np.zeros_like(totals), where=totals > 0)[:, None]
    return np.log1p(picked).astype(np.float32)


def labels_of(dataset: "Dataset", labels: str | os.PathLike[str] | None = None) -> list[str | None]:
    """A label a spot of the dataset; ``None``: it has none.

    Parameters
    ----------
    dataset
        A dataset or a view of one.
    labels
        CSV or Parquet of ``slide, spot, label``; ``None``: the dataset's own.

    Raises
    ------
    ValueError
        The table lacks columns or names a spot twice, or no spot of the dataset has a label.
    """
    if labels is None:
        words: list[str | None] = dataset.index["label"].to_list()
    else:
        path = Path(labels)
        read = pl.read_parquet if path.suffix == ".parquet" else pl.read_csv
        table = read(path)
        if not {"slide", "spot", "label"} <= set(table.columns):
            raise ValueError(f"{path}: expected slide, spot and label, got {table.columns}")
        table = table.select(pl.col("slide", "spot", "label").cast(pl.String))
        if table.select("slide", "spot").is_duplicated().any():
            raise ValueError(f"{path}: expected each spot once, got some again")
        keys = dataset.index.select("slide", "spot")
        joined = keys.join(table, on=["slide", "spot"], how="left", maintain_order="left")
        words = joined["label"].to_list()
    if not any(words):
        where = labels or dataset.root
        raise ValueError(f"{where}: expected labels of the dataset's spots, got none")
    return words
