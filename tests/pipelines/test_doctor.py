"""`ganlib doctor` looks at everything, shows no password and changes nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from params_files import copy_params

from ganlib.config import load_params
from pipelines import doctor, lineage, tracking
from pipelines._stage import StageError
from pipelines.cluster import cluster

ROOT = Path(__file__).parents[2]


@pytest.fixture
def edit(project):
    """A project with the repository's `params.yaml`; `edit(old, new)` changes a part of it."""
    file = project / "params.yaml"
    copy_params(project)

    def replace(old, new):
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new))

    return replace


def test_without_git_the_rest_is_looked_at(edit, monkeypatch):
    monkeypatch.setenv("PATH", "")
    found = list(doctor.examine())
    assert [one.status for one in found if one.what.startswith("Git: not installed, or does not answer: ")] == ["warn"]
    assert [one.status for one in found if one.what.startswith("python: not in PATH")] == ["fail"]
    assert any("workers (auto) need" in one.what for one in found)


def test_nothing_is_made(edit, project, monkeypatch):
    storage = project / "far" / "storage"
    monkeypatch.setattr(doctor, "_resources", lambda _: doctor.Finding("ok", ""))
    edit("  storage: ", f"  storage: {storage} ")
    before = (project / "mlflow.db").read_bytes()
    found = list(doctor.examine())
    assert [one.status for one in found if str(storage) in one.what] in (["ok"], ["warn"])
    assert any(one.what.startswith("tracking store") and one.status == "ok" for one in found)
    assert not storage.parent.exists()
    assert (project / "mlflow.db").read_bytes() == before


def test_a_store_of_another_folder_fails_as_the_run_would(edit, project, monkeypatch):
    monkeypatch.setattr(doctor, "_resources", lambda _: doctor.Finding("ok", ""))
    client = tracking.open_store(load_params().tracking).client
    elsewhere = SimpleNamespace(artifact_location="/old/mlartifacts")
    monkeypatch.setattr(type(client), "get_experiment", lambda self, name: elsewhere)
    (fault,) = (one for one in doctor.examine() if "came from another folder" in one.what)
    assert fault.status == "fail"


def test_names_that_dvc_cannot_write_down_are_named(edit, project, monkeypatch):
    monkeypatch.setattr(doctor, "_resources", lambda _: doctor.Finding("ok", ""))
    raw = project / "data" / "raw" / load_params().data / "a"
    raw.mkdir(parents=True)
    (raw / "café.png").write_bytes(b"")
    assert not [one for one in doctor.examine() if "UTF-8" in one.what]
    for name in (b"caf\xe9.png", b"\xff"):
        (Path(os.fsdecode(os.fsencode(raw) + b"/" + name))).write_bytes(b"")
    (found,) = [one for one in doctor.examine() if "UTF-8" in one.what]
    assert (found.status, found.remedy) == ("fail", "rename these files")
    assert found.what.endswith(r": 2 names are not UTF-8, as DVC needs them: a/caf\xe9.png")


def test_raw_data_that_are_not_there_are_said(edit, project, monkeypatch):
    """DVC depends on the folder, and says no more than that there is no such file."""
    monkeypatch.setattr(doctor, "_resources", lambda _: doctor.Finding("ok", ""))
    raw = Path("data/raw", load_params().data)

    def missing():
        return [(one.status, one.remedy) for one in doctor.examine() if one.what == f"{raw}: no such folder"]

    assert missing() == [("fail", "put the data there; for data that come with a package an empty folder is enough")]
    raw.parent.mkdir(parents=True)
    raw.parent.with_name("raw.dvc").write_text("outs: []")
    assert missing() == [("fail", "`dvc pull data/raw.dvc`")]
    raw.with_name(f"{raw.name}.dvc").write_text("outs: []")
    assert missing() == [("fail", f"`dvc pull {raw}.dvc`")]
    raw.mkdir()
    assert missing() == []


def test_no_password_is_shown(edit, monkeypatch):
    monkeypatch.setattr(doctor, "_resources", lambda _: doctor.Finding("ok", ""))
    for open_store in (tracking.open_store, lambda *_, **__: None):  # it does not answer, and it does
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:1")
        monkeypatch.setattr(tracking, "open_store", open_store)
        text = "\n".join(map(str, doctor.examine()))
        assert "http://***@127.0.0.1:1" in text
        assert "secret" not in text


