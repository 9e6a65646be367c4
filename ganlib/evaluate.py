"""Every metric on every feature space, each with an interval and with what real data would score.

A metric is measured in each section that has the columns it needs: in each feature space; in `"samples"`, if it reads
classes or scores of samples against their targets; in `"answers"`, if it reads the model's answers about real examples.
No metric's name appears here.
"""

from __future__ import annotations

import difflib
import functools
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist, stdev
from typing import Any

import torch
from torch import Tensor

from ganlib import registry, shards
from ganlib.config import ConfigError, EvaluateConfig
from ganlib.data._spec import NO_LABEL, Spec
from ganlib.export import Generator
from ganlib.metrics._neighbours import distinct, nearest
from ganlib.metrics._types import Examples
from ganlib.reference import Reference, Space

__all__ = [
    "ANSWERS",
    "SAMPLES",
    "Comparison",
    "Features",
    "Metrics",
    "Samples",
    "available_metrics",
    "compare",
    "curves",
    "evaluate",
    "extract_features",
    "metrics_of_section",
    "sample_for_evaluation",
]

SAMPLES = "samples"
_COMPARED = "compared by label"  # a column of examples that are
_LARGEST = 1e18  # of features, whose squares are float32
ANSWERS = "answers"

Samples = Mapping[str, Any]
"""`sample` `[N, ...]`; where there is such, `label`, `target`, the parts that were given and what is `naive`ly made of
them. Tensors, or `shards.LazyRows`. Of a model that answers questions also `answers`: `(split) -> Examples`, what it
says of the first N examples of a split"""

Metrics = dict[str, dict[str, dict[str, float]]]
"""`{space, "samples" or "answers": {metric: {"value", "low", "high", "floor", "copy", "before"}}}`; the floor where
there is one, what copies of the given parts score where there are such, and what the generator scored before the game
where it had been fitted"""


Features = dict[str, dict[str, Tensor]]
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


def sample_for_evaluation(generator: Generator, prepared: str | Path, n: int, *, seed: int, batch: int) -> Samples:
    """`n` samples to be measured, made of noise, of the classes of the first test examples in `prepared`, so that
    classes have the shares that they have there; or made of the given parts of the first `n` test examples, or of all
    if there are fewer: then with `given` and `target`.

    Samples are made when they are accessed, at most `batch` at a time.
    """
    spec, size = generator.spec, _at_a_time(generator.spec, batch)
    answers = {ANSWERS: functools.cache(functools.partial(_answers, generator, prepared, n, size))}
    answers = answers if generator.game.answers is not None else {}
    if not generator.translates:
        labels = _labels_of_test(prepared, n) if generator.conditional else None

        def drawn(rows: slice) -> Tensor:
            return generator.sample(n, seed=seed, label=labels, batch=size, rows=rows)["sample"]

        return {"sample": _rows(n, size, drawn), **generator.conditions(n, labels), **answers}
    stored, kind = shards.stored(prepared, "test", limit=n), spec.kind
    n = len(stored["sample"])
    real = {
        name: _rows(n, size, lambda rows, name=name: kind.decode(spec.sample, name, stored[name][rows]))  # type: ignore[misc]
        for name in spec.parts
    }

    def given(rows: slice) -> dict[str, Tensor]:
        return {name: real[name][rows] for name in spec.given}

    samples = {name: real[name] for name in spec.given}
    conditions = {"label": stored["label"]} if generator.game.classes else {}
    conditions |= {"attributes": stored["attributes"]} if generator.game.attributes else {}

    def made(rows: slice) -> Tensor:
        return generator.sample(n, given=given(rows), seed=seed, batch=size, rows=rows, **conditions)["sample"]

    samples |= {"sample": _rows(n, size, made), **conditions}
    if kind.ALIGNED:
        samples["target"] = real["sample"]
    if (naive := kind.naive) is not None:
        samples["naive"] = _rows(n, size, lambda rows: naive(spec.sample, given(rows)))
    return {**samples, **answers}


