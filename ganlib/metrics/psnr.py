"""Peak signal-to-noise ratio of generated images against the true ones, in dB, the mean over images.

10 log₁₀(2² / mean squared error), images being in [-1, 1]. Errors below those of rounding to 256 levels count as
these, so an exact copy has 58.9 dB and not infinitely many.
"""

from __future__ import annotations

from ganlib.metrics._types import Examples

__all__ = ["DIRECTION", "MODALITY", "NEEDS", "compute"]

MODALITY = "any"
DIRECTION = "higher"
NEEDS = ("image", "target")

_ROUNDING = (2 / 255) ** 2 / 12  # variance of an error that is uniform over one level


def compute(real: Examples, fake: Examples) -> float:
    squared_error = (fake.image - fake.target).double().square().flatten(1).mean(1)
    return float(10 * (4 / squared_error.clamp_min(_ROUNDING)).log10().mean())
