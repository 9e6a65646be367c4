"""The gate: a version is promoted if it meets the thresholds and is clearly better than the champion.

The two are compared by `gate.metric`, on the same test examples. `promotion.py` carries the decision out.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ganlib import registry
from ganlib.config import GateConfig, Params
from ganlib.data._spec import Spec
from ganlib.device import default_device
from ganlib.evaluate import Comparison, Samples, available_metrics, compare, sample_for_evaluation
from ganlib.export import Generator, load_generator
from ganlib.reference import Reference
from ganlib.registry import nearest
from ganlib.scratch import scratch_folder
from pipelines import model_registry
from pipelines._stage import PREPARED, REFERENCE, StageError
from pipelines.model_card import Metrics
from pipelines.model_registry import Version
from pipelines.tracking import Store

__all__ = [
    "CHAMPION",
    "Decision",
    "compare_generators",
    "decide",
    "decide_between",
    "deciding_figures",
    "failed_thresholds",
    "load_or_reason",
    "metric_of",
]

CHAMPION = "champion"


@dataclass(frozen=True)
class Decision:
    """What the gate decided, and on which figures. `difference` is challenger minus champion."""

    decision: str
    """`promoted`, `refused`, or `held`: good enough, and waiting for a person's approval"""
    reason: str
    metric: str
    challenger: float
    champion_version: int | None = None
    champion: float | None = None
    difference: float | None = None
    low: float | None = None
    high: float | None = None

    def tags(self) -> dict[str, str]:
        """Tags of a version, `gate.decision` last: where another process reads it, the others are there."""
        values = dataclasses.asdict(self)
        values["decision"] = values.pop("decision")
        return {f"gate.{k}": v if isinstance(v, str) else json.dumps(v) for k, v in values.items()}

    @classmethod
    def from_tags(cls, tags: Mapping[str, str]) -> Decision:
        found = {field.name: tags[f"gate.{field.name}"] for field in dataclasses.fields(cls)}
        text = ("decision", "reason", "metric")
        parsed: dict[str, Any] = {k: v if k in text else json.loads(v) for k, v in found.items()}
        return cls(**parsed)


def decide(
    store: Store,
    params: Params,
    champion: Version | None,
    generator: Generator,
    metrics: Metrics,
    faults: Sequence[str] = (),
) -> Decision:
    """The decision on a generator with the metrics of the stage `evaluate`, against the champion, if there is one.

    `faults` are reasons to refuse it independent of the metrics."""
    metric = metric_of(params.gate, metrics)
    space, _, name = metric.rpartition(".")  # a class may have a dot in its name
    own = _number(metrics[space][name]["value"])
    failed = [*faults, *failed_thresholds(metrics, params.gate, labelled=generator.conditional)]
    if math.isnan(own):
        failed.append(f"{metric} is not a number")
    if failed:
        return Decision("refused", "; ".join(failed), metric, own, None if champion is None else champion.number)
    if champion is None:
        return Decision("promoted", "the first to meet the thresholds", metric, own)
    return _against(store, params, metric, champion, generator, own)


def metric_of(gate: GateConfig, known: Iterable[str] | Metrics) -> str:
    """The metric to decide by, `section.metric`: the gate's own, or kid in the first feature space.

    `known` are those that are measured. Raises StageError if it is not among them.
    """
    names = (
        [f"{space}.{name}" for space, named in known.items() for name in named]
        if isinstance(known, Mapping)
        else [*known]
    )
    metric = gate.metric or next((name for name in names if name.endswith(".kid")), "kid")
    if metric not in names:
        raise StageError(f"gate.metric: {metric!r} is not measured{nearest(metric, names)}; known: {', '.join(names)}")
    return metric


