"""The command ``stfast``: arguments to functions, and words for what came back.

Progress goes to stderr, and only to a terminal; ``--json`` prints one object for
machines. An error is one line, and the exit status 1. What a command needs is
imported when it runs, so that ``--help`` answers at once.
"""

import sys
import warnings
from typing import Annotated, NoReturn

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
    warnings.showwarning = _show_warning
    try:
        app(standalone_mode=True)
    except _EXPECTED as error:
        print(f"stfast: {_one_line(error)}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("stfast: interrupted", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    """What was noticed, without the line of code that noticed it."""
    print(f"stfast: warning: {' '.join(str(message).split())}", file=sys.stderr)


def _one_line(error: BaseException) -> str:
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return " ".join(text.split()) or type(error).__name__


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        print(stfast.__version__)
        raise typer.Exit
