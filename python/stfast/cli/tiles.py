"""`stfast tile`: a tile for each spot."""

from pathlib import Path
from typing import Annotated

import typer

from stfast.cli._app import Json, Size, SpanUm, Workers, app
from stfast.cli._show import progress_bar, rows_of, show


@app.command()
def tile(
    source: Annotated[Path, typer.Argument(help="Folder of a slide, or an image with --spots.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help=".npy of tiles; its spots go to .csv beside it.")
    ],
    spots: Annotated[
        Path | None, typer.Option(help="CSV with columns x, y (or xaxis, yaxis, r) in px.")
    ] = None,
    size: Size = 224,
    span_um: SpanUm = None,
    mpp: Annotated[float | None, typer.Option(help="µm per pixel, where nothing says.")] = None,
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Cut a tile around each spot."""
    from stfast._spots import from_folder, from_table, write_tiles

    chosen = from_folder(source) if source.is_dir() else from_table(source, spots)
    span = chosen.span(span_um, mpp)
    with progress_bar("tiles", int(chosen.inside().sum())) as advance:
        found = write_tiles(chosen, output, size=size, span=span, workers=workers, progress=advance)
    show(found, as_json, ("", ""), rows_of(found))
