"""`stfast build`: one training set of many raw slides."""

from pathlib import Path
from typing import Annotated

import typer

import stfast
from stfast.cli._app import Json, SpanUm, Workers, app
from stfast.cli._show import rows_of, show


@app.command()
def build(
    manifest: Annotated[Path, typer.Argument(help="CSV or Parquet, a row a slide.")],
    out: Annotated[Path, typer.Argument(help="Folder of the dataset.")],
    bin_size: Annotated[float, typer.Option(help="µm of a bin of Visium HD.")] = 8,
    size: Annotated[int, typer.Option(help="px of a tile's side.")] = 224,
    span_um: SpanUm = None,
    hvg: Annotated[str, typer.Option(help="pearson:N, each slide's N best genes.")] = "pearson:128",
    tiles: Annotated[str, typer.Option(help="jpeg, png or raw.")] = "jpeg",
    quality: Annotated[int, typer.Option(help="Of JPEG, 1 to 100.")] = 95,
    seed: Annotated[int, typer.Option(help="Of the order of spots.")] = 0,
    strict: Annotated[bool, typer.Option(help="Leave out misplaced slides.")] = False,
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Build one training set of many raw slides; what is finished is not redone."""
    report = stfast.build(
        manifest,
        out,
        bin_size=bin_size,
        size=size,
        span_um=span_um,
        hvg=hvg,
        tiles=tiles,  # type: ignore[arg-type]
        quality=quality,
        seed=seed,
        strict=strict,
        workers=workers,
    )
    found = vars(report) | {"root": str(report.root)}
    show(found, as_json, ("", ""), rows_of(found))
    if report.failed:
        raise typer.Exit(1)
