"""StyleGAN2: a generator steered by styles at every layer, against a residual discriminator.

Karras et al. 2019 (styles, noise, mixing, truncation) and 2020 (demodulation, skips, path length), by default as
in the latter's configuration F; optionally grown from 4x4 pixels as in Karras et al. 2018. R1 is a penalty.
"""

from __future__ import annotations

import itertools
import math
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn

from ganlib import distributed
from ganlib._config import Config as _Config
from ganlib.convolution import Conv2d, differentiated_twice, no_weight_gradients
from ganlib.data._spec import Spec
from ganlib.device import full_precision
from ganlib.game import Batch, Deal, DiscriminatorOutput, Game, Round, Term
from ganlib.models._conditioning import Condition, Conditioning, Embedding, Head, concat_condition, condition_of
from ganlib.models._layers import (
    Fir,
    FromImage,
    MinibatchDeviation,
    ModulatedConv,
    activate,
    equalised,
    unit,
)
from ganlib.noise import Noise, normal

__all__ = ["MODALITY", "Config", "build"]

MODALITY = "image"

Share = Annotated[float, Field(ge=0, le=1)]


class Config(_Config):
    family: Literal["stylegan2"] = "stylegan2"
    conditioning: Conditioning = "auto"
    conditioning_weight: NonNegativeFloat = 1.0
    latent_dim: PositiveInt = 512
    """dimensions of z and of w"""
    width: PositiveInt = 32
    """channels at full size; doubled at each halving, up to `max_width`"""
    max_width: PositiveInt = 512
    mapping_layers: Annotated[int, Field(ge=1, le=1000)] = 8
    mapping_lr_multiplier: PositiveFloat = 0.01
    style_mixing: Share = 0.9
    """probability that an example has the styles of two z"""
    noise: bool = True
    """an image of noise into every layer, as strong as training makes it"""
    w_mean_decay: Share = 0.995
    """of the running mean of w that truncation draws to, at each pass in training"""
    minibatch_group: NonNegativeInt = 4
    """examples that the discriminator compares with one another; 0: none"""
    path_length_weight: NonNegativeFloat = 2.0
    path_length_every: PositiveInt = 4
    path_length_decay: Share = 0.01
    path_length_shrink: PositiveInt = 2
    """path lengths are taken of one example in this many"""
    progressive: bool = False
    """grow from 4x4 pixels; each size is held for `stage_kimg`, then the next fades in over `fade_kimg`"""
    stage_kimg: NonNegativeFloat = 600.0
    fade_kimg: PositiveFloat = 600.0


def build(cfg: Config, spec: Spec) -> Game:
    """Raises ValueError for sizes that this network cannot make, or for a condition that the data do not have."""
    channels, height, width = spec.shape
    if height != width or height not in (8, 16, 32, 64, 128, 256, 512, 1024):
        raise ValueError(
            f"stylegan2 makes square images of 8 to 1024 pixels a side, a power of two; found {height}x{width}"
        )
    condition = condition_of(cfg.conditioning, spec, auto="projection")
    top = height.bit_length() - 3
    widths = [min(cfg.width << (top - level), cfg.max_width) for level in range(top + 1)]  # 4x4 first
    generator = _Generator(cfg, channels, widths, condition)
    discriminator = _Discriminator(cfg, channels, widths, condition)
    layers = generator.synthesis.layers

    def inputs(noise: Noise, *, mixing: float = 0.0, truncation: float = 1.0) -> dict[str, Tensor]:
        z, keys = noise.normal(2 if mixing else 1, cfg.latent_dim), noise.fork("noise images").row_keys
        chance, place = noise.uniform(2).unbind(1)
        crossing = torch.where(chance < mixing, 1 + (place * (layers - 1)).long(), layers)
        return {"z": z, "crossing": crossing, "truncation": torch.full_like(chance, truncation), "noise": keys}

    def deal(batch: Batch) -> Deal:
        real = batch.data["sample"]
        return Deal(
            inputs(batch.noise, mixing=cfg.style_mixing if batch.training else 0.0),
            _at_level(real, discriminator.current_level) if batch.training else real,
            condition.cond(batch),
        )

    def progress(module: nn.Module, kimg: float) -> None:
        stages, rest = divmod(kimg, cfg.stage_kimg + cfg.fade_kimg)
        level = min(stages + max(0.0, rest - cfg.stage_kimg) / cfg.fade_kimg, top)
        for part in module.modules():
            if isinstance(part, _Growing):
                part.grow(level)

    terms = discriminator.head.terms()
    if cfg.path_length_weight:
        length = _PathLength(cfg.path_length_decay, cfg.path_length_shrink)
        terms += (Term("path_length", "generator", length, cfg.path_length_weight, cfg.path_length_every),)
    return Game(
        generator,
        discriminator,
        deal=deal,
        ask=lambda given, noise, truncation: inputs(noise, truncation=1.0 if truncation is None else truncation),
        classes=condition.classes,
        attributes=condition.attributes,
        terms=terms,
        progress=progress if cfg.progressive else None,
        group=math.lcm(cfg.minibatch_group or 1, cfg.path_length_shrink if cfg.path_length_weight else 1),
    )


