"""`stfast manifest`: a first manifest, from what lies in a folder of downloads."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

import stfast
from stfast.cli._app import Json, app
from stfast.cli._show import rows_of, show


@app.command()
def manifest(
    folder: Annotated[
        Path, typer.Argument(help="Folder of downloads; all folders below are searched.")
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="CSV file to write; an existing one is not overwritten."
        ),
    ] = Path("manifest.csv"),
    as_json: Json = False,
) -> None:
    """Draft a manifest of all slides below a folder; the exit status is 1 if there are none."""
    draft = stfast.draft_manifest(folder)
    for problem in draft.problems:
        print(problem, file=sys.stderr)
    table = draft.table
    counted = table["technology"].fill_null("not told").value_counts(sort=True).rows()
    found: dict[str, Any] = {
        "folder": str(draft.folder),
        "output": str(output) if table.height else None,
        "slides": table.height,
        "spots": int(draft.n_spots.sum()),
        "slides of unknown spots": draft.n_spots.null_count(),
        "technology": dict(counted),
        "annotated": table.height - table["annotation"].null_count(),
        "problems": len(draft.problems),
    }
    if table.height:
        draft.write(output)
    show(found, as_json, ("", ""), rows_of(found))
    if not table.height:
        raise typer.Exit(1)
