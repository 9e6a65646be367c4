"""New data against those that a model was trained on."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from PIL import Image

from ganlib import shards
from ganlib.config import EvaluateConfig, GateConfig
from pipelines import drift
from pipelines._stage import StageError


@pytest.fixture
def measure(params, prepared, reference, monkeypatch):
    monkeypatch.setattr(drift, "REFERENCE", reference)
    small = {"evaluate": EvaluateConfig(num_samples=150, resamples=4), "gate": GateConfig()}

    def run(offered, spec=None, **changed):
        spec = spec or shards.read_spec(prepared)
        return drift.measure_drift(params.model_copy(update=small | changed), str(offered), spec)

    return run


def test_the_same_data_have_not_drifted_and_others_have(measure, tmp_path):
    same = measure("digits")
    assert (same.drifted, same.examples, same.rejected) == (False, 150, 0)
    assert same.metric.endswith(".kid")
    assert same.items > 1000
    other = measure("mnist")
    assert other.drifted
    rng = np.random.default_rng(0)
    for i in range(60):
        Image.fromarray(rng.integers(0, 256, (16, 16), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    noise = measure(f"photos={tmp_path}")
    assert (noise.drifted, noise.examples, noise.items, noise.rejected) == (True, 60, 61, 1)
    chosen = measure(tmp_path, data="photos", gate=GateConfig(metric="classifier.fd"))
    assert (chosen.drifted, chosen.metric) == (True, "classifier.fd")


def test_a_metric_that_does_not_see_all_passes_nothing_that_has_drifted(measure, tmp_path):
    """`memorisation_ratio` of what is far from everything is large, which is no fault there."""
    for i in range(60):
        Image.new("L", (8, 8), i).save(tmp_path / f"{i}.png")
    chosen = GateConfig(metric="classifier.memorisation_ratio")
    found = measure(f"photos={tmp_path}", gate=chosen)
    assert (found.drifted, found.metric) == (True, f"{next(iter(found.metrics))}.kid")
    same = measure("digits", gate=chosen)
    assert (same.drifted, same.metric) == (False, chosen.metric)


def test_a_metric_may_go_by_another_name_in_a_space():
    figures = {"value": 9.0, "low": 8.9, "high": 9.1, "floor": 1.0}
    assert drift._is_worse("inception.fid", {"inception": {"fid": figures}}, "picture")


def test_a_figure_that_is_not_a_number_is_no_pass():
    figures = {"value": 1.0, "low": 0.9, "high": 1.1, "floor": 1.0}
    assert not drift.is_drift(figures, "lower")
    for name in ("value", "floor"):
        assert drift.is_drift({**figures, name: float("nan")}, "lower")


def test_what_cannot_be_compared_is_said_in_a_line(measure, prepared, tmp_path):
    with pytest.raises(StageError, match=r"digitz: neither a data set \(did you mean 'digits'\?\), a folder"):
        measure("digitz")
    with pytest.raises(StageError, match="digits comes with a package and reads no folder; expected NAME=FOLDER"):
        measure(tmp_path)
    with pytest.raises(StageError, match="of other data than the model was trained on"):
        measure("digits", dataclasses.replace(shards.read_spec(prepared), content_hash="x"))
    with pytest.raises(StageError, match="data of table, expected image"):
        measure("breast_cancer")
    Image.new("L", (16, 16)).save(tmp_path / "one.png")
    with pytest.raises(StageError, match=r"expected at least 50 examples, found 1 \(0 rejected\)"):
        measure(tmp_path, data="photos")
