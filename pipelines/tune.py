"""The stage `tune`: learning rates and architecture, searched by Ray Tune. `python -m pipelines.tune`.

Trials are compared at rungs by `quality/fd`, a Fréchet distance on few samples; never by a loss, which tells nothing
of a GAN's quality. The first trial is `params.yaml` as it stands, if that lies in the space. The result is a function
of seed, data, parameters and code: see `halving.py`.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import os
import uuid
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Column, Table
from ruamel.yaml import YAML

from ganlib import checkpoint
from ganlib.config import ConfigError, Params, ResolvedScale, Search, override, parse_params
from ganlib.health import Diverged
from pipelines import tracking
from pipelines._stage import PREPARED, REFERENCE, TUNED, StageError, main, whole_folder
from pipelines.checkpoints import Checkpoints
from pipelines.cluster import cluster
from pipelines.halving import Outcome, Trial, best, rungs, search
from pipelines.launch import (
    QUALITY,
    Job,
    fingerprint,
    keep,
    run_workers,
    storage,
    train_worker,
)
from pipelines.scale import check_resources, gpu_slots, resolve_scale, resources_per_worker
from pipelines.storage import Storage, exclusive
from pipelines.train import BEST

__all__ = ["stage"]

os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the table below says it
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # it would end an interrupted search as if complete


def stage(params: Params) -> None:
    space = _space(params)
    trials: list[Trial] = []
    if params.tune.num_samples and space:
        # fail on a key that the model lacks, or on what `train` would refuse, before any resource is asked for
        for name, dimension in space.items():
            for example in dimension.examples if name == "batch" else dimension.examples[:1]:
                Job.of(override(params, {name: example}), PREPARED, REFERENCE, params.scale.min_workers)
        trials = _search(_of_a_trial(params), space)
    winner = best(trials)
    if trials and winner is None:
        error = next((trial.last.error for trial in trials if trial.last.error), f"no {QUALITY}")
        raise StageError(f"tune: none of {len(trials)} trials succeeded; the first: {error}")
    with whole_folder(TUNED) as out:
        YAML().dump(winner.changes if winner else {}, out / BEST)
        _write_table(trials, list(space), out / "trials.csv")
        if trials:
            _plot(trials, space, out / "trials.png")
            _print(trials, list(space))
        else:
            print("tune: skipped (tune.num_samples is 0 or the model has no `search`)")


def _space(params: Params) -> dict[str, Search]:
    """The model's `search`, but for what the preset settles: published settings are not to be undone by a search."""
    preset, space = params.presets[params.preset], params.game.search
    settled = [] if "search" in preset else [dotted for dotted in space if _says(preset, dotted)]
    if settled:
        print(f"tune: preset {params.preset} says what {' and '.join(settled)} is, so it is not searched")
    return {dotted: dimension for dotted, dimension in space.items() if dotted not in settled}


def _says(section: Any, dotted: str) -> bool:
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
        "health": health.model_copy(update={"policy": "stop", "sure": True, "patience": patience}),
        "kimg": cfg.kimg,
        "report_kimg": cfg.report_kimg,
        "checkpoint_kimg": cfg.report_kimg,
        "quality_samples": cfg.quality_samples,
    }
    return params.model_copy(update={"train": params.train.model_copy(update=changes)})


def _search(params: Params, space: dict[str, Search]) -> list[Trial]:
    """Run the search, or go on with it: a trial that was trained to a rung before is not trained again."""
    cfg, scale = params.tune, params.scale
    job = Job.of(params, PREPARED, REFERENCE, scale.workers_per_trial)
    name = fingerprint(params, PREPARED, "tune")
    run = storage(params) / name
    outbox = tracking.open_outbox(params.tracking)
    with exclusive(run, name), _TrialRunner(params, job, run) as runner:
        trials = search(
            _Optuna(space, _starting_points(params, space), params.seed),
            runner.play,
            num_samples=cfg.num_samples,
            bracket_size=cfg.bracket_size,
            rungs=rungs(cfg.kimg, cfg.grace_kimg, cfg.report_kimg, cfg.reduction_factor),
            reduction_factor=cfg.reduction_factor,
        )
    with tracking.try_run(outbox, name, name, tags={"stage": "tune"}) as parent:
        for trial in trials:
            key = f"{name}/{trial.name}"
            with tracking.try_run(outbox, key, trial.name, parent=parent, tags={"stage": "tune"}) as child:
                tracking.log_params(child, trial.changes)
                tracking.log_stats(child, trial.last.rows)
    return trials


