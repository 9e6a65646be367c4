"""Sums over the ranks of the default process group, the same bits on every rank.

Tensors on a GPU are summed by the group's backend: NCCL where each rank has a GPU of its own, else Gloo, which copies
them through the host. CPU tensors of ranks on one machine are summed in shared memory, without Gloo: see `_Memory`.
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
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

__all__ = [
    "GradientBuckets",
    "WorkerLost",
    "all_gather",
    "all_reduce",
    "average_gradients",
    "during_last_backward",
    "gradient_averager",
    "rank",
    "world_size",
]

SHM = "/dev/shm"
SLOT_BYTES = 2**20
"""of a rank's slot in shared memory; larger tensors are reduced in pieces of this size"""
CACHE_LINE_BYTES = 64
"""ranks that wrote to the same line would slow each other down"""
SMALL_ELEMENTS = 2**17
"""of all ranks; below, Gloo's all-reduce spends its time in waiting, not in sending"""
BUCKET_BYTES = 25 * 2**20
"""bytes of gradients that are summed by one collective while backward runs; DistributedDataParallel's default"""
SPIN_SECONDS = 0.02
"""for which a rank polls the others without a pause; collectives in a step are over long before"""
TIMEOUT_SECONDS = 30 * 60.0
"""after which a rank gives up waiting, as torch's process groups do"""


class WorkerLost(RuntimeError):
    """Another rank is gone."""


def world_size() -> int:
    """How many ranks there are; 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """The rank of this process; 0 without a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


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


def all_reduce(x: Tensor, *, overwrite: bool = False) -> Tensor:
    """Σ over ranks of `x`, any shape, the same bits on all; `x` itself without a process group or for a single rank.

    `overwrite` allows the sum to take the place of `x`, which saves a copy of it on a GPU. Raises WorkerLost (by Gloo
    and NCCL: RuntimeError) if a rank is gone.

    Without shared memory small CPU tensors are exchanged all to all and summed here, which takes Gloo a fraction of the
    time of its all-reduce (`tests/bench/all_reduce.py`). Gloo has no all-to-all of GPU tensors.
    """
    if world_size() == 1:
        return x
    if x.device.type == "cpu":
        memory = _memory()
        if memory is not None:
            return memory.all_reduce(x)
        if x.numel() * world_size() < SMALL_ELEMENTS:
            flat = x.flatten()
            everyones = flat.new_empty(world_size() * flat.numel())
            dist.all_to_all_single(everyones, flat.repeat(world_size()))
            return everyones.view(world_size(), -1).sum(0, dtype=x.dtype).view(x.shape)
    summed = x if overwrite and x.is_contiguous() else x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(summed)
    return summed


def average_gradients(tensors: list[Tensor]) -> None:
    """Replace tensors by their means over ranks, by one flat sum. Why not DDP: `tests/bench/all_reduce.py`."""
    if tensors and world_size() > 1:
        _write_means(tensors, all_reduce(_flatten(tensors), overwrite=True))


def _flatten(tensors: list[Tensor]) -> Tensor:
    """All elements in one new tensor, `[elements]`."""
    return torch.cat([x.flatten() for x in tensors])


def _write_means(tensors: list[Tensor], summed: Tensor) -> None:
    """Fill tensors with `summed / world`, where `summed` is the sum over ranks of what `_flatten` made of them."""
    means = summed.div_(world_size()).split([x.numel() for x in tensors])
    for tensor, part in zip(tensors, means, strict=True):
        tensor.copy_(part.view_as(tensor))


def gradient_averager(
    parameters: Iterable[nn.Parameter],
) -> Callable[[list[Tensor]], None] | None:
    """What averages the gradients of `parameters` over ranks: `GradientBuckets` where NCCL sums, else one flat sum.

    None without other ranks. Gloo and shared memory need the cores that backward runs on, so overlapping gains nothing.
    """
    if world_size() == 1:
        return None
    parameters = list(parameters)
    devices = {p.device.type for p in parameters}
    by_nccl = all(f"{device}:nccl" in dist.get_backend_config().split(",") for device in devices)
    return GradientBuckets(parameters) if by_nccl else average_gradients


