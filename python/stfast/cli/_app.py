"""The command's frame: the application, and the options that several commands share.

One option has one meaning in every command, so each is defined here once.
"""

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup


class _Frame(TyperGroup):
    """The command of commands, whose own ``--help`` is False where nobody asks for it.

    typer leaves it None, and imports pydantic to find that None is no bool: as long as
    all the rest of ``stfast COMMAND --help``.
    """

    def get_help_option(self, ctx: Any) -> Any:
        option = super().get_help_option(ctx)
        if option is not None and option.default is None:
            option.default = False
        return option


app = typer.Typer(
    name="stfast",
    cls=_Frame,
    help="Spatial transcriptomics, from raw slide to training batch.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Workers = Annotated[
    int | None,
    typer.Option(
        help="Number of threads; default: $STFAST_WORKERS, else all CPUs of this process."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]
Size = Annotated[int, typer.Option(help="Side of a tile, in pixels.")]
SpanUm = Annotated[
    float | None, typer.Option(help="Side of a tile's window, in µm; default: the spot's diameter.")
]
BinSize = Annotated[int, typer.Option(help="Side of a bin, in µm.")]
Slide = Annotated[Path, typer.Argument(help="Folder of the slide.")]
