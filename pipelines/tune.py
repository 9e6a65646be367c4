"""The stage `tune`: learning rates and architecture, searched by Ray Tune. `python -m pipelines.tune`.

Trials are compared at rungs by `quality/SPACE.fd`, a Fréchet distance on few samples; never by a loss, which tells
nothing of a GAN's quality. The first trial is the model as it stands, if that lies in the space. The result is a
function of seed, data, parameters and code: see `halving.py`. What is tried comes from `proposals.py`; `trials.py`
trains it.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Column, Table
from ruamel.yaml import YAML

from ganlib.build import build_game
from ganlib.config import Params, Search, override
from ganlib.health import quality_name
from ganlib.shards import read_spec
from pipelines._stage import PREPARED, REFERENCE, TUNED, StageError, atomic_folder, main
from pipelines.budget import BEST, with_budget
from pipelines.halving import Trial, best, rungs, search
from pipelines.outbox import open_outbox, try_run
from pipelines.proposals import OptunaProposals, starting_points
from pipelines.storage import exclusive
from pipelines.training import Job, fingerprint, storage
from pipelines.trials import TrialRunner

__all__ = ["stage"]


def stage(params: Params) -> None:
    space = _space(params)
    trials: list[Trial] = []
    if params.tune.num_samples and space:
        params = with_budget(params, PREPARED)
        # fail on a key that the model lacks, or on what `train` would refuse, before any resource is asked for
        for name, dimension in space.items():
            for example in dimension.examples if name == "batch" else dimension.examples[:1]:
                Job.of(override(params, {name: example}), PREPARED, REFERENCE, params.scale.min_workers)
        trials = _search(_of_a_trial(params), space)
    winner = best(trials)
    if trials and winner is None:
        error = next((trial.last.error for trial in trials if trial.last.error), "no quality was measured")
        raise StageError(f"tune: none of {len(trials)} trials succeeded; the first: {error}")
    with atomic_folder(TUNED) as out:
        YAML().dump(winner.changes if winner else {}, out / BEST)
        _write_table(trials, list(space), out / "trials.csv")
        if trials:
            _plot(trials, space, out / "trials.png")
            _print(trials, list(space))
        else:
            print("tune: skipped (tune.num_samples is 0 or the model has no `search`)")


def _space(params: Params) -> dict[str, Search]:
    """The model's `search`, except for the keys that the preset sets: a search does not change published settings."""
    preset, space = params.presets[params.preset], params.game.search
    settled = [] if "search" in preset else [dotted for dotted in space if _contains_key(preset, dotted)]
    if settled:
        print(f"tune: preset {params.preset} says what {' and '.join(settled)} is, so it is not searched")
    return {dotted: dimension for dotted, dimension in space.items() if dotted not in settled}


def _contains_key(section: Any, dotted: str) -> bool:
    for part in dotted.split("."):
        if not isinstance(section, Mapping) or part not in section:
            return False
        section = section[part]
    return True


