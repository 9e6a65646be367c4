"""Mean absolute difference between generated images and the true ones, on the scale of [-1, 1]: at most 2."""

from __future__ import annotations

from torch import Tensor

from ganlib.metrics._types import Examples

__all__ = ["DIRECTION", "MODALITY", "NEEDS", "compute", "score"]

MODALITY = "any"
DIRECTION = "lower"
NEEDS = ("l1",)


def score(image: Tensor, target: Tensor) -> Tensor:
    return (image - target).double().abs().flatten(1).mean(1)


def compute(real: Examples, fake: Examples) -> float:
    return float(fake["l1"].mean())
