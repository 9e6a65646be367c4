"""Every family's training step against a hand-written PyTorch loop of the same networks: images/s, side by side.

    python tests/bench/step.py [--families dcgan resnet ...] [--size 28] [--channels 1] [--batch 64] [--threads 2]
    python tests/bench/step.py --families stylegan2 --profile
    python tests/bench/step.py --families stylegan2 --preset stylegan2_ffhq --size 1024 --channels 3 --batch 1 --first 3

Each family has the networks, loss and terms of `params/models`, with ten labels. The plain loop is that of PyTorch's
tutorials (the discriminator on reals and on fakes, then the generator through the discriminator, Adam as it comes) and
plays the same loss; ours is timed without terms, as the plain loop is, and as it is shipped: with its penalties, its
own terms and the moving average. `cyclegan` and `cut` have their generators' terms in all three, as these are their
loss; pools and jitter are ours alone. Each loop has a process of its own, ours set up as by `train_worker`, and
they take short turns, so that other load on the machine falls on all. Memory is the process's peak, beyond what it
held before its first step. `--profile` says where the time of the shipped step goes. `--first` takes so many steps of
it, unconditional, and says what each took; all lazy terms are due at the first. `--against CHECKOUT` compares the CPU
time of the shipped step with that of another checkout of this project, in turns; `--every 1` applies all terms at every
step. `--authors` adds the step of `cyclegan` and `cut` by their authors' own code, a clone of
https://github.com/taesungp/contrastive-unpaired-translation, with networks of the same sizes; say `--channels 3`.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import json
import resource
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import torch
import torch.multiprocessing as mp
import unpaired_authors

from ganlib import device as devices
from ganlib.build import build_game
from ganlib.config import load_params, parse_params
from ganlib.data import image, pair, unpaired
from ganlib.data._spec import Spec
from ganlib.game import Batch, Learner, Round, adversarial_step, discriminate, map_tensors
from ganlib.losses import LOSSES
from ganlib.noise import Noise
from ganlib.trainer import update_ema
from pipelines.training import keep_freed_memory

ROOT = Path(__file__).parents[2]
PLAIN, OURS, SHIPPED, AUTHORS = "plain loop", "our step", "as shipped", "the authors' step"
UNPAIRED = ("cyclegan", "cut")
FAMILIES = ("mlp", "dcgan", "resnet", "stylegan2", "r3gan", "pix2pix", *UNPAIRED)


def params_of(family, args):
    chosen = {"model": family, "preset": args.preset}
    return parse_params(load_params(ROOT / "params.yaml").model_dump(mode="json") | chosen)


def game_of(family, args):
    """The family's game as `params/models` has it, its loss, and data for one batch."""
    params = params_of(family, args)
    translates = family in ("pix2pix", *UNPAIRED)
    size = max(64, args.size) if translates else args.size
    classes = () if translates or args.first else tuple("0123456789")
    kind = pair if family == "pix2pix" else unpaired if family in UNPAIRED else image
    channels = (args.channels, args.channels) if kind is pair else args.channels
    spec = Spec(kind.Config(resolution=(size, size), channels=channels), kind.MODALITY, classes, {}, "")
    torch.manual_seed(0)
    game = build_game(params, spec)
    data = {name: torch.rand(args.batch, *part.shape) * 2 - 1 for name, part in spec.parts.items()}
    if classes:
        data["label"] = torch.arange(args.batch) % 10
    return game, LOSSES[params.game.loss], data


def loss_terms(game):
    """The terms without which there is no such model."""
    family = type(game.generator).__module__.rpartition(".")[2]
    return tuple(term for term in game.terms if term.player == "generator") if family in UNPAIRED else ()


def ours(game, loss, data, *, shipped):
    if not shipped:
        game = dataclasses.replace(game, terms=loss_terms(game))
    players = (game.generator, game.discriminator)
    layout = devices.memory_format(torch.device("cpu"), players, channels_last=True)
    for module in players:
        module.to(memory_format=layout)
    data = {name: x.to(memory_format=layout) if x.dim() == 4 else x for name, x in data.items()}
    learners = [
        Learner(m, torch.optim.Adam(m.parameters(), lr=2e-4, betas=(0.5, 0.99), fused=True), 2e-4) for m in players
    ]
    average = copy.deepcopy(game.generator).requires_grad_(False)

    def step(i):
        batch = Batch(data, Noise(0, i, size=len(data["sample"])))
        adversarial_step(game, loss, *learners, [[batch]], step=i, kimg=0.0)
        if shipped:
            update_ema(average, game.generator, 0.999)

    return step


