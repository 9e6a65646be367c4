"""What the search tries, without starting Ray."""

import math

from ganlib.config import Search, parse_params
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
