"""Points between two points of a generator's input."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["slerp"]


def slerp(start: Tensor, end: Tensor, share: Tensor | float) -> Tensor:
    """The point on the great circle between two of `[1, ...]`, at a share of the way; lengths go from one to the other.

    White 2016. Raises ValueError for integers, as keys of noise are.
    """
    if not start.is_floating_point():
        raise ValueError("this generator's inputs are no points between which there are others")
    share = torch.as_tensor(share)
    cosine = (start * end).sum() / (start.norm() * end.norm()).clamp_min(1e-12)
    angle = cosine.clamp(-1.0, 1.0).acos()
    if angle.sin() < 1e-4:  # of one direction, or opposite: the great circle is not defined
        return torch.lerp(start, end, share)
    mixed: Tensor = (((1 - share) * angle).sin() * start + (share * angle).sin() * end) / angle.sin()
    return mixed
