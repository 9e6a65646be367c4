"""The stage `prepare`: what a person gets for good data, and the one line they get for bad data."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from specs import image_spec

from ganlib import registry, shard_writer, shards
from ganlib.config import DatasetConfig
from ganlib.sources._source import Item
from pipelines import prepare as stage
from pipelines._stage import StageError

FOLDER = {"name": "image_folder"}


def config(source=FOLDER, *, size=(8, 8), channels=1, **more):
    sample = {"kind": "image", "resolution": size, "channels": channels}
    return DatasetConfig.model_validate({"source": source, "sample": sample, "test_share": 0.3, **more})


def save(raw: Path, names, seed=0):
    rng = np.random.default_rng(seed)
    for name in names:
        (raw / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(raw / name)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_digits(prepared, params):
    spec = shards.read_spec(prepared)
    assert spec.shape == (1, *params.dataset.sample.resolution)
    assert sum(spec.counts.values()) == 1797
    card = json.loads((prepared / "card.json").read_text())
    assert card["examples"] == card["items"] == 1797
    assert {split: part["examples"] for split, part in card["splits"].items()} == spec.counts
    train = shards.read(prepared, "train")
    counted = torch.bincount(train["label"]).tolist()
    assert list(card["splits"]["train"]["classes"].values()) == counted
    levels = train["sample"].double() / 255
    assert card["levels"]["mean"] == pytest.approx([levels.mean().item()], abs=1e-5)
    assert card["levels"]["std"] == pytest.approx([levels.std(correction=0).item()], abs=1e-5)
    with Image.open(prepared / "card.png") as picture:
        assert picture.size[0] == picture.size[1]  # ten classes, ten of each


def test_the_card_counts_duplicates_and_rejects(tmp_path, capsys):
    raw = tmp_path / "raw"
    save(raw, [f"{c}/{i}.png" for c in "ab" for i in range(30)])
    (raw / "a" / "again.png").write_bytes((raw / "a" / "0.png").read_bytes())
    (raw / "b" / "other.png").write_bytes((raw / "a" / "1.png").read_bytes())
    (raw / "b" / "broken.png").write_bytes(b"broken")
    stage.prepare(config(max_reject_share=0.1), raw, tmp_path / "out")
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert (card["items"], card["rejected"], card["examples"]) == (63, 1, 60)
    assert (card["duplicates"], card["duplicates_with_another_label"]) == (2, 1)
    with (tmp_path / "out" / "rejects.csv").open(newline="") as file:
        rejects = list(csv.DictReader(file))
    assert rejects == [{"item": "b/broken.png", "reason": "not an image, or of an unknown format"}]
    assert "1 rejected, 2 exact duplicates (1 with another label)" in capsys.readouterr().out


def test_the_same_input_gives_the_same_bytes_in_one_process_and_in_several(tmp_path, monkeypatch):
    raw = tmp_path / "raw"
    save(raw, [f"{c}/{i}.png" for c in "ab" for i in range(300)])
    (raw / "a" / "broken.png").write_bytes(b"broken")
    cfg = config(max_reject_share=0.1)
    stage.prepare(cfg, raw, tmp_path / "one")
    stage.prepare(cfg, raw, tmp_path / "two")
    monkeypatch.setattr(stage, "PARALLEL_FROM_S", 0.0)
    handed = []
    parallel = stage._encode_parallel
    monkeypatch.setattr(
        stage, "_encode_parallel", lambda parts, encode: handed.append(len(parts)) or parallel(parts, encode)
    )
    stage.prepare(cfg, raw, tmp_path / "several")
    assert handed == [2]  # of three parts, after one here
    assert content(tmp_path / "one") == content(tmp_path / "two") == content(tmp_path / "several")


def kill(part: int) -> Iterator[Item]:
    """A part of a source: of several, the third ends the process that reads it."""
    if part == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    yield Item(str(part), np.full((8, 8), part, np.uint8))


def test_a_killed_worker_is_one_clear_line():
    cfg = config().sample
    encode = partial(stage.encode_part, kind="image", cfg=cfg, labelled=False)
    with pytest.raises(StageError, match=r"\Aa process that encoded samples was killed[^\n]*\Z"):
        list(stage._encode_parallel([partial(kill, part) for part in range(8)], encode))


@pytest.mark.parametrize(
    ("sent", "handler", "seconds", "end"),
    [
        (signal.SIGKILL, "default_int_handler", 600, ""),
        (signal.SIGINT, "default_int_handler", 600, "KeyboardInterrupt"),
        (signal.SIGINT, "SIG_IGN", 1, ""),  # it goes on, and so do its workers
    ],
)
def test_workers_end_with_the_stage(sent, handler, seconds, end):
    """SIGINT goes to the whole process group, as Ctrl-C does."""
    script = (
        "import sys; sys.path[:0] = ['tests/pipelines', 'tests', 'tests/ganlib']; from test_prepare import *\n"
        f"signal.signal(signal.SIGINT, signal.{handler})\n"  # whatever those had that ran the tests
        "encode = partial(stage.encode_part, kind='image', cfg=config().sample, labelled=False)\n"
        f"list(stage._encode_parallel([partial(wait, part, {seconds}) for part in range(4)], encode))\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=Path(stage.__file__).parent.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert child.stdout.readline() == "reading\n"
    (os.kill if sent == signal.SIGKILL else os.killpg)(child.pid, sent)
    _, said = child.communicate(timeout=60)  # ends when the last process that holds the pipe has ended
    assert "Process ForkServerProcess" not in said  # a worker's own traceback
    assert ("Traceback" in said) == bool(end)  # the stage's
    assert said.strip().endswith(end)
    assert (child.returncode == 0) == (handler == "SIG_IGN")


def wait(part: int, seconds: float) -> Iterator[Item]:
    os.write(1, b"reading\n")  # at once, next to the other worker
    time.sleep(seconds)
    yield Item(str(part), np.full((8, 8), part, np.uint8))


def test_one_class_is_no_label(tmp_path, capsys):
    save(tmp_path / "raw", [f"only/{i}.png" for i in range(40)])
    stage.prepare(config(), tmp_path / "raw", tmp_path / "out")
    assert shards.read_spec(tmp_path / "out").classes == ()
    assert "label" not in shards.read(tmp_path / "out", "train")
    assert "one class, 'only': treated as unlabelled" in capsys.readouterr().out


@pytest.mark.parametrize(("levels", "dtype", "said"), [(256, "uint16", 1), (4096, "uint16", 16), (256, "uint8", None)])
def test_images_that_are_all_but_black_are_said(tmp_path, capsys, levels, dtype, said):
    """As 8 or 12 bits in pixels of 16 are, where all 16 count."""
    rng = np.random.default_rng(0)
    (tmp_path / "raw").mkdir()
    for i in range(60):
        Image.fromarray(rng.integers(0, levels, (8, 8)).astype(dtype)).save(tmp_path / f"raw/{i}.png")
    stage.prepare(config(), tmp_path / "raw", tmp_path / "out")
    note = f"Pixels of 'sample' are at most {said} of 255 in the training examples looked at"
    assert (note in capsys.readouterr().out) == (said is not None)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ([], "no such folder"),
        (["a.png"], "too few data: of 1 different examples"),
        (
            [f"{i}.png" for i in range(10)],
            r"too few data: of 10 different examples \d are for training and \d for testing, at test_share 0.3 or .*; "
            "10 of each are needed",
        ),
        (["rare/0.png", *(f"b/{i}.png" for i in range(60))], "classes without a training example: rare; "),
        ([f"{i}/0.png" for i in range(60)], r"classes without a training example: .* and \d+ more; "),
    ],
)
def test_too_little_is_one_clear_line(tmp_path, names, said):
    save(tmp_path / "raw", names, seed=8)
    with pytest.raises(StageError, match=said) as raised:
        stage.prepare(config(), tmp_path / "raw", tmp_path / "out")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_classes_without_a_test_example_are_noted(tmp_path):
    save(tmp_path / "raw", [f"{c}/{i}.png" for c in range(40) for i in range(5)])
    stage.prepare(config(test_share=0.1), tmp_path / "raw", tmp_path / "out")
    notes = json.loads((tmp_path / "out" / "card.json").read_text())["notes"]
    (note,) = (note for note in notes if note.startswith("Classes without a test example: "))
    lacking = (torch.bincount(shards.read(tmp_path / "out", "test")["label"], minlength=40) == 0).sum()
    named, more = re.fullmatch(r"Classes without a test example: (.*) and (\d+) more\.", note).groups()
    assert len(named.split(", ")) + int(more) == lacking


def test_a_source_may_say_why_there_is_no_sample():
    items = [Item("a", None), Item("b", None, reason="b lies elsewhere")]
    cfg = config().sample
    (table,) = stage.encode_part(lambda: items, kind="image", cfg=cfg, labelled=False)
    assert table["reason"].to_pylist() == ["there is no readable sample in it", "b lies elsewhere"]


@pytest.mark.parametrize("parallel_from_s", [30.0, -1.0])
def test_a_source_that_breaks_off_is_one_clear_line(tmp_path, monkeypatch, parallel_from_s):
    rng = np.random.default_rng(0)
    cells = pa.array([rng.bytes(100) for _ in range(200)])
    (tmp_path / "raw").mkdir()
    path = tmp_path / "raw" / "a.parquet"
    pq.write_table(pa.table({"image": cells}), path, row_group_size=100, use_dictionary=False)
    broken = bytearray(path.read_bytes())
    start = pq.read_metadata(path).row_group(1).column(0).data_page_offset
    broken[start : start + 2000] = bytes(2000)
    path.write_bytes(broken)
    monkeypatch.setattr(stage, "PARALLEL_FROM_S", parallel_from_s)
    cfg = config({"name": "parquet", "label": None}, max_reject_share=0.9)
    with pytest.raises(StageError, match=r"\A[^\n]*a.parquet: group 1: [^\n]*\Z"):
        stage.prepare(cfg, tmp_path / "raw", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_half_the_files_truncated_stops_and_keeps_what_was(tmp_path):
    raw = tmp_path / "raw"
    save(raw, [f"{i:02d}.png" for i in range(40)])
    stage.prepare(config(), raw, tmp_path / "out")
    before = content(tmp_path / "out")
    for i in range(0, 40, 2):
        path = raw / f"{i:02d}.png"
        path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(StageError, match=r"20 of the first 40 items \(50.0%\) cannot be read, .* 1.0% .*: 00.png \("):
        stage.prepare(config(), raw, tmp_path / "out")
    assert content(tmp_path / "out") == before


def test_killed_half_way_leaves_nothing_to_read(tmp_path):
    save(tmp_path / "data" / "raw" / "photos", [f"{i}.png" for i in range(300)])
    script = (
        "import time; from pathlib import Path; from ganlib import shard_writer; from pipelines import prepare as p\n"
        "from ganlib.config import DatasetConfig\n"
        "write = shard_writer._Writer._write\n"
        "def slow(self, rows): write(self, rows); print('writing', flush=True); time.sleep(60)\n"
        "shard_writer._Writer._write = slow\n"
        f"p.prepare(DatasetConfig.model_validate_json({config().model_dump_json()!r}), "
        "Path('data/raw/photos'), Path('out'))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(stage.__file__).parent.parent)}
    child = subprocess.Popen(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout.readline() == "writing\n"
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert not (tmp_path / "out").exists()
    stage.prepare(config(), tmp_path / "data" / "raw" / "photos", tmp_path / "out")
    assert sum(shards.read_spec(tmp_path / "out").counts.values()) == 300
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []


def test_attributes_travel_with_their_images(tmp_path):
    raw, out = tmp_path / "raw", tmp_path / "out"
    names = [f"{i}.png" for i in range(40)]
    save(raw, names)
    (raw / "list.csv").write_text("image,number,half\n" + "".join(f"{i}.png,{i},{i / 2}\n" for i in range(40)))
    stage.prepare(config({"name": "image_folder", "attributes": "list.csv"}), raw, out)
    assert shards.read_spec(out).attributes == ("number", "half")
    by_number = {}
    for split in ("train", "test"):
        rows = shards.read(out, split)
        assert torch.equal(rows["attributes"][:, 1] * 2, rows["attributes"][:, 0])
        by_number |= dict(zip(rows["attributes"][:, 0].int().tolist(), rows["sample"], strict=True))
    assert len(by_number) == 40
    for number, stored in by_number.items():
        assert np.array_equal(np.asarray(Image.open(raw / f"{number}.png")), stored[0].numpy())
    assert json.loads((out / "card.json").read_text())["attributes"]["number"]["max"] <= 39
    before = shards.read_spec(out).content_hash
    (raw / "list.csv").write_text("image,number,half\n" + "".join(f"{i}.png,{i},0\n" for i in range(40)))
    stage.prepare(config({"name": "image_folder", "attributes": "list.csv"}), raw, tmp_path / "other")
    assert shards.read_spec(tmp_path / "other").content_hash != before


def test_images_without_attributes_are_rejected(tmp_path):
    raw = tmp_path / "raw"
    save(raw, [f"{i}.png" for i in range(20)])
    (raw / "list.csv").write_text("image,number\n" + "".join(f"{i}.png,{i}\n" for i in range(10)))
    with pytest.raises(StageError, match="its attributes are not known"):
        stage.prepare(config({"name": "image_folder", "attributes": "list.csv"}), raw, tmp_path / "out")


# -- anomalies -----------------------------------------------------------------------------------------------


def normal_and_broken(raw: Path) -> None:
    save(raw, [f"good/{i}.png" for i in range(60)], seed=1)
    save(raw, [f"{name}/{i}.png" for name in ("bent", "scratch") for i in range(8)], seed=2)


def test_anomalies_are_in_neither_training_nor_test(tmp_path):
    raw, out = tmp_path / "raw", tmp_path / "out"
    normal_and_broken(raw)
    twice = (raw / "scratch" / "0.png").read_bytes()  # called normal, too: an anomaly all the same
    (raw / "good" / "0.png").write_bytes(twice)
    stage.prepare(config(normal=["good"]), raw, out)
    spec = shards.read_spec(out)
    assert (spec.classes, set(spec.counts), spec.counts["anomalies"]) == ((), {"train", "test", "anomalies"}, 16)
    stored = {split: shards.read(out, split)["sample"] for split in spec.counts}
    anomalies = {
        np.asarray(Image.open(file)).tobytes() for name in ("bent", "scratch") for file in (raw / name).iterdir()
    }
    assert {one.numpy().tobytes() for one in stored["anomalies"]} == anomalies
    assert not anomalies & {one.numpy().tobytes() for split in shards.SPLITS for one in stored[split]}
    card = json.loads((out / "card.json").read_text())
    assert card["splits"]["anomalies"]["classes"] == {"bent": 8, "scratch": 8}
    assert any("Normal is good; 16 examples of other classes" in note for note in card["notes"])


def test_what_is_normal_is_stored_as_if_there_were_no_anomalies(tmp_path):
    """The splits of normal examples, and data without anomalies, do not change by there being such a key."""
    normal_and_broken(tmp_path / "raw")
    save(tmp_path / "few", [f"good/{i}.png" for i in range(60)], seed=1)
    stage.prepare(config(normal=["good"]), tmp_path / "raw", tmp_path / "all")
    stage.prepare(config(), tmp_path / "few", tmp_path / "normals")
    for split in shards.SPLITS:
        mine, theirs = (shards.read(tmp_path / folder, split) for folder in ("all", "normals"))
        assert torch.equal(mine["sample"], theirs["sample"])
    assert {path.name for path in (tmp_path / "normals").glob("*.parquet")} == {
        f"{split}-00000.parquet" for split in shards.SPLITS
    }


def test_several_normal_classes_are_still_classes(tmp_path):
    normal_and_broken(tmp_path / "raw")
    save(tmp_path / "raw", [f"also/{i}.png" for i in range(40)], seed=3)
    stage.prepare(config(normal=["good", "also"]), tmp_path / "raw", tmp_path / "out")
    spec = shards.read_spec(tmp_path / "out")
    assert spec.classes == ("also", "good")
    assert set(shards.read(tmp_path / "out", "train")["label"].tolist()) == {0, 1}
    assert shards.read(tmp_path / "out", "anomalies")["label"].min() >= 2


def test_folders_of_splits_and_of_anomalies(tmp_path):
    """As MVTec's are: normal examples to train on, both sorts to test on, masks beside."""
    raw, out = tmp_path / "raw", tmp_path / "out"
    save(raw, [f"train/good/{i}.png" for i in range(30)], seed=1)
    save(raw, [f"test/good/{i}.png" for i in range(12)], seed=2)
    save(raw, [f"test/scratch/{i}.png" for i in range(9)], seed=3)
    save(raw, [f"ground_truth/scratch/{i}_mask.png" for i in range(9)], seed=4)
    stage.prepare(config({"name": "image_folder", "splits": "folders"}, normal=["good"]), raw, out)
    assert shards.read_spec(out).counts == {"train": 30, "test": 12, "anomalies": 9}
    with pytest.raises(StageError, match="is folders, expected images in train and in test or val"):
        stage.prepare(config({"name": "image_folder", "splits": "folders"}), raw / "train", tmp_path / "other")


