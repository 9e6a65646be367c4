"""Restoration as by ESRGAN: first by pixels, then with a perceptual and an adversarial loss. Wang et al. 2018.

The generator is SRResNet's residual network (Ledig et al. 2017) without BatchNorm, as in EDSR (Lim et al. 2017); it
adds to what is naively made of the given image. It is fully convolutional, so images of any size can be restored. A
fit of the mean absolute error comes before the game, in which that error and the distance of features stay as terms.
The discriminator is unconditional. It judges patches of pixels, or feature maps of a network pretrained on photographs
(Projected GANs, Sauer et al. 2021).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor, nn

from ganlib._config import Config as _Config
from ganlib.convolution import Conv2d
from ganlib.data._spec import Spec
from ganlib.game import Batch, Deal, DiscriminatorOutput, Fit, Game, Round, Term
from ganlib.models._layers import check_patches

__all__ = ["MODALITY", "Config", "build"]

MODALITY = "restoration"

_BICUBIC = 2  # given pixels on each side that an upscaled pixel depends on
_MAP_CHANNELS = (16, 24, 40)  # of EfficientNet-Lite0's maps; stated, as a registered generator lacks the package


class Config(_Config):
    family: Literal["restore"] = "restore"
    width: PositiveInt = 32
    blocks: PositiveInt = 6
    fold: Literal[1, 2, 4] = 2
    discriminator: Literal["pixels", "features"] = "pixels"
    discriminator_width: PositiveInt = 32
    patch_levels: PositiveInt = 2
    discriminator_norm: Literal["none", "spectral"] = "spectral"
    l1_weight: NonNegativeFloat = 1.0
    features: Literal["efficientnet_lite0", "discriminator"] = "efficientnet_lite0"
    feature_weight: NonNegativeFloat = 1.0


def build(cfg: Config, spec: Spec) -> Game:
    """Raises ValueError for images too small for the patches."""
    channels, height, width = spec.shape
    check_patches(cfg.patch_levels, 4, (height, width))
    naive = spec.kind.naive
    assert naive is not None
    factor = height // spec.parts["given"].shape[1]
    fold = cfg.fold if factor == 1 else 1
    base = functools.partial(naive, spec.sample)
    generator = _Generator(cfg, channels, factor, fold, lambda given: base({"given": given}))
    terms = [Term("l1", "generator", _l1, cfg.l1_weight)]
    if cfg.feature_weight:
        distance = _perceptual if cfg.features == "efficientnet_lite0" else _feature_matching
        terms.append(Term("features", "generator", distance, cfg.feature_weight))
    return Game(
        generator,
        _Discriminator(cfg, channels) if cfg.discriminator == "pixels" else _FeatureDiscriminator(cfg),
        deal=lambda batch: Deal(batch.data["given"], real=batch.data["sample"]),
        ask=lambda given, noise, truncation: given["given"],
        terms=tuple(terms),
        before=(Fit("pixels", "generator", _pixels),),
        margin=generator.margin,
    )


def _pixels(game: Game, batch: Batch) -> Tensor:
    """|y − G(x)|, mean over the image, `[N]`."""
    return _absolute_error(game.generator(batch.data["given"]), batch.data["sample"])


def _l1(round: Round) -> Tensor:
    """The same of a turn's fakes. Wang et al. 2018, eq. 3."""
    assert isinstance(round.fake, Tensor)
    assert isinstance(round.real, Tensor)
    return _absolute_error(round.fake, round.real)


def _absolute_error(made: Tensor, target: Tensor) -> Tensor:
    return (made - target).abs().mean((1, 2, 3))


def _features_of(round: Round) -> tuple[Tensor, Tensor]:
    """What the discriminator returns of fakes and of reals, `[N, D]`; gradients reach the fakes alone."""
    real = round.real_features
    if real is None:
        with torch.no_grad():
            real = round.discriminate(round.real).features
    assert real is not None
    assert round.fake_features is not None
    return round.fake_features, real.detach()


def _feature_matching(round: Round) -> Tensor:
    """The mean absolute difference of the discriminator's features, `[N]`. Wang et al. 2018 (pix2pixHD), eq. 4."""
    fake, real = _features_of(round)
    return (fake - real).abs().mean(1)


def _perceptual(round: Round) -> Tensor:
    """The distance of EfficientNet-Lite0's feature maps, normalised at each place, `[N]`.

    Zhang et al. 2018, eq. 1, with equal weights, summed over layers.
    """
    if isinstance(round.game.discriminator, _FeatureDiscriminator):  # which has them already
        fake, real = _features_of(round)
    else:
        assert isinstance(round.fake, Tensor)
        assert isinstance(round.real, Tensor)
        with torch.no_grad():
            real = _flattened(_normalised_maps(round.real))
        fake = _flattened(_normalised_maps(round.fake))
    return (fake - real).square().sum(1)


def _normalised_maps(images: Tensor) -> list[Tensor]:
    """EfficientNet-Lite0's maps, `[N, C, h, w]`, with a length of 1 at each place."""
    maps = (x.float() for x in _maps(images.device)(images))
    return [x * (x.square().sum(1, keepdim=True) + 1e-6).rsqrt() for x in maps]


def _flattened(maps: list[Tensor]) -> Tensor:
    """`[N, D]`, in which squared distances are sums over maps of means over places."""
    return torch.cat([x.flatten(1) * (x.shape[2] * x.shape[3]) ** -0.5 for x in maps], 1)


@functools.cache
def _maps(device: torch.device) -> Callable[[Tensor], list[Tensor]]:
    """Loaded when it is first needed: a registered generator neither has nor needs the package."""
    from ganlib.spaces.picture.efficientnet_lite0 import feature_maps

    return feature_maps(device)


