"""Checkpoints: one file that trains on, or embeds, without asking for the weights again.

It holds tensors and plain values alone and is loaded with ``weights_only``, so that a
file from elsewhere can run no code.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from stfast import FormatError
from stfast._output import whole
from stfast.learn.model import ContrastiveModel
from stfast.learn.towers import Preprocess, Tower, rebuild

FORMAT_VERSION = 1
NAME = "checkpoint.pt"


@dataclass(frozen=True)
class Trained:
    """A trained pair of towers.

    Attributes
    ----------
    model
        The towers.
    preprocess
        From tiles to the image tower's images.
    genes
        Names of the gene tower's inputs; of ``"hvg"`` they may be ranks.
    settings
        What the training was asked for.
    """

    model: ContrastiveModel
    preprocess: Preprocess
    genes: list[str]
    settings: dict[str, Any]


def about(tower: Tower, genes: list[str], settings: dict[str, Any]) -> dict[str, Any]:
    """What makes the model again, in plain values."""
    pixels = tower.preprocess
    return {
        "recipe": tower.recipe,
        "preprocess": {"resize": pixels.resize, "crop": pixels.crop, "resample": pixels.resample},
        "table": pixels.table,
        "genes": genes,
        "settings": settings,
    }


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint, whole or not at all."""
    with whole(path) as partial:
        torch.save({"format_version": FORMAT_VERSION, **state}, partial)


def load(path: "str | os.PathLike[str]") -> dict[str, Any]:
    """Read a checkpoint: a file, or the folder that ``train`` wrote."""
    file = Path(path)
    if file.is_dir():
        file /= NAME
    if not file.exists():
        raise FileNotFoundError(2, "No such checkpoint", str(file))
    try:
        found: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        version = found["format_version"]
    except Exception as error:  # torch raises what pickle and zip happen to raise
        told = (str(error).splitlines() or [type(error).__name__])[0]
        raise FormatError(f"{file}: expected a checkpoint of stfast, got {told}") from error
    if version > FORMAT_VERSION:
        raise FormatError(
            f"{file}: expected format_version up to {FORMAT_VERSION}, got {version}: "
            "a newer stfast wrote it"
        )
    return found


def tower_of(state: dict[str, Any], tower: Tower | None) -> Tower:
    """The checkpoint's tower, with other weights than those it was trained to."""
    told = state["about"]
    if tower is not None:
        return tower
    return rebuild(told["recipe"], Preprocess(table=told["table"], **told["preprocess"]))


def load_checkpoint(path: "str | os.PathLike[str]", *, tower: Tower | None = None) -> Trained:
    """Open what ``train`` wrote.

    Parameters
    ----------
    path
        The folder or its ``checkpoint.pt``.
    tower
        The image tower, where it was a module without a name.

    Raises
    ------
    FileNotFoundError
        There is no checkpoint.
    FormatError
        The file is damaged, of another program, or of a newer stfast.
    """
    state = load(path)
    told, made = state["about"], tower_of(state, tower)
    model = ContrastiveModel(
        made.module, width=made.width, n_genes=len(told["genes"]), size=told["settings"]["size"]
    )
    model.load_state_dict(state["model"])
    return Trained(model, made.preprocess, told["genes"], told["settings"])
