"""Share of fakes in which the in-domain classifier sees the class that was asked for.

Its floor is the classifier's agreement with the labels it was trained on; `reference.json` has its test accuracy.
"""

from __future__ import annotations

from ganlib.metrics._types import Examples

__all__ = ["BOUNDS", "DIRECTION", "NEEDS", "compute"]

DIRECTION = "higher"
NEEDS = ("label", "predicted")
BOUNDS = (0.0, 1.0)


def compute(real: Examples, fake: Examples) -> float:
    return float((fake["label"] == fake["predicted"]).double().mean())
