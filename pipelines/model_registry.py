"""MLflow's model registry: versions of a model, their tags and aliases, and the generators they hold.

A version is registered under a key: registering the same again, also by two processes at once, gives the version that
is there. Calls raise StoreError where the store does not answer; as in `tracking.py`, MLflow is imported only then.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ganlib.scratch import scratch_folder
from pipelines._stage import REGISTERED, StageError
from pipelines.addresses import error_text, shown, sqlite_file
from pipelines.tracking import (
    AGAIN,
    Run,
    Store,
    StoreError,
    check_not_copied,
    environment,
    file_errors,
    log_folder,
    retry_on_conflict,
    store_errors,
)

__all__ = [
    "LoggedModel",
    "Version",
    "aliases",
    "attach",
    "check_whole",
    "download",
    "download_discriminator",
    "find_version",
    "folder_sha256",
    "model_by_uri",
    "recorded_version",
    "register_generator",
    "run_json",
    "set_alias",
    "tag_version",
    "version_by_alias",
    "version_by_uri",
    "versions",
]

VERSION_KEY = "ganlib.key"
DISCRIMINATORS = "discriminators"  # folder of a run's artifacts
DIGEST = "ganlib.sha256"  # of the generator's files
DISCRIMINATOR_DIGEST = "ganlib.discriminator_sha256"  # of the discriminator's file, which the run keeps


@dataclass(frozen=True)
class Version:
    """A version of a registered model. `tags` is the state when it was read."""

    model: str
    number: int
    tags: Mapping[str, str]
    run_id: str = ""
    """of the run that logged it"""
    created_ms: int = 0
    """since 1970"""

    @property
    def uri(self) -> str:
        return f"models:/{self.model}/{self.number}"


@dataclass(frozen=True)
class LoggedModel:
    """A model that a run logged, registered or not."""

    uri: str
    run_id: str
    tags: Mapping[str, str]
    location: str
    """of its files; MLflow takes a path behind `models:/MODEL_ID` for a version"""


def find_version(store: Store, model: str, key: str) -> Version | None:
    """The version registered under `key`, or None; of several, the first, which is the one that stays."""
    return min(_search_versions(store, model, VERSION_KEY, key), key=lambda one: one.number, default=None)


def versions(store: Store, model: str, tag: str = "", value: str = "") -> list[Version]:
    """The model's versions, or those whose `tag` is `value`, by number."""
    return sorted(_search_versions(store, model, tag, value), key=lambda one: one.number)


def aliases(store: Store) -> dict[str, dict[str, int]]:
    """The registered models by name, each with its aliases and the numbers of their versions."""
    with store_errors(store):
        found = _all_pages(store.client.search_registered_models)
    return {one.name: {alias: int(number) for alias, number in one.aliases.items()} for one in found}


def _search_versions(store: Store, model: str, tag: str, value: str) -> list[Version]:
    quote = '"' if "'" in model else "'"
    if quote in model or "\\" in model:  # MLflow's filters have no escapes
        raise StageError(f"{model}: not a model's name; expected letters, digits, _, - and dots")
    wanted = f"name = {quote}{model}{quote}" + (f" and tags.`{tag}` = '{value}'" if tag else "")
    with store_errors(store):
        return [_version(one) for one in _all_pages(store.client.search_model_versions, wanted)]


def _all_pages(search: Callable[..., Any], *words: str) -> list[Any]:
    found, token = [], None
    while token != "":
        page = search(*words, page_token=token)
        found += page
        token = page.token or ""
    return found


def version_by_alias(store: Store, model: str, alias: str) -> Version | None:
    """The version that `alias` points to, or None if there is no such alias or model."""
    from mlflow.exceptions import MlflowException

    with store_errors(store):
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
        reason = error_text(error, store.uri)
        raise StageError(f"{uri}: not in {shown(store.uri)}: {reason}{_remedy(store, name)}") from error
    if found is None:
        raise StageError(f"{uri}: not in {shown(store.uri)}: {_why_no_alias(store, name, alias)}{_remedy(store, name)}")
    return found


def model_by_uri(store: Store, uri: str) -> Version | LoggedModel:
    """What is at `models:/NAME@ALIAS`, `models:/NAME/NUMBER`, `models:/MODEL_ID` or `runs:/RUN_ID/NAME`.

    Raises StageError if there is nothing.
    """
    if re.fullmatch(r"models:/[^/@]+[/@].*", uri):
        return version_by_uri(store, uri)
    from mlflow.exceptions import MlflowException
    from mlflow.models import get_model_info

    try:
        if uri.startswith("models:/"):
            model_id = uri.removeprefix("models:/")
        else:
            with environment({"MLFLOW_TRACKING_URI": store.uri}):
                model_id = get_model_info(uri).model_id
        found = store.client.get_logged_model(model_id)
    except (MlflowException, OSError) as error:
        raise StageError(f"{uri}: not in {shown(store.uri)}: {error_text(error, store.uri)}") from error
    return LoggedModel(
        f"models:/{found.model_id}", found.source_run_id or "", dict(found.tags), found.artifact_location
    )


