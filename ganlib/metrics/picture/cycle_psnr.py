"""The peak signal-to-noise ratio of images translated there and back, in dB, the mean over test examples.

It is the model's answer `cycle_psnr`. Its floor is that of training examples.
"""

from __future__ import annotations

from ganlib.metrics._types import Examples

__all__ = ["DIRECTION", "NEEDS", "compute"]

DIRECTION = "higher"
NEEDS = ("cycle_psnr",)


def compute(real: Examples, fake: Examples) -> float:
    return float(real["cycle_psnr"].double().mean())
