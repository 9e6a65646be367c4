"""By how much the network that `attribute_error` goes by misses the change between two real images, the mean over test
examples: what it says of translations is no surer than that.

It is the model's answer `judge_error`, in deviations of such changes.
"""

from __future__ import annotations

from ganlib.metrics._types import Examples

__all__ = ["BOUNDS", "DIRECTION", "NEEDS", "compute"]

DIRECTION = "lower"
NEEDS = ("judge_error",)
BOUNDS = (0.0, float("inf"))


def compute(real: Examples, fake: Examples) -> float:
    return float(real["judge_error"].double().mean())
