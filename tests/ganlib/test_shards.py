"""Prepared data on disk: what goes in comes out, once, in the same place, whatever the order and the size."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from specs import completed, image_spec, packed_rows

from ganlib import shard_writer, shards


def write(folder, samples, labels=None, *, splits=None, test_share=0.25, shard_mb=64.0, chunk=50, duplicates=False):
    folder.mkdir()
    classes = () if labels is None else tuple(str(i) for i in range(int(max(labels)) + 1))

    spec = image_spec(samples.shape[1:], classes)

    def tables():
        for start in range(0, len(samples), chunk):
            marks = None if labels is None else labels[start : start + chunk].tolist()
            said = None if splits is None else splits[start : start + chunk]
            yield packed_rows(spec, [{"sample": sample} for sample in samples[start : start + chunk]], marks, said)

    return shard_writer.write(
        folder, tables(), spec.parts, completed(spec), test_share=test_share, shard_mb=shard_mb, duplicates=duplicates
    )


def rows(folder, split):
    """The bytes and label of each example."""
    columns = shards.read(folder, split)
    labels = columns.get("label", torch.zeros(len(columns["sample"]), dtype=torch.int64))
    return {sample.numpy().tobytes(): int(label) for sample, label in zip(columns["sample"], labels, strict=True)}


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (600, 3, 4, 5), dtype=np.uint8), rng.integers(0, 3, 600)


def test_round_trip(tmp_path, data):
    samples, labels = data
    found = write(tmp_path / "a", samples, labels)
    train, test = rows(tmp_path / "a", "train"), rows(tmp_path / "a", "test")
    assert train | test == {s.tobytes(): int(v) for s, v in zip(samples, labels, strict=True)}
    assert len(train) + len(test) == 600
    spec = shards.read_spec(tmp_path / "a")
    assert spec.counts == found.counts == {"train": len(train), "test": len(test)}
    assert (spec.shape, spec.classes, spec.modality) == ((3, 4, 5), ("0", "1", "2"), "image")
    assert [sum(found.classes[s][c] for s in shards.SPLITS) for c in range(3)] == np.bincount(labels).tolist()
    assert {p.name for p in (tmp_path / "a").iterdir()} == {"train-00000.parquet", "test-00000.parquet"}


def test_large_samples_are_png_and_lossless(tmp_path):
    for channels in (1, 3):
        samples = np.random.default_rng(1).integers(0, 256, (12, channels, 120, 110), dtype=np.uint8)
        folder = tmp_path / str(channels)
        write(folder, samples, test_share=0.5)
        assert {*rows(folder, "train"), *rows(folder, "test")} == {s.tobytes() for s in samples}
        cell = pq.read_table(next(folder.glob("train-*")))["sample"][0].as_py()
        assert cell.startswith(b"\x89PNG")
        assert "label" not in shards.read(folder, "train")


def test_small_samples_are_fixed_shape_tensors(tmp_path, data):
    write(tmp_path / "a", *data)
    kind = pq.read_schema(tmp_path / "a" / "train-00000.parquet").field("sample").type
    assert kind.extension_name == "arrow.fixed_shape_tensor"
    assert kind.shape == [3, 4, 5]


def test_neither_order_nor_memory_changes_a_byte(tmp_path, data, monkeypatch):
    samples, labels = data
    write(tmp_path / "a", samples, labels)
    order = np.random.default_rng(2).permutation(600)
    monkeypatch.setattr(shard_writer, "_SPILL_BYTES", 5000)  # many spills, files for each first byte of the hash
    write(tmp_path / "b", samples[order], labels[order], chunk=37)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_adding_data_moves_nothing(tmp_path, data):
    samples, labels = data
    write(tmp_path / "few", samples[:200], labels[:200])
    write(tmp_path / "many", samples, labels)
    for split in shards.SPLITS:
        assert rows(tmp_path / "few", split).items() <= rows(tmp_path / "many", split).items()
    assert shards.read_spec(tmp_path / "few").content_hash != shards.read_spec(tmp_path / "many").content_hash


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_the_split_is_fair_to_every_class(tmp_path, share):
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 4, 8000)
    found = write(tmp_path / "a", rng.integers(0, 256, (8000, 1, 4, 4), dtype=np.uint8), labels, test_share=share)
    for label in range(4):
        n = int((labels == label).sum())
        deviation = (n * share * (1 - share)) ** 0.5  # of a binomial
        assert abs(found.classes["test"][label] - n * share) < 4 * deviation


def test_the_first_of_equal_ones_stays(tmp_path, data):
    samples, labels = data
    labels = labels.copy()
    samples = np.concatenate([samples, samples[:5], samples[:3]])
    labels = np.concatenate([labels, labels[:5], (labels[:3] + 1) % 3])
    found = write(tmp_path / "a", samples, labels)
    assert (found.duplicates, found.conflicts, sum(found.counts.values())) == (8, 3, 600)
    kept = rows(tmp_path / "a", "train") | rows(tmp_path / "a", "test")
    assert all(kept[samples[i].tobytes()] == labels[i] for i in range(5))


def test_shards_and_row_groups(tmp_path, data, monkeypatch):
    samples, labels = data
    monkeypatch.setattr(shard_writer, "_GROUP_BYTES", 60 * 16)
    write(tmp_path / "a", samples, labels, shard_mb=60 * 16 * 4 / 1e6)
    groups = shards.row_groups(tmp_path / "a", "train")
    assert {g.rows for g in groups[:-1]} == {16}
    assert [sum(g.path.name == f"train-{i:05d}.parquet" for g in groups) for i in range(3)] == [4, 4, 4]
    write(tmp_path / "b", samples, labels)
    for name, column in shards.read(tmp_path / "a", "train").items():
        assert torch.equal(column, shards.read(tmp_path / "b", "train")[name])
        assert torch.equal(column[:70], shards.read(tmp_path / "a", "train", limit=70)[name])


def test_rows_are_read_when_they_are_wanted_a_group_at_a_time_and_once(tmp_path, data, monkeypatch):
    monkeypatch.setattr(shard_writer, "_GROUP_BYTES", 60 * 16)
    write(tmp_path / "a", *data)
    whole = shards.read(tmp_path / "a", "train", limit=70)
    reads = []
    read = shards.read_groups

    def recorded(spec, groups, **how):
        if how["columns"] == ["sample"]:
            reads.append([(group.index, group.rows) for group in groups])
        return read(spec, groups, **how)

    monkeypatch.setattr(shards, "read_groups", recorded)
    columns = shards.stored(tmp_path / "a", "train", limit=70)
    assert torch.equal(columns["label"], whole["label"])
    assert len(columns["sample"]) == 70
    assert not reads
    assert torch.equal(torch.cat(list(columns["sample"].split(7))), whole["sample"])
    assert reads == [[(i, 16)] for i in range(5)]
    some = torch.tensor([69, 0, 33, 0, 64, 1])
    assert torch.equal(columns["sample"][some], whole["sample"][some])
    assert [group for (group,) in reads[5:]] == [(0, 16), (2, 16), (4, 16)]


def test_the_content_hash_sees_labels_and_the_split(tmp_path, data):
    samples, labels = data
    hashes = set()
    for i, (marks, share) in enumerate([(labels, 0.25), (2 - labels, 0.25), (labels, 0.3), (None, 0.25)]):
        hashes.add(write(tmp_path / str(i), samples, marks, test_share=share).content_hash)
    assert len(hashes) == 4


def test_a_source_may_say_the_split(tmp_path, data, monkeypatch):
    samples, labels = data
    splits = [("train", "test", None)[i % 3] for i in range(600)]
    found = write(tmp_path / "a", samples, labels, splits=splits)
    write(tmp_path / "by hash", samples, labels)
    for split in shards.SPLITS:
        by_hash = rows(tmp_path / "by hash", split)
        expected = {
            sample.tobytes()
            for sample, said in zip(samples, splits, strict=True)
            if said == split or (said is None and sample.tobytes() in by_hash)
        }
        assert rows(tmp_path / "a", split).keys() == expected
        assert found.counts[split] == len(expected)
    assert found.content_hash != shards.read_spec(tmp_path / "by hash").content_hash
    monkeypatch.setattr(shard_writer, "_SPILL_BYTES", 5000)
    write(tmp_path / "b", samples[::-1], labels[::-1], splits=splits[::-1], chunk=37)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_an_example_is_in_one_split_only_whatever_the_source_says(tmp_path, data):
    samples = np.concatenate([data[0][:50], data[0][:10]])
    found = write(tmp_path / "a", samples, splits=["train"] * 50 + ["test"] * 10, chunk=7)
    assert (found.duplicates, found.counts) == (10, {"train": 50, "test": 0})


def test_what_describe_raises_stops_before_a_shard(tmp_path, data):
    (tmp_path / "a").mkdir()

    def refuse(*_):
        raise ValueError("no")

    spec = image_spec((3, 4, 5))
    row = packed_rows(spec, [{"sample": data[0][0]}])
    with pytest.raises(ValueError, match="no"):
        shard_writer.write(tmp_path / "a", [row], spec.parts, refuse, test_share=0.5, shard_mb=1)
    assert not list((tmp_path / "a").glob("*.parquet"))


def test_nothing_prepared_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="run the stage `prepare`"):
        shards.read_spec(tmp_path)


def test_a_flipped_byte_is_noticed_and_the_shard_named(tmp_path, data):
    write(tmp_path / "out", *data)
    (shard,) = (tmp_path / "out").glob("train-*.parquet")
    whole = shard.read_bytes()
    middle = pq.read_metadata(shard).row_group(0).column(0).data_page_offset + 200
    shard.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    with pytest.raises(shards.DamagedShard, match=rf"^{shard}: damaged: .*CRC.*; `dvc repro` makes the folder anew$"):
        shards.read(tmp_path / "out", "train")
    shard.write_bytes(whole[:-9])
    with pytest.raises(shards.DamagedShard, match=rf"^{shard}: damaged: Parquet magic bytes not found"):
        shards.read(tmp_path / "out", "train")
