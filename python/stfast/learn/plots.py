"""The pictures of section 5, drawn without a display."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stfast._output import whole
from stfast.learn._splits import EXCLUDED

if TYPE_CHECKING:
    from stfast.dataset import Dataset
    from stfast.learn.experiments import Embeddings

_MISSING = "#d0d0d0"


def draw_losses(history: pl.DataFrame, path: Path) -> None:
    """The loss a step, and its mean an epoch."""
    figure = _figure((6, 3.6))
    axes = figure.subplots()
    axes.plot(history["step"] + 1, history["loss"], color="#9bb8d3", linewidth=1, label="step")
    means = history.group_by("epoch", maintain_order=True).mean()
    ends = history.group_by("epoch", maintain_order=True).last()["step"] + 1
    axes.plot(ends, means["loss"], "o-", color="#1f4e79", markersize=3, label="mean of an epoch")
    axes.set(xlabel="step", ylabel="contrastive loss")
    _open(axes)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def draw_probes(table: pl.DataFrame, path: str | os.PathLike[str]) -> None:
    """Bars of macro-F1, as Fig. 3a: a group a split, a bar a model.

    Parameters
    ----------
    table
        What :func:`probe_models` returned.
    path
        PNG to write.
    """
    models = table["model"].unique(maintain_order=True).to_list()
    splits = table["split"].unique(maintain_order=True).to_list()
    figure = _figure((2.2 + 0.75 * len(models) * len(splits), 3.6))
    axes, width = figure.subplots(), 0.8 / len(models)
    for m, model in enumerate(models):
        rows = table.filter(model=model)
        at = np.array([splits.index(split) for split in rows["split"]])
        bars = axes.bar(
            at + (m - (len(models) - 1) / 2) * width,
            rows["f1"],
            0.92 * width,
            yerr=rows["f1_sd"],
            color=_colour(m),
            label=model,
            capsize=2,
        )
        words = [f"{value:.2f}" for value in rows["f1"]]
        axes.bar_label(bars, words, label_type="center", color="white", fontsize=8)
    axes.set_xticks(range(len(splits)), [f"by {split}" for split in splits])
    axes.set(ylabel="macro-F1 of test spots", ylim=(0, 1.05))
    _open(axes)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", frameon=False)
    figure.savefig(path, dpi=150)


def draw_clusters(
    dataset: "Dataset",
    slide: str,
    labels: Sequence[str | None],
    points: Mapping[str, NDArray[np.floating[Any]]],
    path: str | os.PathLike[str],
) -> None:
    """A slide's labels on its tissue, and beside it each model's t-SNE: Fig. 3b-d.

    Parameters
    ----------
    dataset
        A view of the one slide.
    slide
        Its name.
    labels
        A label a spot of the view; ``None`` is grey.
    points
        (n, 2) by each model's name.
    path
        PNG to write.
    """
    kinds = sorted({label for label in labels if label})
    figure = _figure((3.6 * (1 + len(points)) + 1.2, 3.9))
    first, *others = np.atleast_1d(figure.subplots(1, 1 + len(points)))
    index = {kind: number for number, kind in enumerate(kinds)}
    colours = [_colour(index[label]) if label else _MISSING for label in labels]
    _spots_on_tissue(first, dataset, slide, colours)
    first.set_title(slide)
    for panel, (model, xy) in zip(others, points.items(), strict=True):
        panel.scatter(xy[:, 0], xy[:, 1], c=colours, s=_area(len(xy)), linewidths=0)
        panel.set(title=model, xticks=[], yticks=[], xlabel="t-SNE 1", ylabel="t-SNE 2")
    for kind in kinds:
        first.scatter([], [], color=_colour(index[kind]), label=kind, s=18)
    figure.legend(*first.get_legend_handles_labels(), loc="outside right upper", frameon=False)
    figure.savefig(path, dpi=150)


def draw_slides(
    dataset: "Dataset",
    embeddings: "Embeddings",
    folder: str | os.PathLike[str],
    *,
    labels: str | os.PathLike[str] | None = None,
    exclude: Sequence[str] = EXCLUDED,
    seed: int = 0,
) -> list[Path]:
    """Draw each slide's labels beside the t-SNE of each model, a PNG a slide.

    Parameters
    ----------
    dataset
        A dataset or a view of one.
    embeddings
        A file that :func:`embed` wrote by each model's name.
    folder
        Where ``SLIDE.png`` go.
    labels
        CSV or Parquet of ``slide, spot, label``; ``None``: the dataset's own.
    exclude
        Labels that are drawn grey.
    seed
        Of t-SNE.

    Returns
    -------
    The paths.
    """
    from stfast.learn.embedding import read_embeddings
    from stfast.learn.experiments import labels_of, tsne

    paths: list[Path] = []
    every = labels_of(dataset, labels)
    slides = dataset.index["slide"]
    for slide in slides.unique().sort():
        part, here = dataset.filter(slide=slide), (slides == slide).to_numpy()
        words = [
            None if word in exclude else word for word, k in zip(every, here, strict=True) if k
        ]
        points = {
            name: tsne(read_embeddings(file, part)[1], seed=seed)
            for name, file in embeddings.items()
        }
        paths.append(Path(folder) / f"{slide}.png")
        with whole(paths[-1]) as partial:
            draw_clusters(part, slide, words, points, partial)
    return paths


def draw_genes(
    dataset: "Dataset", spots: pl.DataFrame, gene: str, path: str | os.PathLike[str]
) -> None:
    """Maps of a gene, truth beside prediction, a row a slide.

    Parameters
    ----------
    dataset
        The whole dataset.
    spots
        ``spots`` of a :class:`GenePrediction`.
    gene
        One of its genes.
    path
        PNG to write.
    """
    slides = spots["slide"].unique(maintain_order=True).to_list()
    figure = _figure((8.6, 3.9 * len(slides)))
    rows = figure.subplots(len(slides), 2, squeeze=False)
    for (left, right), slide in zip(rows, slides, strict=True):
        table, part = spots.filter(slide=slide), dataset.filter(slide=slide)
        truth, guess = table[gene].to_numpy(), table[f"{gene} predicted"].to_numpy()
        _map(left, part, slide, truth)
        _map(right, part, slide, guess)
        left.set_title(f"{slide}: {gene}, measured")
        varies = np.ptp(truth) > 0 and np.ptp(guess) > 0
        r = f", r = {np.corrcoef(truth, guess)[0, 1]:.2f}" if varies else ""
        right.set_title(f"predicted{r}")
    figure.savefig(path, dpi=150)


def _map(panel: Any, dataset: "Dataset", slide: str, values: NDArray[Any]) -> None:
    """A slide's values as colours, each map on its own scale."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    scaled = Normalize(float(values.min()), max(float(values.max()), float(values.min()) + 1e-9))
    _spots_on_tissue(panel, dataset, slide, list(colormaps["viridis"](scaled(values))))
    panel.figure.colorbar(ScalarMappable(scaled, "viridis"), ax=panel, shrink=0.8)


