"""Median distance from the fakes to their nearest training example, over the same for test examples.

About 1 is what unseen data give; far below 1 the generator copies what it was trained on. Above 1 says nothing
good: noise is far from everything. Cf. Meehan et al. 2020. Where most of the data are repetitions it says nothing: 1,
if most of the fakes are, too.
"""

from __future__ import annotations

import math

from ganlib.metrics._types import Examples

__all__ = ["BOUNDS", "DIRECTION", "NEEDS", "compute"]

DIRECTION = "higher"
NEEDS = ("nearest",)
BOUNDS = (0.0, math.inf)


def compute(real: Examples, fake: Examples) -> float:
    return float(fake["nearest"].median().clamp_min(1e-12) / real["nearest"].median().clamp_min(1e-12))
