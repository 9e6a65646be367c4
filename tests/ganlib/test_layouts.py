"""How data sets of images lie when they come: what becomes the class, what the split, and what is passed over."""

from __future__ import annotations

import csv
import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ganlib import registry, shards
from ganlib.config import DatasetConfig
from ganlib.data import image
from ganlib.sources import _files
from ganlib.sources._source import SourceError
from pipelines._stage import StageError
from pipelines.prepare import prepare


def picture(level: int, suffix: str = "png") -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (4, 4), level).save(buffer, suffix)
    return buffer.getvalue()


def folder(raw: Path, *names: str) -> Path:
    """Pictures, each of a level that is its number."""
    for level, name in enumerate(names):
        (raw / name).parent.mkdir(parents=True, exist_ok=True)
        (raw / name).write_bytes(picture(level))
    return raw


def write_zip(path: Path, files: dict[str, bytes | str], method: int = zipfile.ZIP_DEFLATED) -> None:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)


def write_tar(path: Path, files: dict[str, bytes | str]) -> None:
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
        for name, content in files.items():
            content = content.encode() if isinstance(content, str) else content
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def load(raw: Path, name: str = "image_folder", **more: object):
    module = registry.load("sources", name)
    return module.load(module.Config(**more), raw)


def read(source) -> dict[str, tuple]:
    """`{id: (class, split, level or the reason why there is none)}`"""
    found = {}
    for part in pickle.loads(pickle.dumps(source)).parts:
        for item in part():
            label = None if item.label is None else source.classes[item.label]
            level = item.reason
            if item.payload is not None:
                level = int(image.read(image.Config(resolution=(4, 4), channels=1), item.payload)[0, 0, 0])
            assert item.id not in found
            found[item.id] = (label, item.split, level)
    assert len(found) == source.count
    return found


def prepared(raw: Path, out: Path, **source: object) -> dict:
    sample = {"kind": "image", "resolution": [4, 4], "channels": 1}
    cfg = {"source": {"name": "image_folder", **source}, "sample": sample, "test_share": 0.3}
    prepare(DatasetConfig.model_validate(cfg), raw, out)
    return json.loads((out / "card.json").read_text())


# -- folders of a split ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["{split}/{cls}/1.png", "{cls}/{split}/1.png", "pets/{split}/images/{cls}/x/1.png"])
@pytest.mark.parametrize(
    "splits",
    [
        {"train": "train", "test": "test"},
        {"training_set": "train", "test_set": "test"},
        {"Training": "train", "Testing": "test"},
        {"train": "train", "val": "test"},
        {"train": "train", "valid": "test"},
        {"train": "train", "validation": "test"},
        {"train": "train", "val": "train", "test": "test"},
        {"train2017": "train", "val2017": "test"},
    ],
)
def test_a_split_around_or_below_the_classes_is_kept(tmp_path, order, splits):
    names = {order.format(split=split, cls=cls): (cls, of) for split, of in splits.items() for cls in ("cat", "dog")}
    source = load(folder(tmp_path, *names))
    assert source.classes == ("cat", "dog")
    assert {name: known[:2] for name, known in read(source).items()} == names
    assert "for testing" in source.notes[0]
    assert {name: known[:2] for name, known in read(load(tmp_path, labels="none")).items()} == {
        name: (None, split) for name, (_, split) in names.items()
    }


def test_a_split_without_classes(tmp_path):
    found = read(load(folder(tmp_path, "train/1.png", "train/2.png", "test/3.png")))
    assert found == {
        "train/1.png": (None, "train", 0),
        "train/2.png": (None, "train", 1),
        "test/3.png": (None, "test", 2),
    }


def test_folders_outside_those_of_the_split_are_left_out_and_counted(tmp_path):
    source = load(folder(tmp_path, "train/good/1.png", "test/bad/1.png", "ground_truth/bad/1_mask.png", "card.png"))
    assert {name: known[:2] for name, known in read(source).items()} == {
        "train/good/1.png": ("good", "train"),
        "test/bad/1.png": ("bad", "test"),
    }
    assert source.passed_over == {"images in ground_truth": 1, "images outside the folders of the split": 1}
    assert load(tmp_path, labels="none", splits="none").count == 4


@pytest.mark.parametrize("classes", [("car", "train"), ("bus", "car", "test"), ("val", "validation"), ("10", "2", "1")])
def test_classes_whose_names_make_no_split(tmp_path, classes):
    source = load(folder(tmp_path, *(f"{name}/1.png" for name in classes)))
    assert sorted(source.classes) == sorted(classes)
    assert {split for _, split, _ in read(source).values()} == {None}


def test_classes_stand_in_natural_order(tmp_path):
    assert load(folder(tmp_path, *(f"class {i}/1.png" for i in (10, 2, 1)))).classes == (
        "class 1",
        "class 2",
        "class 10",
    )


def test_a_test_folder_without_classes_is_said(tmp_path):
    folder(tmp_path, "train/cat/1.png", "train/dog/1.png", "test/1.png")
    with pytest.raises(SourceError, match=r"1 images lie next to class folders \(as test/1.png\)"):
        load(tmp_path)


