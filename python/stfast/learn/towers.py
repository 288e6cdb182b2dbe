"""Image towers by name, and the pixels that each wants, exactly as its own processor makes them.

A tower is any module. What its image processor does to a square tile is a resize, a cut
of the middle, and a number for each byte of each channel; so preprocessing is two sizes
and a table of 256 × 3 numbers, which the processor itself fills. Then there is nothing
to round differently, and a tile of the right size costs one look-up a byte.
"""

import importlib
import os
import socket
import urllib.parse
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from stfast import _check, _core

Resample = Literal["bicubic", "bilinear", "lanczos", "box"]
Precision = Literal["fp32", "bf16"]
"""What a tower computes in; its weights stay float32."""

_LOCAL = "give the path of a folder that has its files in place of the name"
_TIMM = ("timm", "hf-hub", "hf_hub", "local-dir")
_PILLOW: dict[int, Resample] = {1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box"}
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True)
class Preprocess:
    """From uint8 tiles to what a tower takes.

    Attributes
    ----------
    resize
        Side in pixels to which a tile is brought; ``None``: it stays as it is.
    crop
        Side of the middle that is kept; ``None``: all.
    table
        (256, 3) float32: the value of each byte in each channel.
    resample
        How tiles are resized: Pillow's filter of that name, bit for bit.
    """

    resize: int | None
    crop: int | None
    table: Tensor
    resample: Resample = "bicubic"

    def __post_init__(self) -> None:
        if self.table.shape != (256, 3) or self.table.dtype != torch.float32:
            found = f"{self.table.dtype} {tuple(self.table.shape)}"
            raise ValueError(f"table: expected float32 (256, 3), got {found}")
        if self.resize is not None and self.crop is not None and self.crop > self.resize:
            raise ValueError(f"crop: expected at most {self.resize} pixels, got {self.crop}")

    def resizes(self, side: int) -> bool:
        """Whether tiles of this side are resized, which is done on the CPU."""
        return self.resize is not None and self.resize != side

    def __call__(self, image: Tensor, *, workers: int | None = None) -> Tensor:
        """Uint8 tiles (n, side, side, 3) to floats (n, 3, crop, crop) in channels-last memory."""
        if self.resize is not None and self.resizes(image.shape[1]):
            out = np.empty((len(image), self.resize, self.resize, 3), np.uint8)
            tiles = np.ascontiguousarray(image.cpu().numpy())
            _core.resize_tiles(tiles, self.resample, out, _check.workers(workers))
            image = torch.from_numpy(out).to(image.device)
        side = image.shape[1]
        crop = side if self.crop is None else self.crop
        if crop > side:
            raise ValueError(f"tiles: expected at least {crop} pixels, got {side}")
        first = (side - crop) // 2
        image = image[:, first : first + crop, first : first + crop]
        table = self.table.to(image.device)
        channels = [table[:, c].take(image[..., c].long()) for c in range(3)]
        return torch.stack(channels, dim=-1).permute(0, 3, 1, 2)


def plain(
    size: int | None = None,
    mean: Sequence[float] = _IMAGENET[0],
    std: Sequence[float] = _IMAGENET[1],
) -> Preprocess:
    """Tiles brought to a side by Pillow's bicubic, then (byte / 255 - mean) / std.

    Parameters
    ----------
    size
        Side in pixels; ``None``: that of the tiles.
    mean, std
        Of the channels, of values in [0, 1]; ImageNet's by default.
    """
    bytes_ = torch.arange(256, dtype=torch.float32)[:, None].div(255)
    table = (bytes_ - torch.tensor(tuple(mean))) / torch.tensor(tuple(std))
    return Preprocess(size, None, table)


@dataclass(frozen=True)
class Tower:
    """An image model, what it returns, and the pixels it wants.

    Attributes
    ----------
    module
        Takes images (n, 3, h, w); returns (n, ``width``) or an output with
        ``image_embeds``.
    width
        Features that it returns.
    preprocess
        From tiles to its images.
    recipe
        What makes the same module again, without weights: ``kind`` and its arguments.
        A checkpoint keeps it.
    """

    module: nn.Module
    width: int
    preprocess: Preprocess
    recipe: dict[str, Any]


def open_tower(model: "str | os.PathLike[str] | Tower") -> Tower:
    """Find a tower by its name, with its weights.

    Parameters
    ----------
    model
        A name on the hub or a local folder of transformers' ``CLIPVisionModelWithProjection``
        (``openai/clip-vit-base-patch32``, ``vinid/plip``); ``timm:NAME``,
        ``hf-hub:OWNER/NAME`` (``hf-hub:MahmoodLab/UNI``) or ``local-dir:FOLDER`` for
        timm's models; ``package.module:function`` for a function that returns a
        :class:`Tower`; or a :class:`Tower`.

    Raises
    ------
    FileNotFoundError
        The weights cannot be had; says how to name a local folder instead.
    ImportError
        A package that the model needs is not installed.
    ValueError
        The name is of no such form, or the model is no image tower.
    """
    if isinstance(model, Tower):
        return model
    name = os.fspath(model)
    scheme, colon, rest = name.partition(":")
    if not colon or Path(name).exists():
        return _clip(name)
    if scheme in _TIMM:
        return _timm(rest if scheme == "timm" else name)
    return _function(scheme, rest)


