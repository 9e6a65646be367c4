"""Registration: one version however often it runs, and the gate."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from ganlib import graph
from ganlib.config import GateConfig, TrackingConfig
from ganlib.evaluate import Comparison
from ganlib.export import load_generator
from pipelines import gate, model_registry, promotion, register, tracking
from pipelines._stage import StageError
from pipelines.cli import app

ROOT = Path(__file__).parents[2]
MODEL = "ganlib-digits"
HEALTHY = {"coverage": 0.8, "memorisation_ratio": 1.0, "label_accuracy": 0.9, "fd": 5.0}


def metrics(**changed):
    figures = {name: {"value": value} for name, value in {**HEALTHY, **changed}.items() if value is not None}
    return {"classifier": figures, "samples": {}}


@pytest.fixture
def stage(project, params, train, monkeypatch):
    """The stage, on a freshly "trained" generator of the given weights and metrics."""

    def run(weights=0, low=-2.0, high=-1.0, spec=None, export=(), **changed):
        monkeypatch.setattr(gate, "_compare", lambda *_: compared(low, high))
        monkeypatch.setattr(register, "fingerprint", lambda *_: f"train-{weights}")
        train(weights, metrics(**changed), **(spec or {}))
        gate_of = params.gate.model_copy(update={"export": export})
        register.stage(params.model_copy(update={"gate": gate_of}))
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
    found = (model_registry.version_by_alias(store, MODEL, name) for name in ("champion", "previous_champion"))
    return tuple(version and version.number for version in found)


def versions():
    store = tracking.open_store(TrackingConfig())
    return {int(v.version): dict(v.tags) for v in store.client.search_model_versions(f"name = '{MODEL}'")}


def test_first_healthy_version_is_champion(stage):
    decision = stage()
    assert decision["decision"] == "promoted"
    assert aliases() == (1, None)
    summary = json.loads(Path("outputs/register/summary.json").read_text())
    section, name = decision["metric"].split(".")
    assert next(iter(summary[section].items())) == (name, {"value": decision["challenger"]})
    assert {"coverage", "memorisation_ratio"} <= set(summary[section])
    tags = versions()[1]
    assert tags["gate.decision"] == "promoted"
    assert tags["gate.metric"] == "classifier.fd"
    assert json.loads(tags["gate.terms"])["metric"] == "classifier.fd"
    assert tags["lineage.git.sha"] == "none"
    assert tags["lineage.software.torch"]


def test_the_report_says_who_the_champion_was_and_shows_both(stage, project):
    stage(weights=0)
    first = Path("outputs/register/report.html").read_text()
    assert "<strong>promoted</strong>: the first to meet the thresholds." in first
    assert "<img" not in first
    assert "<td>classifier.coverage</td>" in first
    decision = stage(weights=1)
    report = Path("outputs/register/report.html").read_text()
    assert report.startswith("<h1>Report</h1>")
    assert "later" not in report
    assert f"{decision['low']:.3g} to {decision['high']:.3g}" in report
    pictures = re.findall(r'<img src="data:image/png;base64,([^"]+)" alt="([^"]+)">', report)
    assert [name for _, name in pictures] == ["This version", "Version 1, the champion"]
    assert pictures[0][0] != pictures[1][0]
    store = tracking.open_store(TrackingConfig())
    run = store.client.get_model_version(MODEL, "2").run_id
    assert Path(store.client.download_artifacts(run, "report.html")).read_text() == report


def test_graphs_are_kept_with_the_version(stage):
    decision = stage(export=("onnx",))
    assert decision["decision"] == "promoted"
    assert decision["export"]["onnx"] == {"within": 1e-5}
    assert json.loads(versions()[1]["export.onnx"]) == decision["export"]["onnx"]
    store = tracking.open_store(TrackingConfig())
    run = store.client.get_model_version(MODEL, "1").run_id
    assert [file.path for file in store.client.list_artifacts(run, "export")] == ["export/generator.onnx"]


def test_a_graph_that_makes_something_else_is_no_champion(stage, monkeypatch):
    """As where a runtime's kernel is wrong: here the graph that is run is one of other weights."""
    stage(weights=0)
    other = Path("other.onnx")
    graph.export_graph(load_generator(Path("outputs/train/generator")), ".").path.rename(other)
    run = graph._RUN["onnx"]
    monkeypatch.setitem(graph._RUN, "onnx", lambda path: run(other))
    decision = stage(weights=1, export=("onnx",))
    assert decision["decision"] == "refused"
    assert decision["reason"].startswith("gate.export: onnx: its samples are up to ")
    assert aliases() == (1, None)
    store = tracking.open_store(TrackingConfig())
    run_id = store.client.get_model_version(MODEL, "2").run_id
    assert store.client.list_artifacts(run_id, "export") == []


