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


def _sums(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Of the kernel's matrix, few rows of which are in memory at a time: its sum, and that of its diagonal."""
    total = trace = a.new_zeros((), dtype=torch.float64)
    for start, part in zip(range(0, len(a), ROWS), a.split(ROWS), strict=True):
        gram = _kernel(part, b)
        total, trace = total + gram.sum(), trace + gram[:, start : start + ROWS].trace()
    return total, trace


def _mean_off_diagonal(x: Tensor) -> Tensor:
    total, trace = _sums(x, x)
    return (total - trace) / (len(x) * (len(x) - 1))


def compute(real: Examples, fake: Examples) -> float:
    x, y = real["features"], fake["features"]
    within = _mean_off_diagonal(x) + _mean_off_diagonal(y)
    return float(within - 2 * _sums(x, y)[0] / (len(x) * len(y)))
