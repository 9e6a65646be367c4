"""Sums over ranks: by shared memory on one machine, by Gloo elsewhere, with the same results."""

import contextlib
import copy
import gc
import os
import platform
import signal
import time
import weakref

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from runs import run_ranks

from ganlib import distributed

shared = pytest.mark.skipif(platform.machine() != "x86_64", reason="stores may be seen out of order")


def parts(rank, world):
    """What each rank brings: many sizes, several types, a layout of its own."""
    for step in range(40):
        rng = torch.Generator().manual_seed(step)
        size = (1, 3, 700, 40_000, 600_000)[step % 5]
        shares = [torch.randn(size, generator=rng) for _ in range(world)]
        yield shares[rank], torch.stack(shares).sum(0)
    shares = [torch.arange(12.0, dtype=torch.float64).view(3, 4).T * (r + 1) for r in range(world)]
    yield shares[rank], torch.stack(shares).sum(0)
    yield torch.tensor(rank + 1), torch.tensor(world * (world + 1) // 2)
    yield torch.tensor(0.5), torch.tensor(0.5 * world)
    yield torch.zeros(0), torch.zeros(0)


def check(rank, world, shared):
    for mine, expected in parts(rank, world):
        kept = mine.clone()
        found = distributed.all_reduce(mine)
        assert torch.equal(mine, kept)
        assert found.dtype == mine.dtype
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    mine, asked = torch.full((2, 3), rank + 1.0, requires_grad=True), torch.arange(world * 6.0).view(-1, 3)
    found = distributed.all_gather(mine)
    assert found.unique(dim=0).tolist() == [[r + 1.0] * 3 for r in range(world)]
    (found * asked * (rank + 1)).sum().backward()
    assert torch.equal(mine.grad, asked.view(world, 2, 3)[rank] * world * (world + 1) / 2)
    assert distributed.all_gather(torch.tensor([rank])).tolist() == list(range(world))
    tensors = [torch.full((2, 3), float(rank)), torch.full((4,), 2.0 * rank)]
    distributed.average_gradients(tensors)
    assert [t.unique().tolist() for t in tensors] == [[(world - 1) / 2], [world - 1.0]]
    assert (distributed._memory() is not None) == shared


def at_one_table(rank, world, _):
    check(rank, world, True)


def without_room(rank, world, _):
    def allocate(*_):
        raise OSError(28, "No space left on device")

    os.posix_fallocate = allocate
    check(rank, world, False)


def elsewhere(rank, world, _):
    """The last rank cannot see what rank 0 made."""
    if rank == world - 1:
        distributed.mmap.mmap = lambda *_: (_ for _ in ()).throw(OSError("no such memory here"))
    check(rank, world, False)


class Network(torch.nn.Module):
    """With a parameter used twice in a pass, one frozen, and one used only where `wide`."""

    def __init__(self):
        super().__init__()
        self.first = torch.nn.Conv2d(3, 8, 3, padding=1).to(memory_format=torch.channels_last)
        self.twice = torch.nn.Parameter(torch.randn(8, 8) / 3)
        self.frozen = torch.nn.Parameter(torch.ones(8), requires_grad=False)
        self.unused = torch.nn.Parameter(torch.ones(5))
        self.precise = torch.nn.Parameter(torch.ones(8, dtype=torch.float64))
        self.last = torch.nn.Linear(8, 1)

    def forward(self, x, wide):
        x = self.first(x).tanh().mean((2, 3)) * self.frozen
        x = torch.tanh(x @ self.twice) @ self.twice * self.precise.to(x)
        return self.last(x) * (self.unused.sum() if wide else 1.0)


def microbatch_loss(network, rank, part):
    """A turn of a discriminator: two passes in one graph, and R1 by double backward."""
    rng = torch.Generator().manual_seed(100 * rank + part)
    real, fake = (torch.randn(4, 3, 5, 5, generator=rng) for _ in range(2))
    real.requires_grad_()
    logits = network(real, wide=part == 0)
    (slopes,) = torch.autograd.grad(logits.sum(), real, create_graph=True)
    return logits.mean() - network(fake, wide=False).mean() + slopes.square().sum()


def in_buckets(rank, world, _):
    torch.manual_seed(0)
    flat = Network()
    for bucket_bytes, buckets in ((1, 7), (900, 4), (2**20, 3)):
        bucketed = copy.deepcopy(flat)
        averager = distributed.GradientBuckets([p for p in bucketed.parameters() if p.requires_grad], bucket_bytes)
        assert len(averager.buckets) == buckets
        for turn in range(2):
            for network in (flat, bucketed):
                network.zero_grad()
            for part in (turn, 2):  # at turn 0, `unused` has a gradient, and of the first microbatch alone
                microbatch_loss(flat, rank, part).backward()
                loss = microbatch_loss(bucketed, rank, part)
                with averager.armed() if part == 2 else contextlib.nullcontext():
                    assert not averager._launched, "a penalty's own derivative is no gradient"
                    loss.backward()
                assert (len(averager._launched) > 0) == (part == 2)
            distributed.average_gradients([p.grad for p in flat.parameters() if p.grad is not None])
            averager([p.grad for p in bucketed.parameters() if p.grad is not None])
            assert (bucketed.unused.grad is not None) == (turn == 0)
            for one, other in zip(flat.parameters(), bucketed.parameters(), strict=True):
                assert (one.grad is None) == (other.grad is None)
                if one.grad is not None:
                    torch.testing.assert_close(other.grad, one.grad, rtol=1e-6, atol=1e-7)
                    everyones = distributed.all_gather(other.grad[None])
                    assert all(torch.equal(x, other.grad) for x in everyones)


def in_buckets_unarmed(rank, world, _):
    """Everything is summed at the end, and arming twice or a second backward pass is refused."""
    network = torch.nn.Linear(2, 1)
    averager = distributed.GradientBuckets(network.parameters(), 1)
    network(torch.full((1, 2), float(rank))).sum().backward()
    averager([])
    assert network.weight.grad.tolist() == [[(world - 1) / 2] * 2]
    with averager.armed():
        network(torch.zeros(1, 2)).sum().backward()
        with pytest.raises(RuntimeError, match="a second backward pass"):
            network(torch.zeros(1, 2)).sum().backward()
    with pytest.raises(RuntimeError, match="arm only the last"), averager.armed():
        pass
    averager([])
    kept = weakref.ref(averager)
    del averager, network
    gc.collect()
    assert kept() is None
    assert distributed.gradient_averager([torch.zeros(1)]) is distributed.average_gradients


def late(rank, world, _):
    """Whoever waits for long finds that the others live."""
    for one in range(world):
        if rank == one:
            time.sleep(2.5)
        distributed.all_reduce(torch.zeros(1))


def deserted(rank, world, _):
    distributed.all_reduce(torch.zeros(1))
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    with pytest.raises(distributed.WorkerLost, match="rank 1 is gone"):
        distributed.all_reduce(torch.zeros(1))
    os._exit(0)  # the group cannot be left in good order


def enter(rank, world, scratch, act):
    dist.init_process_group("gloo", init_method=f"file://{scratch}/rendezvous", rank=rank, world_size=world)
    torch.set_num_threads(1)
    distributed.SHM = scratch
    act(rank, world, scratch)
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("act", "world"),
    [
        pytest.param(at_one_table, 2, marks=shared),
        pytest.param(at_one_table, 3, marks=shared),
        pytest.param(late, 2, marks=shared),
        (without_room, 2),
        (elsewhere, 3),
        (in_buckets, 2),
        (in_buckets, 3),
        (in_buckets_unarmed, 2),
    ],
)
def test_all_ranks_get_the_sum(act, world, tmp_path):
    run_ranks(enter, world, world, str(tmp_path), act)
    assert not list(tmp_path.glob("ganlib-*"))


def test_a_process_on_its_own_needs_no_group():
    x = torch.ones(3)
    assert distributed.all_reduce(x) is x
    assert distributed.all_gather(x) is x
    distributed.average_gradients([x])
    assert x.tolist() == [1.0] * 3
    assert distributed.gradient_averager([x]) is None
    with distributed.during_last_backward(None):
        pass


@shared
def test_a_rank_that_died_is_noticed(tmp_path):
    """Even where nobody has yet taken note of its end."""
    context = mp.get_context("spawn")
    stays, dies = (
        context.Process(target=enter, args=(rank, 2, str(tmp_path), deserted), daemon=True) for rank in (0, 1)
    )
    for process in (stays, dies):
        process.start()
    stays.join(60)  # and only then `dies`, a zombie until then
    dies.join(60)
    assert (stays.exitcode, dies.exitcode) == (0, -signal.SIGKILL)