def _labels_of_test(prepared: str | Path, n: int) -> Tensor | None:
    """Labels `[n]` of the first test examples that have one, again and again if there are fewer; None if none has."""
    stored = shards.stored(prepared, "test")
    labels = stored["label"][stored["label"] != NO_LABEL] if "label" in stored else ()
    return labels[torch.arange(n) % len(labels)] if len(labels) else None


def _answers(generator: Generator, prepared: str | Path, n: int, size: int, split: str) -> Examples:
    """The answers of a model about the first `n` examples of a split, or about all if there are fewer.

    Only answers that a metric needs; with `label` if there are labels, and `anomalous` if there are anomalies. `size`
    examples are in memory at a time.
    """
    spec, kind = generator.spec, generator.spec.kind
    stored = shards.stored(prepared, split, limit=n)
    n, is_anomalous = len(stored["sample"]), split == shards.ANOMALIES
    known = {name: stored[name] for name in ("label",) if name in stored and not is_anomalous}
    if shards.ANOMALIES in shards.read_spec(prepared).counts:
        known["anomalous"] = torch.full((n,), is_anomalous)
    conditions = {name: stored[name] for name in generator.conditioned_on if not is_anomalous}
    needed = {need for metric in registry.load_all("metrics", kind.LOOKS).values() for need in metric.NEEDS}
    found: dict[str, list[Tensor]] = {}
    for start in range(0, n, size):
        rows = slice(start, start + size)
        parts = {name: kind.decode(spec.sample, name, stored[name][rows]) for name in spec.parts}
        parts |= {name: column[rows] for name, column in conditions.items()}
        for name, answer in generator.answer(parts, batch=size).items():
            if name in needed:  # pictures are many numbers
                found.setdefault(name, []).append(answer)
    return {**{name: torch.cat(answers) for name, answers in found.items()}, **known}


def _rows(n: int, size: int, make: Callable[[slice], Tensor]) -> shards.LazyRows:
    """`n` rows, made `size` at a time."""
    parts = [slice(start, min(start + size, n)) for start in range(0, n, size)]
    return shards.LazyRows([part.stop for part in parts], lambda i: make(parts[i]))


def _at_a_time(spec: Spec, batch: int) -> int:
    return min(batch, shards.rows_per_chunk(spec.size))


def available_metrics(reference: Reference, *, labelled: bool, answers: Iterable[str] = ()) -> list[str]:
    """Every `section.metric` that `evaluate` will find in samples that are yet to be made; those of a generator
    that is class-conditional are `labelled`, and its model may have `answers` of these names. Raises ConfigError for a
    metric that needs a column by a name that is nearly one that there is."""
    looks = reference.spec.kind.LOOKS
    sections = {name: list(_columns(space.column)) for name, space in reference.spaces.items()}
    if labelled and reference.spec.kind.BY_LABEL:
        sections |= {f"{name}/{one}": known for name, known in sections.items() for one in reference.spec.classes}
    if reference.spec.given and reference.spec.kind.ALIGNED:
        nothing = torch.zeros(0, *reference.spec.shape)
        views = reference.spec.kind.views(reference.spec.sample, nothing)
        sections |= {section: list(_scoring(looks)) for section in views}
    if reference.classifier is not None:
        sections.setdefault(SAMPLES, []).extend(["predicted", "label"] if labelled else ["predicted"])
    if answers := [*answers]:
        spec = reference.spec
        anomalous, label = ["anomalous"] * (shards.ANOMALIES in spec.counts), ["label"] * bool(spec.classes)
        sections[ANSWERS] = [*answers, *label, *anomalous]
    _check_needs(looks, {column for known in sections.values() for column in known})
    return [f"{name}.{metric}" for name, known in sections.items() for metric in metrics_of_section(name, looks, known)]


