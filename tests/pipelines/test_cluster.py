"""Ray's token: who gets it, who can read it, and what is said where it is missing or wrong."""

from __future__ import annotations

import os
import re
import socket
import stat
from concurrent import futures
from pathlib import Path

import grpc
import pytest

from pipelines import cluster
from pipelines._stage import StageError

SECRET = "5ec2e7" * 8


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """An empty home folder, and no variable that says where a token is."""
    for variable in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def keep(home: Path, secret: str) -> Path:
    file = home / ".ray" / "auth_token"
    file.parent.mkdir(exist_ok=True)
    file.write_text(f"{secret}\n")
    return file


def rights(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def gcs():
    """A server that asks for SECRET as Ray's GCS does, or, with `open`, does not: `(address, tokens that it was sent)`.

    `test_submit.py` has the real one.
    """
    servers = []

    def make(open: bool = False):
        sent: list[str | None] = []

        def check_alive(request, context):
            authorization = dict(context.invocation_metadata()).get("authorization")
            sent.append(authorization)
            if not open and authorization != f"Bearer {SECRET}":
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")
            return b""

        server = grpc.server(futures.ThreadPoolExecutor(1))
        method = grpc.unary_unary_rpc_method_handler(check_alive)
        server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler("ray.rpc.NodeInfoGcsService", {"CheckAlive": method})]
        )
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        servers.append(server)
        return f"127.0.0.1:{port}", sent

    yield make
    for server in servers:
        server.stop(None).wait()


def test_a_new_token_is_for_its_owner_only(home):
    cluster.protect_token()
    file = home / ".ray" / "auth_token"
    assert (rights(file.parent), rights(file)) == (0o700, 0o600)
    assert re.fullmatch(r"[0-9a-f]{64}", made := file.read_text())
    assert [path.name for path in file.parent.iterdir()] == ["auth_token"]
    cluster.protect_token()
    assert file.read_text() == made
    assert cluster.token() == (made, str(file))


def test_a_token_that_ray_made_is_taken_from_others_and_kept(home):
    file = keep(home, SECRET)
    file.chmod(0o644)
    file.parent.chmod(0o755)
    cluster.protect_token()
    assert (rights(file.parent), rights(file)) == (0o700, 0o600)
    assert cluster.token()[0] == SECRET


def test_of_two_tokens_made_at_once_the_first_counts(home, monkeypatch):
    def slower(source, target):
        keep(home, SECRET)
        raise FileExistsError

    monkeypatch.setattr(os, "link", slower)
    cluster.protect_token()
    assert cluster.token()[0] == SECRET
    assert len(list((home / ".ray").iterdir())) == 1


@pytest.mark.parametrize("variable", ["RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"])
def test_no_token_is_made_where_the_user_has_said_otherwise(home, monkeypatch, variable):
    monkeypatch.setenv(variable, "disabled")
    cluster.protect_token()
    assert list(home.iterdir()) == []


def test_without_a_home_that_can_be_written_each_run_has_a_token_of_its_own(home, monkeypatch):
    (home / "file").touch()
    monkeypatch.setenv("HOME", str(home / "file"))
    monkeypatch.setenv("RAY_AUTH_TOKEN", "")  # so that what is set is taken back after the test
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    cluster.protect_token()
    secret, place = cluster.token()
    assert place == "RAY_AUTH_TOKEN"
    assert re.fullmatch(r"[0-9a-f]{64}", secret)


def test_a_token_is_looked_for_where_ray_does(home, monkeypatch):
    with pytest.raises(cluster.TokenMissing, match=r"^no token here: set RAY_AUTH_TOKEN, or copy ~/\.ray/auth_token "):
        cluster.token()
    keep(home, "in the file")
    assert cluster.token()[0] == "in the file"
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(home / "other"))
    with pytest.raises(cluster.TokenMissing, match=rf"RAY_AUTH_TOKEN_PATH names {home}/other, which is empty or not"):
        cluster.token()
    (home / "other").write_text("named\n")
    assert cluster.token() == ("named", f"RAY_AUTH_TOKEN_PATH, {home}/other")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "said")
    assert cluster.token() == ("said", "RAY_AUTH_TOKEN")


def test_a_token_that_is_there_is_used(home, monkeypatch):
    cluster._use_token()
    assert "RAY_AUTH_MODE" not in os.environ
    keep(home, SECRET)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    cluster._use_token()
    assert os.environ["RAY_AUTH_MODE"] == "disabled"
    monkeypatch.delenv("RAY_AUTH_MODE")
    cluster._use_token()
    assert os.environ.pop("RAY_AUTH_MODE") == "token"


def test_a_missing_or_wrong_token_is_said_at_once(home, gcs, monkeypatch):
    address, _ = gcs()
    asks = f"^scale.ray_address: the cluster at {address} asks for a token"
    with pytest.raises(StageError, match=rf"{asks}; no token here: set RAY_AUTH_TOKEN, or copy .* to {home}/\.ray/"):
        cluster._check_token(address, "scale.ray_address")
    file = keep(home, "wrong")
    with pytest.raises(StageError, match=rf"{asks}, and refuses the one here \({file}\); copy ~/\.ray/auth_token of"):
        cluster._check_token(address, "scale.ray_address")
    keep(home, SECRET)
    cluster._check_token(address, "scale.ray_address")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pytest.raises(StageError, match=rf"{asks}, and RAY_AUTH_MODE is 'disabled'; unset it"):
        cluster._check_token(address, "scale.ray_address")


def test_a_proxy_for_the_world_is_not_asked_about_a_cluster(home, gcs, monkeypatch):
    """Ray itself goes past it."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy", "grpc_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    assert cluster._refuses(gcs()[0], None)


def test_the_token_is_not_sent_to_who_does_not_ask(home, gcs):
    keep(home, SECRET)
    address, sent = gcs(open=True)
    cluster._check_token(address, "scale.ray_address")
    assert sent == [None]


def test_what_is_no_gcs_is_left_to_ray(home):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    assert not cluster._refuses(address, None)
    cluster._check_token("auto", "scale.ray_address")


def test_a_dashboards_address_is_refused(home):
    with pytest.raises(StageError, match=r"^RAY_ADDRESS: 'http://x:8265' is not a cluster's address; expected HOST:PO"):
        cluster._check_reachable("http://x:8265", "RAY_ADDRESS")


def test_a_jobs_own_cluster_goes_before_params(home, params, monkeypatch):
    far = params.model_copy(update={"scale": params.scale.model_copy(update={"ray_address": "far:6379"})})
    assert (cluster.cluster_address(params.scale), cluster.cluster_address(far.scale)) == (None, "far:6379")
    monkeypatch.setenv("RAY_ADDRESS", "here:6379")
    assert (cluster.cluster_address(params.scale), cluster.cluster_address(far.scale)) == ("here:6379", "here:6379")


def test_of_a_remote_traceback_the_last_line_is_said():
    assert cluster.one_line(RuntimeError("Traceback\n  File …\nValueError: too few\n\n")) == "ValueError: too few"
    assert cluster.one_line(KeyboardInterrupt()) == "KeyboardInterrupt"
