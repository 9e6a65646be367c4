"""Features of frames, each looked at as an image."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ganlib.spaces._extractor import Extractor
from ganlib.spaces.picture import efficientnet_lite0

__all__ = ["extractor"]


def extractor(name: str, pooled: Callable[[Tensor], Tensor], frames: slice, device: torch.device) -> Extractor:
    """EfficientNet-Lite0's features `[N, T, 1280]` of `frames` of clips `[N, T, C, H, W]`, `pooled` to `[N, D]`."""
    of_image = efficientnet_lite0.load(device=device)

    def of_clip(clips: Tensor) -> Tensor:
        clips = clips[:, frames]
        found = torch.cat([of_image.network(part) for part in clips.flatten(0, 1).split(32)])
        return pooled(found.view(*clips.shape[:2], -1))

    return Extractor(name, of_image.size, of_clip, device)
