"""CycleGAN: images of two domains, each translated into the other and back, without pairs. Zhu et al. 2017.

Each player is two networks, one for each domain that is made. An example has one image of each domain; the players take
and give them as the data have them: `given`, and `sample`, which is of the domain that the label says.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt
from torch import Tensor, nn

from ganlib._config import Config as _Config
from ganlib.data._spec import Spec
from ganlib.game import Batch, Deal, Game, Round, Sample, Term, tensors_of
from ganlib.models._translation import (
    MARGIN,
    Norm,
    PatchDiscriminator,
    check_domains,
    check_size,
    generator_of,
    jitter,
    scores,
)
from ganlib.pool import Pool

__all__ = ["MODALITY", "Config", "build"]

MODALITY = "unpaired"


class Config(_Config):
    family: Literal["cyclegan"] = "cyclegan"
    generator: Literal["residual", "unet"] = "residual"
    width: PositiveInt = 64
    blocks: PositiveInt = 9
    discriminator_width: PositiveInt = 64
    patch_levels: PositiveInt = 3
    norm: Norm = "instance"
    cycle_weight: NonNegativeFloat = 5.0
    identity_weight: NonNegativeFloat = 2.5
    pool: NonNegativeInt = 50
    jitter: bool = True


def build(cfg: Config, spec: Spec) -> Game:
    """Raises ValueError for sizes that the networks cannot do, or for labels other than of two domains."""
    channels, *size = spec.shape
    check_domains("cyclegan", spec)
    check_size((size[0], size[1]), cfg.patch_levels)
    if len(spec.classes) not in (0, 2):
        raise ValueError(f"cyclegan translates between two domains, found labels of {len(spec.classes)}")
    generator, discriminator = _Generator(cfg, spec.shape), _Discriminator(cfg, channels)

    def deal(batch: Batch) -> Deal:
        images = {name: batch.data[name] for name in ("given", "sample")}
        cond = batch.data["label"] if spec.classes else None
        if not batch.training:  # what it is used for: one way, that of the label
            return Deal(images["given"], real=images["sample"], cond=cond)
        if cfg.jitter:
            images = {name: jitter(x, batch.noise) for name, x in images.items()}
        return Deal(images, real=images, cond=cond)

    def answers(parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        given, label = parts["given"], parts.get("label")
        translated = generator(given, label)
        back = generator.back(translated, label)
        return {"translated": translated, "back": back, **scores(given, translated, back)}

    terms = [Term("cycle", "generator", _cycle, cfg.cycle_weight)]
    if cfg.identity_weight:
        terms.append(Term("identity", "generator", _identity, cfg.identity_weight))
    return Game(
        generator,
        discriminator,
        deal,
        ask=lambda given, noise, truncation: given["given"],
        classes=len(spec.classes),
        terms=tuple(terms),
        answers=answers,
        margin=MARGIN,
        pool=Pool(cfg.pool, dict.fromkeys(("given", "sample"), spec.shape)) if cfg.pool else None,
    )


def _cycle(round: Round) -> Tensor:
    """|F(G(x)) − x| and |G(F(y)) − y|, their mean, `[N]`. Zhu et al. 2017, eq. 2, whose sum is twice that."""
    return _difference(round.game.generator(round.fake, round.deal.cond), round.real)


def _identity(round: Round) -> Tensor:
    """|G(y) − y| and |F(x) − x|, their mean, `[N]`. Zhu et al. 2017, section 5.2."""
    assert isinstance(round.real, dict)
    exchanged = {"given": round.real["sample"], "sample": round.real["given"]}
    return _difference(round.game.generator(exchanged, round.deal.cond), round.real)


def _difference(made: Sample, real: Sample) -> Tensor:
    pairs = zip(tensors_of(made), tensors_of(real), strict=True)
    return torch.stack([(one - other).abs().mean((1, 2, 3)) for one, other in pairs]).mean(0)


def _exchanged(one: Tensor, other: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor]:
    """Given image and sample as images of the first and of the second domain, or back again."""
    if label is None:
        return one, other
    chosen = (label == 1).view(-1, 1, 1, 1)
    return torch.where(chosen, one, other), torch.where(chosen, other, one)


class _Generator(nn.Module):
    """A network for each domain, which makes images of it."""

    def __init__(self, cfg: Config, shape: tuple[int, ...]):
        super().__init__()
        channels, height, width = shape
        self.into = nn.ModuleList(
            generator_of(cfg.generator, channels, cfg.width, cfg.blocks, (height, width), cfg.norm) for _ in range(2)
        )

    def forward(self, images: Sample, label: Tensor | None = None) -> Sample:
        """`given` and `sample`, `[N, C, H, W]`, each translated into the other's domain, under the other's name; or
        given images alone, translated into the domain of the label."""
        first, second = self.into
        if isinstance(images, dict):
            one, other = _exchanged(images["given"], images["sample"], label)
            one, other = _exchanged(first(other), second(one), label)
            return {"given": one, "sample": other}
        if label is None:
            translated: Tensor = second(images)
            return translated
        # rows' labels may differ, and a graph has no branches: both networks make each
        return _exchanged(second(images), first(images), label)[0]

    def back(self, translated: Tensor, label: Tensor | None) -> Tensor:
        """Translations into the domain of the label, translated into the other one."""
        back: Tensor = self.into[0](translated) if label is None else self(translated, 1 - label)
        return back


class _Discriminator(nn.Module):
    """A network for each domain, which judges images of it."""

    def __init__(self, cfg: Config, channels: int):
        super().__init__()
        self.of = nn.ModuleList(
            PatchDiscriminator(channels, cfg.discriminator_width, cfg.patch_levels, cfg.norm) for _ in range(2)
        )

    def forward(self, sample: Sample, label: Tensor | None = None) -> Tensor:
        """`given` and `sample`, each judged among those of its domain → logits `[N, 2, h, w]`; samples alone, of the
        domain of the label → `[N, h, w]`."""
        first, second = self.of
        if isinstance(sample, dict):
            one, other = _exchanged(sample["given"], sample["sample"], label)
            return torch.stack([first(one), second(other)], 1)
        if label is None:
            logits: Tensor = second(sample)
            return logits
        return torch.where((label == 1).view(-1, 1, 1), second(sample), first(sample))
