from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from specs import completed, image_spec, packed_rows, pair_spec
from torch import Tensor

from ganlib import registry, shard_writer, shards
from ganlib.config import ConfigError, EvaluateConfig
from ganlib.data._spec import NO_LABEL, Spec
from ganlib.data.image import decode
from ganlib.evaluate import _figures, _labels_of_test, available_metrics, compare, evaluate, sample_for_evaluation
from ganlib.export import Generator
from ganlib.reference import Reference, Space
from ganlib.shards import LazyRows
from ganlib.spaces._classifier import Classifier

CFG = EvaluateConfig(num_samples=150, resamples=40)
SPEC = image_spec((1, 8, 8), ("a", "b", "c"), {"train": 300, "test": 150}, "f" * 64)


def images(n: int, seed: int) -> Tensor:
    """Smooth random images."""
    coarse = torch.randn(n, 1, 3, 3, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, (8, 8), mode="bilinear").tanh()


def space(name: str, extract) -> Space:
    return Space(name, extract, extract(images(300, 1)), extract(images(150, 2)))


@pytest.fixture(scope="module")
def reference() -> Reference:
    """Pixels as features, and a classifier that nobody trained: its own opinions are the labels."""
    torch.manual_seed(0)
    classifier = Classifier((1, 8, 8), 3, width=4).eval().requires_grad_(False)
    spaces = {"pixels": space("pixels", lambda x: x.flatten(1)), "classifier": space("classifier", classifier.features)}
    labels = {split: classifier.classify(getattr(spaces["classifier"], split)).argmax(1) for split in ("train", "test")}
    return Reference(SPEC, spaces, labels, classifier, {})


def made(reference: Reference, seed: int = 3, n: int = 150, noise: float = 0.0) -> dict[str, Tensor]:
    """Samples, labelled as the classifier sees them before noise is added."""
    clean = images(n, seed)
    assert reference.classifier is not None
    dirt = noise * torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed + 100))
    return {"sample": (clean + dirt).clamp(-1, 1), "label": reference.classifier.logits(clean).argmax(1)}


def test_every_metric_has_its_place_interval_and_floor(reference: Reference):
    found = evaluate(made(reference), reference, CFG, seed=0)
    assert list(found) == ["pixels", "classifier", "samples"]
    names = registry.names("metrics", "picture")
    modules = {name: registry.load("metrics", name, "picture") for name in names}
    of_pairs = {name for name, metric in modules.items() if hasattr(metric, "score")}
    answers = {"nll", "score", "cycle_psnr", "edge_correlation", "attribute_error", "judge_error"}
    of_answers = {name for name, metric in modules.items() if answers & {*metric.NEEDS}}
    assert set(found["pixels"]) | set(found["samples"]) == set(names) - of_pairs - of_answers
    assert set(found["samples"]) == {"class_coverage", "label_accuracy"}
    for named in found.values():
        for figures in named.values():
            assert list(figures) == ["value", "low", "high", "floor"]
            assert figures["low"] <= figures["value"] <= figures["high"]
    # Fakes from the reals' distribution lie within reach of the floor, and of what is ideal.
    for name, ideal in (("kid", 0.0), ("c2st", 0.5), ("memorisation_ratio", 1.0)):
        figures = found["pixels"][name]
        slack = figures["high"] - figures["low"]
        assert abs(figures["floor"] - ideal) < slack
        assert abs(figures["value"] - ideal) < slack
    assert found["samples"]["label_accuracy"]["value"] == 1.0


def test_a_worse_generator_scores_worse_than_the_floor(reference: Reference):
    brighter = {"sample": (made(reference, noise=0.5)["sample"] + 0.5).clamp(-1, 1)}
    found = evaluate(brighter, reference, CFG, seed=0)
    for name in ("fd", "kid", "c2st"):
        assert found["pixels"][name]["low"] > found["pixels"][name]["floor"]
    for name in ("precision", "density", "coverage"):
        assert found["pixels"][name]["high"] < found["pixels"][name]["floor"]