class _Growing(nn.Module):
    """A network whose size follows from the kimg seen: 0 for 4x4 pixels, 1 for 8x8; between, the next size fades in.

    The level is a buffer, for exported generators to have it, and the same as a number: layers are chosen by it, and to
    read a tensor would wait for the GPU at each pass. A number that is None is for a network of one size.
    """

    level: Tensor | None
    current_level: float | None

    def __init__(self, progressive: bool):
        super().__init__()
        self.register_buffer("level", torch.zeros(()) if progressive else None)
        self.current_level = 0.0 if progressive else None

    def grow(self, level: float) -> None:
        """Set the level of a network that is progressive."""
        if self.level is not None:
            self.level.fill_(level)
            self.current_level = torch.tensor(level).item()  # rounded as the buffer is

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.current_level = None if self.level is None else float(self.level)


# --- the generator ---------------------------------------------------------------------------------------------------


class _Generator(nn.Module):
    w_mean: Tensor

    def __init__(self, cfg: Config, channels: int, widths: list[int], condition: Condition):
        super().__init__()
        self.mapping = _Mapping(cfg, condition)
        self.synthesis = _Synthesis(cfg, channels, widths)
        self.decay = cfg.w_mean_decay
        self.register_buffer("w_mean", torch.zeros(cfg.latent_dim))

    def forward(self, inputs: dict[str, Tensor], cond: Tensor | None = None) -> Tensor:
        """Inputs and condition → images `[N, C, H, W]`, of about [−1, 1].

        Inputs are `z` `[N, 1 or 2, latent_dim]`; `crossing` `[N]`, the first layer that has its style from the
        second z; `truncation` `[N]`, ψ, 1 for none; `noise` int64 `[N]`, the key of each example's noise images.
        """
        ws = self.styles(inputs, cond)
        if self.training:
            with torch.no_grad():
                self.w_mean.lerp_(_rank_mean(ws[:, 0].mean(0)).to(self.w_mean), 1 - self.decay)
        images: Tensor = self.synthesis(ws, inputs["noise"])
        return images

    def styles(self, inputs: dict[str, Tensor], cond: Tensor | None = None) -> Tensor:
        """Inputs and condition → w of each layer, `[N, L, D]`, mixed and truncated.

        Mixing: Karras et al. 2019, section 3.1. Truncation, w̄ + ψ(w − w̄): appendix B.
        """
        first = self.mapping(inputs["z"][:, 0], cond)
        second = first if inputs["z"].shape[1] == 1 else self.mapping(inputs["z"][:, 1], cond)
        layer = torch.arange(self.synthesis.layers, device=first.device)[:, None]
        ws = torch.where(layer < inputs["crossing"][:, None, None], first[:, None], second[:, None])
        return self.w_mean.to(ws).lerp(ws, inputs["truncation"].to(ws)[:, None, None])


