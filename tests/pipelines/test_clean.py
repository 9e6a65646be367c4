"""`ganlib clean` deletes what the rule names, and nothing else."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from ganlib.scratch import scratch_folder
from pipelines import clean
from pipelines.clean import leftovers, sweep_scratch
from pipelines.places import RayFolder
from pipelines.storage import Storage, exclusive

DAY = 86400


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    """A temporary folder of its own, so that nobody's leftovers are touched."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setattr(clean, "ray_folder", lambda: RayFolder(tmp_path / "tmp"))
    return tmp_path / "tmp"


def age(path, days):
    for one in (*path.rglob("*"), path):
        os.utime(one, (time.time() - days * DAY,) * 2)


def test_old_runs_go_and_the_newest_of_each_kind_stays(tmp_path):
    storage = Storage(str(tmp_path / "runs"))
    days = {
        "train-mnist-dcgan-aaaaaaaaaaaa": 30,
        "train-mnist-dcgan-bbbbbbbbbbbb": 20,
        "train-mnist-dcgan-cccccccccccc": 10,
        "train-mnist-mlp-dddddddddddd": 30,
        "tune-mnist-dcgan-eeeeeeeeeeee": 30,
        "a-folder-of-mine": 99,
    }
    for name, old in days.items():
        storage.write(f"{name}/checkpoints/checkpoint-000001-x/checkpoint.pt", b"12345")
        age(tmp_path / "runs" / name, old)
    found = {one.place.rpartition("/")[2]: one for one in leftovers(storage, 7)}
    assert set(found) == {"train-mnist-dcgan-aaaaaaaaaaaa", "train-mnist-dcgan-bbbbbbbbbbbb"}
    first = found["train-mnist-dcgan-aaaaaaaaaaaa"]
    assert (first.bytes, first.why) == (5, "not changed for 30 days, and train-mnist-dcgan-cccccccccccc is newer")
    assert [one.place[-12:] for one in leftovers(storage, 25)] == ["aaaaaaaaaaaa"]
    first.delete()
    assert set(storage.folders()) == set(days) - {"train-mnist-dcgan-aaaaaaaaaaaa"}


def test_a_run_that_somebody_is_at_stays(tmp_path):
    storage = Storage(str(tmp_path / "runs"))
    old, new = "train-digits-mlp-aaaaaaaaaaaa", "train-digits-mlp-bbbbbbbbbbbb"
    for name in (old, new):
        storage.write(f"{name}/x", b"1")
    with exclusive(storage / old, old):
        age(tmp_path / "runs" / old, 30)
        assert list(leftovers(storage, 7)) == []
    age(tmp_path / "runs" / old, 30)
    assert [one.place[-12:] for one in leftovers(storage, 7)] == ["aaaaaaaaaaaa"]


def test_published_data_go_when_no_run_is_at_work(tmp_path):
    storage = Storage(str(tmp_path / "runs"))
    run = "train-digits-mlp-aaaaaaaaaaaa"
    for name, old in ((run, 0), ("inputs/old", 30), ("inputs/new", 1)):
        storage.write(f"{name}/x", b"123")
        age(tmp_path / "runs" / name, old)
    with exclusive(storage / run, run):
        assert list(leftovers(storage, 7)) == []
    (found,) = leftovers(storage, 7)
    assert (found.place, found.bytes) == (str(tmp_path / "runs" / "inputs" / "old"), 3)
    found.delete()
    assert (storage / "inputs").folders() == ["new"]


def test_old_runs_in_an_object_store(object_store, tmp_path):
    storage = Storage(object_store) / tmp_path.name
    for name in ("tune-digits-mlp-aaaaaaaaaaaa", "tune-digits-mlp-bbbbbbbbbbbb"):
        storage.write(f"{name}/trial-0000/x", b"1")
        time.sleep(1.1)  # it tells seconds
    assert list(leftovers(storage, 1)) == []
    (old,) = leftovers(storage, 0)
    assert old.place.endswith("aaaaaaaaaaaa")
    old.delete()
    assert storage.folders() == ["tune-digits-mlp-bbbbbbbbbbbb"]


def test_scratch_of_killed_processes_goes(temporary):
    begin = "import os; from ganlib.scratch import scratch_folder\nwith scratch_folder() as folder: "
    killed = subprocess.run(
        [sys.executable, "-c", begin + "print(folder, flush=True); os.kill(os.getpid(), 9)"],
        env={**os.environ, "TMPDIR": str(temporary)},
        capture_output=True,
        text=True,
    )
    gone = Path(killed.stdout.strip())
    (gone / "checkpoint.pt").write_bytes(b"123")
    with scratch_folder() as used:
        # of another container, where the process may live; and others' names
        kept = {Path(used).name, f"ganlib-{gone.name.split('-')[1]}-1-x", "ganlib-x", "other-1-1-x"}
        for name in kept:
            (temporary / name).mkdir(exist_ok=True)
        (found,) = leftovers(Storage(str(temporary / "runs")), 7)
        assert (found.place, found.bytes) == (str(gone), 3)
        sweep_scratch()
        assert {path.name for path in temporary.iterdir()} == kept
        sweep_scratch([os.getpid()])
        assert {path.name for path in temporary.iterdir()} == kept - {Path(used).name}
        Path(used).mkdir()


def test_ray_sessions_without_a_process_go(temporary):
    ended, running, young = (temporary / "ray" / f"session_2026-01-0{i}_x" for i in (1, 2, 3))
    for session in (ended, running, young):
        session.mkdir(parents=True)
        age(session, 0 if session is young else 1)
    (temporary / "ray" / "session_latest").symlink_to(ended)
    process = subprocess.Popen([sys.executable, "-c", "input()", str(running)], stdin=subprocess.PIPE)
    try:
        (found,) = clean._ray_sessions()
        assert found.place == str(ended)
        found.delete()
        assert running.exists()
    finally:
        process.communicate(b"\n")
