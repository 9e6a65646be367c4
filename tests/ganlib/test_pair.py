"""Pairs of images: what two files, or the halves of one, become."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from ganlib.data import image, pair
from ganlib.data._spec import Spec

RNG = np.random.default_rng(0)
PHOTO, MAP = RNG.integers(0, 256, (6, 8, 3), np.uint8), RNG.integers(0, 256, (6, 8), np.uint8)


def config(height=6, width=8, channels=(3, 1), **more):
    return pair.Config.model_validate({"resolution": [height, width], "channels": list(channels), **more})


def test_channels_are_stacked(tmp_path):
    for name, pixels in (("photo.png", PHOTO), ("map.png", MAP)):
        Image.fromarray(pixels).save(tmp_path / name)
    files = (tmp_path / "photo.png", tmp_path / "map.png")
    for raw in (files, tuple(path.read_bytes() for path in files), (PHOTO, MAP)):
        made = pair.encode(config(), raw)
        assert (made.shape, made.dtype) == ((4, 6, 8), np.uint8)
        np.testing.assert_array_equal(made[:3], PHOTO.transpose(2, 0, 1))
        np.testing.assert_array_equal(made[3], MAP)
    assert pair.encode(config(channels=(1, 3)), files).shape == (4, 6, 8)
    np.testing.assert_array_equal(pair.encode(config(channels=(1, 3)), (MAP, PHOTO))[0], MAP)


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_both_halves_are_cut_alike(fit):
    made = pair.encode(config(5, 5, (3, 3), fit=fit, background=[9, 9, 9]), (PHOTO, PHOTO))
    np.testing.assert_array_equal(made[:3], made[3:])
    expected = image.encode(image.Config(resolution=(5, 5), channels=3, fit=fit, background=(9, 9, 9)), PHOTO)
    np.testing.assert_array_equal(made[:3], expected)


def test_halves_of_other_sizes_can_only_be_stretched():
    small = MAP[:3, :4]
    for fit in ("crop", "pad"):
        with pytest.raises(ValueError, match="given image is 8x6, the other 4x3"):
            pair.encode(config(fit=fit), (PHOTO, small))
    stretched = image.encode(image.Config(resolution=(6, 8), channels=1, fit="stretch"), small)
    np.testing.assert_array_equal(pair.encode(config(fit="stretch"), (PHOTO, small))[3:], stretched)


def test_side_by_side():
    grey = np.repeat(MAP[:, :, None], 3, 2)
    both = np.concatenate([PHOTO, grey], 1)
    left = pair.encode(config(), pair.SideBySide(both))
    np.testing.assert_array_equal(left, pair.encode(config(), (PHOTO, grey)))
    right = pair.encode(config(channels=(1, 3)), pair.SideBySide(both, "right"))
    np.testing.assert_array_equal(right, left[[3, 0, 1, 2]])
    with pytest.raises(ValueError, match="15x6 pixels: an odd width has no halves"):
        pair.encode(config(), pair.SideBySide(both[:, :-1]))


def test_one_broken_half_is_enough(tmp_path):
    (tmp_path / "text.png").write_text("no image")
    for raw in ((PHOTO, b""), (tmp_path / "text.png", MAP), pair.SideBySide(tmp_path / "missing.png")):
        with pytest.raises(ValueError, match=r"\A[^\n]+\Z"):
            pair.encode(config(), raw)


def test_the_spec_says_what_is_given():
    made = pair.spec(config(), classes=(), counts={"train": 1, "test": 1}, content_hash="x")
    assert (made.kind, made.modality, made.shape, made.given) == ("pair", "image_pair", (4, 6, 8), 3)
    assert Spec.from_json(made.to_json()) == made
    given, generated = made.split(torch.zeros(2, *made.shape))
    assert (given.shape, generated.shape) == ((2, 3, 6, 8), (2, 1, 6, 8))


def test_decode_and_quantise_are_inverse():
    stored = torch.from_numpy(pair.encode(config(), (PHOTO, MAP)))[None]
    assert torch.equal(pair.quantise(pair.decode(stored)), stored)


@pytest.mark.parametrize(("channels", "columns"), [(1, [0]), (3, [0]), (2, [0, 1]), (4, [0, 3]), (6, [0, 3])])
def test_preview_shows_the_halves_beside_each_other(channels, columns):
    levels = torch.linspace(-1, 1, channels).view(1, channels, 1, 1)
    drawn = np.asarray(pair.preview(levels.expand(3, channels, 60, 80), 2))
    assert drawn.shape == (2 * 62, 2 * (80 * len(columns) + 2), 3)
    for half, channel in enumerate(columns):
        assert drawn[30, 41 + 80 * half, 0] == image.quantise(levels)[0, channel, 0, 0]


def test_preview_shows_any_number_of_images_beside_each_other():
    parts = [torch.full((2, channels, 60, 60), level) for channels, level in ((3, -1.0), (1, 0.0), (1, 1.0))]
    drawn = np.asarray(pair.preview(parts, 1))
    assert drawn.shape == (2 * 62, 3 * 60 + 2, 3)
    assert [int(drawn[30, 30 + 60 * i, 2]) for i in range(3)] == [0, 128, 255]


def test_prepared_from_folders_that_fix_the_split(tmp_path):
    """Source, kind and shards together: stored as PNG, split as the folders say, drawn on the card."""
    from ganlib import shards
    from ganlib.config import DatasetConfig
    from pipelines.prepare import prepare

    stored = {}
    for split, n in (("train", 10), ("test", 10)):
        for i in range(n):
            photo, map_ = (RNG.integers(0, 256, (30, 40, c), np.uint8) for c in (3, 1))
            both = np.concatenate([photo, map_.repeat(3, 2)], 1)
            (tmp_path / "raw" / split).mkdir(parents=True, exist_ok=True)
            Image.fromarray(both).save(tmp_path / "raw" / split / f"{i}.png")
            stored.setdefault(split, set()).add(np.concatenate([map_, photo], 2).transpose(2, 0, 1).tobytes())
    cfg = DatasetConfig(
        source={"name": "paired_folder", "direction": "b_to_a"},
        sample={"kind": "pair", "resolution": [30, 40], "channels": [1, 3]},
    )
    prepare(cfg, tmp_path / "raw", tmp_path / "out")
    spec = shards.read_spec(tmp_path / "out")
    assert (spec.modality, spec.shape, spec.given, spec.counts) == (
        "image_pair",
        (4, 30, 40),
        1,
        {"train": 10, "test": 10},
    )
    for split, expected in stored.items():
        assert {sample.numpy().tobytes() for sample in shards.read(tmp_path / "out", split)["sample"]} == expected
    card = np.asarray(Image.open(tmp_path / "out" / "card.png")).reshape(32, 10, 82, 3)
    for half, is_grey in ((card[1:-1, :, 1:41], True), (card[1:-1, :, 41:81], False)):
        assert (half.max(-1) == half.min(-1)).all() == is_grey


def test_config_refuses():
    for wrong in ({"channels": [3]}, {"channels": [3, 2]}, {"channels": 3}, {"resolution": [4]}, {"fit": "zoom"}):
        with pytest.raises(ValidationError):
            pair.Config.model_validate({"resolution": [4, 4], **wrong})
