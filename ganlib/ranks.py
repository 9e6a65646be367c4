"""Sums over the ranks of the default process group, the same bits on every rank."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.distributed.nn
from torch import Tensor

__all__ = ["average", "gather", "total", "world"]

SMALL = 2**17
"""elements; below, Gloo's all-reduce spends its time in waiting, not in sending"""


def world() -> int:
    """How many ranks there are; 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def gather(x: Tensor) -> Tensor:
    """Every rank's `x`, `[N, ...]`, one after the other, `[world · N, ...]`; differentiable."""
    if world() == 1:
        return x
    everyones: Tensor = torch.cat(dist.nn.functional.all_gather(x.contiguous()))
    return everyones


def total(x: Tensor) -> Tensor:
    """Σ over ranks of `x`, any shape.

    Small CPU tensors are exchanged all to all and summed here: for two ranks on one machine a sixth of the time of
    Gloo's all-reduce, which takes over a millisecond whatever the size (`tests/bench/all_reduce.py`).
    """
    world = dist.get_world_size()
    if x.device.type == "cpu" and x.numel() * world < SMALL:
        flat = x.flatten()
        everyones = flat.new_empty(world * flat.numel())
        dist.all_to_all_single(everyones, flat.repeat(world))
        return everyones.view(world, -1).sum(0).view_as(x)
    summed = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(summed)
    return summed


def average(tensors: list[Tensor]) -> None:
    """Replace tensors by their means over ranks, by one flat sum. Why not DDP: `tests/bench/all_reduce.py`."""
    mean = total(torch.cat([x.flatten() for x in tensors])) / dist.get_world_size()
    for tensor, part in zip(tensors, mean.split([x.numel() for x in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))
