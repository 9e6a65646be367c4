"""R3GAN: two mirrored stacks of grouped inverted bottlenecks without normalisation. Huang et al. 2024.

Config E of the paper, whose other half is the game: `loss: relativistic` with the penalties r1 and r2 at one γ. The
generator grows a learned basis, weighted by z, stage by stage to the image; the discriminator runs the same stages
backwards. No tanh: the paper's generator ends linearly.

Published sizes, of 2 `blocks` a stage: CIFAR-10 `width: 768, max_width: 768`, FFHQ-64 `width: 384, max_width: 768`,
FFHQ-256 `width: 96, max_width: 768`, ImageNet `width: 1536, max_width: 1536, group_size: 32`. The default is small, for
a CPU: full-resolution stages and second derivatives of grouped convolutions are slow (`tests/bench/lazy_r3gan.py`).
"""

from __future__ import annotations

import itertools
import math
from typing import Annotated, Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveInt
from torch import Tensor, nn

from ganlib._config import Config as _Config
from ganlib.convolution import Conv2d, binomial_filter, leaky_relu_
from ganlib.data._spec import Spec
from ganlib.game import DiscriminatorOutput, Game
from ganlib.models._conditioning import (
    Condition,
    Conditioning,
    Embedding,
    Head,
    concat_condition,
    condition_of,
    noise_game,
)

__all__ = ["MODALITY", "Config", "build"]

MODALITY = "image"

_SLOPE = 0.2
_GAIN = math.sqrt(2 / (1 + _SLOPE**2))  # undoes what a leaky ReLU does to the mean square; He et al. 2015, eq. 14


class Config(_Config):
    family: Literal["r3gan"] = "r3gan"
    latent_dim: PositiveInt = 64
    width: PositiveInt = 8
    max_width: PositiveInt = 64
    blocks: Annotated[int, Field(ge=1, le=1000)] = 1
    expansion: PositiveInt = 2
    group_size: PositiveInt = 16
    conditioning: Conditioning = "auto"
    conditioning_weight: NonNegativeFloat = 1.0


