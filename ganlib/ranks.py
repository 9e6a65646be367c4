"""Sums over the ranks of the default process group, the same bits on every rank.

Ranks that share a machine's memory sum through it, without Gloo: see `_Memory`.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import platform
import tempfile
import time
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.nn
from torch import Tensor

__all__ = ["RankLost", "average", "gather", "total", "world"]

SHM = Path("/dev/shm")
LINE = 64
"""bytes of a cache line; ranks that wrote to the same one would hold each other up"""
LEAST = 2**20
"""bytes of each rank in shared memory, where it asks for less"""
HURRY = 0.02
"""seconds that a rank asks without a pause whether the others have come; meetings in a step are over long before"""
PATIENCE = 30 * 60.0
"""seconds until a rank gives the others up, as torch's process groups do"""


class RankLost(RuntimeError):
    """Another rank is gone."""


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
    """Σ over ranks of `x`, any shape, the same bits on all. Raises RankLost (by Gloo: RuntimeError) if one is gone."""
    if x.device.type == "cpu":
        memory = _memory(x.numel() * x.element_size())
        if memory is not None:
            return memory.total(x)
    summed = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(summed)
    return summed


def average(tensors: list[Tensor]) -> None:
    """Replace tensors by their means over ranks, by one flat sum. Why not DDP: `tests/bench/all_reduce.py`."""
    mean = total(torch.cat([x.flatten() for x in tensors])) / dist.get_world_size()
    for tensor, part in zip(tensors, mean.split([x.numel() for x in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))


@dataclass
class _Memory:
    """What the ranks of one machine share: each lays down its part, says so, waits for the others, and sums all parts.

    A meeting by Gloo puts threads to sleep and wakes them, which can take longer than a small step's work
    (`tests/bench/all_reduce.py`). Here a rank asks again and again, giving way to whoever else wants its core.
    There are two sets of places, used in turn: whoever has come to meeting k + 1 has read all of meeting k, so its
    places are free for k + 2.
    """

    heads: memoryview
    """for each rank, a line apart: the number of its last meeting and its process"""
    places: Tensor
    """bytes, `[2, world, capacity]`"""
    rank: int
    meetings: int = 0

    def total(self, x: Tensor) -> Tensor:
        parts = self.places[self.meetings % 2, :, : x.numel() * x.element_size()].view(x.dtype)
        parts[self.rank].copy_(x.flatten())
        self.meet()
        return parts.sum(0, dtype=x.dtype).view(x.shape)

    def meet(self) -> None:
        """Wait for all. x86 keeps the order of stores: who sees the number sees what was laid down before it."""
        line = LINE // self.heads.itemsize
        self.meetings += 1
        self.heads[self.rank * line] = self.meetings
        began = looked = time.monotonic()
        for other in range(self.places.shape[1]):
            while self.heads[other * line] < self.meetings:
                os.sched_yield()
                now = time.monotonic()
                if now - began > HURRY:
                    time.sleep(HURRY / 100)
                if now - looked > 1.0:
                    looked = now
                    if not Path(f"/proc/{self.heads[other * line + 1]}").exists():
                        raise RankLost(f"rank {other} is gone")
                if now - began > PATIENCE:
                    raise RankLost(f"rank {other} has not come for {PATIENCE / 60:.0f} minutes")


_memories: weakref.WeakKeyDictionary[Any, tuple[_Memory | None, float]] = weakref.WeakKeyDictionary()
"""of a process group: its memory, and from which size on it can have none, in bytes"""


def _memory(size: int) -> _Memory | None:
    """What all ranks share, with room for `size` bytes of each; None where they cannot share as much.

    Ranks must ask for the same sizes in the same order, as for torch's collectives.
    """
    group = dist.group.WORLD
    memory, refused = _memories.get(group, (None, math.inf))
    if size >= refused:
        return None
    if memory is None or size > memory.places.shape[2]:
        larger = _open(max(LEAST, 1 << (size - 1).bit_length()))
        if larger is None:
            _memories[group] = memory, size if memory is not None else 0
            return None
        memory = larger
        _memories[group] = memory, refused
    return memory


def _open(capacity: int) -> _Memory | None:
    """Fresh memory; None on all ranks if one cannot have it: on another machine, or where `/dev/shm` is full."""
    rank, world = dist.get_rank(), dist.get_world_size()
    with contextlib.ExitStack() as stack:
        name = [""]
        if rank == 0 and platform.machine() == "x86_64":
            with contextlib.suppress(OSError):
                file = stack.enter_context(tempfile.NamedTemporaryFile(dir=SHM, prefix="ganlib-"))
                # all of it now, since writing to memory that a full file system cannot give is a signal, not an error
                os.posix_fallocate(file.fileno(), 0, world * (LINE + 2 * capacity))
                name = [file.name]
        dist.broadcast_object_list(name)
        memory = None
        with contextlib.suppress(OSError):
            with open(name[0], "r+b") as found:
                shared = mmap.mmap(found.fileno(), 0)
            heads = memoryview(shared)[: world * LINE].cast("q")
            heads[rank * (LINE // heads.itemsize) + 1] = os.getpid()
            places = torch.frombuffer(shared, dtype=torch.uint8, offset=world * LINE).view(2, world, capacity)
            memory = _Memory(heads, places, rank)
        all_have = torch.tensor(int(memory is not None))
        dist.all_reduce(all_have, dist.ReduceOp.MIN)
        return memory if all_have else None
