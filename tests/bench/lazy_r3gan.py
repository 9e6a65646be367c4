"""What lazy penalties save R3GAN, and what they cost in quality.

    python tests/bench/lazy_r3gan.py [--every 1,4,8,16] [--kimg 40] [--seeds 1]

Speed: CPU seconds of a step of the shipped `r3gan`, plain and with R1 and R2, on one thread; paid every k-th
step they cost a k-th. Quality: the Fréchet distance (`quality/SPACE.fd`) after trainings on `data/prepared`, judged by
`data/reference` (run `dvc repro reference` first). `--kimg 0` leaves them out. The table is Markdown.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time

import torch

from ganlib import shards
from ganlib.build import build_game
from ganlib.config import load_params, override
from ganlib.game import Batch, Learner, adversarial_step
from ganlib.health import quality_name
from ganlib.losses import LOSSES
from ganlib.noise import Noise
from ganlib.trainer import train
from pipelines.training import keep_freed_memory


def seconds_of_a_step(params, *, penalties, steps=7):
    """CPU time, which other work on the machine hardly changes; a median."""
    spec = shards.read_spec("data/prepared")
    game = build_game(params, spec)
    terms = tuple(dataclasses.replace(term, every=1) for term in game.terms if term.name in params.game.penalties)
    game = dataclasses.replace(game, terms=terms if penalties else ())
    players = [
        Learner(m.to(memory_format=torch.channels_last), torch.optim.Adam(m.parameters(), fused=True), 2e-4)
        for m in (game.generator, game.discriminator)
    ]
    size = params.game.batch
    sample = torch.rand(size, *spec.shape).mul(2).sub(1).to(memory_format=torch.channels_last)
    data = {"sample": sample, "label": torch.arange(size) % max(len(spec.classes), 1)}
    taken = []
    for step in range(steps + 1):
        start = time.process_time()
        turns = [[Batch(data, Noise(0, step, size=size))]]
        adversarial_step(game, LOSSES[params.game.loss], *players, turns, step=step, kimg=0.0)
        taken.append(time.process_time() - start)
    return statistics.median(taken[1:])


def quality(params, every, seed, kimg):
    penalties = {name: {"weight": p.weight, "every": every} for name, p in params.game.penalties.items()}
    params = override(params, {"penalties": penalties})
    cfg = params.train.model_copy(update={"kimg": kimg, "report_kimg": kimg, "checkpoint_kimg": kimg})
    rows = []
    train(
        params.model_copy(update={"train": cfg, "seed": seed}),
        lambda row, _: rows.append(row),
        prepared="data/prepared",
        reference="data/reference",
    )
    return rows[-1][quality_name(rows[-1])]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--every", default="1,4,8,16")
    parser.add_argument("--kimg", type=float, default=40)
    parser.add_argument("--seeds", type=int, default=1)
    args = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(1)
    params = load_params().model_copy(update={"model": "r3gan"})
    plain, full = (seconds_of_a_step(params, penalties=on) for on in (False, True))
    print(f"a step: {plain * 1e3:.0f} ms plain, {full * 1e3:.0f} ms with penalties\n")
    print("| every | images/s of a CPU core | quality/fd, by seed |\n|---|---|---|", flush=True)
    for every in map(int, args.every.split(",")):
        speed = params.game.batch / (plain + (full - plain) / every)
        found = [quality(params, every, seed, args.kimg) for seed in range(args.seeds)] if args.kimg else []
        print(f"| {every} | {speed:.0f} | {', '.join(f'{fd:.1f}' for fd in found)} |", flush=True)


if __name__ == "__main__":
    main()
