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


def test_each_half_is_a_part(tmp_path):
    for name, pixels in (("photo.png", PHOTO), ("map.png", MAP)):
        Image.fromarray(pixels).save(tmp_path / name)
    files = (tmp_path / "photo.png", tmp_path / "map.png")
    for raw in (files, tuple(path.read_bytes() for path in files), (PHOTO, MAP)):
        made = pair.encode(config(), raw)
        assert list(made) == list(pair.parts(config())) == ["source", "sample"]
        np.testing.assert_array_equal(made["source"], PHOTO.transpose(2, 0, 1))
        np.testing.assert_array_equal(made["sample"], MAP[None])
    made = pair.encode(config(channels=(1, 3)), (MAP, PHOTO))
    np.testing.assert_array_equal(made["source"], MAP[None])
    assert made["sample"].shape == (3, 6, 8)


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_both_halves_are_cut_alike(fit):
    made = pair.encode(config(5, 5, (3, 3), fit=fit, background=[9, 9, 9]), (PHOTO, PHOTO))
    np.testing.assert_array_equal(made["source"], made["sample"])
    expected = image.read(image.Config(resolution=(5, 5), channels=3, fit=fit, background=(9, 9, 9)), PHOTO)
    np.testing.assert_array_equal(made["source"], expected)


def test_halves_of_other_sizes_can_only_be_stretched():
    small = MAP[:3, :4]
    for fit in ("crop", "pad"):
        with pytest.raises(ValueError, match="given image is 8x6, the other 4x3"):
            pair.encode(config(fit=fit), (PHOTO, small))
    stretched = image.read(image.Config(resolution=(6, 8), channels=1, fit="stretch"), small)
    np.testing.assert_array_equal(pair.encode(config(fit="stretch"), (PHOTO, small))["sample"], stretched)


def test_side_by_side():
    grey = np.repeat(MAP[:, :, None], 3, 2)
    both = np.concatenate([PHOTO, grey], 1)
    left = pair.encode(config(), pair.SideBySide(both))
    expected = pair.encode(config(), (PHOTO, grey))
    assert all((left[name] == expected[name]).all() for name in ("source", "sample"))
    right = pair.encode(config(channels=(1, 3)), pair.SideBySide(both, "right"))
    assert (right["source"] == left["sample"]).all()
    assert (right["sample"] == left["source"]).all()
    with pytest.raises(ValueError, match="15x6 pixels: an odd width has no halves"):
        pair.encode(config(), pair.SideBySide(both[:, :-1]))


def test_one_broken_half_is_enough(tmp_path):
    (tmp_path / "text.png").write_text("no image")
    for raw in ((PHOTO, b""), (tmp_path / "text.png", MAP), pair.SideBySide(tmp_path / "missing.png")):
        with pytest.raises(ValueError, match=r"\A[^\n]+\Z"):
            pair.encode(config(), raw)


def test_the_spec_says_what_is_given():
    made = Spec(config(), "image_pair", (), {"train": 1, "test": 1}, "x")
    assert (made.kind.name, made.given, made.shape, made.size) == ("pair", ("source",), (1, 6, 8), 4 * 48)
    assert made.parts["source"].shape == (3, 6, 8)
    assert Spec.from_json(made.to_json()) == made


def test_what_is_taken_is_fitted_if_a_file_and_exact_if_an_array(tmp_path):
    Image.fromarray(PHOTO).resize((20, 12)).save(tmp_path / "photo.png")
    assert pair.take(config(), "source", tmp_path / "photo.png").shape == (3, 6, 8)
    np.testing.assert_array_equal(pair.take(config(), "source", PHOTO), PHOTO.transpose(2, 0, 1))
    with pytest.raises(ValueError, match=r"expected images of shape \[6, 8, 3\], found \[5, 8, 3\]"):
        pair.take(config(), "source", PHOTO[1:])


def test_copying_is_the_naive_answer():
    grey, coloured = torch.rand(2, 1, 6, 8), torch.rand(2, 3, 6, 8)
    assert torch.equal(pair.naive(config(), {"source": coloured}), coloured.mean(1, keepdim=True))
    assert torch.equal(pair.naive(config(channels=(1, 3)), {"source": grey}), grey.expand(-1, 3, -1, -1))


def test_preview_shows_any_number_of_images_beside_each_other():
    parts = [torch.full((2, channels, 60, 60), level) for channels, level in ((3, -1.0), (1, 0.0), (1, 1.0))]
    drawn = np.asarray(pair.preview(None, dict(zip("abc", parts, strict=True)), 1))
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
    assert (spec.modality, spec.shape, spec.counts) == ("image_pair", (3, 30, 40), {"train": 10, "test": 10})
    for split, expected in stored.items():
        columns = shards.read(tmp_path / "out", split)
        found = torch.cat([columns["source"], columns["sample"]], 1)
        assert {both.numpy().tobytes() for both in found} == expected
    card = np.asarray(Image.open(tmp_path / "out" / "card.png")).reshape(32, 10, 82, 3)
    for half, is_grey in ((card[1:-1, :, 1:41], True), (card[1:-1, :, 41:81], False)):
        assert (half.max(-1) == half.min(-1)).all() == is_grey


def test_config_refuses():
    for wrong in ({"channels": [3]}, {"channels": [3, 2]}, {"channels": 3}, {"resolution": [4]}, {"fit": "zoom"}):
        with pytest.raises(ValidationError):
            pair.Config.model_validate({"resolution": [4, 4], **wrong})
