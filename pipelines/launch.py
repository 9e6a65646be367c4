"""All training starts here: by Ray Train workers, in a Tune trial, or in this process. All run `train_worker`."""

from __future__ import annotations

import ctypes
import dataclasses
import errno
import hashlib
import json
import os
import shutil
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeGuard

import torch

import ganlib
from ganlib.checkpoint import Damaged, load
from ganlib.config import ConfigError, GateConfig, Params, ResolvedScale, ScaleConfig, parse_params
from ganlib.device import default_device
from ganlib.distributed import WorkerLost
from ganlib.evaluate import available_metrics
from ganlib.export import Generator
from ganlib.game import Game
from ganlib.health import Diverged, quality_name
from ganlib.reference import Reference
from ganlib.scratch import scratch_folder
from ganlib.shards import DamagedShard, read_spec
from ganlib.trainer import Report, build_game, check_groups, plan, train
from ganlib.warm_start import WarmStart, read_parent, save_discriminator, warm_start
from pipelines._stage import INIT, REFERENCE, StageError, project_folder
from pipelines.background import background_thread
from pipelines.checkpoints import Checkpoints, Saved
from pipelines.cluster import cluster, cluster_address
from pipelines.code import imported
from pipelines.gate import metric_of
from pipelines.inputs import fetch, publish
from pipelines.scale import await_workers, resources_per_worker, why_fewer
from pipelines.storage import Storage, exclusive

__all__ = [
    "Job",
    "choose",
    "fingerprint",
    "keep",
    "keep_freed_memory",
    "parent_folder",
    "possible_workers",
    "run_workers",
    "storage",
    "train_distributed",
    "train_worker",
]

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


@dataclass(frozen=True)
class Job:
    """What a worker is sent. Paths are absolute: a worker's working directory is Ray's."""

    params: dict[str, Any]
    prepared: str
    reference: str
    possible_workers: tuple[int, ...] = ()
    """the numbers of workers among which the batch can be divided"""
    inputs: Storage | None = None
    """where the folders lie for nodes that do not see them"""
    parent: str | None = None
    """the folder of what the training starts from, if from anything"""
    warm_start: WarmStart | None = None

    @classmethod
    def of(cls, params: Params, prepared: Path, reference: Path, world: int) -> Job:
        """Raises ConfigError for what cannot be trained by `world` workers, before any resource is asked for.

        What can be trained by several can be trained by one, so 1 stands for a number that is not yet known.
        """
        plan(params, world)
        spec, batch = read_spec(prepared), params.game.batch
        if batch > (examples := spec.counts["train"]):
            raise ConfigError(
                f"{params.model_file}: batch: {batch} is more than the {examples} train examples of {prepared}; "
                "lower the model's batch or add data"
            )
        game = build_game(params, spec)
        check_groups(params, game, world)
        parent = parent_folder(params)
        warm = None if parent is None else warm_start(game, params, parent)
        possible = tuple(possible_workers(params, game))
        if isinstance(asked := params.scale.num_workers, tuple) and not any(
            asked[0] <= n <= asked[1] for n in possible
        ):
            raise ConfigError(
                f"scale.num_workers: the batch of {batch} divides among no number of workers from {asked[0]} to "
                f"{asked[1]}; expected one of {', '.join(map(str, possible))}"
            )
        if (reference / "reference.json").is_file():
            for module in game.modules.values():
                module.eval()
            answers = Generator(game, spec, {}, torch.device("cpu")).answer_shapes()
            known = available_metrics(Reference.load(reference, "cpu"), labelled=game.classes > 0, answers=answers)
            _check_gate(params.gate, known)
        return cls(
            params.model_dump(mode="json"),
            str(prepared.resolve()),
            str(reference.resolve()),
            possible,
            parent=None if parent is None else str(parent.resolve()),
            warm_start=warm,
        )

    def everywhere(self, storage: Storage) -> Job:
        """The job with its data where all nodes of the cluster can read them. Raises StageError."""
        folders = [Path(folder) for folder in (self.prepared, self.reference, self.parent) if folder is not None]
        return dataclasses.replace(self, inputs=publish(folders, storage))

    def is_done(self, saved: Saved | None) -> TypeGuard[Saved]:
        """Whether a checkpoint is that of the whole budget."""
        return saved is not None and saved.kimg >= parse_params(self.params).budget_kimg - 1e-6

    def folders(self) -> tuple[Path, Path, Path | None]:
        """The prepared data, the reference and the parent, as this machine sees them."""
        prepared, reference = Path(self.prepared), Path(self.reference)
        parent = None if self.parent is None else Path(self.parent)
        if self.inputs is None:
            return prepared, reference, parent
        here = fetch(self.inputs)
        return here / prepared.name, here / reference.name, None if parent is None else here / parent.name


def parent_folder(params: Params, folder: Path = INIT) -> Path | None:
    """The folder in which the stage `init` keeps what `train.init` names, or None where that is nothing.

    Raises StageError where it keeps something else.
    """
    if params.train.init is None:
        return None
    try:
        asked = read_parent(folder)["asked"]
    except (ConfigError, KeyError):
        asked = None
    if asked != params.train.init:
        raise StageError(f"{folder}: not what train.init names, {params.train.init}; run the stage init")
    return folder


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