@pytest.mark.parametrize(
    ("names", "normal", "said"),
    [
        ([f"{i}.png" for i in range(60)], "good", "normal: the data have no labels, so normal examples cannot be"),
        ([f"good/{i}.png" for i in range(60)], "good", r"normal: names every class \(good\)"),
        (
            [f"{c}/{i}.png" for c in ("good", "bad") for i in range(30)],
            "godo",
            r"normal: 'godo' is not a class; known: bad, good",
        ),
        ([f"good/{i}.png" for i in range(12)] + ["bad/0.png"], "good", r"of 12 normal examples \d+ are for training"),
    ],
)
def test_anomalies_that_cannot_be_told_are_one_clear_line(tmp_path, names, normal, said):
    save(tmp_path / "raw", names)
    with pytest.raises(StageError, match=said) as raised:
        stage.prepare(config(normal=[normal]), tmp_path / "raw", tmp_path / "out")
    assert "\n" not in str(raised.value)


def test_examples_without_a_label_may_be_kept(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "raw").mkdir()
    cells = []
    for _ in range(60):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(file, "png")
        cells.append(file.getvalue())
    labels = ["a", "b", None] * 20
    pq.write_table(pa.table({"image": cells, "label": labels}), tmp_path / "raw" / "a.parquet")
    source = {"name": "parquet"}
    with pytest.raises(StageError, match=r"\(it has no label\); unlabelled: keep keeps examples without a label$"):
        stage.prepare(config(source), tmp_path / "raw", tmp_path / "out")
    with pytest.raises(StageError, match=r"\(it has no label\)$"):
        stage.prepare(config(source, normal=["a"]), tmp_path / "raw", tmp_path / "out")
    stage.prepare(config(source, unlabelled="keep"), tmp_path / "raw", tmp_path / "out")
    spec = shards.read_spec(tmp_path / "out")
    assert (spec.classes, spec.unlabelled) == (("a", "b"), 20)
    found = torch.cat([shards.read(tmp_path / "out", split)["label"] for split in shards.SPLITS])
    assert torch.bincount(found + 1).tolist() == [20, 20, 20]
    assert "20 examples have no label" in json.loads((tmp_path / "out" / "card.json").read_text())["notes"][0]
    family = registry.load("models", "mlp")
    with pytest.raises(ValueError, match=r"network.conditioning: 20 examples have no label, .* set it to none"):
        family.build(family.Config(), spec)
    assert family.build(family.Config(conditioning="none"), spec).classes == 0


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_words_for_missing_values_are_no_labels_of_tables(tmp_path, suffix):
    """As pandas reads the file, and as in other columns. With `normal` they would be anomalies."""
    (tmp_path / "raw").mkdir()
    labels = ["good", "NA", "bad", "good", "null"] * 20
    rows = pd.DataFrame({"x": range(100), "quality": labels})
    (rows.to_csv if suffix == "csv" else rows.to_parquet)(tmp_path / f"raw/a.{suffix}", index=False)

    def prepared(**more):
        source = {"name": "csv"} if suffix == "csv" else {"name": "parquet", "image": None}
        data = {"source": {**source, "label": "quality"}, "sample": {"kind": "table"}, "test_share": 0.3, **more}
        stage.prepare(DatasetConfig.model_validate(data), tmp_path / "raw", tmp_path / "out")
        return shards.read_spec(tmp_path / "out")

    with pytest.raises(StageError, match="it has no label"):
        prepared()
    spec = prepared(unlabelled="keep")
    assert (spec.classes, spec.unlabelled) == (("bad", "good"), 40)
    spec = prepared(normal=["good"], max_reject_share=0.5)
    assert (spec.counts["train"] + spec.counts["test"], spec.counts["anomalies"]) == (40, 20)
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert (card["rejected"], card["splits"]["anomalies"]["classes"]) == (40, {"bad": 20})
    with pytest.raises(StageError, match="normal: 'NA' is not a class; known: bad, good"):
        prepared(normal=["NA"])
    data = {"kind": "table", "missing_values": [""]}
    assert prepared(sample=data, unlabelled="keep").classes == ("NA", "bad", "good", "null")


