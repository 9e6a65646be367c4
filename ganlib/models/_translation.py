"""Networks that make one image of another, and those that judge patches of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ganlib.data._spec import Spec
from ganlib.models._layers import BatchNorm
from ganlib.noise import Noise

__all__ = [
    "MARGIN",
    "Norm",
    "PatchDiscriminator",
    "ResNet",
    "UNet",
    "check_domains",
    "check_size",
    "generator_of",
    "initialise",
    "jitter",
    "norm_of",
    "padded",
    "scores",
]

Norm = Literal["instance", "batch"]

MARGIN = 1 << 20
"""of networks whose norm takes statistics of a whole image: every pixel depends on all others"""
_ROUNDING = (2 / 255) ** 2 / 12  # variance of an error that is uniform over one of 256 levels
_UNET_LEVELS = 8  # at most; at 256 pixels the innermost is a single one


class ResNet(nn.Module):
    """c7s1-64, d128, d256, so many residual blocks of 256, u128, u64, c7s1-3, at width 64. Zhu et al. 2017, appendix
    7.2; Johnson et al. 2016."""

    def __init__(self, channels: int, width: int, blocks: int, norm: Norm):
        super().__init__()
        self.multiple = 4
        """sides other than multiples of it are continued by their last pixels, and cut again"""
        self.least = 2 * self.multiple  # a quarter of it is reflected by one pixel
        widths = [width, 2 * width, 4 * width]

        def layer(convolution: nn.Module, outer: int) -> nn.Sequential:
            return nn.Sequential(convolution, norm_of(norm, outer), nn.ReLU(inplace=True))

        self.encoder = nn.ModuleList([layer(_reflecting(channels, width, 7, bias=False), width)])
        for inner, outer in pairwise(widths):
            self.encoder.append(layer(nn.Conv2d(inner, outer, 3, 2, 1, bias=False), outer))
        self.encoder.extend(_Block(widths[-1], norm) for _ in range(blocks))
        up = [
            layer(nn.ConvTranspose2d(inner, outer, 3, 2, 1, output_padding=1, bias=False), outer)
            for inner, outer in pairwise(widths[::-1])
        ]
        self.decoder = nn.Sequential(*up, _reflecting(width, channels, 7), nn.Tanh())
        self.apply(initialise)

    def forward(self, images: Tensor) -> Tensor:
        """`[N, C, H, W]` → `[N, C, H, W]` in [−1, 1]."""
        return padded(self._translate, images, self.multiple, self.least)

    def _translate(self, images: Tensor) -> Tensor:
        translated: Tensor = self.decoder(self.features(images, [len(self.encoder)])[0])
        return translated

    def features(self, images: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """What some layers make of images, `[N, C, h, w]` each, in rising order: 0 are the images, 1 is c7s1-64, 2
        d128, 3 d256, 4 the first block."""
        found, x = [images] if 0 in layers else [], images
        for number, layer in enumerate(self.encoder[: max(layers)], 1):
            x = layer(x)
            found += [x] if number in layers else []
        return found


class _Block(nn.Module):
    def __init__(self, width: int, norm: Norm):
        super().__init__()
        first, second = (_reflecting(width, width, 3, bias=False) for _ in range(2))
        self.layers = nn.Sequential(first, norm_of(norm, width), nn.ReLU(inplace=True), second, norm_of(norm, width))

    def forward(self, x: Tensor) -> Tensor:
        added: Tensor = self.layers(x)
        return x + added


class UNet(nn.Module):
    """What each level of the encoder saw is given to the decoder's level of the same size. Isola et al. 2017, 6.1.1."""

    def __init__(self, channels: int, width: int, size: tuple[int, int], norm: Norm):
        super().__init__()
        levels = max(n for n in range(1, _UNET_LEVELS + 1) if all(side % 2**n == 0 for side in size) or n == 1)
        self.multiple = 2**levels
        widths = [min(width << level, 8 * width) for level in range(levels)]  # outermost first
        innermost = levels - 1
        self.down = nn.ModuleList(
            nn.Sequential(
                *([nn.LeakyReLU(0.2)] if level else []),  # not in place: the skip takes what comes before
                nn.Conv2d(inner, outer, 4, 2, 1, bias=not 0 < level < innermost),
                # at 256 pixels a norm of the innermost would leave nothing of its one
                *([norm_of(norm, outer)] if 0 < level < innermost else []),
            )
            for level, (inner, outer) in enumerate(pairwise([channels, *widths]))
        )
        inner = [2 * outer for outer in widths]  # with the skip's
        inner[-1] = widths[-1]
        self.up = nn.ModuleList(
            nn.Sequential(
                nn.ReLU(),
                nn.ConvTranspose2d(inner[level], widths[level - 1], 4, 2, 1, bias=False),
                norm_of(norm, widths[level - 1]),
            )
            for level in range(innermost, 0, -1)
        )
        self.last = nn.Sequential(nn.ReLU(), nn.ConvTranspose2d(inner[0], channels, 4, 2, 1), nn.Tanh())
        self.apply(initialise)

    def forward(self, images: Tensor) -> Tensor:
        """`[N, C, H, W]` → `[N, C, H, W]` in [−1, 1]."""
        return padded(self._translate, images, self.multiple)

    def _translate(self, x: Tensor) -> Tensor:
        seen = []
        for layer in self.down:
            x = layer(x)
            seen.append(x)
        seen.pop()
        for layer in self.up:
            x = torch.cat([layer(x), seen.pop()], 1)
        images: Tensor = self.last(x)
        return images


