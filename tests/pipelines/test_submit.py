"""`ganlib submit`: what is sent, what comes back, and the whole way over a cluster that asks for a token."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import zipfile
from contextlib import closing, suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
from budgets import NO_EXPORT, SHORT
from ruamel.yaml import YAML

from pipelines import cluster, job, submit
from pipelines._stage import StageError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def clone(checkout):
    return checkout("submit", ready=True)


@pytest.fixture
def sendable(clone, monkeypatch):
    """A project whose files are restored after the test."""
    monkeypatch.chdir(clone.folder)
    yield clone.folder
    clone.run("git", "reset", "--quiet", "--hard")
    clone.run("git", "clean", "--quiet", "--force", "-d", "-x")


def names(file: Path) -> set[str]:
    with zipfile.ZipFile(file) as zipped:
        return set(zipped.namelist())


# -- what is sent ------------------------------------------------------------------------------------------------


def test_a_job_is_sent_what_the_stages_depend_on_and_no_more(sendable, tmp_path):
    for secret in (".dvc/config.local", ".env", "key.pem", ".ganlib/x", "mlflow.db", ".venv/x", "data/raw/own/1.png"):
        (sendable / secret).parent.mkdir(parents=True, exist_ok=True)
        (sendable / secret).write_text("secret")
    (sendable / "data/raw/own.dvc").write_text("outs: []")
    (sendable / "data/prepared").mkdir(parents=True)
    (sendable / "data/prepared/shard.parquet").write_text("large")  # named by data/.gitignore
    submit.pack(sendable, tmp_path / "sent.zip")
    sent = names(tmp_path / "sent.zip")
    assert {
        "params.yaml",
        "params/models/dcgan.yaml",
        "dvc.yaml",
        "dvc.lock",
        ".dvc/config",
        "pipelines/job.py",
        "data/raw/own.dvc",
    } <= sent
    tops = {name.partition("/")[0] for name in sent}
    assert not tops & {"tests", "docs", "outputs", ".git", ".venv", ".ganlib", ".env", "key.pem", "mlflow.db", ".ci"}
    kept = {name for name in sent if name.startswith(("data/prepared", "data/raw/own/", ".dvc/"))}
    assert kept == {".dvc/config", ".dvc/.gitignore"}
    stages = YAML(typ="safe").load(sendable / "dvc.yaml")["stages"].values()
    made = {out for stage in stages for out in stage["outs"]}
    for dep in {
        dep for stage in stages for dep in stage["deps"] if made.isdisjoint([dep, *map(str, Path(dep).parents)])
    }:
        dep = dep.replace("${data}", "mnist").replace("${model}", "dcgan")
        assert any(name == dep or name.startswith(f"{dep}/") for name in sent), f"a job would lack {dep}"


def test_the_same_project_is_the_same_bytes(sendable, tmp_path):
    first = submit.pack(sendable, tmp_path / "1.zip")
    os.utime(sendable / "params.yaml", (0, 0))
    again = submit.pack(sendable, tmp_path / "2.zip")
    assert (first.digest, first.file.read_bytes()) == (again.digest, again.file.read_bytes())
    with (sendable / "params.yaml").open("a") as file:
        file.write("# a comment\n")
    assert submit.pack(sendable, tmp_path / "3.zip").digest != first.digest


def test_too_large_a_project_is_refused_and_its_largest_file_named(sendable, tmp_path, monkeypatch):
    monkeypatch.setattr(submit, "PACKAGE_MIB", 3)
    (sendable / "pictures.bin").write_bytes(bytes(4 * 2**20))
    with pytest.raises(
        StageError, match=r"^the project is [4-6] MiB, more than the 3 .*: pictures\.bin \(4 MiB\), .*ray"
    ):
        submit.pack(sendable, tmp_path / "sent.zip")


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        (
            ".dvc/config",
            "",
            "['remote \"r\"']\nurl = s3://b\nsecret_access_key = x\n",
            r"remote \"r\": secret_access_key",
        ),
        (".dvc/config", "", "['remote \"r\"']\nurl = https://me:x@host/b\n", r"remote \"r\": url is a secret"),
        (".dvc/config", "", "nonsense\n", r"^\.dvc/config: File contains no section headers"),
        (
            "params.yaml",
            "  uri: ",
            "  uri: postgresql://me:x@host/b ",
            r"^tracking\.uri: postgresql://\*\*\*@host/b h",
        ),
        ("params.yaml", "data: mnist", "data: photos", r"^data/raw/photos: not sent .* `dvc add data/raw/photos` and"),
    ],
)
def test_a_secret_or_missing_data_is_refused_before_anything_is_sent(sendable, file, old, new, message):
    text = (sendable / file).read_text()
    assert old in text
    (sendable / file).write_text(text.replace(old, new, 1) if old else new)
    with pytest.raises(StageError, match=message):
        submit._check_project(sendable)


def test_what_git_holds_of_raw_data_is_sent(sendable):
    """Of packaged data sets that is a README in the folder that DVC depends on."""
    text = (sendable / "params.yaml").read_text()
    held = {path.parent.name for path in (sendable / "data/raw").glob("*/README.md")}
    assert {"mnist", "breast_cancer", "surnames"} <= held
    for name in held:
        (sendable / "params.yaml").write_text(text.replace("data: mnist", f"data: {name}", 1))
        submit._check_project(sendable)


def test_data_in_dvc_need_a_remote(sendable):
    text = (sendable / "params.yaml").read_text()
    (sendable / "params.yaml").write_text(text.replace("data: mnist", "data: photos", 1))
    (sendable / "data/raw/photos.dvc").write_text("outs: []")
    with pytest.raises(
        StageError, match=r"^data/raw/photos: in DVC, but .*no default remote .*`dvc remote add --default"
    ):
        submit._check_project(sendable)
    (sendable / ".dvc/config").write_text("[core]\nremote = r\n['remote \"r\"']\nurl = s3://bucket\n")
    submit._check_project(sendable)


def test_experiments_are_refused(sendable):
    with pytest.raises(StageError, match=r"^dvc exp run: experiments need Git"):
        submit.submit(sendable, "http://127.0.0.1:1", ["exp", "run"], pull=True, push=True, wait=True)


# -- what comes back ---------------------------------------------------------------------------------------------


@pytest.fixture
def made(tmp_path) -> Path:
    """A project with results."""
    for name in ("dvc.lock", "outputs/evaluate/metrics.json", "outputs/train/samples/1.png", "data/prepared/shard"):
        (tmp_path / "job" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "job" / name).write_bytes(os.urandom(30_000) + name.encode())
    return tmp_path / "job"


def test_results_come_back_whole_and_break_links(made, tmp_path):
    lines = list(job.pack_results(made))
    assert len(lines) > 3
    assert max(map(len, lines)) < 20_000  # what Ray's reader of logs cuts
    here, cached = tmp_path / "here", tmp_path / "cached"
    (here / "outputs/evaluate").mkdir(parents=True)
    cached.write_text("of another run")
    (here / "outputs/evaluate/metrics.json").hardlink_to(cached)
    back = job.unpack_results(reversed(lines), here)
    assert back == ["dvc.lock", "outputs/evaluate/metrics.json", "outputs/train/samples/1.png"]
    assert all((here / name).read_bytes() == (made / name).read_bytes() for name in back)
    assert sorted(p.name for p in here.rglob("*") if p.is_file()) == ["1.png", "dvc.lock", "metrics.json"]
    assert cached.read_text() == "of another run"


def test_what_is_too_large_for_the_log_is_named(made, monkeypatch):
    monkeypatch.setattr(job, "RESULTS_MIB", 0.06)
    first, *lines = job.pack_results(made)
    assert first == "job: too large for the log: outputs/train/samples/1.png; `dvc pull` brings what was pushed"
    assert all(line.startswith(job.RESULT) for line in lines)


@pytest.mark.parametrize("torn", ["missing", "cut", "none", "large"])
def test_torn_results_change_nothing(made, tmp_path, torn, monkeypatch):
    lines = list(job.pack_results(made))
    if torn == "large":
        monkeypatch.setattr(job, "RESULTS_MIB", 0.01)
    lines = {"missing": lines[1:], "cut": [lines[0][:-9], *lines[1:]], "none": [], "large": lines}[torn]
    with pytest.raises(StageError, match=r"^the job's log does not hold its results whole \(.*\); `dvc pull`"):
        job.unpack_results(lines, tmp_path / "here")
    assert not (tmp_path / "here").exists()


@pytest.mark.parametrize("name", ["pipelines/train.py", "outputs/tune/../../params.yaml", "/etc/x", "dvc.lockx"])
def test_only_results_are_written(made, tmp_path, name, monkeypatch):
    monkeypatch.setattr(zipfile.ZipFile, "write", lambda zipped, file, _: zipped.writestr(name, "print()"))
    (made / "outputs/train/samples/1.png").unlink()
    (made / "outputs/evaluate/metrics.json").unlink()
    with pytest.raises(StageError, match=r"which is no result; nothing was written$"):
        job.unpack_results(job.pack_results(made), tmp_path / "here")
    assert not (tmp_path / "here").exists()


# -- following ---------------------------------------------------------------------------------------------------


class Interrupted:
    """A client whose connection is lost after each piece of the log; `ConnectionError` from then on if `for_good`."""

    def __init__(self, for_good: bool) -> None:
        self.pieces, self.seen, self.for_good = ["one\ntw", "o\nthree\n", "four"], 0, for_good

    async def tail_job_logs(self, _):
        if self.for_good and self.seen:
            raise ConnectionError("refused")
        self.seen += 1
        for piece in self.pieces[: self.seen]:
            yield piece
        await asyncio.sleep(0.1)  # as a job that says nothing
        if self.seen < len(self.pieces):
            raise RuntimeError("WebSocket connection closed unexpectedly")

    def get_job_info(self, _):
        return SimpleNamespace(status=SimpleNamespace(is_terminal=lambda: True))


def test_a_lost_connection_is_made_anew_and_no_line_is_shown_twice(monkeypatch):
    monkeypatch.setattr(submit, "RETRY_S", 0)
    monkeypatch.setattr(submit, "PATIENCE_S", 0.05)  # with a cluster that does not answer, not with a silent job
    shown: list[str] = []
    submit.follow(Interrupted(for_good=False), "job", shown.append)
    assert shown == ["one\n", "two\n", "three\n", "four"]


def test_a_cluster_that_is_gone_is_said(monkeypatch):
    monkeypatch.setattr(submit, "RETRY_S", 0)
    monkeypatch.setattr(submit, "PATIENCE_S", 0.2)
    with pytest.raises(StageError, match=r"^job: the cluster has not answered for 0 s \(refused\); the same command"):
        submit.follow(Interrupted(for_good=True), "job", print)


def test_attempts_are_counted_by_number():
    jobs = [SimpleNamespace(submission_id=f"ganlib-abc{end}", status=SimpleNamespace(value=end)) for end in
            ("", "-9", "-10", "-2")]  # fmt: skip
    client = SimpleNamespace(list_jobs=lambda: [*jobs, SimpleNamespace(submission_id=None, status=None)])
    assert submit._last_attempt(client, "ganlib-abc") == ("ganlib-abc-10", "-10")
    assert submit._last_attempt(client, "ganlib-ab") == ("", None)


# -- a real cluster ----------------------------------------------------------------------------------------------


class Cluster:
    """`ray start --head` with a home folder of its own, and a token in it."""

    def __init__(self, home: Path) -> None:
        self.home, self.started = home, []
        (home / ".ray").mkdir(parents=True)
        (home / ".ray" / "auth_token").write_text("5ec2e7" * 8)
        self.env = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_A", "PYTHONPATH", "DVC_", "MLFLOW"))}
        self.env |= {"HOME": str(home), "OMP_NUM_THREADS": "1", "DVC_NO_ANALYTICS": "1"}
        self.env |= {"MLFLOW_DISABLE_TELEMETRY": "true", "RAY_AUTH_MODE": "token"}
        self.env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), self.env["PATH"]])
        self.scratch = tempfile.mkdtemp(prefix="r")  # short, for Ray's sockets
        self.gcs, self.dashboard, client = self.ports(3)
        self.start("--head", f"--port={self.gcs}", f"--dashboard-port={self.dashboard}",
                   f"--ray-client-server-port={client}", f"--temp-dir={self.scratch}")  # fmt: skip
        self.address, self.url = f"127.0.0.1:{self.gcs}", f"http://127.0.0.1:{self.dashboard}"
        self.wait(1)

    @staticmethod
    def ports(n: int) -> list[int]:
        with_ports = [socket.create_server(("127.0.0.1", 0)) for _ in range(n)]
        found = [server.getsockname()[1] for server in with_ports]
        for server in with_ports:
            server.close()
        return found

    def start(self, *options: str, before: tuple[str, ...] = ()) -> None:
        agent, grpc, runtime_env, metrics = self.ports(4)
        own = (f"--dashboard-agent-listen-port={agent}", f"--dashboard-agent-grpc-port={grpc}",
               f"--runtime-env-agent-port={runtime_env}", f"--metrics-export-port={metrics}")  # fmt: skip
        self.run([*before, "ray", "start", "--block", "--disable-usage-stats", *options, *own])

    def run(self, command: list[str]) -> None:
        with (self.home / "ray.log").open("a") as log:
            self.started.append(
                subprocess.Popen(command, env=self.env, cwd=self.home, stdout=log, stderr=log, start_new_session=True)
            )

    def wait(self, nodes: int) -> None:
        """Until so many nodes are there. On a busy machine Ray gives up its start after 30 s: it is started anew."""
        for _ in range(3):
            while self.started[-1].poll() is None:
                done = self.ask("list", "nodes", "--format", "json")
                if done.returncode == 0 and done.stdout.count('"ALIVE"') == nodes:
                    return
                time.sleep(0.5)
            self.run(self.started.pop().args)
        raise AssertionError(f"no cluster of {nodes} nodes:\n{(self.home / 'ray.log').read_text()}")

    def ask(self, *words: str):
        """`ray WORDS` of this cluster."""
        command = ["ray", *words, "--address", self.url]
        return subprocess.run(command, env=self.env, capture_output=True, text=True)

    def stop(self) -> None:
        for process in reversed(self.started):
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(20)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # what `ray start --block` has left
            process.wait()
        shutil.rmtree(self.scratch, ignore_errors=True)


@pytest.fixture(scope="module")
def ray_cluster(tmp_path_factory):
    made = Cluster(tmp_path_factory.mktemp("cluster") / "home")
    yield made
    made.stop()


@pytest.fixture(scope="module")
def project(checkout, ray_cluster, tmp_path_factory):
    """A small pipeline with a DVC remote; its `scale.ray_address` is of no use in a job."""
    clone = checkout("submitted", ready=True)
    budget = {**SHORT, **NO_EXPORT, "tune.num_samples": 0, "scale.num_workers": 1}
    clone.edit({**budget, "data": "digits", "model": "mlp", "scale.ray_address": "127.0.0.1:1"})
    clone.run("dvc", "remote", "add", "--quiet", "--default", "r", str(tmp_path_factory.mktemp("remote")))
    clone.run("git", "commit", "--quiet", "--all", "--message", "small")
    clone.env.update({"HOME": str(ray_cluster.home), "OMP_NUM_THREADS": "1", "RAY_API_SERVER_ADDRESS": ray_cluster.url})
    clone.env.pop("RAY_AUTH_MODE", None)
    clone.env.update({"AWS_SECRET_ACCESS_KEY": "hunter2", "MLFLOW_TRACKING_PASSWORD": "hunter2"})
    return clone


def ganlib(project, *words: str, **env: str):
    return subprocess.run(
        [sys.executable, "-m", "pipelines.cli", *words],
        cwd=project.folder,
        env={**project.env, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def jobs(ray_cluster) -> dict[str, str]:
    """Of each job submitted, all that the cluster tells of it."""
    told = ray_cluster.ask("job", "list").stdout
    return {part.split("'")[1]: part for part in told.split("submission_id=")[1:] if part.startswith("'")}


@pytest.mark.pipeline
def test_a_submitted_pipeline_does_what_it_does_here(project, ray_cluster):
    start = time.perf_counter()
    done = ganlib(project, "submit")
    print(f"submitted, all stages: {time.perf_counter() - start:.0f} s")
    assert done.returncode == 0, done.stdout
    assert "Running stage 'register'" in done.stdout
    assert job.RESULT not in done.stdout
    ((_, told),) = jobs(ray_cluster).items()
    assert "hunter2" not in told
    sha = project.run("git", "rev-parse", "HEAD").strip()
    assert sha in told
    decision = json.loads((project.folder / "outputs/register/decision.json").read_text())
    assert (decision["model"], decision["decision"]) == ("ganlib-digits", "promoted")
    assert (project.folder / "outputs/evaluate/metrics.json").is_file()
    with closing(sqlite3.connect(ray_cluster.home / ".ganlib/jobs/mlflow.db")) as store:
        tags = dict(store.execute("select key, value from model_version_tags"))
    assert (tags["lineage.git.sha"], tags["lineage.git.dirty"]) == (sha, "false")
    project.run("dvc", "pull", "--quiet")
    assert "up to date" in project.run("dvc", "status")


@pytest.mark.pipeline
def test_the_same_again_brings_the_results_of_the_job_that_was(project, ray_cluster):
    before = jobs(ray_cluster).keys()
    made = (project.folder / "dvc.lock").read_bytes()
    metrics = project.folder / "outputs/evaluate/metrics.json"
    metrics.unlink()
    project.run("git", "checkout", "--quiet", "dvc.lock")
    done = ganlib(project, "submit")
    assert done.returncode == 0, done.stdout
    assert "has succeeded, submitted before" in done.stdout
    assert len(done.stdout.splitlines()) == 2
    assert (project.folder / "dvc.lock").read_bytes() == made
    assert metrics.is_file()
    assert jobs(ray_cluster).keys() == before


@pytest.mark.pipeline
def test_a_failed_job_is_submitted_again_under_a_counted_name(project, ray_cluster):
    for name in ("ganlib-{}: submitted", "ganlib-{}-2: submitted"):
        done = ganlib(project, "submit", "--no-pull", "--", "repro", "no_such_stage")
        assert done.returncode == 255, done.stdout  # DVC's own
        assert "Stage 'no_such_stage' not found" in done.stdout
        digest = done.stdout.split("ganlib-")[1][:12]
        assert name.format(digest) in done.stdout
        assert done.stdout.splitlines()[-1].endswith(": failed with status 255")
    assert {f"ganlib-{digest}", f"ganlib-{digest}-2"} <= jobs(ray_cluster).keys()


@pytest.mark.pipeline
def test_ctrl_c_leaves_the_job_running_and_the_same_again_follows_it(project, ray_cluster):
    command = [sys.executable, "-m", "pipelines.cli", "submit", "--no-push", "--", "repro", "--force", "prepare"]
    with subprocess.Popen(
        ["env", "--default-signal=INT", *command],  # a script's background jobs are deaf to Ctrl-C
        cwd=project.folder,
        env=project.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as first:
        said = []
        for line in first.stdout:
            said.append(line)
            if line.startswith("job: in "):
                first.send_signal(signal.SIGINT)
        assert first.wait() == 130, said
    assert "goes on; the same command follows it, `ray job stop --address http" in said[-1]
    again = ganlib(project, *command[3:])
    assert again.returncode == 0, again.stdout
    assert "submitted before" in again.stdout
    assert "files brought back" in again.stdout


@pytest.mark.pipeline
@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("HOME", "/nonexistent", "asks for a token; no token here: set RAY_AUTH_TOKEN, or copy ~/.ray/auth_token of"),
        (
            "RAY_AUTH_TOKEN",
            "wrong",
            r"refuses the .* here \(RAY_AUTH_TOKEN\)|asks .* refuses the one here \(RAY_AUTH_TOK",
        ),
    ],
)
def test_a_missing_or_wrong_token_is_said_at_once(ray_cluster, variable, value, said, monkeypatch):
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, value)
    with pytest.raises(StageError, match=rf"^--address: the cluster at {ray_cluster.url} ({said})"):
        submit.connect(ray_cluster.url)
    with pytest.raises(StageError, match=rf"^scale\.ray_address: the cluster at {ray_cluster.address} ({said})"):
        cluster._check_token(ray_cluster.address, "scale.ray_address")
    monkeypatch.setenv("HOME", str(ray_cluster.home))
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    assert submit.connect(ray_cluster.url).list_jobs() is not None
    cluster._check_token(ray_cluster.address, "scale.ray_address")


def test_a_port_where_nothing_listens_is_said():
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
    with pytest.raises(StageError, match=rf"^--address: no Ray cluster at {url}: nothing answers there$"):
        submit.connect(url)
    with pytest.raises(
        StageError, match=r"^--address: 'x:6379': expected the address of Ray's dashboard, such as http"
    ):
        submit.connect("x:6379")


def test_a_proxy_that_does_not_answer_is_said(monkeypatch):
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    why = "the proxy of http_proxy does not answer; NO_PROXY lists hosts that are asked without one"
    with pytest.raises(StageError, match=rf"^--address: no Ray cluster at http://127\.0\.0\.1:8265: {why}$"):
        submit.connect(submit.DEFAULT_ADDRESS)


CONNECT = """
import sys
from pathlib import Path
from ganlib.config import load_params
from pipelines._stage import StageError, main
from pipelines.cluster import cluster
from pipelines.inputs import publish
from pipelines.storage import Storage
import ray.tune  # Ray reads its variables when it is imported

