"""Checkpoints are found again whatever happened to those that came after."""

import json
import os

import pytest

from pipelines.checkpoints import Checkpoints
from pipelines.launch import choose
from pipelines.storage import Storage


@pytest.fixture(params=["folder", "object_store"])
def folder(request, tmp_path):
    address = str(tmp_path) if request.param == "folder" else request.getfixturevalue("object_store")
    return Storage(address) / tmp_path.name


@pytest.fixture
def saved(folder, tmp_path):
    """`saved(text, kimg, score)` saves a checkpoint of two files."""
    checkpoints = Checkpoints(folder)

    def save(text, kimg=1.0, score=None):
        files = tmp_path / "files"
        (files / "generator").mkdir(parents=True, exist_ok=True)
        (files / "checkpoint.pt").write_text(text)
        (files / "generator" / "generator.json").write_text(f"{text}!")
        return checkpoints.save(files, kimg=kimg, score=score)

    return save


def texts(folder, one):
    with Checkpoints(folder).as_folder(one) as files:
        return (files / "checkpoint.pt").read_text(), (files / "generator" / "generator.json").read_text()


def test_the_newest_comes_back(folder, saved):
    assert Checkpoints(folder).newest() is None
    saved("a", 1.0)
    newest = saved("b", 2.0, score=3.5)
    assert Checkpoints(folder).newest() == newest
    assert (newest.kimg, newest.score) == (2.0, 3.5)
    assert texts(folder, newest) == ("b", "b!")


def test_two_and_the_best_are_kept(folder, saved):
    scores = [5.0, 1.0, 7.0, None, 6.0, 3.0]
    all_saved = [saved(str(i), float(i), score) for i, score in enumerate(scores)]
    assert folder.folders() == [all_saved[i].name for i in (1, 4, 5)]
    again = Checkpoints(folder)  # another process, which knows but the newest
    assert again.newest() == all_saved[5]
    with again.as_folder(all_saved[5]) as files:
        last = again.save(files, kimg=6.0, score=9.0)
    assert folder.folders() == [all_saved[1].name, all_saved[5].name, last.name]


def test_the_best_is_the_sound_one_with_the_least_score(folder, saved, capsys):
    assert Checkpoints(folder).best() is None
    saved("a", 1.0)
    assert Checkpoints(folder).best() is None
    best, last = saved("b", 2.0, score=3.5), saved("c", 3.0, score=3.5)
    assert Checkpoints(folder).best() == best  # the first of equal ones
    damage(folder, best, "flipped")
    assert Checkpoints(folder).best() == last
    assert f"{best.name}: checkpoint.pt is damaged" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("keep", "scores", "expected", "why"),
    [
        ("best", [3.0, 1.0, 2.0], 1, "it has the least Fréchet distance of all checkpoints"),
        ("best", [3.0, 2.0, 1.0], 2, "the last has the least Fréchet distance of all checkpoints"),
        ("best", [1.0, 2.0, 1.0], 2, "the last has the least Fréchet distance of all checkpoints"),
        ("best", [1.0, 2.0, None], 2, "quality was not measured at the last"),
        ("best", [None, 2.0, 3.0], 1, "it has the least Fréchet distance of all checkpoints"),
        ("last", [3.0, 1.0, 2.0], 2, "train.keep is last"),
    ],
)
def test_what_is_kept_and_why(folder, saved, keep, scores, expected, why):
    each = [saved(str(i), float(i), score) for i, score in enumerate(scores)]
    kept, reason = choose(keep, Checkpoints(folder), each[-1])
    assert kept == each[expected]
    assert reason.startswith(why)


def damage(folder, one, how):
    """Do to a checkpoint what a kill, a power loss or a disk does."""
    place = folder / one.name
    if how == "torn":
        place.remove("manifest.json")
    elif how == "flipped":
        content = bytearray(place.read("checkpoint.pt"))
        content[0] ^= 1
        place.write("checkpoint.pt", bytes(content))
    elif how == "empty":
        place.write("checkpoint.pt", b"")
    elif how == "missing":
        place.remove("generator/generator.json")
    elif how == "manifest":
        place.write("manifest.json", place.read("manifest.json")[:20])
    elif how == "other manifest":
        place.write("manifest.json", b"[1]")


@pytest.mark.parametrize("how", ["torn", "flipped", "empty", "missing", "manifest", "other manifest"])
def test_the_one_before_a_damaged_one_is_used(folder, saved, capsys, how):
    before, after = saved("a", 1.0), saved("b", 2.0)
    damage(folder, after, how)
    assert Checkpoints(folder).newest() == before
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{folder / after.name}: ")
    assert line.endswith("going on from the checkpoint before it")
    assert after.name in folder.folders(), "it was deleted for being unreadable"
    damage(folder, before, how)
    assert Checkpoints(folder).newest() is None


def test_damaged_ones_never_displace_a_sound_one(folder, saved, tmp_path):
    sound, *damaged = [saved(text, float(i)) for i, text in enumerate("abc")][-2:]
    damage(folder, damaged[0], "flipped")
    again = Checkpoints(folder)
    assert again.newest() == sound
    with again.as_folder(sound) as files:
        new = again.save(files, kimg=3.0, score=None)
    assert folder.folders() == [sound.name, damaged[0].name, new.name]
    damage(folder, new, "empty")
    assert Checkpoints(folder).newest() == sound


def test_a_passing_fault_of_reading_is_no_damage(tmp_path, saved, folder, monkeypatch):
    """Nothing is passed over, and nothing deleted, because a read failed."""
    newest = saved("a", 1.0)
    read = Storage.read

    def fails(self, name):
        if name == "checkpoint.pt":
            raise OSError(5, "Input/output error")
        return read(self, name)

    monkeypatch.setattr(Storage, "read", fails)
    with pytest.raises(OSError, match="Input/output error"):
        Checkpoints(folder).newest()
    monkeypatch.setattr(Storage, "read", read)
    assert Checkpoints(folder).newest() == newest


def test_a_full_disk_leaves_nothing_half_written(tmp_path, saved, folder, monkeypatch):
    before = saved("a", 1.0)
    write = Storage.write

    def full(self, name, content):
        if name == "generator/generator.json":
            raise OSError(28, "No space left on device")
        write(self, name, content)

    monkeypatch.setattr(Storage, "write", full)
    with pytest.raises(OSError, match="No space left"):
        saved("b", 2.0)
    monkeypatch.setattr(Storage, "write", write)
    assert Checkpoints(folder).newest() == before
    after = saved("c", 2.0)
    assert Checkpoints(folder).newest() == after
    assert texts(folder, after) == ("c", "c!")


def test_the_manifest_has_what_sha256sum_says(tmp_path, saved, folder):
    one = saved("a", 1.0)
    manifest = json.loads((folder / one.name).read("manifest.json"))
    assert manifest["files"]["checkpoint.pt"] == {
        "bytes": 1,
        "sha256": "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb",
    }
    if folder.local is not None:
        left = [name for _, _, names in os.walk(folder.local) for name in names]
        assert not [name for name in left if name.endswith(".partial")]
