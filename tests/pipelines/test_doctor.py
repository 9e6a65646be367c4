"""`ganlib doctor` looks at everything, shows no password and changes nothing."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipelines import doctor, tracking

ROOT = Path(__file__).parents[2]


@pytest.fixture
def edit(project):
    """A project with the repository's `params.yaml`; `edit(old, new)` changes a part of it."""
    file = project / "params.yaml"
    shutil.copy(ROOT / "params.yaml", file)

    def replace(old, new):
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new))

    return replace


def test_without_git_the_rest_is_looked_at(edit, monkeypatch):
    monkeypatch.setenv("PATH", "")
    found = list(doctor.examine())
    assert [one.status for one in found if one.what == "not a Git repository"] == ["warn"]
    assert any("workers (auto) want" in one.what for one in found)


def test_nothing_is_made(edit, project, monkeypatch):
    storage = project / "far" / "storage"
    monkeypatch.setattr(doctor, "_resources", lambda _: doctor.Finding("ok", ""))
    edit("storage: null", f"storage: {storage}")
    before = (project / "mlflow.db").read_bytes()
    found = list(doctor.examine())
    assert [one.status for one in found if str(storage) in one.what] in (["ok"], ["warn"])
    assert any(one.what.startswith("tracking store") and one.status == "ok" for one in found)
    assert not storage.parent.exists()
    assert (project / "mlflow.db").read_bytes() == before


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
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(4))
    found = list(doctor._gpus())
    assert [one.what.split(";")[0] for one in found] == [f"GPU {i}: NVIDIA H200, 140 GiB" for i in range(3)]
    assert "CUDA 13.0 of torch" in found[0].what
    assert found[0].what.endswith("driver for CUDA 13.2")
    status, what, remedy = doctor._resources(params)
    assert what == "2 workers (auto) want 2 CPUs and 2 GPUs; there are 4 and 3"
    assert (status, remedy) == ("warn", "scale.num_workers: auto is 2, not 3: the batch does not divide into more")


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
    status, what, remedy = doctor._resources(params)
    assert (status, what) == ("warn", "Ray cluster head:6379: not looked at")
    assert "ganlib doctor --address http://HOST:8265" in remedy


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
    found = doctor._look(str(tmp_path / "marker"), ["torch", "no_such_module"])
    assert (found["sees"], found["writes"]) == (False, True)
    assert found["lacks"] == ["it cannot import no_such_module: No module named 'no_such_module'"]
    (tmp_path / "marker").touch()
    assert doctor._look(str(tmp_path / "marker"), [])["sees"]


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
