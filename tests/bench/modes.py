"""How many modes of the data a generator finds: Gaussians in the plane, and Stacked-MNIST's 1,000.

    python tests/bench/modes.py plane [--seeds 3] [--steps 2500] [--jobs 2]
    python tests/bench/modes.py stacked [--families dcgan,mlp] [--kimg 200] [--seeds 1] [--samples 26000] [--size 28]

Plane: a ring of 8 and a grid of 25 Gaussians (Metz et al. 2017; Lin et al. 2018), every loss with and without
penalties, two perceptrons. Stacked: three random digits as red, green and blue (Metz et al. 2017); a family takes its
file of `params/models`, and a classifier trained here on single digits names the modes. Tables are Markdown.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import math
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.multiprocessing as mp
import torch.nn.functional as F

from ganlib import registry, shard_writer
from ganlib.config import load_params
from ganlib.data import image
from ganlib.data._spec import Spec
from ganlib.export import load_generator
from ganlib.game import Batch, Learner, Term, adversarial_step
from ganlib.losses import LOSSES
from ganlib.models import mlp
from ganlib.noise import Noise
from ganlib.penalties import PENALTIES
from ganlib.spaces._classifier import Classifier, fit
from ganlib.trainer import train

ROOT = Path(__file__).parents[2]

PLANE = SimpleNamespace(shape=(2,), classes=(), attributes=())  # what a family asks of a Spec
LATENT = 16
BATCH = 128
SAMPLES = 2500


def ring():
    """8 centres on a circle, scaled from radius 2 to 0.7, and their deviation. Metz et al. 2017."""
    angle = torch.arange(8) * (2 * math.pi / 8)
    return 0.7 * torch.stack([angle.cos(), angle.sin()], 1), 0.02 * 0.7 / 2


def grid():
    """25 centres, scaled from {-4, ..., 4}² to ±0.7, and their deviation. Lin et al. 2018."""
    steps = torch.linspace(-0.7, 0.7, 5)
    return torch.cartesian_prod(steps, steps), 0.05 * 0.7 / 4


MIXTURES = {"ring of 8": ring, "grid of 25": grid}
RECIPES = {
    "none": {},
    "r1": {"r1": 0.1},
    "r1 + r2": {"r1": 0.1, "r2": 0.1},
    "gradient penalty": {"gradient_penalty": 1.0},
}


def reverse_kl(counts):
    """KL(generated ‖ real) over modes, in nats, where the real ones are equally frequent."""
    share = counts.double() / counts.sum()
    return float((share * (share * len(share)).clamp_min(1e-300).log()).sum())


def judge_points(points, centres, sigma):
    """(modes with a sample within 3 sigma, share of samples within 3 sigma of a centre, reverse KL)."""
    distance, mode = torch.cdist(points, centres).min(1)
    near = distance <= 3 * sigma
    counts = torch.bincount(mode, minlength=len(centres))
    return len(mode[near].unique()), float(near.double().mean()), reverse_kl(counts)


def play_plane(job):
    """One game in the plane; the last weights judge themselves, without averaging."""
    mixture, loss, recipe, seed, steps = job
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    centres, sigma = MIXTURES[mixture]()
    game = mlp.build(mlp.Config(latent_dim=LATENT, width=128), PLANE)
    terms = tuple(Term(name, "discriminator", PENALTIES[name], weight) for name, weight in RECIPES[recipe].items())
    game = dataclasses.replace(game, terms=game.terms + terms)
    players = [
        Learner(m, torch.optim.Adam(m.parameters(), lr=1e-3, betas=(0.5, 0.99), fused=True), 1e-3)
        for m in (game.generator, game.discriminator)
    ]
    start = time.perf_counter()
    for step in range(steps):
        noise = Noise(seed, "plane", step, size=BATCH)
        modes = (noise.uniform() * len(centres)).long()
        batch = Batch({"sample": centres[modes] + sigma * noise.normal(2)}, noise)
        adversarial_step(game, LOSSES[loss], *players, [[batch]], step=step, kimg=step * BATCH / 1000)
    with torch.inference_mode():
        points = game.generator(game.ask({}, Noise(seed, "judged", size=SAMPLES), None), None)
    return (*job[:3], time.perf_counter() - start, judge_points(points, centres, sigma))


def plane(args):
    seeds = range(args.seeds)
    jobs = [(*job, args.steps) for job in itertools.product(MIXTURES, LOSSES, RECIPES, seeds)]
    with mp.get_context("spawn").Pool(args.jobs) as pool:
        found = pool.map(play_plane, jobs, chunksize=1)
    print(f"{args.steps} steps of batch {BATCH}, {SAMPLES} samples; {args.seeds} seed(s): range of modes, else means")
    print(f"{statistics.median(seconds for *_, seconds, _ in found):.0f} s a run (median)")
    for mixture, make in MIXTURES.items():
        exact, sigma = make()
        real = exact[torch.arange(SAMPLES) % len(exact)] + sigma * torch.randn(SAMPLES, 2)
        modes, near, kl = judge_points(real, exact, sigma)
        print(f"\n{mixture}: modes covered / share within 3 sigma / reverse KL, nats; ", end="")
        print(f"the data themselves: {modes} / {near:.0%} / {kl:.2f}\n")
        print(f"| loss | {' | '.join(RECIPES)} |\n|---{'|---' * len(RECIPES)}|")
        for loss in LOSSES:
            cells = []
            for recipe in RECIPES:
                runs = [figures for *key, _, figures in found if key == [mixture, loss, recipe]]
                modes, near, kl = zip(*runs, strict=True)
                spread = f"{min(modes)}" if len(set(modes)) == 1 else f"{min(modes)} to {max(modes)}"
                cells.append(f"{spread} / {statistics.mean(near):.0%} / {statistics.mean(kl):.2f}")
            print(f"| {loss} | {' | '.join(cells)} |")


# -- Stacked-MNIST ------------------------------------------------------------------------------------------------


def digits(size):
    """`(images uint8 [N, 1, size, size], labels [N])`, 5,000 of MNIST's, padded with black from 28 pixels."""
    source = registry.load("sources", "mnist")
    items = list(source._items())
    images = torch.stack([torch.as_tensor(item.payload) for item in items])[:, None]
    side = (size - 28) // 2
    return F.pad(images, (side, side, side, side)), torch.tensor([item.label for item in items])


