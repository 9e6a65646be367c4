"""What the search tries, without starting Ray."""

import contextlib
import math

import pytest

from ganlib.config import ConfigError, Search, parse_params
from pipelines import tune
from pipelines._stage import StageError
from pipelines.tune import _plot, _space, _starting_points


def with_preset(params, **preset):
    raw = params.model_dump(mode="json")
    return parse_params({**raw, "preset": "published", "presets": {"none": {}, "published": preset}})


def test_what_a_preset_says_is_not_searched(params, capsys):
    everything = set(params.game.search)
    assert everything == {"generator.lr", "discriminator.lr", "network.width"}
    published = with_preset(params, generator={"lr": 2e-4}, network={"width": 8})
    assert set(_space(published)) == {"discriminator.lr"}
    assert "preset published says what generator.lr and network.width is" in capsys.readouterr().out
    assert set(_space(with_preset(params, generator={"betas": [0.5, 0.9]}))) == everything
    own = {"generator.lr": {"uniform": [0.1, 0.2]}}
    assert set(_space(with_preset(params, generator={"lr": 2e-4}, search=own))) == set(own)


def test_the_first_trial_is_the_model_as_it_stands(params, capsys):
    space = params.game.search
    (point,) = _starting_points(params, space)
    assert point == {"generator.lr": 0.001, "discriminator.lr": 0.001, "network.width": 32}
    assert _starting_points(params, {"generator.lr": Search(uniform=(0.1, 0.2))}) is None
    assert "generator.lr 0.001 lies outside" in capsys.readouterr().out
    (point,) = _starting_points(params, {"discriminator_steps": whole(1.0)})
    assert isinstance(point["discriminator_steps"], float), "the value of the choice, not of the model"


def whole(*values):
    return Search(choice=values)


def test_choices_are_drawn_in_their_order(tmp_path):
    rows = [({"l1": 100.0}, 2.0), ({"l1": 10}, 1.0), ({"l1": 100}, math.e)]
    trials = [{"changes": changes, "row": {"kimg": 1.0, "quality/fd": fd}} for changes, fd in rows]
    _plot(trials, {"l1": whole(10, 30, 100)}, tmp_path / "trials.png")
    assert (tmp_path / "trials.png").exists()


def test_what_the_stage_train_would_refuse_is_refused_before_the_search(params, prepared, project, monkeypatch):
    monkeypatch.setattr(tune, "PREPARED", prepared)
    raw = params.model_dump(mode="json")
    monkeypatch.setattr(tune, "_search", lambda *_: pytest.fail("searched"))
    raw["scale"]["num_workers"] = 3
    with pytest.raises(ConfigError, match=r"batch: \d+ does not divide into 3 workers .*scale\.num_workers"):
        tune.stage(parse_params(raw))
    raw["scale"]["num_workers"] = 2
    raw["models"][params.model]["search"] = {"batch": {"choice": [32, 33]}}
    with pytest.raises(ConfigError, match=r"batch: 33 does not divide into 2 workers"):
        tune.stage(parse_params(raw))


def test_more_workers_than_the_cluster_has_are_refused_before_the_search(params, monkeypatch):
    params = params.model_copy(update={"scale": params.scale.model_copy(update={"num_workers": 2})})
    monkeypatch.setattr(tune.Job, "of", lambda *_: None)
    monkeypatch.setattr(tune.tracking, "open_store", lambda *_: None)
    monkeypatch.setattr(tune, "fingerprint", lambda *_: "tune")
    monkeypatch.setattr(tune, "cluster", lambda _: contextlib.nullcontext({"CPU": 1.0}))
    with pytest.raises(StageError, match=r"scale\.num_workers: 2 workers x 1 CPU wanted, the cluster has 1"):
        tune._search(params, params.game.search)
