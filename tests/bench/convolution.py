"""Derivatives of convolutions, ours against PyTorch's: `ganlib/convolution.py`.

    python tests/bench/convolution.py [--device cpu] [--bfloat16] [--rounds 15] [--batch 16]

One row for each convolution: the time of a forward and a backward pass, and of a gradient penalty like R1 (the gradient
with respect to the input, then that of its square). Then a step of `r3gan` with R1 and R2 at every step, as
shipped and as wide as takes 8 to 32 groups. All run in turns in one process on one thread, so that other work on the
machine falls on both alike; times are medians of rounds. CPU time on a CPU, the time of events on a GPU. The tables are
Markdown.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import statistics
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from ganlib import convolution
from ganlib.build import build_game
from ganlib.config import load_params, parse_params
from ganlib.data import image
from ganlib.data._spec import Spec
from ganlib.game import Batch, Learner, Noise, adversarial_step
from ganlib.losses import LOSSES
from ganlib.models import r3gan
from pipelines.training import keep_freed_memory

ROOT = Path(__file__).parents[2]
CASES = {  # channels, groups, kernel, stride, padding, side
    "3x3, groups of 16": (128, 8, 3, 1, 1, 14),
    "3x3, groups of 16, large": (128, 8, 3, 1, 1, 28),
    "3x3": (64, 1, 3, 1, 1, 28),
    "1x1": (64, 1, 1, 1, 0, 28),
    "4x4 depthwise, constant": (64, 64, 4, 1, 2, 28),
    "4x4 depthwise, constant, halving": (64, 64, 4, 2, 1, 28),
}


def seconds(fn, device):
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        fn()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3
    start = time.process_time()
    fn()
    return time.process_time() - start


def medians(fns, args):
    """The median seconds of each function; they take turns, in an order that alternates."""
    taken = [[] for _ in fns]
    for round in range(args.rounds + 2):
        order = range(len(fns)) if round % 2 else reversed(range(len(fns)))
        for i in order:
            spent = seconds(fns[i], args.device)
            if round > 1:  # the first ones warm up
                taken[i].append(spent)
    return [statistics.median(times) for times in taken]


def one_convolution(name, layout, args):
    channels, groups, kernel, stride, padding, side = CASES[name]
    weight = torch.ones(channels, channels // groups, kernel, kernel, device=args.device).to(memory_format=layout)
    bias = None
    if "constant" not in name:
        weight.requires_grad_()
        bias = torch.zeros(channels, device=args.device, requires_grad=True)
    x = torch.randn(args.batch, channels, side, side, device=args.device).to(memory_format=layout).requires_grad_()

    def forward(module):
        return module.conv2d(x, weight, bias, stride=stride, padding=padding, groups=groups)

    if "constant" in name:

        def forward(module):
            if module is F:
                return F.conv2d(x, weight, stride=stride, padding=padding, groups=groups)
            return convolution.binomial_filter(x, stride=stride, padding=padding)

    def once(module):
        with args.autocast():
            y = forward(module)
        y.backward(torch.ones_like(y))

    def penalty(module):
        with args.autocast():
            y = forward(module)
            with convolution.no_weight_gradients():
                (slope,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
            slope.square().sum().backward()

    modules = (_Ours, F)
    times = medians([lambda fn=fn, module=module: fn(module) for fn in (once, penalty) for module in modules], args)
    cells = [f"{ours * 1e3:.2f} | {theirs * 1e3:.2f} | x{theirs / ours:.2f}" for ours, theirs in (times[:2], times[2:])]
    print(f"| {name} | {str(layout)[6:]} | " + " | ".join(cells) + " |", flush=True)


class _Ours:
    @staticmethod
    def conv2d(*args, **options):
        with convolution.differentiated_twice():
            return convolution.conv2d(*args, **options)


def with_pytorchs(fn):
    """`fn` with PyTorch's convolutions in r3gan."""

    def filtered(x, gain, *, stride, padding, up):
        resample = F.conv_transpose2d if up else F.conv2d
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0], device=x.device) / 8
        kernel = torch.outer(taps, taps * gain).expand(x.shape[1], 1, 4, 4)
        return resample(x, kernel, stride=stride, padding=padding, groups=len(kernel))

    def wrapped():
        kept = convolution._is_worthwhile, r3gan.binomial_filter
        convolution._is_worthwhile, r3gan.binomial_filter = lambda *_: False, filtered
        try:
            fn()
        finally:
            convolution._is_worthwhile, r3gan.binomial_filter = kept

    return wrapped


def step_of_r3gan(args, size, **network):
    written = load_params(ROOT / "params.yaml").model_dump(mode="json") | {"model": "r3gan"}
    written["models"]["r3gan"]["network"].update(network)
    params = parse_params(written)
    spec = Spec(image.Config(resolution=(28, 28), channels=1), "image", tuple("0123456789"), {}, "")
    torch.manual_seed(0)
    game = build_game(params, spec)
    game = dataclasses.replace(game, terms=tuple(dataclasses.replace(term, every=1) for term in game.terms))
    players = [
        Learner(
            m.to(args.device, memory_format=torch.channels_last), torch.optim.Adam(m.parameters(), fused=True), 2e-4
        )
        for m in (game.generator, game.discriminator)
    ]
    sample = torch.rand(size, 1, 28, 28, device=args.device).mul(2).sub(1).to(memory_format=torch.channels_last)
    data = {"sample": sample, "label": torch.arange(size, device=args.device) % 10}

    def step():
        turns = [[Batch(data, Noise(0, size=size, device=args.device))]]
        loss = LOSSES[params.game.loss]
        adversarial_step(game, loss, *players, turns, step=0, kimg=0.0, autocast=args.autocast)

    ours, theirs = medians([step, with_pytorchs(step)], args)
    name = ", ".join(f"{key} {value}" for key, value in network.items()) or "as shipped"
    print(f"| {name} | {size} | {ours * 1e3:.0f} | {theirs * 1e3:.0f} | x{theirs / ours:.2f} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--bfloat16", action="store_true")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch", type=int, default=16)
    args = parser.parse_args()
    args.autocast = contextlib.nullcontext
    if args.bfloat16:
        args.autocast = lambda: torch.autocast(args.device.type, torch.bfloat16)
    torch.set_num_threads(1)
    keep_freed_memory()
    print("| ms | layout | once, ours | PyTorch's | | penalty, ours | PyTorch's | |\n|---|---|---|---|---|---|---|---|")
    for name in CASES:
        for layout in (torch.contiguous_format, torch.channels_last):
            one_convolution(name, layout, args)
    print("\n| r3gan, ms | batch | ours | PyTorch's | |\n|---|---|---|---|---|")
    step_of_r3gan(args, 16)
    step_of_r3gan(args, 64)
    step_of_r3gan(args, 8, width=64, max_width=256)


if __name__ == "__main__":
    main()
