"""Several processes that train one model: started by torchrun, each with its part of a batch.

Every rank computes the loss of the whole batch, of embeddings gathered from all; the
gradient of a gathered embedding is summed over ranks and DDP takes the mean, so that
together they give the very gradient of one process with the whole batch.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel


def device_of(device: "torch.device | str | None") -> torch.device:
    """The device asked for; ``None``: this rank's GPU if there is any, else the CPU."""
    if device is not None:
        return torch.device(device)
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


@contextmanager
def group(device: torch.device) -> Iterator[tuple[int, int]]:
    """Rank and number of ranks; the group is made, and ended, where torchrun started us."""
    if not distributed.is_available():
        yield 0, 1
        return
    mine = not distributed.is_initialized() and int(os.environ.get("WORLD_SIZE", "1")) > 1
    if mine:
        if device.type == "cuda":
            torch.cuda.set_device(device)
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        here = distributed.is_initialized()
        yield (distributed.get_rank(), distributed.get_world_size()) if here else (0, 1)
    finally:
        if mine:
            distributed.destroy_process_group()


def spread(model: nn.Module, world: int) -> nn.Module:
    """The model, its gradients averaged over ranks."""
    return model if world == 1 else DistributedDataParallel(model)


def gathered(part: Tensor) -> Tensor:
    """Rows of all ranks, in their order; gradients find their way back."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return part
    rows: Tensor = _Gather.apply(part)
    return rows


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        parts = [torch.empty_like(part) for _ in range(distributed.get_world_size())]
        distributed.all_gather(parts, part.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        whole = gradients[0].contiguous()
        distributed.all_reduce(whole)
        n = len(whole) // distributed.get_world_size()
        return whole[distributed.get_rank() * n :][:n]
