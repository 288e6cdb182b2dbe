"""Warnings that point at the user's line, however deep they are noticed."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

_PACKAGE = str(Path(__file__).parent)
_KEPT: ContextVar[list[str] | None] = ContextVar("kept", default=None)


def warn(message: str) -> None:
    """Warn at the first caller outside stfast."""
    kept = _KEPT.get()
    if kept is not None:
        kept.append(message)
        return
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)  # noqa: TID251 - the one place


@contextmanager
def kept() -> Iterator[list[str]]:
    """Keep this thread's warnings instead, to be told elsewhere."""
    found: list[str] = []
    token = _KEPT.set(found)
    try:
        yield found
    finally:
        _KEPT.reset(token)
