"""Every metric on every feature space, each with an interval and with what real data would score.

A metric is measured wherever the columns it needs are known: in each feature space, or, if it reads classes or what
images scored beside their targets, under `"samples"`. No metric's name appears here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist, stdev
from typing import Any

import torch
from torch import Tensor

from ganlib import registry, shards
from ganlib.config import ConfigError, EvaluateConfig
from ganlib.data._spec import Spec
from ganlib.export import Generator
from ganlib.metrics._neighbours import nearest
from ganlib.metrics._types import Examples
from ganlib.reference import Reference

__all__ = [
    "SAMPLES",
    "Comparison",
    "Metrics",
    "Samples",
    "Seen",
    "compare",
    "draw",
    "evaluate",
    "look",
    "measurable",
]

SAMPLES = "samples"

Samples = Mapping[str, Any]
"""`sample` `[N, ...]`; where there is such, `label`, `target`, the parts that were given and what is `naive`ly made of
them. Tensors, or `shards.LazyRows`"""

Metrics = dict[str, dict[str, dict[str, float]]]
"""`{space or "samples": {metric: {"value", "low", "high", "floor", "copy"}}}`; the floor where there is one, and what
copies of the given images score where there are such"""


Seen = dict[str, dict[str, Tensor]]
"""Examples as each section sees them."""


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


def draw(generator: Generator, prepared: str | Path, n: int, *, seed: int, batch: int) -> Samples:
    """`n` samples to be judged: made of noise, or of the first test examples in `prepared`, of which there may be
    fewer; these also have `given` and `target`. Images are made when they are looked at, at most `batch` at a time."""
    spec, size = generator.spec, _at_a_time(generator.spec, batch)
    if not generator.translates:
        drawn = _rows(n, size, lambda rows: generator.sample(n, seed=seed, batch=size, rows=rows)["sample"])
        return {"sample": drawn, **generator.conditions(n)}
    stored, kind = shards.stored(prepared, "test", limit=n), spec.kind
    n = len(stored["sample"])
    real = {
        name: _rows(n, size, lambda rows, name=name: kind.decode(spec.sample, name, stored[name][rows]))  # type: ignore[misc]
        for name in spec.parts
    }

    def given(rows: slice) -> dict[str, Tensor]:
        return {name: real[name][rows] for name in spec.given}

    samples = {name: real[name] for name in spec.given}
    told = {"label": stored["label"]} if generator.game.classes else {}
    told |= {"attributes": stored["attributes"]} if generator.game.attributes else {}

    def made(rows: slice) -> Tensor:
        return generator.sample(n, given=given(rows), seed=seed, batch=size, rows=rows, **told)["sample"]

    samples |= {"sample": _rows(n, size, made), **told}
    if kind.ALIGNED:
        samples["target"] = real["sample"]
    if (naive := kind.naive) is not None:
        samples["naive"] = _rows(n, size, lambda rows: naive(spec.sample, given(rows)))
    return samples


def _rows(n: int, size: int, make: Callable[[slice], Tensor]) -> shards.LazyRows:
    """`n` rows, made `size` at a time."""
    parts = [slice(start, min(start + size, n)) for start in range(0, n, size)]
    return shards.LazyRows([part.stop for part in parts], lambda i: make(parts[i]))


def _at_a_time(spec: Spec, batch: int) -> int:
    return min(batch, shards.rows_per_chunk(spec.size))


def measurable(reference: Reference, *, labelled: bool) -> list[str]:
    """Every `section.metric` that `evaluate` will find in samples that are yet to be made; those of a generator
    that is told a class are `labelled`."""
    looks = reference.spec.kind.LOOKS
    sections = {name: list(_columns(space.column)) for name, space in reference.spaces.items()}
    if reference.spec.given and reference.spec.kind.ALIGNED:
        nothing = torch.zeros(0, *reference.spec.shape)
        views = reference.spec.kind.views(reference.spec.sample, nothing)
        sections |= {section: list(_scoring(looks)) for section in views}
    if reference.classifier is not None:
        sections.setdefault(SAMPLES, []).extend(["predicted", "label"] if labelled else ["predicted"])
    return [f"{name}.{metric}" for name, known in sections.items() for metric in _measurable(name, looks, known)]


def evaluate(
    samples: Samples, reference: Reference, cfg: EvaluateConfig, seed: int, seen: Seen | None = None
) -> Metrics:
    """Measure samples, of which `look` may have `seen` all, against the first N of test: by themselves, by the `label`
    that was asked for, by the `target` that they should be.

    `floor` is the score of the first N training examples in the fakes' place, `copy` that of `naive`. Raises
    ValueError if there are fewer.
    """
    spec, n = reference.spec, len(samples["sample"])
    if n > reference.size:
        raise ValueError(f"{n} samples, but the floor can be had for {reference.size} training examples only")
    fakes = seen or look(samples, reference, cfg.batch)
    reals, floors = (_of_split(reference, split, n, reference.spaces) for split in ("test", "train"))
    copies: Seen = {}
    if "naive" in samples:
        copied = {"sample": samples["naive"], **{name: samples[name] for name in ("target",) if name in samples}}
        copies = look(copied, reference, cfg.batch)
    found: Metrics = {}
    for section, fake in fakes.items():
        real = {**fake, **reals.get(section, {})}  # what is compared with its target needs nothing else
        for name, metric in _measurable(section, spec.kind.LOOKS, real, fake).items():
            value = metric.compute(real, fake)
            reach = _reach([metric.compute(r, f) for r, f in _halves(cfg, seed, real, fake)], cfg)
            figures = {"value": value, "low": value - reach, "high": value + reach}
            for baseline, sets in (("floor", floors), ("copy", copies)):
                if all(need in sets.get(section, {}) for need in metric.NEEDS):
                    figures[baseline] = metric.compute(real, sets[section])
            found.setdefault(section, {})[name] = figures
    return found


def look(samples: Samples, reference: Reference, batch: int, spaces: Iterable[str] | None = None) -> Seen:
    """What metrics need to know of samples, of which few are held at a time: their features in all `spaces`, their
    classes as the classifier sees them, or how near they are to their targets."""
    spec = reference.spec
    size, scoring = _at_a_time(spec, batch), _scoring(spec.kind.LOOKS)
    features: dict[str, list[Tensor]] = {space: [] for space in (reference.spaces if spaces is None else spaces)}
    scores: dict[str, dict[str, list[Tensor]]] = {}
    for start in range(0, len(samples["sample"]), size):
        rows = slice(start, start + size)
        images = samples["sample"][rows]
        for space, found in features.items():
            found.append(reference.spaces[space].extract(images))
        if "target" in samples:
            made, targets = (spec.kind.views(spec.sample, x) for x in (images, samples["target"][rows]))
            for section, target in targets.items():
                # one by one: how many are looked at together then does not matter, not even to rounding
                pairs = list(zip(made[section].split(1), target.split(1), strict=True))
                of_section = scores.setdefault(section, {name: [] for name in scoring})
                for name, values in of_section.items():
                    values += [scoring[name].score(spec.sample, *pair) for pair in pairs]
    whole = {space: torch.cat(found) for space, found in features.items()}
    seen = _see(reference, whole, samples.get("label"), neighbour=1)
    for section, of_section in scores.items():
        seen.setdefault(section, {}).update({name: torch.cat(values) for name, values in of_section.items()})
    return seen


def compare(
    challenger: Samples,
    champion: Samples,
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
    nothing = torch.zeros(0, *reference.spec.shape)
    sections = [*reference.spaces, *{SAMPLES: None, **reference.spec.kind.views(reference.spec.sample, nothing)}]
    if section not in sections:
        raise ConfigError(f"metric {metric!r}: no section {section!r}; known: {', '.join(sections)}")
    spaces = [space for space in reference.spaces if space == ("classifier" if section == SAMPLES else section)]
    if section in reference.spaces:  # of which the rest would be measured in vain
        challenger, champion = ({"sample": made["sample"]} for made in (challenger, champion))
    one, other = (look(made, reference, cfg.batch, spaces).get(section, {}) for made in (challenger, champion))
    real = {**one, **_of_split(reference, "test", n, spaces).get(section, {})}
    known = _measurable(section, reference.spec.kind.LOOKS, real, one, other)
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
    sizes = [len(next(iter(whole.values()))) for whole in (real, fakes[0])]
    for _ in range(cfg.resamples):
        of_real, of_fake = (torch.randperm(n, generator=rng)[: n // 2] for n in sizes)
        cuts = [(real, of_real), *((fake, of_fake) for fake in fakes)]
        yield tuple({name: column[rows] for name, column in whole.items()} for whole, rows in cuts)


def _reach(values: list[float], cfg: EvaluateConfig) -> float:
    """Half the width of the normal interval around a statistic whose values on halves are given.

    A random half, drawn without repetition, strays from the whole with the same variance as the whole from the
    population (McCarthy 1969; Politis & Romano 1994). A bootstrap would repeat examples, which distances between
    distributions, and balls around neighbours most of all, take for a narrower distribution. Values of halves are
    biased too, because they are fewer: hence their spread around the value of the whole, and not their quantiles.
    """
    return NormalDist().inv_cdf((1 + cfg.confidence) / 2) * stdev(values)


def _measurable(section: str, looks: str, *sides: Collection[str]) -> dict[str, Any]:
    """Metrics whose needs are columns of all sides, by the name they go by in this section."""
    return {
        getattr(metric, "ALIASES", {}).get(section, name): metric
        for name, metric in _metrics(looks).items()
        if all(need in side for need in metric.NEEDS for side in sides)
    }


def _scoring(looks: str) -> dict[str, Any]:
    """Metrics that score each sample against its target."""
    return {name: metric for name, metric in _metrics(looks).items() if hasattr(metric, "score")}


def _metrics(looks: str) -> dict[str, Any]:
    return {name: registry.load("metrics", name, looks) for name in registry.names("metrics", looks)}


def _columns(column: str) -> tuple[str, ...]:
    """The columns of a section whose feature space fills `column`."""
    return (column, "nearest") if column == "features" else (column,)


def _of_split(reference: Reference, split: str, n: int, spaces: Iterable[str]) -> Seen:
    """The first `n` of a split, or all if there are fewer; their stored order is random."""
    features = {name: getattr(reference.spaces[name], split)[:n] for name in spaces}
    labels = reference.labels[split][:n] if reference.labels else None
    # A training example's nearest is itself.
    return _see(reference, features, labels, neighbour=2 if split == "train" else 1)


def _see(reference: Reference, features: dict[str, Tensor], label: Tensor | None, neighbour: int) -> Seen:
    """The same examples as each section sees them."""
    seen: Seen = {}
    for name, of in features.items():
        space = reference.spaces[name]
        seen[name] = {space.column: of}
        if space.column == "features":
            seen[name]["nearest"] = nearest(of, space.train, neighbour)[0][:, -1]
    if "classifier" in features:
        predicted = {"predicted": reference.predict(features["classifier"])}
        seen[SAMPLES] = predicted if label is None else {**predicted, "label": label}
    return seen