class _Mapping(nn.Module):
    """z and condition, each brought to unit length, → w. Karras et al. 2019, section 2."""

    def __init__(self, cfg: Config, condition: Condition):
        super().__init__()
        dim = cfg.latent_dim
        self.embedding = Embedding(condition, dim) if condition.size else None
        self.layers = nn.ModuleList(
            equalised(nn.Linear(inner, dim), gain=math.sqrt(2), lr_multiplier=cfg.mapping_lr_multiplier)
            for inner in [dim * (2 if condition.size else 1)] + [dim] * (cfg.mapping_layers - 1)
        )

    def forward(self, z: Tensor, cond: Tensor | None = None) -> Tensor:
        """z `[N, latent_dim]` and condition → w `[N, latent_dim]`."""
        with full_precision(z):
            w = unit(z)
            if self.embedding is not None and cond is not None:
                w = torch.cat([w, unit(self.embedding(cond))], 1)
            for layer in self.layers:
                w = activate(layer(w))
        return w


class _Synthesis(_Growing):
    """From a constant, two convolutions a size; the image is the sum of those of all sizes, each made larger.

    Karras et al. 2020, figure 7b. While growing, the next size's part of the image fades in.
    """

    def __init__(self, cfg: Config, channels: int, widths: list[int]):
        super().__init__(cfg.progressive)
        dim, top = cfg.latent_dim, len(widths) - 1
        self.layers = 2 * (top + 1)
        self.constant = nn.Parameter(torch.randn(1, widths[0], 4, 4))
        self.ups, self.convs, self.to_image = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        start = 0  # of the layer's noise among all layers'
        for level, width in enumerate(widths):
            area = (4 << level) ** 2
            if level:
                noise = start if cfg.noise else None
                self.ups.append(ModulatedConv(dim, widths[level - 1], width, up=True, start=noise))
                start += area
            self.convs.append(ModulatedConv(dim, width, width, start=start if cfg.noise else None))
            start += area
            self.to_image.append(ModulatedConv(dim, width, channels, normal=False))
        self.fir = Fir(gain=4.0)

    def forward(self, ws: Tensor, noise: Tensor | None = None) -> Tensor:
        """w of each layer `[N, L, D]` → images `[N, C, H, W]`; `noise` are row keys, int64 `[N]`, None for none.

        Layers are counted from 4x4 on, as the paper does: an image's convolution shares the style of the layer
        after it, so L is twice the number of sizes.
        """
        top = len(self.ups)
        level = top if self.current_level is None else self.current_level
        x = self.constant.expand(ws.shape[0], -1, -1, -1)  # len() would fix the size in an exported graph
        images = ws.new_zeros(())
        for size in range(math.ceil(level) + 1):
            if size:
                x = self.ups[size - 1](x, ws[:, 2 * size - 1], noise)
            x = self.convs[size](x, ws[:, 2 * size], noise)
            made = self.to_image[size](x, ws[:, 2 * size + 1]).to(ws.dtype)
            if size:
                with full_precision(images):
                    made = made + self.fir.up(images)
            # fading in: Karras et al. 2018, figure 2
            fades = size > level
            images = F.interpolate(images, scale_factor=2).lerp(made, level - math.floor(level)) if fades else made
        missing = top - math.ceil(level)
        return F.interpolate(images, scale_factor=2**missing) if missing else images


class _PathLength(nn.Module):
    """(‖Jᵀy‖ − a)², J = ∂G(w)/∂w, a the running mean of these lengths. Karras et al. 2020, eq. 4.

    With a w for each layer, the squared lengths are averaged over layers. y ~ N(0, 1/(H·W)), so that lengths do
    not depend on the size.
    """

    mean: Tensor

    def __init__(self, decay: float, shrink: int):
        super().__init__()
        self.decay, self.shrink = decay, shrink
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, round: Round) -> Tensor:
        """A generator's turn → `[N / shrink]`. Moves the running mean."""
        generator, cond = round.game.generator, round.deal.cond
        assert isinstance(generator, _Generator)
        assert isinstance(round.deal.inputs, dict)
        rows = slice(None, None, self.shrink)  # the same examples for any number of ranks: `Game.group`
        inputs = {name: x[rows] for name, x in round.deal.inputs.items()}
        ws = generator.styles(inputs, None if cond is None else cond[rows])
        with differentiated_twice():
            images = generator.synthesis(ws, inputs["noise"])
        keys = round.noise.fork("path length").row_keys[rows]
        y = normal(keys, 0, images[0].numel()).view_as(images)
        aims = (images * y.to(images)).sum() / math.sqrt(images[0, 0].numel())
        with no_weight_gradients(), full_precision(ws):
            (gradients,) = torch.autograd.grad(aims, ws, create_graph=True)
        lengths: Tensor = (gradients.square().sum(2).mean(1) + 1e-12).sqrt()
        with torch.no_grad():
            self.mean.lerp_(_rank_mean(lengths.mean()).to(self.mean), self.decay)
        return (lengths - self.mean).square()


