"""The tracking store: find and open it, and log to its runs.

Only the driver calls it: workers need no credentials. What may be repeated after a kill, or done by two processes
at once, is keyed by what determines its result: a repetition goes on with what it finds, adding nothing.

`open_store` and `run` raise StoreError where the store does not answer: `register` cannot work without one. For
stages that do not stop for a server there is `outbox.py`. Registered models are the business of `model_registry.py`.
Nothing else calls MLflow (`pyfunc.py` is what MLflow itself runs).

Calls are synchronous: with MLFLOW_ENABLE_ASYNC_LOGGING, MLflow's thread would lose points that the store rejects,
without an error.

MLflow takes seconds to import, so nothing is imported until a store is opened.
"""

from __future__ import annotations

import json
import logging
import os
import random
import re
import sqlite3
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from ganlib.config import TrackingConfig
from pipelines._stage import StageError, project_folder
from pipelines.addresses import error_text, shown, sqlite_file, store_uri

__all__ = [
    "AGAIN",
    "Run",
    "Store",
    "StoreError",
    "allowed_name",
    "begin_run",
    "check_not_copied",
    "environment",
    "file_errors",
    "flatten",
    "log_folder",
    "log_json",
    "log_metrics",
    "log_params",
    "log_past_stats",
    "log_stats",
    "open_store",
    "retry_on_conflict",
    "run",
    "store_errors",
]

RUN_KEY = "ganlib.run_key"
CLAIM_KEY = "ganlib.run_claim"
ROLLBACKS = "health/rollbacks"
CHUNK = 1000  # metrics a request, MLflow's limit
PARAM_CHUNK = 100
PARAM_LENGTH = 6000
CLIENTS = ("alembic", "mlflow", "requests", "sqlalchemy")  # whose exceptions tell that the store failed
AGAIN = "what was computed is kept; see to the store, then `dvc repro` goes on"
CLAIM_ATTEMPTS = 6
SET_ATTEMPTS = 3


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
    """An open run. `logged`: the points of each metric that it has, as (step, rollbacks of training until then);
    `latest_ms`: when the last of them came, or else the run began."""

    store: Store
    id: str
    key: str
    logged: dict[str, set[tuple[int, float]]]
    latest_ms: int = 0


def open_store(config: TrackingConfig, *, create: bool = True) -> Store:
    """Connect, migrate and find the experiment.

    With `create=False` nothing is made: a SQLite file that is not there is an error, an experiment is not.
    Raises StoreError, one line and within seconds, if the store does not answer, StageError if the project cannot
    use it.
    """
    uri = store_uri(config)
    if file := sqlite_file(uri):
        _probe_sqlite(file, create)
    _quiet()
    from mlflow import MlflowClient

    impatience = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}
    with environment({key: value for key, value in impatience.items() if key not in os.environ}):
        try:
            client = MlflowClient(tracking_uri=uri)
            found = client.get_experiment_by_name(config.experiment)
            if found is None and create:
                found = _create_experiment(client, config.experiment, uri)
        except Exception as error:
            if not (_of_client(error) or isinstance(error, OSError | ImportError | ValueError)):
                raise
            raise StoreError(f"tracking store {shown(uri)} does not answer: {error_text(error, uri)}") from error
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
        check_not_copied(uri, found.artifact_location)
    return Store(uri, client, found.experiment_id)


def _create_experiment(client: Any, name: str, uri: str) -> Any:
    """The new experiment, or the one that another process made meanwhile: names are unique in a store."""
    from mlflow.exceptions import MlflowException

    # A server knows where its artifacts go; a database does not, and MLflow would say "./mlruns".
    place = None if uri.startswith(("http", "databricks")) else (project_folder() / "mlartifacts").as_uri()
    try:
        client.create_experiment(name, artifact_location=place)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    return client.get_experiment_by_name(name)


