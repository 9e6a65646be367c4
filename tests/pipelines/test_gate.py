"""The metric a version is judged by is known before anything is trained; champions of before are judged by it, too."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from ganlib import registry, shards
from ganlib.config import ConfigError, EvaluateConfig, GateConfig
from ganlib.evaluate import available_metrics, evaluate
from ganlib.export import load_generator, save_generator
from ganlib.reference import Reference, build
from pipelines import gate
from pipelines._stage import StageError
from pipelines.gate import failed_thresholds
from pipelines.model_registry import Version
from pipelines.training import Job

FORMAT_1 = Path(__file__).parents[1] / "ganlib/format1/mlp"

SMALL = {"max_samples": 60, "classifier": {"width": 2, "epochs": 1}}


def built(out, params, prepared):
    cfg = type(params.reference).model_validate(SMALL)
    train, test = (shards.read(prepared, split, limit=60) for split in ("train", "test"))
    build(out, shards.read_spec(prepared), train, test, cfg, 0)
    return out


@pytest.fixture(scope="module")
def labelled(tmp_path_factory, params, prepared):
    return built(tmp_path_factory.mktemp("labelled") / "reference", params, prepared)


@pytest.fixture(scope="module")
def paired(tmp_path_factory, pairs):
    return built(tmp_path_factory.mktemp("paired") / "reference", *pairs)


def found(reference, **also):
    fakes = torch.rand(20, *reference.spec.shape, generator=torch.Generator().manual_seed(0))
    also = {name: fakes.clone() if name != "label" else torch.arange(20) % 10 for name in also}
    cfg = EvaluateConfig(num_samples=20, resamples=2)
    metrics = evaluate({"sample": fakes, **also}, reference, cfg, 0)
    return [f"{section}.{name}" for section, named in metrics.items() for name in named]


def test_what_is_measurable_is_what_is_measured(labelled, paired):
    reference = Reference.load(labelled)
    assert available_metrics(reference, labelled=True) == found(reference, label=True)
    assert available_metrics(reference, labelled=False) == found(reference)
    of_pairs = Reference.load(paired)
    assert available_metrics(of_pairs, labelled=False) == found(of_pairs, naive=True, target=True)
    without = dataclasses.replace(reference, classifier=None, labels={})
    without.spaces.pop("classifier")
    assert available_metrics(without, labelled=False) == found(without)


@pytest.mark.parametrize("metric", ["samples.psnr", "clasifier.fd", "classifier.fid"])
def test_a_gate_without_its_metric_is_refused_before_training(params, prepared, labelled, metric):
    assert Job.of(gated(params, "samples.label_accuracy"), prepared, labelled, 1)
    with pytest.raises(ConfigError, match=rf"gate\.metric: '{metric}' is not measured.*known: .*classifier.fd"):
        Job.of(gated(params, metric), prepared, labelled, 1)


def test_labels_are_judged_only_where_they_are_asked_for(params, prepared, labelled):
    section = params.models["dcgan"]
    network = section.network.model_copy(update={"conditioning": "none"})
    models = {**params.models, "dcgan": section.model_copy(update={"network": network})}
    unconditional = gated(params, "samples.label_accuracy").model_copy(update={"models": models})
    with pytest.raises(ConfigError, match=r"'samples\.label_accuracy' is not measured"):
        Job.of(unconditional, prepared, labelled, 1)
    assert Job.of(gated(unconditional, "samples.class_coverage"), prepared, labelled, 1)


def test_a_gate_on_pairs_looks_for_collapse_in_a_space():
    healthy = {"coverage": {"value": 0.1}, "memorisation_ratio": {"value": 1.0}}
    metrics = {"efficientnet_lite0": healthy, "samples": {"psnr": {"value": 20.0}}}
    assert failed_thresholds(metrics, GateConfig(metric="samples.psnr"), labelled=False) == [
        "coverage 0.1 is below gate.at_least.coverage 0.3"
    ]


@pytest.mark.parametrize(
    ("value", "floor", "said"),
    [
        (0.1, 0.4, "0.1 is below gate.at_least.coverage 0.3 x 0.4 in pixels, where real data score 0.4: train longer"),
        (0.1, 1.2, "0.1 is below gate.at_least.coverage 0.3 in pixels, where real data score 1.2: train longer"),
        (0.15, 0.4, None),
        (0.0, 0.0, None),
        (0.1, float("nan"), "0.1 is below gate.at_least.coverage 0.3"),
        (float("nan"), 0.4, "nan is below gate.at_least.coverage 0.3 x 0.4"),
    ],
)
def test_a_share_is_one_of_what_real_data_score(value, floor, said):
    metrics = {"pixels": {"kid": {"value": 1.0}, "coverage": {"value": value, "floor": floor}}}
    cfg = GateConfig(metric="pixels.kid", at_least={"coverage": 0.3})
    found = failed_thresholds(metrics, cfg, labelled=False)
    assert len(found) == (said is not None)
    assert all(reason.startswith(f"coverage {said}") for reason in found)


@pytest.mark.parametrize("name", ["night", "v1.5 / b", "a.b"])
def test_a_gate_may_decide_by_the_figure_of_one_label(name):
    of_label = {"fd": {"value": 2.0}, "coverage": {"value": 0.1}}
    metrics = {"classifier": {"fd": {"value": 1.0}, "coverage": {"value": 1.0}}, f"classifier/{name}": of_label}
    cfg = GateConfig(metric=f"classifier/{name}.fd", at_least={"coverage": 0.3})
    assert gate.deciding_figures(metrics, cfg) == {f"classifier/{name}": of_label}
    assert failed_thresholds(metrics, cfg, labelled=True) == ["coverage 0.1 is below gate.at_least.coverage 0.3"]


def gated(params, metric):
    return params.model_copy(update={"gate": params.gate.model_copy(update={"metric": metric})})


def test_a_champion_of_format_1_is_compared_with_a_challenger_of_now(params, prepared, labelled, tmp_path, monkeypatch):
    old, described = load_generator(FORMAT_1), json.loads((FORMAT_1 / "generator.json").read_text())
    network = registry.load("models", "mlp").Config(**described["network"])
    save_generator(tmp_path, old.game.generator, network=network, spec=old.spec)
    assert json.loads((tmp_path / "generator.json").read_text())["format"] > described["format"] == 1
    monkeypatch.setattr(gate, "load_or_reason", lambda *_: old)
    monkeypatch.setattr(gate, "REFERENCE", labelled)
    monkeypatch.setattr(gate, "PREPARED", prepared)
    # the old one knows two classes, the data have ten
    monkeypatch.setattr("ganlib.evaluate._labels_of_test", lambda prepared, n: torch.arange(n) % 2)
    small = params.model_copy(update={"evaluate": EvaluateConfig(num_samples=20, resamples=2)})
    decision = gate._against(None, small, "classifier.fd", Version("name", 1, {}), load_generator(tmp_path), 1.0)
    assert (decision.decision, decision.difference) == ("refused", 0.0)
    assert "not clearly better than version 1" in decision.reason


def test_the_figures_that_decide_are_few_and_the_compared_one_comes_first():
    figures = {"value": 0.5, "low": 0.4, "high": 0.6, "floor": 0.9}
    names = ("fd", "kid", "coverage", "memorisation_ratio")
    metrics = {"efficientnet_lite0": dict.fromkeys(names, figures), "classifier": dict.fromkeys(names, figures)}
    metrics["samples"] = {"label_accuracy": {**figures, "value": 0.7}}
    found = gate.deciding_figures(metrics, GateConfig())
    assert [f"{section}.{name}" for section, named in found.items() for name in named] == [
        "efficientnet_lite0.kid",
        "efficientnet_lite0.coverage",
        "efficientnet_lite0.memorisation_ratio",
        "samples.label_accuracy",
    ]
    assert found["samples"]["label_accuracy"]["value"] == 0.7
    of_classifier = gate.deciding_figures(metrics, GateConfig(metric="classifier.fd", at_least={"precision": 0.5}))
    assert of_classifier == {"classifier": {"fd": figures}}  # what was not measured has no figure


def test_any_two_versions_are_compared_by_any_metrics(params, prepared, labelled, tmp_path, monkeypatch):
    monkeypatch.setattr(gate, "REFERENCE", labelled)
    monkeypatch.setattr(gate, "PREPARED", prepared)
    small = gated(params, "classifier.fd").model_copy(update={"evaluate": EvaluateConfig(num_samples=20, resamples=2)})
    family, spec = registry.load("models", "mlp"), shards.read_spec(prepared)
    network = family.Config(width=8, latent_dim=4)
    for name in ("one", "other"):
        save_generator(tmp_path / name, family.build(network, spec).generator, network=network, spec=spec)
    one, other = load_generator(tmp_path / "one"), load_generator(tmp_path / "other")
    (alone,) = gate.compare_generators(one, one, small)
    assert (alone.metric, alone.difference, alone.low, alone.high) == ("classifier.fd", 0.0, 0.0, 0.0)
    said: list[str] = []
    found = gate.compare_generators(one, other, small, ["classifier.fd", "samples.class_coverage"], say=said.append)
    assert [line.split()[-1] for line in said] == ["each", "classifier.fd", "samples.class_coverage"]
    assert [figure.metric for figure in found] == ["classifier.fd", "samples.class_coverage"]
    assert found[0].low < found[0].high
    with pytest.raises(ConfigError, match="nothing"):
        gate.compare_generators(one, other, small, ["classifier.nothing"])
    for changed, said in (({"content_hash": "x"}, "of other data"), ({"classes": ("a",)}, "classes differ")):
        spec_of_other = dataclasses.replace(one.spec, **changed)
        with pytest.raises(StageError, match=said):
            gate.compare_generators(dataclasses.replace(one, spec=spec_of_other), other, small)


@pytest.mark.parametrize("figure", [None, float("nan")])
def test_without_a_champion_a_figure_that_is_not_a_number_is_refused(params, figure):
    healthy = {name: {"value": 1.0} for name in ("coverage", "memorisation_ratio", "label_accuracy")}
    metrics = {"classifier": {**healthy, "fd": {"value": figure}}}
    decision = gate.decide(None, params, None, load_generator(FORMAT_1), metrics)
    assert (decision.decision, decision.reason) == ("refused", "classifier.fd is not a number")
