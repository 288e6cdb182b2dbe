"""The paper's fine-tuning: pairs of tile and genes, CLIP's loss, one command.

A step's chance (dropout's, if the tower has any) is seeded by (seed, epoch, batch, rank)
and the loader's order by (seed, epoch), so a checkpoint needs no state of generators:
a run that was stopped goes on to the same bits.
"""

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import torch

from stfast import _check
from stfast._output import whole
from stfast.learn import _ranks
from stfast.learn._genes import GeneInput
from stfast.learn._run import Run
from stfast.learn.towers import Precision, Tower

if TYPE_CHECKING:
    from stfast.dataset import Dataset
    from stfast.loader import Augment


@dataclass(frozen=True)
class Training:
    """What a training did.

    Attributes
    ----------
    folder
        Where ``checkpoint.pt``, ``loss.csv`` and ``loss.png`` are.
    history
        ``epoch, step, loss, spots, seconds, waited``, a row a step, those of former
        runs too.
    """

    folder: Path
    history: pl.DataFrame

    @property
    def spots_per_second(self) -> float:
        """Of all ranks together, over all steps."""
        return self._sum("spots") / max(self._sum("seconds"), 1e-9)

    @property
    def share_waiting(self) -> float:
        """Share of the time that was spent waiting for batches."""
        return self._sum("waited") / max(self._sum("seconds"), 1e-9)

    def _sum(self, column: str) -> float:
        return float(self.history[column].to_numpy().sum())


def train(
    dataset: "Dataset",
    folder: str | os.PathLike[str],
    *,
    model: str | os.PathLike[str] | Tower = "openai/clip-vit-base-patch32",
    genes: GeneInput = "hvg",
    epochs: int = 15,
    batch_size: int = 1024,
    lr: float = 5e-5,
    weight_decay: float = 0.2,
    size: int = 32,
    precision: Precision = "fp32",
    augment: "Augment | None" = None,
    seed: int = 0,
    save_every: int | None = None,
    device: torch.device | str | None = None,
    workers: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> Training:
    """Fine-tune an image tower and a gene tower on a dataset's spots, as the paper does.

    Started by ``torchrun``, each process takes its part of every batch and the negatives
    are those of all. A folder that has a checkpoint is gone on with.

    Parameters
    ----------
    dataset
        A dataset or a view of one, such as its training slides.
    folder
        Where the checkpoint and the losses go.
    model
        The image tower: what :func:`open_tower` takes.
    genes
        Input of the gene tower. ``"hvg"``: the dataset's rank-combined matrix;
        ``"overlap"``: the 100 most variable of the genes that the slides share;
        ``"counts"``: every gene, sparse, at the median total and log1p'd.
    epochs
        Times that every spot is seen, former runs' included.
    batch_size
        Spots of a batch on all ranks together.
    lr, weight_decay
        Adam's.
    size
        Side of the shared space.
    precision
        ``"fp32"``, the paper's, or ``"bf16"``: autocast of the towers; the loss stays
        in fp32.
    augment
        What tiles undergo, as in :class:`stfast.TileLoader`; ``None``: nothing, the
        paper's.
    seed
        Of weights, order and dropout.
    save_every
        Steps between checkpoints, beside the one at each epoch's end.
    device
        ``None``: CUDA if there is any, else CPU.
    workers
        Threads of the loader; ``None``: ``$STFAST_WORKERS``, else the CPUs of this process.
    progress
        Called with the number of steps done.

    Returns
    -------
    Training
        The losses, and what a step took.

    Raises
    ------
    FileNotFoundError
        The model's weights cannot be had.
    ValueError
        The folder's checkpoint is of other settings or other spots, or an argument
        does not fit.

    Notes
    -----
    Adam, lr 5e-5, betas (0.9, 0.98), eps 1e-6, weight decay 0.2, batch 1024, 15 epochs
    (STimage-1K4M, section 5). Towers with batch normalisation see each rank's own
    statistics.
    """
    _check.choice(precision, Precision, "precision")
    epochs = _check.at_least_one(epochs, "epochs")
    settings: dict[str, Any] = {"genes": genes, "precision": precision, "seed": seed}
    settings["augment"] = None if augment is None else asdict(augment)
    settings |= {"batch_size": batch_size, "lr": lr, "weight_decay": weight_decay, "size": size}
    place = _ranks.device_of(device)
    with _ranks.group(place) as (rank, world), torch.random.fork_rng(_cuda(place)):
        torch.manual_seed(seed)
        run = Run.begin(Path(folder), dataset, model, settings, device=place, workers=workers)
        run.join(rank, world)
        for done in run.steps(epochs, save_every):
            if progress is not None:
                progress(done)
        history = run.table()
        if rank == 0:
            _write_losses(Path(folder), history)
    return Training(Path(folder), history)


def _cuda(device: torch.device) -> list[torch.device]:
    return [device] if device.type == "cuda" else []


def _write_losses(folder: Path, history: pl.DataFrame) -> None:
    """``loss.csv`` and ``loss.png``."""
    from stfast.learn.plots import draw_losses

    with whole(folder / "loss.csv") as partial:
        history.write_csv(partial)
    with whole(folder / "loss.png") as partial:
        draw_losses(history, partial)
