"""The images' recipe and lock files, and the lint of all shell scripts of infra/."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "infra/docker"
SCRIPTS = sorted(
    file
    for file in (ROOT / "infra").rglob("*")
    if file.is_file() and file.read_bytes()[:64].startswith((b"#!/usr/bin/env bash", b"#!/bin/bash", b"#!/bin/sh"))
)


def locked(variant: str) -> dict[str, str]:
    """Package and version of each entry; of torch from an address, the version that its name states."""
    versions = {}
    for entry in re.sub(r"\\\n", " ", (DOCKER / f"requirements-{variant}.txt").read_text()).splitlines():
        assert re.search(r" --hash=sha256:[0-9a-f]{64}", entry), f"no hash: {entry[:80]}"
        wanted = Requirement(entry.split(" --hash=")[0].strip())
        if wanted.url:
            versions[canonicalize_name(wanted.name)] = wanted.url.split("/")[-1].split("-")[1].replace("%2B", "+")
        else:
            [pin] = wanted.specifier
            assert pin.operator == "==", entry[:80]
            versions[canonicalize_name(wanted.name)] = pin.version
    return versions


@pytest.mark.parametrize("variant", ["cpu", "cuda"])
def test_the_lock_meets_what_is_asked(variant):
    versions = locked(variant)
    whole = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project, more = whole["project"], whole["dependency-groups"]["image"]
    for wanted in map(Requirement, [*project["dependencies"], *project["optional-dependencies"]["serve"], *more]):
        found = versions.get(canonicalize_name(wanted.name))
        assert found, f"{wanted.name} is not in requirements-{variant}.txt; run infra/docker/lock.sh"
        assert wanted.specifier.contains(found), f"{wanted} is asked, {found} is locked; run infra/docker/lock.sh"


def test_the_two_locks_differ_in_torch_alone():
    cpu, cuda = locked("cpu"), locked("cuda")
    assert cpu.pop("torch") == f"{cuda.pop('torch')}+cpu"
    only_cuda = cuda.keys() - cpu.keys()
    assert all(name.startswith(("nvidia-", "cuda-")) or name == "triton" for name in only_cuda), only_cuda
    assert {"nvidia-nccl-cu13", "nvidia-cudnn-cu13"} <= only_cuda
    assert cpu == {name: version for name, version in cuda.items() if name not in only_cuda}


def test_hadolint(tool):
    done = subprocess.run([tool("hadolint"), DOCKER / "Dockerfile"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_nobody_is_root():
    last_stage = (DOCKER / "Dockerfile").read_text().rpartition("\nFROM ")[2]
    assert re.findall(r"^USER (.+)$", last_stage, re.MULTILINE) == ["1000"]
    assert "\nHEALTHCHECK " in last_stage


def test_there_are_scripts():
    assert {"lock.sh", "ganlib.sbatch"} <= {script.name for script in SCRIPTS}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: str(script.relative_to(ROOT)))
def test_shellcheck(script, tool):
    done = subprocess.run([tool("shellcheck"), script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
