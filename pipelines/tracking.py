"""Every MLflow call of the project (`pyfunc.py` is what MLflow itself runs).

Only the driver calls it: workers need no credentials. What may be repeated after a kill, or done by two processes
at once, is keyed by what determines its result: a repetition goes on with what it finds, adding nothing.

There are two ways in. `open_store` and `run` raise StoreError where the store does not answer; `register` cannot
work without one. `open_outbox` and `try_run` never do: a training does not stop for a server. What could not be sent
is kept in `.ganlib/tracking`, and whoever opens the same store next sends it.

MLflow takes seconds to import, so nothing is imported until a store is opened.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import random
import re
import shutil
import sqlite3
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from ganlib.config import TrackingConfig
from pipelines._stage import StageError, home

__all__ = [
    "Draft",
    "Outbox",
    "Run",
    "Store",
    "StoreError",
    "Version",
    "download",
    "find_version",
    "flatten",
    "log_folder",
    "log_json",
    "log_metrics",
    "log_params",
    "log_stats",
    "open_outbox",
    "open_store",
    "register_generator",
    "run",
    "set_alias",
    "shown",
    "store_uri",
    "tag_version",
    "try_run",
    "version_by_alias",
    "version_by_uri",
    "versions",
]

RUN_KEY = "ganlib.run_key"
CLAIM_KEY = "ganlib.run_claim"
VERSION_KEY = "ganlib.key"
DIGEST = "ganlib.sha256"  # of the generator's files
ROLLBACKS = "health/rollbacks"
SCHEMES = ("http", "https", "databricks", "sqlite", "postgresql", "mysql", "mssql")
CHUNK = 1000  # metrics a request, MLflow's limit
PARAM_CHUNK = 100
PARAM_LENGTH = 6000
CLIENTS = ("mlflow", "requests", "sqlalchemy")  # whose exceptions tell that the store failed
AGAIN = "what was computed is kept; see to the store, then `dvc repro` goes on"
PAUSE_SECONDS = 60.0  # between attempts to reach a store that did not answer
CLAIM_ATTEMPTS = 6
SECRETS = ("password", "passwd", "pwd", "token", "secret")


class StoreError(StageError):
    """The tracking store does not answer, or refuses. The message is one line without secrets."""


@dataclass(frozen=True)
class Store:
    """A tracking store that answered."""

    uri: str
    client: Any
    experiment: str
    """its ID; empty if there is none and none was to be made"""


@dataclass(frozen=True)
class Run:
    """An open run. `logged`: the points of each metric that it has, as (step, rollbacks of training until then)."""

    store: Store
    id: str
    key: str
    logged: dict[str, set[tuple[int, float]]]


@dataclass(frozen=True)
class Version:
    """A version of a registered model. `tags` is the state when it was read."""

    model: str
    number: int
    tags: Mapping[str, str]

    @property
    def uri(self) -> str:
        return f"models:/{self.model}/{self.number}"


def store_uri(config: TrackingConfig) -> str:
    """`MLFLOW_TRACKING_URI`, else `tracking.uri`, else SQLite in the project folder; paths absolute.

    Raises StageError for an address that is not one of a store, and for a password in `tracking.uri`.
    """
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    variable = os.environ.get("MLFLOW_TRACKING_URI")
    for name, uri in (("tracking.uri", config.uri), ("MLFLOW_TRACKING_URI", variable)):
        if not uri:
            continue
        scheme = uri.partition(":")[0].partition("+")[0]
        if scheme not in SCHEMES:
            raise StageError(f"{name}: {shown(uri)!r} is not a store of MLflow; known: {', '.join(SCHEMES)}")
        try:
            parts = None if uri == "databricks" else make_url(uri)
        except (ArgumentError, ValueError) as error:  # ValueError: the port
            raise StageError(f"{name}: {shown(uri)!r} is not an address; expected SCHEME://HOST:PORT/NAME") from error
        if name == "tracking.uri" and parts and (parts.password or any(_is_secret(key) for key in parts.query)):
            raise StageError(
                f"tracking.uri: {shown(uri)!r} holds a password, which git and DVC would keep; "
                "set MLFLOW_TRACKING_URI in the environment instead"
            )
    uri = variable or config.uri or "sqlite:///mlflow.db"
    if uri.startswith("sqlite:///"):
        return f"sqlite:///{home() / uri.removeprefix('sqlite:///')}"
    return uri


def shown(uri: str) -> str:
    """An address, or a path, without what may be secret: user, password, query, parameters and fragment."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    scheme, colon, _ = uri.partition(":")
    if not re.fullmatch(r"[A-Za-z][\w+.-]*", scheme) or not colon:
        return uri
    try:
        parts = make_url(uri)
    except (ArgumentError, ValueError):
        return f"{scheme}:***"
    user, _, host = f"@{parts.host or ''}".rpartition("@")  # a password may hold "@"
    hidden_user = "***@" if parts.username is not None or user else ""
    port = "" if parts.port is None else f":{parts.port}"
    database = "" if parts.database is None else f"/{parts.database}"
    path = re.split("[?;#]", database)[0]
    return f"{scheme}://{hidden_user}{host}{port}{path}{'?***' if parts.query or path != database else ''}"


