"""Mean absolute difference between generated samples and the true ones; of images, in [-1, 1], at most 2."""

from __future__ import annotations

import math

from torch import Tensor

from ganlib._config import Config
from ganlib.metrics._types import Examples

__all__ = ["BOUNDS", "DIRECTION", "NEEDS", "compute", "score"]

DIRECTION = "lower"
NEEDS = ("l1",)
BOUNDS = (0.0, math.inf)


def score(cfg: Config, made: Tensor, target: Tensor) -> Tensor:
    return (made - target).double().abs().flatten(1).mean(1)


def compute(real: Examples, fake: Examples) -> float:
    return float(fake["l1"].mean())
