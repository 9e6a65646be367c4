"""The stage `register`: a version in the registry, and maybe its champion. `python -m pipelines.register`.

Each step finds what an earlier, killed run of the stage did and goes on from there; the alias moves last.
A version is keyed by its weights, its metrics and its data: registering the same again under the same gate
changes nothing, even where a person has since moved an alias.

Several processes may register at once. MLflow cannot move an alias on the condition that it still points where it
did, so `_settle` reads it again right before it moves it, and `_settle_race` looks afterwards for who did the same:

- An alias that somebody moves while models are compared is respected: the comparison is made again, with the champion
  of now.
- However many versions are promoted at once, the aliases and the decisions end as if they had been registered one
  after the other, in the order of their numbers: whoever moves the alias last sees the claims of all others. Each
  process applies its own gate; if the gates differ, so may the decisions.
- A process that is killed right after it moved the alias leaves the version that came later as the champion, until
  its stage is run again.
- Not guaranteed: a person's move in the milliseconds between the last reading and the move is overwritten.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from ganlib.config import GateConfig, Params, override
from ganlib.device import default_device
from ganlib.evaluate import Comparison, compare, draw
from ganlib.export import Generator, load_generator
from ganlib.reference import Reference
from pipelines import lineage, tracking
from pipelines._stage import (
    EVALUATED,
    PREPARED,
    REFERENCE,
    REGISTERED,
    TRAINED,
    TUNED,
    StageError,
    main,
    whole_folder,
)
from pipelines.launch import fingerprint
from pipelines.train import BEST

__all__ = ["Decision", "stage", "weaknesses"]

CHAMPION = "champion"
PREVIOUS = "previous_champion"
TERMS = "gate.terms"  # set last: the gate whose decision has been carried out
BEFORE = "gate.before"  # the versions whose promotion had been carried out when this one was promoted
VIEWABLE = (".csv", ".json", ".md", ".png", ".yaml")

Metrics = Mapping[str, Mapping[str, Mapping[str, float | None]]]


@dataclass(frozen=True)
class Decision:
    """What the gate decided, and on which figures. `difference` is challenger minus champion."""

    decision: str
    """`promoted` or `refused`"""
    reason: str
    metric: str
    challenger: float
    champion_version: int | None = None
    champion: float | None = None
    difference: float | None = None
    low: float | None = None
    high: float | None = None

    def tags(self) -> dict[str, str]:
        return {
            f"gate.{name}": value if isinstance(value, str) else json.dumps(value)
            for name, value in dataclasses.asdict(self).items()
        }

    @classmethod
    def from_tags(cls, tags: Mapping[str, str]) -> Decision:
        found = {field.name: tags[f"gate.{field.name}"] for field in dataclasses.fields(cls)}
        text = ("decision", "reason", "metric")
        parsed: dict[str, Any] = {k: v if k in text else json.loads(v) for k, v in found.items()}
        return cls(**parsed)


def stage(params: Params) -> None:
    """Log, register, decide. Raises StageError if the store does not answer or an output is missing."""
    store = tracking.open_store(params.tracking)
    folder = TRAINED / "generator"
    generator = _challenger(folder)
    metrics = _metrics(EVALUATED / "metrics.json", params.gate)
    key = _key(folder, metrics, generator.spec.content_hash)
    known = tracking.find_version(store, params.registered_model, key)
    if known:
        _check_whole(store, known)
    version = known or _log(store, params, generator, metrics, key)
    decision = _settle(store, params, version, generator, metrics)
    with whole_folder(REGISTERED) as out:
        content = {
            "model": version.model,
            "version": version.number,
            "key": key,
            **dataclasses.asdict(decision),
        }
        (out / "decision.json").write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
    before = ", registered before" if known else ""
    print(f"{version.model} version {version.number}{before}: {decision.decision}: {decision.reason}")


def weaknesses(metrics: Metrics, gate: GateConfig) -> list[str]:
    """The thresholds on collapse, memorisation and labels that are not met, each as a reason.

    Each figure is that of the gate's own space, or, where this has none, of the first that has.
    """
    bounds = {
        "coverage": gate.min_coverage,
        "memorisation_ratio": gate.min_memorisation_ratio,
        "label_accuracy": gate.min_label_accuracy,
    }
    own = gate.metric.partition(".")[0]
    sections = [metrics[own], *metrics.values()]
    found = {name: next((section[name] for section in sections if name in section), None) for name in bounds}
    absent = [name for name, value in found.items() if value is None and name != "label_accuracy"]
    if absent:
        raise StageError(f"metrics.json: the gate needs {' and '.join(absent)}")
    return [
        f"{name} {value['value']:.3g} is below gate.min_{name} {bounds[name]:g}"
        for name, value in found.items()
        # `not >=` so that a value that is not a number fails
        if value is not None and not _number(value["value"]) >= bounds[name]
    ]


def _settle(
    store: tracking.Store, params: Params, version: tracking.Version, generator: Generator, metrics: Metrics
) -> Decision:
    """The decision on `version`: the one that stands, or, under another gate, a new one, carried out."""
    terms = json.dumps(params.gate.model_dump(mode="json"))
    if version.tags.get(TERMS) == terms:
        return Decision.from_tags(version.tags)
    champion = tracking.version_by_alias(store, version.model, CHAMPION)
    if _same(champion, version) and "gate.decision" in version.tags:
        # killed after the last alias moved, or the gate has changed since
        decision = Decision.from_tags(version.tags)
        before = None if TERMS in version.tags else json.loads(version.tags.get(BEFORE, "null"))
    else:
        decision, before = _promote_or_refuse(store, params, version, generator, metrics)
    if decision.decision == "promoted" and before is not None:
        decision = _settle_race(store, params, version, decision, before)
    tracking.tag_version(store, version, {TERMS: terms})
    return decision


def _promote_or_refuse(
    store: tracking.Store, params: Params, version: tracking.Version, generator: Generator, metrics: Metrics
) -> tuple[Decision, list[int]]:
    """Decide against a champion that is still the champion then, and move the aliases.

    Also returns the numbers of the versions whose promotion was over before this one's claim.
    """
    while True:
        champion = tracking.version_by_alias(store, version.model, CHAMPION)
        holds = _same(champion, version)
        decision = _decide(store, params, None if holds else champion, generator, metrics)
        before = [one.number for one in _promoted(store, version.model) if TERMS in one.tags]
        # the claim: whoever moves the alias after us finds it
        tracking.tag_version(store, version, {BEFORE: json.dumps(before), **decision.tags()})
        if not _same(tracking.version_by_alias(store, version.model, CHAMPION), champion):
            continue
        if decision.decision == "promoted" and not holds:
            if champion is not None:
                tracking.set_alias(store, champion, PREVIOUS)
            tracking.set_alias(store, version, CHAMPION)
        return decision, before


def _settle_race(
    store: tracking.Store, params: Params, version: tracking.Version, decision: Decision, before: list[int]
) -> Decision:
    """The decision on a promoted version once those that were promoted at the same time are known.

    They are compared in the order of their numbers, and the aliases set to what comes of it. An alias that points
    elsewhere was moved by a person, or by the gate over one of them, and stays.
    """
    displaced = decision.champion_version
    version = dataclasses.replace(version, tags=decision.tags())
    known: set[int] = set()
    while True:
        rivals = _rivals(store, version, displaced, before)
        if known >= {one.number for one in rivals}:
            return decision
        known = {one.number for one in rivals}
        order = sorted([version, *rivals], key=lambda one: one.number)
        holder, previous = order[0], displaced
        outcomes = []
        for challenger in order[1:]:
            outcome = _contest(store, params, holder, challenger)
            outcomes.append((challenger, outcome))
            if outcome.decision == "promoted":
                holder, previous = challenger, holder.number
        champion = tracking.version_by_alias(store, version.model, CHAMPION)
        if champion is None or champion.number not in {one.number for one in order}:
            return decision
        if previous is not None:
            tracking.set_alias(store, tracking.Version(version.model, previous, {}), PREVIOUS)
        tracking.set_alias(store, holder, CHAMPION)
        # after the aliases: a process that is killed in between finds the same rivals again
        for challenger, outcome in outcomes:
            tracking.tag_version(store, challenger, outcome.tags())
            if challenger.number == version.number:
                decision = outcome


def _rivals(
    store: tracking.Store, version: tracking.Version, displaced: int | None, before: list[int]
) -> list[tracking.Version]:
    """The versions promoted over `displaced`, `version` or one another since `before` was read, without `version`."""
    since = [one for one in _promoted(store, version.model) if one.number not in (*before, version.number)]
    over = {one.number: Decision.from_tags(one.tags).champion_version for one in since}
    found: set[int | None] = set()
    while more := {number for number in over if over[number] in {displaced, version.number} | found} - found:
        found |= more
    return [one for one in since if one.number in found]


def _promoted(store: tracking.Store, model: str) -> list[tracking.Version]:
    return tracking.versions(store, model, "gate.decision", "promoted")


def _same(one: tracking.Version | None, other: tracking.Version | None) -> bool:
    return (one and one.number) == (other and other.number)


def _contest(
    store: tracking.Store, params: Params, champion: tracking.Version, challenger: tracking.Version
) -> Decision:
    """The decision on a version that meets the thresholds, against another that does."""
    own = Decision.from_tags(challenger.tags).challenger
    with tempfile.TemporaryDirectory() as scratch:
        generator = _load(store, challenger, Path(scratch))
    if isinstance(generator, str):
        return Decision("refused", f"it cannot be loaded: {generator}", params.gate.metric, own, champion.number)
    return _against(store, params, champion, generator, own)


def _load(store: tracking.Store, version: tracking.Version, scratch: Path) -> Generator | str:
    """The version's generator, or why there is none."""
    try:
        return load_generator(tracking.download(store, version, scratch), default_device())
    except (ValueError, StageError) as error:
        tracking.version_by_alias(store, version.model, CHAMPION)  # a store that is lost refuses nobody: it raises
        return str(error)


