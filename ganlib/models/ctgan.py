"""Tables by a conditional GAN whose condition is one choice of one column. Xu et al. 2019 (CTGAN).

The condition says what one column, drawn at random, chooses: so the generator can be asked for it, and rare choices are
seen as often as the logarithm of their frequency says (training by sampling, section 4.3). A row is drawn with the
probability that it has under that law, `Game.weights`, and then the column given the row, which is the same joint law.
The discriminator judges `group` rows together (PacGAN, Lin et al. 2018).

Unlike in the paper, the chosen column of a fake is the condition itself, where the paper has a cross-entropy push it
there: what is asked for is always made. Samples are asked for by the frequencies of the data, as in the paper.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from ganlib._config import Config as _Config
from ganlib.data._kind import Block
from ganlib.data._spec import Spec
from ganlib.game import Batch, Deal, Game
from ganlib.models._layers import BatchNorm
from ganlib.noise import Noise

__all__ = ["MODALITY", "Config", "build"]

MODALITY = "table"


class Config(_Config):
    family: Literal["ctgan"] = "ctgan"
    latent_dim: PositiveInt = 128
    width: PositiveInt = 256
    depth: PositiveInt = 2
    discriminator_width: PositiveInt = 256
    discriminator_depth: PositiveInt = 2
    group: Annotated[int, Field(ge=1, le=100)] = 1
    """rows that the discriminator judges together; 1: each by itself"""
    temperature: PositiveFloat = 0.2
    """of the Gumbel softmax"""
    conditions: Literal["log", "frequency", "none"] = "log"
    """how often a choice is the condition in training: by the logarithm of its frequency, by its frequency, or never"""


def build(cfg: Config, spec: Spec) -> Game:
    """Raises ValueError for rows that have labels."""
    if spec.classes:
        raise ValueError("the family is conditioned on columns, not on labels: set `label` of the source to null")
    assert spec.kind.layout is not None, "the kind of data says how its samples lie"
    blocks = spec.kind.layout(spec.sample)
    conditions = _Conditions(cfg, blocks, spec.counts["train"])
    (width,) = spec.shape

    def inputs(noise: Noise, cond: Tensor | None) -> dict[str, Tensor]:
        made = {"latent": noise.normal(cfg.latent_dim), "uniform": noise.uniform(width)}
        return made if cond is None else {**made, "cond": cond}

    def deal(batch: Batch) -> Deal:
        real = batch.data["sample"]
        cond = conditions.of_rows(real, batch.noise.uniform(), batch.training)
        return Deal(inputs(batch.noise, cond), real, cond)

    def ask(given: Mapping[str, Tensor], noise: Noise, truncation: float | None) -> dict[str, Tensor]:
        if truncation is not None:
            raise ValueError("truncation: rows are made without")
        return inputs(noise, conditions.by_frequency(noise.uniform()))

    return Game(
        _Generator(cfg, width, blocks, conditions),
        _Discriminator(cfg, width, conditions),
        deal,
        ask,
        lambda known, noise: inputs(noise, conditions.of_known(known, noise.uniform())),
        group=cfg.group,
        weights=conditions.weights if cfg.conditions == "log" and conditions.size else None,
    )


class _Conditions(nn.Module):
    """What can be a condition: each choice of the C columns that are nothing but a choice, K in all.

    A module for its constants to be where the networks are: no step then waits for a copy. They are not saved.
    """

    places: Tensor
    """of the K choices in a sample, int64 `[K]`"""
    of_column: Tensor
    """1 where a choice belongs to a column, else 0, `[C, K]`"""
    shares: Tensor
    """how frequent each choice is, float64 `[K]`"""
    ends: Tensor
    """sums of these up to each choice, those of a column being 1 / C, `[K]`"""
    chances: Tensor
    """per row with this choice, how often it is the condition in training, float64 `[K]`"""

    def __init__(self, cfg: Config, blocks: tuple[Block, ...], rows: int) -> None:
        super().__init__()
        with_modes = {block.column for block in blocks if block.kind == "scalar"}
        chosen = [b for b in blocks if b.kind == "choice" and b.column not in with_modes and b.size > 1]
        if cfg.conditions == "none":
            chosen = []
        self.size = sum(block.size for block in chosen)
        of_column = torch.zeros(len(chosen), self.size)
        shares = torch.tensor([share for block in chosen for share in block.shares], dtype=torch.float64)
        chances = torch.zeros(self.size, dtype=torch.float64)
        start = 0
        for row, block in enumerate(chosen):
            part = slice(start, start + block.size)
            of_column[row, part] = 1.0
            law = torch.log1p(shares[part] * rows) if cfg.conditions == "log" else shares[part]
            chances[part] = torch.where(shares[part] > 0, law / law.sum() / shares[part], 0.0)
            start += block.size
        places = torch.tensor([block.start + i for block in chosen for i in range(block.size)], dtype=torch.long)
        ends = (shares / max(len(chosen), 1)).float().cumsum(0)
        constants = {"places": places, "of_column": of_column, "shares": shares, "ends": ends, "chances": chances}
        for name, constant in constants.items():
            self.register_buffer(name, constant, persistent=False)

    def _rows_choices(self, rows: Tensor) -> Tensor:
        return rows[:, self.places.to(rows.device)]

    def weights(self, parts: Mapping[str, Tensor]) -> Tensor:
        """Of training rows, `[N]`: the sum over columns of the chance of its choice."""
        choices = self._rows_choices(parts["sample"])
        return choices.double() @ self.chances.to(choices.device)

    def of_rows(self, rows: Tensor, uniform: Tensor, training: bool) -> Tensor | None:
        """A choice that the row has, one-hot `[N, K]`: while training of the column given the row, else of any."""
        if not self.size:
            return None
        choices, of_column = self._rows_choices(rows), self.of_column.to(rows)
        if training:
            chances = (choices * self.chances.to(choices)) @ of_column.T
        else:
            chances = choices.new_ones(len(rows), len(of_column))
        # a sum up to each column by a product: on CUDA `cumsum` of floats is refused as not deterministic
        ends = chances @ chances.new_ones(2 * [len(of_column)]).triu()
        return choices * (_drawn(ends, uniform) @ of_column)

    def by_frequency(self, uniform: Tensor) -> Tensor | None:
        """A choice by the frequencies of the data, of any column alike, one-hot `[N, K]`."""
        if not self.size:
            return None
        return _drawn(self.ends.to(uniform).expand(uniform.shape[0], -1), uniform)

    def of_known(self, known: Tensor, uniform: Tensor) -> Tensor | None:
        """The rarest choice that is known, `[width]`, one-hot `[N, K]`; by frequency where none is."""
        choices = known[self.places.to(known.device)].nan_to_num(0.0)
        if not choices.any():
            return self.by_frequency(uniform)
        rarest = self.shares.to(known.device).masked_fill(choices == 0, torch.inf).argmin()
        return (torch.arange(self.size, device=known.device) == rarest).to(uniform).expand(len(uniform), -1)


def _drawn(ends: Tensor, uniform: Tensor) -> Tensor:
    """One-hot `[N, M]`, drawn in proportion to chances; `ends` `[N, M]` are their cumulative sums."""
    below = (ends <= uniform[:, None] * ends[:, -1:]).sum(1, keepdim=True)
    last = (ends < ends[:, -1:]).sum(1, keepdim=True)  # the last that has a chance
    return (torch.arange(ends.shape[1], device=ends.device) == below.minimum(last)).to(ends.dtype)


class _Residual(nn.Module):
    """FC, BatchNorm, ReLU, next to what went in. Xu et al. 2019, section 4.4."""

    def __init__(self, inner: int, outer: int):
        super().__init__()
        self.linear, self.norm = nn.Linear(inner, outer, bias=False), BatchNorm(outer)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([F.relu(self.norm(self.linear(x))), x], 1)


class _Generator(nn.Module):
    def __init__(self, cfg: Config, width: int, blocks: tuple[Block, ...], conditions: _Conditions):
        super().__init__()
        self.temperature, self.blocks, self.conditions = cfg.temperature, blocks, conditions
        size, layers = cfg.latent_dim + conditions.size, []
        for _ in range(cfg.depth):
            layers.append(_Residual(size, cfg.width))
            size += cfg.width
        self.layers = nn.Sequential(*layers, nn.Linear(size, width))

    def forward(self, inputs: dict[str, Tensor], cond: Tensor | None = None) -> Tensor:
        """Latent `[N, latent_dim]`, uniform noise `[N, width]` and the condition `[N, K]` → samples `[N, width]`: in
        [−1, 1] where scalars are, of sum 1 where a choice is."""
        condition = inputs.get("cond")
        x = inputs["latent"] if condition is None else torch.cat([inputs["latent"], condition], 1)
        out = self.layers(x).float()
        gumbel = -(-inputs["uniform"].clamp(2.0**-25, 1 - 2.0**-24).log()).log()
        parts = []
        for block in self.blocks:
            part = slice(block.start, block.start + block.size)
            if block.kind == "scalar":
                parts.append(out[:, part].tanh())
            else:
                parts.append(((out[:, part] + gumbel[:, part]) / self.temperature).softmax(1))
        made = torch.cat(parts, 1)
        if condition is None:
            return made
        is_set = condition @ self.conditions.of_column.T.to(condition) @ self.conditions.of_column.to(condition)
        places = self.conditions.places.to(made.device)
        return made.index_copy(1, places, torch.where(is_set > 0, condition, made.index_select(1, places)))


class _Discriminator(nn.Module):
    def __init__(self, cfg: Config, width: int, conditions: _Conditions):
        super().__init__()
        self.group = cfg.group
        sizes = [cfg.group * (width + conditions.size), *[cfg.discriminator_width] * cfg.discriminator_depth]
        layers: list[nn.Module] = []
        for inner, outer in itertools.pairwise(sizes):
            layers += [nn.Linear(inner, outer), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Linear(sizes[-1], 1))

    def forward(self, sample: Tensor, cond: Tensor | None = None) -> Tensor:
        """Samples `[N, width]` and conditions `[N, K]` → logits `[N]`, of equal ones in each group of neighbours."""
        x = sample if cond is None else torch.cat([sample, cond], 1)
        group = next(g for g in range(self.group, 0, -1) if len(x) % g == 0)
        if group < self.group:  # too few to be a group: they stand for it
            x = x.view(-1, group, x.shape[1]).repeat(1, -(-self.group // group), 1)[:, : self.group]
        logits: Tensor = self.layers(x.reshape(-1, self.group * x.shape[-1]))
        return logits.expand(-1, group).reshape(-1)
