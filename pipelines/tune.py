"""The stage `tune`: learning rates and architecture by Ray Tune. `python -m pipelines.tune`.

Optuna proposes, ASHA stops what does badly, both by `quality/fd`, a Fréchet distance on few samples; never by a
loss, which tells nothing of a GAN's quality. The first trial is `params.yaml` as it stands, if that lies in the space.
"""

from __future__ import annotations

import csv
import math
import os
import shutil
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Column, Table
from ruamel.yaml import YAML

from ganlib.config import ConfigError, Params, ResolvedScale, Search, override, parse_params
from ganlib.health import Diverged
from pipelines import tracking
from pipelines._stage import PREPARED, REFERENCE, TUNED, StageError, main, whole_folder
from pipelines.cluster import cluster
from pipelines.launch import (
    Job,
    check_resources,
    fingerprint,
    gpu_slots,
    resolve_scale,
    run_workers,
    storage,
    train_worker,
)
from pipelines.train import BEST

__all__ = ["stage"]

METRIC = "quality/fd"

WORST = 1e9  # what ASHA and Optuna are told of a trial that diverged; finite, since ASHA interpolates

os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the table below says it
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # it would end an interrupted search as if complete
os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "1")  # how often the search's state is saved, for a kill


def stage(params: Params) -> None:
    space = _space(params)
    if params.tune.num_samples == 0 or not space:
        trials: list[dict[str, Any]] = []
    else:
        # fail on a key that the model lacks, or on what `train` would refuse, before any resource is asked for
        for name, dimension in space.items():
            for example in dimension.examples if name == "batch" else dimension.examples[:1]:
                Job.of(override(params, {name: example}), PREPARED, REFERENCE, params.scale.min_workers)
        trials = _search(_of_a_trial(params), space)
    sound = [t for t in trials if METRIC in t["row"] and not t["error"]]
    best = min(sound, key=lambda t: t["row"][METRIC], default=None)
    if trials and best is None:
        error = next((t["error"] for t in trials if t["error"]), f"no {METRIC}")
        raise StageError(f"tune: none of {len(trials)} trials succeeded; the first: {error}")
    with whole_folder(TUNED) as out:
        YAML().dump(best["changes"] if best else {}, out / BEST)
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


