"""What the search tries, without starting Ray."""

import contextlib
import math

import pytest

from ganlib.config import ConfigError, Search, parse_params
from ganlib.health import Monitor
from pipelines import trials, tune
from pipelines._stage import StageError
from pipelines.halving import Outcome, Trial
from pipelines.proposals import OptunaProposals, starting_points
from pipelines.tune import _of_a_trial, _plot, _space


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
    (point,) = starting_points(params, space)
    assert point == {"generator.lr": 0.001, "discriminator.lr": 0.001, "network.width": 32}
    assert starting_points(params, {"generator.lr": Search(uniform=(0.1, 0.2))}) == []
    assert "generator.lr 0.001 lies outside" in capsys.readouterr().out
    (point,) = starting_points(params, {"discriminator_steps": whole(1.0)})
    assert isinstance(point["discriminator_steps"], float), "the value of the choice, not of the model"


def whole(*values):
    return Search(choice=values)


def proposed(dimension, count=100):
    """What is proposed first, before anything is known."""
    proposals = OptunaProposals({"key": Search(**dimension)}, [], seed=0)
    return [proposals.ask()["key"] for _ in range(count)]


@pytest.mark.parametrize(
    ("dimension", "low", "middle", "high"),
    [({"uniform": (0.1, 0.3)}, 0.1, 0.2, 0.3), ({"loguniform": (1e-4, 1e-2)}, 1e-4, 1e-3, 1e-2)],
)
def test_numbers_are_drawn_from_between_the_bounds(dimension, low, middle, high):
    values = proposed(dimension, 400)
    assert low <= min(values) <= max(values) <= high
    assert sum(value < middle for value in values) == pytest.approx(200, abs=40), "they lean to one side"


@pytest.mark.parametrize("dimension", [{"randint": (2, 5)}, {"choice": (2, 3, 4)}, {"choice": ("2", 3.0, [4])}])
def test_whole_numbers_and_choices_are_all_drawn(dimension):
    expected = dimension.get("choice", (2, 3, 4))
    drawn = proposed(dimension)
    assert all(value in expected for value in drawn)
    assert all(value in drawn for value in expected)


def test_proposals_follow_from_the_seed_and_from_results(params):
    space = params.game.search

    def course(seed, score):
        proposals, settings = OptunaProposals(space, starting_points(params, space), seed), []
        for number in range(14):
            trial = Trial(number, proposals.ask(), [Outcome([], score(number))])
            settings.append(trial.changes)
            proposals.tell(trial, stopped=number % 3 == 0)
        return settings

    rising = course(0, float)
    assert rising[0] == starting_points(params, space)[0], "the first is the model as it stands"
    assert rising == course(0, float)
    assert rising != course(1, float)
    falling = course(0, lambda number: -float(number))
    assert rising[:10] == falling[:10], "TPE draws its first ten at random"
    assert rising[10:] != falling[10:], "results change nothing"
    assert course(0, lambda number: None)[:10] == rising[:10], "failed trials are told, too"


# a trial of the shipped search that reached a distance of 5.7, and one that shows a single picture
HEALTHY = {
    "diversity": [0.48, 0.94, 1.00, 1.02],
    "rank/features": [0.59, 1.08, 1.11, 1.08],
    "nearest_neighbour_ratio": [0.23, 0.85, 1.04, 1.02],
    "quality/class_coverage": [0.1, 1.0, 1.0, 1.0],
    "quality/classifier.fd": [428.0, 13.0, 11.7, 5.7],
    "logit/gap": [3.5, 1.2, 0.5, 1.1],
}
COLLAPSED = HEALTHY | {"diversity": [0.48, 0.02, 0.0, 0.0], "nearest_neighbour_ratio": [0.23, 0.0, 0.0, 0.0]}


@pytest.mark.parametrize(("course", "stopped"), [(HEALTHY, []), (COLLAPSED, [30.0, 40.0])])
def test_a_trial_that_has_collapsed_ends_before_its_last_report(params, course, stopped):
    budget = _of_a_trial(params).train
    assert (budget.health.policy, budget.report_kimg, budget.kimg) == ("stop", 10.0, 40.0)
    monitor = Monitor(budget.health)
    reports = [{"kimg": 10.0 * (i + 1), **{name: course[name][i] for name in course}} for i in range(4)]
    assert [report["kimg"] for report in reports if monitor.update(report)] == stopped


