"""The placements that a slide is compared in: the mistakes that are made, undone."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stfast.alignment._slide import Slide

Points = NDArray[np.float64]

_NOTICED = 1.1
"""Scales that differ by less are told from the given one by no picture."""

_TURNS: dict[str, tuple[str, Callable[[Points, float, float], Points]]] = {
    "mirrored left-right": ("{} is mirrored left to right", lambda p, w, h: p * [-1, 1] + [w, 0]),
    "mirrored top-bottom": ("{} is mirrored top to bottom", lambda p, w, h: p * [1, -1] + [0, h]),
    "turned 180": ("{} is turned by 180°", lambda p, w, h: [w, h] - p),
    "x/y swapped": ("x and y are swapped", lambda p, w, h: p[:, ::-1]),
    "turned 90": ("{} is turned by 90° clockwise", lambda p, w, h: p[:, ::-1] * [-1, 1] + [w, 0]),
    "turned 270": (
        "{} is turned by 90° counterclockwise",
        lambda p, w, h: p[:, ::-1] * [1, -1] + [0, h],
    ),
    "x/y swapped, turned 180": (
        "x and y are swapped and {} is turned by 180°",
        lambda p, w, h: [w, h] - p[:, ::-1],
    ),
}


@dataclass(frozen=True)
class Placement:
    """Where spots would lie if a mistake were undone.

    ``scale`` is by how much they lie further apart.
    """

    name: str
    cause: str
    move: Callable[[Points], Points]
    scale: float = 1.0


def placements(slide: Slide) -> list[Placement]:
    """The given one, then all others."""
    given = Placement("given", "", lambda p: p)
    return [given, *_of_picture(slide), *_of_array(slide), *_of_scale(slide)]


def _of_picture(slide: Slide) -> Iterator[Placement]:
    """The picture was turned after the coordinates were measured on it."""
    height, width = slide.pixels.shape[:2]
    for name, (cause, turn) in _TURNS.items():
        yield Placement(
            name,
            cause.format("the picture"),
            lambda p, turn=turn: turn(p, width, height),  # type: ignore[misc]
        )


def _of_array(slide: Slide) -> Iterator[Placement]:
    """Spots were named in the wrong order, so that the array is turned about its middle."""
    low, high = slide.xy.min(axis=0), slide.xy.max(axis=0)
    middle = (low + high) / 2
    for name, (cause, turn) in _TURNS.items():
        yield Placement(
            f"array {name}",
            cause.format("the array") if "{}" in cause else f"the array's {cause}",
            lambda p, turn=turn: turn(p - middle, 0, 0) + middle,  # type: ignore[misc]
        )


def _of_scale(slide: Slide) -> Iterator[Placement]:
    """Coordinates are pixels of one picture, and what is shown is another."""
    seen = [1.0]
    for ours, from_scale in slide.scales.items():
        for theirs, to_scale in slide.scales.items():
            ratio = to_scale / from_scale
            if any(1 / _NOTICED < ratio / known < _NOTICED for known in seen):
                continue
            seen.append(ratio)
            yield Placement(
                f"{ours} taken for {theirs}",
                f"coordinates are as in the {ours} picture, the picture is as the {theirs} one",
                lambda p, ratio=ratio: p * ratio,  # type: ignore[misc]
                ratio,
            )
