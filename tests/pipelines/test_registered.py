"""`ganlib register`: what outputs/register names is in the store, whichever store that is."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from ganlib.config import TrackingConfig
from pipelines import doctor, gate, model_registry, register, registered, tracking
from pipelines._stage import StageError

MODEL = "ganlib-digits"
METRICS = {"classifier": {name: {"value": 1.0} for name in ("coverage", "memorisation_ratio", "label_accuracy", "fd")}}


@pytest.fixture
def dvc(project, params, train, monkeypatch):
    """A project that has registered, and a DVC that finds it up to date; the commands that it was given."""
    asked = []

    def run(*words, capture_output=False):
        asked.append(words[0])
        if words[0] == "repro":
            register.stage(params)
        return subprocess.CompletedProcess(words, 0, stdout="{}", stderr="")

    monkeypatch.setattr(registered, "_dvc", run)
    monkeypatch.setattr(register, "fingerprint", lambda *_: "train-0")
    train(0, METRICS)
    register.stage(params)
    return asked


@pytest.fixture
def elsewhere(dvc, project, monkeypatch):
    """From now on another store is named, which is empty."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{project}/elsewhere.db")


def store():
    return tracking.open_store(TrackingConfig())


def warnings(params):
    return [one for one in doctor._tracking(params) if one.status != "ok"]


def test_a_store_that_has_the_version_is_left_as_it_is(dvc, params, capsys):
    assert warnings(params) == []
    before = Path("mlflow.db").read_bytes()
    assert registered.ensure_registered(params) == 0
    assert dvc == ["status"]
    assert "ganlib-digits version 1 in sqlite:" in capsys.readouterr().out
    assert Path("mlflow.db").read_bytes() == before


def test_a_store_that_lacks_the_version_gets_it_once(dvc, elsewhere, params):
    for _ in range(2):  # without a file, and with one that was made meanwhile
        (found,) = warnings(params)
        assert (found.status, found.remedy) == ("warn", "`ganlib register`")
        assert MODEL in found.what
        store()
    with pytest.raises(StageError, match=r"no such model.*; `ganlib register` registers there"):
        model_registry.version_by_uri(store(), f"models:/{MODEL}@champion")
    for _ in range(2):
        assert registered.ensure_registered(params) == 0
    assert dvc == ["status", "repro", "status"]
    assert model_registry.version_by_alias(store(), MODEL, "champion").number == 1
    assert warnings(params) == []


def test_a_registration_that_was_killed_goes_on(dvc, elsewhere, params, monkeypatch):
    with monkeypatch.context() as dying:
        dying.setattr(gate, "failed_thresholds", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            registered.ensure_registered(params)
    assert registered.ensure_registered(params) == 0
    assert dvc == ["status", "repro"] * 2
    assert model_registry.version_by_alias(store(), MODEL, "champion").number == 1


def test_lost_files_are_said(dvc, params, project):
    shutil.rmtree(project / "mlartifacts")
    with pytest.raises(StageError, match="delete this version, then `ganlib register`"):
        registered.ensure_registered(params)


def test_outputs_that_are_not_what_the_lock_says_are_not_registered(dvc, params, project, monkeypatch):
    said = subprocess.CompletedProcess([], 0, stdout=json.dumps({"tune": [], "train": []}), stderr="")
    monkeypatch.setattr(registered, "_dvc", lambda *_, **__: said)
    with pytest.raises(StageError, match=r"^dvc.lock: not up to date: tune, train; `dvc pull`.*`dvc repro`"):
        registered.ensure_registered(params)
    shutil.rmtree("outputs/register")
    with pytest.raises(StageError, match=r"^outputs/register/decision.json: not here; `dvc pull`"):
        registered.ensure_registered(params)


def test_what_dvc_says_is_passed_on(project):
    with pytest.raises(StageError, match="dvc status: ERROR: you are not inside of a DVC repository"):
        registered._stale_stages()