def open_store(config: TrackingConfig, *, create: bool = True) -> Store:
    """Connect, migrate, find the experiment and send what an earlier stage could not.

    With `create=False` nothing is made or sent: a SQLite file that is not there is an error, an experiment is not.
    Raises StoreError, one line and within seconds, if the store does not answer, StageError if the project cannot
    use it.
    """
    store = _connect(config, create)
    outbox = _outbox_folder(store.uri, config.experiment)
    if create and outbox.is_dir():
        with _locked(outbox):
            _send_kept(store, outbox, {})
    return store


def _connect(config: TrackingConfig, create: bool) -> Store:
    uri = store_uri(config)
    if uri.startswith("sqlite:"):
        _probe_sqlite(Path(uri.partition("///")[2].partition("?")[0]), create)
    _quiet()
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    impatience = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}
    with _environment({key: value for key, value in impatience.items() if key not in os.environ}):
        try:
            client = MlflowClient(tracking_uri=uri)
            found = client.get_experiment_by_name(config.experiment)
            if found is None and create:
                found = _create_experiment(client, config.experiment, uri)
        except (MlflowException, SQLAlchemyError, OSError, ImportError, ValueError) as error:
            raise StoreError(f"tracking store {shown(uri)} does not answer: {_one_line(error, uri)}") from error
    # MLflow's own patience is minutes a call
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    if found is None:
        return Store(uri, client, "")
    if found.lifecycle_stage != "active":
        raise StageError(
            f"tracking.experiment: {config.experiment!r} was deleted from {shown(uri)}; "
            f"choose another name or run `mlflow experiments restore -x {found.experiment_id}`"
        )
    if create:
        _check_not_copied(uri, found.artifact_location)
    return Store(uri, client, found.experiment_id)


def _create_experiment(client: Any, name: str, uri: str) -> Any:
    """The new experiment, or the one that another process made meanwhile: names are unique in a store."""
    from mlflow.exceptions import MlflowException

    # A server knows where its artifacts go; a database does not, and MLflow would say "./mlruns".
    place = None if uri.startswith(("http", "databricks")) else (home() / "mlartifacts").as_uri()
    try:
        client.create_experiment(name, artifact_location=place)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    return client.get_experiment_by_name(name)


def _check_not_copied(uri: str, artifacts: str) -> None:
    """Raise StageError if the project's own SQLite file came from another folder: it names that one's artifacts."""
    place = urlsplit(artifacts)
    if not uri.startswith("sqlite:") or place.scheme not in ("", "file"):
        return
    file, folder = Path(uri.partition("///")[2].partition("?")[0]), Path(unquote(place.path))
    if file.is_relative_to(home()) and not folder.is_relative_to(home()):
        raise StageError(
            f"tracking store {file} came from another folder: its artifacts lie in {folder}; move it away and a new "
            "one is made, or move the project back, or set MLFLOW_TRACKING_URI to the store to share"
        )


@contextmanager
def run(
    store: Store, key: str, name: str, *, parent: Run | None = None, tags: Mapping[str, str] | None = None
) -> Iterator[Run]:
    """The run whose key is `key`: begun, or gone on with if an earlier process began it.

    It ends as FINISHED, as KILLED on Ctrl-C, or as FAILED on any other error. A trial of a search has the
    search's run as `parent`. Of two processes that begin it at once, both log to one run. Raises StoreError if the
    store stops answering.
    """
    with _answering(store):
        begun = _begin(store, key, name, parent, tags or {})
    status = "FAILED"
    try:
        with _answering(store):
            yield begun
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        try:
            with _answering(store):
                store.client.set_terminated(begun.id, status)
        except StoreError:
            if status == "FINISHED":
                raise


