"""All training starts here: by Ray Train workers, in a Tune trial, or in this process. All run `train_worker`."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ganlib.checkpoint import Damaged, load
from ganlib.config import ConfigError, Params, ResolvedScale, ScaleConfig, parse_params
from ganlib.distributed import WorkerLost
from ganlib.health import Diverged, quality_name
from ganlib.scratch import scratch_folder
from ganlib.shards import DamagedShard
from ganlib.warm_start import read_parent, save_discriminator
from pipelines._stage import StageError
from pipelines.background import background_thread
from pipelines.checkpoints import Checkpoints, Saved
from pipelines.cluster import cluster, cluster_address
from pipelines.scale import await_workers, resources_per_worker, why_fewer
from pipelines.storage import Storage, exclusive
from pipelines.training import Job, fingerprint, storage, train_worker

__all__ = ["choose", "keep", "run_workers", "train_and_keep", "train_distributed"]

DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""errors of a disk that is full, of a quota, or that cannot be written"""
AGAIN = "what was computed is kept; mend that, and `dvc repro` goes on"


# Ray asks for the workers' news this often; at its default of 2 s a report waits a second on average
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
# a worker that says nothing for so long is replaced; at Ray's default of 10 minutes it is waited for
os.environ.setdefault("RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S", "60")
# how long Ray Train waits to reserve what the cluster has; then we look again what that is: a node may be lost
os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "30")
# a process less for each fit: checkpoints are written by the budget, not when a cloud is about to take a machine
os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
# Ray hides the GPUs from a worker that asked for none only with this variable: gpus_per_worker 0 means the CPU
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")


def run_workers(job: Job, scale: ScaleConfig, *, key: str, run: Storage, callbacks: Callable[[], list[Any]]) -> Saved:
    """Train by `scale.KEY` Ray Train workers from the newest sound checkpoint in `run` on. Returns the last one.

    Lost workers are replaced, as long as no more than `scale.max_failures` fits in a row fail without a new checkpoint.
    Each fit takes as many workers as the cluster then holds, where `scale` leaves that open; while others use what it
    holds, it is waited for, `scale.wait_seconds` long. `callbacks` makes Ray Train's for a fit. Raises StageError, and
    what a worker raised that no retry would mend.
    """
    from ray.exceptions import RayError
    from ray.train import ControllerError, TrainingFailedError

    checkpoints = Checkpoints(run / "checkpoints")
    start, failures, since = checkpoints.newest(), 0, time.monotonic()
    while not job.is_done(start):
        now = await_workers(scale, key, job.possible_workers)
        workers, every = getattr(now, key), parse_params(job.params).train.report_kimg
        print(f"Ray is up; workers start: {workers}, which report every {every:g} kimg", flush=True)
        try:
            _fit(job, now, workers, run, start, callbacks())
        except (TrainingFailedError, RayError) as error:
            reason = cause(error)
            if (final := permanent(error)) is not None:
                if isinstance(final, OSError) and not isinstance(final, DamagedShard):  # which names its file
                    raise _stopped_by_disk(run, final) from error
                raise final from error
            before, start = start, checkpoints.newest()
            if isinstance(error, ControllerError):  # no worker has started
                given_up = time.monotonic() - since > scale.wait_seconds
            else:
                failures, since = failures + 1 if start == before else 1, time.monotonic()
                given_up = failures > scale.max_failures
            if given_up:
                raise StageError(f"training failed: {reason} (checkpoints: {checkpoints.folder})") from error
            where = f"{start.kimg:g} kimg" if start else "the start"
            print(f"lost: {reason}; training goes on from {where}", flush=True)
        else:
            start = checkpoints.newest()
            if not job.is_done(start):
                raise StageError(f"training ended without its last checkpoint in {checkpoints.folder}")
    return start