def _search(params: Params, space: dict[str, Search]) -> list[dict[str, Any]]:
    """Run, or go on with, the search. Trials as `{"name", "changes", "row", "rows", "error"}`."""
    import optuna
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    cfg, workers = params.tune, params.scale.workers_per_trial
    job = Job.of(params, PREPARED, REFERENCE, workers)
    store = tracking.open_store(params.tracking)
    name = fingerprint(params, PREPARED, "tune")
    folder = storage(params)
    with cluster(params) as available:
        scale = resolve_scale(params.scale.model_copy(update={"num_workers": workers}), available, ())
        check_resources(scale, "workers_per_trial", available)
        # of `train`, which would refuse only after the search
        check_resources(resolve_scale(params.scale, available, job.possible_workers), "num_workers", available)
        cores = workers * scale.cpus_per_worker
        # a nested run's workers are Ray Train's to reserve; its driver only waits, but must reserve something
        resources = {"memory": 2**20} if workers > 1 else {"CPU": cores, "GPU": scale.gpus_per_worker}
        at_once = int(available["CPU"] // cores)
        if scale.gpus_per_worker:
            at_once = min(at_once, gpu_slots(available, scale.gpus_per_worker) // workers)
        trainable = tune.with_resources(
            tune.with_parameters(_trial, job=job, scale=scale, storage=str(folder)), resources
        )
        if tune.Tuner.can_restore(folder / name) and any((folder / name).glob("experiment_state-*.json")):
            tuner = tune.Tuner.restore(str(folder / name), trainable, resume_unfinished=True, restart_errored=True)
        else:
            shutil.rmtree(folder / name, ignore_errors=True)  # a search killed before its first state was saved
            tuner = tune.Tuner(
                trainable,
                param_space={key: _domain(dimension) for key, dimension in space.items()},
                tune_config=tune.TuneConfig(
                    metric=METRIC,
                    mode="min",
                    num_samples=cfg.num_samples,
                    trial_name_creator=lambda trial: f"trial-{trial.trial_id}",
                    trial_dirname_creator=lambda trial: f"trial-{trial.trial_id}",
                    max_concurrent_trials=min(scale.max_concurrent_trials or at_once, at_once),
                    search_alg=OptunaSearch(points_to_evaluate=_starting_points(params, space), seed=params.seed),
                    scheduler=ASHAScheduler(
                        # a report comes a little before its time or after; counting reports would take a trial that
                        # goes on after a kill for a young one
                        time_attr="kimg",
                        max_t=cfg.kimg,
                        grace_period=min(cfg.kimg, max(cfg.grace_kimg - cfg.report_kimg / 2, cfg.report_kimg / 2)),
                        reduction_factor=cfg.reduction_factor,
                    ),
                ),
                run_config=tune.RunConfig(
                    name=name,
                    storage_path=str(folder),
                    verbose=0,
                    callbacks=[_progress()],
                    # more than there can be new ones before the search's state, which names them, is saved again
                    checkpoint_config=tune.CheckpointConfig(num_to_keep=5),
                    failure_config=tune.FailureConfig(max_failures=scale.max_failures),
                ),
            )
        results = tuner.fit()
        trials = [_outcome(result) for result in results]
    with tracking.run(store, name, name, tags={"stage": "tune"}) as parent:
        for trial in trials:
            key = f"{name}/{trial['name']}"
            with tracking.run(store, key, trial["name"], parent=parent, tags={"stage": "tune"}) as child:
                tracking.log_params(child, trial["changes"])
                tracking.log_stats(child, trial["rows"])
    return trials


def _outcome(result: Any) -> dict[str, Any]:
    metrics = result.metrics or {}
    rows = [] if result.metrics_dataframe is None else result.metrics_dataframe.to_dict("records")
    # by kimg, since a trial that goes on after a kill repeats rows
    rows = list({row["kimg"]: row for row in rows if row.get(METRIC, 0) < WORST}.values())
    rows = [{name: value for name, value in row.items() if name != "error"} for row in rows]
    return {
        "name": Path(result.path).name,
        "changes": dict(result.config or {}),
        "row": metrics if "error" not in metrics else rows[-1] if rows else {},
        "rows": rows,
        "error": metrics.get("error") or _last_line(result.error),
    }


def _last_line(error: Exception | None) -> str:
    """The exception itself, below the traceback that Ray wraps it in."""
    lines = [line.strip() for line in str(error or "").splitlines() if line.strip()]
    return lines[-1] if lines else ""


def _trial(changes: dict[str, Any], job: Job, scale: ResolvedScale, storage: str) -> None:
    """One trial: the same work with a few keys overridden, in this process or in several workers.

    One that diverges, or that cannot be built, ends here and is not tried again.
    """
    from ray import tune

    try:
        _play(changes, job, scale, storage)
    except (Diverged, ConfigError, StageError) as error:
        tune.report({METRIC: WORST, "error": str(error)})


def _play(changes: dict[str, Any], job: Job, scale: ResolvedScale, storage: str) -> None:
    from ray import tune

    params = override(parse_params(job.params), changes)
    job = Job(params.model_dump(mode="json"), job.prepared, job.reference)
    if scale.workers_per_trial == 1:
        checkpoint = tune.get_checkpoint()
        with checkpoint.as_directory() if checkpoint else nullcontext() as resume:
            train_worker(job, _report_to_tune, resume)
        return
    import ray
    from ray.train.v2._internal.constants import ENV_VARS_TO_PROPAGATE
    from ray.tune.integration.ray_train import TuneReportCallback

    # what frees an early-stopped run's workers looks for its cluster, and gives up if there are two on the machine
    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
    ENV_VARS_TO_PROPAGATE.add("RAY_ADDRESS")
    result = run_workers(
        job,
        scale,
        workers=scale.workers_per_trial,
        name=f"train-{tune.get_context().get_trial_id()}",
        folder=Path(storage) / tune.get_context().get_experiment_name(),
        callbacks=[TuneReportCallback()],
    )
    if result.metrics:  # again, for a trial that had ended unheard when the search was killed
        tune.report(result.metrics)


def _report_to_tune(row: dict[str, float], folder: Path | None) -> None:
    from ray import tune

    tune.report(row, checkpoint=tune.Checkpoint.from_directory(folder) if folder else None)


def _domain(dimension: Search) -> Any:
    from ray import tune

    if dimension.uniform:
        return tune.uniform(*dimension.uniform)
    if dimension.loguniform:
        return tune.loguniform(*dimension.loguniform)
    if dimension.randint:
        return tune.randint(*dimension.randint)
    return tune.choice(list(dimension.choice or ()))


def _starting_points(params: Params, space: dict[str, Search]) -> list[dict[str, Any]] | None:
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
            return None
    return [point]


def _between(value: Any, dimension: Search) -> bool:
    low, high = dimension.examples
    return isinstance(value, int | float) and low <= value <= (high - 1 if dimension.randint else high)


def _progress() -> Any:
    from ray import tune

    class Progress(tune.Callback):
        def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **_: Any) -> None:
            print(
                f"{trial.trial_id}  "
                + (result.get("error") or f"{result['kimg']:7.1f} kimg  {METRIC} {result.get(METRIC, math.nan):.3g}"),
                flush=True,
            )

    return Progress()


def _write_table(trials: list[dict[str, Any]], keys: list[str], path: Path) -> None:
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["trial", *keys, "kimg", METRIC, "error"])
        for trial in trials:
            row = trial["row"]
            table.writerow(
                [
                    trial["name"],
                    *[trial["changes"].get(key) for key in keys],
                    row.get("kimg"),
                    row.get(METRIC),
                    trial["error"],
                ]
            )


