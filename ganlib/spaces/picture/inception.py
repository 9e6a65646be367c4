"""Inception-v3 as in the original FID code, from a TorchScript file `inception-2015-12-05.pt`: D = 2048.

Only the Fréchet distance on these features may be called FID; on others it is named after its network. The file is
called as `net(uint8 images, return_features=True)` and resizes by itself. TorchScript is code: naming the file in
`reference.spaces.inception.file` is trusting it.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ganlib._config import Config as _Base
from ganlib.config import ConfigError
from ganlib.data._spec import Spec
from ganlib.spaces._extractor import CPU, Extractor
from ganlib.spaces.picture._rgb import rgb

__all__ = ["Config", "load"]


class Config(_Base):
    file: str
    """path of NVIDIA's inception-2015-12-05.pt"""


def load(cfg: Config, spec: Spec | None = None, device: torch.device = CPU) -> Extractor:
    """Of images `[N, 1 or 3, H, W]` in [-1, 1]. Raises ConfigError if the file is missing or of another kind."""
    path = cfg.file
    where = f"reference.spaces.inception.file: {path}"
    if not Path(path).is_file():
        raise ConfigError(f"{where}: there is no such file")
    try:
        network = torch.jit.load(str(path), map_location=device).eval()
        probe = network(torch.zeros(1, 3, 32, 32, dtype=torch.uint8, device=device), return_features=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ConfigError(f"{where}: not a TorchScript Inception with `return_features`: {reason}") from error
    if tuple(probe.shape) != (1, 2048):
        raise ConfigError(f"{where}: features of shape {tuple(probe.shape)} found, (1, 2048) expected")

    def pooled(images: Tensor) -> Tensor:
        pixels = (rgb(images) * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)
        features: Tensor = network(pixels, return_features=True)
        return features

    return Extractor("inception", (299, 299), pooled, device)
