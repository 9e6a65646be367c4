from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from sklearn.datasets import load_digits
from specs import completed, image_spec, packed_rows
from torch import Tensor

from ganlib import shard_writer, shards
from ganlib.config import ClassifierConfig, ConfigError, ReferenceConfig
from ganlib.data._spec import Spec
from ganlib.data.image import decode
from ganlib.metrics import fd
from ganlib.reference import Reference, build

CFG = ReferenceConfig(classifier=ClassifierConfig(width=8, epochs=4))
SPLITS = {"train": 500, "test": 200}
SPEC = image_spec((1, 8, 8), tuple("0123456789"), SPLITS, "f" * 64)

VARIETY = {"diversity/features", "rank/features", "nearest_neighbour_ratio/features"}


def stored(split: str) -> dict[str, Tensor]:
    images, labels = load_digits(return_X_y=True)
    rows = slice(0, 500) if split == "train" else slice(500, 700)
    pixels = (torch.tensor(images[rows]) / 16 * 255).to(torch.uint8).view(-1, 1, 8, 8)
    return {"sample": pixels, "label": torch.tensor(labels[rows])}


def decoded(split: str) -> dict[str, Tensor]:
    columns = stored(split)
    return {**columns, "sample": decode(None, "sample", columns["sample"])}


def quality(reference: Reference, samples: dict[str, Tensor]) -> dict[str, float]:
    return reference.quality(reference.space.extract(samples["sample"]), samples.get("label"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("reference")
    build(made, SPEC, stored("train"), stored("test"), CFG, seed=0)
    return made


@pytest.fixture(scope="module")
def reference(folder: Path) -> Reference:
    return Reference.load(folder, device="cpu")


def test_what_was_built_is_loaded(folder: Path, reference: Reference):
    about = json.loads((folder / "reference.json").read_text())
    assert reference.spec == SPEC
    assert list(reference.spaces) == ["efficientnet_lite0", "classifier"]
    assert {name: space["features"] for name, space in about["spaces"].items()} == {
        "efficientnet_lite0": 1280,
        "classifier": 64,
    }
    for space in reference.spaces.values():
        assert (len(space.train), len(space.test)) == (500, 200)
        torch.testing.assert_close(space.extract(decoded("test")["sample"]), space.test, rtol=1e-3, atol=1e-3)
    assert reference.labels["train"].tolist() == stored("train")["label"].tolist()


def test_the_accuracy_reported_is_the_classifiers(folder: Path, reference: Reference):
    test = decoded("test")
    assert reference.classifier is not None
    right = reference.classifier.logits(test["sample"]).argmax(1) == test["label"]
    assert reference.about["classifier"]["test_accuracy"] == pytest.approx(float(right.double().mean()), abs=1e-3)
    assert right.double().mean() > 0.8
    pairs = (folder / "confusion.csv").read_text().splitlines()
    assert pairs[0] == "actual,predicted"
    assert sum(len(set(pair.split(","))) == 1 for pair in pairs[1:]) == int(right.sum())


def test_the_same_seed_builds_the_same_bytes(folder: Path, tmp_path: Path):
    build(tmp_path, SPEC, stored("train"), stored("test"), CFG, seed=0)
    name = "classifier.safetensors"
    assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_quality_orders_real_noised_and_noise(reference: Reference):
    real = decoded("test")
    noise = torch.randn(real["sample"].shape, generator=torch.Generator().manual_seed(0))
    found = [
        quality(reference, {**real, "sample": (real["sample"] + amount * noise).clamp(-1, 1)}) for amount in (0, 1, 9)
    ]
    distances = [row["quality/classifier.fd"] for row in found]
    assert distances == sorted(distances)
    assert distances[0] == pytest.approx(
        fd.distance(*(fd.gaussian(getattr(reference.spaces["classifier"], split)) for split in SPLITS)), rel=1e-2
    )
    assert found[0]["quality/class_coverage"] == 1.0
    assert found[0]["quality/label_accuracy"] > 0.8 > found[2]["quality/label_accuracy"]


def test_quality_without_labels_asked_for(reference: Reference):
    assert set(quality(reference, {"sample": decoded("test")["sample"]})) == {
        "quality/classifier.fd",
        "quality/class_coverage",
        *VARIETY,
    }


def test_quality_of_what_is_not_a_number_is_infinite(reference: Reference):
    bad = torch.full((20, 1, 8, 8), math.nan)
    assert quality(reference, {"sample": bad})["quality/classifier.fd"] == math.inf


def test_quality_is_cheap(reference: Reference):
    samples = {"sample": torch.rand(1000, 1, 28, 28) * 2 - 1}
    quality(reference, {"sample": samples["sample"][:20, :, :8, :8]})
    began = time.process_time()
    quality(reference, {"sample": samples["sample"][:, :, :8, :8]})
    assert time.process_time() - began < 2.0


def test_unlabelled_data_have_no_classifier(tmp_path: Path):
    spec = dataclasses.replace(SPEC, classes=())
    train, test = ({"sample": stored(split)["sample"][:60]} for split in ("train", "test"))
    assert build(tmp_path, spec, train, test, CFG, seed=0)["classifier"] is None
    reference = Reference.load(tmp_path, device="cpu")
    assert reference.classifier is None
    assert list(reference.spaces) == ["efficientnet_lite0"]
    assert set(quality(reference, {"sample": decode(None, "sample", test["sample"])})) == {
        "quality/efficientnet_lite0.fd",
        *VARIETY,
    }
    with pytest.raises(ValueError, match="no classifier"):
        reference.predict(reference.spaces["efficientnet_lite0"].test)


def test_large_images_are_read_once_and_few_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """… and what is found is what is found of all at once."""
    rng = np.random.default_rng(0)
    coarse = torch.tensor(rng.integers(0, 256, (90, 3, 8, 8), dtype=np.uint8))
    images = torch.nn.functional.interpolate(coarse, (160, 200), mode="bilinear").numpy()
    of_images = image_spec((3, 160, 200), tuple("abc"))
    rows = packed_rows(of_images, [{"sample": image} for image in images], [i % 3 for i in range(90)])
    prepared = tmp_path / "prepared"
    prepared.mkdir()
    shard_writer.write(prepared, [rows], of_images.parts, completed(of_images), test_share=0.3, shard_mb=64.0)
    spec, wholes, reads = shards.read_spec(prepared), [], []
    for split in shards.SPLITS:
        wholes.append(shards.read(prepared, split))
    read, taken, asked = shards.read_groups, shards.LazyRows.__getitem__, []

    def counted(rows: shards.LazyRows, which: slice | Tensor) -> Tensor:
        found = taken(rows, which)
        asked.append(len(found))
        return found

    def recorded(spec: Spec, groups: list[shards.Group], *, columns: Any = None) -> dict[str, Tensor]:
        if columns is None or "sample" in columns:
            reads.append(sum(group.rows for group in groups))
        return read(spec, groups, columns=columns)

    monkeypatch.setattr(shards, "read_groups", recorded)
    monkeypatch.setattr(shards.LazyRows, "__getitem__", counted)
    cfg = ReferenceConfig(classifier=ClassifierConfig(width=4, epochs=1))
    build(tmp_path / "whole", spec, *wholes, cfg, seed=0)
    monkeypatch.setattr(shards, "rows_per_chunk", lambda size: 17)
    build(tmp_path / "parts", spec, *(shards.stored(prepared, split) for split in shards.SPLITS), cfg, seed=0)
    assert sum(reads) == sum(asked) == 90
    assert max(asked) == 17
    assert max(reads) <= 2 * 2**20 // (3 * 160 * 200)
    whole, parts = (Reference.load(tmp_path / name, "cpu") for name in ("whole", "parts"))
    assert whole.labels["train"].equal(parts.labels["train"])
    for name, space in whole.spaces.items():
        torch.testing.assert_close(parts.spaces[name].train, space.train, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(parts.spaces[name].test, space.test, rtol=1e-3, atol=1e-3)
    assert parts.about["spaces"]["classifier"]["size"] == [64, 64]
    image = decode(None, "sample", wholes[1]["sample"])
    spread = parts.spaces["classifier"].test.std()
    assert (parts.spaces["classifier"].extract(image) - parts.spaces["classifier"].test).abs().max() < 0.05 * spread


def test_other_data_are_noticed(reference: Reference):
    reference.check(SPEC)
    with pytest.raises(ConfigError, match="run the stage `reference`"):
        reference.check(dataclasses.replace(SPEC, content_hash="0" * 64))


def test_what_cannot_be_done_is_said(tmp_path: Path):
    few = {"sample": stored("test")["sample"][:9]}
    with pytest.raises(ConfigError, match="test split has 9 examples; at least 10"):
        build(tmp_path, SPEC, stored("train"), few, CFG, seed=0)
    with pytest.raises(ValidationError, match=r"'inceptoin' is not a feature space \(did you mean 'inception'\?\)"):
        ReferenceConfig(spaces={"inceptoin": {"file": "net.pt"}})
    with pytest.raises(ValidationError, match=r"inception is now spaces.inception.file"):
        ReferenceConfig(inception="net.pt")
    with pytest.raises(FileNotFoundError, match="run the stage `reference`"):
        Reference.load(tmp_path)


def test_a_full_disk_is_an_error_of_the_system(tmp_path: Path):
    """A limit to the size of files fails as a full disk does, but cannot be lifted: hence a process of its own."""
    script = f"""
import resource, torch
from ganlib.config import ReferenceConfig
from ganlib.data import image
from ganlib.data._spec import Spec
from ganlib.reference import build

sample = image.Config(resolution=(8, 8), channels=1)
spec = Spec(sample, "image", (), {{"train": 10, "test": 10}}, "f" * 64)
images = {{"sample": torch.zeros(10, 1, 8, 8, dtype=torch.uint8)}}
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    build({str(tmp_path)!r}, spec, images, images, ReferenceConfig(), seed=0)
except OSError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.startswith(f"{tmp_path}/features/efficientnet_lite0.safetensors: "), done.stderr


def test_the_classifier_learns_from_what_is_labelled_and_is_judged_on_it(tmp_path: Path):
    splits = {split: {name: column[:120] for name, column in stored(split).items()} for split in SPLITS}
    for columns in splits.values():
        columns["label"] = columns["label"].clone()
        columns["label"][::3] = -1
    spec = dataclasses.replace(SPEC, counts={"train": 120, "test": 120}, unlabelled=80)
    about = build(tmp_path, spec, splits["train"], splits["test"], CFG, seed=0)
    pairs = [line.split(",") for line in (tmp_path / "confusion.csv").read_text().splitlines()[1:]]
    assert len(pairs) == 80
    right = sum(actual == predicted for actual, predicted in pairs) / 80
    assert about["classifier"]["test_accuracy"] == pytest.approx(right, abs=1e-4)
    assert len(Reference.load(tmp_path, device="cpu").spaces["classifier"].test) == 120
