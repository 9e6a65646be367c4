"""What every stage shares: an output folder is the old one or the new one, whatever happens between."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from params_files import ROOT, copy_params

from ganlib.config import ConfigError
from pipelines._stage import StageError, atomic_folder, printable_error, project_folder


def write(final, content):
    with atomic_folder(final) as folder:
        (folder / "file").write_text(content)


@pytest.fixture
def final(tmp_path):
    write(tmp_path / "out", "old")
    return tmp_path / "out"


def test_the_new_folder_takes_the_place_of_the_old(final):
    write(final, "new")
    assert (final / "file").read_text() == "new"
    assert [path.name for path in final.parent.iterdir()] == ["out"]


def test_a_folder_that_is_a_link_to_another_disk_is_replaced_and_what_it_leads_to_stays(final):
    disk = final.rename(final.with_name("disk"))
    for content in ("new", "newer"):
        final.symlink_to(disk)
        write(final, content)
        assert (final / "file").read_text() == content
        assert (disk / "file").read_text() == "old"
        (final / "file").unlink()
        final.rmdir()
    final.symlink_to(final.with_name("lost"))
    write(final, "newest")
    assert sorted(path.name for path in final.parent.iterdir()) == ["disk", "out"]


def test_the_old_folder_stays_if_the_new_cannot_take_its_place(final, monkeypatch):
    rename = Path.rename

    def refusing(path, to):
        if path.name == ".out.partial":
            raise OSError("x")
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", refusing)
    with pytest.raises(OSError, match="x"):
        write(final, "new")
    assert (final / "file").read_text() == "old"
    assert [path.name for path in final.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("placed", [False, True], ids=["before the new was there", "after"])
def test_what_a_kill_between_the_renames_left_is_put_right(final, placed):
    final.rename(final.with_name(".out.old"))
    if placed:
        final.mkdir()
        (final / "file").write_text("new")
    with pytest.raises(KeyboardInterrupt), atomic_folder(final):
        raise KeyboardInterrupt
    assert (final / "file").read_text() == ("new" if placed else "old")
    assert [path.name for path in final.parent.iterdir()] == ["out"]


def test_what_is_said_of_an_error_steers_no_terminal_and_forges_no_line():
    title, clear = "\x1b]0;pwned\x07", "\x1b[2J\u202e"
    assert printable_error(StageError(f"a{title}\nganlib: all good{clear}")) == (
        r"a\x1b]0;pwned\x07 ganlib: all good\x1b[2J\u202e"
    )
    assert printable_error(OSError("a\udcff.png")) == r"a\udcff.png"
    assert printable_error(ConfigError("one: é\ntwo: \x1b[0m")) == "one: é\ntwo: \\x1b[0m"
    assert printable_error(MemoryError()) == "MemoryError"


def test_a_stage_does_not_run_the_code_of_another_folder(tmp_path):
    """`python -m` looks there first, but not with PYTHONSAFEPATH: a worktree would run what is installed."""
    copy_params(tmp_path)
    (tmp_path / "ganlib").mkdir()
    env = {**os.environ, "PYTHONSAFEPATH": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.code"], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (
        1,
        f"ganlib: the code of {ROOT} would run, not that of {tmp_path}; start stages as `python -m` "
        "here, and without PYTHONSAFEPATH\n",
    )
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize("inside", ["", "gan"], ids=["a project", "a project in a folder of DVC's"])
def test_what_must_outlive_a_stage_is_kept_in_the_project(tmp_path, monkeypatch, inside):
    """Where a stage runs and where a person does; DVC tells stages the folder that holds `.dvc`."""
    for root in (tmp_path, tmp_path / ".dvc/tmp/exps/tmp1"):
        here = root / inside
        here.mkdir(parents=True, exist_ok=True)
        (root / ".dvc").mkdir(exist_ok=True)
        (here / "params.yaml").touch()
        monkeypatch.chdir(here)
        monkeypatch.setenv("DVC_ROOT", str(root))
        assert project_folder() == tmp_path / inside
    monkeypatch.chdir(tmp_path / inside)
    monkeypatch.delenv("DVC_ROOT")
    assert project_folder() == tmp_path / inside


@pytest.mark.parametrize("root", ["", ".dvc/tmp/exps/standalone/tmp1"])
@pytest.mark.parametrize("inside", ["", "vision"])
def test_an_experiment_in_a_folder_of_its_own_finds_the_real_one(tmp_path, monkeypatch, root, inside):
    """DVC tells stages the one or the other, by the command that began."""
    checkout = tmp_path / ".dvc/tmp/exps/standalone/tmp1"
    (checkout / ".dvc").mkdir(parents=True)
    (checkout / inside).mkdir(exist_ok=True)
    (checkout / inside / "params.yaml").touch()
    monkeypatch.chdir(checkout / inside)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / root))
    assert project_folder() == tmp_path / inside


def test_a_stage_of_another_folder_of_the_project_finds_it(tmp_path, monkeypatch):
    (tmp_path / "analysis").mkdir()
    monkeypatch.chdir(tmp_path / "analysis")
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    assert project_folder() == tmp_path
