"""Sources: what each finds in its folder, and the one line it says where it finds nothing of use."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import re
import sys
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ganlib import registry
from ganlib.config import DatasetConfig, load_params
from ganlib.data import image, pair
from ganlib.data._classes import label_of
from ganlib.sources._source import SourceError
from pipelines._stage import StageError
from pipelines.prepare import prepare

ROOT = Path(__file__).parents[2]
DIRECTIONS = ("a_to_b", "b_to_a")
PIXELS = np.random.default_rng(0).integers(0, 256, (12, 5, 6), dtype=np.uint8)


def load(name, raw, **more):
    module = registry.load("sources", name)
    return module.load(module.Config(**more), raw)


def items(source):
    found = [item for part in source.parts for item in part()]
    assert len(found) == source.count
    return found


def items_of(source):
    return (item for part in source.parts for item in part())


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


def decoded(found, channels=1):
    cfg = image.Config(resolution=(5, 6), channels=channels)
    return np.stack([image.read(cfg, item.payload) for item in found])


@pytest.mark.parametrize("name", registry.names("sources"))
def test_every_source_has_a_closed_named_config(name):
    module = registry.load("sources", name)
    assert next(iter(module.Config.model_fields)) == "name"
    assert module.Config.model_fields["name"].default == name
    assert set(getattr(module, "KINDS", ())) <= set(registry.names("data"))
    with pytest.raises(ValueError, match="unknown key"):
        module.Config.model_validate({"nmae": name})


@pytest.mark.parametrize("name", ["idx", "image_folder", "paired_folder", "parquet"])
def test_an_empty_or_foreign_folder_is_one_clear_line(name, tmp_path):
    with pytest.raises(SourceError, match="no such folder"):
        load(name, tmp_path / "none")
    with pytest.raises(SourceError, match=r"\A.*it holds nothing\Z"):
        load(name, tmp_path)
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(SourceError, match=r"\A.*it holds 1 other files, as a.txt\Z"):
        load(name, tmp_path)


@pytest.mark.parametrize(("name", "count", "side"), [("mnist", 5000, 28), ("digits", 1797, 8)])
def test_packaged_sets(name, count, side, tmp_path):
    source = load(name, tmp_path / "not needed")
    found = items(source)
    assert source.classes == tuple("0123456789")
    assert len(found) == count
    assert found[0].payload.shape == (side, side)
    assert found[0].payload.dtype == np.uint8
    assert max(item.payload.max() for item in found) == 255
    assert min(np.bincount([item.label for item in found])) > count / 12


class TestIdx:
    def write(self, path, array, *, magic=None, cut=None):
        head = np.array([magic or 0x0800 | array.ndim, *array.shape], ">u4").tobytes()
        data = (head + array.tobytes())[:cut]
        path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)

    def test_files_in_folders_of_their_names(self, tmp_path):
        for name, array in (
            ("train-images-idx3-ubyte", PIXELS),
            ("train-labels-idx1-ubyte", np.arange(12, dtype=np.uint8)),
        ):
            (tmp_path / name).mkdir()
            self.write(tmp_path / name / name, array)
        source = load("idx", tmp_path)
        assert [item.label for item in items(source)] == list(range(12))
        assert source.passed_over == {}

    @pytest.mark.parametrize("end", ["", ".gz"])
    def test_both_files_are_one_set(self, tmp_path, end):
        labels = np.arange(12, dtype=np.uint8) % 3 + 4
        for name, rows in (("train", slice(0, 8)), ("t10k", slice(8, 12))):
            self.write(tmp_path / f"{name}-images-idx3-ubyte{end}", PIXELS[rows])
            self.write(tmp_path / f"{name}-labels-idx1-ubyte{end}", labels[rows])
        source = load("idx", tmp_path)
        found = items(source)
        assert source.classes == ("4", "5", "6")
        order = [*range(8, 12), *range(8)]  # t10k comes first by name
        np.testing.assert_array_equal(decoded(found)[:, 0], PIXELS[order])
        assert [item.label for item in found] == [int(labels[i]) - 4 for i in order]
        assert found[0].id == f"t10k-images-idx3-ubyte{end}[0]"

    def test_without_labels(self, tmp_path):
        self.write(tmp_path / "train-images-idx3-ubyte", PIXELS)
        source = load("idx", tmp_path)
        assert source.classes == ()
        assert {item.label for item in items(source)} == {None}
        self.write(tmp_path / "t10k-images-idx3-ubyte", PIXELS)
        self.write(tmp_path / "t10k-labels-idx1-ubyte", np.zeros(12, np.uint8))
        with pytest.raises(SourceError, match="train-images-idx3-ubyte has no file of labels"):
            load("idx", tmp_path)

    @pytest.mark.parametrize("end", ["", ".gz"])
    def test_broken_files(self, tmp_path, end):
        images = tmp_path / f"train-images-idx3-ubyte{end}"
        self.write(images, PIXELS, cut=100)
        with pytest.raises(SourceError, match="84 bytes after the header; expected 12 x 5 x 6 = 360"):
            load("idx", tmp_path)
        self.write(images, PIXELS, magic=0x0801)
        with pytest.raises(SourceError, match="starts with 0x00000801"):
            load("idx", tmp_path)
        images.write_bytes(b"")
        with pytest.raises(SourceError, match=images.name):
            load("idx", tmp_path)
        self.write(images, PIXELS)
        self.write(tmp_path / f"train-labels-idx1-ubyte{end}", np.zeros(11, np.uint8))
        with pytest.raises(SourceError, match="11 labels for 12 images"):
            load("idx", tmp_path)

    @pytest.mark.parametrize("dims", [(2**32 - 1, 0, 0), (2**31, 2**31, 4), (3, 0, 5), (1, 30_000, 30_000)])
    def test_sizes_that_would_take_the_machine(self, tmp_path, dims):
        head = np.array([0x0803, *dims], ">u4").tobytes()
        (tmp_path / "train-images-idx3-ubyte").write_bytes(head)
        with pytest.raises(
            SourceError, match=r"idx3-ubyte: images of .* pixels; expected 1 to 200 million|bytes after"
        ):
            load("idx", tmp_path)

    def test_a_gzip_cut_short(self, tmp_path):
        path = tmp_path / "train-images-idx3-ubyte.gz"
        self.write(path, PIXELS)
        path.write_bytes(path.read_bytes()[:-20])
        with pytest.raises(SourceError, match="end-of-stream"):
            load("idx", tmp_path)


class TestImageFolder:
    def save(self, path, pixels):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)

    def test_flat(self, tmp_path):
        self.save(tmp_path / "a.png", PIXELS[0])
        self.save(tmp_path / "b.BMP", PIXELS[1])
        (tmp_path / "notes.txt").write_text("")
        self.save(tmp_path / ".hidden.png", PIXELS[2])
        source = load("image_folder", tmp_path)
        assert source.classes == ()
        np.testing.assert_array_equal(decoded(items(source))[:, 0], PIXELS[:2])

    def test_a_folder_a_class_nested(self, tmp_path):
        self.save(tmp_path / "dog" / "a" / "b" / "1.png", PIXELS[1])
        self.save(tmp_path / "cat" / "1.tif", PIXELS[0])
        (tmp_path / "empty").mkdir()
        source = load("image_folder", tmp_path)
        assert source.classes == ("cat", "dog")
        assert [(item.id, item.label) for item in items(source)] == [("cat/1.tif", 0), ("dog/a/b/1.png", 1)]
        assert load("image_folder", tmp_path, labels="none").classes == ()

    def test_images_beside_class_folders(self, tmp_path):
        self.save(tmp_path / "cat" / "1.png", PIXELS[0])
        self.save(tmp_path / "stray.png", PIXELS[1])
        with pytest.raises(SourceError, match=r"1 images lie next to class folders \(as stray.png\), 1 in them"):
            load("image_folder", tmp_path)
        assert len(items(load("image_folder", tmp_path, labels="none"))) == 2


class TestPairedFolder:
    def save(self, folder, *paths):
        for path in paths:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            # of a level that says which of the files it is
            Image.new("L", (8, 4), sum(path.encode()) % 256).save(folder / path)

    def read(self, source):
        """`{id: (level of the given half, level of the generated one, split)}`"""
        cfg = pair.Config(resolution=(4, 8), channels=(1, 1))
        made = {
            item.id: (*np.concatenate(list(pair.encode(cfg, item.payload).values()))[:, 0, 0].tolist(), item.split)
            for item in items(source)
        }
        assert {item.label for item in items(source)} == {None}
        return made

    @staticmethod
    def level(path):
        return sum(path.encode()) % 256

    @pytest.mark.parametrize("direction", DIRECTIONS)
    def test_two_folders(self, tmp_path, direction):
        self.save(tmp_path, "A/1.png", "B/1.bmp", "A/x/2.png", "B/x/2.png")
        source = load("paired_folder", tmp_path, direction=direction)
        assert (source.classes, source.about) == ((), "2 pairs of images")
        turn = 1 if direction == "a_to_b" else -1
        assert self.read(source) == {
            f"{a} + {b}": (*[self.level(path) for path in (a, b)][::turn], None)
            for a, b in (("A/1.png", "B/1.bmp"), ("A/x/2.png", "B/x/2.png"))
        }

    @pytest.mark.parametrize("direction", DIRECTIONS)
    def test_side_by_side(self, tmp_path, direction):
        both = np.concatenate([np.full((4, 8), 10, np.uint8), np.full((4, 8), 20, np.uint8)], 1)
        Image.fromarray(both).save(tmp_path / "1.png")
        Image.fromarray(both[:, 1:]).save(tmp_path / "odd.png")
        source = load("paired_folder", tmp_path, direction=direction)
        one, odd = items(source)
        made = np.concatenate(list(pair.encode(pair.Config(resolution=(4, 8), channels=(1, 1)), one.payload).values()))
        assert made[:, 3, 7].tolist() == ([10, 20] if direction == "a_to_b" else [20, 10])
        with pytest.raises(ValueError, match="15x4 pixels: an odd width"):
            pair.encode(pair.Config(resolution=(4, 8)), odd.payload)

    @pytest.mark.parametrize("order", ["{side}/{split}/{name}", "{split}/{side}/{name}", "{split}/{name}"])
    @pytest.mark.parametrize(
        ("folders", "splits"),
        [
            (("train", "test"), ("train", "test")),
            (("train", "val"), ("train", "test")),
            (("train", "val", "test"), ("train", "train", "test")),
            (("summer", "winter"), (None, None)),
            (("train", "winter"), (None, None)),
            (("val", "test"), (None, None)),
            (("test", "train", "winter"), ("test", "train", None)),
        ],
    )
    def test_folders_that_fix_the_split(self, tmp_path, order, folders, splits):
        for split in folders:
            for side in ("A", "B"):
                self.save(tmp_path, order.format(side=side, split=split, name=f"{split}.png"))
        found = {item.id: item.split for item in items(load("paired_folder", tmp_path))}
        expected = {}
        for folder, split in zip(folders, splits, strict=True):
            paths = [order.format(side=side, split=folder, name=f"{folder}.png") for side in ("A", "B")]
            expected[" + ".join(dict.fromkeys(paths))] = split
        assert found == expected

    def test_layout_can_be_said(self, tmp_path):
        self.save(tmp_path, "A/1.png", "B/1.png")
        assert load("paired_folder", tmp_path, layout="side_by_side").count == 2
        self.save(tmp_path / "flat", "1.png")
        with pytest.raises(SourceError, match=r"1.png lies in neither of the folders A and B"):
            load("paired_folder", tmp_path / "flat", layout="folders")

    def test_a_given_image_with_several_targets_is_in_one_split(self, tmp_path):
        self.save(tmp_path, *(f"{side}/{i}.png" for side in "AB" for i in range(4)))
        for name in ("A/2.png", "B/1.png"):
            (tmp_path / name).write_bytes((tmp_path / name[0] / "3.png").read_bytes())
        groups = {d: [item.group for item in items(load("paired_folder", tmp_path, direction=d))] for d in DIRECTIONS}
        assert [[group is not None for group in of] for of in groups.values()] == [
            [False, False, True, True],
            [False, True, False, True],
        ]
        assert [len({*of}) for of in groups.values()] == [2, 2]

    def test_files_without_a_partner(self, tmp_path):
        self.save(tmp_path, *(f"A/{i}.png" for i in range(5)), *(f"B/{i}.png" for i in (0, 1, 3)))
        with pytest.raises(SourceError, match=r"A/2.png has no partner in B \(2 such files\)"):
            load("paired_folder", tmp_path)
        self.save(tmp_path, "A/3.png", "B/2.png", "B/4.png", "B/9.png")
        with pytest.raises(SourceError, match=r"B/9.png has no partner in A \(1 such files\)"):
            load("paired_folder", tmp_path)
        self.save(tmp_path, "A/9.png", "A/9.bmp")
        with pytest.raises(SourceError, match=r"A/9.bmp and A/9.png have the same name"):
            load("paired_folder", tmp_path)
        self.save(tmp_path, "stray.png")
        with pytest.raises(SourceError, match=r"stray.png lies in neither"):
            load("paired_folder", tmp_path)


class TestParquet:
    COLUMNS: ClassVar = {
        "bytes": pa.array([png(p) for p in PIXELS]),
        "struct": pa.array([{"bytes": png(p), "path": "x.png"} for p in PIXELS]),
        "tensor": pa.FixedShapeTensorArray.from_numpy_ndarray(PIXELS),
        "lists": pa.array(PIXELS.tolist()),
        "lists of bytes": pa.array(PIXELS.tolist(), pa.list_(pa.list_(pa.uint8()))),
    }

    @pytest.mark.parametrize("kind", COLUMNS)
    def test_columns(self, tmp_path, kind):
        labels = [["b", "a"][i % 2] for i in range(12)]
        table = pa.table({"x": self.COLUMNS[kind], "y": labels})
        pq.write_table(table.slice(0, 9), tmp_path / "0.parquet", row_group_size=4)
        pq.write_table(table.slice(9), tmp_path / "1.parquet")
        source = load("parquet", tmp_path, image="x", label="y")
        found = items(source)
        assert len(source.parts) == 4
        assert source.classes == ("a", "b")
        assert [item.label for item in found] == [1, 0] * 6
        np.testing.assert_array_equal(decoded(found)[:, 0], PIXELS)
        assert found[5].id == "0.parquet[group 1, row 1]"

    def test_numbers_are_classes_by_size(self, tmp_path):
        pq.write_table(pa.table({"image": self.COLUMNS["bytes"], "label": [10, 9] * 6}), tmp_path / "a.parquet")
        source = load("parquet", tmp_path)
        assert source.classes == ("9", "10")
        assert [item.label for item in items(source)] == [1, 0] * 6
        assert load("parquet", tmp_path, label=None).classes == ()

    @pytest.mark.parametrize(
        ("labels", "classes"),
        [
            ([3.0, 1.0, None, float("nan")], ("1", "3")),  # as pandas writes whole numbers with gaps
            ([0.5, 10.0, 2.0, -1.0], ("-1", "0.5", "2", "10")),
            (["a10", "a2", "", "a2"], ("a2", "a10")),
            (["10", "9", "x", "1.0"], ("1", "9", "10", "x")),
            ([b"b", b"\xe9", None, b"b"], ("\\xe9", "b")),
            ([True, False, None, True], ("False", "True")),
        ],
    )
    def test_what_classes_are_called(self, tmp_path, labels, classes):
        pq.write_table(pa.table({"image": self.COLUMNS["bytes"][:4], "label": labels}), tmp_path / "a.parquet")
        source = load("parquet", tmp_path)
        assert source.classes == classes
        for item, value in zip(items(source), labels, strict=True):
            missing = value in (None, "") or value != value
            assert (item.label is None) == missing
            if not missing:
                assert label_of(classes, value) == item.label

    def test_holes_are_left_to_the_rejects(self, tmp_path):
        cells = [None, [[1, 2], [3]], [[1, 2], [3, 4]]]
        pq.write_table(pa.table({"image": pa.array(cells), "label": pa.array([0, 1, None])}), tmp_path / "a.parquet")
        found = items(load("parquet", tmp_path))
        assert [item.payload is None for item in found] == [True, True, False]
        assert [item.label for item in found] == [0, 1, None]

    def test_names_of_classes_that_datasets_wrote(self, tmp_path):
        def write(name, names, labels):
            feature = {"names": names, "_type": "ClassLabel"}
            about = json.dumps({"info": {"features": {"image": {"_type": "Image"}, "label": feature}}})
            table = pa.table({"image": self.COLUMNS["bytes"][: len(labels)], "label": labels})
            pq.write_table(table.replace_schema_metadata({"huggingface": about} if names else {}), tmp_path / name)

        write("a.parquet", ["dog", "cat", "cow"], [0, 1, -1, None])
        write("b.parquet", ["cat", "cow", "dog"], [0, 2, 3])
        source = load("parquet", tmp_path)
        assert source.classes == ("cat", "dog")
        assert [item.label for item in items(source)] == [1, 0, None, None, 0, 1, None]
        write("c.parquet", [], [0, 1])
        with pytest.raises(
            SourceError, match=r"c\.parquet: column 'label' has numbers, and in b\.parquet names of cla"
        ):
            load("parquet", tmp_path)

    def test_what_datasets_writes_is_read(self, tmp_path):
        datasets = pytest.importorskip("datasets")
        table = datasets.Dataset.from_dict({"image": [png(p) for p in PIXELS[:3]], "label": [1, 0, -1]})
        table.cast_column("label", datasets.ClassLabel(names=["b", "a"])).to_parquet(tmp_path / "a.parquet")
        source = load("parquet", tmp_path)
        assert source.classes == ("a", "b")
        assert [item.label for item in items(source)] == [0, 1, None]

    def test_a_value_in_every_row_is_held_once(self, tmp_path):
        large = bytes(3_000_000)
        pq.write_table(pa.table({"image": pa.array([large] * 60)}), tmp_path / "a.parquet", compression="zstd")
        assert (tmp_path / "a.parquet").stat().st_size < 10_000
        before = pa.total_allocated_bytes()
        for item, _ in zip(items_of(load("parquet", tmp_path, label=None)), range(3), strict=False):
            assert len(item.payload) == len(large)
            assert pa.total_allocated_bytes() - before < 5 * len(large)

    def test_what_cannot_be_read(self, tmp_path):
        path = tmp_path / "a.parquet"
        pq.write_table(pa.table({"image": ["a", "b"], "label": [[0], [1]], "png": [b"", b""]}), path)
        with pytest.raises(SourceError, match="no column 'picture'; it has: image, label, png"):
            load("parquet", tmp_path, image="picture")
        with pytest.raises(SourceError, match=r"no column 'kind'; it has: .*, png; source\.label: null reads"):
            load("parquet", tmp_path, label="kind")
        with pytest.raises(SourceError, match="column 'image' is string; images are bytes"):
            load("parquet", tmp_path)
        with pytest.raises(SourceError, match=r"column 'label' of list.* cannot be labels"):
            load("parquet", tmp_path, image="png")
        path.write_bytes(b"no parquet")
        with pytest.raises(SourceError, match=r"\A[^\n]*a.parquet[^\n]*\Z"):
            load("parquet", tmp_path)


class TestHuggingface:
    def test_without_the_extra(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "datasets", None)
        with pytest.raises(SourceError, match=r"pip install ganlib\[huggingface\]"):
            load("huggingface", tmp_path)

    def test_saved_to_disk(self, tmp_path):
        datasets = pytest.importorskip("datasets")
        rows = {"image": [Image.fromarray(p) for p in PIXELS], "label": [i % 2 for i in range(12)]}
        features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["even", "odd"]))
        whole = datasets.Dataset.from_dict(rows, features=features)
        parts = {"train": whole.select(range(8)), "test": whole.select(range(8, 12))}
        datasets.DatasetDict(parts).save_to_disk(tmp_path / "saved")
        source = load("huggingface", tmp_path / "saved")
        found = items(source)
        assert source.classes == ("even", "odd")
        np.testing.assert_array_equal(decoded(found)[:, 0], PIXELS)
        assert [item.label for item in found] == [0, 1] * 6
        assert load("huggingface", tmp_path / "saved", split="test").count == 4
        for wrong, said in (({"split": "x"}, "no split 'x'; it has: train, test"), ({"image": "x"}, "no column 'x'")):
            with pytest.raises(SourceError, match=said):
                load("huggingface", tmp_path / "saved", **wrong)
        with pytest.raises(SourceError, match=r"\A[^\n]+\Z"):
            load("huggingface", tmp_path / "nothing")

    def save(self, folder, **splits):
        """`SPLIT=(names of a ClassLabel or None, labels)`, with a column that only the first split has."""
        datasets = pytest.importorskip("datasets")
        found = {}
        for split, (names, labels) in splits.items():
            rows = {"image": [Image.fromarray(p) for p in PIXELS[: len(labels)]], "label": labels}
            found[split] = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
            if names:
                found[split] = found[split].cast_column("label", datasets.ClassLabel(names=list(names)))
            if split == "train":
                found[split] = found[split].add_column("other", range(len(labels)))
        datasets.DatasetDict(found).save_to_disk(folder)

    def test_classes_of_splits_are_mapped_by_name(self, tmp_path):
        self.save(tmp_path, train=("bac", [0, 1, 2]), test=("acb", [0, 2, -1]), extra=(None, [None, None]))
        source = load("huggingface", tmp_path)
        assert source.classes == ("b", "a", "c")
        labels = [(item.id, item.label) for item in items(source)]
        assert labels[:3] == [("train, row 0", 0), ("train, row 1", 1), ("train, row 2", 2)]
        assert labels[3:6] == [("test, row 0", 1), ("test, row 1", 0), ("test, row 2", None)]
        assert labels[6:] == [("extra, row 0", None), ("extra, row 1", None)]

    @pytest.mark.parametrize(
        ("train", "test", "said"),
        [
            (("ab", [0, 1]), ("abd", [0, 1]), "only one has d"),
            (("ab", [0, 1]), (None, ["a", "b"]), "ClassLabel and string"),
            ((None, [0, 1]), (None, ["a", "b"]), "int64 and string"),
        ],
    )
    def test_splits_that_differ_are_one_clear_line(self, tmp_path, train, test, said):
        self.save(tmp_path, train=train, test=test)
        with pytest.raises(
            SourceError,
            match=rf"\A[^\n]*'label' differs between the splits train and test: {said}; name .*source\.split\Z",
        ):
            load("huggingface", tmp_path)
        assert load("huggingface", tmp_path, split="test").count == 2
        with pytest.raises(SourceError, match=r"no column 'other' in test; it has: image, label; source\.split names"):
            load("huggingface", tmp_path, image="other", label=None)
        with pytest.raises(SourceError, match=r"no column 'kind' in test; it has: image, label; source\.label: null"):
            load("huggingface", tmp_path, label="kind", split="test")

    def test_a_split_without_labels_can_be_left_out(self, tmp_path):
        self.save(tmp_path / "raw", train=("ab", [0, 1] * 3), test=("ab", [-1] * 5))
        cfg = {"source": {"name": "huggingface"}, "sample": {"kind": "image", "resolution": [5, 6]}}
        with pytest.raises(StageError, match=r"test, row 0 \(it has no label\).*; unlabelled: keep .*; source\.split "):
            prepare(DatasetConfig.model_validate(cfg), tmp_path / "raw", tmp_path / "out")

    def test_names_without_an_example_are_left_out(self, tmp_path):
        self.save(tmp_path, train=("cab", [0, 2, 0]), test=("cab", [2, 2, -1]))
        source = load("huggingface", tmp_path)
        assert source.classes == ("c", "b")
        assert [item.label for item in items(source)] == [0, 1, 0, 1, 1, None]
        assert source.notes == ("Names of classes without an example, left out: a.",)

    def test_other_columns_open_no_files_either(self, tmp_path, monkeypatch):
        datasets = pytest.importorskip("datasets")
        opened = []
        monkeypatch.setattr(datasets.Image, "decode_example", lambda self, value, **how: opened.append(value))
        rows = {
            "image": [{"bytes": png(p), "path": None} for p in PIXELS],
            "other": [{"bytes": None, "path": "/etc/hostname"}] * 12,
            "several": [[{"bytes": None, "path": "/etc/hostname"}]] * 12,
            "label": [0, 1] * 6,
        }
        bytes_and_path = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
        features = {
            "image": bytes_and_path,
            "other": bytes_and_path,
            "several": [bytes_and_path],
            "label": datasets.Value("int64"),
        }
        table = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
        as_images = {"image": datasets.Image(), "other": datasets.Image(), "several": [datasets.Image()]}
        table = table.cast(datasets.Features(as_images | {"label": datasets.Value("int64")}))
        table.save_to_disk(tmp_path / "saved")
        assert [item.label for item in items(load("huggingface", tmp_path / "saved"))] == [0, 1] * 6
        assert opened == []
        for wrong, said in (
            ({"image": "several"}, "column 'several' is .*; expected one image in each row"),
            ({"label": "other"}, "column 'other' is Image: it cannot be labels"),
        ):
            with pytest.raises(SourceError, match=said):
                load("huggingface", tmp_path / "saved", **wrong)

    def test_rows_open_no_files_but_their_own(self, tmp_path):
        raw, cache, elsewhere = (tmp_path / name for name in ("raw", "cache", "elsewhere"))
        for folder in (raw, cache, elsewhere):
            folder.mkdir()
            (folder / "x.png").write_bytes(png(PIXELS[0]))
        (raw / "link.png").symlink_to(elsewhere / "x.png")
        own = ["x.png", str(raw / "x.png"), str(cache / "x.png")]
        foreign = [str(elsewhere / "x.png"), "../elsewhere/x.png", "link.png"]
        cells = [{"bytes": None, "path": path} for path in (*own, *foreign, None)]
        cells.append({"bytes": png(PIXELS[1]), "path": str(elsewhere / "x.png")})  # which is not opened
        module = registry.load("sources", "huggingface")
        rows = [{"image": cell} for cell in cells]
        found = list(module._items(rows, 0, len(rows), module.Config(label=None), {}, (raw, cache), "all"))
        assert [item.payload for item in found[:3]] == [raw / "x.png", raw / "x.png", cache / "x.png"]
        for item, path in zip(found[3:6], foreign, strict=True):
            assert item.payload is None
            assert item.reason == f"{path} lies outside the raw folder and the caches of Hugging Face"
        assert (found[6].payload, found[6].reason) == (None, "there is no readable sample in it")
        assert found[7].payload == png(PIXELS[1])

    def test_rows_may_name_files_of_the_raw_folder_and_the_caches(self, tmp_path):
        datasets = pytest.importorskip("datasets")
        module = registry.load("sources", "huggingface")
        raw, *caches = module._folders(tmp_path)
        assert raw == tmp_path.resolve()
        assert datasets.config.HF_DATASETS_CACHE.resolve() in caches
        rows = {"image": [{"bytes": None, "path": str(tmp_path / "x.png")}, {"bytes": None, "path": "/etc/hostname"}]}
        (tmp_path / "x.png").write_bytes(png(PIXELS[0]))
        table = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image(decode=False))
        found = list(module._items(table, 0, 2, module.Config(label=None), {}, [raw, *caches], "all"))
        assert [item.payload for item in found] == [raw / "x.png", None]


def test_parts_travel_to_other_processes(tmp_path):
    Image.fromarray(PIXELS[0]).save(tmp_path / "a.png")
    pq.write_table(pa.table({"image": TestParquet.COLUMNS["bytes"]}), tmp_path / "a.parquet")
    TestIdx().write(tmp_path / "train-images-idx3-ubyte", PIXELS)
    TestPairedFolder().save(tmp_path / "pairs", "A/1.png", "B/1.png")
    for source in (
        load("paired_folder", tmp_path / "pairs"),
        load("image_folder", tmp_path, labels="none"),
        load("parquet", tmp_path, label=None),
        load("idx", tmp_path),
        load("digits", tmp_path),
        load("mnist", tmp_path),
    ):
        for part in source.parts:
            pickle.loads(pickle.dumps(part))


# -- attributes ------------------------------------------------------------------------------------------------


def test_parquet_attributes(tmp_path):
    rows = {"image": [png(np.full((8, 8), i * 40, np.uint8)) for i in range(3)], "age": [20, 30, None]}
    pq.write_table(pa.table({**rows, "smile": [True, False, True]}), tmp_path / "a.parquet")
    found = load("parquet", tmp_path, label=None, attributes=["age", "smile"])
    assert found.attributes == ("age", "smile")
    assert [item.attributes for item in items(found)] == [(20.0, 1.0), (30.0, 0.0), None]
    with pytest.raises(ValueError, match="attributes and a label cannot both be the condition"):
        load("parquet", tmp_path, attributes=["age"])
    with pytest.raises(SourceError, match=r"column 'image' is binary; attributes are numbers or booleans"):
        load("parquet", tmp_path, label=None, attributes=["image"])


def test_image_folder_attributes(tmp_path):
    for name in ("x/1.png", "x/2.png", "3.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(png(np.zeros((8, 8), np.uint8)))
    (tmp_path / "list.csv").write_text("image,age,smile\nx/1.png,20,1\n3.png,30.5,0\n")
    found = load("image_folder", tmp_path, attributes="list.csv")
    assert (found.classes, found.attributes) == ((), ("age", "smile"))
    assert {i.id: i.attributes for i in items(found)} == {"x/1.png": (20, 1), "x/2.png": None, "3.png": (30.5, 0)}
    for text, message in (
        ("image,age\n3.png,young\n", r"list\.csv: line 2: age: expected a finite number, found 'young'"),
        ("image,age\n3.png,1,2\n", r"line 2: expected 1 finite numbers"),
        ("image\n", "expected a first line of a name for the path and names of attributes"),
    ):
        (tmp_path / "list.csv").write_text(text)
        with pytest.raises(SourceError, match=message):
            load("image_folder", tmp_path, attributes="list.csv")
    with pytest.raises(SourceError, match=r"source\.attributes: .*nowhere\.csv"):
        load("image_folder", tmp_path, attributes="nowhere.csv")


@pytest.mark.parametrize("name", load_params(ROOT / "params.yaml").datasets)
def test_what_packages_ship_has_a_folder_for_dvc(name, tmp_path):
    """The stage `prepare` depends on data/raw/NAME, also where nothing lies there but a note."""
    source = load_params(ROOT / "params.yaml").datasets[name].source
    try:
        registry.load("sources", source.name).load(source, tmp_path)
    except SourceError:
        return
    assert (ROOT / "data/raw" / name / "README.md").is_file()


@pytest.mark.parametrize("name", ["csv", "idx", "lines", "parquet"])
def test_files_that_are_no_items_are_counted(tmp_path, name):
    """As of images: what is passed over is in the card."""
    for left in ("notes.doc", "old/notes.DOC", "Makefile", ".hidden"):
        (tmp_path / left).parent.mkdir(exist_ok=True)
        (tmp_path / left).write_text("x")
    if name == "csv":
        (tmp_path / "rows.csv").write_text("a,b\n1,2\n")
    elif name == "lines":
        (tmp_path / "lines.txt").write_text("one\n")
    elif name == "parquet":
        pq.write_table(pa.table({"image": [png(PIXELS[0])]}), tmp_path / "images.parquet")
    else:
        header = (0x0803).to_bytes(4, "big") + b"".join(n.to_bytes(4, "big") for n in PIXELS.shape)
        (tmp_path / "train-images-idx3-ubyte").write_bytes(header + PIXELS.tobytes())
        (tmp_path / "train-labels-idx1-ubyte").write_bytes(
            (0x0801).to_bytes(4, "big") + (12).to_bytes(4, "big") + bytes(12)
        )
    options = {"label": None} if name == "parquet" else {}
    assert load(name, tmp_path, **options).passed_over == {".doc": 2, "hidden": 1, "without a suffix": 1}


def rows_of(source):
    return [item.payload for item in items(source)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Sales\n\nday,shop,n\n" + "1,s0,3\n" * 9, r"first line has 1 cells, most lines have 3 \(delimiter ','\)"),
        ("sep=;\nday;shop;n\n" + "1;s0;3\n" * 9, r"first line has 2 cells, most lines have 3 \(delimiter ';'\)"),
        ("day,shop,n\n" + "1,s0,3,\n" * 9, r"first line has 3 cells, most lines have 4"),
        ('"day","shop"\n' + '"1",5,"a"\n' * 9, r"first line has 2 cells, most lines have 3"),
        ("5.1,3.5,setosa\n" + "4.9,3.0,setosa\n" * 9, r"no header: its first line is already of numbers \(5\.1, 3\.5"),
        ("6,148,72\n1,85,66\n", r"no header"),
        ('n,size\n1,small\n2,"big\n' + "3,small\n" * 9, r"after byte 15 begins with a quote that is never closed"),
    ],
)
def test_a_csv_file_that_is_no_table_is_one_clear_line(tmp_path, text, message):
    (tmp_path / "rows.csv").write_text(text)
    with pytest.raises(SourceError, match=rf"rows\.csv: .*{message}") as said:
        load("csv", tmp_path)
    assert "\n" not in str(said.value)


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("2019,2020\n1,2\n3,4\n", ["2019", "2020"]),
        ("name,1.5\nx,a\ny,b\n", ["name", "1.5"]),
        ("text\nwell, yes\nno\nperhaps\n", ["text"]),
        ('a,b\n1,"2, or 3"\n4,"5\n6"', ["a", "b"]),
    ],
)
def test_a_csv_file_with_an_unusual_header_or_cells_is_read(tmp_path, text, columns):
    (tmp_path / "rows.csv").write_text(text)
    assert list(rows_of(load("csv", tmp_path))[0]) == columns


@pytest.mark.parametrize("name", ["csv", "lines", "parquet"])
@pytest.mark.parametrize(
    ("training", "testing"),
    [
        ("train", "test"),
        ("train", "validation"),
        ("set/train/x", "set/test/y"),
        ("data/train-00000-of-00001", "data/test-00000-of-00001"),
        ("train-00000-of-00001-a09b74b3ef9c3b56", "test-00000-of-00001-0123456789abcdef"),
        ("adult.data", "adult.test"),
    ],
)
def test_the_split_of_files_of_rows_is_kept(tmp_path, name, training, testing):
    suffix = {"csv": "csv", "lines": "txt", "parquet": "parquet"}[name]
    for place in (training, testing):
        path = tmp_path / f"{place}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("a\n1\n")
        if name == "parquet":
            pq.write_table(pa.table({"a": [1]}), path)
    source = load(name, tmp_path, **({"image": None, "label": None} if name == "parquet" else {}))
    found = {(tmp_path / re.split(r"[,:[]", item.id)[0]).with_suffix(""): item.split for item in items(source)}
    assert found == {tmp_path / training: "train", tmp_path / testing: "test"}
    assert source.notes[0].startswith("The split is that of the files and folders: ")


def test_files_that_are_classes_are_no_splits(tmp_path):
    for folder in ("train", "test"):
        (tmp_path / folder).mkdir()
        for file in ("train", "test"):
            (tmp_path / folder / f"{file}.txt").write_text("a\n")
    found = {item.id: (item.split, item.label) for item in items(load("lines", tmp_path, labels="files"))}
    assert found["train/test.txt:1"] == ("train", 0)
    assert found["test/train.txt:1"] == ("test", 1)
    (tmp_path / "train" / "test.txt").rename(tmp_path / "test.txt")
    (tmp_path / "train" / "train.txt").rename(tmp_path / "train.txt")
    assert {item.split for item in items(load("lines", tmp_path, labels="files", files=["*.txt"]))} == {None}


def test_a_note_names_some_of_many_files(tmp_path):
    for i in range(30):
        (tmp_path / f"train-{i:05}-of-00030.txt").write_text("a\n")
    (tmp_path / "test.txt").write_text("a\n")
    (note,) = load("lines", tmp_path).notes
    assert note.count("for training") == 7
    assert note.endswith(" and 23 others.")


def test_a_mark_of_utf_8_is_no_part_of_a_name(tmp_path):
    (tmp_path / "rows.csv").write_text("a,b\n1,2\n", encoding="utf-8-sig")
    for encoding in (None, "utf-8", "UTF8"):
        assert rows_of(load("csv", tmp_path, encoding=encoding)) == [{"a": "1", "b": "2"}]


def rows_of_parquet(tmp_path, **tables):
    for name, table in tables.items():
        path = tmp_path / f"{name.replace('__', '/')}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(table), path)
    return lambda **options: load("parquet", tmp_path, **{"image": None, "label": None} | options)


def test_no_column_of_parquet_is_left_out(tmp_path):
    with pytest.raises(SourceError, match=r"1\.parquet: its columns are not those of 0\.parquet: b$"):
        rows_of_parquet(tmp_path, **{"0": {"a": [1]}, "1": {"a": [1], "b": [2]}})()


def test_folders_of_parquet_are_columns(tmp_path):
    found = rows_of_parquet(tmp_path, **{"year=2020__0": {"a": [1]}, "year=20%2F21__0": {"a": [2]}})
    rows = [{"a": 2, "year": "20/21"}, {"a": 1, "year": "2020"}]
    assert sorted(rows_of(found()), key=lambda row: -row["a"]) == rows
    labelled = found(label="year")
    assert labelled.classes == ("2020", "20/21")
    assert {item.payload["a"]: item.label for item in items(labelled)} == {2: 1, 1: 0}
    with pytest.raises(SourceError, match=r"no column 'year'; it has: a$"):
        found(attributes=["year"])


def test_an_index_of_pandas_without_a_name_is_no_column(tmp_path):
    import pandas as pd

    frame = pd.DataFrame({"a": [1, 2, 3, 4]})
    frame[frame.a != 3].to_parquet(tmp_path / "rows.parquet")
    assert "__index_level_0__" in pq.read_schema(tmp_path / "rows.parquet").names
    assert rows_of(load("parquet", tmp_path, image=None, label=None)) == [{"a": 1}, {"a": 2}, {"a": 4}]


def test_lines_are_read_through_links_and_not_from_hidden_files(tmp_path):
    raw, elsewhere = tmp_path / "raw", tmp_path / "elsewhere"
    for path in (raw / "a.txt", elsewhere / "b.txt"):
        path.parent.mkdir()
        path.write_text(f"{path.stem}\n \N{NO-BREAK SPACE}\N{IDEOGRAPHIC SPACE}\n")
    for name in ("._a.txt", ".ipynb_checkpoints/a.txt", "__MACOSX/a.txt"):
        (raw / name).parent.mkdir(exist_ok=True)
        (raw / name).write_bytes(b"\xff\xfe\x00")
    (raw / "linked").symlink_to(elsewhere)
    (raw / "loop").symlink_to(raw)
    assert [(item.id, item.payload) for item in items(load("lines", raw))] == [
        ("a.txt:1", "a"),
        ("linked/b.txt:1", "b"),
    ]
    for pattern in ("../elsewhere/*.txt", f"{elsewhere}/*.txt"):
        with pytest.raises(SourceError, match=r"^source\.files: .*: expected a pattern of paths below"):
            load("lines", raw, files=[pattern])
