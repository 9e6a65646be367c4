"""What is to be trained: the job that a worker is sent, the name of its run, and where that is kept."""

from __future__ import annotations

import ctypes
import dataclasses
import hashlib
import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import torch

import ganlib
from ganlib.build import build_game, check_groups
from ganlib.config import ConfigError, GateConfig, Params, parse_params
from ganlib.device import default_device
from ganlib.evaluate import available_metrics
from ganlib.export import Generator
from ganlib.game import Game
from ganlib.reference import Reference
from ganlib.shards import read_spec
from ganlib.trainer import Report, plan, train
from ganlib.warm_start import WarmStart, read_parent, warm_start
from pipelines._stage import INIT, REFERENCE, StageError, project_folder
from pipelines.checkpoints import Saved
from pipelines.code import imported
from pipelines.gate import metric_of
from pipelines.inputs import fetch, publish
from pipelines.storage import Storage

__all__ = [
    "Job",
    "fingerprint",
    "keep_freed_memory",
    "parent_folder",
    "possible_workers",
    "storage",
    "train_worker",
    "training_code",
]


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
        warm = None if parent is None else warm_start(game, params, spec, parent)
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
