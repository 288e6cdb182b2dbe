"""The command ``stfast``: arguments to functions, and words for what came back.

Progress goes to stderr, and only to a terminal; ``--json`` prints one object for
machines. An error is one line, and the exit status 1. What a command needs is
imported when it runs, so that ``--help`` answers at once.
"""

import io
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

import stfast
from stfast.cli import (
    bins,
    build,
    check,
    convert,
    demo,
    hvg,
    info,
    manifest,
    probe,
    tiles,
    train,
)
from stfast.cli._app import app

__all__ = [
    "app",
    "bins",
    "build",
    "check",
    "convert",
    "demo",
    "hvg",
    "info",
    "main",
    "manifest",
    "probe",
    "tiles",
    "train",
]

_EXPECTED = (
    OSError,
    ValueError,
    IndexError,
    KeyError,
    NotImplementedError,
    OverflowError,
    ImportError,
)


def main() -> NoReturn:
    """Run the command line; called by the script ``stfast``."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not every terminal can show µ and ×
            stream.reconfigure(errors="backslashreplace")
    warnings.showwarning = _show_ours(warnings.showwarning)
    try:
        app(standalone_mode=True)
    except _EXPECTED as error:
        print(f"stfast: {_one_line(error)}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("stfast: interrupted", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)


def _show_ours(others: Callable[..., Any]) -> Callable[..., None]:
    """Our warnings as lines without the code that noticed them; those of ``others`` as before."""

    def show(message: Warning | str, category: Any, filename: str, *rest: Any, **more: Any) -> None:
        if not {"typer", "click", "stfast"} & set(Path(filename).parts):
            others(message, category, filename, *rest, **more)
            return
        print(f"stfast: warning: {' '.join(str(message).split())}", file=sys.stderr)

    return show


def _one_line(error: BaseException) -> str:
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return " ".join(text.split()) or type(error).__name__


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        print(stfast.__version__)
        raise typer.Exit
