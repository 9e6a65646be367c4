"""Share of the reals' classes that the fakes have not dropped, by the in-domain classifier's eye.

A class counts as present if its share among the fakes is at least a fifth of its share among the reals.
"""

from __future__ import annotations

import torch

from ganlib.metrics._types import Examples

__all__ = ["BOUNDS", "DIRECTION", "NEEDS", "compute"]

DIRECTION = "higher"
NEEDS = ("predicted",)
BOUNDS = (0.0, 1.0)


def compute(real: Examples, fake: Examples) -> float:
    classes = int(max(real["predicted"].max(), fake["predicted"].max())) + 1
    of_real, of_fake = (
        torch.bincount(predicted, minlength=classes).double() / len(predicted)
        for predicted in (real["predicted"], fake["predicted"])
    )
    present = of_real > 0
    return float((of_fake >= of_real / 5)[present].double().mean())