def test_again_changes_nothing(stage):
    first = stage()
    before = versions()
    assert stage() == first
    assert versions() == before
    assert aliases() == (1, None)


@pytest.mark.parametrize("cache", ["hardlink", "symlink", "copy"])
def test_outputs_out_of_any_cache_of_dvcs_are_registered(train, params, project, monkeypatch, cache):
    monkeypatch.setattr(gate, "_compare", lambda *_: compared(-2.0, -1.0))
    monkeypatch.setattr(register, "fingerprint", lambda *_: "train-0")

    def relink():
        """As `dvc checkout --relink` does; linked files cannot be written."""
        for number, file in enumerate(file for file in (project / "outputs").rglob("*") if file.is_file()):
            kept = file.rename(project / f"cache-{cache}-{number}")
            if cache == "copy":
                shutil.copyfile(kept, file)
            else:
                kept.chmod(0o444)
                file.symlink_to(kept) if cache == "symlink" else file.hardlink_to(kept)

    for coverage, version in ((0.8, 1), (0.9, 2)):  # evaluated anew: a version of the same run
        train(0, metrics(coverage=coverage))
        (project / "outputs/train/discriminator.safetensors").write_bytes(b"weights")
        (project / "outputs/train/warm_start.json").write_text('{"name": "models:/parent/1"}')
        relink()
        register.stage(params)
        decision = json.loads(Path("outputs/register/decision.json").read_text())
        assert (decision["version"], decision["warm_start"]) == (version, {"name": "models:/parent/1"})
        shutil.rmtree(project / "outputs")
    kept = [path for path in (project / "mlartifacts").rglob("*") if path.is_file()]
    discriminator = f"{hashlib.sha256(b'weights').hexdigest()}.safetensors"
    assert {"generator.safetensors", "curves.csv", discriminator} <= {path.name for path in kept}
    assert versions()[2][model_registry.DISCRIMINATOR_DIGEST] + ".safetensors" == discriminator
    assert not any(path.is_symlink() for path in kept)
    # or an ordinary user could not log them again
    assert all(path.stat().st_mode & 0o200 for path in kept)


def test_again_respects_a_persons_rollback(stage):
    stage(weights=0)
    stage(weights=1)
    store = tracking.open_store(TrackingConfig())
    model_registry.set_alias(store, model_registry.version_by_uri(store, f"models:/{MODEL}/1"), "champion")
    stage(weights=1)
    assert aliases()[0] == 1


def test_another_gate_decides_anew_but_takes_nothing_away(stage, params, monkeypatch):
    assert stage(coverage=0.2)["decision"] == "refused"
    with monkeypatch.context() as lenient:
        lenient.setitem(params.__dict__, "gate", params.gate.model_copy(update={"at_least": {"coverage": 0.1}}))
        assert stage(coverage=0.2)["decision"] == "promoted"
    assert stage(coverage=0.2)["decision"] == "promoted"
    assert aliases() == (1, None)
    assert len(versions()) == 1


def test_alias_that_a_person_set_on_an_undecided_version(stage, monkeypatch):
    with monkeypatch.context() as dying:
        dying.setattr(model_registry, "tag_version", interrupted(model_registry.tag_version))
        with pytest.raises(KeyboardInterrupt):
            stage()
    store = tracking.open_store(TrackingConfig())
    model_registry.set_alias(store, model_registry.version_by_uri(store, f"models:/{MODEL}/1"), "champion")
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
        ({"coverage": 0.01}, "coverage 0.01 is below gate.at_least.coverage"),
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
    found = gate.failed_thresholds(
        metrics(coverage=0.0, memorisation_ratio=0.0), GateConfig(metric="classifier.fd"), labelled=True
    )
    assert [reason.split()[0] for reason in found] == ["coverage", "memorisation_ratio"]