def test_the_card_says_the_split_and_what_was_passed_over(tmp_path, capsys):
    raw = folder(tmp_path / "raw")
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for i in range(30):
            (raw / split / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 255, (4, 4), dtype=np.uint8)
            Image.fromarray(pixels).save(raw / split / "ab"[i % 2] / f"{i}", "PNG")
    for name in ("readme.txt", "train/.hidden.png", "train/a/movie.heic", "train/a/other.heic", "LICENSE"):
        (raw / name).write_text("nothing to see")
    card = prepared(raw, tmp_path / "out")
    assert card["examples"] == 60
    assert [card["splits"][split]["examples"] for split in ("train", "test")] == [30, 30]
    assert card["passed_over"] == {".heic": 2, ".txt": 1, "hidden": 1, "without a suffix": 1}
    said = capsys.readouterr().out
    assert "The split is that of the folders: train for training, val for testing." in said
    assert "Files that are no items: 2 .heic, 1 .txt, 1 hidden, 1 without a suffix." in said


# -- by content ------------------------------------------------------------------------------------------------------


def test_images_are_known_by_suffix_or_by_content(tmp_path):
    kinds = ("png", "jpeg", "webp", "gif", "bmp", "tiff", "avif", "jpeg2000", "ppm")
    for level, kind in enumerate(kinds):
        for name in (kind, f"{kind}.dat"):
            (tmp_path / name).write_bytes(picture(20 * level, kind))
    (tmp_path / "a.jfif").write_bytes(picture(0, "jpeg"))
    (tmp_path / "broken.jp2").write_bytes(b"broken")
    (tmp_path / "BM.txt").write_text("BM is how a bitmap starts, and this text")
    write_zip(tmp_path / "more.zip", {"x": picture(7), "y.txt": "text", "large": picture(1) + bytes(2**21)})
    source = load(tmp_path, labels="none")
    found = read_levels(source)
    assert set(found) == {
        *kinds,
        *(f"{kind}.dat" for kind in kinds),
        "a.jfif",
        "broken.jp2",
        "more.zip/x",
        "more.zip/large",
    }
    for level, kind in enumerate(kinds):
        assert found[kind] == found[f"{kind}.dat"]
        assert abs(found[kind] - 20 * level) <= 2
    assert source.passed_over == {".txt": 2}


def read_levels(source) -> dict[str, int | None]:
    found = {}
    for part in source.parts:
        for item in part():
            try:
                found[item.id] = int(image.read(image.Config(resolution=(4, 4), channels=1), item.payload)[0, 0, 0])
            except ValueError:
                found[item.id] = None
    return found


# -- tables ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "table",
    [
        "id,breed\n1.png,dog\n2.png,cat\n3.png,dog\n",
        "id,breed\n1,dog\n2,cat\n3,dog\n",
        "\ufefffile_name, label, weight\nimages/1.png, dog, 3\nimages/2.png, cat, 4\nimages/3.png,dog ,5\n",
        ",label,path\n0,dog,./images/1.png\n1,cat,./images/2.png\n2,dog,./images/3.png\n",
        "id;breed\r\n1;dog\r\n2;cat\r\n3;dog\r\n",
    ],
)
def test_images_next_to_labels_csv(tmp_path, table):
    folder(tmp_path, "images/1.png", "images/2.png", "images/3.png")
    (tmp_path / "labels.csv").write_text(table, newline="")
    source = load(tmp_path)
    assert source.classes == ("cat", "dog")
    assert read(source) == {f"images/{i}.png": (name, None, i - 1) for i, name in ((1, "dog"), (2, "cat"), (3, "dog"))}
    assert source.notes == ("The classes are those of labels.csv.",)
    assert source.passed_over == {}
    assert load(tmp_path, labels="none").classes == ()


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_imagefolder_of_hugging_face(tmp_path, suffix):
    folder(tmp_path, "train/1.png", "train/x/2.png", "test/1.png")
    for split, rows in (("train", {"1.png": 10, "x/2.png": 9}), ("test", {"1.png": 9})):
        if suffix == "csv":
            lines = ["file_name,text,label", *(f"{name},a text,{label}" for name, label in rows.items())]
        else:
            lines = [json.dumps({"file_name": name, "label": label}) for name, label in rows.items()]
        (tmp_path / split / f"metadata.{suffix}").write_text("\n".join(lines) + "\n")
    source = load(tmp_path)
    assert source.classes == ("9", "10")
    assert read(source) == {
        "train/1.png": ("10", "train", 0),
        "train/x/2.png": ("9", "train", 1),
        "test/1.png": ("9", "test", 2),
    }


def test_metadata_without_classes_leaves_them_to_folders(tmp_path):
    folder(tmp_path, "a/1.png", "b/1.png")
    (tmp_path / "metadata.csv").write_text("file_name,text\na/1.png,a word\nb/1.png,another\n")
    source = load(tmp_path)
    assert source.classes == ("a", "b")
    assert source.passed_over == {".csv": 1}


