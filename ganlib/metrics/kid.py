"""Kernel distance: squared maximum mean discrepancy, kernel (x·y/D + 1)³, unbiased. Bińkowski et al. 2018, eq. 4.

Its expectation is zero for equal distributions at any sample size, so it can be negative.
"""

from __future__ import annotations

from torch import Tensor

from ganlib.metrics._types import Examples

__all__ = ["DIRECTION", "NEEDS", "compute"]

DIRECTION = "lower"
NEEDS = ("features",)


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    return ((a @ b.T).double() / a.shape[1] + 1) ** 3


def _mean_off_diagonal(gram: Tensor) -> Tensor:
    n = len(gram)
    return (gram.sum() - gram.trace()) / (n * (n - 1))


def compute(real: Examples, fake: Examples) -> float:
    x, y = real["features"], fake["features"]
    within = _mean_off_diagonal(_kernel(x, x)) + _mean_off_diagonal(_kernel(y, y))
    return float(within - 2 * _kernel(x, y).mean())