def decode(stored):
    return stored.float() / 127.5 - 1


def judge_of_digits(images, labels, seed=0):
    """A classifier of single digits, and its accuracy on the fifth of them that it was not shown."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    shown, held = order[len(order) // 5 :], order[: len(order) // 5]
    torch.manual_seed(seed)
    cfg = load_params(ROOT / "params.yaml").reference.classifier
    classifier = Classifier(tuple(images.shape[1:]), 10, cfg.width)
    fit(classifier, images[shown], labels[shown], decode, cfg, seed)
    with torch.inference_mode():
        right = classifier.logits(decode(images[held])).argmax(1) == labels[held]
    return classifier, float(right.double().mean())


def stack(images, rows):
    return images[rows].squeeze(2)


def stacked_shards(images, out, train=50_000, test=2_000):
    """Prepared data: three random digits an example, unlabelled."""
    out.mkdir(parents=True)
    rng = torch.Generator().manual_seed(0)
    tables = []
    for first, count in ((0x00, test), (0xFF, train)):  # a row's hash decides its split
        for start in range(0, count, 5000):
            some = range(start, min(start + 5000, count))
            rows = torch.randint(len(images), (len(some), 3), generator=rng)
            hashes = [bytes([first]) + i.to_bytes(15, "big") for i in some]
            stored = [{"sample": sample.tobytes()} for sample in stack(images, rows).numpy()]
            tables.append(shard_writer.table(hashes, stored, [0] * len(some)))

    sample = image.Config(resolution=tuple(images.shape[2:]), channels=3)

    def describe(found, training):
        return Spec(sample, "image", (), found.counts, found.content_hash)

    shard_writer.write(out, tables, image.parts(sample), describe, test_share=0.5, shard_mb=64.0)


@torch.inference_mode()
def judge_stacks(samples, classifier):
    """(modes seen at least once, reverse KL in nats) of images `[N, 3, H, W]` in [-1, 1]."""
    mode = torch.zeros(len(samples), dtype=torch.long)
    for channel in range(3):
        seen = [classifier.logits(part[:, channel : channel + 1]).argmax(1) for part in samples.split(500)]
        mode = mode * 10 + torch.cat(seen)
    counts = torch.bincount(mode, minlength=1000)
    return int((counts > 0).sum()), reverse_kl(counts)


def stacked(args):
    torch.set_num_threads(args.threads)
    images, labels = digits(args.size)
    classifier, accuracy = judge_of_digits(images, labels)
    print(f"classifier: {accuracy:.1%} right on digits it was not shown; {args.samples} samples of each generator")
    rows = torch.randint(len(images), (args.samples, 3), generator=torch.Generator().manual_seed(1))
    modes, kl = judge_stacks(decode(stack(images, rows)), classifier)
    print(
        f"\n| family | seed | modes of 1,000 | reverse KL | minutes |\n|---|---|---|---|---|\n"
        f"| (the data themselves) | | {modes} | {kl:.2f} | |"
    )
    with tempfile.TemporaryDirectory() as scratch:
        prepared = Path(scratch, "prepared")
        stacked_shards(images, prepared)
        for family, seed in itertools.product(args.families.split(","), range(args.seeds)):
            params = load_params(ROOT / "params.yaml")
            budget = {"kimg": args.kimg, "report_kimg": args.kimg, "checkpoint_kimg": args.kimg, "quality_samples": 0}
            changes = {"model": family, "seed": seed, "train": params.train.model_copy(update=budget)}
            kept = Path(scratch, f"{family}-{seed}")

            def keep(row, folder, kept=kept):
                if folder is not None:
                    shutil.copytree(folder / "generator", kept, dirs_exist_ok=True)

            start = time.perf_counter()
            train(params.model_copy(update=changes), keep, prepared=prepared)
            minutes = (time.perf_counter() - start) / 60
            samples = load_generator(kept).sample(args.samples, seed=seed)["sample"]
            modes, kl = judge_stacks(samples, classifier)
            print(f"| {family}, {args.kimg:g} kimg | {seed} | {modes} | {kl:.2f} | {minutes:.1f} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    which = parser.add_subparsers(required=True)
    one = which.add_parser("plane")
    one.add_argument("--seeds", type=int, default=3)
    one.add_argument("--steps", type=int, default=2500)
    one.add_argument("--jobs", type=int, default=2)
    one.set_defaults(run=plane)
    two = which.add_parser("stacked")
    two.add_argument("--families", default="dcgan")
    two.add_argument("--kimg", type=float, default=200)
    two.add_argument("--seeds", type=int, default=1)
    two.add_argument("--samples", type=int, default=26_000)
    two.add_argument("--size", type=int, default=28, help="pixels a side; digits have 28, the rest is black")
    two.add_argument("--threads", type=int, default=1)
    two.set_defaults(run=stacked)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
