"""A project folder with a migrated, empty tracking store, a "trained" generator in it, and commands to disturb."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def params(params):
    """With a gate on the metric that the tests here make up figures for, and no graphs, each of which takes seconds."""
    gate = params.gate.model_copy(update={"metric": "classifier.fd", "export": ()})
    return params.model_copy(update={"gate": gate})


@pytest.fixture(scope="session")
def migrated(tmp_path_factory) -> Path:
    """Migrating takes seconds, so it is done once and copied."""
    from mlflow import MlflowClient

    from pipelines import tracking

    tracking._quiet()
    file = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture(scope="session")
def reference(tmp_path_factory, params, prepared) -> Path:
    """Features of the digits, of 150 of each split."""
    from ganlib import shards
    from ganlib.reference import build

    cfg = type(params.reference).model_validate({"max_samples": 150, "classifier": {"width": 4, "epochs": 2}})
    train, test = (shards.read(prepared, split, limit=150) for split in ("train", "test"))
    out = tmp_path_factory.mktemp("reference") / "reference"
    build(out, shards.read_spec(prepared), train, test, cfg, 0)
    return out


@pytest.fixture(scope="session")
def training_data(tmp_path_factory, prepared, reference) -> Path:
    """A project's folder `data`."""
    folder = tmp_path_factory.mktemp("data")
    for name, of in (("prepared", prepared), ("reference", reference)):
        (folder / name).symlink_to(of)
    return folder


@pytest.fixture
def project(tmp_path, migrated, monkeypatch) -> Path:
    for variable in ("MLFLOW_TRACKING_URI", "DVC_ROOT"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.chdir(tmp_path)
    shutil.copy(migrated, tmp_path / "mlflow.db")
    return tmp_path


@pytest.fixture
def store(project):
    from ganlib.config import TrackingConfig
    from pipelines import tracking

    return tracking.open_store(TrackingConfig())


@pytest.fixture
def train(project, prepared):
    """Write what the stages before `register` write, for a small generator of digits; `weights` seeds it."""
    import torch
    from specs import image_spec

    from ganlib import registry
    from ganlib.export import save_generator

    def write(weights: int, metrics: dict, shape: tuple[int, ...] = (1, 8, 8)) -> None:
        spec = image_spec(shape, tuple("0123456789"), {"train": 100, "test": 50}, "content")
        family = registry.load("models", "mlp")
        network = family.Config(width=16, latent_dim=8)
        with torch.random.fork_rng():
            torch.manual_seed(weights)
            game = family.build(network, spec)
        trained, evaluated, tuned = (project / "outputs" / name for name in ("train", "evaluate", "tune"))
        for folder in (trained, evaluated, tuned):
            folder.mkdir(parents=True, exist_ok=True)
        save_generator(trained / "generator", game.generator, network=network, spec=spec)
        rows = [{"kimg": 1.0, "loss/d": 2.0}, {"kimg": 2.0, "loss/d": 1.0}]
        (trained / "stats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (trained / "curves.csv").write_text("kimg,loss/d\n1,2\n2,1\n")
        (evaluated / "metrics.json").write_text(json.dumps(metrics))
        (evaluated / "report.html").write_text("<h1>Report</h1>\n<!-- champion -->\nlater\n<!-- /champion -->\n")
        (tuned / "best_params.yaml").write_text("{}\n")
        shutil.copytree(prepared, project / "data/prepared", dirs_exist_ok=True)
        budget = {"kimg": 180.0, "augment": None, "because": "as the data set's file says"}
        (project / "data/prepared/card.json").write_text(json.dumps({"budget": budget}))

    return write


@pytest.fixture
def small_disk(tmp_path_factory):
    """A folder on a disk of 6 MB of its own, which root may make."""
    folder = tmp_path_factory.mktemp("small")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", folder], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"needs to mount a small disk: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture
def start(project):
    """Start the command in the project, or else the stage `train`, as a person does: a script's background jobs, and
    all that they start, are deaf to Ctrl-C. What a failed test leaves running is killed."""
    started = []

    def begin(*command: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            ["env", "--default-signal=INT", *(command or (sys.executable, "-m", "pipelines.train"))],
            cwd=project.folder,
            env=project.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