def test_each_gpu_is_named_and_what_auto_makes_of_them(params, monkeypatch):
    gpu = SimpleNamespace(name="NVIDIA H200", total_memory=140 * 2**30)
    monkeypatch.setattr("torch.backends.cuda.is_built", lambda: True)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda index: gpu)
    monkeypatch.setattr("torch.version.cuda", "13.0")
    monkeypatch.setattr("torch._C._cuda_getDriverVersion", lambda: 13020, raising=False)
    monkeypatch.setattr(doctor, "local_cpus", lambda: 4)
    found = list(doctor._gpus())
    assert [one.what.split(";")[0] for one in found] == [f"GPU {i}: NVIDIA H200, 140 GiB" for i in range(3)]
    assert "CUDA 13.0 of torch" in found[0].what
    assert found[0].what.endswith("driver for CUDA 13.2")
    status, what, remedy = doctor._resources(params)
    assert what == "2 workers (auto) need 2 CPUs and 2 GPUs; there are 4 and 3"
    assert (status, remedy) == ("warn", "scale.num_workers: auto is 2, not 3: the batch does not divide into more")
    alone = params.model_copy(update={"scale": params.scale.model_copy(update={"num_workers": 0})})
    status, what, _ = doctor._resources(alone)
    assert (status, what.split(";")[0]) == ("ok", "training in the stage's own process needs 1 CPUs and 1 GPUs")


@pytest.mark.parametrize(("built", "reason"), [(False, "is built without CUDA"), (True, "does not start")])
def test_a_gpu_that_torch_cannot_use_is_noticed(built, reason, monkeypatch):
    monkeypatch.setattr("torch.backends.cuda.is_built", lambda: built)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(Path, "exists", lambda path: False)
    assert list(doctor._gpus()) == []
    monkeypatch.setattr(Path, "exists", lambda path: str(path) == "/dev/nvidia0")
    (found,) = doctor._gpus()
    assert found.status == "warn"
    assert reason in found.what


@pytest.fixture
def home(tmp_path, monkeypatch):
    for variable in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_a_token_that_others_can_read_is_noticed(home):
    file = home / ".ray" / "auth_token"
    assert doctor._token() == ("ok", f"Ray's token {file}: will be made", "")
    file.parent.mkdir()
    file.write_text("secret")
    file.chmod(0o644)
    status, what, remedy = doctor._token()
    assert (status, remedy.split("`")[1]) == ("warn", f"chmod 600 {file}")
    assert "secret" not in what + remedy
    file.chmod(0o600)
    assert doctor._token() == ("ok", f"Ray's token {file}: readable by you only", "")


def test_a_ray_without_a_token_is_noticed(home, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    assert doctor._token() == ("ok", "Ray's token: in RAY_AUTH_TOKEN", "")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    status, what, remedy = doctor._token()
    assert (status, remedy) == ("warn", "unset it")
    assert what.startswith("RAY_AUTH_MODE=disabled: whoever reaches Ray's ports")


def test_a_home_that_cannot_be_written_is_noticed(home, monkeypatch):
    def nobody():
        raise RuntimeError("Could not determine home directory.")

    (home / "file").touch()
    monkeypatch.setenv("HOME", str(home / "file"))
    assert doctor._token().what.startswith("Ray's token: another for each run, as the home folder holds none: ")
    monkeypatch.setattr(Path, "home", nobody)
    assert doctor._token() == (
        "ok",
        "Ray's token: another for each run, as the home folder holds none: "
        "HOME: not set, and this user has no home folder; set it to a folder of your own",
        "",
    )
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(home / "none"))
    assert doctor._token().status == "fail"


def test_a_temporary_folder_that_is_too_long_is_noticed(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", "/tmp")
    assert doctor._ray_folder() == ("ok", "Ray's session: in /tmp", "")
    monkeypatch.setenv("TMPDIR", f"/tmp/{'long' * 10}")
    status, what, _ = doctor._ray_folder()
    assert status == "warn"
    assert "too long for Ray's sockets: Ray's session is in /tmp, or where RAY_TMPDIR says" in what
    monkeypatch.setenv("RAY_TMPDIR", f"/tmp/{'long' * 10}")
    status, what, _ = doctor._ray_folder()
    assert (status, what.split(":")[0]) == ("fail", "RAY_TMPDIR")


def test_a_cluster_is_named_and_how_to_look_at_it(home, params, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    monkeypatch.setattr("pipelines.cluster._check_reachable", lambda *_: None)
    monkeypatch.setattr("pipelines.cluster._check_token", lambda *_: None)
    status, what, remedy = doctor._resources(params)
    assert (status, what) == ("warn", "Ray cluster head:6379: answers, and is not looked into")
    assert "ganlib doctor --address http://HOST:8265" in remedy


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "127.0.0.1:1"])
def test_an_address_that_a_run_would_refuse_fails_by_the_same_line(home, params, monkeypatch, address):
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(StageError, match=r"^RAY_ADDRESS: ") as refused, cluster(params):
        pass
    found = doctor._resources(params)
    assert (found.status, found.what) == ("fail", str(refused.value))


