"""Share of fakes in which the in-domain classifier sees the class that was asked for.

Its floor is the classifier's agreement with the labels it was trained on; `reference.json` has its test accuracy.
"""

from __future__ import annotations

from ganlib.metrics._types import Examples

__all__ = ["DIRECTION", "NEEDS", "compute"]

DIRECTION = "higher"
NEEDS = ("label", "predicted")


def compute(real: Examples, fake: Examples) -> float:
    return float((fake["label"] == fake["predicted"]).double().mean())