def test_rows_without_images_and_images_without_rows_are_rejects(tmp_path):
    folder(tmp_path, "x/1.png", "y/1.png", "2.png", "3.png")
    (tmp_path / "labels.csv").write_text("file,label\n2.png,a\nx/1.png,b\n1.png,b\n9.png,a\n3.png,\n")
    assert read(load(tmp_path)) == {
        "2.png": ("a", None, 2),
        "x/1.png": ("b", None, 0),
        "y/1.png": (None, None, 1),
        "3.png": (None, None, 3),
        "labels.csv, line 4: 1.png": (None, None, "2 images are called so"),
        "labels.csv, line 5: 9.png": (None, None, "there is no such image"),
    }


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "labels.csv",
            "1.png,dog\n2.png,cat\n",
            r"labels.csv: no header: its first line is already of an image \(1.png",
        ),
        (
            "labels.csv",
            "file,a,b\n1.png,0,1\n",
            "labels.csv: no column label or class or .*; it has: a, b; name the one",
        ),
        ("labels.csv", "file,label\n1.png,0,1\n", "labels.csv: line 2: expected 1 classes, found"),
        ("labels.csv", "file,label,label\n1.png,0,1\n", "more than one column is called label"),
        ("labels.csv", f"file,label\n1.png,{'x' * 140_000}\n", "labels.csv: line 2: field larger than field limit"),
        ("labels.csv", "", "labels.csv: expected a first line"),
        ("metadata.jsonl", '{"file_name": "1.png", "label": [1]}\n', "line 1: label is a list"),
        ("metadata.jsonl", '{"file_name": "1.png", "label": 1}\n{\n', "metadata.jsonl: line 2: "),
        ("metadata.jsonl", "[]\n", "line 1: expected an object"),
    ],
)
def test_tables_that_are_wrong_are_one_clear_line(tmp_path, name, text, message):
    folder(tmp_path, "1.png", "2.png")
    (tmp_path / name).write_text(text)
    with pytest.raises(SourceError, match=rf"\A[^\n]*{message}[^\n]*\Z"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ('path;"age, in years"\n1.png;5\n2.png;7\n', "utf-8"),
        ('path,"age; in; years"\n1.png,5\n2.png,7\n', "utf-8-sig"),
        ("path,age; in; years\n1.png,5\n2.png,7\n", "utf-8"),
        ("path\tage, in, years\n1.png\t5\n2.png\t7\n", "utf-16"),
    ],
)
def test_the_delimiter_of_a_table_is_that_of_its_rows(tmp_path, text, encoding):
    folder(tmp_path, "1.png", "2.png")
    (tmp_path / "a.csv").write_text(text, encoding=encoding)
    source = load(tmp_path, attributes="a.csv")
    assert source.attributes[0].startswith("age")
    assert [item.attributes for part in source.parts for item in part()] == [(5.0,), (7.0,)]


@pytest.mark.parametrize(
    ("encoding", "message"),
    [
        ("latin-1", r"labels.csv: byte \d+ is not UTF-8; tables are read in UTF-8, or in UTF-16 with"),
        ("utf-16-le", "labels.csv: its first line has null characters; tables are read in UTF-8, or in UTF-16 with"),
    ],
)
def test_encodings_that_are_not_read_are_one_clear_line(tmp_path, encoding, message):
    folder(tmp_path, "1.png", "2.png")
    text = "file,label\n1.png,b\xe9te\n2.png,cat\n"
    (tmp_path / "labels.csv").write_bytes(
        (text if encoding == "latin-1" else text.replace("\xe9", "e")).encode(encoding)
    )
    with pytest.raises(SourceError, match=rf"\A{message}[^\n]*\Z"):
        load(tmp_path)


def test_a_table_and_its_column_can_be_named(tmp_path):
    folder(tmp_path, "1.png", "2.png")
    (tmp_path / "train.csv").write_text("image,first,second\n1.png,a,b\n2.png,a,c\n")
    assert load(tmp_path).classes == ()
    assert load(tmp_path, table="train.csv", label_column="second").classes == ("b", "c")
    for wrong, message in (
        ({"table": "train.csv"}, "train.csv: no column label"),
        ({"table": "train.csv", "label_column": "third"}, "train.csv: no column third; it has: first, second"),
        ({"table": "other.csv"}, r"source\.table: .*other\.csv: no such file"),
    ):
        with pytest.raises(SourceError, match=message):
            load(tmp_path, **wrong)
    with pytest.raises(ValueError, match="a table of labels goes with labels auto"):
        load(tmp_path, table="train.csv", labels="folders")


def stylegan(labels: object) -> dict[str, bytes | str]:
    """What NVlabs' dataset_tool.py writes, 1,000 images a folder."""
    images = {f"0000{i}/img0000{i}00{i}.png": picture(i) for i in range(3)}
    return {**images, "dataset.json": json.dumps({"labels": labels})}


LABELS = [["00000/img00000000.png", 10], ["00001/img00001001.png", 9], ["00002\\img00002002.png", 10]]