params = load_params()
params = params.model_copy(update={"scale": params.scale.model_copy(update={"ray_address": sys.argv[1]})})
def stage(_):
    with cluster(params) as available:
        print("CPUs", available["CPU"])
        folders = Path("data/prepared").absolute(), Path("data/reference").absolute()
        print("data are read", publish(folders, Storage(str(Path.cwd()))) or "in place")
        publish(folders, Storage(sys.argv[2]))
main(stage)
"""


@pytest.mark.pipeline
def test_a_cluster_is_looked_at_node_by_node(project, ray_cluster):
    """One of its nodes, where this can be done, does not see the folder of jobs."""
    folder = ray_cluster.home / ".ganlib" / "jobs"
    folder.mkdir(parents=True, exist_ok=True)
    hidden = os.geteuid() == 0  # others may not mount
    if hidden:
        # nodes on one machine share Ray's session, where each would tidy away what jobs on the other run from
        private = f"{ray_cluster.scratch}/session_latest/runtime_resources"
        hide = f'mount -t tmpfs none {folder.parent} && mount -t tmpfs none {private} && exec "$@"'
        before = ("unshare", "-m", "sh", "-c", hide, "-")
        ray_cluster.start(f"--address={ray_cluster.address}", "--num-cpus=1", before=before)
        ray_cluster.wait(2)

    done = ganlib(project, "doctor", "--address", ray_cluster.url)
    assert done.returncode == int(hidden), done.stdout
    lines = done.stdout.splitlines()
    expected = ("answers", "takes the token", "CPUs, 0 GPUs", f"kept in {folder}", "tracking store", "DVC remote r")
    for part in (*expected, "1 workers need 1 CPUs"):
        assert any(line.startswith("ok") and part in line for line in lines), f"no word of {part}:\n{done.stdout}"
    faults = [line for line in lines if not line.startswith("ok")]
    assert len(faults) == int(hidden)
    assert all(f"it does not see {folder} -> set scale.storage to a folder on a file system" in one for one in faults)

    connected = subprocess.run(
        [sys.executable, "-c", CONNECT, ray_cluster.address, str(folder)],
        cwd=project.folder,
        env=project.env,
        capture_output=True,
        text=True,
    )
    assert connected.returncode == int(hidden), connected.stderr
    assert connected.stdout.startswith("CPUs ")
    assert connected.stdout.endswith("\ndata are read in place\n")
    refusal = connected.stderr.splitlines()
    assert len(refusal) == int(hidden)
    assert all(line.startswith(f"ganlib: scale.storage: {folder} is not the same on ") for line in refusal)
