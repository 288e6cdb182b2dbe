"""A loader's arguments, checked and brought into one form."""

import hashlib
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from anndata import AnnData
from numpy.typing import ArrayLike, NDArray

from stfast import _check, _lazy
from stfast.loader._augment import Augment, Finish
from stfast.loader._order import Shares
from stfast.sources import ArraySource, HasSource, ShardSource, SlideSource, Source
from stfast.sources.genes import genes_of_slides
from stfast.tiles import tile_side


def source_of(
    source: AnnData | Sequence[AnnData] | HasSource | ArraySource,
    pixels: tuple[int | None, float | None, int],
    *,
    genes: Sequence[str] | str | None,
    label: str | None,
) -> Source:
    """Whatever spots come from, as a source of tiles."""
    size, span, cache_bytes = pixels
    if genes is not None and not isinstance(genes, str):
        genes = list(genes)  # an Index or an array compares with a word gene by gene
    if cache_bytes < 0:
        raise ValueError(f"cache_bytes: expected at least 0, got {cache_bytes}")
    of_others: Any = getattr(source, "source", None)
    if of_others is None and not isinstance(source, ArraySource):
        given: Any = [source] if isinstance(source, AnnData) else source
        slides = [_lazy.tables(adata) for adata in given]
        if not slides:
            raise ValueError("slides: expected at least one, got none")
        side = tile_side(224 if size is None else size)
        rows = genes_of_slides(slides, genes)
        return SlideSource(
            slides, rows, size=side, span=span, label=label, cache_bytes=int(cache_bytes)
        )
    if isinstance(source, ArraySource):
        if genes is not None:
            raise ValueError(f"genes: expected those of the arrays, got {genes!r}")
        found: Source = source
    else:
        found = of_others(genes)
    for name, asked in {"span": span, "label": label}.items():
        if asked is not None:
            raise ValueError(f"{name}: expected none beside tiles that are cut, got {asked!r}")
    if size is not None and size != found.size:
        raise ValueError(f"size: expected {found.size}, as the tiles are, got {size}")
    return found


def rows_of(rows: ArrayLike | None, source: Any, n: int) -> NDArray[np.int64] | None:
    """The rows to use: those given, of those that a dataset has been filtered to."""
    kept: NDArray[np.int64] | None = getattr(source, "rows", None)
    if rows is None:
        return kept
    chosen = np.asarray(rows)
    chosen = chosen if chosen.size else chosen.astype(np.int64)  # [] would be of floats
    if chosen.dtype == bool or chosen.ndim != 1 or not np.issubdtype(chosen.dtype, np.integer):
        raise ValueError(f"rows: expected numbers of rows, got {chosen.dtype} {chosen.shape}")
    bound = n if kept is None else len(kept)
    outside = chosen[(chosen < 0) | (chosen >= bound)]
    if len(outside):
        raise IndexError(f"rows: expected 0 to {bound - 1}, got {outside[0]}")
    chosen = chosen.astype(np.int64)
    return chosen if kept is None else kept[chosen]


def digest(rows: NDArray[np.int64]) -> str:
    """A short fingerprint of some rows."""
    return hashlib.blake2b(rows.tobytes(), digest_size=8).hexdigest()


def finish_of(
    dtype: torch.dtype | None,
    mean: Sequence[float],
    std: Sequence[float],
    augment: Augment | None,
    seed: int,
) -> Finish:
    """What becomes of the pixels."""
    if dtype is not None and not getattr(dtype, "is_floating_point", False):
        raise ValueError(f"dtype: expected a floating-point type or None, got {dtype!r}")
    for name, values in {"mean": mean, "std": std}.items():
        if len(values) != 3:
            raise ValueError(f"{name}: expected 3 numbers, got {len(values)}")
    if not min(std) > 0:
        raise ValueError(f"std: expected positive numbers, got {tuple(std)}")
    return Finish(dtype, tuple(mean), tuple(std), augment, seed)


def threads_of(workers: int | None, prefetch: int) -> tuple[int, int]:
    """Threads, and batches to be ahead."""
    return _check.workers(workers), _check.at_least_one(prefetch, "prefetch")


def has_nvjpeg(source: Source, device: torch.device, on_error: str) -> bool:
    """Whether tiles are to be decoded on the device: only CUDA does it."""
    if not isinstance(source, ShardSource):
        raise ValueError("nvjpeg: expected a built dataset of JPEG tiles, got another source")
    if on_error != "raise":
        raise ValueError(f'nvjpeg: expected on_error="raise", got {on_error!r}')
    first, _ = source.read(np.zeros(min(len(source.spots), 1), np.int64), 1)
    if len(first) and bytes(first[:2]) != b"\xff\xd8":
        raise ValueError("nvjpeg: expected a built dataset of JPEG tiles, got another encoding")
    return device.type == "cuda"


def ranks_of(rank: int | None, world: int | None) -> tuple[int, int]:
    """Which rank this is, of how many."""
    if (rank is None) != (world is None):
        raise ValueError(f"rank: expected rank and world_size, got {rank} of {world}")
    if rank is None or world is None:
        spread = torch.distributed
        if spread.is_available() and spread.is_initialized():
            rank, world = spread.get_rank(), spread.get_world_size()
        else:
            rank, world = _ranks_of_environment()
    if not 0 <= rank < world:
        raise ValueError(f"rank: expected 0 to {world - 1}, got {rank}")
    return rank, world


def _ranks_of_environment() -> tuple[int, int]:
    found = {name: os.environ.get(name) for name in ("RANK", "WORLD_SIZE")}
    if (found["RANK"] is None) != (found["WORLD_SIZE"] is None):
        raise ValueError(
            f"rank: expected both of $RANK and $WORLD_SIZE, got {found}; make the loader after "
            f"torch.distributed is initialised, or give rank= and world_size="
        )
    return int(found["RANK"] or 0), int(found["WORLD_SIZE"] or 1)


def check_ranks(shares: Shares, *, given: bool) -> None:
    """Raise if torch.distributed has come to say another rank than the loader was made for."""
    spread = torch.distributed
    if given or not (spread.is_available() and spread.is_initialized()):
        return
    found, mine = (spread.get_rank(), spread.get_world_size()), (shares.rank, shares.world)
    if found != mine:
        raise RuntimeError(
            f"TileLoader: expected rank {mine[0]} of {mine[1]} as when it was made, got {found[0]} "
            f"of {found[1]}; make it after torch.distributed is initialised, or give rank="
        )


def shares_of(
    batch_size: int,
    global_batch_size: int | None,
    ranks: tuple[int | None, int | None],
    drop_last: bool | None,  # noqa: FBT001
) -> Shares:
    """How batches are divided over ranks; the number of spots is filled in later."""
    rank, world = ranks_of(*ranks)
    batch = _check.at_least_one(batch_size, "batch_size")
    if global_batch_size is not None:
        batch, rest = divmod(_check.at_least_one(global_batch_size, "global_batch_size"), world)
        if rest or not batch:
            raise ValueError(
                f"global_batch_size: expected a multiple of {world} ranks, got {global_batch_size}"
            )
    if drop_last is False and world > 1:
        raise ValueError(
            f"drop_last: expected True on {world} ranks, whose batches must be equal, got False"
        )
    return Shares(0, batch, rank, world, world > 1 if drop_last is None else bool(drop_last))
