"""What families share."""

from __future__ import annotations

import math
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.utils import parametrize

from ganlib import distributed
from ganlib import noise as noises
from ganlib.convolution import Conv2d, binomial_filter, conv2d, conv_transpose2d, leaky_relu_
from ganlib.device import full_precision
from ganlib.noise import Noise

__all__ = [
    "BatchNorm",
    "Fir",
    "FromImage",
    "MinibatchDeviation",
    "ModulatedConv",
    "activate",
    "check_patches",
    "equalised",
    "gaussian_latent",
    "halvings",
    "unit",
]

Layer = TypeVar("Layer", bound=nn.Module)


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation (Ioffe & Szegedy 2015) of `[N, C, ...]` over the examples of *all* ranks.

    So any number of ranks computes what one would; torch's own SyncBatchNorm refuses the CPU.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected [N, C, ...], found {list(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        assert self.running_mean is not None
        assert self.running_var is not None
        if not self.training:
            return super().forward(input)
        half = input.dtype in (torch.float16, torch.bfloat16)  # under autocast
        # CUDA's kernels read bfloat16, compute in float32, and keep no copy
        wide = input.float() if half and not _fused(input) else input
        normed, mean, variance = _BatchNorm.apply(wide, self.weight, self.bias, self.eps)  # type: ignore[no-untyped-call]
        with torch.no_grad():
            count = input.numel() / input.shape[1] * distributed.world_size()
            self.running_mean.lerp_(mean, self.momentum or 0.0)
            self.running_var.lerp_(variance * (count / max(count - 1, 1)), self.momentum or 0.0)
        result: Tensor = normed.to(input.dtype)
        return result


def _fused(x: Tensor) -> bool:
    """Whether the kernels of torch's SyncBatchNorm exist for the device of `x`."""
    return x.is_cuda