def test_a_copy_of_the_training_set_is_seen_and_the_floor_is_not_one(reference: Reference):
    copied = {"sample": images(300, 1)[:150]}
    figures = evaluate(copied, reference, CFG, seed=0)["pixels"]["memorisation_ratio"]
    assert figures["value"] < 0.05
    assert figures["floor"] == pytest.approx(1.0, abs=0.2)


def test_the_interval_of_a_share_is_the_binomials(reference: Reference):
    samples = made(reference)
    samples["label"] = torch.where(torch.arange(150) % 4 == 0, (samples["label"] + 1) % 3, samples["label"])
    cfg = CFG.model_copy(update={"resamples": 400})
    found = compare(samples, made(reference), reference, "samples.label_accuracy", cfg, seed=0)
    share = found.challenger
    assert share == pytest.approx(0.75, abs=0.01)
    assert found.champion == 1.0
    expected = 2 * 1.96 * (share * (1 - share) / 150) ** 0.5
    assert found.high - found.low == pytest.approx(expected, rel=0.15)


def test_unlabelled_samples_and_data(reference: Reference):
    unconditional = evaluate({"sample": images(150, 3)}, reference, CFG, seed=0)
    assert set(unconditional["samples"]) == {"class_coverage"}
    unlabelled = dataclasses.replace(
        reference, spaces={"pixels": reference.spaces["pixels"]}, labels={}, classifier=None
    )
    assert list(evaluate({"sample": images(150, 3)}, unlabelled, CFG, seed=0)) == ["pixels"]


def test_the_same_seed_measures_the_same(reference: Reference):
    assert evaluate(made(reference), reference, CFG, seed=0) == evaluate(made(reference), reference, CFG, seed=0)


def test_inceptions_frechet_distance_alone_is_called_fid(reference: Reference):
    renamed = dataclasses.replace(
        reference, spaces={"inception": reference.spaces["pixels"]}, labels={}, classifier=None
    )
    found = evaluate({"sample": images(150, 3)}, renamed, CFG, seed=0)["inception"]
    assert "fid" in found
    assert "fd" not in found
    assert compare(made(reference), made(reference, 4), renamed, "inception.fid", CFG, 0).direction == "lower"


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), 1e30])
def test_samples_that_are_no_finite_numbers_are_one_clear_line(reference: Reference, wrong: float):
    samples = made(reference)
    samples["sample"] = samples["sample"].clone()
    samples["sample"][120] = wrong
    with pytest.raises(ValueError, match=r"^samples \d+ to \d+ have features in pixels that are no numbers[^\n]+$"):
        evaluate(samples, reference, CFG, seed=0)


def test_a_column_that_is_misspelt_is_named(reference: Reference, monkeypatch):
    needs = registry.load("metrics", "kid")
    monkeypatch.setattr(needs, "NEEDS", ("featuers",))
    with pytest.raises(
        ConfigError, match=r"metric kid: NEEDS the column 'featuers', which nothing fills \(did you mean"
    ):
        available_metrics(reference, labelled=True)
    monkeypatch.setattr(needs, "NEEDS", ("answered_elsewhere",))
    assert "pixels.kid" not in available_metrics(reference, labelled=True)
    monkeypatch.undo()
    assert "pixels.kid" in available_metrics(reference, labelled=True)


def test_more_samples_than_the_floor_has_are_refused(reference: Reference):
    with pytest.raises(ValueError, match="301 samples"):
        evaluate({"sample": images(301, 3)}, reference, CFG, seed=0)


def test_compare_sees_the_better_and_is_antisymmetric(reference: Reference):
    good, bad = made(reference), made(reference, noise=0.3)
    for metric in ("pixels.fd", "pixels.coverage", "classifier.kid", "samples.label_accuracy"):
        there, back = (compare(a, b, reference, metric, CFG, seed=0) for a, b in ((good, bad), (bad, good)))
        assert there.metric == metric
        assert there.difference == pytest.approx(there.challenger - there.champion)
        assert (there.low, there.high) == pytest.approx((-back.high, -back.low))
        assert there.high < 0 if there.direction == "lower" else there.low > 0


