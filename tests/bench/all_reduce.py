"""How gradients are averaged over two ranks on one machine: one flat sum after backward, or DDP.

    python tests/bench/all_reduce.py

Milliseconds for forward, backward and averaging of each player of the default DCGAN (half of a batch of 128 a rank, one
thread a rank), and of the averaging alone; then Gloo's all-reduce against the shared memory of
`ganlib.distributed` by size.
"""

from __future__ import annotations

import copy
import os
import statistics
import tempfile
import time

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from ganlib import distributed
from ganlib.data import image
from ganlib.data._spec import Spec
from ganlib.models import dcgan
from pipelines.training import keep_freed_memory


def milliseconds(step, rounds=7, steps=20):
    found = []
    for round in range(rounds + 1):
        dist.barrier()
        start = time.perf_counter()
        for _ in range(steps):
            step()
        if round:
            found.append((time.perf_counter() - start) / steps * 1e3)
    return statistics.median(found)


class Answer(torch.nn.Module):
    """A player whose answer is one tensor: images or logits."""

    def __init__(self, player):
        super().__init__()
        self.player = player

    def forward(self, x, labels):
        answer = self.player(x, labels)
        return answer if isinstance(answer, torch.Tensor) else answer.logits


def rank_main(rank, world, rendezvous):
    keep_freed_memory()
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world)

    def say(*words):
        if rank == 0:
            print(*words, flush=True)

    spec = Spec(image.Config(resolution=(28, 28), channels=1), "image", tuple("0123456789"), {}, "")
    game = dcgan.build(dcgan.Config(generator_norm="none"), spec)
    labels = torch.arange(64) % 10
    inputs = {"generator": torch.randn(64, 64), "discriminator": torch.rand(64, 1, 28, 28)}
    for player, x in inputs.items():
        module = Answer(getattr(game, player)).to(memory_format=torch.channels_last)
        wrapped = DistributedDataParallel(copy.deepcopy(module), gradient_as_bucket_view=True)

        def by_ddp(wrapped=wrapped, x=x):
            wrapped.zero_grad()
            wrapped(x, labels).mean().backward()

        def flat(module=module, x=x):
            module.zero_grad()
            module(x, labels).mean().backward()
            distributed.average_gradients([p.grad for p in module.parameters()])

        def alone(module=module, x=x):
            module.zero_grad()
            module(x, labels).mean().backward()

        size = sum(p.numel() for p in module.parameters())
        figures = {"DDP": milliseconds(by_ddp), "flat": milliseconds(flat), "no averaging": milliseconds(alone)}
        say(f"{player} ({size} parameters):", *(f"{name} {ms:.1f} ms" for name, ms in figures.items()))
    for size in (64, 1024, 16_384, 65_536, 262_144, 1_048_576):
        x = torch.zeros(size)
        figures = {
            "all-reduce": milliseconds(lambda x=x: dist.all_reduce(x)),
            "shared memory": milliseconds(lambda x=x: distributed.all_reduce(x)),
        }
        memory, distributed._memories[dist.group.WORLD] = distributed._memory(), None
        figures["ours without it"] = milliseconds(lambda x=x: distributed.all_reduce(x))
        distributed._memories[dist.group.WORLD] = memory
        say(f"{size:8} numbers:", *(f"{name} {ms:.2f} ms" for name, ms in figures.items()))
    dist.destroy_process_group()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        mp.spawn(rank_main, (2, f"{scratch}/rendezvous"), nprocs=2)
