"""The stage `register`: a version in the registry, and maybe its champion. `python -m pipelines.register`.

Each step finds what an earlier, killed run of the stage did and goes on from there; the alias moves last.
A version is keyed by its weights, its metrics and its data: registering the same again under the same gate
changes nothing, even where a person has since moved an alias.
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
    holds = champion is not None and champion.number == version.number
    if holds and "gate.decision" in version.tags:  # killed after the last alias moved, or the gate has changed since
        decision = Decision.from_tags(version.tags)
    else:
        decision = _decide(store, params, None if holds else champion, generator, metrics)
        tracking.tag_version(store, version, decision.tags())
        if decision.decision == "promoted":
            if champion is not None and not holds:
                tracking.set_alias(store, champion, PREVIOUS)
            tracking.set_alias(store, version, CHAMPION)
    tracking.tag_version(store, version, {TERMS: terms})
    return decision


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
    number = None if champion is None else champion.number
    weak = weaknesses(metrics, gate)
    if weak:
        return Decision("refused", "; ".join(weak), gate.metric, own, number)
    if champion is None:
        return Decision("promoted", "the first to meet the thresholds", gate.metric, own)
    with tempfile.TemporaryDirectory() as scratch:
        try:
            rival = load_generator(tracking.download(store, champion, Path(scratch)), default_device())
        except (ValueError, StageError) as error:
            tracking.version_by_alias(store, champion.model, CHAMPION)  # a store that is lost refuses nobody: it raises
            reason = f"the champion, version {number}, cannot be loaded, so the alias is yours to move: {error}"
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
