"""Every metric on every feature space, each with an interval and with what real data would score.

A metric is measured wherever the fields it needs are known: in each feature space, or, if it reads classes or
compares images with what they should be, under `"samples"`. No metric's name appears here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist, stdev
from types import ModuleType

import torch
from torch import Tensor

from ganlib import registry, shards
from ganlib.config import ConfigError, EvaluateConfig
from ganlib.export import Generator
from ganlib.metrics._neighbours import nearest
from ganlib.metrics._types import Examples
from ganlib.reference import Reference

__all__ = ["Comparison", "Metrics", "compare", "draw", "evaluate", "measurable"]

SAMPLES = "samples"

Metrics = dict[str, dict[str, dict[str, float]]]
"""`{space or "samples": {metric: {"value", "low", "high", "floor", "copy"}}}`; the floor where there is one, and what
copies of the given images score where there are such"""


@dataclass(frozen=True)
class Comparison:
    metric: str
    """`space.metric`"""
    direction: str
    """`lower` or `higher`: which is better"""
    challenger: float
    champion: float
    difference: float
    """challenger minus champion"""
    low: float
    """of the difference's interval"""
    high: float


def draw(generator: Generator, prepared: str | Path, n: int, *, seed: int, batch: int) -> dict[str, Tensor]:
    """`n` samples to be judged: made of noise, or of the first test examples in `prepared`, of which there may be
    fewer; these also have `given` and `target`."""
    if not generator.translates:
        return generator.sample(n, seed=seed, batch=batch)
    spec = generator.spec
    stored = shards.read(prepared, "test", limit=n)["sample"]
    given, target = spec.split(registry.load("data", spec.kind).decode(stored))
    return {"sample": generator.translate(given, seed=seed, batch=batch), "given": given, "target": target}


def measurable(reference: Reference, *, labelled: bool) -> list[str]:
    """Every `section.metric` that `evaluate` will find in samples that are yet to be made; those of a generator
    that is told a class are `labelled`."""
    spec, known = reference.spec, torch.zeros(1)
    sections = {space: Examples(features=known, nearest=known) for space in reference.spaces}
    if spec.given:
        sections[SAMPLES] = Examples(image=known, target=known)
    elif reference.classifier is not None:
        sections[SAMPLES] = Examples(predicted=known, label=known if labelled else Examples().label)
    return [f"{name}.{metric}" for name, seen in sections.items() for metric in _measurable(name, spec.modality, seen)]


def evaluate(samples: Mapping[str, Tensor], reference: Reference, cfg: EvaluateConfig, seed: int) -> Metrics:
    """Measure `sample` `[N, ...]` in [-1, 1] against the first N of test: by itself, by the `label` that was asked
    for, by the `target` that it should be.

    `floor` is the score of the first N training examples in the fakes' place, `copy` that of `given`. Raises
    ValueError if there are fewer.
    """
    n = len(samples["sample"])
    if n > reference.size:
        raise ValueError(f"{n} samples, but the floor can be had for {reference.size} training examples only")
    reals = _reals(reference, samples, reference.spaces)
    floors = _of_split(reference, "train", n, reference.spaces)
    fakes = _of_samples(reference, samples, reference.spaces)
    copies = _of_samples(reference, _copied(samples), reference.spaces) if "given" in samples else {}
    found: Metrics = {}
    for section, real in reals.items():
        fake = fakes[section]
        for name, metric in _measurable(section, reference.spec.modality, real, fake).items():
            value = metric.compute(real, fake)
            reach = _reach([metric.compute(r, f) for r, f in _halves(cfg, seed, real, fake)], cfg)
            figures = {"value": value, "low": value - reach, "high": value + reach}
            for baseline, sets in (("floor", floors), ("copy", copies)):
                if section in sets:
                    figures[baseline] = metric.compute(real, sets[section])
            found.setdefault(section, {})[name] = figures
    return found


