"""A search's result is a function of what is tried, and of nothing that happens on the way."""

import math
import random

import pytest

from pipelines.halving import Outcome, Trial, best, rungs, search


class Numbers:
    """Proposes what it was told last, plus one; so that what it was told, and when, shows."""

    def __init__(self):
        self.told, self.asked = [], 0

    def ask(self):
        self.asked += 1
        return {"lr": self.asked, "known": len(self.told)}

    def tell(self, trial, *, stopped):
        self.told.append((trial.number, stopped))


def player(score, order=None):
    """A `play` that trains in a random order, and notes which trials it was given."""
    given = []

    def play(trials, kimg):
        given.append([trial.number for trial in trials])
        shuffled = list(trials)
        (order or random.Random(0)).shuffle(shuffled)
        done = {trial.number: Outcome([{"kimg": kimg}], score(trial.number, kimg)) for trial in shuffled}
        return [done[trial.number] for trial in trials]

    return play, given


def run(score, *, num_samples=8, bracket_size=16, budgets=(1.0, 2.0, 4.0), reduction_factor=2, order=None):
    proposals = Numbers()
    play, given = player(score, order)
    kwargs = {"num_samples": num_samples, "bracket_size": bracket_size, "reduction_factor": reduction_factor}
    return search(proposals, play, rungs=budgets, **kwargs), given, proposals


def test_the_best_go_on():
    trials, given, proposals = run(lambda number, kimg: -number)
    assert given == [list(range(8)), [4, 5, 6, 7], [6, 7]]
    assert [len(trial.outcomes) for trial in trials] == [1, 1, 1, 1, 2, 2, 3, 3]
    assert best(trials).number == 7
    assert [stopped for _, stopped in proposals.told] == [True] * 6 + [False] * 2


def test_no_order_of_arrival_changes_anything():
    def score(number, kimg):
        return (number * 7919 % 13) / kimg

    def told(order):
        trials, given, _ = run(score, num_samples=20, bracket_size=6, order=random.Random(order))
        return [(t.number, t.changes, t.outcomes) for t in trials], given

    assert told(1) == told(2) == told(3)


def test_proposals_see_whole_brackets_alone():
    trials, given, _ = run(lambda number, kimg: number, num_samples=10, bracket_size=4)
    assert [trial.changes["known"] for trial in trials] == [0] * 4 + [4] * 4 + [8] * 2
    assert given[3] == [4, 5, 6, 7]


def test_one_that_was_better_when_young_does_not_win():
    def score(number, kimg):
        return 0.1 if (number, kimg) == (0, 1.0) else 5 - number

    trials, _, _ = run(lambda number, kimg: score(number, kimg), num_samples=4, reduction_factor=4)
    assert best(trials).number == 0, "alone at the last rung"
    trials, _, _ = run(lambda number, kimg: score(number, kimg), num_samples=4, reduction_factor=2, budgets=(1.0, 2.0))
    assert [len(trial.outcomes) for trial in trials] == [2, 1, 1, 2]
    assert best(trials).number == 3


@pytest.mark.parametrize("bad", [None, math.nan])
def test_failures_are_passed_over(bad):
    trials, given, _ = run(lambda number, kimg: bad if number != 2 else 1.0, num_samples=4)
    assert best(trials).number == 2
    if bad is None:
        assert given == [[0, 1, 2, 3], [2], [2]]
    trials, given, _ = run(lambda number, kimg: None, num_samples=2)
    assert best(trials) is None
    assert given == [[0, 1], [], []]


def test_equal_scores_are_settled_by_number():
    trials, given, _ = run(lambda number, kimg: 1.0, num_samples=4)
    assert given == [[0, 1, 2, 3], [0, 1], [0]]
    assert best(trials).number == 0


def test_one_that_fails_late_loses_to_one_that_was_stopped():
    trials, _, _ = run(lambda number, kimg: None if kimg == 4.0 else number, num_samples=4)
    assert best(trials).number == 1, "the best of those that came farthest without failing"


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ((40, 20, 10, 2), [20, 40]),
        ((40, 5, 10, 2), [10, 20, 40]),
        ((2, 0.5, 0.5, 4), [0.5, 2]),
        ((100, 1, 1, 3), [1, 3, 9, 27, 81, 100]),
        ((10, 20, 10, 2), [10]),
        ((1, 1, 10, 2), [1]),
        ((16, 3, 2, 2), [4, 6, 12, 16]),
    ],
)
def test_rungs_are_whole_reports(asked, expected):
    assert rungs(*asked) == pytest.approx(expected)


def test_a_trials_name_sorts_by_its_number():
    assert Trial(12, {}).name == "trial-0012"