def _spots_on_tissue(panel: Any, dataset: "Dataset", slide: str, colours: Sequence[Any]) -> None:
    """Spots as circles of their own size, on the slide's picture where it is still there."""
    from matplotlib.collections import EllipseCollection

    from stfast import _spatial
    from stfast.images import thumbnail

    index, scale = dataset.index, 1.0
    try:
        pixels, scale = thumbnail(_spatial.image_path(dataset.adata(slide)), 1000)
        panel.imshow(pixels)
    except (OSError, ValueError):
        panel.set_aspect("equal")
        panel.invert_yaxis()
    size = 2 * index["r"].to_numpy() * scale
    xy = index.select("x", "y").to_numpy() * scale
    panel.add_collection(
        EllipseCollection(
            size,
            size,
            np.zeros(len(size)),
            units="xy",
            offsets=xy,
            offset_transform=panel.transData,
            facecolors=colours,
            linewidth=0,
            alpha=0.85,
        )
    )
    panel.autoscale_view()
    panel.set_axis_off()


def _figure(size: tuple[float, float]) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=size, layout="constrained")


def _open(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)


def _colour(number: int) -> Any:
    from matplotlib import colormaps

    return colormaps["tab10"](number % 10) if number < 10 else colormaps["tab20b"](number % 20)


def _area(n: int) -> float:
    return float(np.clip(4000 / max(n, 1), 2, 30))
