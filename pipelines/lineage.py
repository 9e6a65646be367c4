"""Where a model comes from, as flat facts that can be checked against a working tree."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from ganlib.config import ConfigError, Params
from ganlib.shards import read_spec
from ganlib.warm_start import read_parent
from pipelines._stage import INIT, PREPARED, StageError
from pipelines.tracking import allowed_name

__all__ = ["GIT_SHA", "PREFIX", "Check", "experiment_commit", "facts", "git_fault", "git_sha", "recorded", "verify"]

GIT_SHA = "GANLIB_GIT_SHA"
"""the variable that says what `git_sha` would where there is no Git, as in a submitted job"""

PREFIX = "lineage."
"""of the tags of a version that hold facts"""

PACKAGES = ("ganlib", "torch", "ray", "mlflow", "dvc", "numpy", "pyarrow")
# what a working tree can be compared on; the rest says where it happened
CHECKED = ("git.", "data.", "dvc.", "params.", "parent.")
READ = ("ganlib", "pipelines", "params", "params.yaml", "dvc.yaml", "pyproject.toml")
"""what stages read of what Git holds"""
UNKNOWN = ("", "none")


class Check(NamedTuple):
    """A fact as it was recorded and as it is here; `verdict` is "match", "differs", "unknown", where neither side
    knows it, or "changed", where both have changes that no commit holds: they may differ."""

    fact: str
    recorded: str
    here: str

    @property
    def verdict(self) -> str:
        if self.recorded != self.here:
            return "differs"
        if self.fact == "git.dirty" and self.here == "true":
            return "changed"
        return "unknown" if self.here in UNKNOWN else "match"


def facts(params: Params) -> dict[str, str]:
    """Everything that determined a model, and the machine that made it, as it lies in the working folder.

    `data.*` and `dvc.*` are hashes: of the examples, of raw inputs and outputs as DVC knows them, and of each
    stage's entry in `dvc.lock` (command, parameters, code and data). `parent.*` are there where the training started
    from the weights of another: which that was, and hashes of its players.
    """
    of_run = {key: value for key, value in params.chosen().items() if key not in ("scale", "tracking")}
    return {
        **_git(),
        "data.content_hash": _content_hash(),
        **_dvc(Path("dvc.lock")),
        "params.sha256": _sha256(of_run),
        "seed": str(params.seed),
        "data": params.data,
        "model": params.model,
        "preset": params.preset,
        **_parent(params),
        **_software(),
        **_hardware(),
    }


def recorded(tags: Mapping[str, str]) -> dict[str, str]:
    """The facts that the tags of a version hold."""
    return {tag.removeprefix(PREFIX): value for tag, value in tags.items() if tag.startswith(PREFIX)}


def verify(recorded: Mapping[str, str], here: Mapping[str, str]) -> list[Check]:
    """Each checkable fact that either side knows; `""` where it does not."""
    names = sorted(name for name in {*recorded, *here} if name.startswith(CHECKED))
    return [Check(name, recorded.get(name, ""), here.get(name, "")) for name in names]


def _content_hash() -> str:
    try:
        return read_spec(PREPARED).content_hash
    except (OSError, ValueError):
        return "none"


def _parent(params: Params) -> dict[str, str]:
    if params.train.init is None:
        return {}
    try:
        about = read_parent(INIT)
        return {
            "parent.name": about["name"],
            **{f"parent.{player}.sha256": digest for player, digest in about["sha256"].items()},
        }
    except (ConfigError, KeyError):
        return {"parent.name": "none"}


def git_sha(project: Path = Path()) -> str:
    """HEAD of the repository that holds `project`, with `-dirty` if the pipeline's files differ; empty without a
    repository, or in one that ignores the folder.

    Pictures, notes and what stages write do not count. The variable GIT_SHA has the first word.
    """
    if said := os.environ.get(GIT_SHA):
        return said
    git = ("git", "-C", str(project))
    sha = "" if _command(*git, "check-ignore", ".") else _command(*git, "rev-parse", "HEAD")
    changed = sha and _command(*git, "status", "--porcelain", "--", *READ)
    return f"{sha}-dirty" if changed else sha


def git_fault() -> str:
    """Why Git does not say what it holds of this folder, in a line with what to do about it; empty if it does."""
    if os.environ.get(GIT_SHA):
        return ""
    try:
        asked = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            env={**os.environ, "LC_ALL": "C"},
            capture_output=True,
            text=True,
            timeout=30,
        )
    except (OSError, subprocess.SubprocessError):
        return "Git: not installed, or does not answer; install it"
    if asked.returncode == 0:
        is_ignored = _command("git", "check-ignore", ".")
        top = _command("git", "rev-parse", "--show-toplevel")
        return f"Git: {top} ignores this folder; `git init` here and commit" if is_ignored else ""
    if "dubious ownership" in asked.stderr:
        folder = shlex.quote(str(Path.cwd()))
        return f"Git: another user owns {folder}; `git config --global --add safe.directory {folder}`"
    if "not a git repository" in asked.stderr:
        return "Git: not a repository; `git init` and commit"
    return "Git: no commit yet; commit"


def experiment_commit(name: str) -> str:
    """The commit that DVC made of the experiment `name`: it holds what `-S` changed; empty if it is not here."""
    listed = ("for-each-ref", "--format=%(objectname)", f"refs/exps/*/*/{name}")
    return _command("git", *listed).partition("\n")[0]


def _git() -> dict[str, str]:
    sha, _, dirty = git_sha().partition("-")
    experiment = {"dvc_exp_name": "DVC_EXP_NAME", "dvc_exp_baseline": "DVC_EXP_BASELINE_REV"}
    return {
        "git.sha": sha or "none",
        "git.dirty": ("true" if dirty else "false") if sha else "none",
        **({fact: os.environ[key] for fact, key in experiment.items() if os.environ.get(key)} if sha else {}),
    }


def _dvc(lock: Path) -> dict[str, str]:
    if not lock.is_file():
        return {}
    try:
        stages: dict[str, Any] = YAML(typ="safe", pure=True).load(lock.read_text(encoding="utf-8"))["stages"]
    except (OSError, YAMLError, KeyError, TypeError) as error:
        raise StageError(f"{lock}: not a lock file of DVC: {' '.join(str(error).split())}") from error
    found = {}
    for name, stage in stages.items():
        if name in ("code", "register"):  # the one also sees what nothing uses, the other comes after the model
            continue
        found[f"dvc.lock.{name}"] = _sha256(stage)
        kept = [
            *stage.get("outs", []),
            *(dep for dep in stage.get("deps", []) if dep["path"].startswith("data/raw")),
        ]
        found.update({allowed_name(f"dvc.{entry['path']}"): str(entry.get("md5", "")) for entry in kept})
    return found


def _software() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "none"
    return {f"software.{name}": version for name, version in versions.items()}


def _hardware() -> dict[str, str]:
    import torch

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "hardware.cpu": _cpu(),
        "hardware.cpus": str(os.cpu_count()),
        "hardware.memory_gib": f"{memory:.1f}",
        "hardware.gpus": ", ".join(gpus) or "none",
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def _sha256(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _command(*words: str) -> str:
    """What the command prints, or nothing if it fails or is not installed."""
    try:
        return subprocess.run(words, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