class _Optuna:
    """Proposals by Optuna's TPE, after the points of `start`: a function of the seed and of what it was told."""

    def __init__(self, space: dict[str, Search], start: list[dict[str, Any]], seed: int):
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.space, self.pruned = space, optuna.trial.TrialState.PRUNED
        self.study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
        self.distributions = {key: _distribution(dimension) for key, dimension in space.items()}
        self.asked: list[Any] = []
        for point in start:
            self.study.enqueue_trial({key: self._index(key, value) for key, value in point.items()})

    def ask(self) -> dict[str, Any]:
        self.asked.append(self.study.ask(self.distributions))
        return {
            key: choices[value] if (choices := self.space[key].choice) else value
            for key, value in self.asked[-1].params.items()
        }

    def tell(self, trial: Trial, *, stopped: bool) -> None:
        asked = self.asked[trial.number]
        for rung, outcome in enumerate(trial.outcomes):
            if outcome.score is not None:
                asked.report(outcome.score, rung)
        if stopped or trial.last.score is None:
            self.study.tell(asked, state=self.pruned)
        else:
            self.study.tell(asked, trial.last.score)

    def _index(self, key: str, value: Any) -> Any:
        choices = self.space[key].choice
        return choices.index(value) if choices else value


def _distribution(dimension: Search) -> Any:
    """Of a choice, that of its index: choices may be of any type."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if dimension.uniform:
        return FloatDistribution(*dimension.uniform)
    if dimension.loguniform:
        return FloatDistribution(*dimension.loguniform, log=True)
    if dimension.randint:
        low, high = dimension.randint
        return IntDistribution(low, high - 1)
    return CategoricalDistribution(range(len(dimension.choice or ())))


class _TrialRunner:
    """Trains trials to a rung by Ray Tune, as many at once as the cluster holds; it connects when there is work."""

    def __init__(self, params: Params, job: Job, run: Storage):
        self.params, self.job, self.run = params, job, run
        self.open = ExitStack()
        self.resources: dict[str, float] = {}

    def __enter__(self) -> _TrialRunner:
        return self

    def __exit__(self, *error: Any) -> None:
        self.open.close()

    def play(self, trials: Sequence[Trial], kimg: float) -> list[Outcome]:
        """The outcome of each trial at the rung `kimg`. Raises StageError if one could not be trained."""
        file = f"rung-{round(kimg * 1000):012d}.json"
        missing = [trial for trial in trials if file not in (self.run / trial.name).files()]
        if missing:
            if not self.resources:
                self._connect()
            self._fit(missing, kimg, file)
        return [Outcome(**json.loads((self.run / trial.name).read(file))) for trial in trials]

    def _connect(self) -> None:
        params, workers = self.params, self.params.scale.workers_per_trial
        self.resources = available = self.open.enter_context(cluster(params))
        self.scale = resolve_scale(params.scale.model_copy(update={"num_workers": workers}), available, ())
        check_resources(self.scale, "workers_per_trial", available)
        # of `train`, which would refuse only after the search
        check_resources(resolve_scale(params.scale, available, self.job.possible_workers), "num_workers", available)
        self.job = self.job.everywhere(self.run.parent)
        self.at_once = int(available["CPU"] // (workers * self.scale.cpus_per_worker))
        if self.scale.gpus_per_worker:
            self.at_once = min(self.at_once, gpu_slots(available, self.scale.gpus_per_worker) // workers)

    def _fit(self, trials: list[Trial], kimg: float, file: str) -> None:
        from ray import tune

        scale = self.scale
        # a nested run's workers are Ray Train's to reserve; its driver only waits, but must reserve something
        alone = scale.workers_per_trial == 1
        resources = resources_per_worker(scale) if alone else {"memory": 2**20}
        settings = {trial.name: trial.changes for trial in trials}
        trainable = tune.with_parameters(
            _trial, job=self.job, scale=scale, run=self.run, settings=settings, kimg=kimg, file=file
        )
        results = tune.Tuner(
            tune.with_resources(trainable, resources),
            param_space={"name": tune.grid_search(list(settings))},
            tune_config=tune.TuneConfig(
                max_concurrent_trials=min(scale.max_concurrent_trials or self.at_once, self.at_once),
                trial_name_creator=lambda trial: trial.config["name"],
                trial_dirname_creator=lambda trial: trial.config["name"],
            ),
            run_config=tune.RunConfig(
                name=f"rung-{uuid.uuid4().hex[:8]}",
                storage_path=(self.run / "ray").address,
                verbose=0,
                callbacks=[_progress()],
                failure_config=tune.FailureConfig(max_failures=scale.max_failures),
            ),
        ).fit()
        with suppress(OSError):
            (self.run / "ray").delete()
        for result in results:
            if result.error is not None:
                name = (result.config or {}).get("name", "a trial")
                raise StageError(f"tune: {name} failed: {_last_line(result.error)}; `dvc repro` tries it again")


def _last_line(error: Exception) -> str:
    """The exception itself, below the traceback that Ray wraps it in."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _trial(
    config: dict[str, Any],
    *,
    job: Job,
    scale: ResolvedScale,
    run: Storage,
    settings: dict[str, dict[str, Any]],
    kimg: float,
    file: str,
) -> None:
    """Train one trial to `kimg` from its newest checkpoint on, and write its outcome to `file`.

    One that diverges, that cannot be built, or that the GPU's memory does not hold, has failed: it is not tried again.
    """
    from ray import tune

    folder = run / config["name"]
    checkpoints = Checkpoints(folder / "checkpoints")
    error = ""
    try:
        params = override(parse_params(job.params), settings[config["name"]])
        params = params.model_copy(update={"train": params.train.model_copy(update={"kimg": kimg})})
        _train_trial(dataclasses.replace(job, params=params.model_dump(mode="json")), scale, folder, checkpoints)
    except (Diverged, ConfigError, torch.OutOfMemoryError) as failed:
        error = " ".join(str(failed).split())[:500]
    newest = checkpoints.newest()
    rows: list[dict[str, float]] = []
    if newest is not None:
        with checkpoints.as_folder(newest) as files:
            rows = checkpoint.load(files)["rows"]
    score = None if error or not rows else rows[-1].get(QUALITY)
    folder.write(file, json.dumps({"rows": rows, "score": score, "error": error}).encode())
    tune.report({"error": error} if error else {"kimg": kimg})


