"""Gradient penalties on the discriminator: `(round) -> [N]`, to be weighted by γ and averaged.

R1 and R2 reuse the logits of the turn, so they cost one extra backward; the gradient penalty has points of its
own. They take each example's logit to depend on that example alone, so a discriminator that mixes examples
(BatchNorm) is refused with them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ganlib.game import Round, Sample, leaves

__all__ = ["PENALTIES", "gradient_penalty", "r1", "r2"]


def _squared_gradient(logits: Tensor, sample: Sample) -> Tensor:
    """‖∂ΣD/∂x‖² for each example, `[N]`, differentiable once more."""
    gradients = torch.autograd.grad(logits.sum(), leaves(sample), create_graph=True)
    return torch.stack([g.flatten(1).square().sum(1) for g in gradients]).sum(0)


def r1(round: Round) -> Tensor:
    """½‖∇D(x)‖² at the reals. Mescheder et al. 2018, eq. 9; the weight is γ."""
    assert round.real_logits is not None, "a discriminator's turn has judged the reals"
    return 0.5 * _squared_gradient(round.real_logits, round.real)


def r2(round: Round) -> Tensor:
    """½‖∇D(G(z))‖² at the fakes. Mescheder et al. 2018, eq. 10; the weight is γ."""
    return 0.5 * _squared_gradient(round.fake_logits, round.fake)


def gradient_penalty(round: Round) -> Tensor:
    """(‖∇D(x̂)‖ − 1)² at x̂ = εx + (1 − ε)G(z), ε uniform. Gulrajani et al. 2017, eq. 3; the weight is λ."""
    share = round.noise.uniform()

    def mix(real: Tensor, fake: Tensor) -> Tensor:
        epsilon = share.view(-1, *[1] * (real.dim() - 1))
        return (epsilon * real.detach() + (1 - epsilon) * fake.detach()).requires_grad_()

    if isinstance(round.real, dict) and isinstance(round.fake, dict):
        between: Sample = {name: mix(part, round.fake[name]) for name, part in round.real.items()}
    else:
        between = mix(leaves(round.real)[0], leaves(round.fake)[0])
    slope = (_squared_gradient(round.discriminate(between), between) + 1e-12).sqrt()
    return (slope - 1.0).square()


PENALTIES: dict[str, Callable[[Round], Tensor]] = {"r1": r1, "r2": r2, "gradient_penalty": gradient_penalty}
