"""f-AnoGAN: anomalies are what a generator of normal examples cannot make. Schlegl et al. 2019.

A Wasserstein game on normal examples; then, with the finished generator, an encoder E learns to invert it (the paper's
izi_f: the residual in x and in the discriminator's features, equation 3). The paper's score is that same residual; it
is the answer `residual`. It weighs all directions alike, though normal examples vary little in some and much in others.
So the answer `score` measures two vectors by how they are distributed among training rows: the residual in x, and the
discriminator's features of x. A Gaussian of each, kept as running moments while the encoder is fitted, tells how far a
vector strays (Mahalanobis distance); the logarithms of the two distances, standardised on training rows too, are
averaged.

For images (convolutions as in DCGAN) and for rows of tables (perceptrons). Unconditional.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, PositiveInt
from torch import Tensor, nn

from ganlib import distributed
from ganlib._config import Config as _Config
from ganlib.convolution import Conv2d
from ganlib.data._kind import Block
from ganlib.data._spec import Spec
from ganlib.device import full_precision
from ganlib.game import Batch, Deal, DiscriminatorOutput, Fit, Game
from ganlib.models._layers import BatchNorm, gaussian_latent, halvings

__all__ = ["MODALITY", "Config", "build"]

MODALITY = ("image", "table")

_POOLED = 4  # pixels a side of the feature maps whose distribution is measured
_RESIDUAL = 14  # the same of residual images, at most
_MOMENTUM = 0.01  # of running moments: of about the last hundred batches of the fit


class Config(_Config):
    family: Literal["f_anogan"] = "f_anogan"
    latent_dim: PositiveInt = 64
    width: PositiveInt = 16
    max_width: PositiveInt = 128
    depth: PositiveInt = 2
    feature_weight: NonNegativeFloat = 1.0
    shrinkage: Annotated[float, Field(gt=0.0, le=1.0)] = 0.1


def build(cfg: Config, spec: Spec) -> Game:
    """Raises ValueError for sizes of images that it cannot make."""
    is_image = len(spec.shape) == 3
    if is_image and not all(8 <= side <= 256 and side % 4 == 0 for side in spec.shape[1:]):
        height, width = spec.shape[1:]
        raise ValueError(f"f_anogan takes images of 8 to 256 pixels a side, multiples of 4; found {height}x{width}")
    layout = spec.kind.layout
    blocks = () if layout is None else layout(spec.sample)
    generator = _ImageGenerator(cfg, spec.shape) if is_image else _RowGenerator(cfg, spec.shape[0], blocks)
    discriminator = _Discriminator(cfg, spec.shape)
    encoder = _Encoder(cfg, spec.shape)

    def invert(game: Game, batch: Batch) -> Tensor:
        """The residuals of izi_f, `[N]`. Schlegl et al. 2019, equation 3; κ is `feature_weight`."""
        x = batch.data["sample"]
        seen = _Seen(x, game.generator(encoder(x)), discriminator)
        encoder.score.update(seen.vectors())
        return seen.residual(cfg.feature_weight)

    def answers(parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        x = parts["sample"]
        seen = _Seen(x, generator(encoder(x)), discriminator)
        found = {
            "score": encoder.score(seen.vectors()),
            "residual": seen.residual(cfg.feature_weight),
            "reconstruction": seen.made,
        }
        if is_image:  # as an image: black where there is no difference
            found["map"] = (x - seen.made).abs().mean(1, keepdim=True).expand_as(x) - 1
        return found

    return Game(
        generator,
        discriminator,
        deal=lambda batch: Deal(gaussian_latent(batch.noise, cfg.latent_dim), batch.data["sample"]),
        ask=lambda given, noise, truncation: gaussian_latent(noise, cfg.latent_dim, truncation),
        others={"encoder": encoder},
        after=(Fit("encoder", "encoder", invert),),
        answers=answers,
    )


class _Seen:
    """An example, and what the generator makes of its code, as the discriminator sees them."""

    def __init__(self, x: Tensor, made: Tensor, discriminator: _Discriminator):
        self.x, self.made = x, made
        self.features: Tensor
        self.of_made: Tensor
        self.features, self.of_made = discriminator.trunk(x), discriminator.trunk(made)

    def residual(self, feature_weight: float) -> Tensor:
        """The paper's, `[N]`."""
        pixels, features = (self.x - self.made).square(), (self.features - self.of_made).square()
        return pixels.flatten(1).mean(1) + feature_weight * features.flatten(1).mean(1)

    def vectors(self) -> list[Tensor]:
        """What is measured by its distribution, `[N, D]` each."""
        return [_pooled(self.x - self.made, _RESIDUAL), _pooled(self.features, _POOLED)]


