"""DCGAN: a deconvolutional generator against a convolutional discriminator. Radford et al. 2016.

Conditional where the data are labelled: the generator's input is z with a class embedding (Mirza & Osindero 2014), the
discriminator has a projection by default (`conditioning`). The paper's discriminator has BatchNorm; the
default here has none, so that gradient penalties apply.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt
from torch import Tensor, nn

from ganlib._config import Config as _Config
from ganlib.convolution import Conv2d
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
from ganlib.models._layers import BatchNorm, MinibatchDeviation, halvings

__all__ = ["MODALITY", "Config", "build"]

MODALITY = "image"


class Config(_Config):
    family: Literal["dcgan"] = "dcgan"
    latent_dim: PositiveInt = 64
    width: PositiveInt = 32
    max_width: PositiveInt = 512
    conditioning: Conditioning = "auto"
    conditioning_weight: NonNegativeFloat = 1.0
    generator_norm: Literal["batch", "none"] = "batch"
    discriminator_norm: Literal["none", "batch", "spectral"] = "none"
    minibatch_group: NonNegativeInt = 0


def build(cfg: Config, spec: Spec) -> Game:
    """Raises ValueError for sizes that a DCGAN cannot make, or for a condition that the data do not have."""
    channels, height, width = spec.shape
    if not all(8 <= side <= 128 and side % 4 == 0 for side in (height, width)) or max(height, width) > 4 * min(
        height, width
    ):
        raise ValueError(
            f"dcgan makes images of 8 to 128 pixels a side, each a multiple of 4, at most 4:1; found {height}x{width}"
        )
    condition = condition_of(cfg.conditioning, spec, auto="projection")

    levels = halvings(height, width)
    base = (height >> levels, width >> levels)
    widths = [min(cfg.width << level, cfg.max_width) for level in range(levels)]  # outermost first

    generator = _Generator(cfg, channels, base, widths, condition)
    discriminator = _Discriminator(cfg, channels, base, widths, condition)
    return noise_game(generator, discriminator, condition, cfg.latent_dim, group=cfg.minibatch_group)


class _Generator(nn.Module):
    def __init__(self, cfg: Config, channels: int, base: tuple[int, int], widths: list[int], condition: Condition):
        super().__init__()
        normal = cfg.generator_norm == "batch"
        self.embedding = Embedding(condition, cfg.latent_dim) if condition.size else None
        self.base = (widths[-1], *base)
        self.first = nn.Linear(cfg.latent_dim * (2 if condition.size else 1), widths[-1] * base[0] * base[1])
        layers: list[nn.Module] = [BatchNorm(widths[-1])] if normal else []
        layers.append(nn.ReLU(inplace=True))
        for inner, outer in zip(widths[:0:-1], widths[-2::-1], strict=True):
            layers.append(nn.ConvTranspose2d(inner, outer, 4, stride=2, padding=1, bias=not normal))
            layers += [BatchNorm(outer), nn.ReLU(inplace=True)] if normal else [nn.ReLU(inplace=True)]
        layers.append(nn.ConvTranspose2d(widths[0], channels, 4, stride=2, padding=1))
        self.layers = nn.Sequential(*layers)
        self.apply(_initialise)

    def forward(self, z: Tensor, cond: Tensor | None = None) -> Tensor:
        """z `[N, latent_dim]` and condition → images `[N, C, H, W]` in [−1, 1]."""
        if self.embedding is not None and cond is not None:
            z = torch.cat([z, self.embedding(cond)], 1)
        images: Tensor = self.layers(self.first(z).unflatten(1, self.base)).tanh()
        return images


class _Discriminator(nn.Module):
    def __init__(self, cfg: Config, channels: int, base: tuple[int, int], widths: list[int], condition: Condition):
        super().__init__()

        def spectral(layer: nn.Module) -> nn.Module:
            _initialise(layer)  # before: a parametrised weight is recomputed, and what is written into it is lost
            if cfg.discriminator_norm == "spectral":  # Miyato et al. 2018
                return nn.utils.parametrizations.spectral_norm(layer)
            return layer

        layers: list[nn.Module] = []
        self.condition = condition
        compare = MinibatchDeviation(cfg.minibatch_group)
        for level, (inner, outer) in enumerate(zip([channels + condition.planes, *widths], widths, strict=False)):
            normal = cfg.discriminator_norm == "batch" and level > 0  # none on the first: Radford et al., section 3
            if level == len(widths) - 1:  # late, but a nonlinearity is still to come
                layers.append(compare)
                inner += compare.channels
            layers.append(spectral(Conv2d(inner, outer, 4, stride=2, padding=1, bias=not normal)))
            if normal:
                layers.append(BatchNorm(outer))
            layers.append(nn.LeakyReLU(0.2, inplace=True))
        self.layers = nn.Sequential(*layers, nn.Flatten())
        features = widths[-1] * base[0] * base[1]
        self.head = Head(condition, features, wrap=spectral, weight=cfg.conditioning_weight)

    def forward(self, images: Tensor, cond: Tensor | None = None) -> DiscriminatorOutput:
        """Images `[N, C, H, W]` and condition → logits `[N]`, features `[N, D]`."""
        output: DiscriminatorOutput = self.head(self.layers(concat_condition(images, cond, self.condition)), cond)
        return output


def _initialise(layer: nn.Module) -> None:
    """Weights from N(0, 0.02²), as in the paper.

    Class embeddings too: drawn from N(0, 1), as loud as z, they made the generator learn one picture a class.
    """
    if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear | nn.Embedding):
        nn.init.normal_(layer.weight, std=0.02)
