"""What a training will take is found by a few steps that keep nothing."""

import pytest

from ganlib import shards
from ganlib.build import build_game
from pipelines._stage import StageError
from pipelines.estimate import estimate


@pytest.mark.parametrize("family", ["dcgan", "f_anogan"])
def test_it_is_of_steps_reports_and_checkpoints_and_keeps_nothing(family, small, data_of, tmp_path, monkeypatch):
    folder = data_of(family)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pipelines.estimate.LEAST_S", 0.1)
    params = small(family, kimg=64.0, report_kimg=3.2, checkpoint_kimg=6.4)
    search = {"num_samples": 4, "kimg": 32.0, "grace_kimg": 16.0, "report_kimg": 16.0, "reduction_factor": 2}
    params = params.model_copy(update={"tune": params.tune.model_copy(update=search)})
    found = estimate(params, folder)
    modules = build_game(params, shards.read_spec(folder)).modules
    assert found.parameters == {name: sum(p.numel() for p in module.parameters()) for name, module in modules.items()}
    assert found.step_seconds == pytest.approx(64_000 / found.examples_per_second)
    assert (found.reports, found.checkpoints) == (20, 10)
    assert found.train_seconds == found.step_seconds + found.report_seconds + found.checkpoint_seconds
    assert found.report_seconds > 0
    # 4 trials to the first rung, 2 of them to the second: 96 kimg
    assert found.search_fits == 6
    assert found.search_seconds >= 96_000 / found.examples_per_second
    assert found.peak_memory_mb > 100
    assert any(line.startswith("parameters: generator ") for line in found.lines())
    assert list(tmp_path.iterdir()) == []


def test_fits_are_steps_too(small, data_of):
    params = small("f_anogan", kimg=0.64, changes={"fits.encoder.kimg": 64.0}.items())
    found = estimate(params, data_of("f_anogan"))
    assert found.step_seconds > 2 * 640 / found.examples_per_second


def test_without_prepared_data_it_says_what_to_run(params, tmp_path):
    with pytest.raises(StageError, match="no prepared data to take steps on; run `dvc repro prepare`"):
        estimate(params, tmp_path)
