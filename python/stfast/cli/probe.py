"""`stfast probe`, `stfast cluster` and `stfast predict`: what embeddings know."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import stfast
from stfast._output import whole
from stfast.cli._app import Json, app
from stfast.cli._show import Rows, show, write_table
from stfast.cli.train import Only, Root, view

if TYPE_CHECKING:
    import polars as pl

Embedded = Annotated[
    list[str],
    typer.Option(
        "--embeddings",
        "-e",
        help="NAME=FILE, a file that `stfast embed` wrote; repeat for more models.",
    ),
]
Labels = Annotated[
    Path | None,
    typer.Option(help="CSV or Parquet with slide, spot, label; default: the dataset's labels."),
]
Exclude = Annotated[list[str], typer.Option(help="Label to drop; repeat for more.")]
Out = Annotated[Path | None, typer.Option("--output", "-o", help="Folder for tables and pictures.")]
DROPPED = ["undetermined", "Exclude"]


def named(words: list[str]) -> dict[str, Path]:
    """Files by the names of their models; a file without one is named as itself."""
    found: dict[str, Path] = {}
    for word in words:
        name, equals, path = word.partition("=")
        key, file = (name, Path(path)) if equals else (Path(word).stem, Path(word))
        if key in found:
            raise ValueError(f"embeddings: expected each model once, got {key!r} again")
        found[key] = file
    return found


def _show(table: "pl.DataFrame", as_json: bool) -> None:
    rows: Rows = [tuple(_word(value) for value in row) for row in table.iter_rows()]
    show({"rows": table.to_dicts()}, as_json, tuple(table.columns), rows)


def _word(value: object) -> str:
    return "–" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


@app.command()
def probe(
    dataset: Root,
    embeddings: Embedded,
    labels: Labels = None,
    exclude: Exclude = DROPPED,
    slide: Only = None,
    output: Out = None,
    as_json: Json = False,
) -> None:
    """Probe embeddings for labels with a linear classifier; print the macro-F1.

    Spots are split by spot, as in the paper, and by slide.
    """
    from stfast import learn

    part = view(dataset, slide)
    table = learn.probe_models(part, named(embeddings), labels=labels, exclude=exclude)
    if output is not None:
        output.mkdir(exist_ok=True)
        write_table(table, output / "probe.csv")
        with whole(output / "probe.png") as partial:
            learn.draw_probes(table, partial)
    _show(table, as_json)


@app.command()
def cluster(
    dataset: Root,
    embeddings: Embedded,
    labels: Labels = None,
    exclude: Exclude = DROPPED,
    slide: Only = None,
    output: Out = None,
    seed: Annotated[int, typer.Option(help="Seed of t-SNE.")] = 0,
    as_json: Json = False,
) -> None:
    """Score how well embeddings separate the labels of each slide.

    The scores are Silhouette, Calinski-Harabasz and Davies-Bouldin; --output draws t-SNE too.
    """
    from stfast import learn

    part, files = view(dataset, slide), named(embeddings)
    table = learn.cluster_models(part, files, labels=labels, exclude=exclude)
    if output is not None:
        output.mkdir(exist_ok=True)
        write_table(table, output / "cluster.csv")
        learn.draw_slides(part, files, output, labels=labels, exclude=exclude, seed=seed)
    _show(table, as_json)


@app.command()
def predict(
    dataset: Root,
    embeddings: Annotated[
        Path, typer.Option("--embeddings", "-e", help="File that `stfast embed` wrote.")
    ],
    gene: Annotated[list[str], typer.Option(help="Gene to predict; repeat for more.")],
    train: Annotated[list[str], typer.Option(help="Slide to train on; repeat for more.")],
    test: Annotated[
        list[str] | None, typer.Option(help="Slide to test on; repeat for more.")
    ] = None,
    output: Out = None,
    as_json: Json = False,
) -> None:
    """Predict expression from embeddings by ridge regression, within slides and on others."""
    import polars as pl

    from stfast import learn

    whole_set = stfast.Dataset(dataset)
    found = learn.predict_slides(whole_set, embeddings, genes=gene, train=train, test=test or ())
    if output is not None:
        output.mkdir(exist_ok=True)
        write_table(found.within, output / "within.csv")
        if test:
            write_table(found.across, output / "across.csv")
            write_table(found.spots, output / "spots.parquet")
            for name in gene:
                with whole(output / f"{name}.png") as partial:
                    learn.draw_genes(whole_set, found.spots, name, partial)
    inner = found.within.select(pl.lit("within").alias("slide"), "gene", "mse", "pearson")
    _show(pl.concat([inner, found.across]) if test else inner, as_json)