class _BatchNorm(torch.autograd.Function):
    """Built of torch's fused kernels with given statistics; can be differentiated once.

    On one CPU thread its backward takes a third of the time of torch's own. On CUDA the kernels are those of
    SyncBatchNorm, for which statistics are float32 where `x` is bfloat16.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        axes = [0, *range(2, x.dim())]
        if _fused(x):
            mean, inverse = torch.batch_norm_stats(x, eps)
            variance = (inverse.square().reciprocal() - eps).clamp_min(0.0)
        elif x.device.type == "cpu":
            mean, variance = torch.batch_norm_update_stats(x, None, None, 0.0)  # in one pass over x
        else:
            variance, mean = torch.var_mean(x, axes, correction=0)
        world = distributed.world_size()
        if world > 1:  # equal shares of the batch
            moments = torch.stack([mean, variance + mean.square()]).double()
            moments = distributed.all_reduce(moments, overwrite=True) / world
            mean, variance = moments[0].to(mean), (moments[1] - moments[0].square()).clamp_min(0.0).to(mean)
        ctx.save_for_backward(x, weight, mean, variance)
        ctx.eps, ctx.count = eps, x.numel() / x.shape[1]
        ctx.mark_non_differentiable(mean, variance)
        return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps), mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """∂x = γ/σ · (g − mean(g) − x̂ · mean(g x̂)), the means over all ranks. Ioffe & Szegedy 2015, section 3."""
        x, weight, mean, variance = ctx.saved_tensors
        inverse = (variance + ctx.eps).rsqrt()
        world = distributed.world_size()
        if _fused(x):
            channels_last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
            gradient = gradient.contiguous(
                memory_format=torch.channels_last if channels_last else torch.contiguous_format
            )
            sum_g, sum_gx, by_weight, by_bias = torch.batch_norm_backward_reduce(
                gradient, x, mean, inverse, weight, True, True, True
            )
            if world > 1:
                sum_g, sum_gx = distributed.all_reduce(torch.stack([sum_g, sum_gx]), overwrite=True).unbind()
            count = torch.full((1,), int(ctx.count) * world, dtype=torch.int32, device=x.device)
            by_x = torch.batch_norm_backward_elemt(gradient, x, mean, inverse, weight, sum_g, sum_gx, count)
            return by_x, by_weight, by_bias, None
        # train is False, for statistics that are not those of `x`; the saved ones are read by devices other than a CPU
        scaled, by_weight, by_bias = torch.ops.aten.native_batch_norm_backward(
            gradient, x, weight, mean, variance, mean, inverse, False, ctx.eps, [True, True, True]
        )
        means = torch.stack([by_bias, by_weight]) / ctx.count
        if world > 1:
            means = distributed.all_reduce(means, overwrite=True) / world
        shape = [1, -1, *[1] * (x.dim() - 2)]
        slope = -weight * inverse * inverse * means[1]
        shift = -weight * inverse * means[0] - slope * mean
        return scaled.addcmul_(x, slope.view(shape)).add_(shift.view(shape)), by_weight, by_bias, None


def halvings(height: int, width: int) -> int:
    """How many times a network halves images: as long as both sides stay whole and at least 4, and at least once."""
    levels = 1
    while all(side % 2 ** (levels + 1) == 0 and side >> (levels + 1) >= 4 for side in (height, width)):
        levels += 1
    return levels


def check_patches(levels: int, least: int, size: tuple[int, int]) -> None:
    """Raises ValueError where halving an image `levels` times leaves fewer than `least` pixels a side."""
    if min(size) < least << levels:
        raise ValueError(
            f"network.patch_levels {levels} needs {least << levels} pixels a side, found {size[0]}x{size[1]}: at most "
            f"{max((min(size) // least).bit_length() - 1, 0)} levels"
        )


def gaussian_latent(noise: Noise, dim: int, truncation: float | None = None) -> Tensor:
    """z, `[N, dim]`, standard normal; with `truncation` its tails beyond ±truncation are cut off.

    The truncation trick of Brock et al. 2019, section 3.1: less variety for more fidelity. Drawn by the inverse
    of the normal's distribution function, so every z is used and the draw stays a function of the key.
    """
    if truncation is None:
        return noise.normal(dim)
    edge = torch.special.ndtr(torch.tensor(-truncation, dtype=torch.float64))
    uniform = noise.uniform(dim).double()
    z: Tensor = torch.special.ndtri(edge + uniform * (1 - 2 * edge)).float()
    return z


# -- of StyleGAN2: equalised weights, FIR resampling, modulated convolutions. Karras et al. 2018, 2020 -------------


def activate(x: Tensor) -> Tensor:
    """Leaky ReLU of slope 0.2, in place. Its gain of √2 is in the layer before: see `equalised`."""
    return leaky_relu_(x, 0.2)


def unit(x: Tensor) -> Tensor:
    """Each row `[N, D]` at a mean square of 1. Karras et al. 2018, section 4.2."""
    return x * (x.square().mean(1, keepdim=True) + 1e-8).rsqrt()


class _Scale(nn.Module):
    def __init__(self, by: float):
        super().__init__()
        self.by = by

    def forward(self, x: Tensor) -> Tensor:
        return x * self.by


def equalised(
    layer: Layer, *, gain: float = 1.0, fan_in: int | None = None, bias: float = 0.0, lr_multiplier: float = 1.0
) -> Layer:
    """Give a layer weights drawn from N(0, 1) and scaled to He's deviation, `gain`/√fan_in, whenever they are used.

    Then Adam moves all layers at the same relative speed, times `lr_multiplier`. Karras et al. 2018, section 4.1.
    The `gain` of the activation that follows may stand here, bias included: leaky ReLU(cx) = c leaky ReLU(x).
    """
    weight = layer.weight
    assert isinstance(weight, Tensor)
    fan_in = fan_in or weight[0].numel()
    nn.init.normal_(weight, std=1 / lr_multiplier)
    parametrize.register_parametrization(layer, "weight", _Scale(gain * lr_multiplier / math.sqrt(fan_in)))
    if isinstance(getattr(layer, "bias", None), Tensor):
        nn.init.constant_(layer.bias, bias / lr_multiplier)  # type: ignore[arg-type]
        if gain * lr_multiplier != 1.0:
            parametrize.register_parametrization(layer, "bias", _Scale(gain * lr_multiplier))
    return layer


class Fir(nn.Module):
    """The filter [1, 3, 3, 1] ⊗ [1, 3, 3, 1], of sum `gain`; zeros beyond the edges. Karras et al. 2019, section 2.

    On a CPU a depthwise convolution of 4x4 is faster than two of 4, than sums of slices, than interpolation and than
    channels folded into the batch (x10 in channels-last, where that takes a copy).
    """

    def __init__(self, gain: float = 1.0):
        super().__init__()
        self.gain = gain

    def blur(self, x: Tensor, padding: int) -> Tensor:
        """`[N, C, H, W]` → `[N, C, H + 2·padding − 3, W + 2·padding − 3]`."""
        return binomial_filter(x, self.gain, padding=padding)

    def down(self, x: Tensor) -> Tensor:
        """To half the size."""
        return binomial_filter(x, self.gain, stride=2, padding=1)

    def up(self, x: Tensor) -> Tensor:
        """To double the size: zeros between the pixels, then the filter, of gain 4."""
        return binomial_filter(x, self.gain, stride=2, padding=1, up=True)


class ModulatedConv(nn.Module):
    """A convolution whose weights each example's w scales: Karras et al. 2020, eq. 1 to 3.

    Not the weights are scaled, which would take a convolution an example, but what goes in and what comes out:
    the same function, and the faster one for batches on a CPU. With `normal` false, as for images: a 1x1
    convolution, neither demodulated nor given noise nor activated. `start` tells its noise from other layers';
    None is for none.
    """

    def __init__(
        self, w_dim: int, inner: int, outer: int, *, normal: bool = True, up: bool = False, start: int | None = None
    ):
        super().__init__()
        size = 3 if normal else 1
        self.affine = equalised(nn.Linear(w_dim, inner), bias=1.0)
        self.weight = nn.Parameter(torch.randn(outer, inner, size, size))
        self.bias = nn.Parameter(torch.zeros(outer))
        self.noise_strength = None if start is None else nn.Parameter(torch.zeros(()))
        self.fir = Fir(gain=4.0) if up else None
        self.scale, self.normal, self.start = 1 / math.sqrt(inner * size**2), normal, start

    def forward(self, x: Tensor, w: Tensor, keys: Tensor | None = None) -> Tensor:
        """Features `[N, I, H, W]`, styles w `[N, D]`, keys of noise `[N]` → `[N, O, H, W]`, twice as high if `up`."""
        with full_precision(x):
            styles = self.affine(w) * self.scale
            gains = None  # of the outputs
            if self.normal:
                gains = (styles.square() @ self.weight.square().sum((2, 3)).T + 1e-8).rsqrt() * math.sqrt(2)
        x = x * styles.to(x)[:, :, None, None]
        if self.fir is not None:  # a transposed convolution, then the filter: Karras et al. 2019, section 2
            x = self.fir.blur(conv_transpose2d(x, self.weight.transpose(0, 1), stride=2), padding=1)
        else:
            x = conv2d(x, self.weight, padding=self.weight.shape[-1] // 2)
        bias = self.bias.to(x)[:, None, None]
        if gains is None:
            return x + bias
        x = torch.addcmul(bias * math.sqrt(2), x, gains.to(x)[:, :, None, None])
        if keys is not None and self.start is not None and self.noise_strength is not None:
            height, width = x.shape[2:]
            noise = noises.normal(keys, self.start, height * width).view(-1, 1, height, width)
            x.add_((noise.to(self.bias) * (self.noise_strength * math.sqrt(2))).to(x))
        return activate(x)


class FromImage(nn.Module):
    """A 1x1 convolution of images `[N, C, H, W]` to features, activated."""

    def __init__(self, channels: int, outer: int):
        super().__init__()
        self.conv = equalised(Conv2d(channels, outer, 1), gain=math.sqrt(2))

    def forward(self, images: Tensor) -> Tensor:
        return activate(self.conv(images))


class MinibatchDeviation(nn.Module):
    """Append one channel: how much examples of a group differ, on average. Karras et al. 2018, section 3.

    Groups are of neighbouring rows: as many as `group`, or the next smaller number that divides the rows. So
    ranks and microbatches agree with one batch if `group` divides each. 0: nothing is appended.
    """

    def __init__(self, group: int):
        super().__init__()
        self.group, self.channels = group, 1 if group else 0

    def forward(self, x: Tensor) -> Tensor:
        """`[N, C, ...]` → `[N, C + 1, ...]`."""
        if not self.group:
            return x
        group = next(g for g in range(self.group, 0, -1) if len(x) % g == 0)
        with full_precision(x):
            groups = x.to(torch.promote_types(x.dtype, torch.float32)).unflatten(0, (-1, group))
            variance = (groups - groups.mean(1, keepdim=True)).square().mean(1)  # torch's var: four times as long
            deviation = (variance + 1e-8).sqrt().flatten(1).mean(1)
        # expanded, not repeat_interleave, whose gradient on CUDA is a scatter
        plane = deviation.to(x)[:, None].expand(-1, group).reshape(-1, *[1] * (x.dim() - 1)).expand(-1, 1, *x.shape[2:])
        return torch.cat([x, plane], 1)
