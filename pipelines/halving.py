"""A search by synchronous successive halving, whose result does not depend on timing.

Trials are proposed a bracket at a time, from the results of the brackets before (Optuna's TPE). A bracket's trials all
train to the first rung, the best of them go on to the next, and so on (Jamieson and Talwalkar 2016; the brackets are
those of Hyperband, Li et al. 2018, with one size). They are compared when all have come to the rung, in the order of
their numbers: which came first, how many ran at once and what was retried changes nothing. ASHA (Li et al. 2020), which
does not wait, stops those that come late.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

__all__ = ["Outcome", "Trial", "best", "rungs", "search"]


@dataclass(frozen=True)
class Outcome:
    """What came of a trial at a rung."""

    rows: list[dict[str, float]]
    """all reports so far"""
    score: float | None
    """lower is better; None if it failed"""
    error: str = ""


@dataclass
class Trial:
    """One setting, and how far it came."""

    number: int
    changes: dict[str, Any]
    outcomes: list[Outcome] = field(default_factory=list)
    """one for each rung that it was trained to"""

    @property
    def name(self) -> str:
        return f"trial-{self.number:04d}"

    @property
    def last(self) -> Outcome:
        return self.outcomes[-1]


class Proposals(Protocol):
    """Where settings come from."""

    def ask(self) -> dict[str, Any]: ...

    def tell(self, trial: Trial, *, stopped: bool) -> None: ...


def rungs(kimg: float, grace_kimg: float, report_kimg: float, reduction_factor: int) -> list[float]:
    """Budgets at which trials are compared, rising to `kimg`: a grace period, then `reduction_factor` times the one
    before, each rounded to a whole number of reports."""
    found, budget = [], grace_kimg
    while (rounded := max(1, round(budget / report_kimg)) * report_kimg) < kimg * (1 - 1e-9):
        found.append(rounded)
        budget = max(budget * reduction_factor, rounded + report_kimg)
    return [*found, kimg]


def search(
    proposals: Proposals,
    play: Callable[[Sequence[Trial], float], list[Outcome]],
    *,
    num_samples: int,
    bracket_size: int,
    rungs: Sequence[float],
    reduction_factor: int,
) -> list[Trial]:
    """All trials, in the order of their numbers. `play(trials, kimg)` trains each to a rung, in any order."""
    trials: list[Trial] = []
    while len(trials) < num_samples:
        count = min(bracket_size, num_samples - len(trials))
        bracket = [Trial(len(trials) + i, proposals.ask()) for i in range(count)]
        trials += bracket
        going = bracket
        for kimg in rungs:
            for trial, outcome in zip(going, play(going, kimg), strict=True):
                trial.outcomes.append(outcome)
            if kimg != rungs[-1]:
                going = _promoted(going, reduction_factor)
        for trial in bracket:
            proposals.tell(trial, stopped=len(trial.outcomes) < len(rungs))
    return trials


def best(trials: Sequence[Trial]) -> Trial | None:
    """The best of those that came farthest; None if all failed."""
    sound = [trial for trial in trials if trial.last.score is not None]
    return min(sound, key=lambda trial: (-len(trial.outcomes), _score(trial), trial.number), default=None)


def _promoted(trials: Sequence[Trial], reduction_factor: int) -> list[Trial]:
    """The best one in `reduction_factor`, at least one, of those that did not fail; in the order of their numbers."""
    sound = [trial for trial in trials if trial.last.score is not None]
    ranked = sorted(sound, key=lambda trial: (_score(trial), trial.number))
    return sorted(ranked[: math.ceil(len(trials) / reduction_factor)], key=lambda trial: trial.number)


def _score(trial: Trial) -> float:
    score = trial.last.score
    return math.inf if score is None or math.isnan(score) else score
