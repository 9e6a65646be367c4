"""The README's commands for a person's own images, from files to samples of the registered generator."""

from __future__ import annotations

import csv
import math

import numpy as np
import pytest
from budgets import NO_EXPORT, SHORT
from PIL import Image
from sklearn.datasets import load_sample_images
from test_pipeline import STAGES, ran, read
from test_readme import BLOCKS

pytestmark = pytest.mark.pipeline

QUICK = (
    SHORT
    | NO_EXPORT
    | {
        "tune.num_samples": 0,
        "train.kimg": 2,
        "scale.num_workers": 0,
        "params/models/dcgan.yaml:network.width": 8,
        "params/models/pix2pix.yaml:network.width": 8,
        "params/models/pix2pix.yaml:network.discriminator_width": 8,
    }
)
SUBJECTS = ("china", "flower")
SUFFIXES = ("png", "jpg", "webp", "gif", "bmp", "tiff")


def cuttings(subject: str, count: int) -> list[Image.Image]:
    """Of one of scikit-learn's photographs; no two of one place, few of one size."""
    photograph = Image.fromarray(load_sample_images().images[SUBJECTS.index(subject)])
    draw, found = np.random.default_rng(0).integers, []
    for _ in range(count):
        left, top, width, height = draw(photograph.width - 160), draw(photograph.height - 160), *draw(80, 160, 2)
        found.append(photograph.crop((left, top, left + width, top + height)))
    return found


@pytest.fixture(scope="module")
def project(checkout):
    project = checkout("own_images", ready=True)
    project.edit(QUICK)
    return project


def follow(project, said: str, **places: str) -> str:
    """What the README's one block that says this printed, with some of the places that it names elsewhere."""
    (block,) = [text for text in BLOCKS if said in text]
    for name, place in places.items():
        assert name in block
        block = block.replace(name, place)
    return project.run("bash", "-euo", "pipefail", "-c", block)


def outcome(project) -> tuple[str, int, str]:
    decision = read(project.folder / "outputs/register/decision.json")
    return decision["model"], decision["version"], decision["decision"]


def test_photos(project, tmp_path):
    """In a folder for each class and in all formats, with a copy and with one that cannot be read."""
    for subject in SUBJECTS:
        (tmp_path / subject).mkdir()
        for i, photo in enumerate(cuttings(subject, 75)):
            photo.save(tmp_path / f"{subject}/{i}.{SUFFIXES[i % len(SUFFIXES)]}")
    (tmp_path / "china/copy.png").write_bytes((tmp_path / "china/0.png").read_bytes())
    (tmp_path / "flower/broken.jpg").write_bytes((tmp_path / "flower/1.jpg").read_bytes()[:400])
    output = follow(project, "data=photos", **{"~/pictures": str(tmp_path)})
    assert [stage for stage in ran(output) if stage in STAGES] == STAGES
    assert outcome(project) == ("ganlib-photos", 1, "promoted")
    card = read(project.folder / "data/prepared/card.json")
    assert [card[name] for name in ("items", "rejected", "duplicates", "examples")] == [152, 1, 1, 150]
    assert set(card["splits"]["train"]["classes"]) == set(SUBJECTS)
    with (project.folder / "data/prepared/rejects.csv").open() as file:
        assert [row["item"] for row in csv.DictReader(file)] == ["flower/broken.jpg"]

    project.run("ganlib", "sample", "models:/ganlib-photos@champion", "-n", "4", "--label", "flower", "-o", "four.png")
    with Image.open(project.folder / "four.png") as picture:
        assert picture.size == (2 * 66, 2 * 66)
        red, green, blue = np.moveaxis(np.asarray(picture), 2, 0)
    assert (red != green).any()
    assert (green != blue).any()


def test_pairs(project):
    """Photographs, and the same in grey."""
    for side in "AB":
        (project.folder / "data/raw/pairs" / side).mkdir(parents=True)
    photo, *photos = cuttings("china", 101)
    for i, given in enumerate(photos):
        given.save(project.folder / f"data/raw/pairs/A/{i}.jpg")
        given.convert("L").save(project.folder / f"data/raw/pairs/B/{i}.png")
    photo.save(project.folder / "photo.png")
    assert [stage for stage in ran(follow(project, "data=pairs")) if stage in STAGES] == STAGES
    assert outcome(project) == ("ganlib-pairs", 1, "promoted")
    fidelity = read(project.folder / "outputs/evaluate/metrics.json")["samples"]
    assert set(fidelity) == {"psnr", "ssim", "l1"}
    for figures in fidelity.values():
        assert math.isfinite(figures["copy"])
        assert figures["low"] < figures["value"] < figures["high"]
    with Image.open(project.folder / "map.png") as picture:  # the photo and what was made of it, side by side
        assert picture.size == (2 * 64 + 2, 64 + 2)
