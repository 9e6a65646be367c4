"""Peak signal-to-noise ratio of generated images against the true ones, in dB, the mean over images.

10 log₁₀(2² / mean squared error), images being in [-1, 1]. Errors below those of rounding to 256 levels count as
these, so an exact copy has 58.9 dB and not infinitely many.
"""

from __future__ import annotations

from torch import Tensor

from ganlib._config import Config
from ganlib.metrics._types import Examples

__all__ = ["DIRECTION", "NEEDS", "compute", "score"]

DIRECTION = "higher"
NEEDS = ("psnr",)

_ROUNDING = (2 / 255) ** 2 / 12  # variance of an error that is uniform over one level


def score(cfg: Config, made: Tensor, target: Tensor) -> Tensor:
    squared_error = (made - target).double().square().flatten(1).mean(1)
    return 10 * (4 / squared_error.clamp_min(_ROUNDING)).log10()


def compute(real: Examples, fake: Examples) -> float:
    return float(fake["psnr"].mean())
