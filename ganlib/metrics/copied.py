"""Share of fakes that are training examples, less the share of test examples that are. 0 is what unseen data give.

Where equal examples are common, as in tables, test examples repeat training examples too. Distances of features below
a millionth of the training examples' spread count as none.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ganlib.metrics._types import Examples

__all__ = ["BOUNDS", "DIRECTION", "NEEDS", "compute"]

DIRECTION = "lower"
NEEDS = ("features", "nearest")
BOUNDS = (-1.0, 1.0)


def compute(real: Examples, fake: Examples) -> float:
    spread = real["features"].double().var(0).sum().sqrt()
    return _share(fake["nearest"], spread) - _share(real["nearest"], spread)


def _share(nearest: Tensor, spread: Tensor) -> float:
    return float(torch.le(nearest.double(), 1e-6 * spread).double().mean())
