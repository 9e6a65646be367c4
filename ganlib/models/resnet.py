"""Residual networks under spectral norm: SNGAN, SAGAN and BigGAN, which are one line of work.

Miyato et al. 2018 (residual blocks, spectral norm), Miyato & Koyama 2018 (conditional BatchNorm, projection), Zhang et
al. 2019 (`attention`, `generator_spectral`), Brock et al. 2019 (a shared embedding, `hierarchical`, `orthogonal`). The
discriminator's blocks are as wide inside as what they put out, as in the last two. Images of 1 or 3 channels and 8 to
256 pixels a side, that whole halvings bring to a shorter side of 4 to 7.

Published sizes, at `latent_dim: 128` and `init: xavier` unless said otherwise:
SNGAN-32 `width: 256, max_width: 256, discriminator_width: 128, discriminator_base: 8`,
SNGAN-128 `width: 64, max_width: 1024`, SAGAN-128 the same with `attention: [64], generator_spectral: true`,
BigGAN-128 `width: 96, max_width: 1536, latent_dim: 120, hierarchical: true, attention: [64], generator_spectral: true,
init: orthogonal`. Classes reach every generator by BigGAN's shared embedding. At 256 pixels BigGAN has half of this
file's channels at a height of 16.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt
from torch import Tensor, nn

from ganlib._config import Config as _Config
from ganlib.convolution import Conv2d
from ganlib.data._spec import Spec
from ganlib.device import full_precision
from ganlib.game import DiscriminatorOutput, Game, Term
from ganlib.models._conditioning import (
    Condition,
    Conditioning,
    Embedding,
    Head,
    concat_condition,
    condition_of,
    noise_game,
)
from ganlib.models._layers import BatchNorm, MinibatchDeviation

__all__ = ["MODALITY", "Config", "build"]

MODALITY = "image"

_Wrap = Callable[[nn.Module], nn.Module]
"""makes a layer ready: first weights, spectral norm"""


class Config(_Config):
    family: Literal["resnet"] = "resnet"
    latent_dim: PositiveInt = 128
    hierarchical: bool = False
    width: PositiveInt = 16
    max_width: PositiveInt = 128
    discriminator_width: PositiveInt | None = None
    discriminator_base: PositiveInt = 4
    attention: tuple[PositiveInt, ...] = ()
    generator_spectral: bool = False
    discriminator_spectral: bool = True
    minibatch_group: NonNegativeInt = 0
    orthogonal: NonNegativeFloat = 0.0
    init: Literal["orthogonal", "xavier"] = "orthogonal"
    embedding_dim: PositiveInt = 128
    conditioning: Conditioning = "auto"
    conditioning_weight: NonNegativeFloat = 1.0


def build(cfg: Config, spec: Spec) -> Game:
    """Raises ValueError for sizes that doublings of a small base cannot make, attention at heights that there are not,
    a latent that does not divide among the blocks, or a condition the data do not have."""
    channels, height, width = spec.shape
    doublings = max((min(height, width) // 4).bit_length() - 1, 0)  # from a shorter side of 4 to 7
    whole = height % 2**doublings == width % 2**doublings == 0
    if channels not in (1, 3) or not (min(height, width) >= 8 and max(height, width) <= 256 and whole):
        raise ValueError(
            "resnet makes images of 1 or 3 channels and 8 to 256 pixels a side, that whole halvings bring to a shorter "
            f"side of 4 to 7; found {height}x{width} with {channels} channels"
        )
    # which both players have
    heights = [height >> n for n in range(1, doublings) if n == 1 or min(height, width) >> n >= cfg.discriminator_base]
    if strange := set(cfg.attention) - set(heights):
        raise ValueError(f"network.attention: {sorted(strange)} are not among the heights of feature maps, {heights}")
    if cfg.hierarchical and cfg.latent_dim % (doublings + 1):
        raise ValueError(
            f"network.latent_dim: {cfg.latent_dim} does not divide into {doublings + 1} chunks, one for the base and "
            "each block; hierarchical latents need a multiple"
        )
    condition = condition_of(cfg.conditioning, spec, auto="projection")
    generator = _Generator(cfg, spec.shape, doublings, condition)
    discriminator = _Discriminator(cfg, spec.shape, doublings, condition)
    orthogonal = Term("orthogonal", "generator", lambda round: _overlap(round.game.generator), cfg.orthogonal)
    terms = (orthogonal,) if cfg.orthogonal else ()
    return noise_game(generator, discriminator, condition, cfg.latent_dim, terms, cfg.minibatch_group)


class _Generator(nn.Module):
    def __init__(self, cfg: Config, shape: tuple[int, ...], doublings: int, condition: Condition):
        super().__init__()
        channels, height, width = shape
        widths = [min(cfg.width << level, cfg.max_width) for level in range(doublings, -1, -1)]  # innermost first
        heights = [height >> level for level in range(doublings - 1, -1, -1)]  # of what each block puts out
        wrap = _wrap(cfg.init, cfg.generator_spectral)
        self.base = (widths[0], height >> doublings, width >> doublings)
        self.chunk = cfg.latent_dim // (doublings + 1 if cfg.hierarchical else 1)
        hint = (cfg.embedding_dim if condition.size else 0) + (self.chunk if cfg.hierarchical else 0)

        def norm(channels: int) -> nn.Module:
            return _ConditionalBatchNorm(channels, hint, wrap) if hint else BatchNorm(channels)

        def attention(channels: int, height: int) -> nn.Module:
            return _Attention(channels, wrap) if height in cfg.attention else nn.Identity()

        self.embedding = Embedding(condition, cfg.embedding_dim) if condition.size else None
        if self.embedding is not None:
            _wrap(cfg.init, spectral=False)(self.embedding.table)  # never under spectral norm, as in BigGAN
        self.first = wrap(nn.Linear(self.chunk, widths[0] * self.base[1] * self.base[2]))
        self.blocks = nn.ModuleList(
            _GeneratorBlock(inner, outer, norm, wrap, attention(outer, height))
            for inner, outer, height in zip(widths[:-1], widths[1:], heights, strict=True)
        )
        self.norm = BatchNorm(widths[-1])
        self.last = wrap(nn.Conv2d(widths[-1], channels, 3, padding=1))

    def forward(self, z: Tensor, cond: Tensor | None = None) -> Tensor:
        """z `[N, latent_dim]` and condition → images `[N, C, H, W]` in [−1, 1]."""
        embedded = [self.embedding(cond)] if self.embedding is not None else []
        first, *chunks = z.split(self.chunk, 1)  # hierarchical: one for each block; Brock et al. 2019, section 3.1
        x = self.first(first).unflatten(1, self.base)
        for index, block in enumerate(self.blocks):
            hint = [*embedded, *chunks[index : index + 1]]
            x = block(x, torch.cat(hint, 1)) if hint else block(x)
        images: Tensor = self.last(self.norm(x).relu_()).tanh()
        return images


class _Discriminator(nn.Module):
    def __init__(self, cfg: Config, shape: tuple[int, ...], doublings: int, condition: Condition):
        super().__init__()
        self.condition = condition
        channels, height, width = shape
        wrap = _wrap(cfg.init, cfg.discriminator_spectral)
        base = cfg.discriminator_width or cfg.width
        limit = max(cfg.max_width * base // cfg.width, 1)  # max_width is the generator's: in proportion
        layers: list[nn.Module] = []
        inner = channels + condition.planes
        compare = MinibatchDeviation(cfg.minibatch_group)
        for level in range(doublings + 1):
            if level == doublings:
                layers.append(compare)
                inner += compare.channels
            outer = min(base << level, limit)
            halve = level < doublings and (level == 0 or min(height, width) // 2 >= cfg.discriminator_base)
            layers.append(_DiscriminatorBlock(inner, outer, wrap, first=level == 0, halve=halve))
            inner = outer
            if halve:
                height, width = height // 2, width // 2
                layers += [_Attention(outer, wrap)] if height in cfg.attention else []
        self.layers = nn.Sequential(*layers)
        self.head = Head(condition, inner, wrap=wrap, weight=cfg.conditioning_weight)

    def forward(self, images: Tensor, cond: Tensor | None = None) -> DiscriminatorOutput:
        """Images `[N, C, H, W]` and condition → logits `[N]`, features `[N, D]`: sums over all places."""
        maps = self.layers(concat_condition(images, cond, self.condition))
        output: DiscriminatorOutput = self.head(maps.relu().sum((2, 3)), cond)
        return output


class _GeneratorBlock(nn.Module):
    """Twice the size. Miyato et al. 2018, figure 8; the 1x1 convolution comes before the doubling, to the same end."""

    def __init__(self, inner: int, outer: int, norm: Callable[[int], nn.Module], wrap: _Wrap, attention: nn.Module):
        super().__init__()
        self.norm1, self.norm2 = norm(inner), norm(outer)
        self.convolve1 = wrap(nn.Conv2d(inner, outer, 3, padding=1, bias=False))  # norm2 would take a bias away
        self.convolve2 = wrap(nn.Conv2d(outer, outer, 3, padding=1))
        self.shortcut = wrap(nn.Conv2d(inner, outer, 1))
        self.attention = attention

    def forward(self, x: Tensor, *hint: Tensor) -> Tensor:
        y = self.convolve1(_double(self.norm1(x, *hint).relu_()))
        y = self.convolve2(self.norm2(y, *hint).relu_())
        summed: Tensor = self.attention(y + _double(self.shortcut(x)))
        return summed


class _DiscriminatorBlock(nn.Module):
    """Half the size or the same. Miyato et al. 2018, figure 8; in the shortcut too, pooling commutes."""

    def __init__(self, inner: int, outer: int, wrap: _Wrap, *, first: bool, halve: bool):
        super().__init__()
        self.first, self.halve = first, halve  # pixels are not rectified
        self.convolve1 = wrap(Conv2d(inner, outer, 3, padding=1))
        self.convolve2 = wrap(Conv2d(outer, outer, 3, padding=1))
        self.shortcut = wrap(Conv2d(inner, outer, 1)) if halve or inner != outer else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.convolve2(self.convolve1(x if self.first else x.relu()).relu_())
        if self.halve:
            x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
        summed: Tensor = y + self.shortcut(x)
        return summed


class _Attention(nn.Module):
    """x + γ · attention(x), γ from 0. Zhang et al. 2019, section 3; keys and values pooled, as in the authors' code."""

    def __init__(self, channels: int, wrap: _Wrap):
        super().__init__()
        narrow, half = max(channels // 8, 1), max(channels // 2, 1)
        self.query, self.key = (wrap(Conv2d(channels, narrow, 1, bias=False)) for _ in range(2))
        self.value = wrap(Conv2d(channels, half, 1, bias=False))
        self.out = wrap(Conv2d(half, channels, 1, bias=False))
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        query = self.query(x).flatten(2)  # [N, C/8, HW]
        key = F.max_pool2d(self.key(x), 2).flatten(2)  # [N, C/8, HW/4]
        value = F.max_pool2d(self.value(x), 2).flatten(2)  # [N, C/2, HW/4]
        # written out: torch's fused attention cannot be differentiated twice, as penalties need
        shares = (key.transpose(1, 2) @ query).softmax(1)  # [N, HW/4, HW]
        seen: Tensor = self.out((value @ shares).unflatten(2, x.shape[2:]))
        return x + self.gamma * seen


class _ConditionalBatchNorm(nn.Module):
    """BatchNorm whose gain, 1 + Ah, and bias, Bh, follow from a hint h `[N, D]`. Brock et al. 2019, section 3.1."""

    def __init__(self, channels: int, hint: int, wrap: _Wrap):
        super().__init__()
        self.norm = BatchNorm(channels)
        del self.norm.weight, self.norm.bias  # constants in place of parameters
        self.norm.register_buffer("weight", torch.ones(channels), persistent=False)
        self.norm.register_buffer("bias", torch.zeros(channels), persistent=False)
        self.gain, self.bias = (wrap(nn.Linear(hint, channels, bias=False)) for _ in range(2))

    def forward(self, x: Tensor, hint: Tensor) -> Tensor:
        gain, bias = (layer(hint)[:, :, None, None] for layer in (self.gain, self.bias))
        return torch.addcmul(bias, self.norm(x), 1 + gain)


class _SpectralNorm(nn.Module):
    """W / σ(W), σ = ‖Wv‖, v by one step of power iteration at each use in training. Miyato et al. 2018, algorithm 1.

    torch's own has σ = uᵀWv of two kept vectors. A generator's moving average averages these too, and then that σ is
    several times too small; with v alone, brought back to length 1, it stays within some hundredths.
    """

    v: Tensor

    def __init__(self, weight: Tensor):
        super().__init__()
        self.register_buffer("v", torch.randn(weight[0].numel()))
        for _ in range(15):
            self(weight)

    def forward(self, weight: Tensor) -> Tensor:
        matrix = weight.flatten(1)
        with full_precision(weight):
            with torch.no_grad():
                if self.training:
                    self.v.copy_(F.normalize((matrix @ self.v) @ matrix, dim=0))
                v = F.normalize(self.v, dim=0)  # not the buffer, which moves before the backward pass
            normed: Tensor = weight / torch.linalg.vector_norm(matrix @ v)
        return normed


def _wrap(init: str, spectral: bool) -> _Wrap:
    initialise = nn.init.orthogonal_ if init == "orthogonal" else nn.init.xavier_uniform_

    def wrap(layer: nn.Module) -> nn.Module:
        assert isinstance(layer, nn.Conv2d | nn.Linear | nn.Embedding)
        initialise(layer.weight)
        if not isinstance(layer, nn.Embedding) and layer.bias is not None:
            nn.init.zeros_(layer.bias)
        if spectral:
            nn.utils.parametrize.register_parametrization(layer, "weight", _SpectralNorm(layer.weight))
        return layer

    return wrap


def _double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def _overlap(generator: nn.Module) -> Tensor:
    """Σ ‖W Wᵀ ⊙ (1 − I)‖², a scalar, over all weights but the embedding's. Brock et al. 2019, eq. 3.

    The rows of W are the filters, flattened: those of one layer are made orthogonal, of any norm.
    """
    costs = []
    for name, weight in generator.named_parameters():
        if weight.dim() > 1 and not name.startswith("embedding."):
            rows = weight.flatten(1)
            products = rows @ rows.T if len(rows) < rows.shape[1] else rows.T @ rows  # of the same Frobenius norm
            costs.append(products.square().sum() - rows.square().sum(1).square().sum())
    return torch.stack(costs).sum()
