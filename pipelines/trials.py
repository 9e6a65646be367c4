"""Training the trials of a search, by Ray Tune: each from its newest checkpoint to a rung."""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import uuid
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from typing import Any

import torch

from ganlib import checkpoint
from ganlib.config import ConfigError, Params, ResolvedScale, override, parse_params
from ganlib.health import Diverged, quality_name
from pipelines._stage import StageError
from pipelines.checkpoints import Checkpoints
from pipelines.cluster import cluster, one_line
from pipelines.halving import Outcome, Trial
from pipelines.launch import run_workers, train_and_keep
from pipelines.scale import check_resources, gpu_slots, resolve_scale, resources_per_worker
from pipelines.storage import Storage
from pipelines.training import Job

__all__ = ["TrialRunner"]

os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the stage's own table says it
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # it would end an interrupted search as if complete


class TrialRunner:
    """Trains trials to a rung by Ray Tune, as many at once as the cluster holds; it connects when there is work."""

    def __init__(self, params: Params, job: Job, run: Storage):
        self.params, self.job, self.run = params, job, run
        self.open = ExitStack()
        self.resources: dict[str, float] = {}

    def __enter__(self) -> TrialRunner:
        return self

    def __exit__(self, *error: Any) -> None:
        self.open.close()

    def play(self, trials: Sequence[Trial], kimg: float) -> list[Outcome]:
        """The outcome of each trial at the rung `kimg`. Raises StageError if one could not be trained."""
        file = f"rung-{round(kimg * 1000):012d}.json"
        missing = [trial for trial in trials if file not in (self.run / trial.name).files()]
        if kept := [trial.name for trial in trials if trial not in missing]:
            print(f"trained to {kimg:g} kimg before, kept in {self.run}: {', '.join(kept)}", flush=True)
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
                reuse_actors=True,  # a new process for each trial would import torch again
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
                raise StageError(f"tune: {name} failed: {one_line(result.error)}; `dvc repro` tries it again")


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

    gc.collect()  # of the trial before in this process, which may hold a GPU's memory
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
    score = None if error or not rows else rows[-1].get(quality_name(rows[-1]) or "")
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
    if not job.is_done(start):
        train_and_keep(job, folder, start, tune.report)


def _progress() -> Any:
    from ray import tune

    class Progress(tune.Callback):
        def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **_: Any) -> None:
            if "error" in result:
                print(f"{trial}  {result['error']}", flush=True)
            elif name := quality_name(result):
                print(f"{trial}  {result['kimg']:7.1f} kimg  {name} {result[name]:.3g}", flush=True)

    return Progress()
