"""Different runs of 2 tokens over all such runs in the fakes. Li et al. 2016.

It falls with the number of fakes: compare it with its floor, which is that of as many real lines.
"""

from __future__ import annotations

from ganlib.metrics._types import Examples
from ganlib.metrics.sequence._ngrams import distinct

__all__ = ["BOUNDS", "DIRECTION", "NEEDS", "compute"]

DIRECTION = "higher"
NEEDS = ("tokens",)
BOUNDS = (0.0, 1.0)


def compute(real: Examples, fake: Examples) -> float:
    return distinct(fake["tokens"], 2)