def _fit(job: Job, scale: ResolvedScale, workers: int, run: Storage, start: Saved | None, callbacks: list[Any]) -> None:
    """One Ray Train run. What it keeps of its own is deleted after it: checkpoints are not Ray's here."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    try:
        TorchTrainer(
            partial(_worker, job, run, start),  # no config, which Ray's controller would import our modules to read
            scaling_config=ScalingConfig(
                num_workers=workers, use_gpu=scale.gpus_per_worker > 0, resources_per_worker=resources_per_worker(scale)
            ),
            # NCCL refuses two ranks on one GPU, and knows no CPU tensors
            torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if scale.gpus_per_worker == 1 else "gloo"),
            run_config=RunConfig(
                name=f"fit-{uuid.uuid4().hex[:8]}",
                storage_path=(run / "ray").address,
                failure_config=FailureConfig(max_failures=0, controller_failure_limit=0),
                callbacks=callbacks,
            ),
        ).fit()
    finally:
        with suppress(OSError):
            (run / "ray").delete()


def _worker(job: Job, run: Storage, start: Saved | None) -> None:
    import ray.train

    train_and_keep(job, run, start, ray.train.report)


def train_and_keep(job: Job, run: Storage, start: Saved | None, report_row: Callable[[dict[str, float]], None]) -> None:
    """Train in this process from the checkpoint `start` of `run` on, or from the beginning where that is None; keep
    checkpoints in `run`, and call `report_row(row)` for each report."""
    checkpoints = Checkpoints(run / "checkpoints", start)

    def report(row: dict[str, float], folder: Path | None) -> None:
        if folder is not None:
            keep(checkpoints, row, folder)
        report_row(row)

    with nullcontext() if start is None else checkpoints.as_folder(start) as resume:
        train_worker(job, report, resume)


def keep(checkpoints: Checkpoints, row: Mapping[str, float], folder: Path) -> Saved:
    """Store what `train` reported: a checkpoint, and its picture, which outlives it."""
    picture = f"{row['kimg']:09.1f}-kimg.png"
    (checkpoints.folder.parent / "samples").write(picture, (folder / "samples.png").read_bytes())
    return checkpoints.save(folder, kimg=row["kimg"], score=row.get(quality_name(row) or ""))


def _by_this_process(job: Job, run: Storage, live: Path, start: Saved | None) -> Saved:
    """Train without Ray, which takes seconds to start and processes to run. Nothing is retried."""
    with _one_line_error():
        try:
            train_and_keep(job, run, start, partial(_append, live))
        except OSError as error:
            if error.errno not in DISK:
                raise
            raise _stopped_by_disk(run, error) from error
    done = Checkpoints(run / "checkpoints").newest()
    if not job.is_done(done):
        raise StageError(f"training ended without its last checkpoint in {run.address}")
    return done


def _by_workers(job: Job, params: Params, run: Storage, live: Path) -> Saved:
    with cluster(params) as available:
        if fewer := why_fewer(params.scale, available, job.possible_workers):
            print(fewer)
        job = job.everywhere(run.parent)
        with _ctrl_c(), _one_line_error():
            return run_workers(job, params.scale, key="num_workers", run=run, callbacks=lambda: [_relay(live)])


def train_distributed(
    params: Params, prepared: Path, reference: Path, on_row: Callable[[dict[str, float]], None], into: Path
) -> list[dict[str, float]]:
    """Train with Ray Train, or in this process where `scale.num_workers` is 0, going on from where a run of the same
    fingerprint stopped.

    `on_row(row)` is called here, in the driver, as reports come. Writes into the folder `into` the `generator/` of the
    checkpoint that `train.keep` asks for and its discriminator, which one that is and why as `kept.json`, what the
    training started from as `warm_start.json`, where fits came before the game `before/`, and the pictures of all
    checkpoints as `samples/`. Returns all rows. Raises StageError if the run cannot succeed.
    """
    job = Job.of(params, prepared, reference, params.scale.min_workers)
    if job.warm_start is not None:
        print("\n".join(job.warm_start.lines()), flush=True)
    run = storage(params) / fingerprint(params, prepared, "train", reference)
    checkpoints = Checkpoints(run / "checkpoints")
    with exclusive(run, run.name):
        done = checkpoints.newest()
        if done is not None:
            state = "was trained before" if job.is_done(done) else "is resumed"
            print(f"{run.name} {state}: {done.kimg:g} kimg, from {checkpoints.folder / done.name}", flush=True)
        if not job.is_done(done):
            print(f"training to {params.budget_kimg:g} kimg; {_where(params.scale)}", flush=True)
            with scratch_folder() as scratch:
                live = Path(scratch) / "rows.jsonl"
                with _following(live, on_row):
                    if params.scale.num_workers == 0:
                        done = _by_this_process(job, run, live, done)
                    else:
                        done = _by_workers(job, params, run, live)
        kept, why = choose(params.train.keep, checkpoints, done)
        about = {"kimg": kept.kimg, "score": kept.score, "last_kimg": done.kimg, "last_score": done.score, "why": why}
        (into / "kept.json").write_text(json.dumps(about, indent=2) + "\n")
        if job.parent is not None and job.warm_start is not None:
            started = read_parent(Path(job.parent)) | dataclasses.asdict(job.warm_start)
            (into / "warm_start.json").write_text(json.dumps(started, indent=2) + "\n")
        with checkpoints.as_folder(kept) as folder:
            for name in ("generator", "before"):
                if (folder / name).is_dir():
                    shutil.copytree(folder / name, into / name)
            save_discriminator(into, load(folder)["discriminator"])
        with checkpoints.as_folder(done) as folder:
            rows: list[dict[str, float]] = load(folder)["rows"]
        (into / "samples").mkdir()
        for name in (pictures := run / "samples").files():
            (into / "samples" / name).write_bytes(pictures.read(name))
    return rows


def _where(scale: ScaleConfig) -> str:
    if scale.num_workers == 0:
        return "by this process"
    address = cluster_address(scale)
    return f"connecting to the Ray cluster at {address}" if address else "starting Ray on this machine"


def choose(keep: str, checkpoints: Checkpoints, last: Saved) -> tuple[Saved, str]:
    """The checkpoint whose generator is kept, and why. Scores are those of the reports: nothing is measured for it."""
    if keep == "last":
        return last, "train.keep is last"
    if last.score is None:
        # a fit after the game answers with the generator as it was then
        return last, "quality was not measured at the last: by train.quality_samples, or in a fit after the game"
    best = checkpoints.best()
    if best is None or best.score is None or not best.score < last.score:
        return last, "the last has the least Fréchet distance of all checkpoints"
    return best, "it has the least Fréchet distance of all checkpoints"


def _stopped_by_disk(run: Storage, error: OSError) -> StageError:
    """An error that names the file, if the system did, else the run."""
    return StageError(f"{error.filename or run.address}: {error.strerror or error}; {AGAIN}")


@contextmanager
def _one_line_error() -> Iterator[None]:
    """What ends a training for good, as the line that a person reads."""
    try:
        yield
    except (Diverged, Damaged, torch.OutOfMemoryError) as error:
        raise StageError(" ".join(str(error).split())[:500]) from error


@contextmanager
def _ctrl_c() -> Iterator[None]:
    """Ctrl-C is a KeyboardInterrupt, as ever: Ray Train takes it for its own, and leaves a handler behind which would
    start Ray anew to abort what is over."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        raise KeyboardInterrupt from error
    finally:
        signal.signal(signal.SIGINT, before)


