"""By how far the judge of `attribute_error` misses the change between two real images, the mean over test examples.

It is the model's answer `judge_error`, in deviations of such changes: what the judge says of translations is no surer.
"""

from __future__ import annotations

from ganlib.metrics._types import Examples

__all__ = ["BOUNDS", "DIRECTION", "NEEDS", "compute"]

DIRECTION = "lower"
NEEDS = ("judge_error",)
BOUNDS = (0.0, float("inf"))


def compute(real: Examples, fake: Examples) -> float:
    return float(real["judge_error"].double().mean())