def test_thresholds_on_unlabelled_data():
    cfg = GateConfig(metric="classifier.fd")
    assert gate.failed_thresholds(metrics(label_accuracy=None), cfg, labelled=False) == []
    with pytest.raises(StageError, match="needs label_accuracy"):
        gate.failed_thresholds(metrics(label_accuracy=None), cfg, labelled=True)
    with pytest.raises(StageError, match="needs coverage"):
        gate.failed_thresholds(metrics(coverage=None), cfg, labelled=False)


def test_thresholds_on_any_metric_from_either_side():
    cfg = GateConfig(metric="classifier.fd", at_least={"recall": 0.5}, at_most={"copied": 0.1})
    found = gate.failed_thresholds({"classifier": figures(fd=1.0, recall=0.4, copied=0.2)}, cfg, labelled=True)
    assert found == [
        "recall 0.4 is below gate.at_least.recall 0.5",
        "copied 0.2 is above gate.at_most.copied 0.1",
    ]
    for wrong, message in (
        ({"at_least": {"recal": 1}}, "did you mean 'recall'"),
        ({"min_coverage": 0}, "now at_least."),
    ):
        with pytest.raises(ValidationError, match=message):
            GateConfig(**wrong)


def figures(**values):
    return {name: {"value": value} for name, value in values.items()}


def test_the_gate_goes_by_kid_unless_told():
    measured = {"samples": figures(l1=1.0), "pixels": figures(fd=1.0, kid=2.0), "classifier": figures(kid=3.0)}
    assert gate.metric_of(GateConfig(), measured) == "pixels.kid"
    with pytest.raises(StageError, match=r"gate.metric: 'kid' is not measured.*known: samples.l1"):
        gate.metric_of(GateConfig(), ["samples.l1"])


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


def test_the_reason_names_a_champion_that_this_code_cannot_read(stage, monkeypatch):
    """The reason is in an output of DVC's: no name of a scratch folder stands in it."""
    stage(weights=0)
    load = gate.load_generator

    def older(folder, *rest, **named):
        (Path(folder) / "generator.json").write_text('{"format": 3}')
        return load(folder, *rest, **named)

    monkeypatch.setattr(gate, "load_generator", older)
    found = stage(weights=1)
    assert found["decision"] == "refused"
    assert re.search(r": models:/[\w-]+/1: not a generator: expected format 1 or 2, found 3$", found["reason"])


def test_a_store_lost_before_the_champion_is_fetched_refuses_nobody(stage, monkeypatch):
    stage(weights=0)

    def lost(*_):
        raise StageError("tracking store: lost")

    with monkeypatch.context() as during:

        def lost_from_now_on(*_):
            during.setattr(model_registry, "version_by_alias", lost)
            lost()

        during.setattr(model_registry, "download", lost_from_now_on)
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
            dying.setattr(model_registry, "tag_version", interrupted(model_registry.tag_version, calls=1))
        else:
            dying.setattr(model_registry, step, interrupted(getattr(model_registry, step)))
        with pytest.raises(KeyboardInterrupt):
            stage(weights=1)
    assert stage(weights=1)["decision"] == "promoted"
    assert aliases() == (2, 1)
    assert len(versions()) == 2
    store = tracking.open_store(TrackingConfig())
    assert len(store.client.search_logged_models([store.experiment])) == 2
    assert len(store.client.search_runs([store.experiment])) == 2