def rebuild(recipe: dict[str, Any], preprocess: Preprocess) -> Tower:
    """Make a checkpoint's tower again, its weights yet to be loaded.

    Raises
    ------
    ValueError
        The tower was an own module without a name: give it again.
    """
    kind, width = recipe["kind"], recipe["width"]
    if kind == "clip":
        from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

        module: Any = CLIPVisionModelWithProjection(CLIPVisionConfig(**recipe["config"]))
    elif kind == "timm":
        import timm

        module = timm.create_model(recipe["name"], **recipe["arguments"], num_classes=0)
    elif kind == "function":
        module = open_tower(recipe["name"]).module
    else:
        raise ValueError("tower: expected the module that was trained, got none; give tower=")
    return Tower(module, width, preprocess, recipe)


def _clip(name: str) -> Tower:
    from transformers import CLIPVisionModelWithProjection

    # Where the hub is out of reach its client would try for a minute.
    here = not Path(name).is_dir() and not _hub_answers()
    try:
        module: Any = CLIPVisionModelWithProjection.from_pretrained(name, local_files_only=here)
        preprocess = _of_processor(name, local=here)
    except (OSError, ValueError) as error:
        raise _missing(name, error) from error
    keys = (
        "hidden_size intermediate_size projection_dim num_hidden_layers num_attention_heads "
        "num_channels image_size patch_size hidden_act layer_norm_eps attention_dropout"
    )
    found = module.config.to_dict()
    config = {key: found[key] for key in keys.split()}
    width = int(config["projection_dim"])
    return Tower(module, width, preprocess, {"kind": "clip", "width": width, "config": config})


def _hub_answers() -> bool:
    """Whether the hub can be reached; behind a proxy only asking would tell."""
    hub: Any = importlib.import_module("huggingface_hub.constants")
    place = urllib.parse.urlsplit(hub.ENDPOINT)
    if urllib.request.getproxies():
        return True
    try:
        port = place.port or (443 if place.scheme == "https" else 80)
        socket.create_connection((place.hostname or "", port), timeout=5).close()
    except OSError:
        return False
    return True


def _missing(name: str, error: Exception) -> FileNotFoundError:
    told = str(error).strip().splitlines() or [type(error).__name__]
    return FileNotFoundError(f"{name}: expected a model's weights, got none: {_LOCAL} ({told[0]})")


def _of_processor(name: str, *, local: bool) -> Preprocess:
    """What the model's own image processor does, its table filled by itself."""
    import transformers

    # Before transformers 5 the plain one is Pillow's.
    pillow = getattr(transformers, "CLIPImageProcessorPil", None)
    processor: Any = (pillow or transformers.CLIPImageProcessor).from_pretrained(
        name, local_files_only=local
    )
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    tile = Image.fromarray(np.stack([grey] * 3, axis=-1))
    made = processor(tile, do_resize=False, do_center_crop=False, return_tensors="np")
    table = torch.from_numpy(np.ascontiguousarray(made["pixel_values"][0].reshape(3, 256).T))
    size, crop = processor.size, processor.crop_size
    resize = _side(size, name) if processor.do_resize else None
    kept = _side(crop, name) if processor.do_center_crop else None
    return Preprocess(resize, kept, table.float(), _PILLOW[int(processor.resample)])


def _side(size: Any, name: str) -> int:
    """The one side of a processor's size."""
    found = {size.get(key) for key in ("shortest_edge", "height", "width")} - {None}
    if len(found) != 1:
        raise ValueError(f"{name}: expected a processor of square images, got {dict(size)}")
    return int(found.pop())


def _timm(name: str) -> Tower:
    try:
        import timm
    except ImportError as error:
        raise ImportError(f"{name}: expected timm to be installed: pip install timm") from error
    try:
        module = timm.create_model(name, pretrained=True, num_classes=0)
    except RuntimeError as error:
        if "Unknown model" in str(error):
            raise ValueError(f"timm: expected the name of a model, got {name!r}") from error
        raise _missing(name, error) from error
    except OSError as error:
        raise _missing(name, error) from error
    return of_timm(module, name)


def of_timm(module: nn.Module, name: str) -> Tower:
    """A timm model made by ``timm.create_model(..., num_classes=0)`` as a tower.

    Parameters
    ----------
    module
        The model.
    name
        What ``timm.create_model`` makes it again by.
    """
    data: Any = importlib.import_module("timm.data")
    config = data.resolve_data_config({}, model=module)
    side = int(config["input_size"][-1])
    table = plain(mean=config["mean"], std=config["std"]).table
    resize = int(np.floor(side / config["crop_pct"]))
    preprocess = Preprocess(resize, side, table, config["interpolation"])
    width = int(getattr(module, "num_features", 0))
    cfg: Any = module.pretrained_cfg
    recipe = {"kind": "timm", "width": width, "name": cfg["architecture"], "arguments": {}}
    recipe["arguments"] = dict(cfg.get("model_args") or {})
    return Tower(module, width, preprocess, recipe)


def own(
    module: nn.Module, *, width: int, preprocess: Preprocess | None = None, name: str | None = None
) -> Tower:
    """Any module as a tower.

    Parameters
    ----------
    module
        Takes images (n, 3, h, w), returns (n, width).
    width
        Features that it returns.
    preprocess
        From tiles to its images; ``None``: ImageNet's mean and deviation, tiles as they are.
    name
        ``package.module:function`` that returns this tower, so that a checkpoint can
        find it again; without it the checkpoint's reader must be given the tower.
    """
    recipe = {"kind": "function" if name else "own", "width": width, "name": name or ""}
    return Tower(module, width, preprocess or plain(), recipe)


def _function(module: str, function: str) -> Tower:
    name = f"{module}:{function}"
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        forms = "a folder, a name on the hub, timm:NAME, hf-hub:NAME or package.module:function"
        raise ValueError(f"model: expected {forms}, got {name!r} ({error})") from error
    tower = found()
    if not isinstance(tower, Tower):
        raise ValueError(f"{name}: expected a Tower, got {type(tower).__name__}")
    return tower
