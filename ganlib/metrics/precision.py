"""Share of fakes that lie on the manifold of the reals (k = 3). Kynkäänniemi et al. 2019, eq. 2.

Fidelity alone: a generator that repeats one good example scores 1.
"""

from __future__ import annotations

from ganlib.metrics._neighbours import distinct, inside
from ganlib.metrics._types import Examples

__all__ = ["BOUNDS", "DIRECTION", "NEEDS", "compute"]

DIRECTION = "higher"
NEEDS = ("features",)
BOUNDS = (0.0, 1.0)


def compute(real: Examples, fake: Examples) -> float:
    return float(inside(fake["features"], distinct(real["features"]), k=3).any(1).double().mean())