@pytest.mark.parametrize("packed", [True, False])
def test_labels_of_dataset_json(tmp_path, packed):
    if packed:
        write_zip(tmp_path / "cifar.zip", stylegan(LABELS))
    for name, content in {} if packed else stylegan(LABELS).items():
        (tmp_path / "cifar" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "cifar" / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    source = load(tmp_path)
    where = "cifar.zip" if packed else "cifar"
    assert source.classes == ("9", "10")
    assert read(source) == {
        f"{where}/0000{i}/img0000{i}00{i}.png": (label, None, i) for i, label in enumerate(("10", "9", "10"))
    }
    assert source.notes == (f"The classes are those of {where}/dataset.json.",)
    assert source.passed_over == {}


def test_chunks_are_no_classes_where_dataset_json_has_no_labels(tmp_path):
    write_zip(tmp_path / "ffhq.zip", stylegan(None))
    source = load(tmp_path)
    assert (source.classes, source.count) == ((), 3)
    assert source.notes == ("There are no labels in ffhq.zip/dataset.json.",)
    assert load(tmp_path, labels="folders").classes == ("00000", "00001", "00002")
    assert load(tmp_path, table="ffhq.zip/dataset.json").classes == ()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"labels": [', "dataset.json: Expecting value"),
        ('{"labels": [["1.png", [0, 1]]]}', "dataset.json: label 1: label is a list; expected one class"),
        ('{"labels": [["9.png", 1]]}', "dataset.json: none of its 1 rows names an image: dataset.json, label 1: 9.png"),
    ],
)
def test_a_dataset_json_that_is_wrong_is_one_clear_line(tmp_path, content, message):
    (folder(tmp_path, "a/1.png", "b/2.png") / "dataset.json").write_text(content)
    with pytest.raises(SourceError, match=rf"\A[^\n]*{message}[^\n]*\Z"):
        load(tmp_path)


@pytest.mark.parametrize("content", ["", '{"labels": {}}', '{"labels": []}', '{"id": 1}\n{"id": 2}', "é"])
def test_a_dataset_json_without_labels_does_not_hide_the_folders(tmp_path, content):
    (folder(tmp_path, "a/1.png", "b/2.png") / "dataset.json").write_bytes(content.encode("latin-1"))
    source = load(tmp_path)
    assert source.classes == ("a", "b")
    assert source.passed_over == {".json": 1}


@pytest.mark.parametrize("content", ["[]", '{"name": "x"}', '{"labels": {"0": "cat"}}', '{"labels": ["a", "b"]}'])
def test_a_dataset_json_of_another_kind_is_passed_over(tmp_path, content):
    (folder(tmp_path, "a/1.png", "b/2.png") / "dataset.json").write_text(content)
    source = load(tmp_path)
    assert source.classes == ("a", "b")
    assert source.passed_over == {".json": 1}
    with pytest.raises(SourceError, match=r'dataset.json: expected \{"labels": \[\[path, class\], ...\]\}'):
        load(tmp_path, table="dataset.json")


def test_the_first_table_of_a_folder_that_has_classes_is_taken(tmp_path):
    folder(tmp_path, "images/1.png", "images/2.png")
    (tmp_path / "metadata.csv").write_text("file_name,licence,breed\n1.png,cc,x\n2.png,cc,y\n")
    (tmp_path / "labels.csv").write_text("file,label,kind\n1.png,dog,a\n2.png,cat,b\n")
    assert load(tmp_path).classes == ("cat", "dog")
    assert load(tmp_path, label_column="kind").classes == ("a", "b")
    source = load(tmp_path, label_column="breed")
    assert source.classes == ("x", "y")
    assert source.notes == ("The classes are those of metadata.csv.",)
    with pytest.raises(SourceError, match=r"labels\.csv: no column sex; it has: label, kind"):
        load(tmp_path, label_column="sex")


@pytest.mark.parametrize(
    ("splits", "found"),
    [
        ("train train test", ("train", "train", "test")),
        ("Training val train", ("train", "test", "train")),
        ("train validation test", ("train", "train", "test")),
    ],
)
def test_a_column_split_of_a_table_of_labels_is_kept(tmp_path, splits, found):
    folder(tmp_path, "1.png", "2.png", "3.png")
    rows = [f"{i}.png,a,{split}\n" for i, split in enumerate(splits.split(), 1)]
    (tmp_path / "labels.csv").write_text(f"file,breed,Split\n{''.join(rows)}")
    source = load(tmp_path)
    assert tuple(split for _, split, _ in read(source).values()) == found
    assert source.notes[1].startswith("The split is that of the column split: ")
    assert {split for _, split, _ in read(load(tmp_path, splits="none")).values()} == {None}
    (tmp_path / "labels.csv").write_text(f"file,breed,Split\n{''.join(rows)}1.png,b,test\n2.png,a,test\n")
    assert [reason for *_, reason in list(read(load(tmp_path)).values())[3:]] == [
        "b here, a in a line above",
        f"test here, {splits.split()[1]} in a line above",
    ]


@pytest.mark.parametrize(
    ("raw", "splits", "note"),
    [
        ("", "train dev test", "The column split (dev, test, train) is not used: expected train, and test or val, in"),
        ("", "0 0 1", "The column split (0, 1) is not used"),
        ("", "train train train", "The column split (train) is not used"),
        ("folders", "train test test", "The column split is not used, as the folders have a split."),
    ],
)
def test_a_column_split_that_is_not_used_is_said(tmp_path, raw, splits, note):
    names = ("train/1.png", "train/2.png", "val/3.png") if raw else ("1.png", "2.png", "3.png")
    folder(tmp_path, *names)
    rows = [f"{name},a,{split}\n" for name, split in zip(names, splits.split(), strict=True)]
    (tmp_path / "labels.csv").write_text(f"file,label,split\n{''.join(rows)}")
    source = load(tmp_path)
    assert [split for _, split, _ in read(source).values()] == (["train", "train", "test"] if raw else [None] * 3)
    assert source.notes[-1].startswith(note)