def deciding_figures(metrics: Metrics, gate: GateConfig) -> Metrics:
    """The figures that the gate decides by, as sections of `metrics`: the metric that champions are compared by first,
    then those with thresholds, where they were measured."""
    section, _, name = metric_of(gate, metrics).rpartition(".")
    chosen = {(section, name): metrics[section][name]}
    for name in (*gate.at_least, *gate.at_most):
        if of := _section_of(name, metrics, section):
            chosen[of, name] = metrics[of][name]
    sections = dict.fromkeys(of for of, _ in chosen)
    return {of: {name: chosen[of, name] for other, name in chosen if other == of} for of in sections}


def _section_of(name: str, metrics: Metrics, first: str) -> str | None:
    """The section whose figure of a metric counts: the first asked for, or the first of all that has it."""
    return next((section for section in (first, *metrics) if name in metrics[section]), None)


def failed_thresholds(metrics: Metrics, gate: GateConfig, *, labelled: bool) -> list[str]:
    """The thresholds `gate.at_least` and `gate.at_most` that are not met, each as a reason.

    Each figure is that of the metric's section by which the gate decides, or, where this has none, of the first that
    has. A share that real data do not reach is relative to their score: with few examples, few have another nearby.
    Thresholds on metrics that need labels apply only to a class-conditional (`labelled`) generator. Raises StageError
    for any other metric that was not measured.
    """
    own = metric_of(gate, metrics).rpartition(".")[0]
    failed, absent = [], []
    for name, bound, sign in (
        *((name, bound, 1) for name, bound in gate.at_least.items()),
        *((name, bound, -1) for name, bound in gate.at_most.items()),
    ):
        section = _section_of(name, metrics, own)
        if section is None:
            absent += [name] if labelled or not _needs_labels(name) else []
            continue
        value, floor = (_number(metrics[section][name].get(figure)) for figure in ("value", "floor"))
        share = min(1.0, floor) if sign > 0 and floor >= 0 else 1.0
        # `not >=` so that a value that is not a number fails
        if not sign * value >= sign * bound * share:
            which, side, way = ("at_least", "below", "lower") if sign > 0 else ("at_most", "above", "raise")
            reason = f"{name} {value:.3g} is {side} gate.{which}.{name} {bound:g}"
            if not math.isnan(floor):
                times = f" x {share:.3g}" if share < 1 else ""
                reason += (
                    f"{times} in {section}, where real data score {floor:.3g}: train longer (train.kimg), or {way} it"
                )
            failed.append(reason)
    if absent:
        raise StageError(f"metrics.json: the gate needs {' and '.join(absent)}")
    return failed


def _needs_labels(metric: str) -> bool:
    """Whether a metric reads the classes that a generator was conditioned on."""
    places = registry.places("metrics")
    return metric in places and "label" in registry.load("metrics", metric, places[metric]).NEEDS


def decide_between(store: Store, params: Params, champion: Version, challenger: Version) -> Decision:
    """The decision on a version that meets the thresholds, against another that does."""
    decided = Decision.from_tags(challenger.tags)
    own, metric = decided.challenger, params.gate.metric or decided.metric
    with scratch_folder() as scratch:
        generator = load_or_reason(store, challenger, Path(scratch))
    if isinstance(generator, str):
        return Decision("refused", f"it cannot be loaded: {generator}", metric, own, champion.number)
    return _against(store, params, metric, champion, generator, own)


