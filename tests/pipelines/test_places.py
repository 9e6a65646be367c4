"""Folders that the environment decides: one is found that will do, or one line names the variable."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path

import pytest

from ganlib.config import TrackingConfig
from pipelines import doctor, model_registry, places, tracking

LONG = f"a-scratch-folder-of-a-batch-system-{'with-a-long-name' * 3}"


@pytest.fixture
def named(monkeypatch):
    """Set RAY_TMPDIR and TMPDIR, or neither."""

    def name(ray="", tmp=""):
        for variable, value in (("RAY_TMPDIR", ray), ("TMPDIR", tmp)):
            monkeypatch.setenv(variable, str(value)) if value else monkeypatch.delenv(variable, raising=False)

    return name


def test_rays_folder_is_what_the_variables_say_if_its_sockets_fit(named, tmp_path, monkeypatch):
    for length, fits in ((places.SOCKET_BYTES, True), (places.SOCKET_BYTES + 1, False)):
        room = length - len(f"/tmp/x/{places.SESSION}")
        folder = Path("/tmp/x" + "y" * room)
        named(tmp=folder)
        assert (places.ray_folder().path == folder) is fits
    named(ray="/tmp/short", tmp=f"/tmp/{LONG}")
    assert places.ray_folder() == (Path("/tmp/short"), "")


def test_a_socket_of_that_length_can_be_made_and_no_longer_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as fits, socket.socket(socket.AF_UNIX) as too_long:
        fits.bind("x" * places.SOCKET_BYTES)
        with pytest.raises(OSError, match="too long"):
            too_long.bind("y" * (places.SOCKET_BYTES + 1))


def test_a_folder_that_will_not_do_is_replaced_and_said_or_refused_by_the_variables_name(named, request, monkeypatch):
    short = Path("/tmp") / f"ganlib-test-{os.getpid()}"
    short.touch()  # no folder
    request.addfinalizer(short.unlink)
    for folder, fault in ((f"/tmp/{LONG}", "bytes too long"), (short, "cannot be written")):
        named(tmp=folder)
        found = places.ray_folder()
        assert found.path == Path("/tmp")
        assert found.instead.startswith(f"TMPDIR: {folder} ")
        assert fault in found.instead
        named(ray=folder)
        with pytest.raises(OSError, match=f"^RAY_TMPDIR: {folder} .*; set it to a short path"):
            places.ray_folder()
    named(tmp=f"/tmp/{LONG}")
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(OSError, match=r"^TMPDIR: .*; set RAY_TMPDIR to a short path"):
        places.ray_folder()


@pytest.fixture(params=["a b", "feature%2Flogin", "100%", "a%20b", "a?b=c&d", "a#b", "é ☃", "a;b@c:d", "Bob's"])
def odd(request, project, migrated, monkeypatch) -> Path:
    """A project in a folder whose name means something else in an address, with two empty stores; in the last, one is
    to be made."""
    folder = project / request.param
    folder.mkdir()
    for name in ("mlflow.db", *(["%.db"] if request.param != "Bob's" else [])):
        shutil.copy(migrated, folder / name)
    monkeypatch.chdir(folder)
    return folder


def test_a_project_may_lie_in_a_folder_of_any_name(odd, params):
    escape = "%2" in odd.name
    assert [one.status for one in doctor._tracking(params)] == ["ok", *["warn"] * escape]
    for config in (TrackingConfig(), TrackingConfig(uri="sqlite:///%25.db")):
        store = tracking.open_store(config)
        with tracking.run(store, "key", "name") as run:
            tracking.log_json(run, {"a": 1}, "a.json")
        assert model_registry.version_by_alias(store, "none", "champion") is None
        assert tracking.open_store(config, create=False).experiment == store.experiment
    assert sorted(path.name for path in odd.iterdir() if path.is_file()) == ["%.db", "mlflow.db"]
    assert len(list((odd / "mlartifacts").rglob("a.json"))) == 2
    assert [path.name for path in odd.parent.iterdir() if path.is_dir()] == [odd.name]


def test_a_generator_is_registered_and_loaded_in_such_a_folder(project, migrated, train, monkeypatch, tmp_path_factory):
    import mlflow

    folder = project / "a%2Fb c#d?é"
    folder.mkdir()
    train(0, {})
    shutil.move("outputs", folder / "outputs")
    shutil.copy(migrated, folder / "mlflow.db")
    monkeypatch.chdir(folder)
    generator = folder / "outputs/train/generator"
    store = tracking.open_store(TrackingConfig())
    with tracking.run(store, "key", "name") as run:
        version = model_registry.register_generator(run, generator, "m", "key", {})
    model_registry.check_whole(store, version)
    with tracking.environment({"MLFLOW_TRACKING_URI": store.uri}):
        model = mlflow.pyfunc.load_model(version.uri, dst_path=str(tmp_path_factory.mktemp("model")))
    assert model.predict(None, params={"n": 3}).shape == (3, 8, 8, 1)
