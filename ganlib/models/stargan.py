"""StarGAN: one generator changes attributes of an image, by as much as it is asked to. Choi et al. 2018.

The condition is what is to be added to the attributes, as "20 years older" (relative attributes: Wu et al. 2019), not
what they are to become; with 0 nothing is to change. The discriminator also reads attributes off images, up to
constants that differences do not have: it learns to from real images and by how much theirs differ, and a translation
is to differ from the given image by what was asked.

What it says of a translation is what the generator learnt to please. So a network of its own, the judge, learns the
same after the game from real images alone, and figures are what it reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Literal

import torch.nn.functional as F
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor, nn

from ganlib._config import Config as _Config
from ganlib.data._spec import Spec
from ganlib.game import Batch, Deal, DiscriminatorOutput, Fit, Game, Round, Term, sample_of
from ganlib.models._translation import MARGIN, Norm, ResNet, check_size, initialise, jitter, norm_of, padded, scores

__all__ = ["MODALITY", "Config", "build"]

MODALITY = "unpaired"

_LEAST = 4  # pixels a side of what attributes are read off


class Config(_Config):
    family: Literal["stargan"] = "stargan"
    width: PositiveInt = 64
    blocks: PositiveInt = 6
    discriminator_width: PositiveInt = 64
    patch_levels: PositiveInt = 3
    norm: Norm = "instance"
    attribute_weight: NonNegativeFloat = 1.0
    cycle_weight: NonNegativeFloat = 10.0
    identity_weight: NonNegativeFloat = 5.0
    jitter: bool = True


def build(cfg: Config, spec: Spec) -> Game:
    """Raises ValueError for sizes that the networks cannot do, or for data without attributes."""
    channels, *size = spec.shape
    check_size((size[0], size[1]), cfg.patch_levels)
    if not spec.attributes:
        raise ValueError(
            "stargan changes attributes, and these data have none; give it data with differences of attributes "
            "(source.name attribute_changes)"
        )
    number = len(spec.attributes)
    generator = _Generator(cfg, channels, number)
    discriminator = _Discriminator(cfg, spec.shape, number)
    judge = _Attributes(spec.shape, cfg.discriminator_width, number)

    def deal(batch: Batch) -> Deal:
        given, real = batch.data["given"], batch.data["sample"]
        if batch.training and cfg.jitter:
            given, real = jitter(given, batch.noise), jitter(real, batch.noise)
        return Deal(given, real=real, cond=batch.data["attributes"])

    def learn_to_judge(game: Game, batch: Batch) -> Tensor:
        deal = game.deal(batch)
        return _squared(judge(sample_of(deal.real)) - judge(sample_of(deal.inputs)), deal.cond)

    def answers(parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        given, before = parts["given"], judge(parts["given"])
        asked = parts.get("attributes", before.new_zeros(len(given), number))
        translated = generator(given, asked)
        back = generator(translated, -asked)
        found = {"translated": translated, "back": back, **scores(given, translated, back)}
        found["attribute_error"] = (judge(translated) - before - asked).abs().mean(1)
        if "sample" in parts:
            found["judge_error"] = (judge(parts["sample"]) - before - asked).abs().mean(1)
        return found

    terms = [
        Term("attributes", "discriminator", _of_reals, cfg.attribute_weight),
        Term("attributes", "generator", _of_fakes, cfg.attribute_weight),
        Term("cycle", "generator", _cycle, cfg.cycle_weight),
    ]
    if cfg.identity_weight:
        terms.append(Term("identity", "generator", _identity, cfg.identity_weight))
    return Game(
        generator,
        discriminator,
        deal,
        ask=lambda given, noise, truncation: given["given"],
        attributes=number,
        terms=tuple(terms),
        answers=answers,
        others={"judge": judge},
        after=(Fit("judge", "judge", learn_to_judge),),
        margin=MARGIN,
    )


def _of_reals(round: Round) -> Tensor:
    """By how much real images differ. Choi et al. 2018, eq. 2, as a squared error of differences."""
    return _squared(_change(round, round.real_features), round.deal.cond)


def _of_fakes(round: Round) -> Tensor:
    """By how much translations differ from the given images. Choi et al. 2018, eq. 3."""
    return _squared(_change(round, round.fake_features), round.deal.cond)


def _change(round: Round, features: Tensor | None) -> Tensor:
    before = round.discriminate(round.deal.inputs).features
    assert features is not None
    assert before is not None
    return features - before


def _cycle(round: Round) -> Tensor:
    """|x − G(G(x, c), −c)|, `[N]`. Choi et al. 2018, eq. 4."""
    back: Tensor = round.game.generator(sample_of(round.fake), -_condition(round))
    return (back - sample_of(round.deal.inputs)).abs().mean((1, 2, 3))


def _identity(round: Round) -> Tensor:
    """|x − G(x, 0)|, `[N]`: there and back alone may exchange images. Self-reconstruction of Wu et al. 2019."""
    given = sample_of(round.deal.inputs)
    same: Tensor = round.game.generator(given, 0 * _condition(round))
    return (same - given).abs().mean((1, 2, 3))


def _condition(round: Round) -> Tensor:
    assert round.deal.cond is not None
    return round.deal.cond


def _squared(found: Tensor, expected: Tensor | None) -> Tensor:
    """`[N, A]` → `[N]`; attributes are standardised."""
    assert expected is not None
    return (found - expected).square().mean(1)


class _Generator(nn.Module):
    """The residual network of translation, whose blocks are scaled and shifted by what is asked.

    A plane of the condition next to the image, as in the paper, is a constant, which instance normalisation subtracts.
    """

    def __init__(self, cfg: Config, channels: int, attributes: int):
        super().__init__()
        self.network = ResNet(channels, cfg.width, 0, cfg.norm)
        self.blocks = nn.ModuleList(_Block(4 * cfg.width, attributes, cfg.norm) for _ in range(cfg.blocks))
        self.blocks.apply(initialise)

    def forward(self, images: Tensor, attributes: Tensor) -> Tensor:
        """`[N, C, H, W]`, what to add to their attributes `[N, A]` → `[N, C, H, W]` in [−1, 1]."""

        def translate(x: Tensor) -> Tensor:
            for layer in self.network.encoder:
                x = layer(x)
            for block in self.blocks:
                x = block(x, attributes)
            made: Tensor = self.network.decoder(x)
            return made

        return padded(translate, images, self.network.multiple, self.network.least)


class _Block(nn.Module):
    def __init__(self, width: int, attributes: int, norm: Norm):
        super().__init__()
        self.first, self.second = (
            nn.Conv2d(width, width, 3, padding=1, padding_mode="reflect", bias=False) for _ in range(2)
        )
        self.norm, self.norm_of_second = norm_of(norm, width), norm_of(norm, width)
        self.scale, self.shift = (nn.Linear(attributes, width, bias=False) for _ in range(2))
        for layer in (self.scale, self.shift):
            nn.init.normal_(layer.weight, std=0.1)

    def forward(self, x: Tensor, attributes: Tensor) -> Tensor:
        scale, shift = (layer(attributes)[:, :, None, None] for layer in (self.scale, self.shift))
        inner = F.relu(self.norm(self.first(x)) * (1 + scale) + shift)
        added: Tensor = self.norm_of_second(self.second(inner))
        return x + added


class _Halvings(nn.Sequential):
    """Convolutions of stride 2, without norms, which would hide brightness and contrast."""

    def __init__(self, channels: int, widths: list[int]):
        layers: list[nn.Module] = []
        for inner, outer in pairwise([channels, *widths]):
            layers += [nn.Conv2d(inner, outer, 4, 2, 1), nn.LeakyReLU(0.2, inplace=True)]
        super().__init__(*layers)


def _widths(width: int, size: tuple[int, ...]) -> list[int]:
    """Channels after each halving of images of this size, until `_LEAST` pixels a side are left."""
    levels = 1
    while min(size) >> (levels + 1) >= _LEAST - 1:
        levels += 1
    return [min(width << level, 8 * width) for level in range(levels)]


class _Attributes(nn.Module):
    """Attributes of an image, up to constants."""

    def __init__(self, shape: tuple[int, ...], width: int, attributes: int):
        super().__init__()
        channels, *size = shape
        widths = _widths(width, tuple(size))
        self.layers = _Halvings(channels, widths)
        sides = [side >> len(widths) for side in size]
        self.attributes = nn.Linear(widths[-1] * sides[0] * sides[1], attributes, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """`[N, C, H, W]` → `[N, A]`."""
        found: Tensor = self.attributes(self.layers(images).flatten(1))
        return found


class _Discriminator(nn.Module):
    """Logits of patches, and attributes."""

    def __init__(self, cfg: Config, shape: tuple[int, ...], attributes: int):
        super().__init__()
        channels, *size = shape
        widths = _widths(cfg.discriminator_width, tuple(size))
        levels = min(cfg.patch_levels, len(widths))
        self.patches = _Halvings(channels, widths[:levels])
        self.logits = nn.Conv2d(widths[levels - 1], 1, 3, padding=1)
        self.rest = _Halvings(widths[levels - 1], widths[levels:])
        sides = [side >> len(widths) for side in size]
        self.attributes = nn.Linear(widths[-1] * sides[0] * sides[1], attributes, bias=False)

    def forward(self, images: Tensor, attributes: Tensor | None = None) -> DiscriminatorOutput:
        """`[N, C, H, W]` → logits `[N, h, w]`, attributes `[N, A]` as features."""
        patches = self.patches(images)
        return DiscriminatorOutput(self.logits(patches).squeeze(1), self.attributes(self.rest(patches).flatten(1)))