def _of_a_trial(params: Params) -> Params:
    """`params` with the budget of one trial."""
    cfg, health = params.tune, params.train.health
    # A trial that has collapsed is over. It has few reports to be patient with, so what stops it must be sure. The
    # warm-up stays what it is, as learning takes no less where the budget is small; a budget below it leaves divergence
    # alone to look for. Of 20 healthy runs of `tests/bench/health.py`, seen every 10 kimg to 40, this stops none; all
    # that `train` looks for would stop 3, and a warm-up in proportion to the budget 9. It sees 14 of 24 sabotaged ones.
    patience = max(1, min(health.patience, round(cfg.kimg / cfg.report_kimg) // 3))
    changes = {
        "health": health.model_copy(update={"policy": "stop", "strict_only": True, "patience": patience}),
        "kimg": cfg.kimg,
        "report_kimg": cfg.report_kimg,
        "checkpoint_kimg": cfg.report_kimg,
        "quality_samples": cfg.quality_samples,
    }
    return params.model_copy(update={"train": params.train.model_copy(update=changes)})


def _search(params: Params, space: dict[str, Search]) -> list[Trial]:
    """Run the search, or go on with it: a trial that was trained to a rung before is not trained again."""
    cfg, scale = params.tune, params.scale
    # trials are compared in the game, and go on with it: what comes after it would be done at each rung
    if after := build_game(params, read_spec(PREPARED)).after:
        params = override(params, {f"fits.{fit.name}.kimg": 0.0 for fit in after})
    job = Job.of(params, PREPARED, REFERENCE, scale.workers_per_trial)
    name = fingerprint(params, PREPARED, "tune")
    run = storage(params) / name
    outbox = open_outbox(params.tracking)
    with exclusive(run, name), TrialRunner(params, job, run) as runner:
        trials = search(
            OptunaProposals(space, starting_points(params, space), params.seed),
            runner.play,
            num_samples=cfg.num_samples,
            bracket_size=cfg.bracket_size,
            rungs=rungs(cfg.kimg, cfg.grace_kimg, cfg.report_kimg, cfg.reduction_factor),
            reduction_factor=cfg.reduction_factor,
        )
    with try_run(outbox, name, name, tags={"stage": "tune"}) as parent:
        for trial in trials:
            key = f"{name}/{trial.name}"
            with try_run(outbox, key, trial.name, parent=parent, tags={"stage": "tune"}) as child:
                child.log_params(trial.changes)
                child.log_stats(trial.last.rows)
    return trials


def _write_table(trials: list[Trial], keys: list[str], path: Path) -> None:
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["trial", *keys, "kimg", _quality_name(trials), "error"])
        for trial in trials:
            row = _last_row(trial)
            settings = [trial.changes[key] for key in keys]
            table.writerow([trial.name, *settings, row.get("kimg"), trial.last.score, trial.last.error])


def _last_row(trial: Trial) -> dict[str, float]:
    return trial.last.rows[-1] if trial.last.rows else {}


def _quality_name(trials: list[Trial]) -> str:
    """What trials were compared by, with its feature space."""
    return next((name for trial in trials if (name := quality_name(_last_row(trial)))), "quality")


def _plot(trials: list[Trial], space: dict[str, Search], path: Path) -> None:
    """Each parameter against quality, a dot a trial; fuller dots were trained for longer."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 * len(space), 3), layout="constrained")
    axes = figure.subplots(1, len(space), sharey=True, squeeze=False)[0]
    done = [(trial.changes, _last_row(trial)) for trial in trials if trial.last.score is not None]
    scores = [trial.last.score for trial in trials if trial.last.score is not None]
    longest = max((row["kimg"] for _, row in done), default=1)
    for ax, (key, dimension) in zip(axes, space.items(), strict=True):
        choices = dimension.choice or ()
        if choices:
            ax.set_xticks(range(len(choices)), [str(choice) for choice in choices])
            ax.set_xlim(-0.5, len(choices) - 0.5)
        ax.scatter(
            [choices.index(changes[key]) if choices else changes[key] for changes, _ in done],
            scores,
            alpha=[row["kimg"] / longest for _, row in done],
        )
        ax.set_xlabel(key)
        ax.set_yscale("log")
        if dimension.loguniform:
            ax.set_xscale("log")
            ax.tick_params(axis="x", which="both", rotation=45, labelsize="small")
    axes[0].set_ylabel(_quality_name(trials))
    figure.savefig(path, dpi=100)


def _print(trials: list[Trial], keys: list[str]) -> None:
    table = Table(
        "trial", *(Column(key, overflow="fold") for key in keys), "kimg", Column(_quality_name(trials), overflow="fold")
    )
    for trial in sorted(trials, key=lambda trial: math.inf if trial.last.score is None else trial.last.score):
        row, score = _last_row(trial), math.nan if trial.last.score is None else trial.last.score
        figures = [f"{value:.3g}" if isinstance(value, float) else str(value) for value in trial.changes.values()]
        table.add_row(trial.name, *figures, f"{row.get('kimg', 0):.1f}", f"{score:.3g}")
    Console().print(table)


if __name__ == "__main__":
    main(stage)
