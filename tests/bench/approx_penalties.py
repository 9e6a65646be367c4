"""R1 and R2 by finite differences against the exact ones, full and lazy, on R3GAN: bias, speed, quality.

    python tests/bench/approx_penalties.py bias [--kimg 16]
    python tests/bench/approx_penalties.py speed [--rounds 5]
    python tests/bench/approx_penalties.py quality --minutes 2 --seeds 0 1 2 [--settings full lazy ...] [--out FILE]

`params/models/r3gan.yaml`, unconditional, on Fashion-MNIST padded to 32x32 (Debian: apt install
dataset-fashion-mnist; `--data` names the folder of its files) or `--data mnist`; one thread; time is CPU time.

Bias: the mean of the finite difference over that of r1 at 1,024 test images, for the discriminator of a short training
with the shipped penalties, in float32, as r1_approx computes it, and with logits of bfloat16 autocast. Speed: CPU
seconds of 8 steps, as a ratio to 8 without penalties; settings take turns, and the spread is over rounds. Quality:
FD(efficientnet-lite0@64) of 5,000 samples of the moving average against 10,000 reals, at equal CPU minutes
(`tests/bench/quality.py`).
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from quality import ROOT, SAMPLES, data_set, run, table

from ganlib import checkpoint, shards
from ganlib.build import build_game
from ganlib.config import load_params, override
from ganlib.data.image import decode
from ganlib.game import Batch, Deal, Learner, Noise, Round, adversarial_step, discriminate
from ganlib.losses import LOSSES
from ganlib.metrics.fd import distance, gaussian
from ganlib.penalties import R1Approx, r1
from ganlib.spaces.picture import efficientnet_lite0
from ganlib.trainer import train
from pipelines.training import keep_freed_memory

GAMMA = 0.1  # of the shipped r3gan


def both(suffix="", **options):
    return {f"r{i}{suffix}": {"weight": GAMMA} | options for i in (1, 2)}


SETTINGS = {
    "none": {},
    "full": both(),
    "lazy": both(every=8),  # as shipped
    "approx": both("_approx"),
    "approx, 1 of 4": both("_approx", batch_shrink=4),
    "approx, lazy": both("_approx", every=8),
    **{f"approx, sigma {sigma:g}": both("_approx", sigma=sigma) for sigma in (0.001, 0.03, 0.1)},
}


def game_of(penalties, prepared):
    params = load_params(ROOT / "params.yaml").model_copy(update={"model": "r3gan"})
    params = override(params, {"search": {}, "penalties": penalties, "network.conditioning": "none"})
    torch.manual_seed(0)
    return params, build_game(params, shards.read_spec(prepared))


def bias(prepared, kimg, draws=8, examples=1024):
    params, game = game_of(SETTINGS["lazy"], prepared)
    budget = {"kimg": kimg, "report_kimg": kimg, "checkpoint_kimg": kimg, "quality_samples": 0}

    def keep(row, folder):
        game.discriminator.load_state_dict(checkpoint.load(folder)["discriminator"])

    train(params.model_copy(update={"train": params.train.model_copy(update=budget)}), keep, prepared=prepared)
    images = decode(None, "sample", shards.read(prepared, "test", limit=examples)["sample"]).requires_grad_()

    def round_of(key):
        noise = Noise(key, size=examples)
        logits = discriminate(game, images, None, noise).logits
        return Round(game, Deal(images, images), Batch({}, noise), images, images, logits, logits)

    def in_bfloat16(key, sigma):
        near = images + sigma * Noise(key, size=examples).normal(*images.shape[1:])
        with torch.autocast("cpu", torch.bfloat16):
            logits = [game.discriminator(x).logits.float() for x in (near, images)]
        return 0.5 * ((logits[0] - logits[1]) / sigma).square()

    exact = r1(round_of(0)).mean().item()
    with torch.no_grad():
        size = round_of(0).real_logits.abs().mean().item()
    print(f"r1 {exact:.4g}, mean |logit| {size:.3g}\n\n| sigma | float32 | bfloat16 |\n|---|---|---|")
    for sigma in (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0):
        cells = []
        for estimate in (lambda key, sigma: R1Approx(sigma)(round_of(key)), in_bfloat16):
            with torch.no_grad():
                found = [estimate(key, sigma).mean().item() / exact for key in range(draws)]
            cells.append(f"{statistics.mean(found):.3g} ± {statistics.stdev(found) / draws**0.5:.2g}")
        print(f"| {sigma:g} | {' | '.join(cells)} |", flush=True)


def speed(prepared, rounds, names, steps=8):
    spec, plays = shards.read_spec(prepared), {}
    for name in names:
        params, game = game_of(SETTINGS[name], prepared)
        players = [
            Learner(m.to(memory_format=torch.channels_last), torch.optim.Adam(m.parameters(), fused=True), 2e-4)
            for m in (game.generator, game.discriminator)
        ]
        plays[name] = (params.game, game, players)
    size = params.game.batch
    data = {"sample": (torch.rand(size, *spec.shape) * 2 - 1).to(memory_format=torch.channels_last)}

    def seconds(name):
        cfg, game, players = plays[name]
        start = time.process_time()
        for step in range(steps):
            turns = [[Batch(data, Noise(0, step, size=size))]]
            adversarial_step(game, LOSSES[cfg.loss], *players, turns, step=step, kimg=0.0)
        return (time.process_time() - start) / steps

    taken = {name: [] for name in names}
    for round in range(rounds + 1):  # the first warms up
        for name in names:
            spent = seconds(name)
            taken[name] += [spent] if round else []
    base = taken["none"]
    print(
        f"a step without penalties: {statistics.median(base) * 1e3:.0f} ms\n\n| penalties | times as long |\n|---|---|"
    )
    for name in names:
        ratios = [a / b for a, b in zip(taken[name], base, strict=True)]
        print(f"| {name} | {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) |", flush=True)


def quality(prepared, names, seeds, marks, out):
    extract = efficientnet_lite0.load()
    reals, others = (
        decode(None, "sample", shards.read(prepared, s, limit=n)["sample"])
        for s, n in (("test", 10_000), ("train", SAMPLES))
    )
    spaces = {"fd": (extract, gaussian(extract(reals)))}
    floor = round(distance(spaces["fd"][1], gaussian(extract(others))), 3)
    rows = []
    for seed in seeds:
        for name in names:
            settings = json.dumps(SETTINGS[name])
            found = run(f"r3gan:search={{}},penalties={settings}", prepared, seed, marks, spaces, None, None)
            rows += [row | {"name": name} for row in found]
            if out is not None:
                out.write_text(json.dumps({"floor": {"fd": floor}, "rows": rows}, indent=1))
    table(rows, floor)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("bias", "speed", "quality"))
    parser.add_argument("--data", default="/usr/share/datasets/fashion-mnist")
    parser.add_argument("--kimg", type=float, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--minutes", type=float, nargs="+", default=[1, 2])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS)[:6])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as scratch:
        prepared = data_set(args.data, Path(scratch))
        if args.what == "bias":
            bias(prepared, args.kimg)
        elif args.what == "speed":
            speed(prepared, args.rounds, list(dict.fromkeys(["none", *args.settings])))
        else:
            quality(prepared, args.settings, args.seeds, args.minutes, args.out)


if __name__ == "__main__":
    main()
