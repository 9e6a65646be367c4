"""pyproject.toml names what the code imports, with an upper bound for each."""

from __future__ import annotations

import ast
import importlib.metadata
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
CONFIG = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = CONFIG["project"]
EXTRAS = {name: list(map(Requirement, of)) for name, of in PROJECT["optional-dependencies"].items()}
REQUIRED = list(map(Requirement, PROJECT["dependencies"]))
OPTIONAL = [one for extra, of in EXTRAS.items() if extra != "test" for one in of]


def imported(folder: str) -> set[str]:
    """The top names of what the files of a folder import."""
    found = set[str]()
    for file in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                found.add(node.module.partition(".")[0])
    return found - sys.stdlib_module_names


@pytest.mark.parametrize("folder", ["ganlib", "pipelines"])
def test_a_wheel_has_every_file(folder):
    """What pyproject.toml has setuptools find are folders with an `__init__.py`."""
    assert f"{folder}*" in CONFIG["tool"]["setuptools"]["packages"]["find"]["include"]
    folders = {file.parent for file in (ROOT / folder).rglob("*.py")}
    assert [str(of) for of in folders if not (of / "__init__.py").is_file()] == []


@pytest.mark.parametrize("folder", ["ganlib", "pipelines"])
def test_every_import_is_declared(folder):
    declared = {canonicalize_name(one.name) for one in (*REQUIRED, *OPTIONAL)}
    providers = importlib.metadata.packages_distributions()
    missing = {
        name
        for name in imported(folder) - {"ganlib", "pipelines"}
        if not declared & {canonicalize_name(provider) for provider in providers.get(name, [name])}
    }
    assert missing == set()


@pytest.mark.parametrize("requirement", [*REQUIRED, *OPTIONAL], ids=str)
def test_every_requirement_has_an_upper_bound_that_holds_here(requirement):
    assert any(one.operator in ("<", "<=", "==", "~=") for one in requirement.specifier)
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"{requirement.name} is not installed")
    assert requirement.specifier.contains(version, prereleases=True)


def test_data_of_your_own_travel_with_dvc(tmp_path):
    """`dvc add data/raw/NAME`, pushed and pulled: DVC has to see a `.dvc` file in a folder that Git mostly ignores."""
    project, store = tmp_path / "project", tmp_path / "store"

    def run(*command):
        subprocess.run(command, cwd=project, check=True, capture_output=True)

    for name in (".gitignore", "data/raw/.gitignore"):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, project / name)
    run("git", "init", "--quiet")
    run("dvc", "init", "--quiet")
    run("dvc", "remote", "add", "--default", "store", str(store))
    mine = project / "data/raw/mine/one.txt"
    mine.parent.mkdir()
    mine.write_text("mine")
    run("dvc", "add", "data/raw/mine")
    run("dvc", "push")
    shutil.rmtree(mine.parent)
    shutil.rmtree(project / ".dvc/cache")
    run("dvc", "pull")
    assert mine.read_text() == "mine"
    listed = ["git", "ls-files", "--others", "--exclude-standard", "data"]
    added = subprocess.run(listed, cwd=project, check=True, capture_output=True, text=True).stdout.split()
    assert added == ["data/raw/.gitignore", "data/raw/mine.dvc"]


def exported(file: Path) -> set[str] | None:
    """What `__all__` of a module lists; None without one."""
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "__all__":
            return set(ast.literal_eval(node.value))
    return None


def test_all_lists_what_other_modules_import():
    missing = set[str]()
    for file in (path for folder in ("ganlib", "pipelines") for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith(("ganlib", "pipelines")):
                continue
            of = ROOT / f"{node.module.replace('.', '/')}.py"
            public = exported(of) if of.is_file() else None
            names = {alias.name for alias in node.names if not alias.name.startswith("_")}
            missing |= {f"{node.module}.{name}" for name in names - public} if public is not None else set()
    assert sorted(missing) == []