def test_folders_that_count_images_are_no_classes(tmp_path):
    """As FFHQ's."""
    raw = folder(
        tmp_path / "raw", "images1024/00000/00000.png", "images1024/01000/01999.png", "images1024/12000/12001.png"
    )
    source = load(raw)
    assert source.classes == ()
    assert source.notes == (
        "The folders are named by the number of their first image (00000, 01000, 12000), so they are not classes; "
        "source.labels folders makes them classes.",
    )
    assert load(raw, labels="folders").classes == ("00000", "01000", "12000")
    split = folder(tmp_path / "split", "train/0000/0001.png", "train/1000/1000.png", "test/2000/2001.png")
    assert load(split).classes == ()
    folder(raw, "images1024/12000/13000.png")
    assert len(load(raw).classes) == 3
    source = load(folder(tmp_path / "other", *(f"{i}00/{i}00.png" for i in range(1, 8)), "800/7.png"))
    assert source.notes == ("The classes are the folders: 100, 200, 300, 400, 500 and 3 more.",)


def test_attributes_need_a_header_and_lose_no_image(tmp_path):
    folder(tmp_path, "1.png", "2.png")
    for text in ("1.png,20\n2.png,30\n", "1,20\n2,30\n"):
        (tmp_path / "a.csv").write_text(text)
        with pytest.raises(SourceError, match=r"^a.csv: no header: its first line is already of an image"):
            load(tmp_path, attributes="a.csv")
    (tmp_path / "a.csv").write_text("path, age\n1.png, 20\n2.png, 30\n")
    assert load(tmp_path, attributes="a.csv").attributes == ("age",)
    (tmp_path / "a.csv").write_text(f"path,age\n1.png,{'9' * 140_000}\n")
    with pytest.raises(SourceError, match="line 2: field larger than field limit"):
        load(tmp_path, attributes="a.csv")


# -- archives --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_as_it_comes(tmp_path, method, monkeypatch):
    files = {
        f"pets/{split}/{cls}/{i}.png": picture(i)
        for split in ("train", "test")
        for cls in ("cat", "dog")
        for i in (1, 2)
    }
    junk = {"__MACOSX/pets/._1.png": b"x", "pets/.DS_Store": b"x", "pets/readme.txt": "x", "pets/train/": ""}
    write_zip(tmp_path / "pets.zip", files | junk, method)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    source = load(tmp_path)
    assert source.classes == ("cat", "dog")
    assert read(source) == {
        f"pets.zip/{name}": (name.split("/")[2], name.split("/")[1], int(name[-5])) for name in files
    }
    assert source.passed_over == {".txt": 1, "hidden": 2}
    assert [path.name for path in tmp_path.rglob("*")] == ["pets.zip"]


def test_zips_side_by_side(tmp_path):
    """Flat zips are classes, as when each is unpacked to a folder of its name; train.zip and val.zip are a split."""
    write_zip(tmp_path / "cats.zip", {"1.png": picture(1)})
    write_zip(tmp_path / "dogs.zip", {"1.png": picture(2)})
    assert {known[:2] for known in read(load(tmp_path)).values()} == {("cats", None), ("dogs", None)}
    other = tmp_path / "other"
    other.mkdir()
    for split in ("train2017", "val2017"):
        write_zip(other / f"{split}.zip", {f"{split}/{cls}/1.png": picture(1) for cls in "ab"})
    assert {known[:2] for known in read(load(other)).values()} == {
        (cls, split) for cls in "ab" for split in ("train", "test")
    }


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
def test_shards_of_webdataset(tmp_path, suffix):
    for split, shard in (("train", 0), ("train", 1), ("val", 0)):
        files: dict[str, bytes | str] = {}
        for i in range(3):
            key = f"{shard}{i}"
            files |= {f"{key}.cls": f"{i + 9}\n", f"{key}.jpg": picture(10 * i, "jpeg"), f"{key}.json": "{}"}
        write_tar(tmp_path / f"{split}-{shard:06d}.{suffix}", files)
    source = load(tmp_path)
    assert source.classes == ("9", "10", "11")
    assert read(source) == {
        f"{split}-{shard:06d}.{suffix}/{shard}{i}.jpg": (str(i + 9), {"val": "test"}.get(split, split), 10 * i)
        for split, shard in (("train", 0), ("train", 1), ("val", 0))
        for i in range(3)
    }
    assert source.passed_over == {".json": 9}


def test_unlabelled_shards_are_no_classes(tmp_path):
    for shard in ("00000", "00001"):
        write_tar(tmp_path / f"{shard}.tar", {f"{shard}{i}.png": picture(i) for i in range(3)})
    source = load(tmp_path)
    assert (source.classes, source.count) == ((), 6)