def check_not_copied(uri: str, artifacts: str) -> None:
    """Raise StageError if the project's own SQLite file came from another folder: it names that one's artifacts."""
    place, file = urlsplit(artifacts), sqlite_file(uri)
    if file is None or place.scheme not in ("", "file"):
        return
    folder = Path(unquote(place.path))
    if file.is_relative_to(project_folder()) and not folder.is_relative_to(project_folder()):
        raise StageError(
            f"tracking store {file} came from another folder: its artifacts lie in {folder}; move it away and a new "
            "one is made, or move the project back, or set MLFLOW_TRACKING_URI to the store to share"
        )


def _probe_sqlite(path: Path, create: bool) -> None:
    """Open SQLite ourselves: MLflow would retry for a minute what cannot work."""
    if not create and not path.is_file():
        if (project_folder() / "params.yaml").is_file():
            remedy = "`ganlib register` makes it from outputs/, `dvc repro` from data"
        else:
            remedy = "no params.yaml here: change to the project's folder, or set MLFLOW_TRACKING_URI"
        raise StoreError(f"tracking store {path}: no such file; {remedy}")
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
        # it prints the traceback of each error that it then raises
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)


@contextmanager
def run(
    store: Store, key: str, name: str, *, parent: Run | None = None, tags: Mapping[str, str] | None = None
) -> Iterator[Run]:
    """The run whose key is `key`: begun, or continued if an earlier process began it.

    It ends as FINISHED, as KILLED on Ctrl-C, or as FAILED on any other error. A trial of a search has the
    search's run as `parent`. Of two processes that begin it at once, both log to one run. Raises StoreError if the
    store stops answering.
    """
    with store_errors(store):
        begun = begin_run(store, key, name, parent, tags or {})
    status = "FAILED"
    try:
        with store_errors(store):
            yield begun
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        try:
            with store_errors(store):
                store.client.set_terminated(begun.id, status)
        except StoreError:
            if status == "FINISHED":
                raise


def begin_run(store: Store, key: str, name: str, parent: Run | None, tags: Mapping[str, str]) -> Run:
    """Find the run or create it, and set it running."""
    tags = {**tags, **({"mlflow.parentRunId": parent.id} if parent else {})}
    owner = next(iter(_find_runs(store, RUN_KEY, key)), None) or _create_run(store, key, name, tags)
    for claim in _find_runs(store, CLAIM_KEY, key):
        if claim != owner:
            _delete_run(store, claim)
    store.client.update_run(owner, status="RUNNING")
    found = store.client.get_run(owner)
    for tag, value in tags.items():
        if found.data.tags.get(tag) != value:
            _set_tag(store, owner, tag, value)
    history = {name: store.client.get_metric_history(owner, name) for name in found.data.metrics}
    times = [point.timestamp for points in history.values() for point in points]
    return Run(store, owner, key, _logged(history), max([found.info.start_time, *times]))


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
            _set_tag(store, mine, RUN_KEY, key)
            return str(mine)
        _delete_run(store, mine)
        time.sleep(random.uniform(0, 0.1 * 2**attempt))
        if owners := _find_runs(store, RUN_KEY, key):
            return owners[0]
    claims = _find_runs(store, CLAIM_KEY, key)
    if not claims:
        raise StoreError(f"tracking store {shown(store.uri)}: other processes begin the run {key} too; {AGAIN}")
    _set_tag(store, claims[0], RUN_KEY, key)
    return claims[0]


def _set_tag(store: Store, run_id: str, tag: str, value: str) -> None:
    retry_on_conflict(partial(store.client.set_tag, synchronous=True), run_id, tag, value)


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


def _logged(found: Mapping[str, Sequence[Any]]) -> dict[str, set[tuple[int, float]]]:
    """`Run.logged` from each metric's history: of the points at one step, those of a later course have the later
    time."""
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


