"""The one door to training: Ray Train workers, a Tune trial, or this process. All run `train_worker`."""

from __future__ import annotations

import ctypes
import hashlib
import json
import math
import os
import shutil
import signal
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import ganlib
from ganlib.checkpoint import Damaged, load
from ganlib.config import ConfigError, Params, ResolvedScale, ScaleConfig, parse_params
from ganlib.device import default_device
from ganlib.distributed import WorkerLost
from ganlib.evaluate import measurable
from ganlib.game import Game
from ganlib.health import Diverged
from ganlib.reference import Reference
from ganlib.registry import nearest
from ganlib.shards import read_spec
from ganlib.trainer import Report, build_game, check_groups, plan, train
from pipelines._stage import REFERENCE, StageError, home
from pipelines.cluster import cluster

__all__ = [
    "Job",
    "check_resources",
    "fingerprint",
    "gpu_slots",
    "keep_freed_memory",
    "possible_workers",
    "resolve_scale",
    "run_workers",
    "storage",
    "train_distributed",
    "train_worker",
    "why_fewer",
]

# Ray asks for the workers' news this often; at its default of 2 s a report waits a second on average
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
# Ray hides the GPUs from a worker that asked for none only if told so: gpus_per_worker 0 means the CPU
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")


@dataclass(frozen=True)
class Job:
    """What a worker is sent. Paths are absolute: a worker's working directory is Ray's."""

    params: dict[str, Any]
    prepared: str
    reference: str
    possible_workers: tuple[int, ...] = ()
    """the numbers of workers among which the batch can be divided"""

    @classmethod
    def of(cls, params: Params, prepared: Path, reference: Path, world: int) -> Job:
        """Raises ConfigError for what cannot be trained by `world` workers, before any resource is asked for.

        What can be trained by several can be trained by one, so 1 stands for a number that is not yet known.
        """
        plan(params, world)
        spec, batch = read_spec(prepared), params.game.batch
        if batch > (examples := spec.counts["train"]):
            raise ConfigError(
                f"models.{params.model}.batch: {batch} is more than the {examples} train examples of {prepared}; "
                "lower the model's batch or add data"
            )
        game = build_game(params, spec)
        check_groups(params, game, world)
        if (reference / "reference.json").is_file():
            _check_gate(params.gate.metric, measurable(Reference.load(reference, "cpu"), labelled=game.classes > 0))
        return cls(
            params.model_dump(mode="json"),
            str(prepared.resolve()),
            str(reference.resolve()),
            tuple(possible_workers(params, game)),
        )


def possible_workers(params: Params, game: Game | None = None) -> list[int]:
    """The numbers of workers among which the batch can be divided, rising; of the game's groups, if one is given."""
    possible, batch = [], params.game.batch
    for world in (n for n in range(1, batch + 1) if batch % n == 0):
        with suppress(ConfigError):
            plan(params, world)
            if game is not None:
                check_groups(params, game, world)
            possible.append(world)
    return possible


def _check_gate(metric: str, known: list[str]) -> None:
    """Raise ConfigError if the stage `register` will not find the metric it is to decide by."""
    if metric not in known:
        raise ConfigError(
            f"gate.metric: {metric!r} cannot be measured with these data and this model{nearest(metric, known)}; "
            f"known: {', '.join(known)}"
        )


def train_worker(job: Job, report: Report, resume: str | Path | None = None) -> None:
    """Train on this process's share of the job, with as many threads as it has cores."""
    params = parse_params(job.params)
    keep_freed_memory()
    torch.set_num_threads(params.scale.cpus_per_worker)
    device = default_device(params.scale.gpus_per_worker)
    train(params, report, prepared=job.prepared, reference=job.reference, resume=resume, device=device)


