"""Clips by the features of their frames, averaged and differenced over time: D = 2560.

The mean over frames of EfficientNet-Lite0's features at 64 px, and the mean absolute difference from each frame to the
next. It sees what is shown and how fast that changes, not which way it moves. A Fréchet distance of these features is
no FVD, whose network (I3D) was trained on videos.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ganlib._config import Config as _Base
from ganlib.data._spec import Spec
from ganlib.spaces._extractor import CPU, Extractor
from ganlib.spaces.video._frames import extractor

__all__ = ["Config", "load"]


class Config(_Base):
    pass


def load(cfg: Config | None = None, spec: Spec | None = None, device: torch.device = CPU) -> Extractor:
    """Of clips `[N, T, C, H, W]` in [-1, 1]; of a single frame the differences are 0."""
    return extractor("clip", _pooled, slice(None), device)


def _pooled(features: Tensor) -> Tensor:
    """`[N, T, D]` → `[N, 2 D]`."""
    change = features.diff(dim=1).abs()
    moving = change.mean(1) if change.shape[1] else torch.zeros_like(features[:, 0])
    return torch.cat([features.mean(1), moving], 1)
