"""Peak signal-to-noise ratio of generated frames against the true ones, in dB, the mean over frames.

A frame is scored as an image is, by `ganlib.metrics.picture.psnr`.
"""

from __future__ import annotations

from torch import Tensor

from ganlib._config import Config
from ganlib.metrics._types import Examples
from ganlib.metrics.picture import psnr as of_images
from ganlib.metrics.video._frames import mean_over_frames

__all__ = ["DIRECTION", "NEEDS", "compute", "score"]

DIRECTION = "higher"
NEEDS = ("psnr",)


def score(cfg: Config, made: Tensor, target: Tensor) -> Tensor:
    return mean_over_frames(of_images.score, cfg, made, target)


def compute(real: Examples, fake: Examples) -> float:
    return float(fake["psnr"].mean())