def _against(
    store: Store, params: Params, metric: str, champion: Version, generator: Generator, own: float
) -> Decision:
    """The decision on a generator that meets the thresholds; `own` is its figure in the stage `evaluate`."""
    gate, number = params.gate, champion.number
    with scratch_folder() as scratch:
        rival = load_or_reason(store, champion, Path(scratch))
    if isinstance(rival, str):
        reason = f"the champion, version {number}, cannot be loaded, so the alias is yours to move: {rival}"
        return Decision("refused", reason, metric, own, number)
    differs = _differences(rival.spec, generator.spec)
    if differs:
        reason = (
            f"not comparable with the champion, version {number}, whose {' and '.join(differs)} differ; "
            "register under another tracking.registered_model or move the alias by hand"
        )
        return Decision("refused", reason, metric, own, number)
    figures = _compare(generator, rival, params, metric)
    better = figures.low > gate.margin if figures.direction == "higher" else figures.high < -gate.margin
    reason = (
        f"{'better' if better else 'not clearly better'} than version {number}: "
        f"{metric} {figures.challenger:.4g} against {figures.champion:.4g}, "
        f"difference {figures.difference:+.3g} in [{figures.low:+.3g}, {figures.high:+.3g}] "
        f"({figures.direction} is better, margin {gate.margin:g})"
    )
    return Decision(
        "promoted" if better else "refused",
        reason,
        metric,
        figures.challenger,
        number,
        figures.champion,
        figures.difference,
        figures.low,
        figures.high,
    )


def _differences(one: Spec, other: Spec) -> list[str]:
    """Names of the facts in which two generators differ, so that their samples are not comparable; empty if none."""

    def facts(spec: Spec) -> dict[str, object]:
        given = {name: spec.parts[name] for name in spec.given}
        learnt = {"sample": spec.sample} if spec.kind.learns else {}
        of_data = {"classes": spec.classes, "attributes": spec.attributes}
        return {"kind": spec.kind, "shape": spec.shape, "given": given, **of_data, **learnt}

    return [key for key, value in facts(one).items() if facts(other).get(key) != value]


def compare_generators(
    challenger: Generator,
    champion: Generator,
    params: Params,
    metrics: Sequence[str] = (),
    *,
    say: Callable[[str], None] = lambda line: None,
) -> list[Comparison]:
    """Both by each of the metrics, or by that of the gate, on the test examples that lie here, with the seeds and as
    many samples as the stage `evaluate`. `say` is called with a line before what takes long.

    Raises StageError where they are not comparable, or where the data are not those of the challenger, ConfigError for
    a metric that cannot be measured.
    """
    if differs := _differences(champion.spec, challenger.spec):
        raise StageError(f"not comparable: {' and '.join(differs)} differ")
    reference = Reference.load(REFERENCE)
    if reference.spec.content_hash != challenger.spec.content_hash:
        raise StageError(f"{REFERENCE}: of other data than the first of the two was trained on")
    known = available_metrics(reference, labelled=challenger.conditional, answers=challenger.answer_shapes())
    metrics = metrics or [metric_of(params.gate, known)]
    say(f"drawing {min(params.evaluate.num_samples, reference.size)} samples of each")
    made, rivals = _drawn(challenger, champion, params, reference)
    figures = []
    for metric in metrics:
        say(f"scoring both by {metric}")
        figures.append(compare(made, rivals, reference, metric, params.evaluate, params.seed))
    return figures


def _compare(challenger: Generator, champion: Generator, params: Params, metric: str) -> Comparison:
    """Both on the same test examples, with the seeds and as many samples as the stage `evaluate`."""
    reference = Reference.load(REFERENCE)
    made, rivals = _drawn(challenger, champion, params, reference)
    return compare(made, rivals, reference, metric, params.evaluate, params.seed)


def _drawn(one: Generator, other: Generator, params: Params, reference: Reference) -> tuple[Samples, Samples]:
    cfg, n = params.evaluate, min(params.evaluate.num_samples, reference.size)
    return tuple(sample_for_evaluation(each, PREPARED, n, seed=params.seed, batch=cfg.batch) for each in (one, other))  # type: ignore[return-value]


def load_or_reason(store: Store, version: Version, scratch: Path) -> Generator | str:
    """The version's generator, or why there is none."""
    try:
        folder = model_registry.download(store, version, scratch)
        return load_generator(folder, default_device(), name=version.uri)
    except (ValueError, StageError) as error:
        model_registry.version_by_alias(store, version.model, CHAMPION)  # raises where the store is lost
        return str(error)


def _number(value: float | None) -> float:
    return math.nan if value is None else value
