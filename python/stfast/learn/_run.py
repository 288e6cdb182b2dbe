"""A training under way: what it steps, what it saves, and how it goes on after a stop."""

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import torch
from torch import nn

from stfast.learn import _checkpoint, _ranks
from stfast.learn._genes import Columns, columns_of
from stfast.learn.model import ContrastiveModel, contrastive_loss, paper_optimizer
from stfast.learn.towers import Preprocess, Tower, open_tower
from stfast.loader import Augment

if TYPE_CHECKING:
    from stfast.dataset import Dataset
    from stfast.loader import Batch, TileLoader

HISTORY: dict[str, type[pl.DataType]] = {
    "epoch": pl.Int64,
    "step": pl.Int64,
    "loss": pl.Float64,
    "spots": pl.Int64,
    "seconds": pl.Float64,  # of the step, its wait included
    "waited": pl.Float64,  # for the loader
}


@dataclass
class Run:
    """The model with all that a step needs."""

    folder: Path
    model: ContrastiveModel
    optimizer: torch.optim.Optimizer
    loader: "TileLoader"
    columns: Columns
    preprocess: Preprocess
    about: dict[str, Any]
    device: torch.device
    net: nn.Module
    rank: int = 0
    world: int = 1
    history: list[list[float]] = field(default_factory=list)

    @classmethod
    def begin(
        cls,
        folder: Path,
        dataset: "Dataset",
        model: str | os.PathLike[str] | Tower,
        settings: dict[str, Any],
        *,
        device: torch.device,
        workers: int | None,
    ) -> "Run":
        """Open the tower, or the folder's checkpoint: what may fail comes first."""
        state = _checkpoint.load(folder) if (folder / _checkpoint.NAME).exists() else None
        if state is None:
            tower = open_tower(model)
        else:
            _expect(folder, state["about"]["settings"], settings)
            tower = _checkpoint.tower_of(state, model if isinstance(model, Tower) else None)
        columns = columns_of(dataset, settings["genes"], workers=workers)
        loader = _loader(dataset, tower.preprocess, columns, settings, (device, workers))
        made = ContrastiveModel(
            tower.module, width=tower.width, n_genes=len(columns.names), size=settings["size"]
        ).to(device)
        folder.mkdir(parents=True, exist_ok=True)
        about = _checkpoint.about(tower, columns.names, settings)
        optimizer = paper_optimizer(made, lr=settings["lr"], weight_decay=settings["weight_decay"])
        run = cls(folder, made, optimizer, loader, columns, tower.preprocess, about, device, made)
        if state is not None:
            run.restore(state)
        return run

    def join(self, rank: int, world: int) -> None:
        """Take part as one of several ranks."""
        self.rank, self.world, self.net = rank, world, _ranks.spread(self.model, world)

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where a checkpoint was taken."""
        if state["about"]["genes"] != self.about["genes"]:
            raise ValueError(f"{self.folder}: expected a checkpoint of these genes, got of others")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.loader.load_state_dict(state["loader"])
        self.history = state["history"].tolist()

    def save(self) -> None:
        """Write the checkpoint; the first rank does."""
        if self.rank:
            return
        state: dict[str, Any] = {"about": self.about, "model": self.model.state_dict()}
        state |= {"optimizer": self.optimizer.state_dict(), "loader": self.loader.state_dict()}
        state["history"] = torch.tensor(self.history, dtype=torch.float64)
        _checkpoint.save(self.folder / _checkpoint.NAME, state)

    def steps(self, epochs: int, save_every: int | None) -> Iterator[int]:
        """Train until so many epochs are done; yields the number of steps done."""
        self.net.train()
        while (epoch := self.loader.state_dict()["epoch"]) < epochs:
            before = time.perf_counter()
            for batch in self.loader:
                waited, number = time.perf_counter() - before, len(self.history)
                loss = self.step(batch, number)
                now = time.perf_counter()
                n = len(batch) * self.world
                self.history.append([epoch, number, loss, n, now - before, waited])
                before = now
                if save_every is not None and (number + 1) % save_every == 0:
                    self.save()
                yield number + 1
            self.save()

    def step(self, batch: "Batch", number: int) -> float:
        """One step of the optimiser; the loss before it."""
        torch.manual_seed(self.chance(number))
        images, genes = self.preprocess(batch.image).to(self.device), self.columns(batch)
        half = self.about["settings"]["precision"] == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            image, gene = self.net(images, genes)
        image, gene = (_ranks.gathered(part.float()) for part in (image, gene))
        loss = contrastive_loss(image, gene, self.model.logit_scale)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return float(loss.detach())

    def chance(self, number: int) -> int:
        """The seed of a step's dropout on this rank."""
        seed = self.about["settings"]["seed"]
        return int(np.random.SeedSequence([seed, number, self.rank]).generate_state(1)[0])

    def table(self) -> pl.DataFrame:
        """The losses so far."""
        columns = np.array(self.history, dtype=np.float64).reshape(-1, len(HISTORY)).T
        named = dict(zip(HISTORY, columns, strict=True))
        return pl.DataFrame(named).cast(HISTORY)  # type: ignore[arg-type]


def _loader(
    dataset: "Dataset",
    preprocess: Preprocess,
    columns: Columns,
    settings: dict[str, Any],
    where: tuple[torch.device, int | None],
) -> "TileLoader":
    """Batches of this rank; on the CPU where tiles must be resized."""
    resizes = preprocess.resizes(int(dataset.settings["size"]))
    loader = dataset.loader(
        genes=columns.asked,
        global_batch_size=settings["batch_size"],
        seed=settings["seed"],
        augment=None if settings["augment"] is None else Augment(**settings["augment"]),
        device="cpu" if resizes else where[0],
        workers=where[1],
    )
    if not len(loader):
        n, least = loader.n_spots, settings["batch_size"]
        raise ValueError(f"batch_size: expected at most the {n} spots there are, got {least}")
    return loader


def _expect(folder: Path, found: dict[str, Any], settings: dict[str, Any]) -> None:
    for name, value in settings.items():
        if found.get(name) != value:
            raise ValueError(
                f"{folder}: expected {name} {found.get(name)!r}, its checkpoint's, got {value!r}"
            )
