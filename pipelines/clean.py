"""What earlier runs left, and `ganlib clean` may delete.

The rule: a run's checkpoints, when no process works on it, nothing in it has changed for some days, and a newer run of
the same stage, data set and model is there; data that were published to nodes, when no process works on any run and
they are as old (they are published again when needed); Ray's session folders without a process; and scratch folders of
processes that were killed.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil

from ganlib.scratch import pid_namespace
from pipelines.places import ray_folder
from pipelines.storage import Storage, is_held

__all__ = ["Leftover", "leftovers", "sweep_scratch"]

HOUR, DAY = 3600.0, 86400.0
RUN = re.compile(r"(train|tune)-.+-[0-9a-f]{12}")
SCRATCH = re.compile(r"ganlib-(?P<pid>\d+)-(?P<namespace>\d+)-.+")


@dataclass(frozen=True)
class Leftover:
    """Something that may be deleted, and why."""

    place: str
    bytes: int
    why: str
    delete: Callable[[], None]


def leftovers(storage: Storage, days: float) -> Iterator[Leftover]:
    """All that the rule allows to delete. `days`: how long a run must not have changed."""
    yield from _old_runs(storage, days)
    yield from _ray_sessions()
    for folder in _scratch():
        yield Leftover(str(folder), _size(folder), "its process is gone", partial(shutil.rmtree, folder))


def sweep_scratch(pids: Iterable[int] = ()) -> None:
    """Delete scratch folders of this user's processes that are gone, or are to need them no more: a kill leaves a
    checkpoint in them."""
    for folder in _scratch(set(pids)):
        shutil.rmtree(folder, ignore_errors=True)


def _old_runs(storage: Storage, days: float) -> Iterator[Leftover]:
    found = {name: (storage / name).contents() for name in storage.folders() if RUN.fullmatch(name)}
    changed = {name: max((time for _, time in files), default=0.0) for name, files in found.items()}
    newest: dict[str, str] = {}
    for name in sorted(found, key=lambda name: changed[name]):
        newest[_kind(name)] = name
    held = {name for name in found if is_held(storage / name)}
    for name, files in found.items():
        newer, age = newest[_kind(name)], (time.time() - changed[name]) / DAY
        if name == newer or age < days or name in held:
            continue
        why = f"not changed for {age:.0f} days, and {newer} is newer"
        yield Leftover(str(storage / name), sum(size for size, _ in files), why, (storage / name).delete)
    for key in (published := storage / "inputs").folders() if not held else []:
        files = (published / key).contents()
        age = (time.time() - max((at for _, at in files), default=0.0)) / DAY
        if age >= days:
            why = f"published {age:.0f} days ago, and no run is at work"
            yield Leftover(str(published / key), sum(size for size, _ in files), why, (published / key).delete)


def _kind(run: str) -> str:
    """The stage, data set and model of a run's name."""
    return run.rpartition("-")[0]


def _ray_sessions() -> Iterator[Leftover]:
    """Session folders of Ray's that no living process names."""
    root = ray_folder().path / "ray"
    sessions = [path for path in root.glob("session_2*") if path.is_dir() and not path.is_symlink() and _is_mine(path)]
    if not sessions:
        return
    named = " ".join(" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"]))
    for session in sessions:
        if session.name not in named and time.time() - session.stat().st_mtime > HOUR:
            yield Leftover(str(session), _size(session), "its Ray is gone", partial(shutil.rmtree, session))


def _scratch(pids: Container[int] = ()) -> Iterator[Path]:
    """Scratch folders of this user's processes that are gone or among `pids`.

    In a folder that containers share, each knows its own: the processes of another cannot be seen.
    """
    for path in Path(tempfile.gettempdir()).glob("ganlib-*"):
        owner = SCRATCH.fullmatch(path.name)
        if owner and int(owner["namespace"]) == pid_namespace() and _is_mine(path):
            pid = int(owner["pid"])
            if pid in pids or not _is_alive(pid):
                yield path


def _is_alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _is_mine(path: Path) -> bool:
    return path.stat().st_uid == os.getuid()


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
