"""Registration: one version however often it runs, and the gate."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ganlib.config import GateConfig, TrackingConfig
from ganlib.evaluate import Comparison
from pipelines import register, tracking
from pipelines._stage import StageError

MODEL = "ganlib-digits"
HEALTHY = {"coverage": 0.8, "memorisation_ratio": 1.0, "label_accuracy": 0.9, "fd": 5.0}


def metrics(**changed):
    figures = {name: {"value": value} for name, value in {**HEALTHY, **changed}.items() if value is not None}
    return {"classifier": figures, "samples": {}}


@pytest.fixture
def stage(project, params, train, monkeypatch):
    """The stage, on a freshly "trained" generator of the given weights and metrics."""

    def run(weights=0, low=-2.0, high=-1.0, spec=None, **changed):
        monkeypatch.setattr(register, "_compare", lambda *_: compared(low, high))
        monkeypatch.setattr(register, "fingerprint", lambda *_: f"train-{weights}")
        train(weights, metrics(**changed), **(spec or {}))
        register.stage(params)
        return json.loads(Path("outputs/register/decision.json").read_text())

    return run


def compared(low, high):
    middle = (low + high) / 2
    return Comparison(
        metric="classifier.fd",
        direction="lower",
        challenger=5.0 + middle,
        champion=5.0,
        difference=middle,
        low=low,
        high=high,
    )


def aliases():
    store = tracking.open_store(TrackingConfig())
    found = (tracking.version_by_alias(store, MODEL, name) for name in ("champion", "previous_champion"))
    return tuple(version and version.number for version in found)


def versions():
    store = tracking.open_store(TrackingConfig())
    return {int(v.version): dict(v.tags) for v in store.client.search_model_versions(f"name = '{MODEL}'")}


def test_first_healthy_version_is_champion(stage):
    decision = stage()
    assert decision["decision"] == "promoted"
    assert aliases() == (1, None)
    tags = versions()[1]
    assert tags["gate.decision"] == "promoted"
    assert tags["gate.metric"] == "classifier.fd"
    assert json.loads(tags["gate.terms"])["metric"] == "classifier.fd"
    assert tags["lineage.git.sha"] == "none"
    assert tags["lineage.software.torch"]


def test_again_changes_nothing(stage):
    first = stage()
    before = versions()
    assert stage() == first
    assert versions() == before
    assert aliases() == (1, None)


def test_again_respects_a_persons_rollback(stage):
    stage(weights=0)
    stage(weights=1)
    store = tracking.open_store(TrackingConfig())
    tracking.set_alias(store, tracking.version_by_uri(store, f"models:/{MODEL}/1"), "champion")
    stage(weights=1)
    assert aliases()[0] == 1


def test_another_gate_decides_anew_but_takes_nothing_away(stage, params, monkeypatch):
    assert stage(coverage=0.2)["decision"] == "refused"
    with monkeypatch.context() as lenient:
        lenient.setitem(params.__dict__, "gate", params.gate.model_copy(update={"min_coverage": 0.1}))
        assert stage(coverage=0.2)["decision"] == "promoted"
    assert stage(coverage=0.2)["decision"] == "promoted"
    assert aliases() == (1, None)
    assert len(versions()) == 1


def test_alias_that_a_person_set_on_an_undecided_version(stage, monkeypatch):
    with monkeypatch.context() as dying:
        dying.setattr(tracking, "tag_version", interrupted(tracking.tag_version))
        with pytest.raises(KeyboardInterrupt):
            stage()
    store = tracking.open_store(TrackingConfig())
    tracking.set_alias(store, tracking.version_by_uri(store, f"models:/{MODEL}/1"), "champion")
    assert stage()["decision"] == "promoted"
    assert aliases() == (1, None)


@pytest.mark.parametrize(
    ("low", "high", "decision"),
    [(-2.0, -1.0, "promoted"), (-2.0, 0.5, "refused"), (1.0, 2.0, "refused"), (-0.4, -0.3, "refused")],
    ids=["clearly better", "interval crosses zero", "worse", "better, within the margin"],
)
def test_gate_on_the_champion(stage, params, monkeypatch, low, high, decision):
    monkeypatch.setitem(params.__dict__, "gate", params.gate.model_copy(update={"margin": 0.5}))
    stage(weights=0)
    found = stage(weights=1, low=low, high=high)
    assert found["decision"] == decision
    assert (found["low"], found["high"], found["champion_version"]) == (low, high, 1)
    assert aliases() == ((2, 1) if decision == "promoted" else (1, None))
    assert json.loads(versions()[2]["gate.high"]) == high


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"coverage": 0.01}, "coverage 0.01 is below gate.min_coverage"),
        ({"coverage": float("nan")}, "coverage nan is below"),
        ({"memorisation_ratio": 0.1}, "memorisation_ratio 0.1 is below"),
        ({"label_accuracy": 0.2}, "label_accuracy 0.2 is below"),
    ],
)
def test_unhealthy_version_is_refused_with_or_without_champion(stage, changed, reason):
    assert reason in stage(weights=1, **changed)["reason"]
    assert aliases() == (None, None)
    stage(weights=0)
    assert stage(weights=2, **changed)["decision"] == "refused"
    assert aliases() == (2, None)


def test_every_unmet_threshold_is_named():
    found = register.weaknesses(metrics(coverage=0.0, memorisation_ratio=0.0), GateConfig(metric="classifier.fd"))
    assert [reason.split()[0] for reason in found] == ["coverage", "memorisation_ratio"]


def test_thresholds_on_unlabelled_data():
    gate = GateConfig(metric="classifier.fd")
    assert register.weaknesses(metrics(label_accuracy=None), gate) == []
    with pytest.raises(StageError, match="needs coverage"):
        register.weaknesses(metrics(coverage=None), gate)


def test_another_shape_is_not_compared(stage):
    stage(weights=0)
    found = stage(weights=1, spec={"shape": (1, 4, 4)})
    assert found["decision"] == "refused"
    assert "shape differ" in found["reason"]


def test_champion_that_cannot_be_loaded_stays(stage, project):
    stage(weights=0)
    for weights in (project / "mlartifacts").rglob("generator.safetensors"):
        weights.write_bytes(b"broken")
    found = stage(weights=1)
    assert found["decision"] == "refused"
    assert "cannot be loaded" in found["reason"]
    assert aliases() == (1, None)


def test_a_store_lost_before_the_champion_is_fetched_refuses_nobody(stage, monkeypatch):
    stage(weights=0)

    def lost(*_):
        raise StageError("tracking store: lost")

    with monkeypatch.context() as during:

        def lost_from_now_on(*_):
            during.setattr(tracking, "version_by_alias", lost)
            lost()

        during.setattr(tracking, "download", lost_from_now_on)
        with pytest.raises(StageError, match="tracking store: lost"):
            stage(weights=1)
    assert "gate.decision" not in versions()[2]


@pytest.mark.parametrize("step", ["register_generator", "create_model_version", "tag_version", "set_alias", "done"])
def test_killed_at_any_step_and_run_again(stage, monkeypatch, step):
    """The second version takes over from the first, though the stage dies once on the way."""
    from mlflow import MlflowClient

    stage(weights=0)
    with monkeypatch.context() as dying:
        if step == "create_model_version":
            dying.setattr(MlflowClient, step, interrupted(MlflowClient.create_model_version))
        elif step == "done":
            dying.setattr(tracking, "tag_version", interrupted(tracking.tag_version, calls=1))
        else:
            dying.setattr(tracking, step, interrupted(getattr(tracking, step)))
        with pytest.raises(KeyboardInterrupt):
            stage(weights=1)
    assert stage(weights=1)["decision"] == "promoted"
    assert aliases() == (2, 1)
    assert len(versions()) == 2
    store = tracking.open_store(TrackingConfig())
    assert len(store.client.search_logged_models([store.experiment])) == 2
    assert len(store.client.search_runs([store.experiment])) == 2


def interrupted(function, calls=0):
    """`function` dies instead of being called, after `calls` calls."""
    left = iter(range(calls))

    def dying(*args, **kwargs):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return function(*args, **kwargs)

    return dying


def test_run_joins_the_training_run(stage, project):
    store = tracking.open_store(TrackingConfig())
    with tracking.run(store, "train-0", "train-0") as trained:
        tracking.log_stats(trained, [{"kimg": 1.0, "loss/d": 2.0}])
    stage(weights=0)
    found = store.client.get_run(trained.id).data
    assert found.metrics["classifier/coverage"] == 0.8
    assert found.params["game.loss"]
    assert [p.step for p in store.client.get_metric_history(trained.id, "loss/d")] == [1000, 2000]
    files = {path.name for path in (project / "mlartifacts" / trained.id).rglob("*")}
    assert {"params.json", "lineage.json", "curves.csv", "metrics.json"} <= files
    assert "generator.json" not in files


def test_the_stores_address_is_not_in_the_parameters_logged(stage, params, project, monkeypatch):
    address = params.tracking.model_copy(update={"uri": "sqlite:///mlflow.db"})
    monkeypatch.setitem(params.__dict__, "tracking", address)
    stage()
    (logged,) = (project / "mlartifacts").rglob("params.json")
    assert "sqlite" not in logged.read_text()


@pytest.mark.parametrize(
    ("missing", "named"),
    [("outputs/train/generator", "generator.json"), ("outputs/evaluate", "metrics.json")],
)
def test_missing_outputs_are_named(project, params, train, missing, named):
    import shutil

    train(0, metrics())
    shutil.rmtree(missing)
    with pytest.raises(StageError, match=named):
        register.stage(params)


def test_metric_of_the_gate_must_be_there(stage):
    with pytest.raises(StageError, match=r"gate.metric: 'classifier.fd' is not in .* known: classifier.coverage"):
        stage(fd=None)


CONSUMER = """
import json, sys
import numpy as np, pandas as pd, mlflow
from mlflow.models import validate_serving_input

