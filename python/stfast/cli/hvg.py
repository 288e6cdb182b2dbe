"""`stfast hvg`: highly variable genes of a slide."""

from pathlib import Path
from typing import Annotated

import typer

import stfast
from stfast.cli._app import Json, Slide, Workers, app
from stfast.cli._show import Rows, show, write_table


@app.command()
def hvg(
    slide: Slide,
    flavor: Annotated[str, typer.Option(help="pearson_residuals or seurat.")] = "pearson_residuals",
    n_top: Annotated[int, typer.Option(help="Genes to choose.")] = 128,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help=".parquet or .csv of all genes.")
    ] = None,
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Choose highly variable genes from the raw counts of a slide's spots in tissue."""
    import polars as pl

    adata = stfast.read(slide)
    adata = adata[adata.obs["in_tissue"] == 1]
    table = stfast.highly_variable_genes(
        adata,
        flavor,  # type: ignore[arg-type]
        n_top,
        normalize=flavor == "seurat",
        inplace=False,
        workers=workers,
    )
    assert table is not None
    if output is not None:
        columns = {name: table[name].to_numpy() for name in table}
        write_table(pl.DataFrame({"gene": table.index.to_list(), **columns}), output)
    score = "residual_variances" if flavor == "pearson_residuals" else "dispersions_norm"
    best = table[table["highly_variable"]].sort_values(score, ascending=False, kind="stable")
    found = {"flavor": flavor, "genes": best.index.tolist()}
    top = best.head(20)
    shown = zip(top.index, top[score], top["means"], strict=True)
    rows: Rows = [(gene, f"{value:.4g}", f"{mean:.4g}") for gene, value, mean in shown]
    show(found, as_json, ("gene", score, "mean"), rows)
