"""The tracking store: where it is, that it answers, and that what is repeated is not doubled."""

from __future__ import annotations

import math
import shutil
import socket
import time

import pytest

from ganlib.config import TrackingConfig
from pipelines import tracking
from pipelines._stage import StageError


@pytest.fixture
def store(project):
    return tracking.open_store(TrackingConfig())


def history(run, name):
    return [(point.step, point.value) for point in run.store.client.get_metric_history(run.id, name)]


def test_default_store_is_absolute_and_in_the_project(project):
    assert tracking.store_uri(TrackingConfig()) == f"sqlite:///{project}/mlflow.db"
    assert tracking.store_uri(TrackingConfig(uri="sqlite:///other.db")) == f"sqlite:///{project}/other.db"
    assert tracking.store_uri(TrackingConfig(uri="sqlite:////x/y.db")) == "sqlite:////x/y.db"


def test_default_store_of_a_queued_experiment_is_the_projects(project, monkeypatch):
    queued = project / ".dvc" / "tmp" / "exps" / "tmp1"
    queued.mkdir(parents=True)
    monkeypatch.chdir(queued)
    assert tracking.store_uri(TrackingConfig()) == f"sqlite:///{project}/mlflow.db"


def test_environment_overrides_params(project, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking:5000")
    assert tracking.store_uri(TrackingConfig(uri="sqlite:///other.db")) == "http://tracking:5000"


def test_artifacts_lie_beside_the_store(store, project):
    with tracking.run(store, "key", "name") as run:
        tracking.log_json(run, {"a": 1}, "a.json")
    assert list((project / "mlartifacts").rglob("a.json"))
    assert not (project / "mlruns").exists()


@pytest.mark.parametrize("uri", ["./mlruns", "file:///tmp/mlruns", "ftp://x"])
def test_a_store_that_mlflow_does_not_have(project, uri):
    with pytest.raises(StageError, match="known: http"):
        tracking.open_store(TrackingConfig(uri=uri))


def test_unreachable_server_is_one_line_within_seconds(project):
    with socket.socket() as taken:  # bound, and not listening
        taken.bind(("127.0.0.1", 0))
        began = time.monotonic()
        with pytest.raises(StageError, match="does not answer") as error:
            tracking.open_store(TrackingConfig(uri=f"http://127.0.0.1:{taken.getsockname()[1]}"))
    assert time.monotonic() - began < 20
    assert "\n" not in str(error.value)


def test_unusable_sqlite_is_one_line_at_once(project):
    (project / "folder.db").mkdir()
    (project / "text.db").write_text("not a database " * 100)
    for name in ("folder.db", "text.db"):
        with pytest.raises(StageError, match=rf"{name} cannot be written"):
            tracking.open_store(TrackingConfig(uri=f"sqlite:///{name}"))


def test_reading_makes_no_store(project):
    with pytest.raises(StageError, match="no such file"):
        tracking.open_store(TrackingConfig(uri="sqlite:///none.db"), create=False)
    assert not (project / "none.db").exists()
    store = tracking.open_store(TrackingConfig(experiment="none"), create=False)
    assert store.client.get_experiment_by_name("none") is None


def test_opening_keeps_what_the_user_set(project, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "9")
    import os

    tracking.open_store(TrackingConfig())
    assert "MLFLOW_TRACKING_URI" not in os.environ
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "9"


def test_rows_that_come_twice_or_late_are_logged_once(store):
    first, second, third = ({"kimg": float(kimg), "loss": 1.0 / kimg} for kimg in (1, 2, 3))
    with tracking.run(store, "key", "name") as run:
        tracking.log_stats(run, [first])
    with tracking.run(store, "key", "name") as again:
        tracking.log_stats(again, [third])  # the second came while nobody listened
        tracking.log_stats(again, [third])  # a worker was lost, and its last row comes again
        tracking.log_stats(again, [first, second, third])
    assert sorted(history(run, "loss")) == [(1000, 1.0), (2000, 0.5), (3000, pytest.approx(1 / 3))]


def test_after_a_rollback_the_later_course_is_what_mlflow_shows(store):
    def row(kimg, loss, rollbacks=0):
        return {"kimg": float(kimg), "loss": loss, **({"health/rollbacks": rollbacks} if rollbacks else {})}

    kept, abandoned = row(1, 1.0), [row(2, 9.0), row(3, 9.0)]
    with pytest.raises(KeyboardInterrupt), tracking.run(store, "key", "name") as run:  # noqa: PT012
        for one in (kept, *abandoned, row(2, 0.5, 1)):
            tracking.log_stats(run, [one])
        raise KeyboardInterrupt
    final = [kept, row(2, 0.5, 1), row(3, 0.4, 1), row(4, 0.3, 1)]
    for _ in range(2):
        with tracking.run(store, "key", "name") as again:
            tracking.log_stats(again, [row(2, 0.5, 1)])
            tracking.log_stats(again, final)
    points = sorted(store.client.get_metric_history(run.id, "loss"), key=lambda point: (point.step, point.timestamp))
    assert [point.value for point in points] == [1.0, 9.0, 0.5, 9.0, 0.4, 0.3]
    assert {point.step: point.value for point in points} == {1000 * row["kimg"]: row["loss"] for row in final}


def test_a_value_that_a_table_lacks_is_no_rollback(store):
    rows = [{"kimg": 1.0, "health/rollbacks": math.nan}, {"kimg": 2.0, "health/rollbacks": 1.0}]
    for _ in range(2):
        with tracking.run(store, "key", "name") as run:
            tracking.log_stats(run, rows)
    assert len(history(run, "health/rollbacks")) == 2


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("http://user:secret@host:5000/x", "http://***@host:5000/x"),
        ("postgresql+psycopg2://user:se/cr@t@host/db", "postgresql+psycopg2://***@host/db"),
        ("postgresql:///db?user=me&password=secret", "postgresql:///db?***"),
        ("http://user:s3 cret@host/x", "http://***@host/x"),
        ("http://user@host", "http://***@host"),
        ("http://host/x;token=secret", "http://host/x?***"),
        ("http://host/x#secret", "http://host/x?***"),
        ("postgresql:user:secret@host/db", "postgresql:***"),
        ("http://[::secret", "http:***"),
        ("s3://bucket/folder", "s3://bucket/folder"),
        ("/mnt/me@work/ray", "/mnt/me@work/ray"),
        ("databricks", "databricks"),
        ("sqlite:////home/me@work/mlflow.db", "sqlite:////home/me@work/mlflow.db"),
        ("http://host:5000", "http://host:5000"),
    ],
)
def test_what_is_shown_of_an_address(uri, expected):
    assert tracking.shown(uri) == expected