def _decide(
    store: tracking.Store,
    params: Params,
    champion: tracking.Version | None,
    generator: Generator,
    metrics: Metrics,
) -> Decision:
    gate = params.gate
    space, name = gate.metric.split(".")
    own = _number(metrics[space][name]["value"])
    weak = weaknesses(metrics, gate)
    if weak:
        return Decision("refused", "; ".join(weak), gate.metric, own, None if champion is None else champion.number)
    if champion is None:
        return Decision("promoted", "the first to meet the thresholds", gate.metric, own)
    return _against(store, params, champion, generator, own)


def _against(
    store: tracking.Store, params: Params, champion: tracking.Version, generator: Generator, own: float
) -> Decision:
    """The decision on a generator that meets the thresholds; `own` is its figure in the stage `evaluate`."""
    gate, number = params.gate, champion.number
    with tempfile.TemporaryDirectory() as scratch:
        rival = _load(store, champion, Path(scratch))
    if isinstance(rival, str):
        reason = f"the champion, version {number}, cannot be loaded, so the alias is yours to move: {rival}"
        return Decision("refused", reason, gate.metric, own, number)
    differs = [
        key
        for key in ("kind", "shape", "classes", "attributes", "given")
        if getattr(rival.spec, key) != getattr(generator.spec, key)
    ]
    if differs:
        reason = (
            f"not comparable with the champion, version {number}, whose {' and '.join(differs)} differ; "
            "register under another tracking.registered_model or move the alias by hand"
        )
        return Decision("refused", reason, gate.metric, own, number)
    figures = _compare(generator, rival, params)
    better = figures.low > gate.margin if figures.direction == "higher" else figures.high < -gate.margin
    reason = (
        f"{'better' if better else 'not clearly better'} than version {number}: "
        f"{gate.metric} {figures.challenger:.4g} against {figures.champion:.4g}, "
        f"difference {figures.difference:+.3g} in [{figures.low:+.3g}, {figures.high:+.3g}] "
        f"({figures.direction} is better, margin {gate.margin:g})"
    )
    return Decision(
        "promoted" if better else "refused",
        reason,
        gate.metric,
        figures.challenger,
        number,
        figures.champion,
        figures.difference,
        figures.low,
        figures.high,
    )


