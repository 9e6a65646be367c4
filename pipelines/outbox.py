"""Logging by stages that do not stop for the tracking store: a training does not stop for a server.

`open_outbox` and `try_run` never raise where the store does not answer. What could not be sent is kept in
`.ganlib/tracking`, and the next stage that reaches the store sends it: `tune` and `train` as they open their outbox and
with each call, `register` by `send_kept`.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ganlib.config import TrackingConfig
from pipelines._stage import project_folder
from pipelines.addresses import error_text, shown, store_uri
from pipelines.tracking import (
    AGAIN,
    Run,
    Store,
    StoreError,
    begin_run,
    flatten,
    log_folder,
    log_params,
    log_stats,
    open_store,
    store_errors,
)

__all__ = ["Draft", "Outbox", "open_outbox", "send_kept", "try_run"]

PAUSE_SECONDS = 60.0  # between attempts to reach a store that did not answer


@dataclass(frozen=True)
class Draft:
    """A run that `try_run` began; what is logged to it goes through the outbox."""

    outbox: Outbox
    key: str
    name: str
    parent: Draft | None
    tags: Mapping[str, str]

    def log_params(self, params: Mapping[str, Any]) -> None:
        """As `tracking.log_params`."""
        self.send("log_params", flatten(params))

    def log_stats(self, rows: Iterable[Mapping[str, float]]) -> None:
        """As `tracking.log_stats`, of rows that come now."""
        self.send("log_stats", [dict(row) for row in rows], int(time.time() * 1000))

    def log_folder(self, folder: Path, into: str) -> None:
        """As `tracking.log_folder`, of the files as they are now."""
        self.send("log_folder", into, files=folder)

    def send(self, call: str, *args: Any, files: Path | None = None) -> None:
        """Have `call(run, *args)` done on the store's run of this key, now or later."""
        self.outbox.send({"run": self.identity(), "call": call, "args": args}, files)

    def identity(self) -> dict[str, Any]:
        parent = self.parent and self.parent.identity()
        return {"key": self.key, "name": self.name, "tags": dict(self.tags), "parent": parent}


class Outbox:
    """What is logged by a stage that does not stop for the store: sent at once, or kept until the store answers.

    What is kept lies in `folder`, an entry for each call, in order; each can be sent again without harm, so one that
    was sent when the process was killed is not logged twice. A call waits for the store no longer than MLflow's
    time-out, and after a failure none is tried for `PAUSE_SECONDS`.
    """

    def __init__(self, config: TrackingConfig):
        self.config, self.uri = config, store_uri(config)
        self.folder = _outbox_folder(self.uri, config.experiment)
        self.store: Store | None = None
        self.runs: dict[str, Run] = {}
        self.failed_at = -PAUSE_SECONDS
        self.is_down = False

    def connect(self) -> None:
        """Try the store, and send what is kept. Raises StageError if the project cannot use it."""
        try:
            store = open_store(self.config)
            send_kept(store, self.config.experiment)
        except StoreError as error:
            self._warn(error)
        else:
            self.store = store

    def send(self, entry: Mapping[str, Any], files: Path | None = None) -> None:
        """Send what is kept and then `entry`, or keep `entry` too, with a copy of the folder `files`."""
        entry = json.loads(json.dumps(entry, default=float))  # as it would be kept; `float` is for NumPy's
        last = entry["call"] == "end" and entry["run"]["parent"] is None
        try:
            with _locked(self.folder):
                if (last or time.monotonic() - self.failed_at >= PAUSE_SECONDS) and self._sent(entry, files):
                    return
                _keep(self.folder, entry, files)
        except OSError as error:
            print(f"tracking: {entry['call']} of {entry['run']['key']} is lost: cannot keep it: {error}", flush=True)

    def _sent(self, entry: Mapping[str, Any], files: Path | None) -> bool:
        """Whether all is sent. The runs' known points are forgotten where it is not: others may send what is kept."""
        try:
            self.store = self.store or open_store(self.config)
            _send_entries(self.store, self.folder, self.runs)
            _apply(self.store, self.runs, entry, files)
        except Exception as error:  # the store's client may raise anything: the work must not stop for it
            self.runs.clear()
            self._warn(error)
            return False
        if self.is_down:
            self.is_down = False
            print("tracking: the store answers again; what was kept is sent", flush=True)
        return True

    def _warn(self, error: Exception) -> None:
        self.failed_at = time.monotonic()
        if not self.is_down:  # once for each time it is lost
            self.is_down = True
            reason = error_text(error, self.uri).removesuffix(f"; {AGAIN}")
            print(f"tracking: {reason}; the work goes on, and {self.folder} keeps what is to be logged", flush=True)


