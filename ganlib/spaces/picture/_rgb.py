"""Images for networks of three channels and a fixed size."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

__all__ = ["rgb"]


def rgb(images: Tensor, size: tuple[int, int] | None = None) -> Tensor:
    """Three channels; resized with antialiasing if asked, after which grey is repeated."""
    if size is not None and images.shape[-2:] != size:
        images = F.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
