"""Structural similarity of generated images to the true ones, the mean over images. Wang et al. 2004, eq. 13.

Means, variances and the covariance are taken in each channel in a sliding Gaussian window of 11 x 11 pixels,
σ = 1.5, at each place where the window lies wholly in the image (smaller images get a window of their size). 1 is a
copy.
"""

from __future__ import annotations

import math

from torch import Tensor

from ganlib._config import Config
from ganlib.metrics._types import Examples

__all__ = ["BOUNDS", "DIRECTION", "NEEDS", "compute", "score"]

DIRECTION = "higher"
NEEDS = ("ssim",)
BOUNDS = (-1.0, 1.0)

_RANGE = 2.0
_C1, _C2 = (0.01 * _RANGE) ** 2, (0.03 * _RANGE) ** 2


def score(cfg: Config, made: Tensor, target: Tensor) -> Tensor:
    x, y = made.float(), target.float()
    mean_x, mean_y, xx, yy, xy = (_local_mean(of) for of in (x, y, x * x, y * y, x * y))
    covariance = xy - mean_x * mean_y
    variances = xx - mean_x.square() + yy - mean_y.square()
    luminance = (2 * mean_x * mean_y + _C1) / (mean_x.square() + mean_y.square() + _C1)
    return (luminance * (2 * covariance + _C2) / (variances + _C2)).mean((1, 2, 3)).double()


def compute(real: Examples, fake: Examples) -> float:
    return float(fake["ssim"].mean())


def _local_mean(x: Tensor) -> Tensor:
    """Weighted by the window, along one axis after the other: by shifted sums, a fifth of a convolution's time."""
    for axis in (2, 3):
        weights = _window(x.shape[axis])
        places = x.shape[axis] - len(weights) + 1
        x = sum((weight * x.narrow(axis, i, places) for i, weight in enumerate(weights)), x.new_zeros(()))
    return x


def _window(side: int) -> list[float]:
    size = min(11, side)
    weights = [math.exp(-((i - (size - 1) / 2) ** 2) / (2 * 1.5**2)) for i in range(size)]
    return [weight / sum(weights) for weight in weights]