def _copied(samples: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The given images in the fakes' place, grey where the target is and as often as it has channels."""
    given, channels = samples["given"], samples["target"].shape[1]
    if given.shape[1] != channels:
        given = given.mean(1, keepdim=True).expand(-1, channels, -1, -1)
    return {"sample": given, "target": samples["target"]}


def compare(
    challenger: Mapping[str, Tensor],
    champion: Mapping[str, Tensor],
    reference: Reference,
    metric: str,
    cfg: EvaluateConfig,
    seed: int,
) -> Comparison:
    """Two sets of N samples by one metric, `"space.metric"`, on the same test examples.

    The interval is of the difference, measured on the same halves for both: what they share cancels.
    Raises ConfigError for a metric that cannot be measured, ValueError for sets of unequal size.
    """
    n = len(challenger["sample"])
    if len(champion["sample"]) != n:
        raise ValueError(
            f"{n} samples of the challenger, {len(champion['sample'])} of the champion: as many are wanted"
        )
    section, _, name = metric.partition(".")
    if section not in (*reference.spaces, SAMPLES):
        raise ConfigError(
            f"metric {metric!r}: no section {section!r}; known: {', '.join([*reference.spaces, SAMPLES])}"
        )
    spaces = [space for space in reference.spaces if space == ("classifier" if section == SAMPLES else section)]
    real = _reals(reference, challenger, spaces).get(section, Examples())
    one, other = (_of_samples(reference, made, spaces).get(section, Examples()) for made in (challenger, champion))
    known = _measurable(section, reference.spec.modality, real, one, other)
    if name not in known:
        raise ConfigError(f"metric {metric!r} cannot be measured here; {section} has: {', '.join(known) or 'none'}")
    compute, direction = known[name].compute, known[name].DIRECTION
    first, second = compute(real, one), compute(real, other)
    gap = first - second
    reach = _reach([compute(r, a) - compute(r, b) for r, a, b in _halves(cfg, seed, real, one, other)], cfg)
    return Comparison(metric, direction, first, second, gap, gap - reach, gap + reach)


def _halves(cfg: EvaluateConfig, seed: int, real: Examples, *fakes: Examples) -> Iterator[tuple[Examples, ...]]:
    """Random halves of the reals and of the fakes, of which all sets are cut alike."""
    rng = torch.Generator().manual_seed(seed)
    for _ in range(cfg.resamples):
        of_real, of_fake = (torch.randperm(len(whole), generator=rng)[: len(whole) // 2] for whole in (real, fakes[0]))
        yield real.take(of_real), *(fake.take(of_fake) for fake in fakes)


def _reach(values: list[float], cfg: EvaluateConfig) -> float:
    """Half the width of the normal interval around a statistic whose values on halves are given.

    A random half, drawn without repetition, strays from the whole with the same variance as the whole from the
    population (McCarthy 1969; Politis & Romano 1994). A bootstrap would repeat examples, which distances between
    distributions, and balls around neighbours most of all, take for a narrower distribution. Values of halves are
    biased too, because they are fewer: hence their spread around the value of the whole, and not their quantiles.
    """
    return NormalDist().inv_cdf((1 + cfg.confidence) / 2) * stdev(values)


def _measurable(section: str, modality: str, *sides: Examples) -> dict[str, ModuleType]:
    """Metrics whose needs all sides meet, by the name they go by in this section."""
    modules = {name: registry.load("metrics", name) for name in registry.names("metrics")}
    return {
        getattr(module, "ALIASES", {}).get(section, name): module
        for name, module in modules.items()
        if module.MODALITY in ("any", modality) and all(side.has(module.NEEDS) for side in sides)
    }


def _of_samples(reference: Reference, samples: Mapping[str, Tensor], spaces: Iterable[str]) -> dict[str, Examples]:
    features = {name: reference.spaces[name].extract(samples["sample"]) for name in spaces}
    seen = _see(reference, features, samples.get("label"), neighbour=1)
    if "target" in samples:
        seen[SAMPLES] = Examples(image=samples["sample"], target=samples["target"])
    return seen


def _reals(reference: Reference, samples: Mapping[str, Tensor], spaces: Iterable[str]) -> dict[str, Examples]:
    """What samples are compared with: as many test examples, or those whose given part they were made of."""
    seen = _of_split(reference, "test", len(samples["sample"]), spaces)
    if "target" in samples:
        seen[SAMPLES] = Examples(image=samples["target"], target=samples["target"])
    return seen


def _of_split(reference: Reference, split: str, n: int, spaces: Iterable[str]) -> dict[str, Examples]:
    """The first `n` of a split, or all if there are fewer; their stored order is random."""
    features = {name: getattr(reference.spaces[name], split)[:n] for name in spaces}
    labels = reference.labels[split][:n] if reference.labels else None
    # A training example's nearest is itself.
    return _see(reference, features, labels, neighbour=2 if split == "train" else 1)


def _see(
    reference: Reference, features: dict[str, Tensor], label: Tensor | None, neighbour: int
) -> dict[str, Examples]:
    """The same examples as each section sees them."""
    seen = {
        name: Examples(features=of, nearest=nearest(of, reference.spaces[name].train, neighbour)[0][:, -1])
        for name, of in features.items()
    }
    if "classifier" in features:
        predicted = reference.predict(features["classifier"])
        seen[SAMPLES] = Examples(predicted=predicted) if label is None else Examples(label=label, predicted=predicted)
    return seen