def test_members_whose_paths_lead_out_are_rejects(tmp_path):
    write_zip(tmp_path / "slip.zip", {"../../out.png": picture(1), "/abs.png": picture(2), "in.png": picture(3)})
    found = read(load(tmp_path, labels="none"))
    assert found["slip.zip/out.png"] == (None, None, "its path leads out of the archive")
    assert found["slip.zip/abs.png"][2] == 2
    with tarfile.open(tmp_path / "links.tar", "w") as archive:
        link = tarfile.TarInfo("passwd.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    assert (
        read(load(tmp_path, labels="none"))["links.tar/passwd.png"][2] == "a link or another special file of an archive"
    )


def test_archives_that_would_take_the_machine(tmp_path, monkeypatch):
    blank = bytes(2**27)
    write_zip(tmp_path / "a.zip", {"1.png": blank})
    with pytest.raises(SourceError, match=r"a.zip: it would be \d+ times as large unpacked, expected at most 100$"):
        load(tmp_path)
    (tmp_path / "a.zip").unlink()
    write_tar(tmp_path / "a.tar.gz", {"1.png": blank})
    with pytest.raises(SourceError, match=r"a.tar.gz: it would be \d+ times as large unpacked"):
        load(tmp_path)
    (tmp_path / "a.tar.gz").unlink()
    write_zip(tmp_path / "b.zip", {"1.png": picture(1), "2.png": picture(2)})
    monkeypatch.setattr(_files, "MEMBER_BYTES", len(picture(1)) - 1)
    assert {level for *_, level in read(load(tmp_path)).values()} == {"0 MiB unpacked, expected at most 0"}


def test_members_that_lie_over_each_other(tmp_path):
    write_zip(tmp_path / "a.zip", {"1.png": picture(1), "2.png": picture(2)})
    content = bytearray((tmp_path / "a.zip").read_bytes())
    second = content.rindex(b"PK\1\2")
    struct.pack_into("<L", content, second + 42, 0)  # where its local header lies: at the first one's
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(SourceError, match=r"a\.zip: its members lie over each other"):
        load(tmp_path)


def test_a_member_that_is_larger_than_it_says(tmp_path):
    data = picture(1) + bytes(10_000)
    write_zip(tmp_path / "a.zip", {"1.png": data, "2.png": picture(2)})
    content = bytearray((tmp_path / "a.zip").read_bytes())
    struct.pack_into("<L", content, content.index(b"PK\1\2") + 24, 50)
    (tmp_path / "a.zip").write_bytes(content)
    found = read(load(tmp_path))
    assert found["a.zip/1.png"][2] == "damaged archive: its checksum is another"
    assert found["a.zip/2.png"][2] == 2


