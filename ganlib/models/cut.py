"""CUT: one domain translated into another, without pairs and without a way back. Park et al. 2020.

A patch of a translation is to be more like the patch of the given image in the same place than like others of it, in
the features of the generator's own layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn

from ganlib._config import Config as _Config
from ganlib.data._spec import Spec
from ganlib.game import Batch, Deal, Game, Round, Term, sample_of
from ganlib.models._translation import (
    MARGIN,
    Norm,
    PatchDiscriminator,
    ResNet,
    check_domains,
    check_size,
    jitter,
    scores,
)
from ganlib.noise import Noise

__all__ = ["MODALITY", "Config", "build"]

MODALITY = "unpaired"


class Config(_Config):
    family: Literal["cut"] = "cut"
    width: PositiveInt = 64
    blocks: PositiveInt = 9
    discriminator_width: PositiveInt = 64
    patch_levels: PositiveInt = 3
    norm: Norm = "instance"
    layers: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)] = (0, 2, 3, 4, 8)
    patches: Annotated[int, Field(ge=2)] = 256
    units: PositiveInt = 256
    temperature: PositiveFloat = 0.07
    contrast_weight: NonNegativeFloat = 0.5
    identity_weight: NonNegativeFloat = 0.5
    jitter: bool = True


def build(cfg: Config, spec: Spec) -> Game:
    """Raises ValueError for sizes that the networks cannot do, for layers that they do not have, or for two ways."""
    channels, *size = spec.shape
    check_domains("cut", spec)
    check_size((size[0], size[1]), cfg.patch_levels)
    if spec.classes:
        raise ValueError(
            f"cut translates one way, these data are labelled for {len(spec.classes)}; set source.direction to a_to_b "
            "or b_to_a"
        )
    if max(cfg.layers) > cfg.blocks + 3:
        raise ValueError(
            f"network.layers: {max(cfg.layers)} is none of the generator's; with network.blocks {cfg.blocks} expected "
            f"at most {cfg.blocks + 3}"
        )
    generator = _Generator(cfg, channels)

    def deal(batch: Batch) -> Deal:
        given, real = batch.data["given"], batch.data["sample"]
        if batch.training and cfg.jitter:
            given, real = jitter(given, batch.noise), jitter(real, batch.noise)
        return Deal(given, real=real)

    def answers(parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        translated = generator(parts["given"])
        return {"translated": translated, **scores(parts["given"], translated)}

    terms = [Term("contrast", "generator", _contrast, cfg.contrast_weight)]
    if cfg.identity_weight:
        terms.append(Term("identity", "generator", _identity, cfg.identity_weight))
    return Game(
        generator,
        PatchDiscriminator(channels, cfg.discriminator_width, cfg.patch_levels, cfg.norm),
        deal,
        ask=lambda given, noise, truncation: given["given"],
        terms=tuple(terms),
        answers=answers,
        margin=MARGIN,
    )


def _contrast(round: Round) -> Tensor:
    """Of given images and their translations."""
    generator = round.game.generator
    assert isinstance(generator, _Generator)
    assert isinstance(round.deal.inputs, Tensor)
    return generator.contrast(round.deal.inputs, sample_of(round.fake), round.noise.fork("contrast"))


def _identity(round: Round) -> Tensor:
    """Of images that are of the domain already. Park et al. 2020, eq. 5, its last term."""
    generator, real = round.game.generator, sample_of(round.real)
    assert isinstance(generator, _Generator)
    return generator.contrast(real, generator(real), round.noise.fork("identity"))


class _Generator(nn.Module):
    def __init__(self, cfg: Config, channels: int):
        super().__init__()
        self.cfg, self.layers = cfg, sorted(set(cfg.layers))
        self.network = ResNet(channels, cfg.width, cfg.blocks, cfg.norm)
        of_layers = [channels, cfg.width, 2 * cfg.width]  # all others have four times the width
        self.heads = nn.ModuleList()
        for layer in self.layers:
            inner = of_layers[layer] if layer < len(of_layers) else 4 * cfg.width
            self.heads.append(
                nn.Sequential(nn.Linear(inner, cfg.units), nn.ReLU(inplace=True), nn.Linear(cfg.units, cfg.units))
            )
        for head in self.heads.modules():
            if isinstance(head, nn.Linear):
                nn.init.normal_(head.weight, std=0.02)
                nn.init.zeros_(head.bias)

    def forward(self, images: Tensor, cond: Tensor | None = None) -> Tensor:
        """`[N, C, H, W]` → `[N, C, H, W]` in [−1, 1]."""
        translated: Tensor = self.network(images)
        return translated

    def contrast(self, given: Tensor, translated: Tensor, noise: Noise) -> Tensor:
        """The cross-entropy of finding a translation's patch again among patches of the given image, the mean over
        patches and layers, `[N]`. Park et al. 2020, eq. 3 and 4."""
        with torch.no_grad():  # the given image's features are what is aimed at
            aims = self.network.features(given, self.layers)
        losses = []
        for head, aim, found in zip(self.heads, aims, self.network.features(translated, self.layers), strict=True):
            places = noise.uniform(aim.shape[2] * aim.shape[3]).argsort(1)[:, : self.cfg.patches]
            with torch.no_grad():
                keys = self._embedded(head, aim, places)
            similarity = self._embedded(head, found, places) @ keys.mT / self.cfg.temperature
            same = torch.arange(places.shape[1], device=places.device).expand(len(places), -1)
            losses.append(F.cross_entropy(similarity.mT, same, reduction="none").mean(1))
        return torch.stack(losses).mean(0)

    def _embedded(self, head: nn.Module, features: Tensor, places: Tensor) -> Tensor:
        """Features `[N, C, h, w]` at places `[N, P]` → `[N, P, units]`, of length 1; what is under 1e-3 stays short.

        Where an image is constant, instance normalisation leaves rounding errors. Brought to length 1, they would
        count as much as any other patch, and make up most of the gradient.
        """
        chosen = features.flatten(2).gather(2, places[:, None].expand(-1, features.shape[1], -1))
        embedded: Tensor = F.normalize(head(chosen.mT), dim=2, eps=1e-3)
        return embedded
