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