@pytest.mark.parametrize(
    "uri",
    [
        "http://user:secret@127.0.0.1:1",
        "http://user:s%65cret@127.0.0.1:1",
        "mysql+none://user:secret@h/db",
        "x://user:secret@h",
        "http://user:secret@h:port",
        "postgresql:user:secret@h/db",
        "http://[::secret",
    ],
)
def test_no_password_in_errors(project, monkeypatch, uri):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(StageError, match=r"not answer|known|MLFLOW_TRACKING_URI: .* is not an address") as error:
        tracking.open_store(TrackingConfig())
    assert "secret" not in str(error.value)
    assert "\n" not in str(error.value)


def test_the_secrets_of_addresses_and_of_the_environment_are_cut_from_errors(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "pass word")
    uri = "postgresql://me:s%2Fcret@h/db?sslpassword=key"
    error = ValueError(
        "to https://user:other@host/api?a=b\n failed: s/cret, s%2Fcret, key, pass word (see http://x.org/e)"
    )
    assert (
        tracking._one_line(error, uri) == "to https://***@host/api?*** failed: ***, ***, ***, *** (see http://x.org/e)"
    )


@pytest.mark.parametrize("uri", ["http://user:secret@h", "postgresql://h/db?user=me&password=secret"])
def test_a_password_in_the_parameters_is_refused(project, monkeypatch, uri):
    for variable in ("", f"sqlite:///{project}/mlflow.db"):  # also where it is not used: git and DVC keep it
        monkeypatch.setenv("MLFLOW_TRACKING_URI", variable)
        with pytest.raises(StageError, match=r"^tracking\.uri: .*holds a password.*MLFLOW_TRACKING_URI") as error:
            tracking.open_store(TrackingConfig(uri=uri))
        assert "secret" not in str(error.value)


