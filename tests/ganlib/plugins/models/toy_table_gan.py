"""A family for the kind `toy_table`: perceptrons, BatchNorm over `[N, D]`.

If asked, the generator is fitted first, and after the game an encoder to it, whose error is a score.
"""

from __future__ import annotations

from typing import Literal

from torch import nn

from ganlib._config import Config as _Base
from ganlib.game import Deal, Fit, Game
from ganlib.models._layers import BatchNorm, gaussian_latent

MODALITY = "toy_table"


class Config(_Base):
    family: Literal["toy_table_gan"] = "toy_table_gan"
    encoder: bool = False


class _Player(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x, cond=None):
        return self.layers(x)


class _Critic(_Player):
    def forward(self, x, cond=None):
        return self.layers(x).squeeze(1)


def build(cfg, spec):
    (size,) = spec.shape
    generator = _Player(nn.Linear(4, 8, bias=False), BatchNorm(8), nn.ReLU(), nn.Linear(8, size))
    encoder = _Player(nn.Linear(size, 4))

    def error(game, rows):
        return (game.generator(game.others["encoder"](rows)) - rows).square().mean(1)

    game = Game(
        generator,
        _Critic(nn.Linear(size, 8), nn.LeakyReLU(0.2), nn.Linear(8, 1)),
        deal=lambda batch: Deal(gaussian_latent(batch.noise, 4), batch.data["sample"]),
        ask=lambda given, noise, truncation: gaussian_latent(noise, 4, truncation),
        others={"encoder": encoder} if cfg.encoder else {},
        before=(Fit("first", "generator", lambda game, batch: error(game, batch.data["sample"])),) * cfg.encoder,
        after=(Fit("inverse", "encoder", lambda game, batch: error(game, batch.data["sample"])),) * cfg.encoder,
        answers=(lambda parts: {"score": error(game, parts["sample"])}) if cfg.encoder else None,
    )
    return game