def open_outbox(config: TrackingConfig) -> Outbox:
    """For stages that do not stop for the store: like `open_store`, but one that does not answer is a printed line.

    Raises StageError, before any work is done, for what only the user can settle: an address that is none, an
    experiment that was deleted, a store of another project.
    """
    outbox = Outbox(config)
    outbox.connect()
    return outbox


@contextmanager
def try_run(
    outbox: Outbox, key: str, name: str, *, parent: Draft | None = None, tags: Mapping[str, str] | None = None
) -> Iterator[Draft]:
    """Like `tracking.run`, for `log_params`, `log_stats` and `log_folder`, but never raises for the store."""
    draft = Draft(outbox, key, name, parent, tags or {})
    draft.send("begin")
    status = "FAILED"
    try:
        yield draft
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        draft.send("end", status)


def send_kept(store: Store, experiment: str) -> None:
    """Send what earlier stages could not send to this experiment. Raises StoreError where the store fails."""
    outbox = _outbox_folder(store.uri, experiment)
    if outbox.is_dir():
        with _locked(outbox):
            _send_entries(store, outbox, {})


def _send_entries(store: Store, folder: Path, runs: dict[str, Run]) -> None:
    """Send the entries in order, deleting each. Raises StoreError where the store fails or refuses one."""
    for place in _kept(folder):
        try:
            with store_errors(store):
                entry = json.loads((place / "entry.json").read_text(encoding="utf-8"))
                _apply(store, runs, entry, place / "files")
        except (StoreError, ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f"{error_text(error, store.uri)}; to give up what is kept in {place}, delete it"
            ) from error
        (place / "entry.json").unlink()
        shutil.rmtree(place)


def _apply(store: Store, runs: dict[str, Run], entry: Mapping[str, Any], files: Path | None) -> None:
    run, args = _run_of(store, runs, entry["run"]), entry["args"]
    match entry["call"]:
        case "begin":
            pass
        case "end":
            store.client.set_terminated(run.id, *args)
            del runs[run.key]
        case "log_params":
            log_params(run, *args)
        case "log_stats":
            log_stats(run, *args)
        case "log_folder" if files is not None:
            log_folder(run, files, *args)
        case unknown:
            raise StoreError(f"unknown call {unknown!r} in what is kept for the tracking store")


def _run_of(store: Store, runs: dict[str, Run], identity: Mapping[str, Any]) -> Run:
    key, name, tags = identity["key"], identity["name"], identity["tags"]
    if key not in runs:
        parent = identity["parent"] and _run_of(store, runs, identity["parent"])
        runs[key] = begin_run(store, key, name, parent, tags)
    return runs[key]


def _outbox_folder(uri: str, experiment: str) -> Path:
    """Where is kept what could not be sent to an experiment of a store; a changed password makes no other store."""
    name = hashlib.sha256(f"{shown(uri)} {experiment}".encode()).hexdigest()[:16]
    return project_folder() / ".ganlib" / "tracking" / name


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Wait until no other process, or thread, sends or keeps anything here."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _kept(folder: Path) -> list[Path]:
    """The entries in order; what a kill left of one is removed."""
    entries = []
    for place in sorted(place for place in folder.iterdir() if place.is_dir()):
        if (place / "entry.json").is_file():
            entries.append(place)
        else:
            shutil.rmtree(place)
    return entries


def _keep(folder: Path, entry: Mapping[str, Any], files: Path | None) -> None:
    """Write one entry; it counts from the moment that its `entry.json` is there. Raises OSError."""
    kept = _kept(folder)
    place = folder / f"{int(kept[-1].name) + 1 if kept else 1:08}"
    place.mkdir()
    try:
        if files is not None:
            shutil.copytree(files, place / "files")
        (place / "partial").write_text(json.dumps(entry), encoding="utf-8")
        (place / "partial").rename(place / "entry.json")
    except OSError:
        shutil.rmtree(place, ignore_errors=True)
        raise
