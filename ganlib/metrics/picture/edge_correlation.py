"""How far edges stay where they are in a translation: the correlation of their strengths, the mean over test examples.

It is the model's answer `edge_correlation`: 1 where all stay, near 0 for images that have nothing to do with each
other. Its floor is that of training examples.
"""

from __future__ import annotations

from ganlib.metrics._types import Examples

__all__ = ["BOUNDS", "DIRECTION", "NEEDS", "compute"]

DIRECTION = "higher"
NEEDS = ("edge_correlation",)
BOUNDS = (-1.0, 1.0)


def compute(real: Examples, fake: Examples) -> float:
    return float(real["edge_correlation"].double().mean())