def during_last_backward(averager: Callable[[list[Tensor]], None] | None) -> contextlib.AbstractContextManager[None]:
    """A context for the backward pass that completes a player's gradients: there, buckets are summed as they fill."""
    return averager.armed() if isinstance(averager, GradientBuckets) else contextlib.nullcontext()


class GradientBuckets:
    """Means of gradients over ranks, summed in buckets while backward still runs: Li et al. 2020, section 3.2.

        averager = GradientBuckets(module.parameters())
        with averager.armed():     # around the last backward pass of a turn, the one that completes the gradients
            loss.backward()
        averager(gradients)        # waits, and replaces every `.grad` by its mean: as `average_gradients`

    Buckets hold parameters in reverse order, since backward reaches the last layers first. They are fixed at the start
    (DistributedDataParallel regroups them after one step): a ring adds an element in an order that depends on its place
    in the bucket, so a resume is exact only with the same buckets. They are launched in one order on all ranks, as
    collectives must be. A parameter without a gradient is left out, and must be without one on all ranks.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], bucket_bytes: int = BUCKET_BYTES):
        self.buckets = _bucketed(list(parameters)[::-1], bucket_bytes)
        self._armed = False
        self._missing = [set[int]() for _ in self.buckets]
        """ids of the parameters whose gradient in the armed pass is not yet there"""
        self._launched: list[tuple[list[Tensor], Tensor, dist.Work] | None] = []
        """(gradients, their flat sum, what to wait for) of the first buckets; None for one without gradients"""
        arrived = weakref.WeakMethod(self._on_gradient_ready)  # the garbage collector cannot see a cycle through a hook

        def hook_for(index: int) -> Callable[[Tensor], None]:
            def hook(parameter: Tensor) -> None:
                if (method := arrived()) is not None:
                    method(index, parameter)

            return hook

        for index, bucket in enumerate(self.buckets):
            for parameter in bucket:
                parameter.register_post_accumulate_grad_hook(hook_for(index))

    @contextlib.contextmanager
    def armed(self) -> Iterator[None]:
        """Inside, exactly one backward pass of these parameters runs; each bucket's sum starts once it is complete."""
        if self._launched:
            raise RuntimeError("gradients are being summed: arm only the last backward pass before they are averaged")
        self._missing = [{id(p) for p in bucket} for bucket in self.buckets]
        self._armed = True
        try:
            yield
        finally:
            self._armed = False

    def _on_gradient_ready(self, index: int, parameter: Tensor) -> None:
        """Take note of a gradient. Fires once for each backward pass, also if a parameter is used several times."""
        if not self._armed:
            return
        if id(parameter) not in self._missing[index]:
            raise RuntimeError("a second backward pass while its gradients are being summed: arm only the last one")
        self._missing[index].remove(id(parameter))
        while len(self._launched) < len(self.buckets) and not self._missing[len(self._launched)]:
            self._launch()

    def _launch(self) -> None:
        """Start the sum of the next bucket."""
        gradients = [p.grad for p in self.buckets[len(self._launched)] if p.grad is not None]
        if not gradients:
            self._launched.append(None)
            return
        flat = _flatten(gradients)
        work = dist.all_reduce(flat, async_op=True)
        assert work is not None
        self._launched.append((gradients, flat, work))

    def __call__(self, gradients: list[Tensor]) -> None:
        """Sum what is not yet being summed, wait for all, and replace each `.grad` by its mean.

        `gradients`, which are those of all parameters, are here for the signature of `average_gradients` alone.
        """
        while len(self._launched) < len(self.buckets):
            self._launch()
        launched, self._launched = self._launched, []
        for started in launched:
            if started is not None:
                gradients, summed, work = started
                work.wait()
                _write_means(gradients, summed)


