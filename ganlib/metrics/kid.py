"""Kernel distance: squared maximum mean discrepancy, kernel (x·y/D + 1)³, unbiased. Bińkowski et al. 2018, eq. 4.

Its expectation is zero for equal distributions at any sample size, so it can be negative.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ganlib.metrics._neighbours import ROWS
from ganlib.metrics._types import Examples

__all__ = ["DIRECTION", "NEEDS", "compute"]

DIRECTION = "lower"
NEEDS = ("features",)


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    return ((a @ b.T).double() / a.shape[1] + 1) ** 3


def _mean(a: Tensor, b: Tensor) -> Tensor:
    """Over all pairs; few rows of the kernel's matrix are in memory at a time."""
    return torch.stack([_kernel(part, b).sum() for part in a.split(ROWS)]).sum() / (len(a) * len(b))


def _mean_off_diagonal(x: Tensor) -> Tensor:
    """Over all pairs of different examples."""
    total = x.new_zeros((), dtype=torch.float64)
    for i, part in enumerate(x.split(ROWS)):
        gram = _kernel(part, x)
        total += gram.sum() - gram[:, i * ROWS :].trace()
    return total / (len(x) * (len(x) - 1))


def compute(real: Examples, fake: Examples) -> float:
    x, y = real["features"], fake["features"]
    within = _mean_off_diagonal(x) + _mean_off_diagonal(y)
    return float(within - 2 * _mean(x, y))
