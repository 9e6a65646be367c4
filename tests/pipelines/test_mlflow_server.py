"""A real MLflow server on PostgreSQL: training logs to it, registrations race on it, and it is killed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from services import mlflow_server, need_postgresql

from ganlib.config import TrackingConfig, TrainConfig
from pipelines import model_registry, outbox, tracking
from pipelines.train import _Progress

pytestmark = pytest.mark.pipeline
MODEL = "ganlib-digits"


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    need_postgresql()
    with mlflow_server(tmp_path_factory.mktemp("artifacts")) as server:
        yield server


@pytest.fixture
def server(running, project, monkeypatch):
    """The server, as the store of the project."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", running.uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setattr(outbox, "PAUSE_SECONDS", 1.0)
    return running


def row(kimg):
    return {"kimg": float(kimg), "examples_per_second": 100.0, "loss/generator": 1 / kimg, "loss/discriminator": 2.0}


def found(experiment, key):
    """The one run of a key: `(its status, parameters, points of the generator's loss)`."""
    store = tracking.open_store(TrackingConfig(experiment=experiment))
    (run,) = store.client.search_runs([store.experiment], f"tags.`{tracking.RUN_KEY}` = '{key}'")
    assert len(store.client.search_runs([store.experiment])) == 1
    points = store.client.get_metric_history(run.info.run_id, "loss/generator")
    return run.info.status, run.data.params, sorted((point.step, point.value) for point in points)


def test_training_logs_to_a_server_that_is_killed_on_the_way(server, project, capsys):
    config = TrackingConfig(experiment="training")
    rows = [row(kimg) for kimg in range(1, 31)]
    with outbox.try_run(outbox.open_outbox(config), "train-1", "train-1", tags={"stage": "train"}) as run:
        run.log_params({"train": {"kimg": 30}})
        progress = _Progress(run, TrainConfig(kimg=30))
        for one in rows[:10]:
            progress(one)
        server.kill()
        for one in rows[10:20]:
            progress(one)
        assert list((project / ".ganlib/tracking").rglob("entry.json"))
        server.start()
        time.sleep(outbox.PAUSE_SECONDS)
        for one in rows[20:]:
            progress(one)
        run.log_stats(rows)  # as the stage does, of all that its checkpoint knows
    expected = "FINISHED", {"train.kimg": "30"}, [(1000 * kimg, 1 / kimg) for kimg in range(1, 31)]
    assert found("training", "train-1") == expected
    said = capsys.readouterr().out
    assert said.count("the work goes on") == said.count("the store answers again") == 1
    assert said.count("examples/s") == 30


LOGGER = """
import sys
from ganlib.config import TrackingConfig
from pipelines.outbox import open_outbox, try_run

with try_run(open_outbox(TrackingConfig(experiment="kills")), "key", "name") as run:
    for kimg in range(1, 80):
        run.log_stats([{"kimg": float(kimg), "loss/generator": 1 / kimg}])
        print(kimg, flush=True)
"""


def test_nothing_is_lost_or_doubled_where_a_request_is_cut_short(server, project):
    """The kill falls into the work of a process that logs without a pause."""
    process = python(LOGGER, project, stdout=subprocess.PIPE, env={"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"})
    while (line := process.stdout.readline()) and line.strip() != b"9":
        pass
    assert line, "it ended early"
    server.kill()
    server.start()
    process.communicate(timeout=300)
    assert process.returncode == 0
    # as the next stage does: where the server is slow to start, the work has ended before it answers
    outbox.send_kept(tracking.open_store(TrackingConfig(experiment="kills")), "kills")
    status, _, points = found("kills", "key")
    assert (status, points) == ("FINISHED", [(1000 * kimg, 1 / kimg) for kimg in range(1, 80)])


# Registers the generator of a folder. The gate knows its distance from the generator itself. Both processes decide
# before either goes on; the one told to be late waits with moving the alias until the other has ended.
RACER = """
import json, sys, time
from pathlib import Path
from ganlib.config import parse_params
from ganlib.evaluate import Comparison
from pipelines import gate, model_registry, register

me, other, late = (Path(name) for name in sys.argv[1:])

def wait(file):
    end = time.monotonic() + 240
    while not file.exists():
        assert time.monotonic() < end, file
        time.sleep(0.02)

def compare(challenger, champion, *_):
    me.joinpath("compared").touch()
    wait(other / "compared")
    ours, theirs = (float(generator.about["fd"]) for generator in (challenger, champion))
    return Comparison("classifier.fd", "lower", ours, theirs, ours - theirs, ours - theirs - 0.5, ours - theirs + 0.5)

def set_alias(store, version, alias, move=model_registry.set_alias):
    if alias == "champion" and me == late and not (me / "moved").exists():
        (me / "moved").touch()
        wait(other / "done")
    move(store, version, alias)

gate._compare, model_registry.set_alias = compare, set_alias
register.fingerprint = lambda *_: me.name
register.stage(parse_params(json.loads(Path("params.json").read_text())))
(me / "done").touch()
"""


def python(program, folder, *arguments, env=None, **options):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1", **(env or {})}
    return subprocess.Popen([sys.executable, "-c", program, *arguments], cwd=folder, env=environment, **options)