def _why_no_alias(store: Store, model: str, alias: str) -> str:
    """Why `alias` points to no version of `model`, with what can be named in its place."""
    there = versions(store, model)
    if not there:
        return "there is no such model, or it has no version"
    numbers, last = ", ".join(str(one.number) for one in there), there[-1].uri
    return (
        f"no version has the alias {alias!r}; {model} has version{'s' * (len(there) > 1)} {numbers}: name one, as "
        f"{last}, or make it the champion: `ganlib models promote {last} --reason WHY`"
    )


def recorded_version() -> tuple[str, str] | None:
    """The model and the key of the version that `outputs/register` names, or None if nothing was registered."""
    try:
        decision = json.loads((REGISTERED / "decision.json").read_text(encoding="utf-8"))
        return str(decision["model"]), str(decision["key"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _remedy(store: Store, model: str) -> str:
    """What a message ends with where the model could be registered from what is here."""
    named = recorded_version()
    if named is None or named[0] != model or find_version(store, *named):
        return ""
    return f"; `ganlib register` registers there what {REGISTERED} names"


def _version(found: Any) -> Version:
    return Version(found.name, int(found.version), dict(found.tags), found.run_id or "", found.creation_timestamp or 0)


def register_generator(
    run: Run,
    folder: Path,
    model: str,
    key: str,
    tags: Mapping[str, str],
    description: str = "",
    discriminator: Path | None = None,
) -> Version:
    """Log the generator in `folder` as a pyfunc model of `run`; register it as `model`.

    The model carries safetensors, JSON and the code it was made with (`ganlib`); no pickle. The file `discriminator`,
    which only a further training needs, is an artifact of the run. A model that a killed process logged and did not
    register is registered now, if its files are whole. Of two processes that register one key at
    once, both get the version with the lower number, and the other version is deleted: MLflow counts versions one by
    one, so the process with the higher number sees the lower. Raises StoreError if the store does not keep the files.
    """
    store, digest = run.store, folder_sha256(folder)
    digests = {DIGEST: digest}
    with store_errors(store):
        if discriminator is not None:
            digests[DISCRIMINATOR_DIGEST] = _log_discriminator(run, discriminator)
        model_id = _find_model(store, key, digest) or _log_model(run, folder, key, digests)
        _create_registered_model(store, model)
        with environment({"MLFLOW_TRACKING_URI": store.uri}):  # for clients that MLflow makes on the way
            made = _version(
                store.client.create_model_version(
                    model,
                    f"models:/{model_id}",
                    run.id,
                    model_id=model_id,
                    tags={**tags, VERSION_KEY: key, **digests},
                    description=description,
                )
            )
    first = find_version(store, model, key)
    if first is None or first.number == made.number:
        return made
    with store_errors(store):
        store.client.delete_model_version(model, str(made.number))
        if store.client.get_model_version(model, str(first.number)).source != f"models:/{model_id}":
            store.client.delete_logged_model(model_id)
    return first


def _find_model(store: Store, key: str, digest: str) -> str | None:
    """The ID of a model that was logged under `key` and whose files are whole, or None; failed ones are deleted."""
    from mlflow.entities import LoggedModelStatus

    # (a search by status finds nothing in a SQL store)
    found = store.client.search_logged_models([store.experiment], f"tags.`{VERSION_KEY}` = '{key}'")
    for logged in found:
        if logged.status == LoggedModelStatus.FAILED:
            store.client.delete_logged_model(logged.model_id)
        elif logged.status == LoggedModelStatus.READY and _stored_sha256(store, logged) == digest:
            return str(logged.model_id)
    return None


def _log_discriminator(run: Run, file: Path) -> str:
    """The digest of the file, under whose name the run keeps it: several checkpoints of a run may be registered."""
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    with scratch_folder() as scratch:
        shutil.copyfile(file, Path(scratch) / f"{digest}.safetensors")
        log_folder(run, Path(scratch), DISCRIMINATORS)
    return digest


def _log_model(run: Run, folder: Path, key: str, digests: Mapping[str, str]) -> str:
    """The ID of the new model. One whose upload fails is marked as failed by MLflow, and deleted when all is well."""
    import mlflow

    from pipelines import pyfunc

    # MLflow would add this project's uv.lock to the model, and install all of it where an environment is made by uv
    settings = {"MLFLOW_TRACKING_URI": run.store.uri, "MLFLOW_UV_AUTO_DETECT": "false"}
    with file_errors(run.store), scratch_folder() as scratch:
        # DVC's cache may have put links in the folder, or files that cannot be written; MLflow takes no links
        files = shutil.copytree(folder, Path(scratch) / "generator", copy_function=shutil.copyfile)
        with environment(settings), mlflow.start_run(run_id=run.id):
            tags = {VERSION_KEY: key, **digests}
            made = mlflow.pyfunc.log_model(name="generator", tags=tags, **pyfunc.logged(files))
    found = _stored_sha256(run.store, run.store.client.get_logged_model(made.model_id))
    if found != digests[DIGEST]:
        raise StoreError(
            f"tracking store {shown(run.store.uri)}: the files of {made.model_id} are not those that were sent "
            f"(sha256 {found or 'none'}, expected {digests[DIGEST]}); {AGAIN}"
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


def tag_version(store: Store, version: Version, tags: Mapping[str, str]) -> None:
    """Set `tags` in their order, so that the last one says that all are set."""
    with store_errors(store):
        for key, value in tags.items():
            retry_on_conflict(store.client.set_model_version_tag, version.model, str(version.number), key, value)


def attach(store: Store, version: Version, file: Path) -> None:
    """Keep a file, under its name, with the run that logged the version. One of that name is replaced. Prints a line
    where the run is gone, as by `mlflow gc`, which leaves versions."""
    from mlflow.exceptions import MlflowException

    with store_errors(store), file_errors(store):
        try:
            store.client.log_artifact(version.run_id, str(file))
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            gone = f"the run {version.run_id} is gone from the store; {file.name} is in {REGISTERED} alone"
            print(f"{version.uri}: {gone}", flush=True)


def set_alias(store: Store, version: Version, alias: str) -> None:
    with store_errors(store):
        retry_on_conflict(store.client.set_registered_model_alias, version.model, alias, str(version.number))


def download(store: Store, version: Version | LoggedModel | str, into: Path) -> Path:
    """The generator's folder of a version or of a `models:/NAME@ALIAS` address, copied below `into`.

    Raises StageError if there is none, or if its files are not those that were registered.
    """
    found = version_by_uri(store, version) if isinstance(version, str) else version
    folder = _download(store, found.location if isinstance(found, LoggedModel) else found.uri, into)
    expected = found.tags.get(DIGEST)
    if expected is not None and folder_sha256(folder) != expected:
        raise StageError(f"{found.uri}: its files are damaged: they are not those that were registered")
    return folder


def download_discriminator(store: Store, version: Version | LoggedModel, into: Path) -> Path | None:
    """The file of the discriminator that a version's generator played with, copied below `into`; None of a version that
    was registered without one. Raises StageError if it is lost or damaged."""
    from mlflow.exceptions import MlflowException

    digest = version.tags.get(DISCRIMINATOR_DIGEST)
    if digest is None:
        return None
    name = f"{DISCRIMINATORS}/{digest}.safetensors"
    try:
        file = Path(store.client.download_artifacts(version.run_id, name, str(into)))
    except (MlflowException, OSError) as error:
        raise StageError(f"{version.uri}: its discriminator: {error_text(error, store.uri)}") from error
    if hashlib.sha256(file.read_bytes()).hexdigest() != digest:
        raise StageError(f"{version.uri}: its discriminator is damaged: it is not the file that was registered")
    return file


def check_whole(store: Store, version: Version) -> None:
    """Raise StageError if the version's files are not those that were registered."""
    with scratch_folder() as scratch:
        try:
            download(store, version, Path(scratch))
        except StageError as error:
            raise StageError(f"{error}; if they are lost, delete this version, then `ganlib register`") from error


def _download(store: Store, uri: str, into: Path) -> Path:
    """The generator's folder of the model whose files lie at `uri`, copied below `into`."""
    import mlflow
    from mlflow.exceptions import MlflowException

    try:
        with environment({"MLFLOW_TRACKING_URI": store.uri}):
            found = mlflow.artifacts.download_artifacts(
                artifact_uri=f"{uri}/artifacts/generator", dst_path=str(into), tracking_uri=store.uri
            )
    except (MlflowException, OSError) as error:
        if sqlite_file(store.uri) and store.experiment:  # the usual reason
            check_not_copied(store.uri, store.client.get_experiment(store.experiment).artifact_location)
        raise StageError(f"{uri}: not in {shown(store.uri)}: {error_text(error, store.uri)}") from error
    return Path(found)


def run_json(store: Store, version: Version, name: str) -> Any:
    """What `tracking.log_json` wrote to the run that logged the version, or None where it is not there."""
    from mlflow.exceptions import MlflowException

    with scratch_folder() as scratch, store_errors(store):
        try:
            return json.loads(Path(store.client.download_artifacts(version.run_id, name, scratch)).read_text())
        except (MlflowException, OSError):
            return None


def folder_sha256(folder: Path) -> str:
    """The digest of the names and contents of all files in a folder."""
    digest = hashlib.sha256()
    for file in sorted(file for file in folder.rglob("*") if file.is_file()):
        content = hashlib.sha256(file.read_bytes()).hexdigest()
        digest.update(f"{file.relative_to(folder).as_posix()}\0{content}\n".encode())
    return digest.hexdigest()


def _stored_sha256(store: Store, logged: Any) -> str | None:
    """The digest of a logged model's generator as the store gives it back, or None if it does not."""
    with scratch_folder() as scratch:
        try:
            return folder_sha256(_download(store, logged.artifact_location, Path(scratch)))
        except StageError:
            return None