def _plot(trials: list[dict[str, Any]], space: dict[str, Search], path: Path) -> None:
    """Each parameter against quality, a dot a trial; fuller dots were trained for longer."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 * len(space), 3), layout="constrained")
    axes = figure.subplots(1, len(space), sharey=True, squeeze=False)[0]
    done = [t for t in trials if METRIC in t["row"]]
    longest = max((t["row"]["kimg"] for t in done), default=1)
    for ax, (key, dimension) in zip(axes, space.items(), strict=True):
        choices = dimension.choice or ()
        if choices:
            ax.set_xticks(range(len(choices)), [str(choice) for choice in choices])
            ax.set_xlim(-0.5, len(choices) - 0.5)
        ax.scatter(
            [choices.index(t["changes"][key]) if choices else t["changes"][key] for t in done],
            [t["row"][METRIC] for t in done],
            alpha=[t["row"]["kimg"] / longest for t in done],
        )
        ax.set_xlabel(key)
        ax.set_yscale("log")
        if dimension.loguniform:
            ax.set_xscale("log")
            ax.tick_params(axis="x", which="both", rotation=45, labelsize="small")
    axes[0].set_ylabel(METRIC)
    figure.savefig(path, dpi=100)


def _print(trials: list[dict[str, Any]], keys: list[str]) -> None:
    table = Table("trial", *(Column(key, overflow="fold") for key in keys), "kimg", METRIC)
    for trial in sorted(trials, key=lambda t: t["row"].get(METRIC, float("inf"))):
        row = trial["row"]
        figures = [f"{value:.3g}" if isinstance(value, float) else str(value) for value in trial["changes"].values()]
        table.add_row(trial["name"], *figures, f"{row.get('kimg', 0):.1f}", f"{row.get(METRIC, float('nan')):.3g}")
    Console().print(table)


if __name__ == "__main__":
    main(stage)
