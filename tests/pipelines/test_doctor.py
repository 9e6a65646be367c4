"""`ganlib doctor` looks at everything, shows no password and changes nothing."""

from __future__ import annotations

import shutil
from pathlib import Path

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
    assert any("workers want" in one.what for one in found)


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
