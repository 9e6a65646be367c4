"""The model registry: what is missing, damaged or lost is one line, and what is repeated is not doubled."""

from __future__ import annotations

import json
import shutil

import pytest
from typer.testing import CliRunner

from ganlib.config import TrackingConfig
from pipelines import model_registry, tracking
from pipelines._stage import StageError
from pipelines.cli import app


def test_missing_alias_and_model(store):
    assert model_registry.version_by_alias(store, "none", "champion") is None
    assert model_registry.find_version(store, "none", "key") is None
    with pytest.raises(StageError, match="no such model"):
        model_registry.version_by_uri(store, "models:/none@champion")
    with pytest.raises(StageError, match="expected models:/NAME@ALIAS"):
        model_registry.version_by_uri(store, "runs:/abc")


def ganlib(*words: str):
    return CliRunner().invoke(app, [*words])


def test_commands_on_a_model_that_is_not_there_say_so_alike(store):
    store.client.create_registered_model("m")
    for words in (("list", "none"), ("none",), ("history", "none"), ("rollback", "none", "--reason", "x")):
        done = ganlib("models", *words)
        assert (done.exit_code, done.stderr) == (1, "ganlib: none: no such model; known: m\n")
    assert ganlib("models", "history", "m").stdout == "none\n"


def test_a_group_passes_its_options_to_the_default_command(store):
    store.client.create_registered_model("m")
    store.client.create_model_version("m", "file:///nowhere")
    (listed,) = json.loads(ganlib("models", "list", "--json").stdout)
    for words in (("--json",), ("--json", "m"), ("m", "--json")):
        assert json.loads(ganlib("models", *words).stdout) == [listed]
    assert "Usage" in ganlib("models", "--help").stdout


def test_quotes_in_a_name_are_not_taken_for_a_lost_store(store):
    store.client.create_registered_model("it's")
    store.client.create_model_version("it's", "file:///nowhere")
    assert [one.uri for one in model_registry.versions(store, "it's")] == ["models:/it's/1"]
    for name in ('it\'s "here"', "back\\"):
        with pytest.raises(StageError, match="not a model's name; expected letters, digits"):
            model_registry.version_by_uri(store, f"models:/{name}@champion")


def test_of_a_project_that_was_moved_it_is_said_where_its_models_lie(store, project, tmp_path_factory, monkeypatch):
    store.client.create_registered_model("m")
    store.client.create_model_version("m", f"{project}/mlartifacts/1/models/m-1/artifacts")
    moved = tmp_path_factory.mktemp("moved")
    shutil.copy(project / "mlflow.db", moved)
    monkeypatch.chdir(moved)
    there = tracking.open_store(TrackingConfig(), create=False)
    assert [one.uri for one in model_registry.versions(there, "m")] == ["models:/m/1"]  # which needs no files
    with pytest.raises(StageError, match=rf"came from another folder: its artifacts lie in {project}/mlartifacts"):
        model_registry.download(there, "models:/m/1", moved)


def test_no_password_in_what_the_gate_gives_as_its_reason(store, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    lost = tracking.Store("http://user:secret@127.0.0.1:1", store.client, store.experiment)
    for ask in (
        lambda: model_registry.download(lost, "models:/m/1", tmp_path),
        lambda: model_registry.version_by_uri(lost, "models:/m/1"),
    ):
        with pytest.raises(StageError, match=r"not in http://\*\*\*@127") as error:
            ask()
        assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("method", "call"),
    [
        ("search_model_versions", lambda store, _: model_registry.find_version(store, "m", "key")),
        ("get_model_version_by_alias", lambda store, _: model_registry.version_by_alias(store, "m", "champion")),
        ("set_model_version_tag", lambda store, version: model_registry.tag_version(store, version, {"a": "b"})),
        ("set_registered_model_alias", lambda store, version: model_registry.set_alias(store, version, "champion")),
    ],
)
def test_a_registry_lost_on_the_way_is_one_line(store, monkeypatch, method, call):
    from mlflow.exceptions import MlflowException

    def lost(*_, **__):
        raise MlflowException("API request to http://user:secret@host\nfailed")

    monkeypatch.setattr(store.client, method, lost)
    with pytest.raises(
        StageError, match=r"^tracking store sqlite:.*failed; what was computed is kept.*`dvc repro`"
    ) as e:
        call(store, model_registry.Version("m", 1, {}))
    assert "\n" not in str(e.value)
    assert "secret" not in str(e.value)


def test_a_registered_model_made_by_two_processes_at_once_is_one(store, monkeypatch):
    store.client.create_registered_model("m")
    monkeypatch.setattr(store.client, "search_registered_models", lambda *_, **__: [])
    model_registry._create_registered_model(store, "m")
    with pytest.raises(tracking.StoreError, match="name"), tracking.store_errors(store):
        model_registry._create_registered_model(store, "no/name")


@pytest.mark.parametrize(("refusals", "works"), [(0, True), (2, True), (9, False)])
def test_what_another_process_set_at_the_same_moment_is_set_again(refusals, works):
    """MLflow looks for a tag or an alias and then inserts it: the later of two that set it first is refused."""
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import BAD_REQUEST

    left, made = iter(range(refusals)), []

    def write(*args):
        if next(left, None) is not None:
            raise MlflowException("UNIQUE constraint failed", error_code=BAD_REQUEST)
        made.append(args)

    if works:
        tracking.retry_on_conflict(write, "champion", "1")
        assert made == [("champion", "1")]
    else:
        with pytest.raises(MlflowException, match="UNIQUE"):
            tracking.retry_on_conflict(write, "champion", "1")