def test_a_longer_trial_is_the_more_patient(params):
    long = params.model_copy(update={"tune": params.tune.model_copy(update={"kimg": 200.0})})
    assert (_of_a_trial(params).train.health.patience, _of_a_trial(long).train.health.patience) == (1, 3)


def test_choices_are_drawn_in_their_order(tmp_path):
    rows = [({"l1": 100.0}, 2.0), ({"l1": 10}, 1.0), ({"l1": 100}, math.e)]
    trials = [
        Trial(number, changes, [Outcome([{"kimg": 1.0, "quality/classifier.fd": fd}], fd)])
        for number, (changes, fd) in enumerate(rows)
    ]
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
    raw["scale"]["num_workers"] = "auto"  # takes one worker for a batch of 33
    monkeypatch.setattr(tune, "_search", lambda *_: [])
    tune.stage(parse_params(raw))
    raw["train"]["accumulate"] = 5
    with pytest.raises(ConfigError, match=r"does not divide into 1 workers x 5 microbatches"):
        tune.stage(parse_params(raw))


def test_more_workers_than_the_cluster_has_are_refused_before_the_search(prepared, params, monkeypatch):
    monkeypatch.setattr(tune, "PREPARED", prepared)
    params = params.model_copy(update={"scale": params.scale.model_copy(update={"num_workers": 2})})
    monkeypatch.setattr(tune.Job, "of", lambda *_: tune.Job({}, "", "", (1, 2)))
    monkeypatch.setattr(tune, "open_outbox", lambda *_: None)
    monkeypatch.setattr(tune, "fingerprint", lambda *_: "tune")
    monkeypatch.setattr(trials, "cluster", lambda _: contextlib.nullcontext({"CPU": 1.0}))
    with pytest.raises(StageError, match=r"scale\.num_workers: 2 workers x 1 CPU asked for, the cluster has 1"):
        tune._search(params, params.game.search)


@pytest.fixture
def asked(prepared, monkeypatch):
    """`asked(params)`: how many trials at once a search asks for, and with which resources each."""
    from ray import tune as ray_tune

    class Asked(Exception):
        pass

    class Tuner:
        def __init__(self, resources, *, tune_config, **_):
            raise Asked(tune_config.max_concurrent_trials, resources)

    monkeypatch.setattr(tune, "PREPARED", prepared)
    monkeypatch.setattr(ray_tune, "Tuner", Tuner)
    monkeypatch.setattr(ray_tune, "with_resources", lambda trainable, resources: resources)
    monkeypatch.setattr(tune.Job, "everywhere", lambda job, storage: job)

    def search(params):
        with pytest.raises(Asked) as raised:
            tune._search(params, params.game.search)
        return raised.value.args

    return search


@pytest.mark.parametrize(("workers", "wanted", "at_once"), [(1, 0, 4), (1, 3, 3), (1, 9, 4), (2, 0, 2), (2, 1, 1)])
def test_trials_at_once_are_those_wanted_that_the_cluster_holds(
    params, asked, project, monkeypatch, workers, wanted, at_once
):
    monkeypatch.setattr(trials, "cluster", lambda _: contextlib.nullcontext({"CPU": 4.0}))
    scale = {"workers_per_trial": workers, "max_concurrent_trials": wanted}
    params = params.model_copy(update={"scale": params.scale.model_copy(update=scale)})
    assert asked(params)[0] == at_once


@pytest.mark.parametrize(
    ("gpus", "workers", "share", "at_once", "resources"),
    [
        (2, 1, "auto", 2, {"CPU": 1, "GPU": 1.0}),
        (2, 1, 0.5, 4, {"CPU": 1, "GPU": 0.5}),
        (4, 2, "auto", 2, {"memory": 2**20}),  # what the two workers take, Ray Train reserves
        (1, 2, "auto", 1, {"memory": 2**20}),  # half a GPU each
        (16, 1, "auto", 8, {"CPU": 1, "GPU": 1.0}),
        (2, 1, 0.0, 8, {"CPU": 1}),
    ],
)
def test_a_trials_workers_take_gpus_where_there_are_some(
    params, asked, project, monkeypatch, gpus, workers, share, at_once, resources
):
    monkeypatch.setattr(trials, "cluster", lambda _: contextlib.nullcontext({"CPU": 8.0, "GPU": float(gpus)}))
    scale = {"workers_per_trial": workers, "gpus_per_worker": share}
    params = params.model_copy(update={"scale": params.scale.model_copy(update=scale)})
    assert asked(params) == (at_once, resources)