class _Block(nn.Module):
    """x + convolve(ReLU(convolve(x))). Lim et al. 2017, figure 2c."""

    def __init__(self, width: int):
        super().__init__()
        self.layers = nn.Sequential(_convolution(width, width), nn.ReLU(inplace=True), _convolution(width, width, 0.1))

    def forward(self, x: Tensor) -> Tensor:
        added: Tensor = self.layers(x)
        return x + added


class _Generator(nn.Module):
    """Images `[N, C, h, w]` of any size, `fold` x `fold` pixels taken as channels, are enlarged by pixel shuffling."""

    def __init__(self, cfg: Config, channels: int, factor: int, fold: int, naive: Callable[[Tensor], Tensor]):
        super().__init__()
        self.fold, self.naive = fold, naive
        self.first = _convolution(channels * fold**2, cfg.width)
        self.blocks = nn.Sequential(*[_Block(cfg.width) for _ in range(cfg.blocks)], _convolution(cfg.width, cfg.width))
        doublings = (factor * fold).bit_length() - 1
        up: list[nn.Module] = []
        for _ in range(doublings):
            up += [_convolution(cfg.width, 4 * cfg.width), nn.PixelShuffle(2), nn.LeakyReLU(0.2, inplace=True)]
        self.up = nn.Sequential(*up, _convolution(cfg.width, channels, 0.1))
        reach = 2 * cfg.blocks + 2 + sum(0.5**i for i in range(doublings + 1))
        self.margin = (math.ceil(reach) * fold + _BICUBIC + fold - 1) // fold * fold
        """given pixels around a pixel that decide what becomes of it; a multiple of `fold`"""

    def forward(self, given: Tensor, cond: Tensor | None = None) -> Tensor:
        """`[N, C, h, w]` → `[N, C, factor · h, factor · w]`, once trained in [−1, 1]."""
        height, width = given.shape[2:]
        x = given
        if self.fold > 1:
            x = F.pad(given, (0, -width % self.fold, 0, -height % self.fold), mode="replicate")
            x = F.pixel_unshuffle(x, self.fold)
        x = self.first(x)
        x = self.up(x + self.blocks(x))
        base = self.naive(given)
        made: Tensor = base + x[:, :, : base.shape[2], : base.shape[3]]
        return made if self.training else made.clamp(-1.0, 1.0)


class _Discriminator(nn.Module):
    """Each logit judges a patch; no condition."""

    def __init__(self, cfg: Config, channels: int):
        super().__init__()
        layer = functools.partial(_judging, cfg)
        widths = [cfg.discriminator_width << level for level in range(cfg.patch_levels + 1)]
        layers: list[nn.Module] = [layer(channels, widths[0], 3)]
        for inner, outer in pairwise(widths):
            layers += [nn.LeakyReLU(0.2, inplace=True), layer(inner, outer, 4, 2)]
        layers += [nn.LeakyReLU(0.2, inplace=True), layer(widths[-1], widths[-1], 3), nn.LeakyReLU(0.2, inplace=True)]
        self.layers = nn.Sequential(*layers)
        self.last = layer(widths[-1], 1, 3)

    def forward(self, images: Tensor, cond: Tensor | None = None) -> DiscriminatorOutput:
        """Images `[N, C, H, W]` → logits `[N, h, w]`, features `[N, D]`."""
        features = self.layers(images)
        return DiscriminatorOutput(self.last(features).squeeze(1), features.flatten(1))


class _FeatureDiscriminator(nn.Module):
    """A small network on each of EfficientNet-Lite0's maps, whose weights are constants; no condition.

    Sauer et al. 2021, but maps are normalised at each place, and channels and scales are not mixed.
    """

    def __init__(self, cfg: Config):
        super().__init__()
        layer, width = functools.partial(_judging, cfg), 2 * cfg.discriminator_width
        self.heads = nn.ModuleList(
            nn.Sequential(
                *(layer(channels, width, 1), nn.LeakyReLU(0.2, inplace=True)),
                *(layer(width, width, 3), nn.LeakyReLU(0.2, inplace=True)),
                layer(width, 1, 3),
            )
            for channels in _MAP_CHANNELS
        )

    def forward(self, images: Tensor, cond: Tensor | None = None) -> DiscriminatorOutput:
        """Images `[N, C, H, W]` → logits `[N, 3]`, each the mean over a map's places; features `[N, D]`: the maps."""
        maps = _normalised_maps(images)
        logits = [head(x * x.shape[1] ** 0.5).mean((1, 2, 3)) for head, x in zip(self.heads, maps, strict=True)]
        return DiscriminatorOutput(torch.stack(logits, 1), _flattened(maps))


def _judging(cfg: Config, inner: int, outer: int, size: int, stride: int = 1) -> nn.Module:
    """A convolution of a discriminator."""
    convolution = Conv2d(inner, outer, size, stride, padding=size // 2 if stride == 1 else 1)
    nn.init.kaiming_normal_(convolution.weight, 0.2)
    nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
    return nn.utils.parametrizations.spectral_norm(convolution) if cfg.discriminator_norm == "spectral" else convolution


def _convolution(inner: int, outer: int, scale: float = 1.0) -> nn.Conv2d:
    """3x3; first weights as of He et al. 2015, times `scale`: 0.1 where residuals are added (Wang et al. 2018)."""
    convolution = nn.Conv2d(inner, outer, 3, padding=1)
    nn.init.kaiming_normal_(convolution.weight)
    nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
    with torch.no_grad():
        convolution.weight *= scale
    return convolution
