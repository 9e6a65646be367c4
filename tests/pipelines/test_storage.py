"""Runs are kept in folders and in object stores alike, and by one owner at a time."""

import json
import pickle
import subprocess
import sys
import threading
import time

import pytest

from pipelines import storage
from pipelines.storage import Storage, exclusive


@pytest.mark.parametrize(
    ("address", "below", "parent", "shown"),
    [
        ("/mnt/runs", "/mnt/runs/a/b", "/mnt", "/mnt/runs"),
        ("s3://bucket/runs", "s3://bucket/runs/a/b", "s3://bucket/", "s3://bucket/runs"),
        (
            "s3://bucket/runs?endpoint_override=localhost:9000",
            "s3://bucket/runs/a/b?endpoint_override=localhost:9000",
            "s3://bucket/?endpoint_override=localhost:9000",
            "s3://bucket/runs",
        ),
    ],
)
def test_addresses(address, below, parent, shown):
    here = Storage(address)
    assert (here / "a/b").address == (here / "a" / "b").address == below
    assert here.parent.address == parent
    assert str(here) == shown
    assert (here / "a").name == "a"
    assert pickle.loads(pickle.dumps(here)) == here


@pytest.fixture(params=["folder", "object_store"])
def here(request, tmp_path):
    address = str(tmp_path / "kept") if request.param == "folder" else request.getfixturevalue("object_store")
    return Storage(address) / tmp_path.name


def test_files_and_folders(here, tmp_path):
    assert here.files() == here.folders() == []
    here.write("one", b"1")
    here.write("one", b"2")
    here.write("b/two", b"3")
    (here / "a").write("three", b"4")
    assert (here.files(), here.folders()) == (["one"], ["a", "b"])
    assert (here.read("one"), here.read("b/two"), (here / "a").read("three")) == (b"2", b"3", b"4")
    with pytest.raises(FileNotFoundError):
        here.read("none")
    here.download(tmp_path / "copy")
    assert (tmp_path / "copy" / "b" / "two").read_bytes() == b"3"
    here.remove("one")
    here.remove("one")
    (here / "b").delete()
    (here / "b").delete()
    assert (here.files(), here.folders()) == ([], ["a"])


def test_a_write_that_fails_leaves_what_was(tmp_path, monkeypatch):
    here = Storage(str(tmp_path))
    here.write("one", b"1")
    monkeypatch.setattr(storage.os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        here.write("one", b"2")
    assert here.read("one") == b"1"
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


HOLD = """
import sys, time
from pipelines.storage import Storage, exclusive
with exclusive(Storage(sys.argv[1]), "train-x"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_the_second_waits_for_the_first_and_says_who_it_is(tmp_path, capsys):
    """The first is another process, which is killed: its right ends with it."""
    first = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert first.stdout.readline() == "held\n"
    entered = threading.Event()

    def second():
        with exclusive(Storage(str(tmp_path)), "train-x"):
            entered.set()

    thread = threading.Thread(target=second)
    thread.start()
    assert not entered.wait(1.0)
    assert capsys.readouterr().out.startswith(f"train-x: process {first.pid} on ")
    first.kill()
    first.communicate()
    assert entered.wait(10.0)
    thread.join()


def test_a_lease_is_waited_for_while_it_is_renewed(object_store, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(storage, "BEAT_SECONDS", 0.1)
    here = Storage(object_store) / tmp_path.name
    over, ends = threading.Event(), []

    def first():
        with exclusive(here, "train-x"):
            over.wait(2.0)
            ends.append("first")

    thread = threading.Thread(target=first)
    thread.start()
    while not here.files().count("owner.json"):
        time.sleep(0.01)
    time.sleep(0.5)
    threading.Timer(1.0, over.set).start()
    with exclusive(here, "train-x"):
        ends.append("second")
    thread.join()
    assert ends == ["first", "second"]
    assert "train-x: process " in capsys.readouterr().out
    assert json.loads(here.read("owner.json")) == {}


def test_a_lease_that_nobody_renews_is_taken_over(object_store, tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "BEAT_SECONDS", 0.1)
    here = Storage(object_store) / tmp_path.name
    # by a process that was killed, on a machine whose clock says whatever it says
    here.write("owner.json", json.dumps({"host": "x", "pid": 1, "folder": "/", "token": "t", "beat": 9}).encode())
    start = time.monotonic()
    with exclusive(here, "train-x"):
        assert time.monotonic() - start >= 0.3
