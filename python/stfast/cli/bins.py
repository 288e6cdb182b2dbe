"""`stfast bin`: squares of a Visium HD slide to bins."""

from pathlib import Path
from typing import Annotated

import typer

import stfast
from stfast._output import whole
from stfast.cli._app import BinSize, Json, Workers, app
from stfast.cli._show import progress_bar, rows_of, show


@app.command(name="bin")
def bin_(
    source: Annotated[Path, typer.Argument(help="Visium HD folder, or an h5ad of its squares.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="h5ad file to write.")],
    bin_size: BinSize = 8,
    raw: Annotated[
        bool, typer.Option("--raw", help="Also keep bins that are off the tissue.")
    ] = False,
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Aggregate the squares of a Visium HD slide into bins."""
    with progress_bar("bins", None) as advance:
        if source.suffix == ".h5ad":
            import anndata

            # Backed: the squares pass through, they are never all in memory.
            squares = anndata.read_h5ad(source, backed="r")
            binned = stfast.aggregate_bins(squares, bin_size, workers=workers, progress=advance)
        else:
            binned = stfast.read_visium_hd(
                source, bin_size, raw=raw, workers=workers, progress=advance
            )
    with whole(output) as partial:
        binned.write_h5ad(partial, compression="gzip")
    found = {
        "output": str(output),
        "bins": binned.n_obs,
        "genes": binned.n_vars,
        "counts": int(binned.X.sum()),
    }
    show(found, as_json, ("", ""), rows_of(found))
