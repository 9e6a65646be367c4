"""The README's first command, and what is done after it, with the real DVC, Ray and MLflow. The tests tell one story,
in order."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from budgets import NO_EXPORT, SHORT
from PIL import Image
from ruamel.yaml import YAML
from test_readme import SPANS, block, python_in

pytestmark = pytest.mark.pipeline

STAGES = ["prepare", "reference", "tune", "train", "evaluate", "register"]
TILE = 28 * 2 + 2  # pixels of a digit in a picture: magnified, with a margin all round
PLUGINS = Path(__file__).parent / "ganlib/plugins"
ALL = ["code", "init", *STAGES]


def ran(output: str) -> list[str]:
    """The stages that DVC says it ran, or would run."""
    return re.findall(r"^Running stage '(\w+)'", output, re.MULTILINE)


def stale(project) -> list[str]:
    return list(json.loads(project.run("dvc", "status", "--json")))


def flags(changes) -> list[str]:
    return [word for key, value in changes.items() for word in ("-S", f"{key}={value}")]


def read(file: Path):
    return json.loads(file.read_text())


CHAMPION = """
import json, mlflow, pandas
mlflow.set_tracking_uri("sqlite:///mlflow.db")
version = mlflow.MlflowClient().get_model_version_by_alias("ganlib-mnist", "champion")
model = mlflow.pyfunc.load_model("models:/ganlib-mnist@champion")
samples = model.predict(pandas.DataFrame({"n": [3, 2], "label": [7, 1]}))
answer = {"shape": samples.shape, "dtype": str(samples.dtype), "spread": float(samples.std())}
print(json.dumps({"version": int(version.version), "sha": version.tags["lineage.git.sha"], **answer}))
"""


def champion(project):
    """The champion's version and commit, and what it answers to two requests."""
    return json.loads(project.run("python", "-c", CHAMPION).splitlines()[-1])


@pytest.fixture(scope="module")
def first(checkout):
    """A clone in which the README's first command was followed to the letter, on a budget of seconds, and what was
    printed. What is done in it from then on finds the environment that was made."""
    project = checkout("pipeline")
    project.edit(SHORT)
    project.run("git", "commit", "--quiet", "--all", "--message", "short")
    project.env["PIP_COMPILE"] = "0"  # what is imported is compiled then and kept
    project.env.pop("PYTHONDONTWRITEBYTECODE", None)
    start = time.perf_counter()
    output = project.run("bash", "-euo", "pipefail", "-c", block("run"))
    print(f"install and all stages: {time.perf_counter() - start:.0f} s")
    project.env["PATH"] = os.pathsep.join([str(project.folder / ".venv/bin"), project.env["PATH"]])
    return project, output


@pytest.fixture(scope="module")
def outputs(first) -> Path:
    return first[0].folder / "outputs"


def test_every_stage_runs(first):
    assert sorted(ran(first[1])) == sorted(ALL)
    assert [stage for stage in ran(first[1]) if stage in STAGES] == STAGES


def test_the_search_stops_bad_trials_early(outputs):
    with (outputs / "tune/trials.csv").open() as file:
        trials = list(csv.DictReader(file))
    assert len(trials) == SHORT["tune.num_samples"]
    assert not any(trial["error"] for trial in trials)
    seen = [float(trial["kimg"]) for trial in trials]
    assert max(seen) == pytest.approx(SHORT["tune.kimg"], rel=0.1)
    assert min(seen) < 0.9 * max(seen), "no trial was stopped"
    best = min(trials, key=lambda trial: (-float(trial["kimg"]), float(trial["quality/classifier.fd"])))
    chosen = YAML(typ="safe").load(outputs / "tune/best_params.yaml")
    assert {key: float(value) for key, value in chosen.items()} == {key: float(best[key]) for key in chosen}
    assert set(chosen) == {"generator.lr", "discriminator.lr", "network.width"}


SEARCH = """
import json, mlflow
client = mlflow.MlflowClient("sqlite:///mlflow.db")
runs = client.search_runs([client.get_experiment_by_name("ganlib").experiment_id], "tags.stage = 'tune'")
print(json.dumps({run.info.run_id: run.data.tags.get("mlflow.parentRunId") for run in runs}))
"""


