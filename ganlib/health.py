"""Divergence and collapse, seen while training."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["Diverged", "check", "diversity"]


class Diverged(RuntimeError):
    """Training produced numbers that are not numbers; going on is pointless. The message says where."""


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
