"""Share of real balls (k = 5) that hold at least one fake. Naeem et al. 2020, eq. 6.

Variety measured on the reals' manifold, so that odd fakes cannot inflate it as they can recall.
"""

from __future__ import annotations

from ganlib.metrics._neighbours import distinct, inside
from ganlib.metrics._types import Examples

__all__ = ["BOUNDS", "DIRECTION", "NEEDS", "compute"]

DIRECTION = "higher"
NEEDS = ("features",)
BOUNDS = (0.0, 1.0)


def compute(real: Examples, fake: Examples) -> float:
    return float(inside(fake["features"], distinct(real["features"]), k=5).any(0).double().mean())