def _rank_mean(x: Tensor) -> Tensor:
    return distributed.all_reduce(x) / distributed.world_size()


# --- the discriminator -----------------------------------------------------------------------------------------------


class _Discriminator(_Growing):
    """Residual blocks down to 4x4. Karras et al. 2020, figure 7c and appendix B."""

    def __init__(self, cfg: Config, channels: int, widths: list[int], condition: Condition):
        super().__init__(cfg.progressive)
        self.condition = condition
        # while growing, every size is once the first
        firsts = range(len(widths)) if cfg.progressive else [len(widths) - 1]
        self.from_image = nn.ModuleDict(
            {str(level): FromImage(channels + condition.planes, widths[level]) for level in firsts}
        )
        self.blocks = nn.ModuleList(_Block(outer, inner) for inner, outer in itertools.pairwise(widths))
        width = widths[0]
        self.compare = MinibatchDeviation(cfg.minibatch_group)
        self.conv = equalised(Conv2d(width + self.compare.channels, width, 3, padding=1), gain=math.sqrt(2))
        self.linear = equalised(nn.Linear(width * 16, width), gain=math.sqrt(2))
        # a label's embedding is multiplied with features: its fan-in, too, is their number
        self.head = Head(condition, width, wrap=lambda x: equalised(x, fan_in=width), weight=cfg.conditioning_weight)

    def forward(self, images: Tensor, cond: Tensor | None = None) -> DiscriminatorOutput:
        """Images `[N, C, H, W]` and condition → logits `[N]`, features `[N, D]`."""
        images = concat_condition(images, cond, self.condition)
        top = len(self.blocks)
        level = top if self.current_level is None else self.current_level
        size = math.ceil(level)
        if size < top:
            images = F.avg_pool2d(images, 2 ** (top - size))
        x = self.from_image[str(size)](images)
        for index in range(size, 0, -1):
            x = self.blocks[index - 1](x)
            if index > level:  # fading in: Karras et al. 2018, figure 2
                x = self.from_image[str(size - 1)](F.avg_pool2d(images, 2)).lerp(x, level - math.floor(level))
        x = activate(self.conv(self.compare(x)))
        with full_precision(x):
            features = activate(self.linear(x.to(self.linear.weight.dtype).flatten(1)))
            output: DiscriminatorOutput = self.head(features, cond)
        return output


class _Block(nn.Module):
    """A residual block to half the size: two convolutions, and one of 1x1 in the shortcut."""

    def __init__(self, inner: int, outer: int):
        super().__init__()
        self.fir = Fir()
        self.conv = equalised(Conv2d(inner, inner, 3, padding=1), gain=math.sqrt(2))
        self.down = equalised(Conv2d(inner, outer, 3, stride=2))  # √2 of the activation, √½ of the sum
        self.skip = equalised(Conv2d(inner, outer, 1, bias=False), gain=math.sqrt(0.5))

    def forward(self, x: Tensor) -> Tensor:
        y = activate(self.down(self.fir.blur(activate(self.conv(x)), padding=2)))
        shorter: Tensor = self.skip(self.fir.down(x))
        return shorter.add_(y)


def _at_level(images: Tensor, level: float | None) -> Tensor:
    """Images as they look while the next size fades in, and as they are otherwise.

    Karras et al. 2018, section 2: reals are blended like fakes. The discriminator sees no more than its size.
    """
    if level is None or level.is_integer():
        return images
    top = images.shape[-1].bit_length() - 3
    factor = 2 ** (top - math.floor(level))
    coarse = F.interpolate(F.avg_pool2d(images, factor), scale_factor=factor)
    return coarse.lerp(images, level % 1)
