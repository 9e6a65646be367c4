"""By how much the change of attributes misses what was asked, the mean over test examples, in deviations of changes.

It is the model's answer `attribute_error`: what a network that learnt from real images alone reads off given and
translated ones. An image that is left as it is misses by the mean absolute change, 0.8 for a normal distribution.
"""

from __future__ import annotations

from ganlib.metrics._types import Examples

__all__ = ["BOUNDS", "DIRECTION", "NEEDS", "compute"]

DIRECTION = "lower"
NEEDS = ("attribute_error",)
BOUNDS = (0.0, float("inf"))


def compute(real: Examples, fake: Examples) -> float:
    return float(real["attribute_error"].double().mean())
