"""How small a drift `ganlib drift` sees, and how often it sees one where there is none.

    dvc repro reference && python tests/bench/drift.py        # in a project's folder, with `data: mnist`

The verdict is that of `pipelines.drift`, by KID in the first feature space. Each time new data, the test examples and
the training examples of the floor are drawn anew, without examples in common. New data are training examples: as they
are; darker, blurred or noisy; with more of one class; or with a share of other data (scikit-learn's 8x8 digits,
enlarged); `-` stands where there are too few of these for a draw. KID is a mean over pairs, so it is taken from
kernels that are computed once; that it is what `ganlib.metrics.kid` computes is checked first. Draws of 1,000 overlap:
there are some 3,900 training and 1,055 test examples.
"""

from __future__ import annotations

import argparse
import functools
import math
from pathlib import Path
from statistics import NormalDist, stdev

import numpy as np
import torch
from PIL import Image, ImageFilter
from sklearn.datasets import load_digits
from torch import Tensor

from ganlib import shards
from ganlib.config import load_params
from ganlib.metrics import kid
from ganlib.reference import Reference
from pipelines.drift import is_drift
from pipelines.neighbours import space_of_features

POOL = 1600  # training examples that new data are drawn from


CHANGES = {  # of a picture of Pillow's, and by how much
    "darker by": (lambda x, by, rng: x.point(lambda level: level * (1 - by)), (0.05, 0.1, 0.2, 0.4)),
    "blurred, sigma in pixels": (lambda x, by, rng: x.filter(ImageFilter.GaussianBlur(by)), (0.3, 0.5, 0.7, 1.0)),
    "noise, sigma in levels": (
        lambda x, by, rng: Image.fromarray(np.uint8(np.clip(np.asarray(x) + rng.normal(0, by, x.size[::-1]), 0, 255))),
        (2, 5, 10),
    ),
}
MORE_OF_ONE = (0.125, 0.15)  # share of the class 1, which is a tenth; of more there are too few
OTHERS = (0.02, 0.05, 0.1, 0.2)  # share of other data


def kernel(a: Tensor, b: Tensor) -> np.ndarray:
    return (((a @ b.T) / a.shape[1] + 1) ** 3).numpy()


class Kernels:
    """Of all pairs of test examples (S), training examples of the floor (T) and new data (P), and KID of subsets."""

    def __init__(self, test: Tensor, floor: Tensor):
        self.test, self.floor = test, floor
        self.of_test, self.of_floor, self.between = kernel(test, test), kernel(floor, floor), kernel(test, floor)

    def kid(self, reals: np.ndarray, fakes: np.ndarray, within: np.ndarray, between: np.ndarray) -> float:
        def off_diagonal(gram: np.ndarray) -> float:
            n = len(gram)
            return (gram.sum(dtype=np.float64) - np.trace(gram, dtype=np.float64)) / (n * (n - 1))

        across = between[np.ix_(reals, fakes)].mean(dtype=np.float64)
        own = off_diagonal(self.of_test[np.ix_(reals, reals)]) + off_diagonal(within[np.ix_(fakes, fakes)])
        return float(own - 2 * across)


def verdict(kernels: Kernels, new: Tensor, draw, n: int, times: int, halves: int, rng) -> list[bool]:
    """Whether it is said, each time, that `draw(n)` of `new` have drifted."""
    within, between = kernel(new, new), kernel(kernels.test, new)
    found = []
    for _ in range(times):
        reals = rng.choice(len(kernels.test), n, replace=False)
        floor = rng.choice(len(kernels.floor), n, replace=False)
        fakes = draw(n, rng)
        value = kernels.kid(reals, fakes, within, between)
        of_halves = [
            kernels.kid(reals[rng.permutation(n)[: n // 2]], fakes[rng.permutation(n)[: n // 2]], within, between)
            for _ in range(halves)
        ]
        halfwidth = NormalDist().inv_cdf(0.975) * stdev(of_halves)  # as in `ganlib.evaluate`
        figures = {"value": value, "low": value - halfwidth, "high": value + halfwidth}
        figures["floor"] = kernels.kid(reals, floor, kernels.of_floor, kernels.between)
        found.append(is_drift(figures, kid.DIRECTION))
    return found


def uniform(n: int, rng, rows: np.ndarray) -> np.ndarray:
    return rng.choice(rows, n, replace=False)


def with_share(n: int, rng, share: float, of: np.ndarray, rest: np.ndarray) -> np.ndarray:
    """`n` rows, a binomial number of which are `of` some."""
    some = rng.binomial(n, share)
    return np.concatenate([uniform(some, rng, of), uniform(n - some, rng, rest)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 300, 1000])
    parser.add_argument("--times", type=int, default=50, help="draws of new data that changed")
    parser.add_argument("--unchanged", type=int, default=200, help="draws of new data that did not")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    params = load_params()
    prepared = Path("data/prepared")
    spec, space = shards.read_spec(prepared), space_of_features(Reference.load("data/reference").spaces.values())
    train = shards.read(prepared, "train", len(space.train))
    pictures, labels = (
        [Image.fromarray(one[0].numpy()) for one in train["sample"][:POOL]],
        train["label"][:POOL].numpy(),
    )
    plain, kernels = space.train[:POOL], Kernels(space.test, space.train[POOL:])
    rng = np.random.default_rng(args.seed)

    first = np.arange(100)
    found = kernels.kid(first, first, kernels.of_floor, kernels.between)
    expected = kid.compute({"features": kernels.test[:100]}, {"features": kernels.floor[:100]})
    assert math.isclose(found, expected, rel_tol=1e-2, abs_tol=1e-3), (found, expected)

    def features(images: list[Image.Image]) -> Tensor:
        stored = torch.from_numpy(np.stack([np.asarray(one, np.uint8)[None] for one in images]))
        return space.extract(spec.kind.decode(spec.sample, "sample", stored))

    def report(what: str, new: Tensor, draw, times: int, most: float = POOL) -> None:
        rates = []
        for n in args.sizes:
            if n > most:
                rates.append("-")
                continue
            seen = verdict(kernels, new, draw, n, times, params.evaluate.resamples, rng)
            rates.append(f"{sum(seen)}/{times}")
        print(f"{what:40} {'  '.join(f'{rate:>8}' for rate in rates)}", flush=True)

    print(f"{space.name}, seed {args.seed}; drifted, of so many draws of {args.sizes} examples", flush=True)
    everyone = np.arange(POOL)
    report("nothing", plain, functools.partial(uniform, rows=everyone), args.unchanged)
    ones, rest = (labels == 1).nonzero()[0], (labels != 1).nonzero()[0]
    for share in MORE_OF_ONE:
        report(
            f"class 1 has a share of {share:g}",
            plain,
            functools.partial(with_share, share=share, of=ones, rest=rest),
            args.times,
            0.8 * len(ones) / share,
        )
    digits = [Image.fromarray(np.uint8(one * 15.9)).resize(pictures[0].size) for one in load_digits().images[:400]]
    both, others = torch.cat([plain, features(digits)]), np.arange(POOL, POOL + len(digits))
    for share in OTHERS:
        report(
            f"a share of {share:g} is other data",
            both,
            functools.partial(with_share, share=share, of=others, rest=everyone),
            args.times,
            0.8 * len(others) / share,
        )
    for name, (change, amounts) in CHANGES.items():
        for by in amounts:
            changed = features([change(one, by, rng) for one in pictures])
            report(f"{name} {by:g}", changed, functools.partial(uniform, rows=everyone), args.times)


if __name__ == "__main__":
    main()
