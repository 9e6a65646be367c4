"""What a game says of examples: in the metrics, in the gate and in what the registered model returns."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from specs import completed, image_spec, packed_rows
from torch import nn

from ganlib import registry, shard_writer, shards
from ganlib.config import ConfigError, EvaluateConfig
from ganlib.evaluate import ANSWERS, available_metrics, compare, evaluate, sample_for_evaluation
from ganlib.export import Generator
from ganlib.reference import Reference, Space
from pipelines.pyfunc import GeneratorModel

CFG = EvaluateConfig(num_samples=60, resamples=40)


def answers(parts):
    """The mean level, as if it were a negative log-likelihood; twice that; and the negative."""
    level = parts["sample"].mean((1, 2, 3))
    return {"nll": level, "both": torch.stack([level, 2 * level], 1), "negative": -parts["sample"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("prepared"), np.random.default_rng(0)
    spec = image_spec((1, 8, 8))
    images = rng.integers(0, 256, (200, 1, 8, 8), dtype=np.uint8)
    rows = packed_rows(spec, [{"sample": one} for one in images])
    shard_writer.write(folder, [rows], spec.parts, completed(spec), test_share=0.4, shard_mb=64.0)
    return folder


@pytest.fixture(scope="module")
def generator(folder):
    family, spec = registry.load("models", "mlp"), shards.read_spec(folder)
    torch.manual_seed(0)
    game = dataclasses.replace(family.build(family.Config(width=4, latent_dim=4), spec), answers=answers)
    return Generator(game, spec, {}, torch.device("cpu"))


@pytest.fixture(scope="module")
def reference(folder):
    spec = shards.read_spec(folder)
    features = {split: decoded(folder, split).flatten(1) for split in shards.SPLITS}
    return Reference(spec, {"pixels": Space("pixels", nn.Flatten(), **features)}, {}, None, {})


def decoded(folder, split):
    spec = shards.read_spec(folder)
    return spec.kind.decode(spec.sample, "sample", shards.read(folder, split)["sample"])


def test_nll_is_the_mean_over_test_rows_with_the_floor_of_training_rows(folder, generator, reference):
    samples = sample_for_evaluation(generator, folder, 60, seed=0, batch=7)
    found = evaluate(samples, reference, CFG, seed=0)
    assert list(found) == ["pixels", ANSWERS]
    assert list(found[ANSWERS]) == ["nll"]
    levels = {split: decoded(folder, split)[:60].mean((1, 2, 3)) for split in shards.SPLITS}
    figures = found[ANSWERS]["nll"]
    assert figures["value"] == pytest.approx(float(levels["test"].mean()), abs=1e-6)
    assert figures["floor"] == pytest.approx(float(levels["train"].mean()), abs=1e-6)
    half = 1.96 * float(levels["test"].std()) / math.sqrt(60)  # the interval of a mean
    assert figures["high"] - figures["value"] == pytest.approx(half, rel=0.35)
    without = {"sample": samples["sample"]}
    assert evaluate(without, reference, CFG, seed=0) == {"pixels": found["pixels"]}


def test_answers_are_known_before_training(generator, reference):
    shapes = generator.answer_shapes()
    assert shapes == {"nll": (), "both": (2,), "negative": (1, 8, 8)}
    assert [name for name in available_metrics(reference, labelled=False, answers=shapes) if "answers" in name] == [
        "answers.nll"
    ]
    anomalous = dataclasses.replace(reference.spec, counts={**reference.spec.counts, shards.ANOMALIES: 9})
    known = available_metrics(dataclasses.replace(reference, spec=anomalous), labelled=False, answers=["score"])
    assert known[-2:] == ["answers.auroc", "answers.average_precision"]


def test_two_models_are_compared_by_their_answers(folder, generator, reference):
    worse = dataclasses.replace(
        generator,
        game=dataclasses.replace(generator.game, answers=lambda parts: {"nll": answers(parts)["nll"] + 1}),
    )
    one, other = (sample_for_evaluation(model, folder, 60, seed=0, batch=100) for model in (generator, worse))
    found = compare(one, other, reference, "answers.nll", CFG, seed=0)
    assert (found.direction, round(found.difference, 5)) == ("lower", -1)
    assert found.low == pytest.approx(found.high, abs=1e-6), "what both share cancels"
    mute = sample_for_evaluation(
        dataclasses.replace(generator, game=dataclasses.replace(generator.game, answers=None)),
        folder,
        60,
        seed=0,
        batch=9,
    )
    with pytest.raises(ConfigError, match="no section 'answers'"):
        compare(one, mute, reference, "answers.nll", CFG, seed=0)


def test_answers_leave_as_numbers_or_as_samples(folder, generator):
    model = GeneratorModel()
    model.generator = generator
    stored = shards.read(folder, "test")["sample"].numpy()
    images = np.moveaxis(stored, 1, 3)
    np.testing.assert_allclose(
        model.predict(None, images, {"answer": "both"})[:, 1], 2 * (images.mean((1, 2, 3)) / 127.5 - 1), atol=1e-5
    )
    assert (model.predict(None, images, {"answer": "negative"}) == 255 - images).all()
    with pytest.raises(ValueError, match=r"expected images of shape \[8, 8, 1\], found \[7, 8, 1\]"):
        model.predict(None, images[:, :7], {"answer": "nll"})