def test_damaged_and_encrypted_members_are_rejects(tmp_path):
    write_zip(tmp_path / "a.zip", {f"{i}.png": picture(i) for i in range(4)})
    content = bytearray((tmp_path / "a.zip").read_bytes())
    places = [i for i in range(len(content)) if content[i : i + 4] == b"PK\1\2"]
    content[places[0] + 8] |= 1  # encrypted
    content[places[1] + 10] = 14  # LZMA
    content[content.index(b"2.png") + 20] ^= 255
    (tmp_path / "a.zip").write_bytes(content)
    reasons = [str(level) for *_, level in read(load(tmp_path)).values()]
    assert reasons[0] == "encrypted"
    assert "method 14" in reasons[1]
    assert reasons[2].startswith("damaged archive: ")
    assert reasons[3] == "3"
    for broken in (b"no zip", bytes(content[:-30])):
        (tmp_path / "a.zip").write_bytes(broken)
        with pytest.raises(SourceError, match=r"\A[^\n]*a.zip: [^\n]+\Z"):
            load(tmp_path)


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
def test_a_tar_that_is_cut_short(tmp_path, suffix):
    write_tar(tmp_path / f"a.{suffix}", {f"{i}.png": picture(i) + bytes(5000) for i in range(4)})
    content = (tmp_path / f"a.{suffix}").read_bytes()
    (tmp_path / f"a.{suffix}").write_bytes(content[: len(content) // 2])
    with pytest.raises(SourceError, match=rf"\A[^\n]*a.{suffix}: [^\n]+\Z"):
        load(tmp_path)


def test_pairs_in_archives(tmp_path):
    write_zip(
        tmp_path / "edges.zip", {f"edges/{split}/{i}.png": picture(i) for split in ("train", "val") for i in (1, 2)}
    )
    source = load(tmp_path, "paired_folder")
    items = [item for part in source.parts for item in part()]
    assert {item.id: item.split for item in items} == {
        f"edges.zip/edges/{split}/{i}.png": of for split, of in (("train", "train"), ("val", "test")) for i in (1, 2)
    }
    sides = tmp_path / "sides"
    sides.mkdir()
    write_tar(sides / "a.tar", {f"{side}/{i}.png": picture(i) for side in "AB" for i in (1, 2)})
    (one, _) = [item for part in load(sides, "paired_folder").parts for item in part()]
    assert one.payload == (picture(1), picture(1))


def test_archives_that_are_not_read_are_named(tmp_path):
    (tmp_path / "photos.7z").write_bytes(b"7z")
    with pytest.raises(SourceError, match=r"it holds 1 other files, as photos.7z; of archives, .zip and .tar are read"):
        load(tmp_path)


# -- links and names -------------------------------------------------------------------------------------------------


def test_links_are_followed_loops_and_dangling_ones_listed(tmp_path):
    raw = folder(tmp_path / "raw", "cat/1.png")
    folder(tmp_path / "elsewhere", "1.png", "2.png")
    (raw / "dog").symlink_to(tmp_path / "elsewhere")
    (raw / "cat" / "2.png").symlink_to(tmp_path / "elsewhere" / "2.png")
    (raw / "cat" / "round").symlink_to(raw)
    (raw / "cat" / "self").symlink_to("self")
    (raw / "cat" / "gone.png").symlink_to("nowhere")
    source = load(raw)
    assert read(source) == {
        "cat/1.png": ("cat", None, 0),
        "cat/2.png": ("cat", None, 1),
        "cat/gone.png": (None, None, "a link to nothing"),
        "dog/1.png": ("dog", None, 0),
        "dog/2.png": ("dog", None, 1),
    }
    assert source.passed_over["a link to a folder that it lies in"] == 1
    assert sum(source.passed_over.values()) == 2


def test_a_name_that_is_not_utf_8_is_a_reject(tmp_path):
    raw = folder(tmp_path / "raw")
    rng = np.random.default_rng(0)
    for i in range(120):
        raw.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (4, 4), dtype=np.uint8)).save(raw / f"{i}.png")
    os.rename(raw / "0.png", os.fsencode(raw) + b"/caf\xe9.png")
    assert prepared(raw, tmp_path / "out")["examples"] == 119
    with (tmp_path / "out" / "rejects.csv").open(newline="", encoding="utf-8") as file:
        (reject,) = list(csv.DictReader(file))
    assert reject["item"] == "caf\\xe9.png"
    assert "not UTF-8" in reject["reason"]
    os.rename(raw, os.fsencode(tmp_path) + b"/r\xe9w")
    (raw / "x").mkdir(parents=True)
    os.rename(os.fsencode(tmp_path) + b"/r\xe9w", os.fsencode(raw / "x") + b"/\xe9")
    with pytest.raises(
        StageError, match=r"\A120 of .* \(100.0%\) cannot be read.*x/\\xe9/1.png \(its name is not UTF-8"
    ):
        prepared(raw, tmp_path / "out")


@pytest.mark.parametrize(
    ("source", "name"), [("parquet", b"\xe9.parquet"), ("idx", b"\xe9-images-idx3-ubyte"), ("csv", b"\xe9.csv")]
)
def test_files_of_many_items_are_named_where_their_name_is_not_utf_8(tmp_path, source, name):
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_bytes(b"")
    with pytest.raises(SourceError, match=r"\A.*\\xe9[^\n]*: its name is not UTF-8"):
        load(tmp_path, source)


def test_pairs_of_names_that_are_not_utf_8_are_rejects(tmp_path):
    folder(tmp_path, "A/1.png", "B/1.png", "A/2.png", "B/2.png")
    for side in ("A", "B"):
        os.rename(tmp_path / side / "1.png", os.fsencode(tmp_path / side) + b"/\xe9.png")
    items = [item for part in load(tmp_path, "paired_folder").parts for item in part()]
    assert [item.payload is None for item in items] == [False, True]
    assert items[1].id == "A/\\xe9.png + B/\\xe9.png"


def test_the_split_reaches_the_shards(tmp_path):
    names = [f"{split}/{cls}/{i}.png" for split in ("train", "test") for cls in "ab" for i in range(20)]
    prepared(folder(tmp_path / "raw", *names), tmp_path / "out")
    levels = {
        split: set(shards.read(tmp_path / "out", split)["sample"][:, 0, 0, 0].tolist()) for split in shards.SPLITS
    }
    assert levels == {"train": set(range(40)), "test": set(range(40, 80))}


def test_a_split_after_what_all_folders_begin_with(tmp_path):
    """As Kaggle unpacks it: `seg_train/seg_train/CLASS`, `seg_test/seg_test/CLASS`, and images without classes."""
    inner = ("seg_train/seg_train/a/0.png", "seg_train/seg_train/b/1.png", "seg_test/seg_test/a/2.png")
    found = load(folder(tmp_path, *inner, "seg_pred/seg_pred/3.png"))
    assert found.classes == ("a", "b")
    assert {name: (label, split) for name, (label, split, _) in read(found).items()} == {
        inner[0]: ("a", "train"),
        inner[1]: ("b", "train"),
        inner[2]: ("a", "test"),
    }
    assert found.passed_over == {"images in seg_pred": 1}


def test_splits_without_a_class_in_common_are_refused(tmp_path):
    """As Tiny ImageNet lies, where only the training images are in folders of their classes."""
    raw = folder(tmp_path, "train/n01/images/0.png", "train/n02/images/1.png", "val/images/2.png")
    with pytest.raises(
        SourceError, match=r"for training \(n01, n02\) and for testing \(images\) have no class in comm"
    ):
        load(raw)
    assert load(raw, labels="none").classes == ()


