"""The next frames of a video: a U-Net is rolled out on its own frames, judged one by one and as a clip.

Mathieu, Couprie & LeCun 2016: absolute and gradient differences and an adversarial loss, after a fit without that
loss. The discriminator's two networks look at single frames and at whole clips (Clark, Donahue & Simonyan 2019).
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt
from torch import Tensor, nn

from ganlib._config import Config as _Config
from ganlib.convolution import Conv2d
from ganlib.data._spec import Spec
from ganlib.game import Batch, Deal, Game, Round, Sample, Term, tensors_of
from ganlib.game import Fit as _Fit
from ganlib.models._layers import check_patches, gaussian_latent
from ganlib.noise import Noise

__all__ = ["MODALITY", "Config", "build"]

MODALITY = "video"


class Config(_Config):
    family: Literal["frames"] = "frames"
    width: PositiveInt = 32
    levels: PositiveInt = 3
    fold: Literal[1, 2, 4] = 2
    at_once: PositiveInt = 4
    latent_dim: NonNegativeInt = 0
    discriminator_width: PositiveInt = 32
    patch_levels: PositiveInt = 2
    discriminator_norm: Literal["none", "spectral"] = "spectral"
    l1_weight: NonNegativeFloat = 10.0
    gradient_weight: NonNegativeFloat = 10.0


def build(cfg: Config, spec: Spec) -> Game:
    """Raises ValueError for frames that the U-Net cannot halve, or that are too small for the patches."""
    (past, channels, height, width), future = spec.parts["given"].shape, spec.shape[0]
    multiple = cfg.fold << cfg.levels
    if height % multiple or width % multiple:
        raise ValueError(
            f"network.levels {cfg.levels} and fold {cfg.fold} need multiples of {multiple} pixels a side, found "
            f"{height}x{width}"
        )
    check_patches(cfg.patch_levels, 4, (height, width))

    def inputs(given: Tensor, noise: Noise) -> Sample:
        return {"given": given, "z": gaussian_latent(noise, cfg.latent_dim)} if cfg.latent_dim else given

    def difference(made: Tensor, target: Tensor) -> Tensor:
        """What the fit minimises, and the game's terms together."""
        return cfg.l1_weight * _absolute(made, target) + cfg.gradient_weight * _gradient(made, target)

    def pixels(game: Game, batch: Batch) -> Tensor:
        return difference(game.generator(inputs(batch.data["given"], batch.noise)), batch.data["sample"])

    def l1(round: Round) -> Tensor:
        return difference(*_made_and_true(round))

    return Game(
        _Generator(cfg, past, future, channels),
        _Discriminator(cfg, past + future, channels),
        deal=lambda batch: Deal(
            inputs(batch.data["given"], batch.noise), real=batch.data["sample"], cond=batch.data["given"]
        ),
        ask=lambda given, noise, truncation: inputs(given["given"], noise),
        terms=(Term("pixels", "generator", l1),),
        before=(_Fit("pixels", "generator", pixels),),
    )


def _made_and_true(round: Round) -> tuple[Tensor, Tensor]:
    (made,), (true,) = tensors_of(round.fake), tensors_of(round.real)
    return made, true


def _absolute(made: Tensor, target: Tensor) -> Tensor:
    """|y − ŷ|, mean over a clip, `[N]`. Mathieu et al. 2016, eq. 5 with p = 1."""
    return (made - target).abs().flatten(1).mean(1)


def _gradient(made: Tensor, target: Tensor) -> Tensor:
    """The difference of absolute gradients, down and across, mean over a clip, `[N]`. The same, eq. 6 with α = 1."""
    gradients = ((x.diff(dim=axis).abs() for x in (made, target)) for axis in (3, 4))
    return torch.stack([(of_made - of_target).abs().flatten(1).mean(1) for of_made, of_target in gradients]).sum(0)


