"""`dvc.yaml` names what each stage depends on, and DVC believes it."""

from __future__ import annotations

import ast
import functools
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from ganlib import registry
from ganlib.config import Params, TrainConfig, load_params
from ganlib.data import _kind
from pipelines._stage import CODE
from pipelines.code import used_files
from pipelines.tune import _of_a_trial

ROOT = Path(__file__).parents[2]
STAGES = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"]

# Files that cannot change what a stage writes, and imports that do not use what can.
WITHOUT_EFFECT = {
    "ganlib/_config.py": "checks params.yaml, whose values are dependencies",
    "ganlib/config.py": "the same",
    "ganlib/registry.py": "finds a file by its name",
    "ganlib/scratch.py": "where temporary files lie",
    "pipelines/_stage.py": "paths, folders and errors",
    "pipelines/background.py": "runs a thread that watches or tells",
    "pipelines/tracking.py": "writes to the tracking store",
    "pipelines/addresses.py": "the tracking store's address, and what errors say",
    "pipelines/outbox.py": "the same, or keeps what is to be written",
    "pipelines/model_registry.py": "writes to the model registry, and keeps files as they are",
    "pipelines/storage.py": "where checkpoints lie",
    "pipelines/checkpoints.py": "keeps them",
    "pipelines/inputs.py": "carries data to other nodes",
    "pipelines/cluster.py": "where the work runs",
    "pipelines/guard.py": "starts it again",
    "pipelines/scale.py": "by how many workers",
    "pipelines/prepare.py -> ganlib/reference.py": "how few examples are too few",
    "pipelines/training.py -> ganlib/evaluate.py": "names of metrics, to refuse what is not one",
    "pipelines/training.py -> pipelines/gate.py": "the same",
    "pipelines/training.py -> pipelines/code.py": "a run's name",
    "pipelines/register.py -> pipelines/training.py": "a run's name",
}
TRAINING = {  # of no use but to learners
    "ganlib/losses.py",
    "ganlib/distributed.py",
    "ganlib/pool.py",
    "ganlib/schedules.py",
    "ganlib/reference.py -> ganlib/health.py",
}
QUALITY = {  # of samples; the reference is of real data
    f"ganlib/reference.py -> ganlib/metrics/{name}.py" for name in ("class_coverage", "fd", "label_accuracy")
}
SPACES = {  # whose hashes are in the reference
    f"ganlib/reference.py -> {path.relative_to(ROOT).as_posix()}" for path in (ROOT / "ganlib/spaces").rglob("*.py")
}
KINDS = {  # whose hash, `Spec.code`, is in the prepared data
    f"ganlib/data/_kind.py -> ganlib/data/{name}.py" for name in registry.names("data")
}
OF_STAGE = {
    "init": {f"ganlib/warm_start.py -> ganlib/{name}.py" for name in ("game", "data/_spec")},  # types; files are copied
    "reference": TRAINING | QUALITY | KINDS,
    "tune": SPACES | KINDS,
    "train": SPACES | KINDS,
    "evaluate": TRAINING | SPACES | KINDS,
    "register": TRAINING | SPACES | KINDS,
}

SHIPPED = load_params(ROOT / "params.yaml")
DATA = {dataset.sample.kind: name for name, dataset in SHIPPED.datasets.items()}.values()
"""a data set of each kind"""
module_name = functools.cache(registry.module_name)  # which lists folders


@functools.cache
def chosen(model: str, data: str) -> Params:
    return SHIPPED.model_copy(update={"data": data, "model": model, "preset": "none"})


@functools.cache
def imported(file: str) -> tuple[list[str], list[str]]:
    """Modules that a file imports by a statement, and folders from which it loads by a name."""
    modules, folders = list[str](), list[str]()
    if not file.endswith(".py"):
        return modules, folders
    for node in ast.walk(ast.parse((ROOT / file).read_text())):
        match node:
            case ast.Import(names):
                modules += [alias.name for alias in names]
            case ast.ImportFrom(str(module), names):
                modules += [module, *(f"{module}.{alias.name}" for alias in names)]
            case ast.Call(ast.Attribute(ast.Name("registry"), "load" | "load_all"), [ast.Constant(kind), *_]):
                folders.append(kind)
    return modules, folders


@functools.cache
def registered(folder: str, model: str, data: str) -> list[str]:
    """Modules that are loaded from a folder by a name, where it is what was chosen."""
    params = chosen(model, data)
    kind = params.dataset.sample.kind
    looks = _kind.load(kind).LOOKS
    by_choice = {"models": [model], "data": [kind], "sources": [params.dataset.source.name]}
    names = by_choice.get(folder) or (registry.names(folder, looks) if folder in ("spaces", "metrics") else [])
    return [module_name(folder, name, looks) for name in names]


@functools.cache
def imports(file: str, model: str, data: str) -> set[str]:
    """Project files that a file imports: by a statement, or from the registry, where it is what was chosen."""
    modules, folders = imported(file)
    loaded = [module for folder in folders for module in registered(folder, model, data)]
    files = {f"{module.replace('.', '/')}.py" for module in (*modules, *loaded)}
    return {name for name in files if (ROOT / name).is_file()}


def closure(file: str, model: str, data: str, without: set[str]) -> set[str]:
    """The file and all that it imports, directly or not."""
    seen, left = set[str](), [file]
    while left:
        here = left.pop()
        seen.add(here)
        left += [f for f in imports(here, model, data) - seen if f not in without and f"{here} -> {f}" not in without]
    return seen


@functools.cache
def hashed(data: str) -> dict[str, set[str]]:
    """The files whose hashes the stage `code` writes, by the output that has them; those of all models."""
    used = used_files(SHIPPED.model_copy(update={"data": data}))
    return {f"{CODE}/{name}.json": {file.relative_to(ROOT).as_posix() for file in used[name]} for name in used}


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("model", registry.names("models"))
@pytest.mark.parametrize("stage", [name for name in STAGES if name != "code"])
def test_a_stage_depends_on_all_code_that_can_change_its_output(stage, model, data):
    deps = {dep.replace("${model}", model) for dep in STAGES[stage]["deps"]}
    deps |= {file for dep in deps for file in hashed(data).get(dep, ())}
    without = {*WITHOUT_EFFECT, *OF_STAGE.get(stage, ())}
    own = [dep for dep in STAGES[stage]["deps"] if dep.startswith("pipelines/")]  # MLflow, too, loads some of them
    assert f"pipelines/{stage}.py" in own
    needed = {file for one in own for file in closure(one, model, data, without)}
    missing = {file for file in needed if deps.isdisjoint([file, *map(str, Path(file).parents)])}
    assert not missing, f"{stage} lacks {sorted(missing)}"


def test_the_search_depends_on_what_trials_obey(params):
    trial = _of_a_trial(params).train
    replaced = {"kimg", "report_kimg", "checkpoint_kimg", "quality_samples"}
    assert all(getattr(trial, name) == getattr(params.tune, name.replace("checkpoint", "report")) for name in replaced)
    without = {"keep"}  # chosen after a training; of a trial the last report counts
    assert {f"train.{name}" for name in TrainConfig.model_fields.keys() - replaced - without} <= {
        key for key in STAGES["tune"]["params"] if isinstance(key, str)
    }


@pytest.mark.parametrize("stage", STAGES)
def test_no_dependency_is_listed_twice(stage):
    deps = STAGES[stage]["deps"]
    assert len(deps) == len(set(deps))