def test_a_class_called_as_a_missing_value_is_noted(tmp_path):
    save(tmp_path / "raw", [f"{name}/{i}.png" for name in ("NA", "EU") for i in range(30)])
    stage.prepare(config(), tmp_path / "raw", tmp_path / "out")
    notes = json.loads((tmp_path / "out" / "card.json").read_text())["notes"]
    assert any(note.startswith("A class is called 'NA': if that means a missing label") for note in notes)


def test_normal_goes_by_labels():
    with pytest.raises(ValueError, match="unlabelled: keep cannot be combined with normal") as raised:
        config(normal=["good"], unlabelled="keep")
    assert "max_reject_share" in str(raised.value)


# -- attributes of any size ----------------------------------------------------------------------------------


def described(raw: Path, numbers: list[str]) -> DatasetConfig:
    save(raw, [f"{i}.png" for i in range(len(numbers))])
    (raw / "a.csv").write_text("path, time, constant\n" + "".join(f"{i}.png, {x}, 1\n" for i, x in enumerate(numbers)))
    return config({"name": "image_folder", "attributes": "a.csv"})


def test_attributes_are_standardised_by_the_training_rows(tmp_path):
    out = tmp_path / "out"
    stage.prepare(described(tmp_path / "raw", [str(1.7e9 + i) for i in range(60)]), tmp_path / "raw", out)
    spec, rows = shards.read_spec(out), {split: shards.read(out, split)["attributes"] for split in shards.SPLITS}
    assert spec.attributes == ("time", "constant")
    assert sorted(torch.cat([*rows.values()])[:, 0].tolist()) == [1.7e9 + i for i in range(60)]  # to the second
    seen = spec.standardise(rows["train"])
    assert seen.dtype == torch.float32
    assert seen[:, 0].mean().abs() < 1e-6
    assert seen[:, 0].std(correction=0) == pytest.approx(1)
    assert (seen[:, 1] == 0).all()
    torch.testing.assert_close(spec.in_own_units(seen), rows["train"], rtol=0, atol=1e-4)
    assert spec.attribute_means[0] == pytest.approx(rows["train"][:, 0].mean().item(), abs=1e-4)
    card = json.loads((out / "card.json").read_text())
    assert "Attribute 'constant' is 1 in all training examples: it tells nothing." in card["notes"]
    assert not any("'time'" in note for note in card["notes"])