class PatchDiscriminator(nn.Module):
    """Each logit judges one patch: 16, 34, 70, 142 pixels a side for 1 to 4 halvings. Zhu et al. 2017, appendix 7.2."""

    def __init__(self, channels: int, width: int, levels: int, norm: Norm):
        super().__init__()
        widths = [min(width << level, 8 * width) for level in range(levels + 1)]
        layers: list[nn.Module] = []
        for level, (inner, outer) in enumerate(pairwise([channels, *widths])):
            layers.append(nn.Conv2d(inner, outer, 4, 2 if level < levels else 1, 1, bias=level == 0))
            layers += [norm_of(norm, outer)] if level else []
            layers.append(nn.LeakyReLU(0.2, inplace=True))
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 4, 1, 1))
        self.apply(initialise)

    def forward(self, images: Tensor, cond: Tensor | None = None) -> Tensor:
        """Images `[N, C, H, W]` → logits `[N, h, w]`, one a patch; there is no condition."""
        logits: Tensor = self.layers(images).squeeze(1)
        return logits


def generator_of(
    name: Literal["residual", "unet"], channels: int, width: int, blocks: int, size: tuple[int, int], norm: Norm
) -> ResNet | UNet:
    return ResNet(channels, width, blocks, norm) if name == "residual" else UNet(channels, width, size, norm)


def check_domains(family: str, spec: Spec) -> None:
    """Raises ValueError for changes of attributes: the given image and the sample are of one domain."""
    if spec.attributes:
        raise ValueError(
            f"{family} translates between domains, and these data are changes of attributes "
            f"({', '.join(spec.attributes)}); choose a family that is conditioned on these"
        )


def check_size(size: tuple[int, int], patch_levels: int) -> None:
    """Raises ValueError for images too small for the networks or for the patches."""
    smallest = max(16, 3 << patch_levels)
    if not all(smallest <= side <= 1024 for side in size):
        raise ValueError(
            f"expected images of {smallest} to 1024 pixels a side (network.patch_levels {patch_levels} needs "
            f"{3 << patch_levels}), found {size[0]}x{size[1]}"
        )


def jitter(images: Tensor, noise: Noise) -> Tensor:
    """Enlarge by 286/256 and cut the old size out at random: Isola et al. 2017, appendix 6.2; aligned over channels."""
    _, _, height, width = images.shape
    uniform = noise.uniform(2)
    size = (round(height * 286 / 256), round(width * 286 / 256))
    larger = F.interpolate(images, size, mode="bilinear", align_corners=False)
    top, left = (
        (uniform[:, axis, None] * (larger.shape[2 + axis] - side + 1)).long()
        for axis, side in ((0, height), (1, width))
    )
    rows, columns = (torch.arange(side, device=images.device).expand(len(images), -1) for side in (height, width))
    every = torch.arange(len(images), device=images.device)[:, None, None]
    # indexed examples, rows and columns come first, then the channels; all layers would follow in that layout
    cut = larger[every, :, (top + rows)[:, :, None], (left + columns)[:, None, :]]
    return torch.empty_like(images).copy_(cut.permute(0, 3, 1, 2))


def padded(translate: Callable[[Tensor], Tensor], images: Tensor, multiple: int, least: int = 0) -> Tensor:
    """The translation of images of any size: continued by their last pixels to multiples, and to `least`; and cut."""
    height, width = images.shape[2:]
    below, beyond = (max(side + -side % multiple, least) - side for side in (height, width))
    if below or beyond:
        images = F.pad(images, (0, beyond, 0, below), mode="replicate")
        return translate(images)[:, :, :height, :width]
    return translate(images)


def scores(given: Tensor, translated: Tensor, back: Tensor | None = None) -> dict[str, Tensor]:
    """What metrics read of translations, and of these translated back, if they are; `[N]` each."""
    found = {"edge_correlation": _edge_correlation(given, translated)}
    if back is not None:
        error = (back - given).square().flatten(1).mean(1)
        found["cycle_psnr"] = 10 * (4 / error.clamp_min(_ROUNDING)).log10()
    return found


def _edge_correlation(given: Tensor, made: Tensor) -> Tensor:
    """The correlation over pixels of the strength of edges, by Sobel's filter of the mean over channels, `[N]`: 1 where
    edges lie in the same places, near 0 where they have nothing to do with each other, 0 where one image has none."""
    sobel = given.new_tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])
    kernel = torch.stack([sobel, sobel.T])[:, None]
    edges = (F.conv2d(x.mean(1, keepdim=True), kernel).square().sum(1).sqrt().flatten(1) for x in (given, made))
    one, other = (x - x.mean(1, keepdim=True) for x in edges)
    return (one * other).sum(1) / (one.square().sum(1) * other.square().sum(1)).sqrt().clamp_min(1e-12)


def _reflecting(inner: int, outer: int, size: int, bias: bool = True) -> nn.Conv2d:
    """A convolution with reflection padding. No bias before a norm, which would subtract it again."""
    return nn.Conv2d(inner, outer, size, padding=size // 2, padding_mode="reflect", bias=bias)


def norm_of(norm: Norm, channels: int) -> nn.Module:
    """Instance normalisation without scale and shift (Ulyanov et al. 2016) is group normalisation with a channel a
    group, whose kernel is several times as fast on a CPU."""
    return BatchNorm(channels) if norm == "batch" else nn.GroupNorm(channels, channels, affine=False)


def initialise(layer: nn.Module) -> None:
    """Weights from N(0, 0.02²), no biases. Zhu et al. 2017, section 4."""
    if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(layer.weight, std=0.02)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