def test_the_search_is_a_run_and_its_trials_are_runs_below_it(first):
    parents = json.loads(first[0].run("python", "-c", SEARCH).splitlines()[-1])
    (search,) = (run for run, parent in parents.items() if parent is None)
    assert [parent for parent in parents.values() if parent] == [search] * SHORT["tune.num_samples"]


def test_training_used_what_the_search_found(outputs):
    chosen = YAML(typ="safe").load(outputs / "tune/best_params.yaml")
    assert read(outputs / "train/generator/generator.json")["network"]["width"] == chosen["network.width"]
    with (outputs / "train/curves.csv").open() as file:
        curves = list(csv.DictReader(file))
    assert float(curves[-1]["kimg"]) == pytest.approx(SHORT["train.kimg"], rel=0.1)
    assert len(curves) == 3
    assert len(list((outputs / "train/samples").glob("*-kimg.png"))) == 3


def test_quality_is_measured(outputs):
    metrics = read(outputs / "evaluate/metrics.json")
    fidelity = {"c2st", "copied", "coverage", "density", "fd", "kid", "memorisation_ratio", "precision", "recall"}
    assert {space: set(named) for space, named in metrics.items()} == {
        "efficientnet_lite0": fidelity,
        "classifier": fidelity,
        "samples": {"class_coverage", "label_accuracy"},
    }
    for named in metrics.values():
        for figures in named.values():
            assert figures["low"] <= figures["value"] <= figures["high"]
            assert np.isfinite(figures["floor"])
    # a generator that has hardly learned is much further from the test data than training data are
    for space in ("efficientnet_lite0", "classifier"):
        assert metrics[space]["fd"]["value"] > 2 * metrics[space]["fd"]["floor"]


def test_the_pictures_show_a_row_for_each_class(outputs):
    with Image.open(outputs / "evaluate/samples.png") as picture:
        assert picture.size == (10 * TILE, 10 * TILE)  # by ten classes


def test_the_first_version_is_champion_and_answers(first, outputs):
    decision = read(outputs / "register/decision.json")
    assert (decision["model"], decision["version"], decision["decision"]) == ("ganlib-mnist", 1, "promoted")
    assert decision["champion_version"] is None
    metrics = read(outputs / "evaluate/metrics.json")
    assert decision["challenger"] == metrics["efficientnet_lite0"]["kid"]["value"]
    assert read(outputs / "register/summary.json")["efficientnet_lite0"]["kid"] == metrics["efficientnet_lite0"]["kid"]
    found = champion(first[0])
    assert found["version"] == 1
    assert found["sha"] == first[0].run("git", "rev-parse", "HEAD").strip()
    assert (found["shape"], found["dtype"]) == ([5, 28, 28, 1], "uint8")
    assert found["spread"] > 1


def test_the_readmes_table_lists_what_is_there(first):
    named = [path for path in SPANS if re.match(r"(outputs|data/prepared)/", path)]
    assert len(named) > 5
    assert [path for path in named if not (first[0].folder / path).exists()] == []


def test_the_readmes_next_commands_draw_samples_and_check_lineage(first):
    project, _ = first
    printed = project.run("bash", "-euo", "pipefail", "-c", f". .venv/bin/activate\n{block('sample')}")
    for name, columns, rows in (("grid.png", 10, 7), ("sevens.png", 3, 3)):
        with Image.open(project.folder / name) as picture:
            assert picture.size == (columns * TILE, rows * TILE)
    assert "match" in printed
    assert "differs" not in printed


def test_the_readmes_python_needs_nothing_of_the_project_and_runs_in_any_folder(first, tmp_path):
    project, _ = first
    seen = "import ganlib; print(images.shape, images.dtype, ganlib.__file__)"
    words = [project.folder / ".venv/bin/python", "-I", "-c", f"{python_in(project.folder)}\n{seen}"]
    done = subprocess.run(words, cwd=tmp_path, env=project.env, check=True, capture_output=True, text=True)
    printed = done.stdout.splitlines()[-1]
    assert printed.startswith("(16, 28, 28, 1) uint8 ")
    assert Path(printed.split()[-1]).is_relative_to(project.folder / "mlartifacts")
    assert list(tmp_path.iterdir()) == []


def test_nothing_runs_when_nothing_changed(first):
    start = time.perf_counter()
    output = first[0].run("dvc", "repro")
    print(f"nothing to do: {time.perf_counter() - start:.1f} s")
    assert ran(output) == []
    assert output.count("didn't change, skipping") == len(ALL)