def _compare(challenger: Generator, champion: Generator, params: Params) -> Comparison:
    """Both on the same test examples, with the seeds and as many samples as the stage `evaluate`."""
    cfg, reference = params.evaluate, Reference.load(REFERENCE)
    n = min(cfg.num_samples, reference.size)
    made, rivals = (draw(one, PREPARED, n, seed=params.seed, batch=cfg.batch) for one in (challenger, champion))
    return compare(made, rivals, reference, params.gate.metric, cfg, params.seed)


def _check_whole(store: tracking.Store, version: tracking.Version) -> None:
    """Raise StageError if the version's files are not those that were registered."""
    with tempfile.TemporaryDirectory() as scratch:
        try:
            tracking.download(store, version, Path(scratch))
        except StageError as error:
            raise StageError(f"{error}; if they are lost, delete this version, then `dvc repro`") from error


def _log(store: tracking.Store, params: Params, generator: Generator, metrics: Metrics, key: str) -> tracking.Version:
    """Log everything that a person asks of a model to the run that trained it, then register the model."""
    tuned = override(params, YAML(typ="safe").load((TUNED / BEST).read_text()) or {})
    facts = lineage.facts(params)
    tags = {f"lineage.{name}": value for name, value in facts.items()}
    # The run is a new one if the training came out of DVC's cache or was tracked in another store.
    name = fingerprint(tuned, PREPARED, "train")
    with tracking.run(store, name, name, tags=tags) as run:
        tracking.log_params(run, tuned.model_dump(mode="json", include={"seed", "data", "model", "train"}))
        tracking.log_params(run, {"preset": params.preset, "game": tuned.game.model_dump(mode="json")})
        # without the store's address, which may hold a password
        tracking.log_json(run, tuned.model_dump(mode="json", exclude={"tracking": {"uri"}}), "params.json")
        tracking.log_json(run, facts, "lineage.json")
        tracking.log_stats(run, _curves(TRAINED / "stats.jsonl"))
        tracking.log_metrics(run, _flat(metrics))
        with tempfile.TemporaryDirectory() as scratch:
            for folder in (PREPARED, REFERENCE, TUNED, TRAINED, EVALUATED):
                _link_viewable(folder, Path(scratch) / folder.name)
            tracking.log_folder(run, Path(scratch), "stages")
        return tracking.register_generator(run, TRAINED / "generator", params.registered_model, key, tags)