def _begin(store: Store, key: str, name: str, parent: Run | None, tags: Mapping[str, str]) -> Run:
    """Find the run or create it, and set it running."""
    tags = {**tags, **({"mlflow.parentRunId": parent.id} if parent else {})}
    owner = next(iter(_find_runs(store, RUN_KEY, key)), None) or _create_run(store, key, name, tags)
    for claim in _find_runs(store, CLAIM_KEY, key):
        if claim != owner:
            _delete_run(store, claim)
    store.client.update_run(owner, status="RUNNING")
    found = store.client.get_run(owner).data
    for tag, value in tags.items():
        if found.tags.get(tag) != value:
            store.client.set_tag(owner, tag, value)
    return Run(store, owner, key, _logged(store, owner, found.metrics))


def _create_run(store: Store, key: str, name: str, tags: Mapping[str, str]) -> str:
    """A new run's ID, or that of the run which another process creates at this moment.

    MLflow's keys are not unique. So a new run first only claims the key, and gets it if no other claim is seen
    after that. Of processes that see each other's claims, each takes its own back and tries again after a random
    time: two can never both see no other. A claim that is still there after all attempts is of a killed process,
    or of a request that was repeated because its answer was lost; it is taken over.
    """
    for attempt in range(CLAIM_ATTEMPTS):
        mine = store.client.create_run(store.experiment, run_name=name, tags={**tags, CLAIM_KEY: key}).info.run_id
        if _find_runs(store, CLAIM_KEY, key) == [mine]:
            store.client.set_tag(mine, RUN_KEY, key)
            return str(mine)
        _delete_run(store, mine)
        time.sleep(random.uniform(0, 0.1 * 2**attempt))
        if owners := _find_runs(store, RUN_KEY, key):
            return owners[0]
    claims = _find_runs(store, CLAIM_KEY, key)
    if not claims:
        raise StoreError(f"tracking store {shown(store.uri)}: other processes begin the run {key} too; {AGAIN}")
    store.client.set_tag(claims[0], RUN_KEY, key)
    return claims[0]


def _find_runs(store: Store, tag: str, key: str) -> list[str]:
    """The IDs of the runs whose `tag` is `key`, the first to start first."""
    found = [one.info for one in store.client.search_runs([store.experiment], f"tags.`{tag}` = '{key}'")]
    return [info.run_id for info in sorted(found, key=lambda info: (info.start_time, info.run_id))]


def _delete_run(store: Store, run_id: str) -> None:
    """Delete a run that only claims its key, unless another process did."""
    from mlflow.exceptions import MlflowException

    try:
        store.client.delete_run(run_id)
    except MlflowException:
        if store.client.get_run(run_id).info.lifecycle_stage == "active":
            raise


def log_stats(run: Run | Draft, rows: Iterable[Mapping[str, float]], at_ms: int | None = None) -> None:
    """Curves: rows of `{"kimg": ..., name: value, ...}`; MLflow's step is the number of real samples seen.

    Points that the run has are left out: a kill, or a lost worker, has some rows come twice. After a rollback
    (a row's `health/rollbacks` counts them) a step is logged again, and MLflow shows the later value. `at_ms` is
    when the rows came, in milliseconds since 1970; now, if it is not given.
    """
    now = int(time.time() * 1000) if at_ms is None else at_ms
    if isinstance(run, Draft):
        return run.send("log_stats", [dict(row) for row in rows], now)
    from mlflow.entities import Metric

    points = [
        (Metric(name, float(value), now, step), times)
        for row in rows
        for step, times in [(round(row["kimg"] * 1000), _rollbacks(row.get(ROLLBACKS, 0.0)))]
        for name, value in row.items()
        if name != "kimg" and isinstance(value, int | float) and (step, times) not in run.logged.get(name, ())
    ]
    for start in range(0, len(points), CHUNK):
        part = points[start : start + CHUNK]
        with _answering(run.store):  # here too, as training goes on and shows the line
            run.store.client.log_batch(run.id, metrics=[point for point, _ in part])
        for point, times in part:
            run.logged.setdefault(point.key, set()).add((point.step, times))
    return None


def log_metrics(run: Run, metrics: Mapping[str, float]) -> None:
    """Figures that are no curve; logged again, the latest counts."""
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    points = [Metric(name, float(value), now, 0) for name, value in metrics.items()]
    for start in range(0, len(points), CHUNK):
        run.store.client.log_batch(run.id, metrics=points[start : start + CHUNK])


