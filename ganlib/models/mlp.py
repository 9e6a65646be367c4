"""The game of 2014: two perceptrons. Goodfellow et al. 2014.

With `loss: minimax` the paper's equation 1, with `loss: non_saturating` the form it trains with. Conditional
where the data are labelled: each player's input has the one-hot label concatenated (Mirza & Osindero 2014)
by default (`conditioning`).
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveInt
from torch import Tensor, nn

from ganlib._config import Config as _Config
from ganlib.data._spec import Spec
from ganlib.game import DiscriminatorOutput, Game
from ganlib.models._conditioning import Condition, Conditioning, Head, concat_condition, condition_of, noise_game

__all__ = ["MODALITY", "Config", "build"]

MODALITY = "image"


class Config(_Config):
    family: Literal["mlp"] = "mlp"
    latent_dim: PositiveInt = 64
    width: PositiveInt = 256
    depth: Annotated[int, Field(ge=1, le=1000)] = 2
    conditioning: Conditioning = "auto"
    conditioning_weight: NonNegativeFloat = 1.0


def build(cfg: Config, spec: Spec) -> Game:
    """Raises ValueError for a condition that the data do not have."""
    condition = condition_of(cfg.conditioning, spec, auto="concat")
    discriminator = _Discriminator(cfg, spec.shape, condition)
    return noise_game(_Generator(cfg, spec.shape, condition), discriminator, condition, cfg.latent_dim)


def _hidden(inputs: int, cfg: Config, activation: nn.Module) -> list[nn.Module]:
    sizes = [inputs, *[cfg.width] * cfg.depth]
    return [layer for a, b in itertools.pairwise(sizes) for layer in (nn.Linear(a, b), activation)]


class _Generator(nn.Module):
    """The condition is concatenated to z: one-hot, or the attributes as they are."""

    def __init__(self, cfg: Config, shape: tuple[int, ...], condition: Condition):
        super().__init__()
        self.condition, self.shape = dataclasses.replace(condition, mode="concat"), shape
        hidden = _hidden(cfg.latent_dim + condition.size, cfg, nn.ReLU())
        self.layers = nn.Sequential(*hidden, nn.Linear(cfg.width, math.prod(shape)))

    def forward(self, z: Tensor, cond: Tensor | None = None) -> Tensor:
        """z `[N, latent_dim]` and condition → images `[N, C, H, W]` in [−1, 1]."""
        images: Tensor = self.layers(concat_condition(z, cond, self.condition)).tanh()
        return images.view(-1, *self.shape)


class _Discriminator(nn.Module):
    def __init__(self, cfg: Config, shape: tuple[int, ...], condition: Condition):
        super().__init__()
        self.condition = condition
        self.layers = nn.Sequential(*_hidden(math.prod(shape) + condition.planes, cfg, nn.LeakyReLU(0.2)))
        self.head = Head(condition, cfg.width, weight=cfg.conditioning_weight)

    def forward(self, images: Tensor, cond: Tensor | None = None) -> DiscriminatorOutput:
        """Images `[N, C, H, W]` and condition → logits `[N]`, features `[N, width]`."""
        output: DiscriminatorOutput = self.head(
            self.layers(concat_condition(images.flatten(1), cond, self.condition)), cond
        )
        return output
