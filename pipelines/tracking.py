"""Every MLflow call of the project (`pyfunc.py` is what MLflow itself runs).

Only the driver calls it: one process writes the store, and workers need no credentials. What may be repeated
after a kill is keyed by what determines its result: a repetition goes on with what it finds, adding nothing.
MLflow takes seconds to import, so nothing is imported until a store is opened.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sqlite3
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ganlib.config import TrackingConfig
from pipelines._stage import StageError, home

__all__ = [
    "Run",
    "Store",
    "Version",
    "download",
    "find_version",
    "flatten",
    "log_folder",
    "log_json",
    "log_metrics",
    "log_params",
    "log_stats",
    "open_store",
    "register_generator",
    "run",
    "set_alias",
    "shown",
    "store_uri",
    "tag_version",
    "version_by_alias",
    "version_by_uri",
]

RUN_KEY = "ganlib.run_key"
VERSION_KEY = "ganlib.key"
ROLLBACKS = "health/rollbacks"
SCHEMES = ("http", "https", "databricks", "sqlite", "postgresql", "mysql", "mssql")
CHUNK = 1000  # metrics a request, MLflow's limit
PARAM_CHUNK = 100
PARAM_LENGTH = 6000
CLIENTS = ("mlflow", "requests", "sqlalchemy")  # whose exceptions tell that the store failed
AGAIN = "what was computed is kept; see to the store, then `dvc repro` goes on"


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
    """`MLFLOW_TRACKING_URI`, else `tracking.uri`, else SQLite in the project folder; paths absolute."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or config.uri or "sqlite:///mlflow.db"
    scheme = uri.partition(":")[0].partition("+")[0]
    if scheme not in SCHEMES:
        raise StageError(f"tracking.uri: {shown(uri)!r} is not a store of MLflow; known: {', '.join(SCHEMES)}")
    if uri.startswith("sqlite:///"):
        return f"sqlite:///{home() / uri.removeprefix('sqlite:///')}"
    return uri


def shown(text: str) -> str:
    """A URI, or a text with URIs, without what may be secret: users, passwords and queries."""
    # SQLAlchemy takes a password that holds "/", where urllib.parse would end the user's part
    return re.sub(r"(?<=://)[^/\s]\S*(?=@)|(?<=[\w/]\?)\S+", "***", text)


def open_store(config: TrackingConfig, *, create: bool = True) -> Store:
    """Connect, migrate and find the experiment, so that what is wrong is said before any work is done.

    With `create=False` nothing is made: a SQLite file that is not there is an error, an experiment is not.
    Raises StageError, one line and within seconds, if the store does not answer.
    """
    uri = store_uri(config)
    if uri.startswith("sqlite:"):
        _probe_sqlite(Path(uri.partition("///")[2]), create)
    _quiet()
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    impatience = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}
    with _environment({key: value for key, value in impatience.items() if key not in os.environ}):
        try:
            client = MlflowClient(tracking_uri=uri)
            found = client.get_experiment_by_name(config.experiment)
            if found is not None:
                experiment = found.experiment_id
            elif not create:
                experiment = ""
            else:
                # A server knows where its artifacts go; a database does not, and MLflow would say "./mlruns".
                place = None if uri.startswith(("http", "databricks")) else (home() / "mlartifacts").as_uri()
                experiment = client.create_experiment(config.experiment, artifact_location=place)
        except (MlflowException, SQLAlchemyError, OSError, ImportError) as error:
            raise StageError(f"tracking store {shown(uri)} does not answer: {_one_line(error)}") from error
    # MLflow's own patience is minutes a call
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    if found is not None and found.lifecycle_stage != "active":
        raise StageError(
            f"tracking.experiment: {config.experiment!r} was deleted from {shown(uri)}; "
            f"choose another name or run `mlflow experiments restore -x {experiment}`"
        )
    return Store(uri, client, experiment)


@contextmanager
def run(
    store: Store, key: str, name: str, *, parent: Run | None = None, tags: Mapping[str, str] | None = None
) -> Iterator[Run]:
    """The run whose key is `key`: begun, or gone on with if an earlier process began it.

    It ends as FINISHED, as KILLED on Ctrl-C, or as FAILED on any other error. A trial of a search has the
    search's run as `parent`. Raises StageError if the store stops to answer.
    """
    with _answering(store):
        found = store.client.search_runs([store.experiment], f"tags.`{RUN_KEY}` = '{key}'", max_results=1)
        if found:
            run_id = found[0].info.run_id
            store.client.update_run(run_id, status="RUNNING")
            logged = _logged(store, run_id, found[0].data.metrics)
            for tag, value in (tags or {}).items():
                store.client.set_tag(run_id, tag, value)
        else:
            own = {RUN_KEY: key, **({"mlflow.parentRunId": parent.id} if parent else {})}
            run_id = store.client.create_run(store.experiment, run_name=name, tags={**(tags or {}), **own}).info.run_id
            logged = {}
    status = "FAILED"
    try:
        with _answering(store):
            yield Run(store, run_id, key, logged)
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        try:
            with _answering(store):
                store.client.set_terminated(run_id, status)
        except StageError:
            if status == "FINISHED":
                raise


