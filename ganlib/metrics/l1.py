"""Mean absolute difference between generated images and the true ones, on the scale of [-1, 1]: at most 2."""

from __future__ import annotations

from ganlib.metrics._types import Examples

__all__ = ["DIRECTION", "MODALITY", "NEEDS", "compute"]

MODALITY = "any"
DIRECTION = "lower"
NEEDS = ("image", "target")


def compute(real: Examples, fake: Examples) -> float:
    return float((fake.image - fake.target).double().abs().mean())
