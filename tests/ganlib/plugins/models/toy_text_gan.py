"""A family for the kind `toy_text`: a prompt is continued; next to the letters the generator returns a likelihood."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from ganlib._config import Config as _Base
from ganlib.game import Deal, Game

MODALITY = "toy_text"


class Config(_Base):
    family: Literal["toy_text_gan"] = "toy_text_gan"


class _Generator(nn.Module):
    def __init__(self, given, shape):
        super().__init__()
        self.shape = shape
        self.layers = nn.Sequential(
            nn.Linear(given[0] * given[1] + 4, 16), nn.ReLU(), nn.Linear(16, shape[0] * shape[1])
        )

    def forward(self, inputs, cond=None):
        x = torch.cat([inputs["prompt"].flatten(1), inputs["z"]], 1)
        letters = self.layers(x).view(-1, *self.shape).softmax(2)
        return {"likelihood": letters.amax(2).log().sum(1), "sample": letters}


class _Discriminator(nn.Module):
    def __init__(self, given, shape):
        super().__init__()
        self.layer = nn.Linear(given[0] * given[1] + shape[0] * shape[1], 1)

    def forward(self, sample, cond):
        return self.layer(torch.cat([cond.flatten(1), sample["sample"].flatten(1)], 1)).squeeze(1)


def build(cfg, spec):
    given = spec.parts["prompt"].shape

    def deal(batch):
        prompt, real = batch.data["prompt"], batch.data["sample"]
        known = {"likelihood": real.new_zeros(len(real)), "sample": real}
        return Deal({"prompt": prompt, "z": batch.noise.normal(4)}, known, cond=prompt)

    return Game(
        _Generator(given, spec.shape),
        _Discriminator(given, spec.shape),
        deal,
        ask=lambda given, noise, truncation: {"prompt": given["prompt"], "z": noise.normal(4)},
    )
