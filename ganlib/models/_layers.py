"""What families share."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ganlib.game import Noise

__all__ = ["BatchNorm", "gaussian_latent", "project"]


class _SumOverRanks(torch.autograd.Function):
    """All-reduce that can be differentiated any number of times: the gradient of a sum over ranks is a sum too."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> Tensor:
        total: Tensor = _SumOverRanks.apply(gradients[0])  # type: ignore[no-untyped-call]
        return total


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation (Ioffe & Szegedy 2015) of `[N, C]` or `[N, C, H, W]` over the examples of *all* ranks.

    So any number of ranks computes what one would; torch's own SyncBatchNorm refuses the CPU.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() not in (2, 4):
            raise ValueError(f"[N, C] or [N, C, H, W] is wanted, found {list(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        if not (self.training and dist.is_initialized() and dist.get_world_size() > 1):
            return super().forward(input)
        axes = [0, *range(2, input.dim())]
        n = torch.tensor([float(input.numel() // input.shape[1])], device=input.device)
        wide = input.float()
        local = torch.cat([wide.sum(axes), wide.square().sum(axes), n])
        sums = _SumOverRanks.apply(local)  # type: ignore[no-untyped-call]
        count = sums[-1]
        mean, square = sums[: self.num_features] / count, sums[self.num_features : -1] / count
        variance = (square - mean.square()).clamp_min(0.0)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        with torch.no_grad():
            momentum = self.momentum or 0.0
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(variance * count / (count - 1), momentum)
        scale = (variance + self.eps).rsqrt() * self.weight
        shape = [1, -1, *[1] * (input.dim() - 2)]
        shift = self.bias - mean * scale
        normed: Tensor = (input * scale.view(shape) + shift.view(shape)).to(input.dtype)
        return normed


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


def project(logits: Tensor, features: Tensor, embedding: nn.Embedding | None, cond: Tensor | None) -> Tensor:
    """Add the inner product of features `[N, D]` and class embedding to logits `[N]`.

    The projection discriminator: Miyato & Koyama 2018, eq. 4.
    """
    if embedding is None or cond is None:
        return logits
    agreement: Tensor = (embedding(cond) * features).sum(1)
    return logits + agreement