def _pooled(x: Tensor, most: int) -> Tensor:
    """`[N, D]` of `[N, C, H, W]`, whose sides become `most` pixels if they are more; `[N, D]` as it is."""
    if x.dim() == 4 and max(x.shape[2:]) > most:
        height, width = (min(side, most) for side in x.shape[2:])
        x = F.adaptive_avg_pool2d(x, (height, width))
    return x.flatten(1)


class _Gaussian(nn.Module):
    """Running mean and covariance of vectors `[N, size]` over all ranks, and how far a vector strays from them."""

    def __init__(self, size: int, shrinkage: float):
        super().__init__()
        self.shrinkage = shrinkage
        self.mean: Tensor
        self.covariance: Tensor
        self.steps: Tensor
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("covariance", torch.eye(size))
        self.register_buffer("steps", torch.zeros(()))

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Move towards the moments of a batch; the first batch replaces what was there."""
        x, world = x.float(), distributed.world_size()
        mean = distributed.all_reduce(x.mean(0)) / world
        apart = x - mean
        covariance = distributed.all_reduce(apart.T @ apart / len(x)) / world
        weight = (1 / (self.steps + 1)).clamp_min(_MOMENTUM)
        moved = mean - self.mean
        between = weight * (1 - weight) * torch.outer(moved, moved)
        self.covariance.mul_(1 - weight).add_(weight * covariance + between)
        self.mean.add_(weight * moved)
        self.steps.add_(1)

    def forward(self, x: Tensor) -> Tensor:
        """The squared Mahalanobis distance, `[N]`, in a covariance shrunk towards a multiple of the identity (Ledoit &
        Wolf 2004), divided by `size`."""
        size = len(self.mean)
        scale = self.covariance.diagonal().mean().clamp_min(1e-12)
        shrunk = (1 - self.shrinkage) * self.covariance
        shrunk = shrunk + self.shrinkage * scale * torch.eye(size, device=x.device)
        factor, _ = torch.linalg.cholesky_ex(shrunk)
        apart: Tensor = torch.linalg.solve_triangular(factor, (x.float() - self.mean).T, upper=False)
        return apart.square().mean(0)


class _Score(nn.Module):
    """The mean of standardised logarithms of distances, each of one vector in its own distribution."""

    def __init__(self, sizes: list[int], shrinkage: float):
        super().__init__()
        self.gaussians = nn.ModuleList(_Gaussian(size, shrinkage) for size in sizes)
        self.of_logs = _Gaussian(len(sizes), shrinkage)

    def _logs(self, vectors: list[Tensor]) -> Tensor:
        distances = [gaussian(x) for gaussian, x in zip(self.gaussians, vectors, strict=True)]
        return torch.stack(distances, 1).clamp_min(1e-12).log()

    @torch.no_grad()
    def update(self, vectors: list[Tensor]) -> None:
        with full_precision(vectors[0]):
            for gaussian, x in zip(self.gaussians, vectors, strict=True):
                assert isinstance(gaussian, _Gaussian)
                gaussian.update(x)
            self.of_logs.update(self._logs(vectors))

    def forward(self, vectors: list[Tensor]) -> Tensor:
        """`[N]`; about 0 for normal examples, higher for anomalies."""
        with full_precision(vectors[0]):
            deviations = self.of_logs.covariance.diagonal().clamp_min(1e-12).sqrt()
            return ((self._logs(vectors) - self.of_logs.mean) / deviations).mean(1)


def _widths(cfg: Config, shape: tuple[int, ...]) -> list[int]:
    """Channels after each of the `halvings` of an image `[C, H, W]`, the outermost first."""
    return [min(cfg.width << level, cfg.max_width) for level in range(halvings(*shape[1:]))]


class _Trunk(nn.Module):
    """Images `[N, C, H, W]` → features `[N, D, h, w]`; rows `[N, width]` → features `[N, D]`."""

    def __init__(self, cfg: Config, shape: tuple[int, ...]):
        super().__init__()
        layers: list[nn.Module] = []
        if len(shape) == 3:
            widths = _widths(cfg, shape)
            for inner, outer in itertools.pairwise([shape[0], *widths]):
                layers += [Conv2d(inner, outer, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
            self.shape: tuple[int, ...] = (widths[-1], *(side >> len(widths) for side in shape[1:]))
        else:
            for inner, outer in itertools.pairwise([shape[0], *[cfg.max_width] * cfg.depth]):
                layers += [nn.Linear(inner, outer), nn.LeakyReLU(0.2)]
            self.shape = (cfg.max_width,)
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, *shape]` → features, `[N, D, h, w]` of images or `[N, D]` of rows."""
        features: Tensor = self.layers(x)
        return features

    @property
    def size(self) -> int:
        return torch.Size(self.shape).numel()