def log_params(run: Run | Draft, params: Mapping[str, Any]) -> None:
    """Nested parameters, as dotted keys. One that the run has is kept: MLflow lets none change."""
    if isinstance(run, Draft):
        return run.send("log_params", flatten(params))
    from mlflow.entities import Param

    present = run.store.client.get_run(run.id).data.params
    fresh = [Param(key, value[:PARAM_LENGTH]) for key, value in flatten(params).items() if key not in present]
    for start in range(0, len(fresh), PARAM_CHUNK):
        run.store.client.log_batch(run.id, params=fresh[start : start + PARAM_CHUNK])
    return None


def log_folder(run: Run | Draft, folder: Path, into: str) -> None:
    """Copy the files of `folder` to the run's artifacts, below `into`."""
    if isinstance(run, Draft):
        return run.send("log_folder", into, files=folder)
    run.store.client.log_artifacts(run.id, str(folder), into)
    return None


def log_json(run: Run, content: Mapping[str, Any], name: str) -> None:
    run.store.client.log_text(run.id, json.dumps(content, indent=2, sort_keys=True) + "\n", name)


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """`{"a": {"b": 1}}` as `{"a.b": "1"}`; leaves that are not text are JSON."""
    flat = {}
    for key, value in nested.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, str) else json.dumps(value)
    return flat


@dataclass(frozen=True)
class Draft:
    """A run that `try_run` began; what is logged to it goes through the outbox."""

    outbox: Outbox
    key: str
    name: str
    parent: Draft | None
    tags: Mapping[str, str]

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
            self.store = open_store(self.config)
        except StoreError as error:
            self._warn(error)

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
            self.store = self.store or _connect(self.config, create=True)
            _send_kept(self.store, self.folder, self.runs)
            _apply(self.store, self.runs, entry, files)
        except Exception as error:  # whatever the store's client raises: the work must not stop for it
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
            reason = _one_line(error, self.uri).removesuffix(f"; {AGAIN}")
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
    """Like `run`, for `log_params`, `log_stats` and `log_folder`, but never raises for the store."""
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


def _outbox_folder(uri: str, experiment: str) -> Path:
    """Where is kept what could not be sent to an experiment of a store; a changed password makes no other store."""
    name = hashlib.sha256(f"{shown(uri)} {experiment}".encode()).hexdigest()[:16]
    return home() / ".ganlib" / "tracking" / name


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