def _check_needs(looks: str, columns: set[str]) -> None:
    columns = columns | {*_columns("features"), "predicted", "label", "anomalous", *_scoring(looks)}
    for name, metric in registry.load_all("metrics", looks).items():
        for need in metric.NEEDS:
            # what else is unknown may be filled by another space or family
            if need not in columns and (alike := difflib.get_close_matches(need, columns, 1, 0.8)):
                raise ConfigError(
                    f"metric {name}: NEEDS the column {need!r}, which nothing fills (did you mean {alike[0]!r}?); "
                    f"known: {', '.join(sorted(columns))}"
                )


def evaluate(
    samples: Samples,
    reference: Reference,
    cfg: EvaluateConfig,
    seed: int,
    features: Features | None = None,
    before: Samples | None = None,
) -> Metrics:
    """Measure samples against the first N of test: by themselves, by the `label` that was asked for, by the `target`
    that they should be. `features` are what `extract_features` gives of them, if that is at hand.

    `floor` is the score of the first N training examples in the fakes' place, `copy` that of `naive`, `before` that of
    N samples made before the game. Raises ValueError if there are fewer.
    """
    spec, n = reference.spec, len(samples["sample"])
    if n > reference.size:
        raise ValueError(f"{n} samples, but the floor needs as many training examples, and there are {reference.size}")
    fakes = _with_labels(features or extract_features(samples, reference, cfg.batch), spec)
    reals, floors = (
        _with_labels(_of_split(reference, split, n, reference.spaces), spec) for split in ("test", "train")
    )
    copies: Features = {}
    if "naive" in samples:
        known = {name: samples[name] for name in ({"target"} | _labels_needed(spec)) & samples.keys()}
        copies = _with_labels(extract_features({"sample": samples["naive"], **known}, reference, cfg.batch), spec)
    earlier = {} if before is None else _with_labels(extract_features(before, reference, cfg.batch), spec)
    found: Metrics = {}
    baselines: dict[str, tuple[Examples, Examples]]
    for section, fake in fakes.items():
        real = {**fake, **reals.get(section, {})}  # what is compared with its target needs nothing else
        for name, metric in metrics_of_section(section, spec.kind.LOOKS, real, fake).items():
            others = {"floor": floors, "copy": copies, "before": earlier}
            baselines = {baseline: (real, sets.get(section, {})) for baseline, sets in others.items()}
            found.setdefault(section, {})[name] = _figures(metric, spec, (real, fake), baselines, cfg, seed)
    if ANSWERS in samples:
        sides = _answer_sides(samples, reference)
        floor = (samples[ANSWERS]("train"), sides[1])
        baselines = {"floor": floor} if before is None else {"floor": floor, "before": _answer_sides(before, reference)}
        for name, metric in metrics_of_section(ANSWERS, spec.kind.LOOKS, *sides).items():
            found.setdefault(ANSWERS, {})[name] = _figures(metric, spec, sides, baselines, cfg, seed)
    return found


def curves(samples: Samples, reference: Reference) -> dict[str, dict[str, list[float]]]:
    """Of the metrics of answers that are areas under a curve: that curve, each coordinate by its name."""
    if ANSWERS not in samples:
        return {}
    sides = _answer_sides(samples, reference)
    metrics = metrics_of_section(ANSWERS, reference.spec.kind.LOOKS, *sides)
    return {name: metric.curve(*sides) for name, metric in metrics.items() if hasattr(metric, "curve")}


def _answer_sides(samples: Samples, reference: Reference) -> tuple[Examples, Examples]:
    """What the model says of test examples, and of anomalies where there are any; else twice of test examples."""
    other = shards.ANOMALIES if shards.ANOMALIES in reference.spec.counts else "test"
    return samples[ANSWERS]("test"), samples[ANSWERS](other)