def log_stats(run: Run, rows: Iterable[Mapping[str, float]], at_ms: int | None = None) -> None:
    """Curves: rows of `{"kimg": ..., name: value, ...}`; MLflow's step is the number of real samples seen.

    Points that the run has are left out: a kill, or a lost worker, has some rows come twice. After a rollback
    (a row's `health/rollbacks` counts them) a step is logged again, and MLflow shows the later value. `at_ms` is
    when the rows came, in milliseconds since 1970; now, if it is not given.
    """
    now = int(time.time() * 1000) if at_ms is None else at_ms
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
        with store_errors(run.store):  # here too, as training goes on and shows the line
            run.store.client.log_batch(run.id, metrics=[point for point, _ in part], synchronous=True)
        for point, times in part:
            run.logged.setdefault(point.key, set()).add((point.step, times))


def log_past_stats(run: Run, rows: Iterable[Mapping[str, float]]) -> None:
    """Curves of a training that is over, as `log_stats` does, when several processes may do so at once.

    They are logged as of the last point, or the run's start: MLflow stores equal points once. Where the training was
    rolled back, they must come after what was abandoned, and are logged as of now.
    """
    rolled_back = any(times for _, times in run.logged.get(ROLLBACKS, ()))
    log_stats(run, rows, None if rolled_back else run.latest_ms)


def allowed_name(name: str) -> str:
    """With an underscore for what MLflow takes in no name of a tag or metric, as the name of a class may have it."""
    return re.sub(r"[^\w/. :-]", "_", name)


def log_metrics(run: Run, metrics: Mapping[str, float]) -> None:
    """Figures that are no curve; logged again, the latest counts. Their names are made `allowed_name`s."""
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    points = [Metric(allowed_name(name), float(value), now, 0) for name, value in metrics.items()]
    for start in range(0, len(points), CHUNK):
        run.store.client.log_batch(run.id, metrics=points[start : start + CHUNK], synchronous=True)


def log_params(run: Run, params: Mapping[str, Any]) -> None:
    """Nested parameters, as dotted keys. One that the run has is kept: MLflow lets none change."""
    from mlflow.entities import Param

    present = run.store.client.get_run(run.id).data.params
    fresh = [Param(key, value[:PARAM_LENGTH]) for key, value in flatten(params).items() if key not in present]
    for start in range(0, len(fresh), PARAM_CHUNK):
        run.store.client.log_batch(run.id, params=fresh[start : start + PARAM_CHUNK], synchronous=True)


def log_folder(run: Run, folder: Path, into: str) -> None:
    """Copy the files of `folder` to the run's artifacts, below `into`."""
    with file_errors(run.store):
        run.store.client.log_artifacts(run.id, str(folder), into)


def log_json(run: Run, content: Mapping[str, Any], name: str) -> None:
    with file_errors(run.store):
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


def retry_on_conflict(write: Callable[..., None], *args: str) -> None:
    """Set a tag or an alias, again if another process set it at the same moment.

    MLflow looks whether it is there and then inserts it, so the later of two that set it first is refused.
    """
    from mlflow.exceptions import MlflowException

    for attempt in range(SET_ATTEMPTS):
        try:
            write(*args)
            return
        except MlflowException as error:
            if error.error_code != "BAD_REQUEST" or attempt == SET_ATTEMPTS - 1:
                raise


@contextmanager
def store_errors(store: Store) -> Iterator[None]:
    """What the store's client raises in the block becomes a StageError: one line that names the store."""
    try:
        yield
    except Exception as error:
        if not _of_client(error):
            raise
        raise StoreError(f"tracking store {shown(store.uri)}: {error_text(error, store.uri)}; {AGAIN}") from error


def _of_client(error: Exception) -> bool:
    return type(error).__module__.partition(".")[0] in CLIENTS


@contextmanager
def file_errors(store: Store) -> Iterator[None]:
    """An OSError, as of a full disk, while files are copied to the store becomes a StoreError."""
    try:
        yield
    except OSError as error:
        reason = error_text(error, store.uri)
        raise StoreError(f"tracking store {shown(store.uri)} did not take a file: {reason}; {AGAIN}") from error


@contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
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