def run(*command, **env):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **env}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


CPUS = "from pipelines.cluster import local_cpus; print(local_cpus())"


@pytest.mark.skipif(shutil.which("taskset") is None, reason="taskset is of util-linux")
def test_cores_are_those_that_may_be_used():
    first = str(min(os.sched_getaffinity(0)))
    assert run("taskset", "-c", first, sys.executable, "-c", CPUS).stdout.strip() == "1"


def test_rays_cores_are_those_that_doctor_counts(params, monkeypatch):
    asked = {}

    def init(**options):
        asked.update(options)
        raise RuntimeError("enough")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("ray.init", init)
    monkeypatch.setattr("joblib.cpu_count", lambda: 3)
    with pytest.raises(StageError, match="enough"), cluster(params):
        pass
    assert asked["num_cpus"] == 3
    assert doctor._resources(params).what.endswith("there are 3 and 0")


def test_on_one_core_one_worker_runs(params, monkeypatch):
    monkeypatch.setattr("joblib.cpu_count", lambda: 1)  # also of half a core, by a container's quota
    found = doctor._resources(params)
    assert (found.status, found.what.split(" need")[0]) == ("warn", "1 workers (auto)")


def test_a_python_that_is_not_this_one_is_noticed(tmp_path, monkeypatch):
    assert doctor._stage_python().status in ("ok", "fail")
    other = tmp_path / "python"
    other.write_text("#!/bin/sh\necho /usr\n")
    other.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    status, what, remedy = doctor._stage_python()
    assert (status, what) == ("fail", f"python: that in PATH is of /usr, not of {sys.prefix}")
    assert sys.prefix in remedy
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    assert doctor._stage_python() == ("ok", "python in PATH is this one", "")


@pytest.fixture
def repository(project, monkeypatch):
    """A DVC repository, and Git's settings of nobody."""
    monkeypatch.setenv("HOME", str(project))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(project.parent))
    (project / "dvc.yaml").write_text("stages: {register: {cmd: 'true'}}\n")
    return project


def found():
    return {one.what.split(":")[0]: one for one in doctor._repository()}


def test_without_a_repository_doctor_says_what_dvc_says(repository):
    run("dvc", "init", "--quiet", "--no-scm", PATH=str(Path(sys.executable).parent))
    assert found()["DVC repository"].status == "ok"
    assert found()["Git"] == (
        "warn",
        "Git: not a repository: lineage will not know the commit",
        "`git init` and commit",
    )
    (repository / ".dvc/config").write_text("")  # as in an archive of a repository
    assert found()["DVC"].status == "fail"
    assert found()["DVC"].what.endswith("is not a git repository")
    assert found()["DVC"].remedy == "`git init` and commit, or `dvc config --local core.no_scm true`"
    run("git", "init", "--quiet")
    assert found()["DVC repository"].status == "ok"
    assert found()["Git"].remedy == "commit"


def test_a_project_in_a_folder_of_a_dvc_repository_is_one(repository, monkeypatch):
    assert found()["not a DVC repository"].remedy == "run `dvc init`"
    run("dvc", "init", "--quiet", "--no-scm", PATH=str(Path(sys.executable).parent))
    (repository / "gan").mkdir()
    (repository / "dvc.yaml").rename(repository / "gan/dvc.yaml")
    monkeypatch.chdir(repository / "gan")
    assert found()["DVC repository"].status == "ok"


def test_a_repository_that_ignores_this_folder_does_not_hold_it(repository, monkeypatch):
    run("git", "init", "--quiet")
    (repository / ".gitignore").write_text("/gan\n")
    run("git", "add", ".gitignore")
    run("git", "-c", "user.name=x", "-c", "user.email=x@y", "commit", "--quiet", "-m", "x")
    assert lineage.git_fault() == ""
    (repository / "gan").mkdir()
    monkeypatch.chdir(repository / "gan")
    assert lineage._git() == {"git.sha": "none", "git.dirty": "none"}
    assert found()["Git"] == (
        "warn",
        f"Git: {repository} ignores this folder: lineage will not know the commit",
        "`git init` here and commit",
    )


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_another_user_is_said_with_a_remedy_that_helps(repository, params, capsys):
    run("git", "init", "--quiet")
    run("git", "-c", "user.name=x", "-c", "user.email=x@y", "commit", "--quiet", "--allow-empty", "-m", "x")
    assert lineage.git_fault() == ""
    (repository / ".git").chmod(0o755)
    for path in (repository, repository / ".git"):
        os.chown(path, 65534, 65534)
    facts = lineage._git()
    assert facts == {"git.sha": "none", "git.dirty": "none"}
    assert {check.verdict for check in lineage.verify(facts, facts)} == {"unknown"}
    finding = found()["Git"]
    assert (finding.status, finding.what.split(":")[1]) == ("warn", f" another user owns {repository}")
    assert run("bash", "-c", finding.remedy.strip("`")).returncode == 0
    assert lineage.git_fault() == ""
    assert len(lineage._git()["git.sha"]) == 40


