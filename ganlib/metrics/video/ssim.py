"""Structural similarity of generated frames to the true ones, the mean over frames.

A frame is scored as an image is, by `ganlib.metrics.picture.ssim`.
"""

from __future__ import annotations

from torch import Tensor

from ganlib._config import Config
from ganlib.metrics._types import Examples
from ganlib.metrics.picture import ssim as of_images
from ganlib.metrics.video._frames import mean_over_frames

__all__ = ["BOUNDS", "DIRECTION", "NEEDS", "compute", "score"]

DIRECTION = "higher"
NEEDS = ("ssim",)
BOUNDS = (-1.0, 1.0)


def score(cfg: Config, made: Tensor, target: Tensor) -> Tensor:
    return mean_over_frames(of_images.score, cfg, made, target)


def compute(real: Examples, fake: Examples) -> float:
    return float(fake["ssim"].mean())
