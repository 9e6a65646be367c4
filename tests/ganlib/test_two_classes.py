"""Two domains out of any source of images with classes."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pydantic import ValidationError

from ganlib import shards
from ganlib.config import DatasetConfig
from ganlib.sources import two_classes
from ganlib.sources._source import SourceError
from pipelines.prepare import prepare


def png(level, size=(16, 16)):
    file = io.BytesIO()
    Image.fromarray(np.full(size, level, dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def write(path, days, nights, more=(), **how):
    """Rows of days, then of nights: grey images of these levels."""
    rows = [(png(level), "day") for level in days] + [(png(level), "night") for level in nights] + [*more]
    images, domains = zip(*rows, strict=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": images, "domain": domains}), path, **how)


def items_of(raw, of=None, **config):
    cfg = two_classes.Config(of=of or {"name": "parquet", "label": "domain"}, **config)
    source = two_classes.load(cfg, raw)
    found = [item for part in source.parts for item in part()]
    assert len(found) == source.count
    return source, found


def level(content):
    return int(np.asarray(Image.open(io.BytesIO(content)))[0, 0])


@pytest.mark.parametrize("held", [1024, 7])
def test_every_image_is_given_and_made_and_none_is_in_both_splits(held, tmp_path, monkeypatch):
    """Whether those of the smaller domain, which come again and again, are held or read again."""
    monkeypatch.setattr(two_classes, "HELD", held)
    write(tmp_path / "a.parquet", range(60), range(100, 130), row_group_size=8)
    write(tmp_path / "b.parquet", range(60, 80), range(130, 140))
    source, found = items_of(tmp_path, test_share=0.3)
    assert source.classes == ("day", "night")
    levels = {}
    for item in found:
        given, sample = map(level, item.payload)
        assert (given >= 100) == (item.label == 0)
        assert (sample >= 100) == (item.label == 1)
        levels.setdefault((item.split, item.label), []).append((given, sample))
    sides = {split: {x for made in (0, 1) for pair in levels[split, made] for x in pair} for split in ("train", "test")}
    assert not sides["train"] & sides["test"]
    assert sides["train"] >= {*range(80), *range(100, 140)} - sides["test"]
    days = len({given for given, _ in levels["train", 1]})
    assert len(levels["train", 1]) == len(levels["train", 0]) == days
    for made in (0, 1):
        both = [{pair[side] for pair in levels["test", made]} for side in (0, 1)]
        assert len(both[0]) == len(both[1]) == len(levels["test", made])
    assert [item.id for item in items_of(tmp_path, test_share=0.3)[1]] == [item.id for item in found]


def test_a_large_part_is_read_a_few_times(tmp_path, monkeypatch):
    """Not once for each thousand rows."""
    write(tmp_path / "a.parquet", range(50), range(100, 150), row_group_size=1000)
    rows = pq.read_table(tmp_path / "a.parquet")
    tables = [
        rows.set_column(0, "image", pa.array([png(i % 250, (16, 1 + i % 97 + k)) for i in range(100)]))
        for k in range(40)
    ]
    pq.write_table(pa.concat_tables(tables), tmp_path / "a.parquet", row_group_size=10_000)
    cfg = two_classes.Config(of={"name": "parquet", "label": "domain"})
    source, reads = two_classes.load(cfg, tmp_path), []
    monkeypatch.setattr(
        two_classes, "_read", lambda parts, positions, read=two_classes._read: reads.append(1) or read(parts, positions)
    )
    assert sum(1 for part in source.parts for _ in part()) == source.count > 3000
    assert len(reads) <= 12


def test_one_way_has_no_labels_and_other_classes_are_left(tmp_path):
    write(tmp_path / "a.parquet", range(40), range(100, 140), [(png(200), "dusk")] * 9)
    with pytest.raises(SourceError, match="name two of the classes: day, dusk, night"):
        items_of(tmp_path)
    source, found = items_of(tmp_path, domains=("night", "day"), direction="a_to_b", test_share=0.3)
    assert source.classes == ()
    assert all(level(item.payload[0]) >= 100 > level(item.payload[1]) for item in found)


def test_splits_of_the_source_are_kept_and_copies_left_out(tmp_path):
    for split, start in (("train", 0), ("test", 50)):
        for domain, add in (("day", 0), ("night", 100)):
            folder = tmp_path / split / domain
            folder.mkdir(parents=True)
            for i in (*range(10), 0):
                name = f"{i}.png" if not (folder / f"{i}.png").exists() else "copy.png"
                (folder / name).write_bytes(png(start + add + i))
    source, found = items_of(tmp_path, {"name": "image_folder"})
    assert len(found) == 40
    assert all((item.split == "test") == (level(item.payload[0].read_bytes()) % 100 >= 50) for item in found)
    assert any(note.endswith("left out: 4.") for note in source.notes)


def test_what_is_no_image_is_a_reject(tmp_path):
    with pytest.raises(ValueError, match="expected an image, found dict"):
        two_classes._digest({"day": 1})
    with pytest.raises(ValidationError, match="image: expected a column, found null"):
        two_classes.Config(of={"name": "parquet", "image": None, "label": "domain"})
    for domain in ("day", "night"):
        for i in range(40):
            (tmp_path / domain).mkdir(exist_ok=True)
            (tmp_path / domain / f"{i}.png").write_bytes(png(i + 100 * (domain == "day")))
    (tmp_path / "day/gone.png").symlink_to(tmp_path / "nowhere.png")
    _, found = items_of(tmp_path, {"name": "image_folder"}, test_share=0.3)
    assert [item.id for item in found if item.payload is None] == ["day/gone.png"]


def test_a_damaged_image_is_one_reject_and_in_no_example(tmp_path):
    write(tmp_path / "a.parquet", range(60), range(100, 110))
    _, sound = items_of(tmp_path, test_share=0.3)
    write(tmp_path / "a.parquet", range(60), range(100, 110), [(png(200)[:45], "night")])
    _, found = items_of(tmp_path, test_share=0.3)
    assert found[:-1] == sound
    assert (found[-1].id, found[-1].payload) == ("a.parquet[group 0, row 70]", None)
    assert found[-1].reason


def test_rows_without_an_image_or_a_label_are_rejects(tmp_path):
    write(tmp_path / "a.parquet", range(30), range(100, 130), [(None, "day"), (png(3), None)])
    _, found = items_of(tmp_path, test_share=0.3)
    assert [item.reason for item in found if item.payload is None] == [
        "there is no readable sample in it",
        "it has no class",
    ]


def test_what_is_damaged_in_other_classes_is_no_reject(tmp_path):
    write(tmp_path / "a.parquet", range(30), range(100, 130), [(None, "dusk"), (None, "day"), (png(3), None)])
    _, found = items_of(tmp_path, domains=("day", "night"), test_share=0.3)
    assert [item.id for item in found if item.payload is None] == [f"a.parquet[group 0, row {row}]" for row in (61, 62)]


def test_test_images_without_a_counterpart_in_number_are_noted(tmp_path):
    for folder, levels in (("train", range(4)), ("test", range(50, 55))):
        for domain, number in (("day", 3), ("night", len(levels))):
            (tmp_path / folder / domain).mkdir(parents=True)
            for i in levels[:number]:
                (tmp_path / folder / domain / f"{i}.png").write_bytes(png(i + 100 * (domain == "night")))
    source, _ = items_of(tmp_path, {"name": "image_folder"})
    assert source.notes[-1] == "2 test images of night have no counterpart in number and are left out."


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"domains": ("day", "noon")}, "source.domains: 'noon' is not a class; known: day, night"),
        ({"domains": ("day", "#0")}, "source.domains: expected two classes, found 'day' twice"),
        ({"of": {"name": "parquet", "label": None}}, "name two of the classes: there are none"),
        ({"test_share": 1e-9}, r"for testing 0 images of day and 0 of night; expected some of both"),
    ],
)
def test_what_are_no_two_classes_is_one_line(config, message, tmp_path):
    write(tmp_path / "a.parquet", range(5), range(100, 105))
    with pytest.raises(SourceError, match=message) as error:
        items_of(tmp_path, **config)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("of", [{"name": "lines"}, {"name": "nothing"}, {}, "parquet"])
def test_what_is_no_source_of_images_is_named(of):
    with pytest.raises(ValidationError, match=r"expected a source of images by its name \(.*parquet.*\), found"):
        two_classes.Config(of=of)


def test_a_wrong_key_of_the_source_within_is_named():
    source = {"name": "two_classes", "of": {"name": "parquet", "imag": "x"}}
    sample = {"kind": "unpaired", "resolution": [16, 16]}
    with pytest.raises(ValidationError, match=r"source\.of\n  unknown key 'imag' \(did you mean 'image'\?\)"):
        DatasetConfig.model_validate({"source": source, "sample": sample})


def test_it_is_prepared(tmp_path):
    write(tmp_path / "raw/a.parquet", range(60), range(100, 140))
    source = {"name": "two_classes", "of": {"name": "parquet", "label": "domain"}, "test_share": 0.3}
    sample = {"kind": "unpaired", "resolution": [16, 16], "channels": 1}
    prepare(DatasetConfig.model_validate({"source": source, "sample": sample}), tmp_path / "raw", tmp_path / "out")
    spec = shards.read_spec(tmp_path / "out")
    assert spec.classes == ("day", "night")
    stored = shards.stored(tmp_path / "out", "train")
    given, labels = stored["given"][: len(stored["label"])], stored["label"][: len(stored["label"])]
    assert ((given.double().mean((1, 2, 3)) >= 100) == (labels == 0)).all()
