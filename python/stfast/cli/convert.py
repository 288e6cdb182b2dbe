"""`stfast convert`: a slide in another shape."""

from pathlib import Path
from typing import Annotated

import typer

import stfast
from stfast.cli._app import Json, Workers, app
from stfast.cli._show import progress_bar, rows_of, show


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="Folder of a slide, h5ad file or 10x matrix.")],
    destination: Annotated[Path, typer.Argument(help="A .h5ad or .zarr, or a data set's folder.")],
    to: Annotated[
        str | None,
        typer.Option(help="h5ad, zarr, spatialdata or stimage; default: by destination's name."),
    ] = None,
    bin_size: Annotated[int | None, typer.Option(help="Side of a bin, in µm.")] = None,
    slide: Annotated[
        str | None, typer.Option(help="The slide's name in STimage-1K4M's layout.")
    ] = None,
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Convert a slide to h5ad, zarr, SpatialData or STimage-1K4M's layout."""
    from stfast.convert import KINDS, kind_of, save

    kind = to or kind_of(destination)
    if kind not in KINDS:
        raise ValueError(f"--to: expected one of {KINDS}, got {kind or destination.suffix!r}")
    options = {} if bin_size is None else {"bin_size": bin_size}
    adata = stfast.read(source, workers=workers, **options)
    with progress_bar(kind, adata.n_obs) as advance:
        written = save(adata, destination, kind, slide=slide, workers=workers, progress=advance)
    found = {"output": str(written), "kind": kind, "spots": adata.n_obs, "genes": adata.n_vars}
    show(found, as_json, ("", ""), rows_of(found))