@pytest.fixture
def candidate(project, params, train):
    """Write what the stages before `register` write, for a generator of a Fréchet distance, in a folder of its own."""

    def write(name, fd, experiment):
        healthy = {"coverage": 0.8, "memorisation_ratio": 1.0, "label_accuracy": 0.9, "fd": fd}
        figures = {metric: {"value": value} for metric, value in healthy.items()}
        train(int(fd * 10), {"classifier": figures, "samples": {}})
        folder = project / name
        for part in ("outputs", "data"):
            shutil.move(project / part, folder / part)
        described = folder / "outputs/train/generator/generator.json"
        described.write_text(json.dumps(json.loads(described.read_text()) | {"about": {"fd": fd}}))
        tracked = TrackingConfig(experiment=experiment, registered_model=experiment)
        content = params.model_copy(update={"tracking": tracked}).model_dump(mode="json")
        (folder / "params.json").write_text(json.dumps(content))
        return folder

    return write


# Both have claimed the champion's place before either goes on: a version that is overtaken before it has is judged
# against the new champion (test_register).
CLAIMING = """
from pipelines import promotion

def tag_version(store, version, tags, tag=model_registry.tag_version):
    tag(store, version, tags)
    if promotion.BEFORE in tags:
        me.joinpath("claimed").touch()
        wait(other / "claimed")

model_registry.tag_version = tag_version
register.stage("""


@pytest.mark.parametrize("late", [None, "good", "better"])
def test_two_registrations_race_and_the_better_one_is_the_champion(server, project, candidate, late):
    model = f"race-{late}"
    first, good, better = (candidate(name, fd, model) for name, fd in (("first", 10.0), ("good", 8.0), ("better", 5.0)))
    nobody = project / "nobody"
    nobody.mkdir()
    assert python(RACER, first, first, first, nobody).wait(240) == 0
    slow, racer = project / (late or "nobody"), RACER.replace("register.stage(", CLAIMING)
    racers = [
        python(racer, me, me, other, slow, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for me, other in ((good, better), (better, good))
    ]
    said = [racer.communicate(timeout=300)[0] for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0], said

    store = tracking.open_store(TrackingConfig(experiment=model))
    versions = {int(one.version): one for one in store.client.search_model_versions(f"name = '{model}'")}
    fds = {number: json.loads(one.tags["gate.challenger"]) for number, one in versions.items()}
    assert sorted(fds.values()) == [5.0, 8.0, 10.0], "a version each"
    champion = model_registry.version_by_alias(store, model, "champion")
    previous = model_registry.version_by_alias(store, model, "previous_champion")
    assert fds[champion.number] == 5.0
    # as if registered in the order of their numbers
    beaten = fds[previous.number]
    assert beaten == (8.0 if champion.number == 3 else 10.0)
    decided = {number: one.tags["gate.decision"] for number, one in versions.items()}
    assert decided == {1: "promoted", 2: "promoted", 3: "promoted" if champion.number == 3 else "refused"}
    assert all("gate.terms" in one.tags and "lineage.software.torch" in one.tags for one in versions.values())
    runs = store.client.search_runs([store.experiment])
    assert sorted(run.data.tags[tracking.RUN_KEY] for run in runs) == ["better", "first", "good"]
    assert {run.info.status for run in runs} == {"FINISHED"}
    for run in runs:
        assert [p.step for p in store.client.get_metric_history(run.info.run_id, "loss/d")] == [1000, 2000]
        files = {file.path for file in store.client.list_artifacts(run.info.run_id)}
        assert {"params.json", "lineage.json", "stages"} <= files


def test_the_same_is_registered_by_two_at_once(server, project, candidate):
    """Experiment, run, registered model and version are each made by two processes, and there is one of each."""
    original = candidate("original", 5.0, "twice")
    twins = [project / name for name in ("a", "b")]
    for twin in twins:
        shutil.copytree(original, twin)
    nobody = project / "nobody"
    nobody.mkdir()
    program = RACER.replace("me.name", "'twins'")
    racers = [
        python(program, me, me, other, nobody, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for me, other in (twins, twins[::-1])
    ]
    said = [racer.communicate(timeout=300)[0] for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0], said
    store = tracking.open_store(TrackingConfig(experiment="twice"))
    (version,) = store.client.search_model_versions("name = 'twice'")
    assert version.tags["gate.decision"] == "promoted"
    assert model_registry.version_by_alias(store, "twice", "champion").number == int(version.version)
    (run,) = store.client.search_runs([store.experiment])
    assert run.info.status == "FINISHED"
    assert [p.value for p in store.client.get_metric_history(run.info.run_id, "loss/d")] == [2.0, 1.0]
    for twin in twins:
        decision = json.loads((twin / "outputs/register/decision.json").read_text())
        assert decision["version"] == int(version.version)


def test_the_password_of_a_database_is_kept_nowhere(running, project, candidate, monkeypatch):
    """Without a server: the project writes to PostgreSQL itself, under an address with a password."""
    uri = running.database.replace("ganlib@/mlflow", "ganlib:sec%2Fret@/mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    folder = candidate("alone", 5.0, "secret")
    process = python(
        RACER, folder, folder, folder, project, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said
    assert "promoted" in said
    programs = next(Path("/usr/lib/postgresql").glob("*/bin/pg_dump"))
    host = uri.rpartition("host=")[2]
    dump = subprocess.run([programs, "-h", host, "-U", "ganlib", "mlflow"], capture_output=True, text=True, check=True)
    files = [file for file in folder.rglob("*") if file.is_file()]
    texts = [said, dump.stdout, *(file.read_bytes().decode("latin-1") for file in files)]
    assert any("lineage.software.torch" in text for text in texts)
    assert not [text for text in texts if "sec/ret" in text or "sec%2Fret" in text]
