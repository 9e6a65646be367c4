"""Pix2pix: a U-Net makes one image of another, a conditional discriminator judges patches. Isola et al. 2017.

The generator's only noise is dropout, which stays on after training (section 2.1). Its masks are dealt like any
other input; a generator that is given none drops nothing and is deterministic.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Annotated, Literal

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt
from torch import Tensor, nn

from ganlib._config import Config as _Config
from ganlib.data._spec import Spec
from ganlib.game import Batch, Deal, Game, Round, Term
from ganlib.models._layers import BatchNorm, check_patches
from ganlib.models._translation import initialise, jitter
from ganlib.noise import Noise

__all__ = ["MODALITY", "Config", "build"]

MODALITY = "image_pair"

_LEVELS = 8  # at most; at 256 pixels the innermost is a single one
_DROPPED = 3  # decoder levels with dropout, from the innermost


class Config(_Config):
    family: Literal["pix2pix"] = "pix2pix"
    width: PositiveInt = 64
    max_width: PositiveInt = 512
    discriminator_width: PositiveInt = 64
    patch_levels: NonNegativeInt = 3
    norm: Literal["instance", "batch"] = "instance"
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.5
    l1_weight: NonNegativeFloat = 100.0
    jitter: bool = True


def build(cfg: Config, spec: Spec) -> Game:
    """Raises ValueError for sizes that the U-Net cannot halve or that are too small for the patches."""
    given, (generated, height, width) = spec.parts["source"].shape[0], spec.shape
    if not all(16 <= side <= 1024 and side % 16 == 0 for side in (height, width)):
        raise ValueError(
            f"pix2pix makes images of 16 to 1024 pixels a side, each a multiple of 16; found {height}x{width}"
        )
    check_patches(cfg.patch_levels, 3, (height, width))
    levels = max(n for n in range(1, _LEVELS + 1) if height % 2**n == 0 and width % 2**n == 0)
    widths = [min(cfg.width << level, cfg.max_width) for level in range(levels)]  # outermost first
    norm = BatchNorm if cfg.norm == "batch" else _instance_norm
    generator = _Generator(given, generated, widths, norm)
    discriminator = _Discriminator(given + generated, cfg.discriminator_width, cfg.patch_levels, norm)
    dropped = {
        f"drop{i}": (outer, height >> level, width >> level)
        for i, (outer, level) in enumerate(zip(widths[-2::-1][:_DROPPED], range(levels - 1, 0, -1), strict=False))
    }

    def inputs(source: Tensor, noise: Noise) -> dict[str, Tensor]:
        rate = cfg.dropout
        masks = {name: _mask(noise, shape, rate) for name, shape in dropped.items()} if rate else {}
        return {"source": source, **masks}

    def deal(batch: Batch) -> Deal:
        source, target = batch.data["source"], batch.data["sample"]
        if batch.training and cfg.jitter:
            source, target = jitter(torch.cat([source, target], 1), batch.noise).tensor_split([given], 1)
        return Deal(inputs(source, batch.noise), real=target, cond=source)

    return Game(
        generator,
        discriminator,
        deal,
        ask=lambda given, noise, truncation: inputs(given["source"], noise),
        terms=(Term("l1", "generator", _l1, cfg.l1_weight),),
    )


def _l1(round: Round) -> Tensor:
    """|y − G(x)|, mean over the image. Isola et al. 2017, eq. 3."""
    assert isinstance(round.fake, Tensor)
    assert isinstance(round.real, Tensor)
    return (round.fake - round.real).abs().mean((1, 2, 3))


def _mask(noise: Noise, shape: tuple[int, ...], rate: float) -> Tensor:
    """Zero with probability `rate`, else 1 / (1 − rate); `[N, *shape]`."""
    return (noise.uniform(*shape) >= rate).float() / (1 - rate)


class _Generator(nn.Module):
    """A U-Net: what each level of the encoder saw is given to the decoder's level of the same size. Appendix 6.1.1.

    No bias but the last layer's, not even where no norm would swallow it: so counted, parameters are those of
    pytorch-CycleGAN-and-pix2pix.
    """

    def __init__(self, given: int, generated: int, widths: list[int], norm: Callable[[int], nn.Module]):
        super().__init__()
        innermost = len(widths) - 1
        self.down = nn.ModuleList(
            nn.Sequential(
                *([nn.LeakyReLU(0.2)] if level else []),  # not in place: the skip takes what comes before
                nn.Conv2d(inner, outer, 4, stride=2, padding=1, bias=False),
                # at 256 pixels a norm of the innermost would leave nothing of its one
                *([norm(outer)] if 0 < level < innermost else []),
            )
            for level, (inner, outer) in enumerate(pairwise([given, *widths]))
        )
        inner = [2 * width for width in widths]  # with the skip's
        inner[-1] = widths[-1]
        self.up = nn.ModuleList(
            nn.Sequential(
                nn.ReLU(),
                nn.ConvTranspose2d(inner[level], widths[level - 1], 4, stride=2, padding=1, bias=False),
                norm(widths[level - 1]),
            )
            for level in range(innermost, 0, -1)
        )
        self.last = nn.Sequential(nn.ReLU(), nn.ConvTranspose2d(inner[0], generated, 4, stride=2, padding=1), nn.Tanh())
        self.apply(_initialise)

    def forward(self, inputs: dict[str, Tensor], cond: Tensor | None = None) -> Tensor:
        """`source` `[N, given, H, W]`, and dropout's masks if any → images `[N, generated, H, W]` in [−1, 1].

        The condition is the source once more, and is not looked at.
        """
        x = inputs["source"]
        seen = []
        for layer in self.down:
            x = layer(x)
            seen.append(x)
        seen.pop()
        for i, layer in enumerate(self.up):
            x = layer(x)
            if f"drop{i}" in inputs:
                x = x * inputs[f"drop{i}"]
            x = torch.cat([x, seen.pop()], 1)
        images: Tensor = self.last(x)
        return images


class _Discriminator(nn.Module):
    """Each logit judges one patch: 1, 16, 34, 70, 142, 286 pixels a side for 0 to 5 halvings. Appendix 6.1.2."""

    def __init__(self, channels: int, width: int, levels: int, norm: Callable[[int], nn.Module]):
        super().__init__()
        kernel, padding = (4, 1) if levels else (1, 0)  # a PixelGAN has no other pixel to look at
        widths = [min(width << level, 8 * width) for level in range(max(levels, 1) + 1)]
        layers: list[nn.Module] = []
        for level, (inner, outer) in enumerate(pairwise([channels, *widths])):
            stride = 2 if level < levels else 1
            layers.append(nn.Conv2d(inner, outer, kernel, stride, padding, bias=level == 0))
            layers += [norm(outer)] if level else []
            layers.append(nn.LeakyReLU(0.2, inplace=True))
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, kernel, 1, padding))
        self.apply(_initialise)

    def forward(self, images: Tensor, cond: Tensor) -> Tensor:
        """Images `[N, generated, H, W]`, their sources `[N, given, H, W]` → logits `[N, h, w]`, one a patch."""
        logits: Tensor = self.layers(torch.cat([cond, images], 1)).squeeze(1)
        return logits


def _instance_norm(channels: int) -> nn.Module:
    """With a scale and shift: what batch normalisation is on batches of one, as in the paper's experiments."""
    return nn.InstanceNorm2d(channels, affine=True)


def _initialise(layer: nn.Module) -> None:
    """Weights from N(0, 0.02²), norms' scales from N(1, 0.02²), no biases. Appendix 6.2 and the authors' code."""
    initialise(layer)
    if isinstance(layer, nn.BatchNorm2d | nn.InstanceNorm2d):
        nn.init.normal_(layer.weight, mean=1.0, std=0.02)