class _Discriminator(nn.Module):
    def __init__(self, cfg: Config, shape: tuple[int, ...]):
        super().__init__()
        self.trunk = _Trunk(cfg, shape)
        self.logit = nn.Linear(self.trunk.size, 1)

    def forward(self, x: Tensor, cond: Tensor | None = None) -> DiscriminatorOutput:
        """Examples `[N, *shape]` → logits `[N]`, features `[N, D]`."""
        features = self.trunk(x).flatten(1)
        return DiscriminatorOutput(self.logit(features).squeeze(1), features)


class _Encoder(nn.Module):
    """Examples → codes `[N, latent_dim]`; with what is known of training rows."""

    def __init__(self, cfg: Config, shape: tuple[int, ...]):
        super().__init__()
        self.trunk = _Trunk(cfg, shape)
        self.code = nn.Linear(self.trunk.size, cfg.latent_dim)
        residual, features = (
            _pooled(torch.zeros(1, *of), most).shape[1]
            for of, most in ((shape, _RESIDUAL), (self.trunk.shape, _POOLED))
        )
        self.score = _Score([residual, features], cfg.shrinkage)

    def forward(self, x: Tensor) -> Tensor:
        """Examples `[N, *shape]` → codes `[N, latent_dim]`."""
        codes: Tensor = self.code(self.trunk(x).flatten(1))
        return codes


class _ImageGenerator(nn.Module):
    def __init__(self, cfg: Config, shape: tuple[int, ...]):
        super().__init__()
        widths = _widths(cfg, shape)[::-1]
        self.base = (widths[0], *(side >> len(widths) for side in shape[1:]))
        self.first = nn.Linear(cfg.latent_dim, torch.Size(self.base).numel())
        layers: list[nn.Module] = [BatchNorm(widths[0]), nn.ReLU()]
        for inner, outer in itertools.pairwise(widths):
            layers.append(nn.ConvTranspose2d(inner, outer, 4, stride=2, padding=1, bias=False))
            layers += [BatchNorm(outer), nn.ReLU()]
        layers.append(nn.ConvTranspose2d(widths[-1], shape[0], 4, stride=2, padding=1))
        self.layers = nn.Sequential(*layers)

    def forward(self, z: Tensor, cond: Tensor | None = None) -> Tensor:
        """z `[N, latent_dim]` → images `[N, C, H, W]` in [−1, 1]."""
        images: Tensor = self.layers(self.first(z).unflatten(1, self.base)).tanh()
        return images


class _RowGenerator(nn.Module):
    def __init__(self, cfg: Config, width: int, blocks: tuple[Block, ...]):
        super().__init__()
        layers: list[nn.Module] = []
        for inner, outer in itertools.pairwise([cfg.latent_dim, *[cfg.max_width] * cfg.depth]):
            layers += [nn.Linear(inner, outer, bias=False), BatchNorm(outer), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(cfg.max_width, width))
        self.choices = [slice(block.start, block.start + block.size) for block in blocks if block.kind == "choice"]

    def forward(self, z: Tensor, cond: Tensor | None = None) -> Tensor:
        """z `[N, latent_dim]` → rows `[N, width]`, choices as probabilities."""
        row: Tensor = self.layers(z)
        parts, end = list[Tensor](), 0
        for choice in self.choices:
            parts += [row[:, end : choice.start], row[:, choice].softmax(1)]
            end = choice.stop
        return torch.cat([*parts, row[:, end:]], 1)
