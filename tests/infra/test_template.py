"""What surrounds the code: tasks, hooks, the workflow, the development container, the lock file."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import jsonschema
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[2]
WORKFLOW = ROOT / ".github/workflows/ci.yml"
SCRIPTS = [ROOT / ".ci/run", ROOT / ".ci/tasks", ROOT / ".ci/compare"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    done = subprocess.run(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_the_workflow_is_one_that_github_takes():
    run(sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows", WORKFLOW)


def test_zizmor_finds_nothing_that_a_stranger_could_use(tool):
    run(tool("zizmor"), "--offline", "--quiet", WORKFLOW)


def test_scripts_in_the_workflow_pass_shellcheck(tool, tmp_path):
    steps = [step for job in YAML(typ="safe").load(WORKFLOW)["jobs"].values() for step in job["steps"]]
    scripts = [step["run"] for step in steps if "run" in step]
    assert len(scripts) > 5
    assert not [script for script in scripts if "${{" in script]  # what others wrote comes as variables, not as code
    for script in scripts:
        (tmp_path / "script").write_text(f"set -e\n{script}")  # GitHub calls bash -e
        run(tool("shellcheck"), "--shell", "bash", tmp_path / "script")


def test_the_workflow_runs_no_code_that_can_change_under_its_name():
    used = re.findall(r"uses: (\S+)(.*)", WORKFLOW.read_text())
    assert used
    assert [
        action for action, tag in used if not re.search(r"@[0-9a-f]{40}$", action) or not tag.startswith(" # v")
    ] == []


def test_only_the_job_that_runs_no_code_of_a_pull_request_may_write():
    workflow = YAML(typ="safe").load(WORKFLOW)
    assert workflow["permissions"] == {"contents": "read"}
    writers = {name: job for name, job in workflow["jobs"].items() if "permissions" in job}
    assert list(writers) == ["comment"]
    assert not any("checkout" in step.get("uses", "") for step in writers["comment"]["steps"])


def test_the_development_container_follows_its_schema():
    """devContainer.base.schema.json of github.com/devcontainers/spec at c95ffee (code: MIT), without descriptions."""
    schema = json.loads(gzip.decompress((Path(__file__).with_name("devcontainer.schema.json.gz")).read_bytes()))
    container = json.loads((ROOT / ".devcontainer/devcontainer.json").read_text())
    jsonschema.validate(container, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**container, "forwardPorts": ["eight thousand"]}, schema)


def test_pre_commit_takes_its_file(tmp_path, monkeypatch):
    monkeypatch.setenv("PRE_COMMIT_HOME", str(tmp_path))  # there may be no home folder
    run(sys.executable, "-m", "pre_commit", "validate-config", ROOT / ".pre-commit-config.yaml")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_shellcheck(script, tool):
    run(tool("shellcheck"), script)


def test_readme_hooks_workflow_and_contributing_name_tasks_that_there_are():
    known = set(re.findall(r"^    (\w+)\)", (ROOT / ".ci/tasks").read_text(), re.MULTILINE))
    assert known == {"lint", "types", "unit", "pipelines"}
    for file in ("README.md", ".pre-commit-config.yaml", ".github/workflows/ci.yml", "CONTRIBUTING.md"):
        calls = re.findall(r"\.ci/tasks((?: [a-z]+)+)", (ROOT / file).read_text())
        assert calls, file
        assert {name for call in calls for name in call.split()} <= known, file
    readme = (ROOT / "README.md").read_text()
    assert "&& .ci/tasks lint types unit pipelines\n" in readme  # all of them, and thereby CI


@pytest.mark.parametrize(("broken", "said"), [("format", ["format"]), ("check", ["format", "check"])])
def test_tasks_stop_at_the_first_that_fails(broken, said, tmp_path):
    for name in ("ruff", "mypy"):
        (tmp_path / name).write_text(f'#!/bin/sh\necho "$1"\ntest "$1" != {broken}\n')
        (tmp_path / name).chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run([ROOT / ".ci/tasks", "lint", "types"], env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout.split()) == (1, said)


def test_unknown_tasks_are_refused():
    done = subprocess.run([ROOT / ".ci/tasks", "typos", "lint"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "typos: expected lint, types, unit or pipelines\n"


def test_compare_runs_the_base_and_head_in_a_clone_and_leaves_the_project_as_it_is(tmp_path):
    """The script on two commits, with a `dvc` that says what it is asked and in which tree."""
    stub, project = tmp_path / "bin/dvc", tmp_path / "project"
    stub.parent.mkdir()
    stub.write_text(
        '#!/bin/sh\necho "$*, $(cat tree)"\nmkdir -p outputs/evaluate && cp tree outputs/evaluate/samples.png\n'
    )
    stub.chmod(0o755)
    (project / ".ci").mkdir(parents=True)
    shutil.copy(ROOT / ".ci/compare", project / ".ci")
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@localhost", "-C", project]
    run(*git, "init", "--quiet", "--initial-branch", "main")
    for tree in ("before", "after"):
        (project / "tree").write_text(tree)
        run(*git, "add", ".")
        run(*git, "commit", "--quiet", "--message", tree)
    (project / "tree").write_text("not committed")
    env = {**os.environ, "PATH": f"{stub.parent}{os.pathsep}{os.environ['PATH']}"}
    command = [project / ".ci/compare", "HEAD~1", tmp_path / "out", "-S", "train.kimg=1"]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "exp run --name compared-base -S train.kimg=1, before",
        "exp run --name compared-head -S train.kimg=1, after",
    ]
    assert [(tmp_path / "out" / f"{side}.png").read_text() for side in ("base", "head")] == ["before", "after"]
    assert (tmp_path / "out/report.md").read_text().endswith("metrics diff compared-base compared-head --md, after\n")
    assert (project / "tree").read_text() == "not committed"
    assert run(*git, "for-each-ref", "refs/exps") == ""


def locked() -> dict[str, list[str]]:
    packages = tomllib.loads((ROOT / "uv.lock").read_text())["package"]
    versions: dict[str, list[str]] = {}
    for package in packages:
        versions.setdefault(package["name"], []).append(package.get("version", ""))
    return versions


def test_the_lock_is_that_of_pyproject():
    """As `uv lock --check`, without an index."""
    (ours,) = (p for p in tomllib.loads((ROOT / "uv.lock").read_text())["package"] if p["name"] == PROJECT["name"])
    of_extras = [(None, PROJECT["dependencies"]), *PROJECT["optional-dependencies"].items()]
    asked = {
        (canonicalize_name(r.name), tuple(sorted(r.extras)), str(r.specifier), extra)
        for extra, of in of_extras
        for r in map(Requirement, of)
    }
    found = set()
    for entry in ours["metadata"]["requires-dist"]:
        extra = re.search(r"extra == '([\w-]+)'", entry.get("marker", ""))
        specifier = str(Requirement(f"x{entry.get('specifier', '')}").specifier)
        found.add((entry["name"], tuple(sorted(entry.get("extras", []))), specifier, extra and extra[1]))
    assert found == asked, "run `uv lock`"


def test_the_lock_names_the_public_index_and_hashes_all():
    text = (ROOT / "uv.lock").read_text()
    assert set(re.findall(r'registry = "([^"]+)"', text)) == {"https://pypi.org/simple"}
    files = re.findall(r'\{ url = "([^"]+)"(.*?)\}', text)
    assert len(files) > 100
    assert [url for url, rest in files if 'hash = "sha256:' not in rest] == []


def test_what_images_install_is_what_the_lock_names():
    """`infra/docker/lock.sh` takes its versions from uv.lock."""
    versions = locked()
    text = (ROOT / "infra/docker/requirements-cuda.txt").read_text()
    pins = dict(re.findall(r"^([\w.-]+)==([^\s;]+)", text, re.MULTILINE))
    assert len(pins) > 100
    other = {name: pin for name, pin in pins.items() if pin not in versions.get(canonicalize_name(name), [])}
    assert other == {}, "run infra/docker/lock.sh"