def _send_kept(store: Store, folder: Path, runs: dict[str, Run]) -> None:
    """Send the entries in order, deleting each. Raises StoreError where the store fails or refuses one."""
    for place in _kept(folder):
        try:
            with _answering(store):
                entry = json.loads((place / "entry.json").read_text(encoding="utf-8"))
                _apply(store, runs, entry, place / "files")
        except (StoreError, ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{_one_line(error, store.uri)}; to give up what is kept in {place}, delete it") from error
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
        runs[key] = _begin(store, key, name, parent, tags)
    return runs[key]


def find_version(store: Store, model: str, key: str) -> Version | None:
    """The version registered under `key`, or None; of several, the first, which is the one that stays."""
    return min(_search_versions(store, model, VERSION_KEY, key), key=lambda one: one.number, default=None)


def versions(store: Store, model: str, tag: str, value: str) -> list[Version]:
    """The model's versions whose `tag` is `value`, by number."""
    return sorted(_search_versions(store, model, tag, value), key=lambda one: one.number)


def _search_versions(store: Store, model: str, tag: str, value: str) -> list[Version]:
    found, token = [], None
    with _answering(store):
        while token != "":
            page = store.client.search_model_versions(
                f"name = '{model}' and tags.`{tag}` = '{value}'", page_token=token
            )
            found += [_version(one) for one in page]
            token = page.token or ""
    return found


def version_by_alias(store: Store, model: str, alias: str) -> Version | None:
    """The version that `alias` points to, or None if there is no such alias or model."""
    from mlflow.exceptions import MlflowException

    with _answering(store):
        try:
            return _version(store.client.get_model_version_by_alias(model, alias))
        except MlflowException as error:
            # the alias is missing, or the model is
            if error.error_code not in ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST"):
                raise
    return None


def version_by_uri(store: Store, uri: str) -> Version:
    """The version at `models:/NAME@ALIAS` or `models:/NAME/NUMBER`. Raises StageError if there is none."""
    from mlflow.exceptions import MlflowException

    match = re.fullmatch(r"models:/([^/@]+)(?:@([^/@]+)|/(\d+))", uri)
    if match is None:
        raise StageError(f"{uri}: expected models:/NAME@ALIAS or models:/NAME/VERSION")
    name, alias, number = match.groups()
    try:
        found = (
            version_by_alias(store, name, alias) if alias else _version(store.client.get_model_version(name, number))
        )
    except MlflowException as error:
        raise StageError(f"{uri}: not in {shown(store.uri)}: {_one_line(error, store.uri)}") from error
    if found is None:
        raise StageError(f"{uri}: not in {shown(store.uri)}: there is no such model, or it has no alias {alias!r}")
    return found


def register_generator(run: Run, folder: Path, model: str, key: str, tags: Mapping[str, str]) -> Version:
    """Log the generator in `folder`, named `generator`, as a pyfunc model of `run`; register it as `model`.

    It carries safetensors, JSON and the code it was made with (`ganlib`); no pickle. A model that a killed process
    logged and did not register is registered now, if its files are whole. Of two processes that register one key at
    once, both get the version with the lower number, and the other version is deleted: MLflow counts versions one by
    one, so whoever has the higher number sees the lower. Raises StoreError if the store does not keep the files.
    """
    store, digest = run.store, folder_sha256(folder)
    with _answering(store):
        model_id = _find_model(store, key, digest) or _log_model(run, folder, key, digest)
        _create_registered_model(store, model)
        with _environment({"MLFLOW_TRACKING_URI": store.uri}):  # for clients that MLflow makes on the way
            made = _version(
                store.client.create_model_version(
                    model,
                    f"models:/{model_id}",
                    run.id,
                    model_id=model_id,
                    tags={**tags, VERSION_KEY: key, DIGEST: digest},
                )
            )
    first = find_version(store, model, key)
    if first is None or first.number == made.number:
        return made
    with _answering(store):
        store.client.delete_model_version(model, str(made.number))
        if store.client.get_model_version(model, str(first.number)).source != f"models:/{model_id}":
            store.client.delete_logged_model(model_id)
    return first


def _find_model(store: Store, key: str, digest: str) -> str | None:
    """The ID of a model that was logged under `key` and whose files are whole, or None."""
    from mlflow.entities import LoggedModelStatus

    # (a search by status finds nothing in a SQL store)
    found = store.client.search_logged_models([store.experiment], f"tags.`{VERSION_KEY}` = '{key}'")
    for logged in found:
        if logged.status == LoggedModelStatus.READY and _stored_sha256(store, logged) == digest:
            return str(logged.model_id)
    return None


def _log_model(run: Run, folder: Path, key: str, digest: str) -> str:
    """The ID of the new model; MLflow lists one whose upload failed as such."""
    import mlflow

    from pipelines import pyfunc

    with _environment({"MLFLOW_TRACKING_URI": run.store.uri}), mlflow.start_run(run_id=run.id):
        made = mlflow.pyfunc.log_model(name="generator", tags={VERSION_KEY: key}, **pyfunc.logged(folder))
    found = _stored_sha256(run.store, run.store.client.get_logged_model(made.model_id))
    if found != digest:
        raise StoreError(
            f"tracking store {shown(run.store.uri)}: the files of {made.model_id} are not those that were sent "
            f"(sha256 {found or 'none'}, expected {digest}); {AGAIN}"
        )
    return str(made.model_id)


def _create_registered_model(store: Store, model: str) -> None:
    from mlflow.exceptions import MlflowException

    if store.client.search_registered_models(f"name = '{model}'", max_results=1):
        return
    try:
        store.client.create_registered_model(model)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another process made it meanwhile
            raise


def folder_sha256(folder: Path) -> str:
    """The digest of the names and contents of all files in a folder."""
    digest = hashlib.sha256()
    for file in sorted(file for file in folder.rglob("*") if file.is_file()):
        content = hashlib.sha256(file.read_bytes()).hexdigest()
        digest.update(f"{file.relative_to(folder).as_posix()}\0{content}\n".encode())
    return digest.hexdigest()


def _stored_sha256(store: Store, logged: Any) -> str | None:
    """The digest of a logged model's generator as the store gives it back, or None if it does not."""
    with tempfile.TemporaryDirectory() as scratch:
        try:
            return folder_sha256(_download(store, logged.artifact_location, Path(scratch)))
        except StageError:
            return None


def tag_version(store: Store, version: Version, tags: Mapping[str, str]) -> None:
    """Set `tags` in their order, so that the last one says that all are set."""
    with _answering(store):
        for key, value in tags.items():
            store.client.set_model_version_tag(version.model, str(version.number), key, value)


def set_alias(store: Store, version: Version, alias: str) -> None:
    with _answering(store):
        store.client.set_registered_model_alias(version.model, alias, str(version.number))


def download(store: Store, version: Version | str, into: Path) -> Path:
    """The generator's folder of a version or of a `models:/NAME@ALIAS` address, copied below `into`.

    Raises StageError if there is none, or if its files are not those that were registered.
    """
    found = version if isinstance(version, Version) else version_by_uri(store, version)
    folder = _download(store, found.uri, into)
    expected = found.tags.get(DIGEST)
    if expected is not None and folder_sha256(folder) != expected:
        raise StageError(f"{found.uri}: its files are damaged: they are not those that were registered")
    return folder


def _download(store: Store, uri: str, into: Path) -> Path:
    """The generator's folder of the model whose files lie at `uri`, copied below `into`."""
    import mlflow
    from mlflow.exceptions import MlflowException

    try:
        with _environment({"MLFLOW_TRACKING_URI": store.uri}):
            found = mlflow.artifacts.download_artifacts(
                artifact_uri=f"{uri}/artifacts/generator", dst_path=str(into), tracking_uri=store.uri
            )
    except (MlflowException, OSError) as error:
        raise StageError(f"{uri}: not in {shown(store.uri)}: {_one_line(error, store.uri)}") from error
    return Path(found)


def _version(found: Any) -> Version:
    return Version(found.name, int(found.version), dict(found.tags))


def _logged(store: Store, run_id: str, names: Iterable[str]) -> dict[str, set[tuple[int, float]]]:
    """`Run.logged` as the store has it: of the points at one step, those of a later course have the later time."""
    found = {name: store.client.get_metric_history(run_id, name) for name in names}
    rolled = defaultdict(list)
    for point in found.get(ROLLBACKS, ()):
        rolled[point.step].append(point)
    return {
        name: {
            (one.step, _rollbacks(*(point.value for point in rolled[one.step] if point.timestamp <= one.timestamp)))
            for one in points
        }
        for name, points in found.items()
    }


def _rollbacks(*values: float) -> float:
    """The most of `values`; 0 where there is none, or none that is a number (a table has NaN for what a row lacks)."""
    return max([0.0, *values])


@contextmanager
def _answering(store: Store) -> Iterator[None]:
    """What the store's client raises in the block becomes a StageError: one line that names the store."""
    try:
        yield
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in CLIENTS:
            raise
        raise StoreError(f"tracking store {shown(store.uri)}: {_one_line(error, store.uri)}; {AGAIN}") from error


def _probe_sqlite(path: Path, create: bool) -> None:
    """Open SQLite ourselves: MLflow would retry for a minute what cannot work."""
    if not create and not path.is_file():
        raise StoreError(f"tracking store {path}: no such file; `dvc repro` makes it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(path, timeout=5)) as database:
            database.execute("BEGIN IMMEDIATE")
            database.rollback()
    except (sqlite3.Error, OSError) as error:
        raise StoreError(f"tracking store {path} cannot be written: {error}") from error


def _quiet() -> None:
    """No progress bars and no news of table migrations, unless the user asked MLflow for them."""
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    if "MLFLOW_LOGGING_LEVEL" not in os.environ:
        os.environ["MLFLOW_LOGGING_LEVEL"] = "ERROR"
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.ERROR)


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for the block: the only way to tell MLflow without telling it for good."""
    before = {key: os.environ.get(key) for key in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


def _one_line(error: BaseException, uri: str) -> str:
    """The error's text, in at most 250 characters, without what is secret of the store or of addresses in it."""
    text = " ".join(str(error).split()) or type(error).__name__
    for secret in sorted(_secrets_of(uri), key=len, reverse=True):
        text = text.replace(secret, "***")
    return re.sub(r"[A-Za-z][\w+.-]*://[^\s'\"<>()]+", lambda found: shown(found.group()), text)[:250]


def _secrets_of(uri: str) -> set[str]:
    """Each secret of an address and of the environment, as it stands there, decoded and encoded."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    found = {value for key, value in os.environ.items() if key.startswith("MLFLOW_TRACKING_") and _is_secret(key)}
    try:
        parts = make_url(uri)
    except (ArgumentError, ValueError):
        pass
    else:
        found |= {str(parts.password or "")} | {str(value) for key, value in parts.query.items() if _is_secret(key)}
    return {form for secret in found if secret for form in (secret, quote(secret, safe=""), unquote(secret))}


def _is_secret(name: str) -> bool:
    return any(word in name.lower() for word in SECRETS)