def test_compare_of_equals_has_no_winner(reference: Reference):
    same = compare(made(reference), made(reference), reference, "pixels.fd", CFG, seed=0)
    assert (same.difference, same.low, same.high) == (0.0, 0.0, 0.0)
    other = compare(made(reference, 3), made(reference, 4), reference, "pixels.kid", CFG, seed=0)
    assert other.low < 0 < other.high


def test_compare_agrees_with_evaluate(reference: Reference):
    found = evaluate(made(reference), reference, CFG, seed=0)
    for metric in ("pixels.precision", "samples.class_coverage"):
        section, name = metric.split(".")
        one = compare(made(reference), made(reference, 4), reference, metric, CFG, seed=0)
        assert one.challenger == found[section][name]["value"]


@pytest.mark.parametrize(
    ("metric", "message"),
    [("pixles.fd", "known: pixels, classifier, samples"), ("pixels.fid", "pixels has: c2st"), ("fd", "no section")],
)
def test_unknown_metrics_are_named(reference: Reference, metric: str, message: str):
    with pytest.raises(ConfigError, match=message):
        compare(made(reference), made(reference, 4), reference, metric, CFG, seed=0)


def test_sets_of_unequal_size_are_not_compared(reference: Reference):
    with pytest.raises(ValueError, match="expected equal numbers"):
        compare(made(reference), made(reference, n=100), reference, "pixels.fd", CFG, seed=0)


def test_translations_are_measured_against_their_targets_and_against_copying(reference: Reference):
    plain = dataclasses.replace(reference, classifier=None, labels={}, spaces={"pixels": reference.spaces["pixels"]})
    target, given = images(100, 2), images(100, 5)
    found = evaluate({"sample": (target + given / 10).clamp(-1, 1), "target": target, "naive": given}, plain, CFG, 0)
    assert set(found["samples"]) == {"l1", "psnr", "ssim"}
    assert set(found["samples"]["l1"]) == {"value", "low", "high", "copy"}
    assert set(found["pixels"]["fd"]) == {"value", "low", "high", "floor", "copy"}
    assert found["samples"]["l1"]["value"] == pytest.approx(float((given / 10).abs().mean()), rel=0.1)
    assert found["samples"]["l1"]["copy"] == pytest.approx(float((target - given).abs().mean()))
    assert found["samples"]["psnr"]["value"] > found["samples"]["psnr"]["copy"]
    better, worse = ({"sample": target + given / k, "target": target, "naive": given} for k in (10, 5))
    figures = compare(better, worse, plain, "samples.psnr", CFG, 0)
    assert figures.low > 0


def parted(samples: dict[str, Tensor], size: int, made: list[int]) -> dict[str, Tensor | LazyRows]:
    """The same samples, made `size` at a time."""
    n = len(samples["sample"])
    parts = [slice(start, min(start + size, n)) for start in range(0, n, size)]

    def rows(name: str) -> LazyRows:
        def make(i: int) -> Tensor:
            part = samples[name][parts[i]]
            made.append(len(part))
            return part

        return LazyRows([part.stop for part in parts], make)

    return {name: column if name == "label" else rows(name) for name, column in samples.items()}


def test_samples_are_made_once_and_few_at_a_time(reference: Reference):
    whole, numbers = made(reference), []
    cfg = CFG.model_copy(update={"batch": 40})
    found = evaluate(parted(whole, 40, numbers), reference, cfg, seed=0)
    assert numbers == [40, 40, 40, 30]
    expected = evaluate(whole, reference, CFG, seed=0)
    for section, named in expected.items():
        for name, figures in named.items():
            assert found[section][name] == pytest.approx(figures, rel=1e-3, abs=1e-4), name


