"""Work spread over threads, its results in order, and a bar that counts them.

Tiles and bands are made faster or slower than a file takes them, so only a few
are in flight: memory does not grow with the slide.
"""

import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeAlias, TypeVar

T = TypeVar("T")
R = TypeVar("R")

Step: TypeAlias = Callable[[int], None]
"""Told how many steps of the work were done."""

AHEAD = 8


def in_order(
    pool: ThreadPoolExecutor, function: Callable[[T], R], items: Iterable[T]
) -> Iterator[R]:
    """Yield ``function(item)`` for each item, in order, at most 8 ahead."""
    waiting: deque[Future[R]] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) >= AHEAD:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


@contextmanager
def progress_bar(title: str, total: int, *, shown: bool) -> Iterator[Step]:
    """Give a `Step` that moves a bar on stderr, if that is a terminal."""
    if not (shown and sys.stderr.isatty()):
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=total)
        yield lambda done: bar.advance(task, done)
