"""All of section 5 on one page: train, embed, probe, cluster, predict, and a file to look at.

Everything lies in one folder; a training that a former run began goes on at its checkpoint.
"""

import base64
import html
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from stfast._output import whole
from stfast.learn._genes import GeneInput
from stfast.learn.embedding import embed
from stfast.learn.experiments import cluster_models, predict_slides, probe_models
from stfast.learn.plots import draw_genes, draw_probes, draw_slides
from stfast.learn.towers import Tower
from stfast.learn.training import train

if TYPE_CHECKING:
    from stfast.dataset import Dataset

Model = str | os.PathLike[str] | Tower

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums }
th, td { padding: .2rem .8rem; border-bottom: 1px solid #ddd; text-align: right }
th:first-child, td:first-child { text-align: left }
img { max-width: 100% } h2 { margin-top: 2.5rem } .note { color: #555 }
"""


def write_report(
    dataset: "Dataset",
    folder: str | os.PathLike[str],
    *,
    models: Mapping[str, Model],
    inputs: Sequence[GeneInput] = ("hvg", "overlap"),
    held: Sequence[str] = (),
    genes: Sequence[str] = (),
    labels: str | os.PathLike[str] | None = None,
    device: str | None = None,
    workers: int | None = None,
    report: Callable[[str], object] = lambda words: None,
    **training: Any,
) -> Path:
    """Run the paper's experiments and write ``report.html``.

    Parameters
    ----------
    dataset
        A built dataset with labels.
    folder
        Where all of it goes.
    models
        Image towers by name, as :func:`open_tower` takes them.
    inputs
        Gene inputs that each is fine-tuned against.
    held
        Slides that are not trained on; the tables are of these. None: all slides are
        trained on and judged, as in the paper.
    genes
        Genes to predict on the last slide from the others; none: left out.
    labels
        CSV or Parquet of ``slide, spot, label``; ``None``: the dataset's own.
    device, workers
        As in :func:`train`.
    report
        Called with what is being done.
    training
        More arguments of :func:`train`.

    Returns
    -------
    The page.

    Raises
    ------
    ValueError
        A slide, label or gene is not there; see the single steps.
    """
    root, every = Path(folder), dataset.slides["slide"].to_list()
    lost = [name for name in held if name not in every]
    if lost or len(set(held)) == len(every):
        raise ValueError(f"held: expected some of {every}, got {list(held)}")
    root.mkdir(parents=True, exist_ok=True)
    trained = dataset.filter(slide=[name for name in every if name not in held])
    judged = dataset.filter(slide=list(held)) if held else dataset
    where: dict[str, Any] = {"device": device, "workers": workers}
    work = _Work(dataset, trained, root, training, where, report)
    files, losses = work.embeddings(models, inputs)
    report("probing, scores and t-SNE")
    probes = probe_models(judged, files, labels=labels)
    scores = cluster_models(judged, files, labels=labels)
    with whole(root / "probe.png") as partial:
        draw_probes(probes, partial)
    maps = draw_slides(judged, files, root, labels=labels)
    parts = _training(losses) + _tables(root, probes, scores, maps)
    if genes:
        report("expression")
        parts += _genes(dataset, root, files, genes)
    return _page(root, parts, f"{len(judged):,} spots of {judged.index['slide'].n_unique()} slides")


@dataclass(frozen=True)
class _Work:
    """What is trained and embedded, and how."""

    dataset: "Dataset"
    trained: "Dataset"
    root: Path
    training: dict[str, Any]
    where: dict[str, Any]
    report: Callable[[str], object]

    def embeddings(
        self, models: Mapping[str, Model], inputs: Sequence[GeneInput]
    ) -> tuple[dict[str, Path], dict[str, Path]]:
        """Each model's own embeddings and those after fine-tuning; pictures of the losses."""
        files: dict[str, Path] = {}
        losses: dict[str, Path] = {}
        for name, model in models.items():
            if Path(name).name != name:
                raise ValueError(f"models: expected names that files may have, got {name!r}")
            self.report(f"{name}: embedding")
            files[name] = self.root / f"{name}.parquet"
            embed(self.dataset, files[name], model=model, **self.where)
            for genes in inputs:
                tuned, run = f"{name}, {genes}", self.root / f"{name}-{genes}"
                self.report(f"{tuned}: training")
                train(self.trained, run, model=model, genes=genes, **self.training, **self.where)
                files[tuned] = self.root / f"{name}-{genes}.parquet"
                embed(self.dataset, files[tuned], model=run, layer="joint", **self.where)
                losses[tuned] = run / "loss.png"
        return files, losses


def _training(losses: Mapping[str, Path]) -> list[str]:
    parts = ["<h2>Fine-tuning</h2>"]
    for name, picture in losses.items():
        parts += [f"<h3>{html.escape(name)}</h3>", _image(picture, f"loss of {name}")]
    return parts


def _tables(
    root: Path, probes: pl.DataFrame, scores: pl.DataFrame, maps: Sequence[Path]
) -> list[str]:
    means = scores.group_by("model", maintain_order=True).agg(
        pl.col("silhouette", "calinski_harabasz", "davies_bouldin").mean()
    )
    return [
        "<h2>Linear probing</h2>",
        _note("Macro-F1 of test spots over five seeds; split by spot, the paper's, and by slide."),
        _image(root / "probe.png", "macro-F1 of each model"),
        _table(probes),
        "<h2>Labels as clusters</h2>",
        _note("Means over slides, then each slide. Of Davies-Bouldin less is better, else more."),
        _table(means),
        _table(scores),
        *(_image(path, f"{path.stem}: labels and t-SNE") for path in maps),
    ]


def _genes(
    dataset: "Dataset", root: Path, files: Mapping[str, Path], genes: Sequence[str]
) -> list[str]:
    """Expression of the last slide, predicted from the others by each model."""
    *first, last = dataset.slides["slide"].to_list()
    parts = ["<h2>Expression</h2>", _note(f"Trained on the others, tried on {last}.")]
    tables = []
    for name, file in files.items():
        found = predict_slides(dataset, file, genes=genes, train=first, test=[last])
        tables.append(found.across.select(pl.lit(name).alias("model"), pl.all()))
        for gene in genes:
            picture = root / f"{file.stem}-{gene}.png"
            with whole(picture) as partial:
                draw_genes(dataset, found.spots, gene, partial)
            parts += [f"<h3>{html.escape(name)}</h3>", _image(picture, gene)]
    return [*parts[:2], _table(pl.concat(tables)), *parts[2:]]


def _page(root: Path, parts: Sequence[str], what: str) -> Path:
    from stfast import __version__

    title = f"<title>stfast: {html.escape(what)}</title>"
    head = f'<!doctype html><html lang="en"><meta charset="utf-8">{title}'
    opening = f"<style>{_STYLE}</style><h1>The paper's experiments</h1>"
    note = _note(f"{what}; stfast {__version__}.")
    path = root / "report.html"
    with whole(path) as partial:
        partial.write_bytes("\n".join([head, opening, note, *parts, "</html>"]).encode())
    return path


def _note(words: str) -> str:
    return f"<p class=note>{html.escape(words)}</p>"


def _image(path: Path, words: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<p><img alt="{html.escape(words)}" src="data:image/png;base64,{data}"></p>'


def _table(table: pl.DataFrame) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in table.columns)
    rows = "".join(
        f"<tr>{''.join(f'<td>{html.escape(_word(value))}</td>' for value in row)}</tr>"
        for row in table.iter_rows()
    )
    return f"<table><tr>{head}</tr>{rows}</table>"


def _word(value: object) -> str:
    if not isinstance(value, float):
        return "–" if value is None else str(value)
    return f"{value:.0e}" if 0 < abs(value) < 0.0005 else f"{value:.3f}"
