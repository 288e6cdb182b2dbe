"""The command's frame: the application, and the options that several commands share.

One option has one meaning in every command, so each is defined here once.
"""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="stfast",
    help="Spatial transcriptomics, from raw slide to training batch.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Workers = Annotated[int | None, typer.Option(help="Threads; default: all this process may use.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Size = Annotated[int, typer.Option(help="Pixels of a tile's side.")]
SpanUm = Annotated[
    float | None, typer.Option(help="µm of a window's side; default: the spot's diameter.")
]
BinSize = Annotated[int, typer.Option(help="µm of a bin's side.")]
Slide = Annotated[Path, typer.Argument(help="Folder of a slide.")]
