"""The stage `register`: a version in the registry, and maybe its champion. `python -m pipelines.register`.

The generator is also exported as graphs (`ganlib.graph`), which are kept as `export/` of the run that trained it; one
that makes other samples than the generator is a reason to refuse the version.

Each step finds what an earlier, killed run of the stage did and goes on from there; the alias moves last.
A version is keyed by its weights, its metrics and its data: registering the same again under the same gate
changes nothing, even where a person has since moved an alias. `gate.py` decides who is the champion; `promotion.py`
moves the aliases, also where several processes register at once.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from ganlib.config import GateConfig, Params
from ganlib.device import default_device
from ganlib.export import Generator, load_generator
from ganlib.graph import TOLERANCE, GraphError, export_graph
from ganlib.scratch import scratch_folder
from ganlib.warm_start import DISCRIMINATOR
from pipelines import lineage, model_registry, tracking
from pipelines._stage import (
    EVALUATED,
    PREPARED,
    REFERENCE,
    REGISTERED,
    TRAINED,
    TUNED,
    StageError,
    atomic_folder,
    json_text,
    main,
    read_json,
    read_jsonl,
)
from pipelines.budget import tuned
from pipelines.comparison import read_report, report_with_champion
from pipelines.gate import deciding_figures, metric_of
from pipelines.model_card import Metrics, markdown, model_card
from pipelines.model_registry import Version
from pipelines.outbox import send_kept
from pipelines.promotion import settle
from pipelines.tracking import Store
from pipelines.training import fingerprint

__all__ = ["stage"]

REPORT = "report.html"
VIEWABLE = (".csv", ".json", ".md", ".png", ".yaml")


def stage(params: Params) -> None:
    """Log, register, decide. Raises StageError if the store does not answer or an output is missing."""
    store = tracking.open_store(params.tracking)
    send_kept(store, params.tracking.experiment)
    folder = TRAINED / "generator"
    generator = _challenger(folder)
    metrics = _metrics(EVALUATED / "metrics.json", params.gate)
    page = read_report()
    key = _key(folder, metrics, generator.spec.content_hash)
    known = model_registry.find_version(store, params.registered_model, key)
    if known:
        model_registry.check_whole(store, known)
    with scratch_folder() as scratch:
        exported = _export(folder, params.gate, Path(scratch))
        version = known or _log(store, params, generator, metrics, key, exported, Path(scratch))
    faults = [f"gate.export: {format}: {about['fault']}" for format, about in exported.items() if "fault" in about]
    decision = settle(store, params, version, generator, metrics, faults)
    with atomic_folder(REGISTERED) as out:
        content = {
            "model": version.model,
            "version": version.number,
            "key": key,
            "export": exported,
            "kept": read_json(TRAINED / "kept.json", None),
            "warm_start": read_json(TRAINED / "warm_start.json", None),
            **dataclasses.asdict(decision),
        }
        (out / "decision.json").write_text(json_text(content, sort_keys=True) + "\n")
        summary = deciding_figures(metrics, params.gate)  # for `dvc metrics`
        (out / "summary.json").write_text(json_text(summary) + "\n")
        report = report_with_champion(page, store, params, version, generator, metrics, decision)
        (out / REPORT).write_text(report, encoding="utf-8")
        model_registry.attach(store, version, out / REPORT)
    before = ", registered before" if known else ""
    print(f"{version.model} version {version.number}{before}: {decision.decision}: {decision.reason}")


def _export(folder: Path, gate: GateConfig, into: Path) -> dict[str, dict[str, Any]]:
    """Write the graphs that the gate asks for; for each format within what it makes the generator's samples, or why it
    cannot be. One that does not has a `fault`, and is not kept.
    """
    generator, found = load_generator(folder), dict[str, dict[str, Any]]()  # on the CPU, where parity is measured
    for format in gate.export:
        try:
            made = export_graph(generator, into, format)
        except GraphError as error:
            found[format] = {"cannot": str(error)}
            continue
        # not the difference itself: rounding that no two runs share
        found[format] = {"fault": made.fault} if made.fault else {"within": TOLERANCE}
    return found


def _log(
    store: Store,
    params: Params,
    generator: Generator,
    metrics: Metrics,
    key: str,
    exported: dict[str, dict[str, Any]],
    graphs: Path,
) -> Version:
    """Log cards, figures, pictures and lineage to the run that trained the model, then register the model."""
    trained = tuned(params, quiet=True)
    facts = lineage.facts(params)
    if fault := lineage.git_fault():
        print(f"lineage: the commit is not known: {fault}", flush=True)
    tags = {f"{lineage.PREFIX}{name}": value for name, value in facts.items()}
    # The run is a new one if the training came out of DVC's cache or was tracked in another store.
    name = fingerprint(trained, PREPARED, "train")
    with tracking.run(store, name, name, tags=tags) as run:
        tracking.log_params(run, trained.model_dump(mode="json", include={"seed", "data", "model", "train"}))
        tracking.log_params(run, {"preset": params.preset, "game": trained.game.model_dump(mode="json")})
        used = trained.chosen()
        del used["tracking"]["uri"]  # the store's address may hold a password
        tracking.log_json(run, used, "params.json")
        tracking.log_json(run, facts, "lineage.json")
        tracking.log_past_stats(run, read_jsonl(TRAINED / "stats.jsonl"))
        tracking.log_metrics(run, _flat(metrics))
        with scratch_folder() as scratch:
            for folder in (PREPARED, REFERENCE, TUNED, TRAINED, EVALUATED):
                _copy_viewable(folder, Path(scratch) / folder.name)
            tracking.log_folder(run, Path(scratch), "stages")
        if any(graphs.iterdir()):
            tracking.log_folder(run, graphs, "export")
        card = markdown(model_card(generator, metrics, read_json(PREPARED / "card.json", {})))
        tags |= {f"export.{format}": json.dumps(about) for format, about in exported.items()}
        discriminator = file if (file := TRAINED / DISCRIMINATOR).is_file() else None
        return model_registry.register_generator(
            run, TRAINED / "generator", params.registered_model, key, tags, card, discriminator
        )


def _copy_viewable(folder: Path, into: Path) -> None:
    """Copy what people look at (cards, grids, curves, tables), not the data and not the weights.

    Content only: in DVC's cache, files cannot be written, and a store on a disk would keep that and refuse the next.
    """
    for file in sorted(folder.rglob("*")):
        within = file.relative_to(folder)
        if file.suffix in VIEWABLE and within.parts[0] not in ("generator", "before"):
            (into / within).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, into / within)


def _flat(metrics: Metrics) -> dict[str, float]:
    """`space/metric` and, where known, its `.low`, `.high`, `.floor`, `.copy` and `.before`."""
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
    metric_of(gate, metrics)
    return metrics


def _key(folder: Path, metrics: Metrics, content_hash: str) -> str:
    digest = hashlib.sha256((folder / "generator.safetensors").read_bytes())
    digest.update(json.dumps([metrics, content_hash], sort_keys=True).encode())
    return digest.hexdigest()


if __name__ == "__main__":
    main(stage)