uri = "models:/ganlib-digits@champion"
model = mlflow.pyfunc.load_model(uri)
three = model.predict(None, params={"n": 3, "seed": 5})
seven = model.predict(pd.DataFrame({"n": [7]}))
assert three.shape == (3, 8, 8, 1) and seven.shape == (7, 8, 8, 1) and three.dtype == np.uint8
assert (model.predict(None, params={"n": 3, "seed": 5}) == three).all()
assert (model.predict(None, params={"n": 3, "seed": 6}) != three).any()
mixed = model.predict(pd.DataFrame([{"n": 2, "label": 4}, {"n": 3, "seed": 5, "truncation": 0.0}]))
assert mixed.shape == (5, 8, 8, 1) and (mixed[2:] == three).all()
assert model.predict(pd.DataFrame(), params={"n": 4, "label": 1, "truncation": 0.5}).shape == (4, 8, 8, 1)
for wrong in ({"n": 0}, {"label": 10}, {"truncation": -1.0}):
    try:
        model.predict(None, params=wrong)
    except ValueError as error:
        assert next(iter(wrong)) in str(error)
    else:
        raise AssertionError(wrong)
served = validate_serving_input(uri, json.dumps({"dataframe_records": [{"n": 2}], "params": {"seed": 3}}))
assert np.asarray(served).shape == (2, 8, 8, 1)
assert {spec.name for spec in model.metadata.signature.params} == {"n", "seed", "label", "truncation"}
import ganlib
assert "mlartifacts" in ganlib.__file__, "the model runs with the code it was made with"
"""


def test_consumer_without_pickle_and_without_the_project(stage, project):
    stage()
    environment = {
        **{key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_TRACKING_URI": f"sqlite:///{project}/mlflow.db",
    }
    done = subprocess.run(
        [sys.executable, "-c", CONSUMER],
        cwd="/",
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert not [path for path in (project / "mlartifacts").rglob("*") if path.suffix in (".pkl", ".pickle", ".pt")]