def _train_trial(job: Job, scale: ResolvedScale, folder: Storage, checkpoints: Checkpoints) -> None:
    """In this process, or in several workers."""
    from ray import tune

    if scale.workers_per_trial > 1:
        from ray.tune.integration.ray_train import TuneReportCallback

        run_workers(job, scale, key="workers_per_trial", run=folder, callbacks=lambda: [TuneReportCallback()])
        return
    start = checkpoints.newest()
    if job.is_done(start):
        return

    def report(row: dict[str, float], files: Path | None) -> None:
        if files is not None:
            keep(checkpoints, row, files)
        tune.report(row)

    with nullcontext() if start is None else checkpoints.as_folder(start) as resume:
        train_worker(job, report, resume)


def _starting_points(params: Params, space: dict[str, Search]) -> list[dict[str, Any]]:
    """The model as it stands, if it lies in the space: so a search never does worse than no search."""
    point: dict[str, Any] = {}
    for dotted, dimension in space.items():
        here: Any = params.game.model_dump(mode="json")
        for part in dotted.split("."):
            here = here[part]
        if dimension.choice and here in dimension.choice:
            point[dotted] = dimension.choice[dimension.choice.index(here)]  # 100 rather than 100.0
        elif not dimension.choice and _between(here, dimension):
            point[dotted] = here
        else:
            print(f"tune: {dotted} {here} lies outside of its search space, so params.yaml as it stands is not tried")
            return []
    return [point]


def _between(value: Any, dimension: Search) -> bool:
    low, high = dimension.examples
    return isinstance(value, int | float) and low <= value <= (high - 1 if dimension.randint else high)


def _progress() -> Any:
    from ray import tune

    class Progress(tune.Callback):
        def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **_: Any) -> None:
            if "error" in result:
                print(f"{trial}  {result['error']}", flush=True)
            elif QUALITY in result:
                print(f"{trial}  {result['kimg']:7.1f} kimg  {QUALITY} {result[QUALITY]:.3g}", flush=True)

    return Progress()


def _write_table(trials: list[Trial], keys: list[str], path: Path) -> None:
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["trial", *keys, "kimg", QUALITY, "error"])
        for trial in trials:
            row = _last_row(trial)
            settings = [trial.changes[key] for key in keys]
            table.writerow([trial.name, *settings, row.get("kimg"), row.get(QUALITY), trial.last.error])


def _last_row(trial: Trial) -> dict[str, float]:
    return trial.last.rows[-1] if trial.last.rows else {}


def _plot(trials: list[Trial], space: dict[str, Search], path: Path) -> None:
    """Each parameter against quality, a dot a trial; fuller dots were trained for longer."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 * len(space), 3), layout="constrained")
    axes = figure.subplots(1, len(space), sharey=True, squeeze=False)[0]
    done = [(trial.changes, _last_row(trial)) for trial in trials if trial.last.score is not None]
    longest = max((row["kimg"] for _, row in done), default=1)
    for ax, (key, dimension) in zip(axes, space.items(), strict=True):
        choices = dimension.choice or ()
        if choices:
            ax.set_xticks(range(len(choices)), [str(choice) for choice in choices])
            ax.set_xlim(-0.5, len(choices) - 0.5)
        ax.scatter(
            [choices.index(changes[key]) if choices else changes[key] for changes, _ in done],
            [row[QUALITY] for _, row in done],
            alpha=[row["kimg"] / longest for _, row in done],
        )
        ax.set_xlabel(key)
        ax.set_yscale("log")
        if dimension.loguniform:
            ax.set_xscale("log")
            ax.tick_params(axis="x", which="both", rotation=45, labelsize="small")
    axes[0].set_ylabel(QUALITY)
    figure.savefig(path, dpi=100)


def _print(trials: list[Trial], keys: list[str]) -> None:
    table = Table("trial", *(Column(key, overflow="fold") for key in keys), "kimg", QUALITY)
    for trial in sorted(trials, key=lambda trial: _last_row(trial).get(QUALITY, math.inf)):
        row = _last_row(trial)
        figures = [f"{value:.3g}" if isinstance(value, float) else str(value) for value in trial.changes.values()]
        table.add_row(trial.name, *figures, f"{row.get('kimg', 0):.1f}", f"{row.get(QUALITY, math.nan):.3g}")
    Console().print(table)


if __name__ == "__main__":
    main(stage)
