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

Workers = Annotated[int | None, typer.Option(help="Threads; default: all this process may use.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Size = Annotated[int, typer.Option(help="Pixels of a tile's side.")]
SpanUm = Annotated[
    float | None, typer.Option(help="µm of a window's side; default: the spot's diameter.")
]
BinSize = Annotated[int, typer.Option(help="µm of a bin's side.")]
Slide = Annotated[Path, typer.Argument(help="Folder of a slide.")]
