"""Share of reals that lie on the manifold of the fakes (k = 3). Kynkäänniemi et al. 2019, eq. 2.

Variety alone. Repeated fakes have empty balls, and a few far-flung ones huge balls: read it together with coverage.
"""

from __future__ import annotations

from ganlib.metrics._neighbours import inside
from ganlib.metrics._types import Examples

__all__ = ["BOUNDS", "DIRECTION", "NEEDS", "compute"]

DIRECTION = "higher"
NEEDS = ("features",)
BOUNDS = (0.0, 1.0)


def compute(real: Examples, fake: Examples) -> float:
    return float(inside(real["features"], fake["features"], k=3).any(1).double().mean())