@pytest.mark.parametrize(
    ("key", "value", "dependent"),
    [
        ("evaluate.num_samples", 90, STAGES[4:]),
        ("train.kimg", 5, STAGES[3:]),
        ("train.init", "outputs/train", ["init", *STAGES[2:]]),
        ("params/models/dcgan.yaml:loss", "hinge", STAGES[2:]),
        ("model", "mlp", STAGES[2:]),
        ("tune.kimg", 3, STAGES[2:]),
        ("gate.margin", 0.5, STAGES[5:]),
        ("params/datasets/mnist.yaml:test_share", 0.3, STAGES),
        ("params/datasets/digits.yaml:test_share", 0.3, []),
        ("params/models/mlp.yaml:loss", "hinge", []),
        ("scale.num_workers", 1, []),
    ],
)
def test_only_what_depends_on_a_key_runs(first, key, value, dependent):
    project, _ = first
    with project.edited({key: value}):
        # without --force-downstream a dry run cannot know that what follows a stage would run too
        output = project.run("dvc", "repro", "--dry", "--force-downstream")
    assert ran(output) == dependent


def test_what_nothing_uses_makes_no_stage_run(first):
    """One more of everything that is registered, and a file for each that has settings."""
    project, _ = first
    shutil.copytree(PLUGINS, project.folder / "ganlib", dirs_exist_ok=True)
    (project.folder / "params/datasets/toys.yaml").write_text(
        "source: {name: toy, of: toy_text}\nsample: {kind: toy_text}\n"
    )
    (project.folder / "params/models/toy_text_gan.yaml").write_text("network: {}\n")
    try:
        assert stale(project) == ["code"]
        assert ran(project.run("dvc", "repro")) == ["code"]
        assert stale(project) == []
    finally:
        project.run("git", "clean", "--quiet", "--force", "-d", "ganlib", "params")
    assert ran(project.run("dvc", "repro")) == []  # its outputs come out of DVC's cache


@pytest.fixture(scope="module")
def second(first):
    """Another model by one flag, without a search, and trained without Ray."""
    project, _ = first
    changes = {"model": "mlp", "tune.num_samples": 0, "scale.num_workers": 0, **NO_EXPORT}
    return project.run("dvc", "exp", "run", *flags(changes))


def test_another_model_is_one_flag(second, outputs):
    assert ran(second) == STAGES[2:]
    assert read(outputs / "train/generator/generator.json")["network"]["family"] == "mlp"


def test_no_trials_is_no_search(second, outputs):
    assert "tune: skipped" in second
    assert YAML(typ="safe").load(outputs / "tune/best_params.yaml") == {}


def test_the_gate_compares_with_the_champion(first, second, outputs):
    decision = read(outputs / "register/decision.json")
    assert (decision["version"], decision["champion_version"]) == (2, 1)
    assert decision["low"] <= decision["difference"] <= decision["high"]
    assert decision["difference"] == pytest.approx(decision["challenger"] - decision["champion"])
    better = decision["high"] < 0  # KID, where lower is better
    assert decision["decision"] == ("promoted" if better else "refused")
    assert champion(first[0])["version"] == (2 if better else 1)


def test_params_edited_by_hand_stay_as_they_are(first, second, outputs):
    project, _ = first
    file = project.folder / "params.yaml"
    written = file.read_text().replace("margin: 0.0 ", "margin: 0.25 # mine\n           ")
    assert "mine" in written
    file.write_text(written)
    output = project.run("dvc", "repro")
    assert ran(output) == ["register"]
    assert file.read_text() == written
    decision = read(outputs / "register/decision.json")
    assert decision["version"] == 2  # the same weights, under another gate


def test_an_experiment_in_a_folder_of_its_own_registers_where_the_others_do(first, second):
    """As queued ones do; DVC runs it below .dvc/tmp/exps."""
    project, _ = first
    before = read(project.folder / "outputs/register/decision.json")["version"]
    other = {"train.kimg": 2, "train.keep": "last", "scale.num_workers": 0}  # the best may be the same
    output = project.run("dvc", "exp", "run", "--temp", *flags(other))
    assert ran(output) == STAGES[3:]
    assert f"ganlib-mnist version {before + 1}:" in output


