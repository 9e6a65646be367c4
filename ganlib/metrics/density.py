"""How many real balls (k = 5) hold a fake, over k: about 1 for equal distributions. Naeem et al. 2020, eq. 5.

Precision that an outlier's huge ball cannot inflate; it exceeds 1 where fakes crowd the reals' dense parts.
"""

from __future__ import annotations

import math

import torch

from ganlib.metrics._neighbours import distinct, inside
from ganlib.metrics._types import Examples

__all__ = ["BOUNDS", "DIRECTION", "NEEDS", "compute"]

DIRECTION = "higher"
NEEDS = ("features",)
BOUNDS = (0.0, math.inf)


def compute(real: Examples, fake: Examples) -> float:
    held = inside(fake["features"], distinct(real["features"]), k=5)
    return float(held.sum(1, dtype=torch.int32).double().mean()) / 5