def _figures(
    metric: Any,
    spec: Spec,
    sides: tuple[Examples, Examples],
    baselines: Mapping[str, tuple[Examples, Examples]],
    cfg: EvaluateConfig,
    seed: int,
) -> dict[str, float]:
    """The metric of `(real, fake)`, its interval, and its value for other sides by the name of the baseline, where
    these have the columns that it needs."""
    compute = _compute(metric, spec)
    value = compute(*sides)
    halfwidth = _ci_halfwidth([compute(*half) for (half,) in _halves(metric, cfg, seed, sides)], cfg)
    least, most = getattr(metric, "BOUNDS", (-math.inf, math.inf))
    figures = {"value": value, "low": max(value - halfwidth, least), "high": min(value + halfwidth, most)}
    for name, others in baselines.items():
        if all(need in side for side in others for need in metric.NEEDS):
            figures[name] = compute(*others)
    return figures


def _compute(metric: Any, spec: Spec) -> Callable[[Examples, Examples], float]:
    """A metric's function of reals and fakes, given the kind's `Config` where it asks for that; of examples that are
    compared by label, the mean over labels."""
    compute: Callable[[Examples, Examples], float] = metric.compute
    if getattr(metric, "TAKES_CONFIG", False):
        compute = functools.partial(metric.compute, spec.sample)
    return functools.partial(_mean_over_labels, compute) if spec.kind.BY_LABEL else compute


def _mean_over_labels(compute: Callable[[Examples, Examples], float], real: Examples, fake: Examples) -> float:
    if _COMPARED not in real or _COMPARED not in fake:
        return compute(real, fake)
    labels = real[_COMPARED].unique().tolist()
    return math.fsum(compute(_of_label(real, one), _of_label(fake, one)) for one in labels) / len(labels)


def _of_label(examples: Examples, label: int) -> dict[str, Tensor]:
    chosen = examples[_COMPARED] == label
    return {name: column[chosen] for name, column in examples.items() if name != _COMPARED}


def _labels_needed(spec: Spec) -> set[str]:
    """The columns besides features that a comparison in a feature space needs."""
    return {"label"} if spec.kind.BY_LABEL else set()


def _with_labels(features: Features, spec: Spec) -> Features:
    """Also a section `SPACE/CLASS` for each class, where examples are compared by label."""
    parts = {
        f"{section}/{name}": _of_label(examples, label)
        for section, examples in features.items()
        if _COMPARED in examples
        for label, name in enumerate(spec.classes)
    }
    return {**features, **parts}