class _Generator(nn.Module):
    """Each pass of the U-Net looks at as many frames as were given, and makes the next `at_once` from them.

    Frames are folded: `fold` x `fold` pixels are channels. A latent is the same in each pass of a future.
    """

    def __init__(self, cfg: Config, past: int, future: int, channels: int):
        super().__init__()
        self.past, self.future, self.fold, self.at_once = past, future, cfg.fold, min(cfg.at_once, future)
        folded = channels * cfg.fold**2
        widths = [min(cfg.width << level, 8 * cfg.width) for level in range(cfg.levels + 1)]
        self.first = _convolution(folded * past + cfg.latent_dim, widths[0])
        self.down = nn.ModuleList(
            nn.Sequential(_convolution(inner, outer, 4, 2), _leaky(), _convolution(outer, outer))
            for inner, outer in pairwise(widths)
        )
        self.up = nn.ModuleList(
            nn.Sequential(_convolution(outer + inner, inner), _leaky(), _convolution(inner, inner))
            for inner, outer in reversed(list(pairwise(widths)))
        )
        self.last = _convolution(widths[0], folded * self.at_once, scale=0.1)

    def forward(self, inputs: Sample, cond: Tensor | None = None) -> Tensor:
        """Frames `[N, past, C, H, W]`, and a latent `z` `[N, latent_dim]` if there is one → frames
        `[N, future, C, H, W]`, once trained in [−1, 1]. The condition, the given frames again, is not looked at."""
        given, z = (inputs["given"], inputs.get("z")) if isinstance(inputs, dict) else (inputs, None)
        seen, made = given, list[Tensor]()
        for _ in range(math.ceil(self.future / self.at_once)):
            made.append(self._next(seen, z))
            seen = torch.cat([seen, made[-1]], 1)[:, -self.past :]
        frames = torch.cat(made, 1)[:, : self.future]
        return frames if self.training else frames.clamp(-1.0, 1.0)

    def _next(self, seen: Tensor, z: Tensor | None) -> Tensor:
        """The last frame, to which the network adds what changes, `at_once` times."""
        x = F.pixel_unshuffle(seen.flatten(1, 2), self.fold)
        if z is not None:
            x = torch.cat([x, z[:, :, None, None].expand(-1, -1, *x.shape[2:])], 1)
        x = self.first(x)
        skips = []
        for layer in self.down:
            skips.append(x)
            x = layer(F.leaky_relu(x, 0.2))
        for layer in self.up:
            x = F.interpolate(F.leaky_relu(x, 0.2), scale_factor=2.0, mode="nearest")
            x = layer(torch.cat([x, skips.pop()], 1))
        change = F.pixel_shuffle(self.last(F.leaky_relu(x, 0.2)), self.fold)
        frames: Tensor = seen[:, -1:] + change.unflatten(1, (self.at_once, -1))
        return frames


class _Discriminator(nn.Module):
    """Each logit judges a patch: of one frame, or of all frames, those given before them."""

    def __init__(self, cfg: Config, frames: int, channels: int):
        super().__init__()
        self.of_frames = _patches(cfg, channels)
        self.of_clips = _patches(cfg, frames * channels)

    def forward(self, made: Tensor, given: Tensor) -> Tensor:
        """Frames `[N, future, C, H, W]`, those given `[N, past, C, H, W]` → logits `[N, (future + 1) · h · w]`."""
        spatial = self.of_frames(made.flatten(0, 1)).reshape(made.shape[0], -1)
        temporal = self.of_clips(torch.cat([given, made], 1).flatten(1, 2)).flatten(1)
        return torch.cat([spatial, temporal], 1)


def _patches(cfg: Config, channels: int) -> nn.Sequential:
    """Images `[N, channels, H, W]` → logits `[N, 1, h, w]`."""
    widths = [cfg.discriminator_width << level for level in range(cfg.patch_levels)]
    layers = list[nn.Module]()
    for inner, outer in pairwise([channels, *widths]):
        layers += [_judging(cfg, inner, outer, 4, 2), _leaky()]
    layers += [_judging(cfg, widths[-1], widths[-1], 3), _leaky()]
    return nn.Sequential(*layers, _judging(cfg, widths[-1], 1, 3))


def _judging(cfg: Config, inner: int, outer: int, size: int, stride: int = 1) -> nn.Module:
    """A convolution of a discriminator."""
    layer = _convolution(inner, outer, size, stride)
    return nn.utils.parametrizations.spectral_norm(layer) if cfg.discriminator_norm == "spectral" else layer


def _convolution(inner: int, outer: int, size: int = 3, stride: int = 1, scale: float = 1.0) -> Conv2d:
    """First weights as of He et al. 2015, times `scale`; the size is kept, or divided by the stride."""
    layer = Conv2d(inner, outer, size, stride, padding=1)
    nn.init.kaiming_normal_(layer.weight, 0.2)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    with torch.no_grad():
        layer.weight *= scale
    return layer


def _leaky() -> nn.Module:
    return nn.LeakyReLU(0.2, inplace=True)