@pytest.mark.parametrize(
    ("place", "table", "options"),
    [
        ("labels.csv", "label,image_path\n1,x/a.png\n0,x/b.png\n1,x/c.png\n", {}),
        ("labels.csv", "lesion,image_id,dx\nL0,a,1\nL0,b,0\nL1,c,1\n", {"label_column": "dx"}),
        ("notes/labels.csv", "file,label\na.png,1\nb.png,0\nc.png,1\n", {}),
        ("notes/all.csv", "file,label\nx/a.png,1\nx/b.png,0\nx/c.png,1\n", {"table": "notes/all.csv"}),
    ],
)
def test_tables_of_other_columns_and_in_other_folders(tmp_path, place, table, options):
    raw = folder(tmp_path, "x/a.png", "x/b.png", "x/c.png")
    (raw / place).parent.mkdir(exist_ok=True)
    (raw / place).write_text(table)
    found = load(raw, **options)
    assert found.classes == ("0", "1")
    assert {name: label for name, (label, *_) in read(found).items()} == {
        "x/a.png": "1",
        "x/b.png": "0",
        "x/c.png": "1",
    }


def test_an_image_of_two_values_is_a_reject(tmp_path):
    """As in a table of a row for each box: the first value is not replaced without a word. Rows that agree are one."""
    raw = folder(tmp_path, "a.png", "b.png")
    (raw / "labels.csv").write_text("file,label\na.png,cat\nb.png,dog\na.png,cat\nb.png,cat\n")
    found = load(raw)
    items = [item for part in found.parts for item in part()]
    assert [(item.id, item.label) for item in items[:2]] == [("a.png", 0), ("b.png", 1)]
    assert [(item.id, item.reason) for item in items[2:]] == [
        ("labels.csv, line 5: b.png", "cat here, dog in a line above")
    ]


def test_a_table_that_names_no_image_is_refused(tmp_path):
    raw = folder(tmp_path, "stop/a.png", "yield/b.png")
    (raw / "labels.csv").write_text("ClassId,Name\n0,stop\n1,yield\n")
    with pytest.raises(
        SourceError, match=r"^labels.csv: none of its 2 rows names an image: .*source\.labels to folders"
    ):
        load(raw, label_column="Name")
    assert load(raw, labels="folders").classes == ("stop", "yield")


def test_accents_are_the_same_however_they_are_written(tmp_path):
    raw = folder(tmp_path, "cafe\N{COMBINING ACUTE ACCENT}.png")
    (raw / "labels.csv").write_text("file,label\ncaf\N{LATIN SMALL LETTER E WITH ACUTE}.png,x\n")
    assert load(raw).classes == ("x",)
    assert [item.label for part in load(raw).parts for item in part()] == [0]


def test_a_caption_may_hold_any_end_of_line_but_that_of_the_file(tmp_path):
    raw = folder(tmp_path, "a.png")
    row = {"file_name": "a.png", "label": "x", "text": "one\N{LINE SEPARATOR}two\N{NEXT LINE}three"}
    (raw / "metadata.jsonl").write_bytes((json.dumps(row, ensure_ascii=False) + "\r\n").encode())
    assert load(raw).classes == ("x",)


@pytest.mark.parametrize(
    "names",
    [
        ("trainA/0.png", "trainB/0.png", "testA/1.png", "testB/1.png"),
        ("input/0.png", "target/0.png"),
        ("masks/0_mask.png",),
        ("drawn/0.png", "drawn/1.jpg", "drawn/2.png", "real/1.png", "real/2.jpg", "real/3.png", "x/9.png"),
        ("train/drawn/0.png", "train/real/0.png", "test/drawn/1.png", "test/real/1.png"),
        ("all/drawn/x/e\N{COMBINING ACUTE ACCENT}.png", "all/real/x/\N{LATIN SMALL LETTER E WITH ACUTE}.png"),
    ],
)
def test_pairs_in_folders_of_other_names_are_not_cut_in_halves(tmp_path, names):
    raw = folder(tmp_path, *names)
    with pytest.raises(SourceError, match=r"images lie in .*; expected folders A and B, with files of equal names"):
        load(raw, "paired_folder")
    assert load(raw, "paired_folder", layout="side_by_side").count == len(names)


def test_pairs_side_by_side_keep_their_split(tmp_path):
    found = load(folder(tmp_path, "maps/train/0.jpg", "maps/val/1.jpg"), "paired_folder")
    assert [item.split for part in found.parts for item in part()] == ["train", "test"]


def test_pairs_side_by_side_may_lie_in_folders_of_other_names(tmp_path):
    names = ("summer/0.png", "summer/1.png", "winter/1.png", "winter/2.png", "train/0.png", "train/1.png")
    assert load(folder(tmp_path, *names), "paired_folder").count == len(names)


def test_pairs_have_equal_names_however_accents_are_written(tmp_path):
    folder(tmp_path, "A/e\N{COMBINING ACUTE ACCENT}.png", "B/\N{LATIN SMALL LETTER E WITH ACUTE}.png")
    assert load(tmp_path, "paired_folder").count == 1