def test_no_password_in_what_the_gate_gives_as_its_reason(store, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    lost = tracking.Store("http://user:secret@127.0.0.1:1", store.client, store.experiment)
    for ask in (
        lambda: tracking.download(lost, "models:/m/1", tmp_path),
        lambda: tracking.version_by_uri(lost, "models:/m/1"),
    ):
        with pytest.raises(StageError, match=r"not in http://\*\*\*@127") as error:
            ask()
        assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("method", "call"),
    [
        ("search_runs", lambda store, _: tracking.run(store, "key", "name").__enter__()),
        ("search_model_versions", lambda store, _: tracking.find_version(store, "m", "key")),
        ("get_model_version_by_alias", lambda store, _: tracking.version_by_alias(store, "m", "champion")),
        ("set_model_version_tag", lambda store, version: tracking.tag_version(store, version, {"a": "b"})),
        ("set_registered_model_alias", lambda store, version: tracking.set_alias(store, version, "champion")),
        ("log_batch", lambda store, _: tracking.log_stats(tracking.Run(store, "", "", {}), [{"kimg": 1.0, "a": 1.0}])),
    ],
)
def test_a_store_lost_on_the_way_is_one_line(store, monkeypatch, method, call):
    from mlflow.exceptions import MlflowException

    def lost(*_, **__):
        raise MlflowException("API request to http://user:secret@host\nfailed")

    monkeypatch.setattr(store.client, method, lost)
    with pytest.raises(
        StageError, match=r"^tracking store sqlite:.*failed; what was computed is kept.*`dvc repro`"
    ) as e:
        call(store, tracking.Version("m", 1, {}))
    assert "\n" not in str(e.value)
    assert "secret" not in str(e.value)


def test_a_store_that_stops_to_answer_is_one_line(store):
    from mlflow.exceptions import MlflowException
    from requests import HTTPError

    for lost in (MlflowException("connection\nrefused"), HTTPError("connection\nrefused")):
        refusal = pytest.raises(StageError, match=r"connection refused; what was computed is kept")
        with refusal as caught, tracking.run(store, "key", "name"):
            raise lost
        assert "\n" not in str(caught.value)


def test_killed_run_goes_on_without_doubled_points(store):
    with pytest.raises(KeyboardInterrupt), tracking.run(store, "key", "name") as run:  # noqa: PT012
        tracking.log_stats(run, [{"kimg": 1.0, "loss": 3.0}, {"kimg": 2.0, "loss": 2.0}])
        raise KeyboardInterrupt
    assert store.client.get_run(run.id).info.status == "KILLED"
    with tracking.run(store, "key", "name") as again:
        tracking.log_stats(again, [{"kimg": 2.0, "loss": 2.0, "new": 1.0}, {"kimg": 3.0, "loss": 1.0}])
    assert again.id == run.id
    assert history(run, "loss") == [(1000, 3.0), (2000, 2.0), (3000, 1.0)]
    assert history(run, "new") == [(2000, 1.0)]
    assert store.client.get_run(run.id).info.status == "FINISHED"


def test_failed_run_says_so(store):
    with pytest.raises(ValueError, match="x"), tracking.run(store, "key", "name") as run:
        raise ValueError("x")
    assert store.client.get_run(run.id).info.status == "FAILED"


def test_more_points_than_a_request_holds_and_values_that_are_no_numbers(store):
    with tracking.run(store, "key", "name") as run:
        rows = [{"kimg": float(i), "a": float(i), "b": 0.0} for i in range(700)]
        tracking.log_stats(run, [*rows, {"kimg": 700.0, "a": math.nan}])
    assert len(history(run, "a")) == 701
    assert math.isnan(history(run, "a")[-1][1])


def test_trials_are_children(store):
    with (
        tracking.run(store, "search", "search") as parent,
        tracking.run(store, "search/1", "trial", parent=parent) as child,
    ):
        pass
    assert store.client.get_run(child.id).data.tags["mlflow.parentRunId"] == parent.id


