"""Whether averages whose length is chosen after training beat one fixed half-life: Karras et al. 2024, appendix C.

    python tests/bench/post_hoc_ema.py --data mnist --model dcgan --kimg 60 --seeds 0 1 2
        --set ema_halflife_kimg=2 ema_rampup=null
    python tests/bench/post_hoc_ema.py --data mnist --model resnet --set network.width=16 --kimg 16 --seeds 0 1 2

While the trainer trains as ever, two power-function averages of the generator (relative standard deviations .05 and
.10, as in the paper) follow it step by step, and both are stored `--snapshots` times. Afterwards averages of the
`--lengths` are put together of these by least squares. The length with the least Fréchet distance between `--samples`
samples and training examples is chosen; it and averages whose length is set before are then compared on fresh samples
and test examples: the trainer's own, of other `--halflives`, and with half-lives that are a share of the training so
far, as `ema_rampup` makes them (`--shares`). A line for each training. One process and thread, no search.
"""

from __future__ import annotations

import argparse
import copy
import math
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from ruamel.yaml import YAML
from torch import nn

from ganlib import reference, registry, shards, trainer
from ganlib.config import Params, load_params, override, parse_params
from ganlib.evaluate import extract_features, sample_for_evaluation
from ganlib.export import Generator, load_generator
from ganlib.reference import Reference
from pipelines.prepare import prepare
from pipelines.training import keep_freed_memory

ROOT = Path(__file__).parents[2]
STORED = (0.05, 0.10)
JUDGED = 2_000


def exponent(length: float) -> float:
    """γ of a power-function average whose weights have this standard deviation, as a share of the training."""
    return float(np.roots([1, 7, 16 - length**-2, 12 - length**-2]).real.max())


def inner_product(t_a: float, gamma_a: float, t_b: float, gamma_b: float) -> float:
    """∫ of the product of two averages' weights; one ends at t_a and one at t_b."""
    last = max(t_a, t_b)
    power = gamma_b if t_a < t_b else -gamma_a
    return (gamma_a + 1) * (gamma_b + 1) * (t_a / t_b) ** power / ((gamma_a + gamma_b + 1) * last)


class PowerAverages:
    """Averages of a module's state with weights t^γ, and their snapshots."""

    def __init__(self, every: int):
        self.every, self.step = every, 0
        self.now: list[dict[str, torch.Tensor]] = []
        self.snapshots: list[tuple[int, float, dict[str, torch.Tensor]]] = []

    def update(self, module: nn.Module) -> None:
        self.step += 1
        state = {name: x.detach() for name, x in module.state_dict().items() if x.is_floating_point()}
        if not self.now:
            self.now = [copy.deepcopy(state) for _ in STORED]
        for length, average in zip(STORED, self.now, strict=True):
            decay = (1 - 1 / self.step) ** (exponent(length) + 1)
            for name, x in state.items():
                average[name].lerp_(x, 1 - decay)
        if self.step % self.every == 0:
            for length, average in zip(STORED, self.now, strict=True):
                self.snapshots.append((self.step, exponent(length), copy.deepcopy(average)))

    def of_length(self, length: float) -> dict[str, torch.Tensor]:
        """The average of this length at the end, by least squares over all snapshots."""
        stored, gamma, end = [(t, g) for t, g, _ in self.snapshots], exponent(length), self.step
        gram = np.array([[inner_product(*a, *b) for b in stored] for a in stored])
        target = np.array([inner_product(*a, end, gamma) for a in stored])
        weights = np.linalg.lstsq(gram, target, rcond=None)[0]
        parts = [state for *_, state in self.snapshots]
        return {
            name: sum(weight * part[name].double() for weight, part in zip(weights, parts, strict=True)).to(x.dtype)
            for name, x in parts[0].items()
        }


