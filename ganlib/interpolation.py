"""Points between two points of a generator's input."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["slerp"]


def slerp(start: Tensor, end: Tensor, share: Tensor | float) -> Tensor:
    """The point at a `share` of the way along the great circle from each vector of `[..., D]` to another.

    Lengths go from one to the other. White 2016.

    Vectors of one direction, or of opposite ones, between which no great circle is defined, are joined by a line.
    Raises ValueError for integers, such as keys of noise.
    """
    if not start.is_floating_point():
        raise ValueError("cannot interpolate: this generator's inputs are integers, not latent vectors")
    share = torch.as_tensor(share)
    angle = torch.cosine_similarity(start, end, -1).clamp(-1, 1)[..., None].acos()
    by_circle = (((1 - share) * angle).sin() * start + (share * angle).sin() * end) / angle.sin().clamp(min=1e-4)
    return torch.where(angle.sin() < 1e-4, start.lerp(end, share.to(start)), by_circle)