def extract_features(
    samples: Samples, reference: Reference, batch: int, spaces: Iterable[str] | None = None
) -> Features:
    """The columns of samples that metrics need: features in all `spaces`, the classifier's classes, or scores against
    targets. Few samples are in memory at a time. Raises ValueError for samples without
    finite features."""
    spec = reference.spec
    size, scoring = _at_a_time(spec, batch), _scoring(spec.kind.LOOKS)
    features: dict[str, list[Tensor]] = {space: [] for space in (reference.spaces if spaces is None else spaces)}
    scores: dict[str, dict[str, list[Tensor]]] = {}
    for start in range(0, len(samples["sample"]), size):
        rows = slice(start, start + size)
        chunk = samples["sample"][rows]
        for space, found in features.items():
            of_space = reference.spaces[space]
            found.append(of_space.extract(chunk))
            if of_space.column == "features" and not (found[-1].abs() <= _LARGEST).all():  # false for NaN, too
                raise ValueError(
                    f"samples {start} to {start + len(chunk) - 1} have features in {space} that are no numbers, or "
                    f"beyond {_LARGEST:g}: the generator diverged while it was trained"
                )
        if "target" in samples:
            made, targets = (spec.kind.views(spec.sample, x) for x in (chunk, samples["target"][rows]))
            for section, target in targets.items():
                # one by one: how many are looked at together then does not matter, not even to rounding
                pairs = list(zip(made[section].split(1), target.split(1), strict=True))
                of_section = scores.setdefault(section, {name: [] for name in scoring})
                for name, values in of_section.items():
                    values += [scoring[name].score(spec.sample, *pair) for pair in pairs]
    whole = {space: torch.cat(found) for space, found in features.items()}
    seen = _features_of(reference, whole, samples.get("label"))
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
            f"{n} samples of the challenger, {len(champion['sample'])} of the champion: expected equal numbers"
        )
    section, _, name = metric.rpartition(".")  # a class may have a dot in its name
    nothing = torch.zeros(0, *reference.spec.shape)
    answers = [ANSWERS] if ANSWERS in challenger and ANSWERS in champion else []
    by_label = reference.spec.classes if reference.spec.kind.BY_LABEL and "label" in challenger else ()
    sections = [
        *reference.spaces,
        *(f"{space}/{name}" for space in reference.spaces for name in by_label),
        *{SAMPLES: None, **reference.spec.kind.views(reference.spec.sample, nothing)},
        *answers,
    ]
    if section not in sections:
        raise ConfigError(f"metric {metric!r}: no section {section!r}; known: {', '.join(sections)}")
    if section == ANSWERS:
        sides = [_answer_sides(made, reference) for made in (challenger, champion)]
    else:
        space_name = "classifier" if section == SAMPLES else section.partition("/")[0]
        spaces = [space for space in reference.spaces if space == space_name]
        if section != SAMPLES and spaces:  # the other metrics of it are not needed
            needed = {"sample"} | _labels_needed(reference.spec)
            challenger, champion = (
                {name: made[name] for name in needed & made.keys()} for made in (challenger, champion)
            )
        one, other = (
            _with_labels(extract_features(made, reference, cfg.batch, spaces), reference.spec).get(section, {})
            for made in (challenger, champion)
        )
        reals = _with_labels(_of_split(reference, "test", n, spaces), reference.spec)
        real = {**one, **reals.get(section, {})}
        sides = [(real, one), (real, other)]
    known = metrics_of_section(section, reference.spec.kind.LOOKS, *sides[0], *sides[1])
    if name not in known:
        raise ConfigError(f"metric {metric!r} cannot be measured here; {section} has: {', '.join(known) or 'none'}")
    compute, direction = _compute(known[name], reference.spec), known[name].DIRECTION
    first, second = (compute(*side) for side in sides)
    gap = first - second
    halfwidth = _ci_halfwidth(
        [compute(*one) - compute(*other) for one, other in _halves(known[name], cfg, seed, *sides)], cfg
    )
    return Comparison(metric, direction, first, second, gap, gap - halfwidth, gap + halfwidth)


