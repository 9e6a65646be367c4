"""Servers that tests start on this machine: PostgreSQL, and MLflow on it. Each is gone when its block ends."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

START_SECONDS = 120


def need_postgresql() -> None:
    """Skip the calling test where PostgreSQL or its driver is missing, but fail in CI, which installs them."""
    missing = []
    if _programs() is None:
        missing.append("PostgreSQL (apt-get install postgresql)")
    if importlib.util.find_spec("psycopg2") is None:
        missing.append("its driver (pip install psycopg2-binary)")
    if missing and os.environ.get("CI"):
        pytest.fail(f"CI lacks {' and '.join(missing)}")
    if missing:
        pytest.skip(f"needs {' and '.join(missing)}")


def _programs() -> Path | None:
    """The folder of `initdb` and `postgres`: Debian's newest, which is not on the PATH, else what is there."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: -float(path.parts[-3]))
    on_path = shutil.which("initdb")
    places = [path.parent for path in [*found, *([Path(on_path)] if on_path else [])]]
    return next((place for place in places if (place / "postgres").is_file()), None)


@contextmanager
def postgresql() -> Iterator[str]:
    """The address of a new, empty database `mlflow` on a socket in a folder of its own; it does not run as root."""
    programs = _programs()
    assert programs is not None, "call need_postgresql() first"
    user = "postgres" if os.geteuid() == 0 else None
    with tempfile.TemporaryDirectory(prefix="ganlib-pg-") as folder:
        if user:
            os.chown(folder, pwd.getpwnam(user).pw_uid, -1)

        def run(*command: str | Path) -> None:
            done = subprocess.run(command, user=user, cwd=folder, capture_output=True, text=True)
            assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"

        run(programs / "initdb", "--pgdata", "data", "--username", "ganlib", "--auth", "trust", "--no-sync")
        options = {"listen_addresses": "", "unix_socket_directories": folder, "fsync": "off"}
        server = subprocess.Popen(
            [
                programs / "postgres",
                "-D",
                "data",
                *(word for item in options.items() for word in ("-c", "=".join(item))),
            ],
            user=user,
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            _wait(lambda: _accepts(folder), server)
            run(programs / "createdb", "--host", folder, "--username", "ganlib", "mlflow")
            yield f"postgresql+psycopg2://ganlib@/mlflow?host={folder}"
        finally:
            server.send_signal(signal.SIGINT)  # a fast shutdown: connections are closed
            server.wait(30)


def _accepts(folder: str) -> bool:
    import psycopg2

    try:
        psycopg2.connect(host=folder, user="ganlib", dbname="postgres").close()
    except psycopg2.OperationalError:
        return False
    return True


class MlflowServer:
    """An MLflow server on a port of this machine. It can be killed, and started again on the same port."""

    def __init__(self, database: str, artifacts: Path):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.database, self.artifacts = database, artifacts
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", self.database]
        command += ["--artifacts-destination", str(self.artifacts), "--port", str(self.port), "--workers", "1"]
        environment = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
        environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # eight more processes
        # a session of its own, so that its workers are killed with it; one worker: each takes seconds to start
        self.process = subprocess.Popen(
            command,
            cwd=self.artifacts,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        _wait(self._answers, self.process)

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False


@contextmanager
def mlflow_server(artifacts: Path) -> Iterator[MlflowServer]:
    """A running MLflow server on a PostgreSQL of its own, its artifacts in a folder."""
    with postgresql() as database:
        server = MlflowServer(database, artifacts)
        server.start()
        try:
            yield server
        finally:
            server.kill()


def _wait(ready, process) -> None:
    end = time.monotonic() + START_SECONDS
    while not ready():
        assert process.poll() is None, f"it ended with {process.returncode}: {process.args}"
        assert time.monotonic() < end, f"it does not answer: {process.args}"
        time.sleep(0.1)