def test_params_are_flat_and_the_first_stay(store):
    with tracking.run(store, "key", "name") as run:
        tracking.log_params(run, {"a": {"b": [1, 2], "c": {}}, "d": "text"})
        tracking.log_params(run, {"d": "changed", "e": None})
    assert store.client.get_run(run.id).data.params == {
        "a.b": "[1, 2]",
        "a.c": "{}",
        "d": "text",
        "e": "null",
    }


def test_deleted_experiment_is_named(store):
    store.client.delete_experiment(store.experiment)
    with pytest.raises(StageError, match="was deleted"):
        tracking.open_store(TrackingConfig())


def test_missing_alias_and_model(store):
    assert tracking.version_by_alias(store, "none", "champion") is None
    assert tracking.find_version(store, "none", "key") is None
    with pytest.raises(StageError, match="no such model"):
        tracking.version_by_uri(store, "models:/none@champion")
    with pytest.raises(StageError, match="expected models:/NAME@ALIAS"):
        tracking.version_by_uri(store, "runs:/abc")


def test_a_copied_project_does_not_write_into_the_first(store, project, tmp_path_factory, monkeypatch):
    copy = tmp_path_factory.mktemp("copy")
    shutil.copy(project / "mlflow.db", copy)
    monkeypatch.chdir(copy)
    with pytest.raises(StageError, match=rf"{copy}/mlflow.db came from another folder.* in {project}/mlartifacts"):
        tracking.open_store(TrackingConfig())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{project}/mlflow.db")  # shared knowingly
    assert tracking.open_store(TrackingConfig()).experiment == store.experiment


class Server:
    """A proxy of the store's client that can be taken down, now or after `left` calls: each call then fails."""

    def __init__(self, client):
        self.client, self.down, self.calls, self.left = client, False, 0, math.inf

    def __getattr__(self, name):
        from mlflow.exceptions import MlflowException

        def call(*args, **kwargs):
            self.calls, self.left = self.calls + 1, self.left - 1
            if self.down or self.left < 0:
                raise MlflowException("connection refused: [/html]")
            return getattr(self.client, name)(*args, **kwargs)

        return call


@pytest.fixture
def server(project, monkeypatch):
    """The store behind a `Server`; a call to it is tried at once after a failure."""
    import mlflow

    real = mlflow.MlflowClient(tracking_uri=f"sqlite:///{project}/mlflow.db")
    server = Server(real)
    monkeypatch.setattr(mlflow, "MlflowClient", lambda **_: server)
    monkeypatch.setattr(tracking, "PAUSE_SECONDS", 0.0)
    return server


def work(server, down, project):
    """Log a search of one trial as a stage does, with the store down in the parts of the work that `down` names."""
    samples = project / "samples"
    samples.mkdir(exist_ok=True)
    (samples / "1.png").write_bytes(b"png")
    server.down = "start" in down
    outbox = tracking.open_outbox(TrackingConfig())
    with (
        tracking.try_run(outbox, "search", "search", tags={"stage": "tune"}) as parent,
        tracking.try_run(outbox, "search/1", "trial", parent=parent) as trial,
    ):
        tracking.log_params(trial, {"lr": {"d": 0.1}})
        tracking.log_stats(trial, [{"kimg": 1.0, "loss": 3.0}])
        server.down = "middle" in down
        tracking.log_stats(trial, [{"kimg": 2.0, "loss": 2.0}])
        tracking.log_folder(trial, samples, "samples")
        (samples / "1.png").write_bytes(b"later")
        server.down = "end" in down
        tracking.log_stats(trial, [{"kimg": 2.0, "loss": 2.0}, {"kimg": 3.0, "loss": math.nan}])
    (samples / "1.png").write_bytes(b"png")
    server.down = False


def logged(project):
    """All runs as `{name: (status, params, points, parent's name)}`, and the artifacts' contents."""
    client = tracking.open_store(TrackingConfig()).client
    runs = client.search_runs([client.get_experiment_by_name("ganlib").experiment_id])
    names = {run.info.run_id: run.info.run_name for run in runs}
    found = [
        (
            run.info.run_name,
            run.info.status,
            run.data.params,
            [
                (p.step, str(p.value))
                for name in run.data.metrics
                for p in client.get_metric_history(run.info.run_id, name)
            ],
            names.get(run.data.tags.get("mlflow.parentRunId")),
            run.data.tags.get("stage"),
        )
        for run in runs
    ]
    return sorted(found, key=str), [file.read_bytes() for file in (project / "mlartifacts").rglob("*.png")]