class Contest:
    """Versions of fixed Fréchet distances, all registered with the one gate; something may happen on the way."""

    def __init__(self, params, train, monkeypatch):
        self.params, self.train, self.patch, self.made = params, train, monkeypatch, 0
        self.during = self.before_the_alias_moves = lambda: None
        monkeypatch.setattr(gate, "_compare", self.compare)
        monkeypatch.setattr(register, "fingerprint", lambda *_: f"train-{self.made}")
        set_alias = model_registry.set_alias

        def moved(store, version, alias):
            if alias == "champion":
                happens, self.before_the_alias_moves = self.before_the_alias_moves, lambda: None
                happens()
            set_alias(store, version, alias)

        monkeypatch.setattr(model_registry, "set_alias", moved)

    def compare(self, challenger, champion, params, metric):
        happens, self.during = self.during, lambda: None
        happens()
        ours, theirs = (float(generator.about["fd"]) for generator in (challenger, champion))
        gap = ours - theirs
        return Comparison("classifier.fd", "lower", ours, theirs, gap, gap - 0.5, gap + 0.5)

    def register(self, fd):
        self.made += 1
        self.train(self.made, metrics(fd=fd))
        described = Path("outputs/train/generator/generator.json")
        described.write_text(json.dumps(json.loads(described.read_text()) | {"about": {"fd": fd}}))
        register.stage(self.params)

    def again(self):
        register.stage(self.params)


@pytest.fixture
def contest(project, params, train, monkeypatch):
    contest = Contest(params, train, monkeypatch)
    contest.register(10.0)
    return contest


def move(number):
    """As a person does, past `Contest`."""
    store = tracking.open_store(TrackingConfig())
    store.client.set_registered_model_alias(MODEL, "champion", str(number))


def decisions():
    return {number: tags["gate.decision"] for number, tags in versions().items()}


def test_a_champion_that_registers_during_a_comparison_is_the_one_to_beat(contest):
    contest.during = lambda: contest.register(5.0)
    contest.register(7.0)
    assert aliases() == (3, 1)
    assert decisions() == {1: "promoted", 2: "refused", 3: "promoted"}
    assert json.loads(versions()[2]["gate.champion_version"]) == 3


@pytest.mark.parametrize(
    ("late", "early", "champion", "previous"),
    [(9.0, 5.0, 3, 2), (5.0, 9.0, 2, 1), (5.0, 5.2, 2, 1), (5.2, 5.0, 2, 1)],
    ids=["the late one is worse", "the late one is better", "neither is clearly better", "nor then"],
)
def test_two_that_move_the_alias_at_once_end_as_if_one_after_the_other(contest, late, early, champion, previous):
    """Version 2 is about to move the alias when version 3 registers from start to end; MLflow cannot see that."""
    contest.before_the_alias_moves = lambda: contest.register(early)
    contest.register(late)
    assert aliases() == (champion, previous)
    assert decisions() == {1: "promoted", 2: "promoted", 3: "promoted" if champion == 3 else "refused"}
    assert json.loads(versions()[3]["gate.champion_version"]) == 2
    before = versions()
    contest.again()
    assert (versions(), aliases()) == (before, (champion, previous))


def test_a_late_move_gives_way_to_all_that_came_meanwhile(contest):
    def others():
        contest.register(7.0)
        contest.register(5.0)

    contest.before_the_alias_moves = others
    contest.register(9.0)
    assert aliases() == (4, 3)
    assert set(decisions().values()) == {"promoted"}


def test_a_claim_that_another_process_carries_out(contest, monkeypatch):
    """Version 2 has decided and not yet looked at the alias again when version 3 registers from start to end."""
    tag = model_registry.tag_version

    def claimed(store, version, tags):
        tag(store, version, tags)
        if version.number == 2:
            monkeypatch.setattr(model_registry, "tag_version", tag)
            contest.register(5.2)

    monkeypatch.setattr(model_registry, "tag_version", claimed)
    contest.register(5.0)
    assert aliases() == (2, 1)
    assert decisions() == {1: "promoted", 2: "promoted", 3: "refused"}
    assert "better than version 1" in versions()[2]["gate.reason"]


def test_a_decision_is_read_only_when_all_of_it_is_written(contest, monkeypatch):
    from mlflow import MlflowClient

    set_tag = MlflowClient.set_model_version_tag
    names = []

    def recorded(self, name, number, key, value):
        names.append(key)
        set_tag(self, name, number, key, value)

    monkeypatch.setattr(MlflowClient, "set_model_version_tag", recorded)
    contest.register(5.0)
    claim = names[: names.index("gate.decision") + 1]
    assert {f"gate.{field.name}" for field in dataclasses.fields(gate.Decision)} <= {*claim}
    assert names[-1] == promotion.TERMS


