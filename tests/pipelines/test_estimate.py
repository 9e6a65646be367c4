"""What a training will take is found by a few steps that keep nothing."""

import pytest

from ganlib import shards
from ganlib.trainer import build_game
from pipelines._stage import StageError
from pipelines.estimate import estimate


@pytest.mark.parametrize("family", ["dcgan", "pix2pix", "f_anogan"])
def test_steps_are_of_the_game_alone(family, small, data_of, tmp_path, monkeypatch):
    folder = data_of(family)
    monkeypatch.chdir(tmp_path)
    params = small(family, kimg=64.0)
    params = params.model_copy(update={"tune": params.tune.model_copy(update={"num_samples": 4, "kimg": 32.0})})
    found = estimate(params, folder)
    modules = build_game(params, shards.read_spec(folder)).modules
    assert found.parameters == {name: sum(p.numel() for p in module.parameters()) for name, module in modules.items()}
    assert found.train_seconds == pytest.approx(64_000 / found.examples_per_second)
    assert found.search_seconds == pytest.approx(2 * found.train_seconds)
    assert found.peak_memory_mb > 100
    assert any(line.startswith("parameters: generator ") for line in found.lines())
    assert list(tmp_path.iterdir()) == []


def test_without_prepared_data_it_says_what_to_run(params, tmp_path):
    with pytest.raises(StageError, match="no prepared data to take steps on; run `dvc repro prepare`"):
        estimate(params, tmp_path)
