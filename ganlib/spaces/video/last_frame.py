"""The last of the frames to be made, as EfficientNet-Lite0 sees images at 64 px: D = 1280."""

from __future__ import annotations

import torch

from ganlib._config import Config as _Base
from ganlib.data._spec import Spec
from ganlib.spaces._extractor import CPU, Extractor
from ganlib.spaces.video._frames import extractor

__all__ = ["Config", "load"]


class Config(_Base):
    pass


def load(cfg: Config | None = None, spec: Spec | None = None, device: torch.device = CPU) -> Extractor:
    """Of clips `[N, T, C, H, W]` in [-1, 1]."""
    return extractor("last_frame", lambda features: features[:, 0], slice(-1, None), device)