def build(cfg: Config, spec: Spec) -> Game:
    """Raises ValueError for sizes that doublings of a small base cannot make, or a condition the data do not have."""
    channels, height, width = spec.shape
    base, widths = (height, width), [min(cfg.width, cfg.max_width)]  # of the stages, outermost first
    while base[0] % 2 == base[1] % 2 == 0 and min(base) >= 8:
        base = (base[0] // 2, base[1] // 2)
        widths.append(min(2 * widths[-1], cfg.max_width))
    if not (
        min(height, width) >= 8 and max(height, width) <= 256 and 4 <= min(base) <= 7 and max(base) <= 4 * min(base)
    ):
        raise ValueError(
            "r3gan makes images of 8 to 256 pixels a side, at most 4:1, that whole halvings bring to a shorter side of "
            f"4 to 7; found {height}x{width}"
        )
    condition = condition_of(cfg.conditioning, spec, auto="projection")
    discriminator = _Discriminator(cfg, channels, base, widths, condition)
    return noise_game(_Generator(cfg, channels, base, widths, condition), discriminator, condition, cfg.latent_dim)


class _Generator(nn.Module):
    def __init__(self, cfg: Config, channels: int, base: tuple[int, int], widths: list[int], condition: Condition):
        super().__init__()
        self.embedding = Embedding(condition, cfg.latent_dim) if condition.size else None
        if self.embedding is not None:
            _scaled(self.embedding.table)
        self.basis = nn.Parameter(torch.randn(widths[-1], *base))
        self.mix = _scaled(nn.Linear(cfg.latent_dim * (2 if condition.size else 1), widths[-1], bias=False))
        layers = _stage(cfg, widths[-1], len(widths))
        for inner, outer in itertools.pairwise(reversed(widths)):
            layers += [*_match(inner, outer), _Resample(up=True), *_stage(cfg, outer, len(widths))]
        self.layers = nn.Sequential(*layers, _scaled(Conv2d(widths[0], channels, 1, bias=False)))

    def forward(self, z: Tensor, cond: Tensor | None = None) -> Tensor:
        """z `[N, latent_dim]` and condition → images `[N, C, H, W]` of about [−1, 1]."""
        if self.embedding is not None and cond is not None:
            z = torch.cat([z, self.embedding(cond)], 1)
        images: Tensor = self.layers(self.basis * self.mix(z)[:, :, None, None])
        return images


class _Discriminator(nn.Module):
    def __init__(self, cfg: Config, channels: int, base: tuple[int, int], widths: list[int], condition: Condition):
        super().__init__()
        self.condition = condition
        layers: list[nn.Module] = [_scaled(Conv2d(channels + condition.planes, widths[0], 1, bias=False))]
        for outer, inner in itertools.pairwise(widths):
            layers += [*_stage(cfg, outer, len(widths)), _Resample(up=False), *_match(outer, inner)]
        self.layers = nn.Sequential(*layers, *_stage(cfg, widths[-1], len(widths)))
        # a depthwise convolution as large as its input
        self.basis = nn.Parameter(torch.randn(widths[-1], *base) / math.sqrt(math.prod(base)))
        self.mix = _scaled(nn.Linear(widths[-1], widths[-1], bias=False)) if condition.size else nn.Identity()
        self.head = Head(condition, widths[-1], wrap=_scaled, weight=cfg.conditioning_weight)
        if condition.mode == "projection" and self.head.embedding is not None:
            _scaled(self.head.embedding.table, 1 / math.sqrt(widths[-1]))  # inner products as large as their terms

    def forward(self, images: Tensor, cond: Tensor | None = None) -> DiscriminatorOutput:
        """Images `[N, C, H, W]` and condition → logits `[N]`, features `[N, D]`."""
        maps = self.layers(concat_condition(images, cond, self.condition))
        output: DiscriminatorOutput = self.head(self.mix((maps * self.basis).sum((2, 3))), cond)
        return output


class _Block(nn.Module):
    """Widen, convolve in groups, narrow, add. Biases only where an activation follows.

    Initialised as in Fixup (Zhang et al. 2019): the branch is zero at first, and `depth` of them, once they speak,
    together add as much as was there.
    """

    def __init__(self, cfg: Config, channels: int, depth: int):
        super().__init__()
        inner = channels * cfg.expansion
        gain = _GAIN * depth**-0.25
        self.widen = _scaled(Conv2d(channels, inner, 1), gain)
        groups = inner // math.gcd(inner, cfg.group_size)
        self.convolve = _scaled(Conv2d(inner, inner, 3, padding=1, groups=groups), gain)
        self.narrow = _scaled(Conv2d(inner, channels, 1, bias=False), 0.0)

    def forward(self, x: Tensor) -> Tensor:
        # in place: backward passes then need what the next convolution keeps anyway, not what went into it too
        y = leaky_relu_(self.widen(x), _SLOPE)
        y = leaky_relu_(self.convolve(y), _SLOPE)
        narrowed: Tensor = self.narrow(y)
        return narrowed.add_(x)


class _Resample(nn.Module):
    """Twice or half the size, bilinearly: the filter [1, 3, 3, 1] in both directions, zeros beyond the edges."""

    def __init__(self, *, up: bool):
        super().__init__()
        self.up = up

    def forward(self, x: Tensor) -> Tensor:
        """`[N, C, H, W]`, of even sides where they are to be halved."""
        return binomial_filter(x, 4.0 if self.up else 1.0, stride=2, padding=1, up=self.up)


def _stage(cfg: Config, channels: int, stages: int) -> list[nn.Module]:
    return [_Block(cfg, channels, cfg.blocks * stages) for _ in range(cfg.blocks)]


def _match(inner: int, outer: int) -> list[nn.Module]:
    return [] if inner == outer else [_scaled(Conv2d(inner, outer, 1, bias=False))]


def _scaled(layer: nn.Module, gain: float = 1.0) -> nn.Module:
    """The layer with weights from N(0, gain² / fan-in) and no bias: it multiplies the mean square by gain²."""
    assert isinstance(layer.weight, Tensor)
    # an embedding is a linear layer of one-hot labels
    fan_in = layer.num_embeddings if isinstance(layer, nn.Embedding) else layer.weight[0].numel()
    nn.init.normal_(layer.weight, std=gain / math.sqrt(fan_in))
    if isinstance(layer, nn.Conv2d | nn.Linear) and layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
