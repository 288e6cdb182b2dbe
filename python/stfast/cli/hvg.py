"""`stfast hvg`: highly variable genes of slides."""

import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import stfast
from stfast._output import whole
from stfast.cli._app import Json, Workers, app
from stfast.cli._show import Rows, progress_bar, show, write_table

if TYPE_CHECKING:
    import pandas as pd

_SCORES = ("residual_variances", "variances_norm", "dispersions_norm")


Flavor = Annotated[
    str,
    typer.Option(help="pearson_residuals, seurat, seurat_v3, seurat_v3_paper or cell_ranger."),
]
Slides = Annotated[
    list[Path],
    typer.Argument(
        help="h5ad, zarr, 10x h5 or folders; several slides use the genes that they share."
    ),
]
BatchKey = Annotated[
    str | None,
    typer.Option(help="Column of obs with each spot's batch; slide: each slide is a batch."),
]
Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="Table of all genes to write: .parquet or .csv."),
]
Plot = Annotated[
    Path | None, typer.Option(help="Plot to write: mean and variability of the genes.")
]


@app.command()
def hvg(
    slides: Slides,
    flavor: Flavor = "pearson_residuals",
    n_top: Annotated[int, typer.Option(help="Number of genes to choose.")] = 128,
    batch_key: BatchKey = None,
    layer: Annotated[str | None, typer.Option(help="Layer to use instead of X.")] = None,
    log1p: Annotated[bool, typer.Option("--log1p", help="The values are already log1p.")] = False,
    output: Output = None,
    plot: Plot = None,
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Choose highly variable genes; raw counts are read block by block."""
    if output is not None and output.suffix not in (".parquet", ".csv"):
        raise ValueError(f"output: expected a name ending in .parquet or .csv, got {output}")
    with progress_bar("spots", None) as advance, warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", UserWarning)
        table = stfast.highly_variable_genes(
            slides[0] if len(slides) == 1 else slides,
            flavor,  # type: ignore[arg-type]
            n_top,
            batch_key=batch_key,
            layer=layer,
            normalize=not log1p,
            inplace=False,
            workers=workers,
            progress=advance,
        )
    for note in notes:
        print(f"stfast: {note.message}", file=sys.stderr)
    assert table is not None
    _write(table, flavor, output, plot)
    score = next(name for name in _SCORES if name in table)
    best = table[table["highly_variable"]].sort_values(score, ascending=False, kind="stable")
    found = {"flavor": flavor, "genes": best.index.tolist()}
    top = best.head(20)
    shown = zip(top.index, top[score], top["means"], strict=True)
    rows: Rows = [(gene, f"{value:.4g}", f"{mean:.4g}") for gene, value, mean in shown]
    show(found, as_json, ("gene", score, "mean"), rows)


def _write(table: "pd.DataFrame", flavor: str, output: Path | None, plot: Path | None) -> None:
    if output is not None:
        import polars as pl

        columns = {name: table[name].to_numpy() for name in table}
        write_table(pl.DataFrame({"gene": table.index.to_list(), **columns}), output)
    if plot is not None:
        from stfast.hvg.plot import draw

        with whole(plot) as partial:
            draw(table, partial, title=flavor)