def test_killed_after_a_late_move(contest, monkeypatch):
    contest.before_the_alias_moves = lambda: contest.register(5.0)
    with monkeypatch.context() as dying:
        dying.setattr(promotion, "_settle_race", interrupted(promotion._settle_race, calls=1))  # the nested one passes
        with pytest.raises(KeyboardInterrupt):
            contest.register(9.0)
    assert aliases()[0] == 2
    contest.train(2, metrics(fd=9.0))
    described = Path("outputs/train/generator/generator.json")
    described.write_text(json.dumps(json.loads(described.read_text()) | {"about": {"fd": 9.0}}))
    contest.again()
    assert aliases() == (3, 2)


def test_a_persons_move_during_a_comparison_is_respected(contest):
    contest.register(5.0)
    contest.during = lambda: move(1)
    contest.register(7.0)  # no match for version 2, but for version 1, to which a person went back
    assert aliases() == (3, 1)
    contest.during = lambda: move(2)
    contest.register(6.0)
    assert aliases()[0] == 2
    assert json.loads(versions()[4]["gate.champion_version"]) == 2


def test_a_version_that_was_replaced_long_ago_is_no_rival(contest):
    contest.register(5.0)
    move(1)
    contest.register(7.0)
    assert aliases() == (3, 1)


def test_a_version_registered_twice_at_once_is_one(contest, monkeypatch):
    """Another process registers the same key between the search for it and the creation."""
    find, seen = model_registry.find_version, []

    def blind(*arguments):
        seen.append(None)
        return None if len(seen) == 1 else find(*arguments)

    before = versions()
    store = tracking.open_store(TrackingConfig())
    logged = len(store.client.search_logged_models([store.experiment]))
    monkeypatch.setattr(model_registry, "find_version", blind)
    monkeypatch.setattr(model_registry, "_find_model", lambda *_: None)
    contest.again()
    assert len(seen) == 2
    assert versions() == before
    assert len(store.client.search_logged_models([store.experiment])) == logged
    assert json.loads(Path("outputs/register/decision.json").read_text())["version"] == 1


def test_a_version_with_damaged_files_is_noticed(contest, project):
    for weights in (project / "mlartifacts").rglob("generator.safetensors"):
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1  # still a file of weights
        weights.write_bytes(content)
    with pytest.raises(StageError, match=rf"^models:/{MODEL}/1: its files are damaged.*delete this version"):
        contest.again()
    contest.register(5.0)
    assert decisions()[2] == "refused"
    assert "its files are damaged" in versions()[2]["gate.reason"]
    assert aliases() == (1, None)


def test_files_that_the_store_did_not_keep_are_noticed_before_they_are_registered(contest, monkeypatch):
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

    log_artifacts = LocalArtifactRepository.log_artifacts

    def torn(self, local_dir, artifact_path=None):
        log_artifacts(self, local_dir, artifact_path)
        for weights in Path(self.artifact_dir).rglob("generator.safetensors"):
            weights.write_bytes(weights.read_bytes()[:-1])

    with monkeypatch.context() as failing:
        failing.setattr(LocalArtifactRepository, "log_artifacts", torn)
        with pytest.raises(StageError, match="are not those that were sent"):
            contest.register(5.0)
    assert len(versions()) == 1
    contest.again()
    assert aliases() == (2, 1)