def _bucketed(parameters: list[nn.Parameter], bucket_bytes: int) -> list[list[nn.Parameter]]:
    """Parameters in their order, cut where a bucket would exceed `bucket_bytes` or mix types or devices."""
    buckets: list[list[nn.Parameter]] = []
    size, last = 0, None
    for parameter in parameters:
        bytes_, kind = parameter.numel() * parameter.element_size(), (parameter.dtype, parameter.device)
        if not buckets or kind != last or size + bytes_ > bucket_bytes:
            buckets.append([])
            size, last = 0, kind
        buckets[-1].append(parameter)
        size += bytes_
    return buckets


@dataclass
class _Memory:
    """Shared memory of the ranks of one machine: each writes its part, publishes a counter, waits for the others and
    sums all parts.

    A collective by Gloo puts threads to sleep and wakes them, which can take longer than a small step's work
    (`tests/bench/all_reduce.py`). Here a rank polls, yielding its core to other processes.
    There are two sets of slots, used in turn: a rank that has reached collective k + 1 has read all of collective k,
    so its slots are free for k + 2. As for torch's collectives, all ranks must bring the same sizes in the same order.
    """

    file: BinaryIO
    """each rank keeps one byte of it locked while it lives"""
    heads: memoryview
    """the number of each rank's last collective, a cache line apart"""
    slots: Tensor
    """bytes, `[2, world, SLOT_BYTES]`"""
    rank: int
    collectives: int = 0

    def all_reduce(self, x: Tensor) -> Tensor:
        flat, size = x.flatten(), SLOT_BYTES // x.element_size()
        summed = torch.empty_like(flat)
        for piece, into in zip(flat.split(size), summed.split(size), strict=True):
            parts = self.slots[self.collectives % 2, :, : piece.numel() * piece.element_size()].view(x.dtype)
            parts[self.rank].copy_(piece)
            self.synchronise()
            into.copy_(parts.sum(0, dtype=x.dtype))
        return summed.view(x.shape)

    def synchronise(self) -> None:
        """Wait for all ranks. x86 keeps the order of stores: who sees a counter sees the data written before it."""
        self.collectives += 1
        self.heads[self.rank * CACHE_LINE_BYTES // 8] = self.collectives
        began = looked = time.monotonic()
        for other in range(self.slots.shape[1]):
            while self.heads[other * CACHE_LINE_BYTES // 8] < self.collectives:
                os.sched_yield()
                now = time.monotonic()
                if now - began > SPIN_SECONDS:
                    time.sleep(SPIN_SECONDS / 100)
                if now - looked > 1.0:
                    looked = now
                    if not self._is_alive(other) and self.heads[other * CACHE_LINE_BYTES // 8] < self.collectives:
                        raise WorkerLost(f"rank {other} is gone")
                if now - began > TIMEOUT_SECONDS:
                    raise WorkerLost(
                        f"rank {other} did not reach the collective within {TIMEOUT_SECONDS / 60:.0f} minutes"
                    )

    def _is_alive(self, other: int) -> bool:
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
            made, name[0] = _allocate(world * (CACHE_LINE_BYTES + 2 * SLOT_BYTES))
    try:
        dist.broadcast_object_list(name)
        memory = None
        with contextlib.suppress(OSError):
            # rank 0 must not open it again: a process that closes a file loses all its locks on it
            file = made or os.fdopen(os.open(name[0], os.O_RDWR), "r+b")
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, rank)
            shared = mmap.mmap(file.fileno(), 0)
            heads = memoryview(shared)[: world * CACHE_LINE_BYTES].cast("q")
            slots = torch.frombuffer(shared, dtype=torch.uint8, offset=world * CACHE_LINE_BYTES)
            memory = _Memory(file, heads, slots.view(2, world, SLOT_BYTES), rank)
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