def _halves(
    metric: Any, cfg: EvaluateConfig, seed: int, *sides: tuple[Examples, Examples]
) -> Iterator[list[tuple[Examples, Examples]]]:
    """Random halves of each `(real, fake)`, which are all cut alike, of each label that is compared by itself; fewer
    for a slow metric."""
    rng = torch.Generator().manual_seed(seed)
    of_labels = [_rows_of_labels(whole) for whole in sides[0]]
    for _ in range(min(cfg.resamples, getattr(metric, "RESAMPLES", cfg.resamples))):
        chosen = [
            torch.cat([rows[torch.randperm(len(rows), generator=rng)[: len(rows) // 2]] for rows in of])
            for of in of_labels
        ]
        yield [(_rows_of(real, chosen[0]), _rows_of(fake, chosen[1])) for real, fake in sides]


def _rows_of_labels(examples: Examples) -> list[Tensor]:
    """The rows of each label that is compared by itself, else all."""
    if _COMPARED in examples:
        column = examples[_COMPARED]
        return [(column == one).nonzero()[:, 0] for one in column.unique()]
    return [torch.arange(len(next(iter(examples.values()))))]


def _rows_of(examples: Examples, rows: Tensor) -> Examples:
    return {name: column[rows] for name, column in examples.items()}


def _ci_halfwidth(values: list[float], cfg: EvaluateConfig) -> float:
    """Half the width of the normal interval around a statistic whose values on halves are given.

    A random half, drawn without repetition, strays from the whole with the same variance as the whole from the
    population (McCarthy 1969; Politis & Romano 1994). A bootstrap would repeat examples, which distances between
    distributions, and balls around neighbours most of all, take for a narrower distribution. Values of halves are
    biased too, because they are fewer: hence their spread around the value of the whole, and not their quantiles.
    """
    return NormalDist().inv_cdf((1 + cfg.confidence) / 2) * stdev(values)


def metrics_of_section(section: str, looks: str, *sides: Collection[str]) -> dict[str, Any]:
    """Metrics whose needs are columns of all sides, by the name they go by in this section."""
    return {
        getattr(metric, "ALIASES", {}).get(section.partition("/")[0], name): metric
        for name, metric in registry.load_all("metrics", looks).items()
        if all(need in side for need in metric.NEEDS for side in sides)
    }


def _scoring(looks: str) -> dict[str, Any]:
    """Metrics that score each sample against its target."""
    return {name: metric for name, metric in registry.load_all("metrics", looks).items() if hasattr(metric, "score")}


def _columns(column: str) -> tuple[str, ...]:
    """The columns of a section whose feature space fills `column`."""
    return (column, "nearest", "closer") if column == "features" else (column,)


def _of_split(reference: Reference, split: str, n: int, spaces: Iterable[str]) -> Features:
    """The first `n` of a split, or all if there are fewer; their stored order is random. Where examples are compared by
    label, training examples are as many of each as the first `n` for testing."""
    rows: slice | Tensor = slice(n)
    if split == "train" and reference.labels and reference.spec.kind.BY_LABEL:
        counts = reference.labels["test"][:n].bincount().tolist()
        of_each = [(reference.labels["train"] == label).nonzero()[:count, 0] for label, count in enumerate(counts)]
        rows = torch.cat(of_each).sort().values
    features = {name: getattr(reference.spaces[name], split)[rows] for name in spaces}
    labels = reference.labels[split][rows] if reference.labels else None
    return _features_of(reference, features, labels, split)


def _features_of(reference: Reference, features: dict[str, Tensor], label: Tensor | None, split: str = "") -> Features:
    """The same examples, the first of a split or made, as each section sees them."""
    seen: Features = {}
    metrics = registry.load_all("metrics", reference.spec.kind.LOOKS).values()
    for name, of in features.items():
        space = reference.spaces[name]
        seen[name] = {space.column: of}
        if label is not None and reference.spec.kind.BY_LABEL:
            seen[name][_COMPARED] = label
        if space.column == "features":
            # a training example's nearest is itself, also where it is a sample of several examples
            pool = space.train if reference.spec.kind.ALIGNED else distinct(space.train)
            seen[name]["nearest"] = nearest(of, pool, 2 if split == "train" else 1)[0][:, -1]
            if any("closer" in metric.NEEDS for metric in metrics):
                seen[name]["closer"] = _closer(space, of, split)
    if "classifier" in features:
        predicted = {"predicted": reference.predict(features["classifier"])}
        seen[SAMPLES] = predicted if label is None else {**predicted, "label": label}
    return seen


def _closer(space: Space, of: Tensor, split: str) -> Tensor:
    """Whether each is closer to training examples than to the same number of test examples: 1, 0, or a half where both
    are as close."""
    size = min(len(space.train), len(space.test))
    found = []
    for name, pool in (("train", space.train[:size]), ("test", space.test[:size])):
        distances = nearest(of, pool, 2)[0]
        itself = torch.arange(len(of)) < (size if name == split else 0)
        found.append(torch.where(itself, distances[:, 1], distances[:, 0]))
    train, test = found
    return (train < test).double() + (train == test).double() / 2