def workers_own(error: Exception) -> dict[int, Exception]:
    """The exceptions by rank that failed a Ray Train run, without those of ranks that only lost a peer."""
    failures: dict[int, Exception] = dict(getattr(error, "worker_failures", {}))
    left = {rank for rank, f in failures.items() if isinstance(f, WorkerLost) or "gloo" in str(f) or "NCCL" in str(f)}
    return {rank: failure for rank, failure in failures.items() if rank not in left} or failures


def cause(error: Exception) -> str:
    """Why a Ray Train run failed, in one line."""
    for rank, failure in workers_own(error).items():
        return f"worker {rank}: {type(failure).__name__}: {' '.join(str(failure).split())[:300]}"
    return str(error).strip().splitlines()[-1]


def permanent(error: Exception) -> Exception | None:
    """The worker's exception that a retry would only meet again: what follows from parameters and data, or a disk that
    is full or cannot be written; None if there is none."""
    for failure in workers_own(error).values():
        if isinstance(failure, Diverged | ConfigError | StageError | Damaged | DamagedShard | torch.OutOfMemoryError):
            return failure
        if isinstance(failure, OSError) and failure.errno in DISK:
            return failure
    return None


def _relay(live: Path) -> Any:
    """A callback that appends each report to a file; Ray calls it in a process of the driver's machine."""
    from ray.train import UserCallback

    class Relay(UserCallback):
        def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
            _append(live, metrics[0])

    return Relay()


def _append(live: Path, row: dict[str, Any]) -> None:
    with live.open("a") as file:
        file.write(json.dumps(row) + "\n")


@contextmanager
def _following(live: Path, on_row: Callable[[dict[str, float]], None]) -> Iterator[None]:
    """Call `on_row` for each line of the file, as they come."""
    live.touch()

    def follow(over: threading.Event) -> None:
        with live.open() as file:
            ended = False
            while not ended:
                ended = over.wait(0.3)
                for line in file:
                    on_row(json.loads(line))

    with background_thread(follow, "follow"):
        yield