def log_stats(run: Run, rows: Iterable[Mapping[str, float]]) -> None:
    """Curves: rows of `{"kimg": ..., name: value, ...}`; MLflow's step is the number of real samples seen.

    Points that the run has are left out: a kill, or a lost worker, has some rows come twice. After a rollback
    (a row's `health/rollbacks` counts them) a step is logged again, and MLflow shows the later value.
    """
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
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


def log_metrics(run: Run, metrics: Mapping[str, float]) -> None:
    """Figures that are no curve; logged again, the latest counts."""
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    points = [Metric(name, float(value), now, 0) for name, value in metrics.items()]
    for start in range(0, len(points), CHUNK):
        run.store.client.log_batch(run.id, metrics=points[start : start + CHUNK])


def log_params(run: Run, params: Mapping[str, Any]) -> None:
    """Nested parameters, as dotted keys. One that the run has is kept: MLflow lets none change."""
    from mlflow.entities import Param

    present = run.store.client.get_run(run.id).data.params
    fresh = [Param(key, value[:PARAM_LENGTH]) for key, value in flatten(params).items() if key not in present]
    for start in range(0, len(fresh), PARAM_CHUNK):
        run.store.client.log_batch(run.id, params=fresh[start : start + PARAM_CHUNK])


def log_folder(run: Run, folder: Path, into: str) -> None:
    """Copy the files of `folder` to the run's artifacts, below `into`."""
    run.store.client.log_artifacts(run.id, str(folder), into)


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


def find_version(store: Store, model: str, key: str) -> Version | None:
    """The version registered under `key`, or None."""
    with _answering(store):
        found = store.client.search_model_versions(f"name = '{model}' and tags.`{VERSION_KEY}` = '{key}'")
    return _version(found[0]) if found else None


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
        raise StageError(f"{uri}: models:/NAME@ALIAS or models:/NAME/VERSION is wanted")
    name, alias, number = match.groups()
    try:
        found = (
            version_by_alias(store, name, alias) if alias else _version(store.client.get_model_version(name, number))
        )
    except MlflowException as error:
        raise StageError(f"{uri}: not in {shown(store.uri)}: {_one_line(error)}") from error
    if found is None:
        raise StageError(f"{uri}: not in {shown(store.uri)}: there is no such model, or it has no alias {alias!r}")
    return found


def register_generator(run: Run, folder: Path, model: str, key: str, tags: Mapping[str, str]) -> Version:
    """Log the generator in `folder`, named `generator`, as a pyfunc model of `run`; register it as `model`.

    It carries safetensors, JSON and the code it was made with (`ganlib`); no pickle. A model that a killed
    process logged and did not register is registered now.
    """
    import mlflow
    from mlflow.entities import LoggedModelStatus

    from pipelines import pyfunc

    client = run.store.client
    found = client.search_logged_models([run.store.experiment], f"tags.`{VERSION_KEY}` = '{key}'")
    # (a search by status finds nothing in a SQL store)
    ready = [logged.model_id for logged in found if logged.status == LoggedModelStatus.READY]
    with _environment({"MLFLOW_TRACKING_URI": run.store.uri}):  # for clients that MLflow makes on the way
        if ready:
            model_id = ready[0]
        else:
            with mlflow.start_run(run_id=run.id):
                model_id = mlflow.pyfunc.log_model(
                    name="generator", tags={VERSION_KEY: key}, **pyfunc.logged(folder)
                ).model_id
        if not client.search_registered_models(f"name = '{model}'", max_results=1):
            client.create_registered_model(model)
        made = client.create_model_version(
            model, f"models:/{model_id}", run.id, model_id=model_id, tags={**tags, VERSION_KEY: key}
        )
    return _version(made)


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

    Raises StageError if there is none.
    """
    import mlflow
    from mlflow.exceptions import MlflowException

    uri = version.uri if isinstance(version, Version) else version
    try:
        with _environment({"MLFLOW_TRACKING_URI": store.uri}):
            found = mlflow.artifacts.download_artifacts(
                artifact_uri=f"{uri}/artifacts/generator", dst_path=str(into), tracking_uri=store.uri
            )
    except (MlflowException, OSError) as error:
        raise StageError(f"{uri}: not in {shown(store.uri)}: {_one_line(error)}") from error
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
        raise StageError(f"tracking store {shown(store.uri)}: {_one_line(error)}; {AGAIN}") from error


def _probe_sqlite(path: Path, create: bool) -> None:
    """Open SQLite ourselves: MLflow would retry for a minute what cannot work."""
    if not create and not path.is_file():
        raise StageError(f"tracking store {path}: no such file; `dvc repro` makes it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(path, timeout=5)) as database:
            database.execute("BEGIN IMMEDIATE")
            database.rollback()
    except (sqlite3.Error, OSError) as error:
        raise StageError(f"tracking store {path} cannot be written: {error}") from error


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


def _one_line(error: BaseException) -> str:
    return shown(" ".join(str(error).split()))[:250]