def keep_freed_memory() -> None:
    """Have glibc keep freed memory instead of giving it back to the kernel after every layer.

    A step frees and takes the same large buffers again and again; the page faults this costs are a fifth of a
    CPU step's time (`tests/bench/step.py`). Elsewhere than on glibc this does nothing.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
        libc.mallopt(-3, 32 * 2**20)  # M_MMAP_THRESHOLD, at its upper bound


def fingerprint(params: Params, prepared: Path, stage: str, reference: Path = REFERENCE) -> str:
    """A name for what determines the result of `stage` (tune or train).

    That is: code, data, the reference that quality is measured against (if there is one), seed, model and budget.
    Ray resumes a run of the same name. So the same inputs go on where they stopped, and changed ones start clean.
    """
    digest = hashlib.sha256()
    for source in sorted(Path(ganlib.__file__).parent.rglob("*.py")):
        digest.update(source.read_bytes())
    digest.update(read_spec(prepared).content_hash.encode())
    for path in sorted(path for path in reference.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    determining = params.model_dump(mode="json", include={"seed", "model", "train", *({stage} - {"train"})})
    determining["game"] = params.game.model_dump(mode="json")
    digest.update(json.dumps(determining, sort_keys=True).encode())
    return f"{stage}-{params.data}-{params.model}-{digest.hexdigest()[:12]}"


def storage(params: Params) -> Path:
    """Ray's folder, absolute, outside of what DVC deletes before a stage runs. Raises ConfigError for an address."""
    folder = params.scale.storage or ".ganlib/ray"
    if "://" in folder:
        raise ConfigError(f"scale.storage: {folder!r} is an address; a folder that all nodes share is wanted")
    return (home() / folder).resolve()


def gpu_slots(available: Mapping[str, float], gpus_per_worker: float) -> int:
    """How many workers the GPUs hold. A share is of one GPU: two GPUs hold two workers of 0.6, not three."""
    return int(available.get("GPU", 0)) * int(1 / gpus_per_worker + 1e-6)


