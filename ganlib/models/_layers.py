"""What families share."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ganlib import ranks
from ganlib.game import Noise

__all__ = ["BatchNorm", "gaussian_latent"]


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation (Ioffe & Szegedy 2015) of `[N, C, H, W]` over the examples of *all* ranks.

    So any number of ranks computes what one would; torch's own SyncBatchNorm refuses the CPU.
    """

    def forward(self, input: Tensor) -> Tensor:
        assert self.running_mean is not None
        assert self.running_var is not None
        if not self.training:
            return super().forward(input)
        wide = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input  # under autocast
        normed, mean, variance = _BatchNorm.apply(wide, self.weight, self.bias, self.eps)  # type: ignore[no-untyped-call]
        with torch.no_grad():
            count = input.numel() / input.shape[1] * (dist.get_world_size() if dist.is_initialized() else 1)
            self.running_mean.lerp_(mean, self.momentum or 0.0)
            self.running_var.lerp_(variance * (count / max(count - 1, 1)), self.momentum or 0.0)
        result: Tensor = normed.to(input.dtype)
        return result


class _BatchNorm(torch.autograd.Function):
    """Built of torch's fused kernels with given statistics; can be differentiated once.

    On one CPU thread its backward takes a third of the time of torch's own.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        axes = [0, *range(2, x.dim())]
        if x.device.type == "cpu":
            mean, variance = torch.batch_norm_update_stats(x, None, None, 0.0)  # in one pass over x
        else:
            variance, mean = torch.var_mean(x, axes, correction=0)
        if dist.is_initialized() and dist.get_world_size() > 1:  # equal shares of the batch
            moments = ranks.total(torch.stack([mean, variance + mean.square()]).double()) / dist.get_world_size()
            mean, variance = moments[0].to(x), (moments[1] - moments[0].square()).clamp_min(0.0).to(x)
        ctx.save_for_backward(x, weight, mean, variance)
        ctx.eps, ctx.count = eps, x.numel() / x.shape[1]
        ctx.mark_non_differentiable(mean, variance)
        return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps), mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """∂x = γ/σ · (g − mean(g) − x̂ · mean(g x̂)), the means over all ranks. Ioffe & Szegedy 2015, section 3."""
        x, weight, mean, variance = ctx.saved_tensors
        scaled, by_weight, by_bias = torch.ops.aten.native_batch_norm_backward(
            gradient, x, weight, mean, variance, None, None, False, ctx.eps, [True, True, True]
        )
        means = torch.stack([by_bias, by_weight]) / ctx.count
        if dist.is_initialized() and dist.get_world_size() > 1:
            means = ranks.total(means) / dist.get_world_size()
        inverse = (variance + ctx.eps).rsqrt()
        shape = [1, -1, *[1] * (x.dim() - 2)]
        slope = -weight * inverse * inverse * means[1]
        shift = -weight * inverse * means[0] - slope * mean
        return scaled.addcmul_(x, slope.view(shape)).add_(shift.view(shape)), by_weight, by_bias, None


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
