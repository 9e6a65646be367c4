"""The report of a version, with the comparison that `register` makes: the gate's decision, and the champion's samples.

The stage `evaluate` leaves room for it: it knows no registry, so that its outputs follow from its inputs.
"""

from __future__ import annotations

from pathlib import Path

from ganlib.config import GateConfig, Params
from ganlib.evaluate import Samples, sample_for_evaluation
from ganlib.export import Generator
from ganlib.scratch import scratch_folder
from pipelines._stage import EVALUATED, PREPARED, StageError
from pipelines.gate import Decision, deciding_figures, load_or_reason
from pipelines.model_card import Metrics
from pipelines.model_registry import Version
from pipelines.pictures import picture_of_samples
from pipelines.report import Exhibits, figure_rows, formatted, template
from pipelines.tracking import Store

__all__ = ["read_report", "report_with_champion"]

ROOM = "<!-- champion -->", "<!-- /champion -->"
"""in `report.html`; text of the data is escaped, and has none of these"""


def read_report() -> tuple[str, str]:
    """The page of the stage `evaluate`: what comes before the comparison, and what after. Raises StageError where
    there is no such page."""
    file, (start, end) = EVALUATED / "report.html", ROOM
    html = file.read_text(encoding="utf-8") if file.is_file() else ""
    before, _, rest = html.partition(start)
    _, found, after = rest.partition(end)
    if not found:
        raise StageError(f"{file}: no report of the stage evaluate")
    return before, after


def report_with_champion(
    page: tuple[str, str],
    store: Store,
    params: Params,
    version: Version,
    generator: Generator,
    metrics: Metrics,
    decision: Decision,
) -> str:
    """The `page` that `read_report` found, with the comparison."""
    fragment = template("champion.html").render(
        decision=decision,
        number=formatted,
        figures=_figures(metrics, params.gate),
        exhibits=_exhibits(store, params, version.model, generator, decision).shown,
    )
    return fragment.join(page)


def _figures(metrics: Metrics, gate: GateConfig) -> list[dict[str, str]]:
    bounds = {name: f"at least {bound:g}" for name, bound in gate.at_least.items()}
    bounds |= {name: f"at most {bound:g}" for name, bound in gate.at_most.items()}
    return [
        {**row, "section": section, "bound": bounds.get(row["name"], "")}
        for section, named in deciding_figures(metrics, gate).items()
        for row in figure_rows(named, {})
    ]


def _exhibits(store: Store, params: Params, model: str, generator: Generator, decision: Decision) -> Exhibits:
    """Samples of this version and the champion, by the same seeds or test examples; empty if they were not compared."""
    shown, number = Exhibits(), decision.champion_version
    if number is None or decision.difference is None:
        return shown
    with scratch_folder() as scratch:
        champion = load_or_reason(store, Version(model, number, {}), Path(scratch))
    if isinstance(champion, str):  # it was there when they were compared
        return shown
    own, others = (_samples(one, params) for one in (generator, champion))
    spec = generator.spec
    if spec.given:
        about = "In each group, in this order: what is given, what the champion makes of it, what this version does."
        shown.add_picture("Side by side", about, picture_of_samples(generator, own, PREPARED, params.seed, others))
        return shown
    same = "The same seeds as the champion's."
    shown.add_picture("This version", same, picture_of_samples(generator, own, PREPARED, params.seed))
    shown.add_picture(
        f"Version {number}, the champion", "", picture_of_samples(champion, others, PREPARED, params.seed)
    )
    return shown


def _samples(generator: Generator, params: Params) -> Samples:
    cfg = params.evaluate
    return sample_for_evaluation(generator, PREPARED, cfg.num_samples, seed=params.seed, batch=cfg.batch)