def resolve_scale(scale: ScaleConfig, available: Mapping[str, float], possible: Collection[int]) -> ResolvedScale:
    """`scale` with numbers in place of `auto`, for a cluster with the resources `available`.

    `gpus_per_worker`: 1 if there are GPUs, or 1/k where k workers must share one, else 0. `num_workers`: as many as
    the GPUs hold, or 2 without GPUs; no more than there are cores for, and one of the `possible` numbers. A number that
    a person has set stays, even if the cluster does not hold it: see `check_resources`.
    """
    workers, share, gpus = scale.num_workers, scale.gpus_per_worker, int(available.get("GPU", 0))
    if share == "auto":
        share = 0.0 if gpus == 0 else 1.0 if workers == "auto" else 1 / math.ceil(workers / gpus)
    if workers == "auto":
        at_most = min(_worker_slots(share, available), int(available.get("CPU", 0) // scale.cpus_per_worker))
        workers = max((n for n in possible if n <= at_most), default=1)
    numbers = {"num_workers": workers, "gpus_per_worker": share}
    return ResolvedScale.model_validate({**scale.model_dump(), **numbers})


def _worker_slots(gpus_per_worker: float, available: Mapping[str, float]) -> int:
    """How many workers `auto` is for, if cores and batch allow."""
    return gpu_slots(available, gpus_per_worker) if gpus_per_worker else 2


def why_fewer(scale: ScaleConfig, available: Mapping[str, float], possible: Collection[int]) -> str:
    """Why `auto` takes fewer workers than it is for, in a line; empty if it does not."""
    found = resolve_scale(scale, available, possible)
    workers, slots = found.num_workers, _worker_slots(found.gpus_per_worker, available)
    if scale.num_workers != "auto" or workers >= slots:
        return ""
    divides = any(workers < n <= slots for n in possible)
    why = "there are cores for no more" if divides else "the batch does not divide into more"
    return f"scale.num_workers: auto is {workers}, not {slots}: {why}"


def check_resources(scale: ResolvedScale, key: str, available: Mapping[str, float]) -> None:
    """Raise StageError if the cluster can never hold as many workers as `scale.KEY` says: Ray would wait for ever."""
    workers, share = getattr(scale, key), scale.gpus_per_worker
    fits = {
        "CPU": workers * scale.cpus_per_worker <= available.get("CPU", 0),
        "GPU": share == 0 or workers <= gpu_slots(available, share),
    }
    for kind, each in (("CPU", scale.cpus_per_worker), ("GPU", share)):
        if not fits[kind]:
            raise StageError(
                f"scale.{key}: {workers} workers x {each:g} {kind} wanted, the cluster has "
                f"{available.get(kind, 0):g}; lower it or scale.{kind.lower()}s_per_worker"
            )


def run_workers(job: Job, scale: ResolvedScale, *, workers: int, name: str, folder: Path, callbacks: list[Any]) -> Any:
    """Ray Train's result of a job, going on from where a run of the same name stopped.

    Raises StageError for what no retry would mend, and Ray's own errors.
    """
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    resources = {"CPU": float(scale.cpus_per_worker)}
    if scale.gpus_per_worker:
        resources["GPU"] = scale.gpus_per_worker
    verdict = folder / name / "verdict.txt"
    verdict.parent.mkdir(parents=True, exist_ok=True)
    verdict.unlink(missing_ok=True)
    _repair_snapshot(verdict.parent)
    result = TorchTrainer(
        _worker,
        train_loop_config={"job": job, "verdict": str(verdict)},
        scaling_config=ScalingConfig(
            num_workers=workers, use_gpu=scale.gpus_per_worker > 0, resources_per_worker=resources
        ),
        # NCCL refuses two ranks on one GPU, and knows no CPU tensors
        torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if scale.gpus_per_worker == 1 else "gloo"),
        run_config=RunConfig(
            name=name,
            storage_path=str(folder),
            failure_config=FailureConfig(max_failures=scale.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            callbacks=callbacks,
        ),
    ).fit()
    if verdict.exists():
        raise StageError(verdict.read_text())
    return result


def _worker(config: dict[str, Any]) -> None:
    import ray.train

    checkpoint = ray.train.get_checkpoint()
    with checkpoint.as_directory() if checkpoint else nullcontext() as resume:
        try:
            train_worker(config["job"], _report_to_train, resume)
        except (Diverged, ConfigError, Damaged) as error:
            # every rank fails alike and would again: no retry, but an end that the driver reads
            if ray.train.get_context().get_world_rank() == 0:
                verdict = Path(config["verdict"])
                remedy = f"; delete {verdict.parent} to train from the start" if isinstance(error, Damaged) else ""
                verdict.write_text(f"{error}{remedy}")


def _report_to_train(row: dict[str, float], folder: Path | None) -> None:
    import ray.train

    ray.train.report(row, checkpoint=ray.train.Checkpoint.from_directory(folder) if folder else None)


def train_distributed(
    params: Params, prepared: Path, reference: Path, on_row: Callable[[dict[str, float]], None]
) -> Path:
    """Train with Ray Train, going on from where a run of the same fingerprint stopped.

    `on_row(row)` is called here, in the driver, as reports come. Returns the last checkpoint's folder; `samples/`
    beside it has the pictures of all. Raises StageError if the run cannot succeed.
    """
    job = Job.of(params, prepared, reference, params.scale.min_workers)
    folder, name = storage(params), fingerprint(params, prepared, "train", reference)
    live = folder / name / "live.jsonl"
    (live.parent / "samples").mkdir(parents=True, exist_ok=True)
    live.write_text("")

    with cluster(params) as available:
        scale = resolve_scale(params.scale, available, job.possible_workers)
        check_resources(scale, "num_workers", available)
        if fewer := why_fewer(params.scale, available, job.possible_workers):
            print(fewer)
        with _following(live, on_row):
            from ray.exceptions import RayError
            from ray.train import TrainingFailedError

            ctrl_c = signal.getsignal(signal.SIGINT)
            try:
                result = run_workers(
                    job, scale, workers=scale.num_workers, name=name, folder=folder, callbacks=[_relay(live)]
                )
            except (TrainingFailedError, RayError) as error:
                raise StageError(f"training failed: {cause(error)} (Ray's storage: {live.parent})") from error
            except SystemExit as error:  # Ray's answer to Ctrl-C
                raise KeyboardInterrupt from error
            finally:  # Ray leaves its own, which would start Ray anew to abort what is over
                signal.signal(signal.SIGINT, ctrl_c)
    if result.checkpoint is None:
        raise StageError("training ended without a checkpoint")
    return Path(result.checkpoint.path)


def cause(error: Exception) -> str:
    """Why a Ray Train run failed, in one line: the workers' own exceptions, not those of who lost their company."""
    failures = {
        rank: getattr(failure, "_base_exc", failure) for rank, failure in getattr(error, "worker_failures", {}).items()
    }
    left = {rank for rank, f in failures.items() if isinstance(f, WorkerLost) or "gloo" in str(f) or "NCCL" in str(f)}
    own = {rank: failure for rank, failure in failures.items() if rank not in left} or failures
    for rank, failure in own.items():
        return f"worker {rank}: {type(failure).__name__}: {' '.join(str(failure).split())[:300]}"
    return str(error).strip().splitlines()[-1]


def _repair_snapshot(run: Path) -> None:
    """Make Ray's book of checkpoints anew if a kill cut it short, which Ray would stumble over."""
    book = run / "checkpoint_manager_snapshot.json"
    if book.exists():
        try:
            json.loads(book.read_text())
        except ValueError:
            _rewrite(book)


def _rewrite(book: Path) -> None:
    """List the checkpoints that are whole, the last of which Ray goes on from, and delete the others."""
    from ray.train.v2._internal.execution.checkpoint.checkpoint_manager import _CheckpointManagerState

    found = []
    for folder in sorted(book.parent.glob("checkpoint_*/")):  # named by the time they were made
        try:
            load(folder)
            found.append({"checkpoint_dir_name": folder.name, "metrics": {}})
        except Damaged:
            shutil.rmtree(folder)
    print(f"{book}: cut short; training from {found[-1]['checkpoint_dir_name'] if found else 'the start'}")
    state = _CheckpointManagerState(
        checkpoint_results=found,
        checkpoint_report_indices=list(range(len(found))),
        latest_checkpoint_result=found[-1] if found else None,
        current_report_index=len(found),
        pending_training_results=[],
        pending_validation_specs=[],
        validated_checkpoint_dir_names=[],
        timed_out_validation_checkpoint_dir_names=[],
        failed_validation_checkpoint_dir_names=[],
    )
    book.write_text(state.model_dump_json())


def _relay(live: Path) -> Any:
    """A callback that keeps each report and picture; Ray calls it in a process beside the driver, not in it."""
    from ray.train import UserCallback

    class Relay(UserCallback):
        def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
            if checkpoint:  # which Ray deletes when there are newer ones
                picture = live.parent / "samples" / f"{metrics[0]['kimg']:09.1f}-kimg.png"
                shutil.copy(Path(checkpoint.path) / "samples.png", picture)
            with live.open("a") as file:
                file.write(json.dumps(metrics[0]) + "\n")

    return Relay()


@contextmanager
def _following(live: Path, on_row: Callable[[dict[str, float]], None]) -> Iterator[None]:
    """Call `on_row` for each line of the file, as they come."""
    over = threading.Event()

    def follow() -> None:
        with live.open() as file:
            ended = False
            while not ended:
                ended = over.wait(0.3)
                for line in file:
                    on_row(json.loads(line))

    thread = threading.Thread(target=follow, name="follow", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