def plain(game, loss, data, autocast=contextlib.nullcontext):
    terms = loss_terms(game)
    to_g = torch.optim.Adam(game.generator.parameters(), lr=2e-4, betas=(0.5, 0.99))
    to_d = torch.optim.Adam(game.discriminator.parameters(), lr=2e-4, betas=(0.5, 0.99))

    def step(i):
        noise = Noise(0, i, size=len(data["sample"]), device=data["sample"].device)
        batch = Batch(data, noise)
        deal = game.deal(batch)

        def logits(sample):
            return discriminate(game, sample, deal.cond, noise).logits

        to_d.zero_grad()
        with autocast():
            fake = game.generator(deal.inputs, deal.cond)
            d_loss = loss.discriminator(logits(deal.real), logits(map_tensors(torch.detach, fake))).mean()
        d_loss.backward()
        to_d.step()
        to_g.zero_grad()
        with autocast():
            of_fake = logits(fake)
            g_loss = loss.generator(of_fake, logits(deal.real) if loss.paired else None).mean()
            round = Round(game, deal, batch, deal.real, fake, None, of_fake)
            for term in terms:
                g_loss = g_loss + term.weight * term.fn(round).mean()
        g_loss.backward()
        to_g.step()

    return step


def peak():
    """The most memory this process has held, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def serve(name, family, args, turns, answers):
    """A process: at each turn, some steps of one loop; answers the seconds they took and the peak of memory, in MB."""
    torch.set_num_threads(args.threads)
    if name in (OURS, SHIPPED):
        keep_freed_memory()
    if name == AUTHORS:
        game, _, data = game_of(family, args)
        step = unpaired_authors.step_of(args.authors, family, params_of(family, args).game.network, game, data)
    else:
        found = game_of(family, args)
        step = plain(*found) if name == PLAIN else ours(*found, shipped=name == SHIPPED)
    before = peak()
    while turns.get():
        start = time.perf_counter()
        for i in range(args.steps):
            step(i)
        answers.put((time.perf_counter() - start, peak() - before))


def compare(family, args):
    """A row of the table."""
    context = mp.get_context("spawn")
    names = (PLAIN, OURS, SHIPPED, *([AUTHORS] if args.authors and family in UNPAIRED else []))
    loops = {name: (context.Queue(), context.Queue()) for name in names}
    for name, queues in loops.items():
        context.Process(target=serve, args=(name, family, args, *queues), daemon=True).start()
    speeds, memory = {name: [] for name in loops}, {}
    for round in range(args.rounds + 1):
        for name, (turns, answers) in loops.items():
            turns.put(True)
            seconds, memory[name] = answers.get()
            if round:  # the first warms up
                speeds[name].append(args.steps * args.batch / seconds)
    for turns, _ in loops.values():
        turns.put(False)
    cells = [f"{statistics.median(speeds[PLAIN]):.0f} images/s, {memory[PLAIN]:.0f} MB"]
    for name in (OURS, SHIPPED):
        ratios = [a / b for a, b in zip(speeds[name], speeds[PLAIN], strict=True)]
        spread = f"x{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        cells.append(f"{spread}, {memory[name]:.0f} MB")
    if AUTHORS in loops:
        ratios = [a / b for a, b in zip(speeds[SHIPPED], speeds[AUTHORS], strict=True)]
        spread = f"x{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        cells.append(f"{statistics.median(speeds[AUTHORS]):.1f} images/s, {memory[AUTHORS]:.0f} MB: ours {spread}")
    print(f"| {family} | " + " | ".join(cells) + " |", flush=True)


KINDS = {  # of operators, by a part of their names
    "convolution": ("convolution", "conv2d", "conv_transpose"),
    "matrix products": ("mm", "linear", "bmm"),
    "normalisation": ("batch_norm", "instance_norm", "group_norm"),
    "optimiser, average": ("_fused_adam", "lerp", "_foreach"),
    "copies, layout": ("copy_", "clone", "contiguous", "cat", "fill_", "zero_"),
}


def profile(family, args):
    """Where the time of the shipped step goes, by kind of operator, and the most expensive ones."""
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    step = ours(*game_of(family, args), shipped=True)
    step(0)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        for i in range(16):  # a whole round of what is paid lazily
            step(i)
    spent, operators = Counter(), Counter()
    for event in profiler.key_averages():
        kind = next((k for k, names in KINDS.items() if any(n in event.key for n in names)), "everything else")
        spent[kind] += event.self_cpu_time_total
        operators[event.key] += event.self_cpu_time_total
    total = sum(spent.values())
    kinds = ", ".join(f"{kind} {amount / total:.0%}" for kind, amount in spent.most_common())
    print(f"{family}: {kinds}")
    print("  " + ", ".join(f"{name} {amount / total:.0%}" for name, amount in operators.most_common(8)), flush=True)


CHILD = """
import dataclasses, json, sys, time
from argparse import Namespace
root, family, args = sys.argv[1], sys.argv[2], Namespace(**json.loads(sys.argv[3]))
sys.path[:0] = [root, root + "/tests/bench"]
import step, torch
torch.set_num_threads(args.threads)
(getattr(step, "keep_freed_memory", None) or step.keep_memory)()
game, loss, data = step.game_of(family, args)
if args.every:
    game = dataclasses.replace(game, terms=tuple(dataclasses.replace(term, every=args.every) for term in game.terms))