def _link_viewable(folder: Path, into: Path) -> None:
    """What a person looks at: cards, grids, curves, tables; not the data and not the weights."""
    for file in sorted(folder.rglob("*")):
        within = file.relative_to(folder)
        if file.suffix in VIEWABLE and within.parts[0] != "generator":
            (into / within).parent.mkdir(parents=True, exist_ok=True)
            (into / within).symlink_to(file.resolve())


def _curves(file: Path) -> list[dict[str, Any]]:
    if not file.is_file():
        return []
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def _flat(metrics: Metrics) -> dict[str, float]:
    """`space/metric` and, where known, its `.low`, `.high`, `.floor` and `.copy`."""
    return {
        f"{space}/{name}" + ("" if part == "value" else f".{part}"): value
        for space, named in metrics.items()
        for name, parts in named.items()
        for part, value in parts.items()
        if value is not None
    }


def _challenger(folder: Path) -> Generator:
    try:
        return load_generator(folder, default_device())
    except ValueError as error:
        raise StageError(str(error)) from error


def _metrics(file: Path, gate: GateConfig) -> Metrics:
    """Raises StageError if there are none, or not the gate's."""
    try:
        metrics: Metrics = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StageError(f"{file}: no metrics of the stage evaluate: {error}") from error
    known = [f"{space}.{name}" for space, named in metrics.items() for name in named]
    if gate.metric not in known:
        raise StageError(f"gate.metric: {gate.metric!r} is not in {file}; known: {', '.join(known)}")
    return metrics


def _key(folder: Path, metrics: Metrics, content_hash: str) -> str:
    digest = hashlib.sha256((folder / "generator.safetensors").read_bytes())
    digest.update(json.dumps([metrics, content_hash], sort_keys=True).encode())
    return digest.hexdigest()


def _number(value: float | None) -> float:
    return math.nan if value is None else value


if __name__ == "__main__":
    main(stage)