POINTS = [(1000, "3.0"), (2000, "2.0"), (3000, "nan")]
COMPLETE = (
    [
        ("search", "FINISHED", {}, [], None, "tune"),
        ("trial", "FINISHED", {"lr.d": "0.1"}, POINTS, "search", None),
    ],
    [b"png"],
)


@pytest.mark.parametrize(
    ("down", "outages"),
    [
        ((), 0),
        (("start",), 1),
        (("middle",), 1),
        (("end",), 1),
        (("start", "end"), 2),
        (("start", "middle", "end"), 1),
    ],
)
def test_what_a_lost_store_misses_is_sent_later(server, project, capsys, down, outages):
    work(server, down, project)
    assert capsys.readouterr().out.count("connection refused: [/html]; the work goes on, and ") == outages
    assert logged(project) == COMPLETE
    assert not list((project / ".ganlib/tracking").rglob("entry.json"))
    work(server, (), project)  # the stage is run again, as after a kill
    assert logged(project) == COMPLETE


def test_a_stage_that_runs_again_without_the_store_adds_nothing(server, project):
    for _ in range(2):
        work(server, ("start", "middle", "end"), project)
    assert logged(project) == COMPLETE


def test_a_send_that_is_cut_short_goes_on_where_it_was(server, project, monkeypatch):
    monkeypatch.setattr(tracking, "CLAIM_ATTEMPTS", 1)  # of the claims that are seen here none is alive
    work(server, ("start", "middle", "end"), project)
    for calls in range(100):
        server.left = calls
        try:
            tracking.open_store(TrackingConfig())
            break
        except tracking.StoreError:
            pass
    server.left = math.inf
    assert calls > 5, "it was cut short at several places"
    assert logged(project) == COMPLETE


def test_a_lost_store_is_not_tried_at_every_call(server, project, monkeypatch):
    monkeypatch.setattr(tracking, "PAUSE_SECONDS", 60.0)
    server.down = True
    outbox = tracking.open_outbox(TrackingConfig())
    with tracking.try_run(outbox, "key", "name") as run:
        before = server.calls
        for kimg in range(5):
            tracking.log_stats(run, [{"kimg": float(kimg), "loss": 1.0}])
        assert server.calls == before
        server.down = False
    (found,), _ = logged(project)
    assert len(found[3]) == 5, "the end of the stage tries at once"


def test_an_entry_that_the_store_refuses_names_itself(server, project):
    server.down = True
    outbox = tracking.open_outbox(TrackingConfig())
    with tracking.try_run(outbox, "key", "name") as run:
        tracking.log_stats(run, [{"kimg": 1.0, "a metric?": 1.0}])
    server.down = False
    with pytest.raises(
        tracking.StoreError, match=r"a metric\?.*to give up what is kept in .*/0000000\d, delete it$"
    ) as e:
        tracking.open_store(TrackingConfig())
    assert "\n" not in str(e.value)


def test_an_outbox_that_cannot_be_written_stops_nothing(server, project, capsys, monkeypatch):
    server.down = True
    (project / ".ganlib").write_text("no folder")
    with tracking.try_run(tracking.open_outbox(TrackingConfig()), "key", "name") as run:
        tracking.log_stats(run, [{"kimg": 1.0, "loss": 1.0}])
    assert "log_stats of key is lost: cannot keep it" in capsys.readouterr().out


def test_an_outbox_is_refused_what_only_the_user_can_settle(project):
    with pytest.raises(StageError, match="known: http"):
        tracking.open_outbox(TrackingConfig(uri="ftp://x"))
    store = tracking.open_store(TrackingConfig())
    store.client.delete_experiment(store.experiment)
    with pytest.raises(StageError, match="was deleted"):
        tracking.open_outbox(TrackingConfig())


def test_a_stage_that_fails_says_so_later(server, project):
    server.down = True
    outbox = tracking.open_outbox(TrackingConfig())
    with pytest.raises(KeyboardInterrupt), tracking.try_run(outbox, "key", "name"):
        raise KeyboardInterrupt
    server.down = False
    (found,), _ = logged(project)
    assert found[1] == "KILLED"
