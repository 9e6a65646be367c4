"""The tracking store: where it is, that it answers, and that what is repeated is not doubled."""

from __future__ import annotations

import math
import shutil
import socket
import sqlite3
import time
from contextlib import closing

import pytest

from ganlib.config import TrackingConfig
from pipelines import addresses, tracking
from pipelines._stage import StageError


def history(run, name):
    return [(point.step, point.value) for point in run.store.client.get_metric_history(run.id, name)]


def test_default_store_is_absolute_and_in_the_project(project):
    assert addresses.store_uri(TrackingConfig()) == f"sqlite:///{project}/mlflow.db"
    assert addresses.store_uri(TrackingConfig(uri="sqlite:///other.db")) == f"sqlite:///{project}/other.db"
    assert addresses.store_uri(TrackingConfig(uri="sqlite:////x/y.db")) == "sqlite:////x/y.db"


def test_default_store_of_a_queued_experiment_is_the_projects(project, monkeypatch):
    queued = project / ".dvc" / "tmp" / "exps" / "tmp1"
    (queued / ".dvc").mkdir(parents=True)
    monkeypatch.chdir(queued)
    assert addresses.store_uri(TrackingConfig()) == f"sqlite:///{project}/mlflow.db"


def test_environment_overrides_params(project, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking:5000")
    assert addresses.store_uri(TrackingConfig(uri="sqlite:///other.db")) == "http://tracking:5000"


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


def test_of_a_long_error_the_cause_at_its_end_is_said(project, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with pytest.raises(StageError, match=r"^tracking store http://x:5000 does not answer: .*proxy.*refused") as error:
        tracking.open_store(TrackingConfig(uri="http://x:5000"))
    assert len(str(error.value)) < 500


def test_of_a_long_error_both_ends_are_said():
    text = addresses.error_text(OSError("first " + "x" * 900 + " last"), "http://x")
    assert text.startswith("first ")
    assert " … " in text
    assert text.endswith(" last")


def test_unusable_sqlite_is_one_line_at_once(project):
    (project / "folder.db").mkdir()
    (project / "text.db").write_text("not a database " * 100)
    for name in ("folder.db", "text.db"):
        with pytest.raises(StageError, match=rf"{name} cannot be written"):
            tracking.open_store(TrackingConfig(uri=f"sqlite:///{name}"))


def test_a_store_of_an_unknown_revision_is_one_line(project):
    (project / "mlflow.db").unlink()
    with closing(sqlite3.connect(project / "mlflow.db")) as database:
        database.executescript(
            "CREATE TABLE alembic_version (version_num varchar); INSERT INTO alembic_version VALUES ('abc')"
        )
    with pytest.raises(StageError, match=r"^tracking store sqlite:.* does not answer: Can't locate revision .*'abc'$"):
        tracking.open_store(TrackingConfig())


def test_reading_makes_no_store(project):
    with pytest.raises(StageError, match="no such file"):
        tracking.open_store(TrackingConfig(uri="sqlite:///none.db"), create=False)
    assert not (project / "none.db").exists()
    for remedy in ("no params.yaml", "`ganlib register` makes it"):
        with pytest.raises(StageError, match=f"no such file; .*{remedy}"):
            tracking.open_store(TrackingConfig(uri="sqlite:///none.db"), create=False)
        (project / "params.yaml").touch()
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
    assert addresses.shown(uri) == expected


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
        addresses.error_text(error, uri)
        == "to https://***@host/api?*** failed: ***, ***, ***, *** (see http://x.org/e)"
    )


def test_the_punctuation_after_an_address_hides_nothing_of_it():
    said = "tracking store http://127.0.0.1:5000: no answer of http://x.org/e, or sqlite:////a/b.db."
    assert addresses.error_text(OSError(said), "http://127.0.0.1:5000") == said


@pytest.mark.parametrize("uri", ["http://user:secret@h", "postgresql://h/db?user=me&password=secret"])
def test_a_password_in_the_parameters_is_refused(project, monkeypatch, uri):
    for variable in ("", f"sqlite:///{project}/mlflow.db"):  # also where it is not used: git and DVC keep it
        monkeypatch.setenv("MLFLOW_TRACKING_URI", variable)
        with pytest.raises(StageError, match=r"^tracking\.uri: .*holds a password.*MLFLOW_TRACKING_URI") as error:
            tracking.open_store(TrackingConfig(uri=uri))
        assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("method", "call"),
    [
        ("search_runs", lambda store: tracking.run(store, "key", "name").__enter__()),
        ("log_batch", lambda store: tracking.log_stats(tracking.Run(store, "", "", {}), [{"kimg": 1.0, "a": 1.0}])),
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
        call(store)
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


def test_a_copied_project_does_not_write_into_the_first(store, project, tmp_path_factory, monkeypatch):
    copy = tmp_path_factory.mktemp("copy")
    shutil.copy(project / "mlflow.db", copy)
    monkeypatch.chdir(copy)
    with pytest.raises(StageError, match=rf"{copy}/mlflow.db came from another folder.* in {project}/mlartifacts"):
        tracking.open_store(TrackingConfig())
    assert tracking.open_store(TrackingConfig(), create=False).experiment == store.experiment  # which can be read
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{project}/mlflow.db")  # shared knowingly
    assert tracking.open_store(TrackingConfig()).experiment == store.experiment


@pytest.mark.parametrize("when", ["before the claim", "after the claim"])
def test_a_run_begun_by_two_processes_at_once_is_one(store, monkeypatch, when):
    """Another process begins the run from start to end while this one is about to create it, or has just claimed it."""
    monkeypatch.setattr(time, "sleep", lambda _: None)
    other, create, begun = tracking.open_store(TrackingConfig()), store.client.create_run, []

    def elsewhere():
        with tracking.run(other, "key", "name") as run:
            tracking.log_stats(run, [{"kimg": 1.0, "loss": 1.0}])
            begun.append(run.id)

    def racing(*args, **kwargs):
        monkeypatch.setattr(store.client, "create_run", create)
        if when == "before the claim":
            elsewhere()
        made = create(*args, **kwargs)
        if when == "after the claim":
            elsewhere()
        return made

    monkeypatch.setattr(store.client, "create_run", racing)
    with tracking.run(store, "key", "name") as run:
        tracking.log_stats(run, [{"kimg": 1.0, "loss": 1.0}, {"kimg": 2.0, "loss": 0.5}])
    assert begun == [run.id]
    (only,) = store.client.search_runs([store.experiment])
    assert only.info.run_id == run.id
    assert (only.info.status, history(run, "loss")) == ("FINISHED", [(1000, 1.0), (2000, 0.5)])


def test_an_experiment_made_by_two_processes_at_once_is_one(project, monkeypatch):
    from mlflow import MlflowClient

    find, blind = MlflowClient.get_experiment_by_name, iter([None])
    first = tracking.open_store(TrackingConfig())
    monkeypatch.setattr(MlflowClient, "get_experiment_by_name", lambda self, name: next(blind, find(self, name)))
    assert tracking.open_store(TrackingConfig()).experiment == first.experiment


def test_curves_logged_by_two_processes_at_once_are_logged_once(store):
    rows = [{"kimg": float(kimg), "loss": 1 / kimg, "nan": math.nan} for kimg in (1, 2, 3)]
    other = tracking.open_store(TrackingConfig())
    with tracking.run(store, "key", "name") as run, tracking.run(other, "key", "name") as same:
        tracking.log_past_stats(run, rows)
        tracking.log_past_stats(same, rows)
    assert [step for step, _ in sorted(history(run, "loss"))] == [1000, 2000, 3000]
    assert len(history(run, "nan")) == 3


def test_curves_logged_late_come_after_what_was_rolled_back(store):
    with tracking.run(store, "key", "name") as run:
        tracking.log_stats(run, [{"kimg": 1.0, "loss": 9.0}, {"kimg": 0.5, "loss": 1.0, "health/rollbacks": 1.0}])
    with tracking.run(store, "key", "name") as run:
        tracking.log_past_stats(run, [{"kimg": 1.0, "loss": 0.5, "health/rollbacks": 1.0}])
    assert store.client.get_run(run.id).data.metrics["loss"] == 0.5


def test_a_metric_may_have_the_name_of_any_class(store):
    """A domain's, which is a folder's."""
    with tracking.run(store, "key", "name") as run:
        tracking.log_metrics(run, {"efficientnet_lite0/Van Gogh's (oil) & été/kid.low": 0.5})
    data = store.client.get_run(run.id).data
    assert data.metrics == {"efficientnet_lite0/Van Gogh_s _oil_ _ été/kid.low": 0.5}