def test_pairs_are_made_once_and_few_at_a_time(reference: Reference):
    plain = dataclasses.replace(reference, classifier=None, labels={}, spaces={"pixels": reference.spaces["pixels"]})
    target, given = images(100, 2), images(100, 5)
    whole, numbers = {"sample": (target + given / 10).clamp(-1, 1), "target": target, "naive": given}, []
    found = evaluate(parted(whole, 40, numbers), plain, CFG.model_copy(update={"batch": 40}), 0)["samples"]
    assert max(numbers) == 40
    for name, figures in found.items():
        metric = registry.load("metrics", name, "picture")
        assert figures["value"] == pytest.approx(float(metric.score(None, whole["sample"], target).mean()), rel=1e-5)
        assert figures["copy"] == pytest.approx(float(metric.score(None, given, target).mean()), rel=1e-5)


def test_what_is_drawn_is_what_the_generator_samples(tmp_path: Path):
    def generator(family: str, spec: Spec) -> Generator:
        module = registry.load("models", family)
        torch.manual_seed(0)
        game = module.build(module.Config(width=4), spec)
        return Generator(game, spec, {}, torch.device("cpu"))

    drawn = np.random.default_rng(1).integers(0, 256, (60, 1, 8, 8), dtype=np.uint8)
    rows = packed_rows(SPEC, [{"sample": one} for one in drawn], labels=[0] * 48 + [2] * 12)
    (tmp_path / "labelled").mkdir()
    shard_writer.write(tmp_path / "labelled", [rows], SPEC.parts, completed(SPEC), test_share=0.4, shard_mb=64.0)
    known = shards.read(tmp_path / "labelled", "test")["label"]
    noise = generator("mlp", SPEC)
    noise.game.generator.eval()
    found = sample_for_evaluation(noise, tmp_path / "labelled", 50, seed=5, batch=7)
    assert 20 < len(known) < 30
    assert found["label"].equal(torch.cat([known, known, known])[:50])  # of the shares that classes have in the data
    torch.testing.assert_close(found["sample"][:], noise.sample(50, seed=5, label=found["label"])["sample"])

    pixels = np.random.default_rng(0).integers(0, 256, (30, 2, 32, 32), dtype=np.uint8)
    spec = pair_spec(1, 1, (32, 32))
    rows = packed_rows(spec, [{"source": both[:1], "sample": both[1:]} for both in pixels])
    shard_writer.write(tmp_path, [rows], spec.parts, completed(spec), test_share=0.5, shard_mb=64.0)
    of_pairs = generator("pix2pix", shards.read_spec(tmp_path))
    of_pairs.game.generator.eval()
    stored = shards.read(tmp_path, "test", limit=9)
    given, target = (decode(None, "", stored[name]) for name in ("source", "sample"))
    drawn = sample_for_evaluation(of_pairs, tmp_path, 9, seed=5, batch=4)
    assert drawn["source"][:].equal(given)
    assert drawn["target"][:].equal(target)
    torch.testing.assert_close(
        drawn["sample"][:], of_pairs.sample(9, given={"source": given}, seed=5)["sample"], rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(("labels", "asked"), [([NO_LABEL, 2, NO_LABEL, 1], [2, 1, 2]), ([NO_LABEL] * 4, None)])
def test_labels_are_asked_for_as_test_examples_have_them(labels, asked, monkeypatch):
    monkeypatch.setattr(shards, "stored", lambda prepared, split: {"label": torch.tensor(labels)})
    found = _labels_of_test("", 3)
    assert (None if found is None else found.tolist()) == asked


def test_an_interval_ends_where_the_metric_does():
    """A share that is 0 has no interval below 0, and one of 1 none above."""
    metric = registry.load("metrics", "precision")
    cfg = EvaluateConfig(num_samples=100, resamples=10)
    generator = torch.Generator().manual_seed(0)
    real, fake = ({"features": torch.randn(100, 8, generator=generator)} for _ in range(2))
    one = {"features": torch.cat([fake["features"][:99] + 100, real["features"][:1]])}
    found = _figures(metric, SPEC, (real, one), {}, cfg, 0)
    assert (found["value"], found["low"]) == (0.01, 0.0)
    all_but_one = {"features": torch.cat([real["features"][:99], fake["features"][:1] + 100])}
    found = _figures(metric, SPEC, (real, all_but_one), {}, cfg, 0)
    assert found["low"] < found["value"] < found["high"] <= 1.0
