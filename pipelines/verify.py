"""`ganlib lineage verify`: check what a version was made of out, compute it anew, and say what differs.

The commit that lineage names, or that of DVC's experiment, is checked out into a scratch clone, and the prepared data
with it, out of DVC's cache. There the facts are found as they were when the version was registered, and the data's hash
is computed from the examples. Nothing in the project's folder changes.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ganlib import shards
from ganlib.config import ConfigError, load_params
from ganlib.scratch import scratch_folder
from ganlib.warm_start import PLAYERS
from pipelines import lineage, model_registry
from pipelines._stage import INIT, PREPARED, StageError, project_folder
from pipelines.init import SCHEMES, digests_of, find_parent
from pipelines.lineage import GIT_SHA, Check
from pipelines.model_registry import Version
from pipelines.tracking import Store, flatten

__all__ = ["verify"]


def verify(store: Store, version: Version) -> tuple[list[Check], list[str]]:
    """Each fact as it was recorded and as it was found, and what else there is to say of those that differ.

    Raises StageError where the commit is not known here.
    """
    recorded = lineage.recorded(version.tags)
    notes: list[str] = []
    weights = "whole"
    try:
        model_registry.check_whole(store, version)
    except StageError as error:
        weights = "damaged"
        notes.append(str(error))
    checks = [Check("generator's files", "whole", weights)]
    of_parent, of_store = _parent_in_store(store, recorded)
    checks += of_parent
    notes += of_store
    commit = _commit(recorded)
    with _checked_out(commit):
        notes += _check_out(PREPARED)
        if "parent.name" in recorded:
            notes += _check_out(INIT)
            checks += _parent_checks(recorded, digests_of(INIT), "kept")
        try:
            params = load_params()
            found = lineage.facts(params)
        except ConfigError as error:
            first = str(error).splitlines()[0]
            notes.append(f"params.yaml of the commit is not one of this version of ganlib: {first}")
            return [*checks, Check("params.sha256", recorded.get("params.sha256", ""), "")], notes
        if commit != recorded.get("git.sha"):
            # DVC's experiment: its commit holds what was changed, and comes after the one that was recorded
            if _follows(commit, recorded.get("git.sha", "")):
                found["git.sha"] = recorded["git.sha"]
            recorded, found = ({k: v for k, v in of.items() if k != "git.dirty"} for of in (recorded, found))
        checks += lineage.verify(recorded, found)
        used, here = model_registry.run_json(store, version, "params.json"), params.chosen()
        if used is not None and found["params.sha256"] != recorded.get("params.sha256"):
            notes += _changed_keys(used, here)
        content = recorded.get("data.content_hash", "")
        try:
            anew = shards.content_hashes(PREPARED)
        except (OSError, ValueError) as error:
            notes.append(f"the data's hash was not computed: {error}")
            anew = {""}
        checks.append(Check("data, hashed anew", content, content if content in anew else min(anew)))
    return checks, notes


def _commit(recorded: dict[str, str]) -> str:
    sha = recorded.get("git.sha", "none")
    if name := recorded.get("dvc_exp_name"):
        sha = lineage.experiment_commit(name) or sha
    if sha in lineage.UNKNOWN:
        raise StageError("git.sha: no commit was recorded to check out; `ganlib lineage` compares with this folder")
    return sha


def _follows(commit: str, earlier: str) -> bool:
    """Whether the commit has an earlier one behind it."""
    try:
        _run(Path(), "git", "merge-base", "--is-ancestor", earlier, commit)
    except StageError:
        return False
    return True


@contextlib.contextmanager
def _checked_out(commit: str) -> Iterator[None]:
    """Inside, the working folder is a scratch clone of the project at that commit, with the project's DVC cache."""
    project = project_folder()
    cache = _run(project, sys.executable, "-m", "dvc", "cache", "dir")
    with scratch_folder() as scratch:
        clone = Path(scratch) / "clone"
        top = Path(_run(project, "git", "rev-parse", "--show-toplevel"))
        _run(project, "git", "clone", "--quiet", "--shared", "--no-checkout", str(top), str(clone))
        try:
            _run(clone, "git", "checkout", "--quiet", "--detach", commit)
        except StageError as error:
            raise StageError(
                f"git.sha: commit {commit[:12]} is not here; `git fetch` may bring it ({error})"
            ) from error
        folder = clone / project.relative_to(top)
        dvc_root = folder / _run(project, sys.executable, "-m", "dvc", "root")
        (dvc_root / ".dvc").mkdir(exist_ok=True)
        _run(folder, sys.executable, "-m", "dvc", "cache", "dir", "--local", cache)
        root, sha = os.environ.pop("DVC_ROOT", None), os.environ.pop(GIT_SHA, None)
        try:
            with contextlib.chdir(folder):
                yield
        finally:
            os.environ.update({name: old for name, old in (("DVC_ROOT", root), (GIT_SHA, sha)) if old is not None})


def _parent_in_store(store: Store, recorded: Mapping[str, str]) -> tuple[list[Check], list[str]]:
    """A parent as the store has it now, and why it does not; of one that was a folder `outputs/init` has the copy."""
    name, found, notes = recorded.get("parent.name", ""), dict[str, str](), list[str]()
    if not name.startswith(SCHEMES):
        return [], []
    with scratch_folder() as scratch:
        try:
            found = find_parent(name, Path(scratch), store)["sha256"]
        except StageError as error:
            notes.append(f"parent: {error}")
    return _parent_checks(recorded, found, "in the store"), notes


def _parent_checks(recorded: Mapping[str, str], found: Mapping[str, str], where: str) -> list[Check]:
    return [
        Check(f"parent's {player}, {where}", recorded.get(f"parent.{player}.sha256", ""), found.get(player, ""))
        for player in PLAYERS
    ]


def _check_out(folder: Path) -> list[str]:
    """A folder that DVC keeps, here, out of its cache; why not, if not."""
    try:
        _run(Path(), sys.executable, "-m", "dvc", "checkout", "--quiet", str(folder))
    except StageError:
        shutil.rmtree(folder, ignore_errors=True)
        return [f"{folder}: what the commit names is not in DVC's cache; `dvc pull` may bring it"]
    return []


def _changed_keys(then: dict[str, Any], here: dict[str, Any]) -> list[str]:
    old, new = (flatten({k: v for k, v in one.items() if k not in ("scale", "tracking")}) for one in (then, here))
    absent = "not there"
    return [
        f"params: {key}: {old.get(key, absent)} when it was made, {new.get(key, absent)} in the commit"
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
    ]


def _run(folder: Path, *words: str) -> str:
    """What the command prints. Raises StageError with the first line of what went wrong."""
    try:
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=True, timeout=600)
    except subprocess.CalledProcessError as error:
        said = (error.stderr.strip().splitlines() or [f"exit status {error.returncode}"])[0]
        raise StageError(f"{' '.join(words[:3])}: {said}") from error
    except (OSError, subprocess.SubprocessError) as error:
        raise StageError(f"{' '.join(words[:3])}: {error}") from error
    return done.stdout.strip()