def _check_gate(gate: GateConfig, known: list[str]) -> None:
    """Raise ConfigError if the stage `register` will not find the metric it is to decide by."""
    try:
        metric_of(gate, known)
    except StageError as error:
        raise ConfigError(str(error)) from error


def train_worker(job: Job, report: Report, resume: str | Path | None = None) -> None:
    """Train on this process's share of the job, with as many threads as it has cores."""
    params = parse_params(job.params)
    keep_freed_memory()
    torch.set_num_threads(params.scale.cpus_per_worker)
    device = default_device(params.scale.gpus_per_worker)
    prepared, reference, parent = job.folders()
    train(params, report, prepared=prepared, reference=reference, resume=resume, parent=parent, device=device)


def keep_freed_memory() -> None:
    """Have glibc keep freed memory instead of giving it back to the kernel after every layer.

    A step frees and takes the same large buffers again and again; the page faults this costs are a fifth of a
    CPU step's time (`tests/bench/step.py`). Elsewhere than on glibc this does nothing.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
        libc.mallopt(-3, 32 * 2**20)  # M_MMAP_THRESHOLD, at its upper bound


def training_code(family: str) -> list[Path]:
    """The files of `ganlib` that determine what a training does: what its module and the family's import. The kind of
    data and the feature spaces are known by the hashes in `Spec.code` and `reference.json`."""
    root = Path(ganlib.__file__).parent
    return imported([root / "trainer.py", root / "models" / f"{family}.py"])


def fingerprint(params: Params, prepared: Path, stage: str, reference: Path = REFERENCE) -> str:
    """A name for what determines the result of `stage` (tune or train).

    That is: code, data, the reference that quality is measured against (if there is one), seed, model, budget, and the
    content of the weights to start from, not their name.
    A run of the same name is resumed: the same inputs continue where they stopped, and changed ones start anew.
    """
    digest = hashlib.sha256()
    for code in training_code(params.game.network.family):  # type: ignore[attr-defined]
        digest.update(code.read_bytes())
    spec = read_spec(prepared)
    digest.update(spec.to_json().encode())
    inputs = [path for path in reference.rglob("*") if path.is_file()]
    if (parent := parent_folder(params)) is not None:
        inputs += parent.rglob("*.safetensors")
    for path in sorted(inputs):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    determining = params.model_dump(mode="json", include={"seed", "model", "train", *({stage} - {"train"})})
    determining["train"].pop("keep")  # chosen after the training
    determining["train"].pop("init")  # an alias may move
    determining["game"] = params.game.model_dump(mode="json")
    digest.update(json.dumps(determining, sort_keys=True).encode())
    return f"{stage}-{params.data}-{params.model}-{digest.hexdigest()[:12]}"


def storage(params: Params) -> Storage:
    """Where runs keep their checkpoints, outside of what DVC deletes before a stage runs.

    Raises ConfigError for an address of no known store.
    """
    folder = params.scale.storage or ".ganlib/runs"
    if "://" not in folder:
        return Storage(str((project_folder() / folder).resolve()))
    try:
        found = Storage(folder)
        found.folders()
    except (ValueError, OSError) as error:
        raise ConfigError(f"scale.storage: {folder.partition('?')[0]}: {' '.join(str(error).split())}") from error
    return found


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

    _work(job, run, start, ray.train.report)


def _work(job: Job, run: Storage, start: Saved | None, tell: Callable[[dict[str, float]], None]) -> None:
    """Train from a checkpoint on, keep checkpoints, and `tell(row)` of each report."""
    checkpoints = Checkpoints(run / "checkpoints", start)

    def report(row: dict[str, float], folder: Path | None) -> None:
        if folder is not None:
            keep(checkpoints, row, folder)
        tell(row)

    with nullcontext() if start is None else checkpoints.as_folder(start) as resume:
        train_worker(job, report, resume)


def keep(checkpoints: Checkpoints, row: Mapping[str, float], folder: Path) -> Saved:
    """Store what `train` reported: a checkpoint, and its picture, which outlives it."""
    picture = f"{row['kimg']:09.1f}-kimg.png"
    (checkpoints.folder.parent / "samples").write(picture, (folder / "samples.png").read_bytes())
    return checkpoints.save(folder, kimg=row["kimg"], score=row.get(quality_name(row) or ""))


def _by_this_process(job: Job, params: Params, run: Storage, live: Path, start: Saved | None) -> Saved:
    """Train without Ray, which takes seconds to start and processes to run. Nothing is retried."""
    with _one_line_error():
        try:
            _work(job, run, start, partial(_append, live))
        except OSError as error:
            if error.errno not in DISK:
                raise
            raise _stopped_by_disk(run, error) from error
    done = Checkpoints(run / "checkpoints").newest()
    if not job.is_done(done):
        raise StageError(f"training ended without its last checkpoint in {run.address}")
    return done


def _by_workers(job: Job, params: Params, run: Storage, live: Path, start: Saved | None) -> Saved:
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
            by = _by_this_process if params.scale.num_workers == 0 else _by_workers
            with scratch_folder() as scratch:
                live = Path(scratch) / "rows.jsonl"
                with _following(live, on_row):
                    done = by(job, params, run, live, done)
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
    return StageError(f"{run.address}: {error.strerror or error}; {AGAIN}")


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