play = step.ours(game, loss, data, shipped=True)
for _ in sys.stdin:
    start = time.process_time()
    for i in range(args.steps):
        play(i)
    print(time.process_time() - start, flush=True)
"""


def against(family, args):
    """The CPU time of another checkout's shipped step, as a ratio to this one's."""
    said = json.dumps({name: found for name, found in vars(args).items() if name != "against"})
    loops = [
        subprocess.Popen(
            [sys.executable, "-c", CHILD, str(root), family, said],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for root in (ROOT, args.against.resolve())
    ]
    ratios = []
    for round in range(args.rounds + 1):
        seconds = []
        for loop in loops:
            loop.stdin.write("\n")
            loop.stdin.flush()
            seconds.append(float(loop.stdout.readline()))
        if round:  # the first warms up
            ratios.append(seconds[1] / seconds[0])
    for loop in loops:
        loop.communicate()
    print(f"| {family} | x{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) |", flush=True)


def first(family, args):
    """What each of the first steps took."""
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    game, loss, data = game_of(family, args)
    sizes = (sum(p.numel() for p in m.parameters()) / 1e6 for m in (game.generator, game.discriminator))
    print("{}: generator {:.2f} M, discriminator {:.2f} M parameters".format(family, *sizes), flush=True)
    step = ours(game, loss, data, shipped=True)
    for i in range(args.first):
        start = time.process_time()
        step(i)
        print(f"step {i}: {time.process_time() - start:.1f} CPU-s, peak {peak() / 1024:.1f} GiB so far", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--families", nargs="+", default=list(FAMILIES))
    parser.add_argument("--size", type=int, default=28)
    parser.add_argument("--channels", type=int, default=1)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--preset", default="none")
    parser.add_argument("--first", type=int, default=0, metavar="STEPS")
    parser.add_argument("--against", type=Path, metavar="CHECKOUT")
    parser.add_argument("--authors", type=Path, metavar="REPOSITORY")
    parser.add_argument("--every", type=int, default=0, metavar="TURNS")
    args = parser.parse_args()
    if args.against:
        print(f"The shipped step of {ROOT} against that of {args.against}\n\n| | speed |\n|---|---|", flush=True)
        for family in args.families:
            against(family, args)
        return
    if args.first:
        for family in args.families:
            first(family, args)
        return
    if args.profile:
        for family in args.families:
            profile(family, args)
        return
    shape = f"{args.channels}x{args.size}x{args.size}, batch {args.batch}, {args.threads} threads"
    print(f"{shape}, median of {args.rounds} rounds\n\n| | {PLAIN} | {OURS} | {SHIPPED} | {AUTHORS} |")
    print("|---|---|---|---|---|", flush=True)
    for family in args.families:
        compare(family, args)


if __name__ == "__main__":
    main()
