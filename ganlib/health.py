"""Divergence and collapse, seen while training.

`Monitor` looks at the statistics of each report, as `ganlib.trainer` makes them, and raises an `Alarm` once something
has looked wrong for `patience` reports in a row. Where it can, a threshold is relative to the run's own earlier
reports, so that it does not depend on data, loss or network; `tests/bench/health.py` measures what they catch and miss.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt, model_validator
from torch import Tensor

from ganlib._config import Config, refuse_moved

__all__ = [
    "HELP",
    "Alarm",
    "Diverged",
    "HealthConfig",
    "Monitor",
    "check",
    "diversity",
    "effective_rank",
    "evenly_spaced",
    "nearest_neighbour_ratio",
    "overfitting",
    "quality_name",
]


_COMPARED = 500
"""examples between which distances are taken"""


class Diverged(RuntimeError):
    """A statistic of the training is NaN or infinite, so it cannot go on. The message names the statistic."""


def check(stats: Mapping[str, float], kimg: float) -> None:
    """Raise Diverged if a statistic is not finite."""
    bad = [name for name, amount in stats.items() if not math.isfinite(amount)]
    if bad:
        raise Diverged(
            f"training diverged before {kimg:.1f} kimg: {', '.join(bad)} not finite; a smaller learning rate, a "
            "gradient penalty (r1) or clip_norm usually helps"
        )


def diversity(fake: Tensor, real: Tensor) -> float:
    """Mean distance between two fakes over that between two reals; `[N, ...]` each.

    1 where fakes are as varied as reals, 0 where they are all the same picture: mode collapse.
    """
    spread = [torch.pdist(x.flatten(1).float()).mean() for x in (fake, real)]
    return float(spread[0] / spread[1].clamp_min(1e-12))


def evenly_spaced(n: int) -> Tensor:
    """Rows of `n`, evenly spread and few enough to take all distances between them."""
    return torch.arange(min(n, _COMPARED)) * n // min(n, _COMPARED)


def effective_rank(features: Tensor) -> float:
    """In how many directions features `[N, D]` vary: e to the entropy of the shares of the singular values, with
    the mean taken away. 1 along a line, k in a round cloud of k dimensions. Roy & Vetterli 2007, eq. 4.

    At most min(N − 1, D), so compare values of one N only. 0 where all rows are equal.
    """
    features = features.double()
    amounts = torch.linalg.svdvals(features - features.mean(0))
    amounts = amounts[amounts > 1e-5 * features.norm()]  # what rounding leaves of equal rows is no variety
    if not len(amounts):
        return 0.0
    share = amounts / amounts.sum()
    return float((-share * share.log()).sum().exp())


def nearest_neighbour_ratio(fake: Tensor, real: Tensor) -> float:
    """Mean distance from a fake to the nearest other fake, over that of reals; `[N, ...]` each.

    0 where fakes are copies of a few pictures, however different these are: what `diversity` cannot see, such as one
    picture a class. It sees the more, the larger N; of pixels it sees a thin latent that features hide. Copies among
    reals are left out; 1 where most reals are such, as rows of few categories, which says nothing of the fakes. After
    the birthday test of Arora & Zhang 2017.
    """
    distinct = torch.unique(real.flatten(1), dim=0)
    if 2 * len(distinct) < len(real):
        return 1.0
    return _to_nearest(fake.flatten(1)) / max(_to_nearest(distinct), 1e-12)


def _to_nearest(points: Tensor) -> float:
    # about the mean and in float64: in float32, rounding would set equal pictures apart
    points = points.double() - points.double().mean(0)
    return float(torch.cdist(points, points).fill_diagonal_(torch.inf).amin(1).mean())


def overfitting(real: Tensor, held_out: Tensor, fake: Tensor) -> float:
    """How far the discriminator's logits of reals that it was not trained on lie from those of reals that it was,
    on the way to those of fakes: 0 where it has only learnt what reals have in common, 1 and above where it knows its
    training examples by heart. Karras et al. 2020, eq. 1, r_v. Logits of any shape; 0 where it cannot tell fakes.
    """
    gap = float(real.mean() - fake.mean())
    return float(real.mean() - held_out.mean()) / gap if gap > 0 else 0.0


class HealthConfig(Config):
    policy: Literal["warn", "stop", "rollback"] = "warn"
    patience: PositiveInt = 3
    warmup_kimg: NonNegativeFloat = 25.0
    strict_only: bool = False
    """only alarms that a slow start cannot cause, for runs with too few reports for `patience`"""
    lr_factor: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    max_rollbacks: NonNegativeInt = 3

    @model_validator(mode="before")
    @classmethod
    def _moved(cls, section: Any) -> Any:
        return refuse_moved(section, {"sure": "strict_only"})


@dataclass(frozen=True)
class Alarm:
    kind: str
    """what has gone wrong, a key of `HELP`"""
    kimg: float
    """when it was raised"""
    since_kimg: float
    """the first of the reports in a row that looked wrong"""
    message: str
    """one line: what was seen, since when, and what usually helps"""


HELP = {
    "diverged": "a smaller learning rate, a gradient penalty (r1), clip_norm",
    "exploding": "a smaller learning rate, clip_norm or a gradient penalty (r1)",
    "discriminator won": "a smaller discriminator.lr, r1, a smaller discriminator, or another loss than minimax",
    "discriminator lost": "a larger discriminator.lr, more discriminator_steps, a smaller generator.lr",
    "overfitting": "augment (ada), a larger r1, a smaller discriminator, more data",
    "vanishing gradients": "a smaller discriminator.lr, r1, a loss such as non_saturating or relativistic",
    "collapse": "a smaller generator.lr, r1 (with r2), a larger latent_dim, another seed",
    "worsening": "smaller learning rates, a schedule that ends low, an earlier checkpoint",
}
"""Kinds of alarm, and what usually helps."""

_SIZES = ("loss/", "gradient/", "logit/")  # statistics that explode
_WINDOW = 20  # reports, for the run's own median
_EXPLOSION = 100.0  # times that median
_VANISHED = 0.01  # of the median of the first reports
_CERTAIN = 0.98  # mean sign of logits, above which nearly all are judged right
_BY_HEART = 0.5  # of the way from training reals to fakes
_FALLEN = 0.4  # of the run's own best variety
_RISING = 1.25  # times what it was `patience` reports ago
_WORSE = 3.0  # times the run's own best distance
_LOW = {  # the least variety of a run past its warm-up; shares of what reals have
    "diversity": 0.25,
    "diversity/features": 0.25,
    "rank/features": 0.25,
    "nearest_neighbour_ratio": 0.1,
    "nearest_neighbour_ratio/features": 0.05,
    "quality/class_coverage": 0.35,
}
_STRICT = (
    "exploding",
    "discriminator lost",
    "collapse",
)  # kinds that one report is enough for, collapse if it is below
_NEXT_TO_NONE = {name: low / 2 for name, low in _LOW.items() if name != "quality/class_coverage"}


def quality_name(row: Mapping[str, float]) -> str | None:
    """The statistic of a row that a search and the choice of the best checkpoint minimise: `quality/SPACE.fd`, a
    Fréchet distance on few samples in that feature space. None where none was measured."""
    return next((name for name in row if name.startswith("quality/") and name.endswith(".fd")), None)


class Monitor:
    """Sees what goes wrong from the rows of a run, given one after the other.

    It reads `loss/*`, `gradient/*`, `logit/gap`, `sign/*`, `overfitting`, `diversity`, `diversity/features`,
    `rank/features`, `nearest_neighbour_ratio`, `nearest_neighbour_ratio/features`, `quality/class_coverage` and
    `quality/SPACE.fd`, and makes do without any.
    Until `warmup_kimg` it looks for divergence alone: a discriminator far ahead or behind and little variety are normal
    at first.
    """

    def __init__(self, cfg: HealthConfig):
        self._cfg = cfg
        self._recent: dict[str, list[float]] = {}  # the last values of each statistic
        self._first: list[float] = []  # of the generator's gradient
        self._best: dict[str, float] = {}  # of variety and distance, once warm
        self._wrong: dict[str, dict[str, Any]] = {}  # by kind: since when, in how many reports in a row, alarm's kimg

    def update(self, row: Mapping[str, float]) -> list[Alarm]:
        """The alarms that stand after this report: those whose `kimg` is the row's are new.

        One that is not a number is an alarm at once; what else looks wrong must do so `patience` times in a row.
        """
        kimg = row["kimg"]
        bad = [name for name, amount in row.items() if not math.isfinite(amount)]
        if bad:
            message = (
                f"diverged: {', '.join(bad)} not finite at {kimg:.1f} kimg; what usually helps: {HELP['diverged']}"
            )
            return [Alarm("diverged", kimg, kimg, message)]
        if "fit_kimg" in row:  # one module learns alone: there is no game to be judged
            return []
        warm = row.get("game_kimg", kimg) > self._cfg.warmup_kimg
        standing = []
        for kind, symptom in self._symptoms().items():
            seen = symptom(row) if warm or kind == "exploding" else ""
            if not seen:
                self._wrong.pop(kind, None)
                continue
            state = self._wrong.setdefault(kind, {"since": kimg, "reports": 0, "raised": None})
            state["reports"] += 1
            if state["reports"] >= self._cfg.patience:
                state["raised"] = state["raised"] or kimg
                since = f"since {state['since']:.1f} kimg ({state['reports']} reports)"
                message = f"{kind}: {seen}, {since}; what usually helps: {HELP[kind]}"
                standing.append(Alarm(kind, state["raised"], state["since"], message))
        self._remember(row)
        return standing

    @property
    def suspects(self) -> bool:
        """Whether something looked wrong in the last report, for fewer reports than an alarm takes."""
        return any(state["raised"] is None for state in self._wrong.values())

    def _symptoms(self) -> dict[str, Callable[[Mapping[str, float]], str]]:
        """Each says what is wrong with a row, with figures, or nothing."""
        symptoms: dict[str, Callable[[Mapping[str, float]], str]] = {
            "exploding": self._exploding,
            "discriminator won": self._discriminator_won,
            "discriminator lost": self._discriminator_lost,
            "overfitting": self._overfitting,
            "vanishing gradients": self._vanishing,
            "collapse": self._collapse,
            "worsening": self._worsening,
        }
        return {kind: symptoms[kind] for kind in _STRICT} if self._cfg.strict_only else symptoms

    def _remember(self, row: Mapping[str, float]) -> None:
        warm = row.get("game_kimg", row["kimg"]) > self._cfg.warmup_kimg
        for name, amount in row.items():
            if name.startswith(_SIZES) or name in _LOW:
                self._recent[name] = [*self._recent.get(name, []), amount][-_WINDOW:]
            if name in _LOW and warm:  # noise is varied too: what came before is no measure
                self._best[name] = max(amount, self._best.get(name, amount))
            if name == quality_name(row) and warm:
                self._best[name] = min(amount, self._best.get(name, amount))
        if len(self._first) < self._cfg.patience and "gradient/generator" in row:
            self._first.append(row["gradient/generator"])

    def _exploding(self, row: Mapping[str, float]) -> str:
        """Far above the run's own median, and above 1, as losses may lie about 0."""
        seen = []
        for name, amount in row.items():
            past = self._recent.get(name, [])
            if name.startswith(_SIZES) and len(past) >= self._cfg.patience:
                usual = statistics.median(map(abs, past))
                if abs(amount) > _EXPLOSION * max(usual, 1.0):
                    seen.append(f"{name} {amount:.3g}, {usual:.3g} before")
        return ", ".join(seen)

    def _discriminator_won(self, row: Mapping[str, float]) -> str:
        """The discriminator is right about nearly everything, which leaves the generator nothing to follow."""
        real, fake = row.get("sign/real", 0.0), row.get("sign/fake", 0.0)
        if real < _CERTAIN or fake > -_CERTAIN:
            return ""
        return f"sign/real {real:.2f} and sign/fake {fake:.2f}, logits {row.get('logit/gap', math.nan):.3g} apart"

    def _discriminator_lost(self, row: Mapping[str, float]) -> str:
        """Fakes get higher logits than reals: the discriminator cannot keep up."""
        return f"logit/gap {row['logit/gap']:.3g}" if row.get("logit/gap", 1.0) <= 0 else ""

    def _overfitting(self, row: Mapping[str, float]) -> str:
        """Reals that the discriminator was not trained on look like fakes to it. Without `overfitting` by signs, which
        say less where a loss does not part reals from fakes at 0."""
        if "overfitting" in row:
            return f"overfitting {row['overfitting']:.2f}" if row["overfitting"] > _BY_HEART else ""
        names = ("sign/real", "sign/held_out", "sign/fake")
        if not row.keys() >= set(names):
            return ""
        real, held_out, fake = (row[name] for name in names)
        if real - fake > 0.5 and real - held_out > _BY_HEART * (real - fake):
            return ", ".join(f"{name} {row[name]:.2f}" for name in names)
        return ""

    def _vanishing(self, row: Mapping[str, float]) -> str:
        """Far below what moved the generator in its first reports."""
        name = "gradient/generator"
        if name not in row or len(self._first) < self._cfg.patience:
            return ""
        usual = statistics.median(self._first)
        return f"{name} {row[name]:.3g}, {usual:.3g} at first" if row[name] < _VANISHED * usual else ""

    def _collapse(self, row: Mapping[str, float]) -> str:
        """Far less variety than there has been, or little and no more coming."""
        seen = []
        for name, low in (_NEXT_TO_NONE if self._cfg.strict_only else _LOW).items():
            if name not in row:
                continue
            amount, best, past = row[name], self._best.get(name, 0.0), self._recent.get(name, [])
            rising = len(past) >= self._cfg.patience and amount > _RISING * past[-self._cfg.patience]
            if amount < low and not rising:
                seen.append(f"{name} {amount:.2f}")
            elif amount < _FALLEN * best:
                seen.append(f"{name} {amount:.2f}, {best:.2f} at best")
        return ", ".join(seen)

    def _worsening(self, row: Mapping[str, float]) -> str:
        """Far from the data again."""
        name = quality_name(row)
        if name and row[name] > _WORSE * self._best.get(name, math.inf):
            return f"{name} {row[name]:.3g}, {self._best[name]:.3g} at best"
        return ""