def test_another_store_gets_the_version_by_one_command(first, second, outputs):
    project, _ = first
    before = read(outputs / "register/decision.json")
    project.env["MLFLOW_TRACKING_URI"] = f"sqlite:///{project.folder.parent}/elsewhere.db"
    try:
        assert ran(project.run("dvc", "repro")) == []  # DVC does not see it
        assert ran(project.run("ganlib", "register")) == ["register"]
        assert "registered before" in project.run("ganlib", "register")
        assert ran(project.run("dvc", "repro")) == []
        found = read(outputs / "register/decision.json")
        assert (found["key"], found["version"], found["decision"]) == (before["key"], 1, "promoted")
    finally:
        del project.env["MLFLOW_TRACKING_URI"]
    assert f"version {before['version']}" in project.run("ganlib", "register")


@pytest.mark.parametrize("cache", ["symlink", "hardlink"])
def test_every_stage_works_on_links_into_the_cache(first, second, cache):
    project, _ = first
    project.run("dvc", "config", "cache.type", cache)
    project.run("dvc", "checkout", "--relink", "--force")
    weights = project.folder / "outputs/train/generator/generator.safetensors"
    assert weights.is_symlink() if cache == "symlink" else weights.stat().st_nlink > 1
    project.env["MLFLOW_TRACKING_URI"] = f"sqlite:///{project.folder.parent}/{cache}.db"  # one that lacks the version
    try:
        project.run("dvc", "repro", "--force", "--single-item", "reference", "evaluate", "register")
        project.run("ganlib", "sample", "outputs/train/generator", "-o", "linked.png")
        assert read(project.folder / "outputs/register/decision.json")["version"] == 1
        if cache == "symlink":  # hard links are files like any other to what trains
            shorter = flags({"train.kimg": 1, "train.report_kimg": 0.5, "scale.num_workers": 0})
            assert ran(project.run("dvc", "exp", "run", *shorter)) == STAGES[3:]
    finally:
        del project.env["MLFLOW_TRACKING_URI"]
        project.run("dvc", "config", "--unset", "cache.type")
        project.run("dvc", "checkout", "--relink", "--force")


TOY = '''
"""A generator of one layer against a discriminator of one: the least there is."""

from typing import Literal

import torch
from torch import nn

from ganlib._config import Config as _Config
from ganlib.game import Deal, Game
from ganlib.models._layers import gaussian_latent

MODALITY = "image"


class Config(_Config):
    family: Literal["toy"] = "toy"
    latent_dim: int = 8


def build(cfg, spec):
    size = torch.Size(spec.shape).numel()

    class Generator(nn.Sequential):
        def forward(self, z, cond=None):
            return super().forward(z).tanh().view(-1, *spec.shape)

    class Discriminator(nn.Sequential):
        def forward(self, images, cond=None):
            return super().forward(images.flatten(1)).squeeze(1)

    return Game(
        Generator(nn.Linear(cfg.latent_dim, size)),
        Discriminator(nn.Linear(size, 16), nn.LeakyReLU(0.2), nn.Linear(16, 1)),
        deal=lambda batch: Deal(gaussian_latent(batch.noise, cfg.latent_dim), batch.data["sample"]),
        ask=lambda given, noise, truncation: gaussian_latent(noise, cfg.latent_dim, truncation),
    )
'''


def test_a_family_is_one_file(first):
    """And one in params/ to choose it by."""
    project, _ = first
    (project.folder / "ganlib/models/toy.py").write_text(TOY.lstrip())
    (project.folder / "params/models/toy.yaml").write_text("network: {}\n")
    project.edit({"model": "toy", "scale.num_workers": 0})
    output = project.run("dvc", "repro")
    assert ran(output) == ["code", *STAGES[2:]]
    assert read(project.folder / "outputs/train/generator/generator.json")["network"]["family"] == "toy"
    assert "efficientnet_lite0" in read(project.folder / "outputs/evaluate/metrics.json")
    version = read(project.folder / "outputs/register/decision.json")["version"]
    project.run("ganlib", "sample", f"models:/ganlib-mnist/{version}", "-n", "4", "-o", "toys.png")
    with Image.open(project.folder / "toys.png") as picture:
        assert picture.size == (2 * TILE, 2 * TILE)