@pytest.mark.parametrize("full", ["database", "artifacts"])
def test_a_full_disk_is_one_line_and_the_next_run_finishes(
    project, params, train, monkeypatch, small_disk, capfd, full
):
    monkeypatch.setattr(tracking, "project_folder", lambda: small_disk if full == "artifacts" else project)
    place = small_disk if full == "database" else project
    if full == "database":
        shutil.move(project / "mlflow.db", small_disk)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{place}/mlflow.db")
    contest = Contest(params, train, monkeypatch)
    contest.register(10.0)
    disk = os.statvfs(small_disk)
    (small_disk / "filler").write_bytes(bytes(disk.f_bavail * disk.f_frsize - 2**15))
    capfd.readouterr()
    with pytest.raises(tracking.StoreError, match=r"disk is full|No space left on device") as error:
        contest.register(5.0)
    assert "\n" not in str(error.value)
    assert str(error.value).endswith(tracking.AGAIN)
    assert capfd.readouterr().err == ""
    (small_disk / "filler").unlink()
    assert list(versions()) == [1]
    contest.again()
    assert aliases() == (2, 1)
    store = tracking.open_store(TrackingConfig())
    assert len(store.client.search_logged_models([store.experiment])) == 2
    assert {run.info.status for run in store.client.search_runs([store.experiment])} == {"FINISHED"}


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
    [
        ("outputs/train/generator/generator.json", "generator.json"),
        ("outputs/evaluate/metrics.json", "metrics.json"),
        ("outputs/evaluate/report.html", "outputs/evaluate/report.html: no report of the stage evaluate"),
    ],
)
def test_missing_outputs_are_named(project, params, train, missing, named):
    train(0, metrics())
    Path(missing).unlink()
    with pytest.raises(StageError, match=named):
        register.stage(params)
    assert aliases() == (None, None), "and nothing is registered"


def test_metric_of_the_gate_must_be_there(stage):
    with pytest.raises(StageError, match=r"gate.metric: 'classifier.fd' is not measured.* known: classifier.coverage"):
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