def test_a_spec_without_a_scale_leaves_attributes_as_they_are():
    spec = image_spec((1, 8, 8), attributes=("a",))
    assert (
        spec.standardise(torch.tensor([[3.0]])).tolist() == spec.in_own_units(torch.tensor([[3.0]])).tolist() == [[3]]
    )


@pytest.mark.parametrize("wrong", ["1e39", "-4e38", "1e308"])
def test_numbers_that_no_network_could_hold_are_rejects(tmp_path, wrong):
    cfg = described(tmp_path / "raw", [wrong, *(str(i) for i in range(60))])
    cfg = cfg.model_copy(update={"max_reject_share": 0.1})
    stage.prepare(cfg, tmp_path / "raw", tmp_path / "out")
    with (tmp_path / "out" / "rejects.csv").open(newline="") as file:
        assert [row["item"] for row in csv.DictReader(file)] == ["0.png"]
    card = (tmp_path / "out" / "card.json").read_text()
    assert "NaN" not in card
    assert "Infinity" not in card


def test_moments_of_chunks_are_those_of_the_whole():
    rows = np.random.default_rng(0).normal([1.7e9, 0, 5], [300, 1e-3, 0], (1000, 3))
    found = shard_writer.Moments()
    for chunk in np.split(rows, [0, 10, 11, 500]):
        found.add(chunk)
    np.testing.assert_allclose(found.mean, rows.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.std, rows.std(0), rtol=1e-6)
    assert found.std[2] == 0
