"""Share of fakes that are closer to a training record than to any of as many test records. 0.5: unseen data.

Distance to the closest record, in the features of the space; one that is as close to both counts a half. Above 0.5
the generator reproduces what it was trained on. Platzer & Reutterer 2021, section 3.3.
"""

from __future__ import annotations

from ganlib.metrics._types import Examples

__all__ = ["BOUNDS", "DIRECTION", "NEEDS", "compute"]

DIRECTION = "lower"
NEEDS = ("closer",)
BOUNDS = (0.0, 1.0)


def compute(real: Examples, fake: Examples) -> float:
    return float(fake["closer"].mean())