class Average:
    """A moving average of a module's state, whose half-life in kimg follows from the kimg so far."""

    def __init__(self, halflife: Callable[[float], float], examples: int):
        self.halflife, self.examples, self.kimg = halflife, examples, 0.0
        self.now: dict[str, torch.Tensor] = {}

    def update(self, module: nn.Module) -> None:
        state = {name: x.detach() for name, x in module.state_dict().items() if x.is_floating_point()}
        self.now = self.now or copy.deepcopy(state)
        decay = 0.5 ** (self.examples / max(1000 * self.halflife(self.kimg), 1e-9))
        for name, x in state.items():
            self.now[name].lerp_(x, 1 - decay)
        self.kimg += self.examples / 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--model", default="dcgan")
    parser.add_argument("--set", nargs="+", default=[], help="KEY=VALUE of the model's file")
    parser.add_argument("--size", type=int, default=28, help="pixels a side")
    parser.add_argument("--kimg", type=float, default=60)
    parser.add_argument("--snapshots", type=int, default=16)
    parser.add_argument("--lengths", type=float, nargs="+", default=[0.03, 0.05, 0.08, 0.12, 0.18, 0.25])
    parser.add_argument("--halflives", type=float, nargs="*", default=[6.0, 12.0], help="kimg")
    parser.add_argument("--shares", type=float, nargs="*", default=[0.05, 0.1, 0.15], help="of the training so far")
    parser.add_argument("--samples", type=int, default=JUDGED)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(1)
    plain = load_params(ROOT / "params.yaml").model_dump(mode="json") | {"data": args.data, "model": args.model}
    plain["datasets"][args.data]["sample"]["resolution"] = [args.size, args.size]
    plain["train"] |= {"kimg": args.kimg, "report_kimg": args.kimg, "checkpoint_kimg": args.kimg, "quality_samples": 0}
    yaml = YAML(typ="safe", pure=True)
    changes = {key: yaml.load(text) for key, _, text in (one.partition("=") for one in args.set)}
    params = override(parse_params(plain), changes)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        prepare(params.dataset, ROOT / "data/raw" / args.data, scratch / "prepared")
        splits = (shards.stored(scratch / "prepared", split, limit=args.samples) for split in shards.SPLITS)
        reference.build(scratch / "reference", shards.read_spec(scratch / "prepared"), *splits, params.reference, 0)
        for seed in args.seeds:
            one(params.model_copy(update={"seed": seed}), args, scratch)


def one(params: Params, args: argparse.Namespace, scratch: Path) -> None:
    examples = params.game.batch * params.game.discriminator_steps
    averages = PowerAverages(max(1, math.ceil(args.kimg * 1000 / examples) // args.snapshots))
    others = {f"half-life {h:g}": Average(lambda kimg, h=h: h, examples) for h in args.halflives}
    others |= {f"share {s:g}": Average(lambda kimg, s=s: kimg * s, examples) for s in args.shares}
    kept, plain = scratch / f"{params.seed}", trainer.update_ema

    def follow(ema: nn.Module, module: nn.Module, decay: float) -> None:
        plain(ema, module, decay)
        for average in (averages, *others.values()):
            average.update(module)

    def report(row, folder):
        if folder is not None:
            shutil.copytree(folder / "generator", kept, dirs_exist_ok=True)

    trainer.update_ema = follow
    try:
        trainer.train(params, report, prepared=scratch / "prepared")
    finally:
        trainer.update_ema = plain
    fixed, known = load_generator(kept), Reference.load(scratch / "reference")
    found = {length: with_state(fixed, averages.of_length(length)) for length in args.lengths}
    chosen = min(found, key=lambda length: distance(found[length], known, params.seed, "train", args, scratch))
    stated = {name: with_state(fixed, average.now) for name, average in others.items()}
    values = {
        name: distance(generator, known, params.seed + 1000, "test", args, scratch)
        for name, generator in {"fixed": fixed, **found, **stated}.items()
    }
    trace = ", ".join(f"{name:g}: {values[name]:.3f}" for name in found)
    trace += "; set before: " + ", ".join(f"{name}: {values[name]:.3f}" for name in stated)
    print(
        f"{args.data} {args.model} seed {params.seed}: FD of fresh samples: as trained {values['fixed']:.3f}; "
        f"chosen length {chosen:g} {values[chosen]:.3f} ({values[chosen] / values['fixed'] - 1:+.1%}); all: {trace}",
        flush=True,
    )


def with_state(generator: Generator, state: dict[str, torch.Tensor]) -> Generator:
    other = copy.deepcopy(generator)
    other.game.generator.load_state_dict({**other.game.generator.state_dict(), **state})
    return other


def distance(
    generator: Generator, known: Reference, seed: int, split: str, args: argparse.Namespace, scratch: Path
) -> float:
    """The Fréchet distance of samples and examples of a split, in the first feature space."""
    space = next(iter(known.spaces))
    made = sample_for_evaluation(generator, scratch / "prepared", args.samples, seed=seed, batch=100)
    fake = extract_features(made, known, 100, [space])[space]
    real = {"features": getattr(known.spaces[space], split)}
    value: float = registry.load("metrics", "fd").compute(real, fake)
    return value


if __name__ == "__main__":
    main()
