"""Our training step against a plain PyTorch DCGAN loop of the same networks: images/s, side by side.

    python tests/bench/step.py [--size 28] [--width 32] [--batch 64] [--threads 2]

Both train the same game (non-saturating, Adam) on the same data, without penalties, each in a process of its own, ours
set up as `pipelines.launch.work` does. They take short turns, so that whatever else the machine does falls on both. The
plain loop is that of the PyTorch tutorials: the discriminator on reals, then on fakes, then the generator through the
discriminator. The full recipe, with its R1 penalty and moving average, is timed beside them.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import statistics
import time

import torch
import torch.multiprocessing as mp
from torch import nn

from ganlib.data._spec import Spec
from ganlib.game import Batch, Learner, Noise, Term, adversarial_step
from ganlib.losses import LOSSES
from ganlib.models import dcgan
from ganlib.penalties import PENALTIES
from ganlib.trainer import average_weights
from pipelines.launch import keep_memory

PLAIN = "plain loop"


def ours(game, batch_size, data, labels, *, full):
    terms = (Term("r1", "discriminator", PENALTIES["r1"], 0.1, every=8),) if full else ()
    game = dataclasses.replace(game, terms=terms)
    for module in (game.generator, game.discriminator):
        module.to(memory_format=torch.channels_last)
    data = data.to(memory_format=torch.channels_last)
    players = [
        Learner(m, torch.optim.Adam(m.parameters(), lr=2e-4, betas=(0.5, 0.99), fused=True), 2e-4)
        for m in (game.generator, game.discriminator)
    ]
    average = copy.deepcopy(game.generator).requires_grad_(False)

    def step(i):
        batch = Batch({"sample": data, "label": labels}, Noise(0, i, size=batch_size))
        adversarial_step(game, LOSSES["non_saturating"], *players, [[batch]], step=i, kimg=0.0)
        if full:
            average_weights(average, game.generator, 0.999)

    return step


def plain(game, batch_size, data, labels):
    netG, netD = game.generator, game.discriminator
    optimizerG = torch.optim.Adam(netG.parameters(), lr=2e-4, betas=(0.5, 0.99))
    optimizerD = torch.optim.Adam(netD.parameters(), lr=2e-4, betas=(0.5, 0.99))
    criterion = nn.BCEWithLogitsLoss()
    ones, zeros = torch.ones(batch_size), torch.zeros(batch_size)

    def step(i):
        netD.zero_grad()
        criterion(netD(data, labels).logits, ones).backward()
        fake = netG(torch.randn(batch_size, 64), labels)
        criterion(netD(fake.detach(), labels).logits, zeros).backward()
        optimizerD.step()
        netG.zero_grad()
        criterion(netD(fake, labels).logits, ones).backward()
        optimizerG.step()

    return step


def serve(name, args, turns, times):
    """A process: at each turn, some steps of one loop; answers the seconds they took."""
    torch.set_num_threads(args.threads)
    shape = (args.channels, args.size, args.size)
    spec = Spec("image", "image", shape, tuple("0123456789"), {}, "")
    torch.manual_seed(0)
    game = dcgan.build(dcgan.Config(width=args.width), spec)
    data, labels = torch.rand(args.batch, *shape) * 2 - 1, torch.arange(args.batch) % 10
    if name == PLAIN:
        step = plain(game, args.batch, data, labels)
    else:
        keep_memory()
        step = ours(game, args.batch, data, labels, full="R1" in name)
    while turns.get():
        start = time.perf_counter()
        for i in range(args.steps):
            step(i)
        times.put(time.perf_counter() - start)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=28)
    parser.add_argument("--channels", type=int, default=1)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=20)
    args = parser.parse_args()
    context = mp.get_context("spawn")
    loops = {name: (context.Queue(), context.Queue()) for name in (PLAIN, "our step", "our step, R1 and average")}
    for name, queues in loops.items():
        context.Process(target=serve, args=(name, args, *queues), daemon=True).start()
    speeds = {name: [] for name in loops}
    for round in range(args.rounds + 1):
        for name, (turns, times) in loops.items():
            turns.put(True)
            seconds = times.get()
            if round:  # the first warms up
                speeds[name].append(args.steps * args.batch / seconds)
    for turns, _ in loops.values():
        turns.put(False)
    base = speeds[PLAIN]
    print(
        f"{args.channels}x{args.size}x{args.size}, width {args.width}, batch {args.batch}, {args.threads} threads, "
        f"median of {args.rounds} rounds"
    )
    for name, found in speeds.items():
        ratios = [a / b for a, b in zip(found, base, strict=True)]
        print(
            f"{name:26} {statistics.median(found):7.0f} images/s   x{statistics.median(ratios):.2f} "
            f"({min(ratios):.2f} to {max(ratios):.2f})"
        )


if __name__ == "__main__":
    main()
