"""Logging without a store that answers: nothing stops for it, and what it missed is sent later, once."""

from __future__ import annotations

import math

import pytest

from ganlib.config import TrackingConfig
from pipelines import tracking
from pipelines._stage import StageError
from pipelines.outbox import open_outbox, send_kept, try_run


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
    monkeypatch.setattr("pipelines.outbox.PAUSE_SECONDS", 0.0)
    return server


def work(server, down, project):
    """Log a search of one trial as a stage does, with the store down in the parts of the work that `down` names."""
    samples = project / "samples"
    samples.mkdir(exist_ok=True)
    (samples / "1.png").write_bytes(b"png")
    server.down = "start" in down
    outbox = open_outbox(TrackingConfig())
    with (
        try_run(outbox, "search", "search", tags={"stage": "tune"}) as parent,
        try_run(outbox, "search/1", "trial", parent=parent) as trial,
    ):
        trial.log_params({"lr": {"d": 0.1}})
        trial.log_stats([{"kimg": 1.0, "loss": 3.0}])
        server.down = "middle" in down
        trial.log_stats([{"kimg": 2.0, "loss": 2.0}])
        trial.log_folder(samples, "samples")
        (samples / "1.png").write_bytes(b"later")
        server.down = "end" in down
        trial.log_stats([{"kimg": 2.0, "loss": 2.0}, {"kimg": 3.0, "loss": math.nan}])
    (samples / "1.png").write_bytes(b"png")
    server.down = False


def open_and_send():
    """As the stage `register` does."""
    store = tracking.open_store(TrackingConfig())
    send_kept(store, TrackingConfig().experiment)
    return store


def logged(project):
    """All runs as `{name: (status, params, points, parent's name)}`, and the artifacts' contents."""
    store = open_and_send()
    client, runs = store.client, store.client.search_runs([store.experiment])
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
            open_and_send()
            break
        except tracking.StoreError:
            pass
    server.left = math.inf
    assert calls > 5, "it was cut short at several places"
    assert logged(project) == COMPLETE


def test_a_lost_store_is_not_tried_at_every_call(server, project, monkeypatch):
    monkeypatch.setattr("pipelines.outbox.PAUSE_SECONDS", 60.0)
    server.down = True
    outbox = open_outbox(TrackingConfig())
    with try_run(outbox, "key", "name") as run:
        before = server.calls
        for kimg in range(5):
            run.log_stats([{"kimg": float(kimg), "loss": 1.0}])
        assert server.calls == before
        server.down = False
    (found,), _ = logged(project)
    assert len(found[3]) == 5, "the end of the stage tries at once"


def test_an_entry_that_the_store_refuses_names_itself(server, project):
    server.down = True
    outbox = open_outbox(TrackingConfig())
    with try_run(outbox, "key", "name") as run:
        run.log_stats([{"kimg": 1.0, "a metric?": 1.0}])
    server.down = False
    with pytest.raises(
        tracking.StoreError, match=r"a metric\?.*to give up what is kept in .*/0000000\d, delete it$"
    ) as e:
        open_and_send()
    assert "\n" not in str(e.value)


def test_an_outbox_that_cannot_be_written_stops_nothing(server, project, capsys, monkeypatch):
    server.down = True
    (project / ".ganlib").write_text("no folder")
    with try_run(open_outbox(TrackingConfig()), "key", "name") as run:
        run.log_stats([{"kimg": 1.0, "loss": 1.0}])
    assert "log_stats of key is lost: cannot keep it" in capsys.readouterr().out


def test_an_outbox_is_refused_what_only_the_user_can_settle(project):
    with pytest.raises(StageError, match="known: http"):
        open_outbox(TrackingConfig(uri="ftp://x"))
    store = tracking.open_store(TrackingConfig())
    store.client.delete_experiment(store.experiment)
    with pytest.raises(StageError, match="was deleted"):
        open_outbox(TrackingConfig())


def test_a_stage_that_fails_says_so_later(server, project):
    server.down = True
    outbox = open_outbox(TrackingConfig())
    with pytest.raises(KeyboardInterrupt), try_run(outbox, "key", "name"):
        raise KeyboardInterrupt
    server.down = False
    (found,), _ = logged(project)
    assert found[1] == "KILLED"


def test_what_mlflow_would_log_in_a_thread_is_not_lost(project, monkeypatch):
    """MLflow's thread tells nobody that the store did not take a point."""
    from mlflow.exceptions import MlflowException
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    log_batch, down = SqlAlchemyStore.log_batch, True

    def maybe(self, *args, **kwargs):
        if down:
            raise MlflowException("connection refused")
        log_batch(self, *args, **kwargs)

    monkeypatch.setattr(SqlAlchemyStore, "log_batch", maybe)
    monkeypatch.setenv("MLFLOW_ENABLE_ASYNC_LOGGING", "true")
    with try_run(open_outbox(TrackingConfig()), "search", "search") as run:
        run.log_params({"lr": 0.1})
        run.log_stats([{"kimg": 1.0, "loss": 3.0}])
    down = False
    store = open_and_send()
    (found,) = store.client.search_runs([store.experiment])
    assert (found.data.params, found.data.metrics) == ({"lr": "0.1"}, {"loss": 3.0})