def test_a_model_has_its_own_requirements_and_not_the_projects(stage, project):
    """MLflow takes the `uv.lock` of the folder that it runs in, and restores it where it makes environments by uv."""
    for name in ("uv.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, project)
    stage()
    (logged,) = (file.parent for file in (project / "mlartifacts").rglob("MLmodel"))
    assert "torch==" in (logged / "requirements.txt").read_text()
    assert not {"uv.lock", "pyproject.toml"} & {file.name for file in logged.iterdir()}


def ganlib(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def refused(done, *expected):
    assert (done.exit_code, len(done.stderr.splitlines())) == (1, 1), done.output
    assert all(part in done.stderr for part in expected), done.stderr


def test_a_version_that_passes_is_held_until_a_person_approves(stage, params, monkeypatch):
    monkeypatch.setitem(params.__dict__, "gate", params.gate.model_copy(update={"approval": "human"}))
    first = stage(weights=0)
    assert (first["decision"], aliases()) == ("held", (None, None))
    assert "it waits for `ganlib approve models:/ganlib-digits/1`" in first["reason"]
    assert stage(weights=0) == first
    refused(ganlib("approve", f"models:/{MODEL}/1", "--reason", " "), "--reason: expected why")
    done = ganlib("approve", f"models:/{MODEL}/1", "--reason", "looked at 100 digits")
    assert done.exit_code == 0, done.output
    assert done.stdout == "ganlib-digits version 1 is the champion, the first: looked at 100 digits\n"
    assert aliases() == (1, None)
    again = stage(weights=0)
    assert (again["decision"], aliases()) == ("promoted", (1, None))
    assert re.search(r"approved by \S+: looked at 100 digits$", again["reason"])
    refused(ganlib("approve", f"models:/{MODEL}/1", "--reason", "x"), "held for approval, found promoted")
    assert stage(weights=1)["decision"] == stage(weights=2)["decision"] == "held"
    assert ganlib("approve", f"models:/{MODEL}/2", "--reason", "sharper").exit_code == 0
    refused(
        ganlib("approve", f"models:/{MODEL}/3", "--reason", "x"),
        "models:/ganlib-digits/3: compared with version 1, and the champion is 2 now",
    )
    assert aliases() == (2, 1)
    assert stage(weights=3, coverage=0.01)["decision"] == "refused"
    refused(ganlib("approve", f"models:/{MODEL}/4", "--reason", "x"), "found refused; `ganlib models promote` makes it")


def test_people_promote_and_roll_back_with_a_reason(stage):
    stage(weights=0)
    refused(ganlib("models", "rollback", MODEL, "--reason", "x"), "previous_champion")
    stage(weights=1)
    assert stage(weights=2, low=1.0, high=2.0)["decision"] == "refused"
    done = ganlib("models", "rollback", MODEL, "--reason", "sevens look like ones")
    assert done.stdout == "ganlib-digits version 1 is the champion, in place of version 2: sevens look like ones\n"
    assert aliases() == (1, 2)
    assert stage(weights=1)["decision"] == "promoted", "the gate's decision stands"
    assert aliases() == (1, 2), "and takes nothing back"
    assert ganlib("models", "promote", f"models:/{MODEL}/3", "--reason", "looks better").exit_code == 0
    assert aliases() == (3, 1)
    refused(ganlib("models", "promote", f"models:/{MODEL}/3", "--reason", "x"), "is the champion already")
    moves = json.loads(ganlib("models", "history", MODEL, "--json").stdout)
    assert [(one["version"], one["over"], one["action"], one["reason"]) for one in moves] == [
        (1, 2, "rollback", "sevens look like ones"),
        (3, 1, "promote", "looks better"),
    ]
    assert all(one["by"] and one["time"].endswith("Z") for one in moves)
    listed = json.loads(ganlib("models", "list", "--json").stdout)
    assert [(one["version"], one["aliases"], one["decision"], one["value"]) for one in listed] == [
        (1, ["previous_champion"], "promoted", 5.0),
        (2, [], "promoted", 3.5),
        (3, ["champion"], "refused", 6.5),
    ]
    shown = ganlib("models", MODEL).stdout
    assert "champion" in shown
    assert ganlib("models").stdout == shown
    refused(ganlib("models", "list", "none"), "none: no such model; known: ganlib-digits")


def test_no_version_is_made_champion_whose_files_are_lost(stage, params, monkeypatch):
    stage(weights=0)
    stage(weights=1)
    monkeypatch.setitem(params.__dict__, "gate", params.gate.model_copy(update={"approval": "human"}))
    assert stage(weights=2)["decision"] == "held"
    assert aliases() == (2, 1)
    for weights in Path("mlartifacts").rglob("generator.safetensors"):
        weights.unlink()
    held = f"models:/{MODEL}/3"
    for words in (("models", "rollback", MODEL), ("models", "promote", held), ("approve", held)):
        done = ganlib(*words, "--reason", "x")
        refused(done, f"models:/{MODEL}/", "damaged", "if they are lost, delete this version")
    assert aliases() == (2, 1)
    assert json.loads(ganlib("models", "history", MODEL, "--json").stdout) == []


def test_json_has_null_for_what_is_not_a_number(stage):
    def refuse(name):
        raise AssertionError(name)

    assert stage(fd=float("nan"))["decision"] == "refused"
    for text in (Path("outputs/register/decision.json").read_text(), Path("outputs/register/summary.json").read_text()):
        json.loads(text, parse_constant=refuse)
    listed = json.loads(ganlib("models", "list", "--json").stdout, parse_constant=refuse)
    assert listed[0]["value"] is None
    assert stage(fd=float("nan"))["challenger"] is None, "again, too"


def test_a_store_lost_at_the_last_file_is_one_line(stage, monkeypatch):
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    log_artifact = MlflowClient.log_artifact

    def lost(self, run, file, *rest):
        if file.endswith("report.html"):
            raise MlflowException("API request failed with error code 503 != 200")
        log_artifact(self, run, file, *rest)

    with monkeypatch.context() as failing:
        failing.setattr(MlflowClient, "log_artifact", lost)
        with pytest.raises(tracking.StoreError, match=rf"error code 503 != 200; {re.escape(tracking.AGAIN)}$"):
            stage()
    assert stage()["version"] == 1


def test_the_run_of_a_version_may_be_deleted_for_good(stage, capsys):
    """By `mlflow gc`, which leaves the version and its files."""
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST

    first = stage()
    store = tracking.open_store(TrackingConfig())
    run = store.client.get_model_version(MODEL, "1").run_id
    with pytest.MonkeyPatch.context() as gone:

        def not_found(*_):
            raise MlflowException(f"Run with id={run} not found", RESOURCE_DOES_NOT_EXIST)

        gone.setattr("mlflow.MlflowClient.log_artifact", not_found)
        assert stage() == first
    assert f"the run {run} is gone from the store; report.html is in outputs/register alone" in capsys.readouterr().out