def answer(**changes):
    sound = {"Python": "3.11.7", "Ray": "2.60.0", "torch": "2.13.0", "cuda": False, "lacks": [], "sees": True}
    return {**sound, "writes": True, **changes}


@pytest.mark.parametrize(
    ("said", "resources", "what", "remedy"),
    [
        (answer(Ray="2.59.0"), {}, "Ray 2.59.0, here 2.60.0", "install Ray 2.60.0 on that node"),
        (answer(Python="3.12.1"), {}, "Python 3.12.1, here 3.11.7", "install Python 3.11.7"),
        (
            answer(lacks=["it cannot import torch: no module"]),
            {},
            "it cannot import torch",
            "install ganlib's packages",
        ),
        (answer(), {"GPU": 1.0}, "its torch does not see the GPUs", "install torch with CUDA"),
        (answer(sees=False), {}, "it does not see ", "set scale.storage"),
        (answer(writes=False), {}, "it cannot write to ", "give Ray's user"),
        (TimeoutError("no answer in 120 s"), {}, "runs no task: no answer in 120 s", "see Ray's logs"),
    ],
)
def test_what_a_node_lacks_is_named_with_what_to_do(said, resources, what, remedy, tmp_path, monkeypatch):
    node = {"NodeName": "n", "NodeID": "0123456789", "Alive": True, "Resources": {"CPU": 2.0, **resources}}
    gone = {**node, "NodeName": "gone", "Alive": False}
    monkeypatch.setattr("ray.nodes", lambda: [node, gone])
    monkeypatch.setattr(doctor, "on_every_node", lambda *_: {"n (01234567)": said})
    here = {"Python": "3.11.7", "Ray": "2.60.0"}
    dead, fault, _ = doctor._nodes(here, tmp_path / "marker")
    assert (dead.status, dead.what) == ("warn", "node gone (01234567) is dead")
    assert fault.status == "fail"
    assert fault.what.startswith("node n (01234567)")
    assert what in fault.what
    assert fault.remedy.startswith(remedy)


def test_a_node_says_what_it_lacks(tmp_path):
    found = doctor._describe_node(str(tmp_path / "marker"), ["torch", "no_such_module"])
    assert (found["sees"], found["writes"]) == (False, True)
    assert found["lacks"] == ["it cannot import no_such_module: No module named 'no_such_module'"]
    (tmp_path / "marker").touch()
    assert doctor._describe_node(str(tmp_path / "marker"), [])["sees"]


def test_a_cluster_that_cannot_be_reached_is_one_finding(tmp_path):
    (found,) = doctor.examine_cluster("http://127.0.0.1:1", tmp_path)
    assert (found.status, found.what) == (
        "fail", "--address: no Ray cluster at http://127.0.0.1:1: nothing answers there"
    )  # fmt: skip


def test_of_a_job_that_fails_the_findings_and_its_last_word_are_shown(tmp_path, monkeypatch):
    from pipelines import submit

    ended = SimpleNamespace(status=SimpleNamespace(value="FAILED"), driver_exit_code=1)

    def follow(client, job, show):
        for line in ("Traceback\n", f'{doctor.FINDING} {{"status": "ok", "what": "so far"}}\n', "ImportError: x\n"):
            show(line)
        return ended

    for name, fake in {"connect": lambda _: None, "start": lambda *_: None, "follow": follow}.items():
        monkeypatch.setattr(submit, name, fake)
    monkeypatch.setattr(submit, "asks_for_token", lambda _: False)
    answers, open_to_all, first, last = doctor.examine_cluster("http://far:8265", tmp_path)
    assert answers.status == "ok"
    assert open_to_all.what.startswith("it asks for no token")
    assert first == ("ok", "so far", "")
    assert last.what.endswith("failed with status 1; it said last: ImportError: x")
