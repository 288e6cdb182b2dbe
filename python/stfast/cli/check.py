"""`stfast check`: whether a slide's spots lie where its picture shows them."""

from pathlib import Path
from typing import Annotated, Any

import typer

import stfast
from stfast.cli._app import Json, Slide, Workers, app
from stfast.cli._show import rows_of, show


@app.command()
def check(
    slide: Slide,
    image: Annotated[
        Path | None, typer.Option(help="Picture to use in place of the slide's.")
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(help="PNG file to write: the spots over the picture.")
    ] = None,
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Check that the spots fit the picture; the exit status is 1 if they are misplaced."""
    options: dict[str, Any] = {} if image is None else {"image": image}
    found = stfast.check_alignment(stfast.read(slide, **options), workers=workers)
    if picture is not None:
        found.picture(picture)
    told: dict[str, Any] = {"path": str(slide), "verdict": found.verdict, "score": found.score}
    told |= {"best": found.best, "cause": found.cause}
    if as_json:
        told["scores"] = found.scores.to_dicts()
    show(told, as_json, ("", ""), rows_of(told))
    if found.verdict == "misplaced":
        raise typer.Exit(1)
