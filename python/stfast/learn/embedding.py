"""Embeddings of a dataset's tiles, a row a spot, in parts that a stopped run keeps."""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stfast import FormatError, _check
from stfast._output import whole
from stfast.learn._checkpoint import NAME, Trained, load_checkpoint
from stfast.learn._ranks import device_of
from stfast.learn.towers import Precision, Preprocess, Tower, open_tower

if TYPE_CHECKING:
    from anndata import AnnData

    from stfast.dataset import Dataset
    from stfast.loader import TileLoader

Layer = Literal["tower", "joint"]
Model = str | os.PathLike[str] | Tower | Trained

PART = 64
"""Batches of a part that is kept when the run is stopped."""


@dataclass(frozen=True)
class Embedding:
    """What an embedding did.

    Attributes
    ----------
    path
        The Parquet file.
    n_spots, width
        Its rows, and the length of each embedding.
    spots_per_second
        Of the rows that this run embedded; 0 if none.
    """

    path: Path
    n_spots: int
    width: int
    spots_per_second: float


def embed(
    dataset: "Dataset",
    output: str | os.PathLike[str],
    *,
    model: Model,
    layer: Layer = "tower",
    batch_size: int = 256,
    precision: Precision = "fp32",
    device: torch.device | str | None = None,
    workers: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> Embedding:
    """Embed a dataset's tiles into a Parquet file keyed by slide and spot.

    A run that was stopped goes on at the part it was in, if model and spots are the same.

    Parameters
    ----------
    dataset
        A dataset or a view of one; rows come in its order.
    output
        ``.parquet`` to write: ``slide``, ``spot`` and ``embedding``, float32 all.
    model
        The folder that :func:`train` wrote, what :func:`load_checkpoint` gives, or a
        tower as :func:`open_tower` takes it, not fine-tuned.
    layer
        ``"tower"``: the image tower's own output (512-d of CLIP and PLIP, 1024-d of UNI),
        what the paper uses of models that are not fine-tuned. ``"joint"``: the shared
        space, 32-d.
    batch_size
        Tiles at a time.
    precision
        ``"fp32"`` or ``"bf16"``, autocast.
    device
        ``None``: CUDA if there is any, else CPU.
    workers
        Threads of the loader; ``None``: ``$STFAST_WORKERS``, else the CPUs of this process.
    progress
        Called with the number of spots done.

    Raises
    ------
    FileNotFoundError
        The model's weights cannot be had.
    ValueError
        ``"joint"`` of a tower without a head, or an output that is not ``.parquet``.
    """
    _check.choice(layer, Layer, "layer")
    _check.choice(precision, Precision, "precision")
    path, place = Path(output), device_of(device)
    if path.suffix != ".parquet":
        raise ValueError(f"output: expected a name ending in .parquet, got {path}")
    net, pixels = _net(model, layer)
    net.to(place).eval()
    loader = _loader(dataset, pixels, batch_size, place, workers)
    mark = _mark(net, pixels, loader.state_dict()["spots"], [layer, precision, batch_size])
    parts = _Parts(path, mark, PART * batch_size)
    first = parts.find()
    loader.load_state_dict(loader.state_dict() | {"batch": first // batch_size})
    done, start = first, time.perf_counter()
    with torch.inference_mode():
        for batch in loader if first < len(dataset) else ():
            images = pixels(batch.image, workers=workers).to(place)
            with torch.autocast(place.type, torch.bfloat16, enabled=precision == "bf16"):
                found = net(images)
            parts.add(found.float().cpu().numpy())
            done += len(batch)
            if progress is not None:
                progress(done)
    rate = (done - first) / max(time.perf_counter() - start, 1e-9)
    width = parts.join(dataset.index.select("slide", "spot"))
    return Embedding(path, done, width, rate)


def _loader(
    dataset: "Dataset",
    pixels: Preprocess,
    batch_size: int,
    place: torch.device,
    workers: int | None,
) -> "TileLoader":
    """Tiles in order, on the CPU where they must be resized."""
    return dataset.loader(
        batch_size=_check.at_least_one(batch_size, "batch_size"),
        shuffle=False,
        device="cpu" if pixels.resizes(int(dataset.settings["size"])) else place,
        workers=workers,
        rank=0,
        world_size=1,
    )


class _Joint(nn.Module):
    """From images to the shared space."""

    def __init__(self, trained: Trained) -> None:
        super().__init__()
        self.model = trained.model

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.model.image_head(self.model.features(images))
        return out


class _Own(nn.Module):
    """From images to the tower's own output."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, images: Tensor) -> Tensor:
        out: Any = self.tower(images)
        found: Tensor = getattr(out, "image_embeds", out)
        return found


def _net(model: Model, layer: Layer) -> tuple[nn.Module, Preprocess]:
    """What is run on images, and how they are made."""
    if isinstance(model, str | os.PathLike) and _is_checkpoint(Path(model)):
        model = load_checkpoint(model)
    if isinstance(model, Trained):
        return _Joint(model) if layer == "joint" else _Own(model.model.tower), model.preprocess
    if layer == "joint":
        raise ValueError('layer: expected "tower" of a model that is not fine-tuned, got "joint"')
    tower = open_tower(model)
    return _Own(tower.module), tower.preprocess


def _is_checkpoint(path: Path) -> bool:
    return path.suffix == ".pt" or (path / NAME).exists()


def _mark(net: nn.Module, pixels: Preprocess, spots: str, asked: list[Any]) -> str:
    """A digest of all that the numbers follow from: weights, pixels, spots, settings."""
    digest = hashlib.blake2b(json.dumps([spots, *asked, pixels.resize, pixels.crop]).encode())
    for name, tensor in net.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    digest.update(pixels.table.numpy().tobytes())
    return digest.hexdigest()


class _Parts:
    """Rows so far, in files of ``rows`` each beside the output."""

    def __init__(self, output: Path, mark: str, rows: int) -> None:
        self.output, self.mark, self.rows = output, mark, rows
        self.folder = output.with_name(f".{output.stem}.parts")
        self.number = 0
        self.held: list[NDArray[np.float32]] = []

    def find(self) -> int:
        """Rows that a former run left of the same thing; of another thing they are removed."""
        told = self.folder / "mark"
        if self.folder.exists() and not (told.exists() and told.read_bytes() == self.mark.encode()):
            shutil.rmtree(self.folder)
        self.folder.mkdir(exist_ok=True)
        told.write_bytes(self.mark.encode())
        while self._path(self.number).exists():
            self.number += 1
        return sum(len(np.load(self._path(n), mmap_mode="r")) for n in range(self.number))

    def add(self, rows: NDArray[np.float32]) -> None:
        """Take a batch; write a part when it is full."""
        self.held.append(rows)
        if sum(map(len, self.held)) >= self.rows:
            self._write()

    def _write(self) -> None:
        with whole(self._path(self.number)) as partial:
            np.save(partial, np.concatenate(self.held))
        self.number, self.held = self.number + 1, []

    def join(self, keys: pl.DataFrame) -> int:
        """Write the output and remove the parts; the embeddings' width."""
        if self.held:
            self._write()
        parts = [np.load(self._path(n)) for n in range(self.number)]
        matrix = np.concatenate(parts) if parts else np.empty((0, 1), np.float32)
        column = pl.Series("embedding", matrix, dtype=pl.Array(pl.Float32, matrix.shape[1]))
        with whole(self.output) as partial:
            keys.with_columns(column).write_parquet(partial)
        shutil.rmtree(self.folder)
        return int(matrix.shape[1])

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06}.npy"


def read_embeddings(
    path: str | os.PathLike[str], dataset: "Dataset | None" = None
) -> tuple[pl.DataFrame, NDArray[np.float32]]:
    """The keys and the matrix that :func:`embed` wrote.

    Parameters
    ----------
    path
        The Parquet file.
    dataset
        Take the rows of its spots, in their order.

    Returns
    -------
    keys, matrix
        ``slide`` and ``spot``, and (n, width) float32.

    Raises
    ------
    FormatError
        The file has no such columns.
    ValueError
        It lacks spots of the dataset.
    """
    table = pl.read_parquet(Path(path))
    if not {"slide", "spot", "embedding"} <= set(table.columns):
        raise FormatError(f"{path}: expected slide, spot and embedding, got {table.columns}")
    if dataset is not None:
        wanted = dataset.index.select("slide", "spot")
        table = wanted.join(table, on=["slide", "spot"], how="left", maintain_order="left")
        lost = table["embedding"].null_count()
        if lost:
            raise ValueError(f"{path}: expected all spots of {dataset!r}, got none of {lost}")
    matrix: NDArray[np.float32] = table["embedding"].to_numpy()
    return table.select("slide", "spot"), np.ascontiguousarray(matrix)


def to_obsm(
    adata: "AnnData", path: str | os.PathLike[str], slide: str, *, key: str = "X_embedding"
) -> None:
    """Put a slide's embeddings into ``adata.obsm[key]``; NaN where a spot has none.

    Parameters
    ----------
    adata
        The slide, its ``obs_names`` the spots.
    path
        What :func:`embed` wrote.
    slide
        The slide's name there.
    key
        Name in ``obsm``.

    Raises
    ------
    ValueError
        The file has no spot of this slide.
    """
    keys, matrix = read_embeddings(path)
    here = (keys["slide"] == slide).to_numpy()
    place = dict(zip(keys["spot"].filter(here), np.flatnonzero(here), strict=True))
    rows = np.array([place.get(name, -1) for name in adata.obs_names])
    if not (rows >= 0).any():
        raise ValueError(f"{path}: expected spots of slide {slide!r}, got none")
    found = np.full((adata.n_obs, matrix.shape[1]), np.nan, np.float32)
    found[rows >= 0] = matrix[rows[rows >= 0]]
    adata.obsm[key] = found
