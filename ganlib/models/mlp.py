"""The game of 2014: two perceptrons. Goodfellow et al. 2014.

With `loss: minimax` the paper's equation 1, with `loss: non_saturating` the form it trains with. Conditional
where the data are labelled, by a one-hot label beside each player's input (Mirza & Osindero 2014).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import PositiveInt
from torch import Tensor, nn

from ganlib._config import Config as _Config
from ganlib.data._spec import Spec
from ganlib.game import Deal, Game
from ganlib.models._layers import gaussian_latent

__all__ = ["MODALITY", "Config", "build"]

MODALITY = "image"


class Config(_Config):
    family: Literal["mlp"] = "mlp"
    latent_dim: PositiveInt = 64
    width: PositiveInt = 256
    depth: PositiveInt = 2
    conditional: bool | Literal["auto"] = "auto"


def build(cfg: Config, spec: Spec) -> Game:
    """Raises ValueError for labels asked of unlabelled data."""
    if cfg.conditional is True and not spec.classes:
        raise ValueError("network.conditional is true, but the data have no labels; use auto or false")
    classes = len(spec.classes) if cfg.conditional else 0
    size = math.prod(spec.shape)
    return Game(
        _Generator(_perceptron(cfg.latent_dim + classes, cfg, size, nn.ReLU()), classes, spec.shape),
        _Discriminator(_perceptron(size + classes, cfg, 1, nn.LeakyReLU(0.2)), classes),
        deal=lambda batch: Deal(
            inputs=gaussian_latent(batch.noise, cfg.latent_dim),
            real=batch.data["sample"],
            cond=batch.data["label"] if classes else None,
        ),
        latent=lambda noise, truncation: gaussian_latent(noise, cfg.latent_dim, truncation),
        classes=classes,
    )


def _perceptron(inputs: int, cfg: Config, outputs: int, activation: nn.Module) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(cfg.depth):
        layers += [nn.Linear(inputs, cfg.width), activation]
        inputs = cfg.width
    return nn.Sequential(*layers, nn.Linear(inputs, outputs))


class _Generator(nn.Module):
    def __init__(self, layers: nn.Module, classes: int, shape: tuple[int, ...]):
        super().__init__()
        self.layers, self.classes, self.shape = layers, classes, shape

    def forward(self, z: Tensor, cond: Tensor | None = None) -> Tensor:
        """z `[N, latent_dim]`, labels `[N]` → images `[N, C, H, W]` in [−1, 1]."""
        images: Tensor = self.layers(_beside(z, cond, self.classes)).tanh()
        return images.view(-1, *self.shape)


class _Discriminator(nn.Module):
    def __init__(self, layers: nn.Module, classes: int):
        super().__init__()
        self.layers, self.classes = layers, classes

    def forward(self, images: Tensor, cond: Tensor | None = None) -> Tensor:
        """Images `[N, C, H, W]`, labels `[N]` → logits `[N]`."""
        logits: Tensor = self.layers(_beside(images.flatten(1), cond, self.classes))
        return logits.squeeze(1)


def _beside(x: Tensor, cond: Tensor | None, classes: int) -> Tensor:
    return x if cond is None else torch.cat([x, F.one_hot(cond, classes).to(x)], 1)
