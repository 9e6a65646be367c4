"""Sums over the ranks of the default process group, the same bits on every rank.

Ranks that share a machine's memory sum through it, without Gloo: see `_Memory`.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import platform
import tempfile
import time
import weakref
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["WorkerLost", "all_gather", "all_reduce", "average_gradients", "world_size"]

SHM = "/dev/shm"
PLACE = 2**20
"""bytes of shared memory in which a rank lays down what it brings, piece by piece"""
LINE = 64
"""bytes of a cache line; ranks that wrote to the same one would hold each other up"""
SMALL = 2**17
"""elements of all ranks; below, Gloo's all-reduce spends its time in waiting, not in sending"""
HURRY = 0.02
"""seconds that a rank asks without a pause whether the others have come; collectives in a step are over long before"""
PATIENCE = 30 * 60.0
"""seconds until a rank gives the others up, as torch's process groups do"""


class WorkerLost(RuntimeError):
    """Another rank is gone."""


def world_size() -> int:
    """How many ranks there are; 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def all_gather(x: Tensor) -> Tensor:
    """Every rank's `x`, `[N, ...]`, one after the other, `[world · N, ...]`; differentiable, once."""
    if world_size() == 1:
        return x
    everyones: Tensor = _Gather.apply(x)  # type: ignore[no-untyped-call]
    return everyones


class _Gather(torch.autograd.Function):
    """A sum of what each rank has in its own place; its gradient there is the sum of what all ranks ask of it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        places = x.new_zeros(world_size(), *x.shape)
        places[dist.get_rank()] = x
        return all_reduce(places).flatten(0, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        places: Tensor = all_reduce(gradient).unflatten(0, (world_size(), -1))
        return places[dist.get_rank()]


def all_reduce(x: Tensor) -> Tensor:
    """Σ over ranks of `x`, any shape, the same bits on all. Raises WorkerLost (by Gloo: RuntimeError) if one is gone.

    Without shared memory small CPU tensors are exchanged all to all and summed here, which takes Gloo a fraction of the
    time of its all-reduce (`tests/bench/all_reduce.py`).
    """
    if world_size() == 1:
        return x
    if x.device.type == "cpu":
        memory = _memory()
        if memory is not None:
            return memory.all_reduce(x)
        if x.numel() * world_size() < SMALL:
            flat = x.flatten()
            everyones = flat.new_empty(world_size() * flat.numel())
            dist.all_to_all_single(everyones, flat.repeat(world_size()))
            return everyones.view(world_size(), -1).sum(0, dtype=x.dtype).view(x.shape)
    summed = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(summed)
    return summed


def average_gradients(tensors: list[Tensor]) -> None:
    """Replace tensors by their means over ranks, by one flat sum. Why not DDP: `tests/bench/all_reduce.py`."""
    mean = all_reduce(torch.cat([x.flatten() for x in tensors])) / dist.get_world_size()
    for tensor, part in zip(tensors, mean.split([x.numel() for x in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))


@dataclass
class _Memory:
    """What the ranks of one machine share: each lays down its part, says so, waits for the others, and sums all parts.

    A collective by Gloo puts threads to sleep and wakes them, which can take longer than a small step's work
    (`tests/bench/all_reduce.py`). Here a rank asks again and again, giving way to whoever else wants its core.
    There are two sets of places, used in turn: a rank that has reached collective k + 1 has read all of collective k,
    so its places are free for k + 2. As for torch's collectives, all ranks must bring the same sizes in the same order.
    """

    file: BinaryIO
    """of which each rank holds a byte locked for as long as it lives"""
    heads: memoryview
    """the number of each rank's last collective, a line apart"""
    places: Tensor
    """bytes, `[2, world, PLACE]`"""
    rank: int
    collectives: int = 0

    def all_reduce(self, x: Tensor) -> Tensor:
        flat, size = x.flatten(), PLACE // x.element_size()
        summed = torch.empty_like(flat)
        for piece, into in zip(flat.split(size), summed.split(size), strict=True):
            parts = self.places[self.collectives % 2, :, : piece.numel() * piece.element_size()].view(x.dtype)
            parts[self.rank].copy_(piece)
            self.synchronise()
            into.copy_(parts.sum(0, dtype=x.dtype))
        return summed.view(x.shape)

    def synchronise(self) -> None:
        """Wait for all. x86 keeps the order of stores: who sees the number sees what was laid down before it."""
        self.collectives += 1
        self.heads[self.rank * LINE // 8] = self.collectives
        began = looked = time.monotonic()
        for other in range(self.places.shape[1]):
            while self.heads[other * LINE // 8] < self.collectives:
                os.sched_yield()
                now = time.monotonic()
                if now - began > HURRY:
                    time.sleep(HURRY / 100)
                if now - looked > 1.0:
                    looked = now
                    if not self._lives(other) and self.heads[other * LINE // 8] < self.collectives:
                        raise WorkerLost(f"rank {other} is gone")
                if now - began > PATIENCE:
                    raise WorkerLost(f"rank {other} has not come for {PATIENCE / 60:.0f} minutes")

    def _lives(self, other: int) -> bool:
        try:
            fcntl.lockf(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, other)
        except OSError:
            return True
        fcntl.lockf(self.file, fcntl.LOCK_UN, 1, other)
        return False


_memories: weakref.WeakKeyDictionary[Any, _Memory | None] = weakref.WeakKeyDictionary()
"""of a process group; None where its ranks cannot share memory"""


def _memory() -> _Memory | None:
    group = dist.group.WORLD
    if group not in _memories:
        _memories[group] = _open(dist.get_rank(), dist.get_world_size())
    return _memories[group]


def _open(rank: int, world: int) -> _Memory | None:
    """Fresh memory; None on all ranks if one cannot have it: on another machine, or where `/dev/shm` is full."""
    made, name = None, [""]
    if rank == 0 and platform.machine() == "x86_64":
        with contextlib.suppress(OSError):
            made, name[0] = _allocate(world * (LINE + 2 * PLACE))
    try:
        dist.broadcast_object_list(name)
        memory = None
        with contextlib.suppress(OSError):
            # rank 0 must not open it again: a process that closes a file loses its locks on it, whoever holds it open
            file = made or os.fdopen(os.open(name[0], os.O_RDWR), "r+b")
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, rank)
            shared = mmap.mmap(file.fileno(), 0)
            heads = memoryview(shared)[: world * LINE].cast("q")
            places = torch.frombuffer(shared, dtype=torch.uint8, offset=world * LINE).view(2, world, PLACE)
            memory = _Memory(file, heads, places, rank)
        all_have = torch.tensor(int(memory is not None))
        dist.all_reduce(all_have, dist.ReduceOp.MIN)
    finally:
        if made is not None:
            os.unlink(name[0])
    return memory if all_have else None


def _allocate(size: int) -> tuple[BinaryIO, str]:
    """A file of zeros and its name. Raises OSError unless there is room for all of it now: writing later to memory that
    a full file system cannot give is a signal, not an error."""
    handle, name = tempfile.mkstemp(dir=SHM, prefix="ganlib-")
    try:
        os.posix_fallocate(handle, 0, size)
    except OSError:
        os.close(handle)
        os.unlink(name)
        raise
    return os.fdopen(handle, "r+b"), name
