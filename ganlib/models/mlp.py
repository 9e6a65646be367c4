"""The game of 2014: two perceptrons. Goodfellow et al. 2014.

With `loss: minimax` the paper's equation 1, with `loss: non_saturating` the form it trains with. Conditional
where the data are labelled: by a one-hot label beside each player's input (Mirza & Osindero 2014), unless told
otherwise.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Literal

from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor, nn

from ganlib._config import Config as _Config
from ganlib.data._spec import Spec
from ganlib.game import Game, Verdict
from ganlib.models._conditioning import Conditioning, Head, Told, beside, from_noise, told

__all__ = ["MODALITY", "Config", "build"]

MODALITY = "image"


class Config(_Config):
    family: Literal["mlp"] = "mlp"
    latent_dim: PositiveInt = 64
    width: PositiveInt = 256
    depth: PositiveInt = 2
    conditioning: Conditioning = "auto"
    conditioning_weight: NonNegativeFloat = 1.0


def build(cfg: Config, spec: Spec) -> Game:
    """Raises ValueError for a condition that the data do not have."""
    cond = told(cfg.conditioning, spec, auto="concat")
    discriminator = _Discriminator(cfg, spec.shape, cond)
    return from_noise(_Generator(cfg, spec.shape, cond), discriminator, cond, cfg.latent_dim)


def _hidden(inputs: int, cfg: Config, activation: nn.Module) -> list[nn.Module]:
    sizes = [inputs, *[cfg.width] * cfg.depth]
    return [layer for a, b in itertools.pairwise(sizes) for layer in (nn.Linear(a, b), activation)]


class _Generator(nn.Module):
    """Always told by the condition beside z: one-hot, or as the attributes are."""

    def __init__(self, cfg: Config, shape: tuple[int, ...], told: Told):
        super().__init__()
        self.told, self.shape = dataclasses.replace(told, mode="concat"), shape
        hidden = _hidden(cfg.latent_dim + told.size, cfg, nn.ReLU())
        self.layers = nn.Sequential(*hidden, nn.Linear(cfg.width, math.prod(shape)))

    def forward(self, z: Tensor, cond: Tensor | None = None) -> Tensor:
        """z `[N, latent_dim]` and condition → images `[N, C, H, W]` in [−1, 1]."""
        images: Tensor = self.layers(beside(z, cond, self.told)).tanh()
        return images.view(-1, *self.shape)


class _Discriminator(nn.Module):
    def __init__(self, cfg: Config, shape: tuple[int, ...], told: Told):
        super().__init__()
        self.told = told
        self.layers = nn.Sequential(*_hidden(math.prod(shape) + told.planes, cfg, nn.LeakyReLU(0.2)))
        self.head = Head(told, cfg.width, weight=cfg.conditioning_weight)

    def forward(self, images: Tensor, cond: Tensor | None = None) -> Verdict:
        """Images `[N, C, H, W]` and condition → logits `[N]`, features `[N, width]`."""
        verdict: Verdict = self.head(self.layers(beside(images.flatten(1), cond, self.told)), cond)
        return verdict
