"""Which settings a search tries: the model as it stands, then proposals of Optuna's TPE."""

from __future__ import annotations

from typing import Any

from ganlib.config import Params, Search
from pipelines.halving import Trial

__all__ = ["OptunaProposals", "starting_points"]


class OptunaProposals:
    """Proposals by Optuna's TPE, after the points of `start`: a function of the seed and of the results so far."""

    def __init__(self, space: dict[str, Search], start: list[dict[str, Any]], seed: int):
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.space, self.pruned = space, optuna.trial.TrialState.PRUNED
        self.study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
        self.distributions = {key: _distribution(dimension) for key, dimension in space.items()}
        self.asked: list[Any] = []
        for point in start:
            self.study.enqueue_trial({key: self._index(key, value) for key, value in point.items()})

    def ask(self) -> dict[str, Any]:
        self.asked.append(self.study.ask(self.distributions))
        return {
            key: choices[value] if (choices := self.space[key].choice) else value
            for key, value in self.asked[-1].params.items()
        }

    def tell(self, trial: Trial, *, stopped: bool) -> None:
        asked = self.asked[trial.number]
        for rung, outcome in enumerate(trial.outcomes):
            if outcome.score is not None:
                asked.report(outcome.score, rung)
        if stopped or trial.last.score is None:
            self.study.tell(asked, state=self.pruned)
        else:
            self.study.tell(asked, trial.last.score)

    def _index(self, key: str, value: Any) -> Any:
        choices = self.space[key].choice
        return choices.index(value) if choices else value


def _distribution(dimension: Search) -> Any:
    """Optuna's distribution of a dimension; a choice is drawn by its index, since its values may be of any type."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if dimension.uniform:
        return FloatDistribution(*dimension.uniform)
    if dimension.loguniform:
        return FloatDistribution(*dimension.loguniform, log=True)
    if dimension.randint:
        low, high = dimension.randint
        return IntDistribution(low, high - 1)
    return CategoricalDistribution(range(len(dimension.choice or ())))


def starting_points(params: Params, space: dict[str, Search]) -> list[dict[str, Any]]:
    """The model as it stands, if it lies in the space: so a search never does worse than no search."""
    point: dict[str, Any] = {}
    for dotted, dimension in space.items():
        here: Any = params.game.model_dump(mode="json")
        for part in dotted.split("."):
            here = here[part]
        if dimension.choice and here in dimension.choice:
            point[dotted] = dimension.choice[dimension.choice.index(here)]  # 100 rather than 100.0
        elif not dimension.choice and _between(here, dimension):
            point[dotted] = here
        else:
            print(f"tune: {dotted} {here} lies outside of its search space, so the model as it stands is not tried")
            return []
    return [point]


def _between(value: Any, dimension: Search) -> bool:
    low, high = dimension.examples
    return isinstance(value, int | float) and low <= value <= (high - 1 if dimension.randint else high)
