"""Regularisers of the discriminator: `(round) -> [N]`, to be weighted and averaged.

A penalty is a function, or a class whose instance is called: the arguments of its constructor are its options in
a model's file, next to `weight` and `every`.

R1 and R2 reuse the logits of the turn, so they cost one extra backward; the others evaluate points of their own. Those
in `DIFFERENTIATE` penalise the gradient with respect to the samples, before augmentation, by second derivatives;
`r1_approx` and `r2_approx` estimate it by a finite difference. All of these assume that each example's logit depends on
that example alone (`PER_EXAMPLE`), so a discriminator with BatchNorm is refused with them. StyleGAN2's is not, though
its minibatch deviation mixes examples too: gradients then include the example's neighbours in its group, as in the
paper. Where there is a logit for every patch, the gradient is that of their mean.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ganlib import distributed
from ganlib.augment import Augment, AugmentConfig
from ganlib.convolution import no_weight_gradients
from ganlib.device import full_precision
from ganlib.game import Round, Sample, discriminate, map_tensors, tensors_of

__all__ = [
    "DIFFERENTIATE",
    "MOVE",
    "PENALTIES",
    "PER_EXAMPLE",
    "LeCam",
    "R1Approx",
    "R2Approx",
    "balanced_consistency",
    "consistency",
    "dragan",
    "gradient_penalty",
    "r1",
    "r2",
]


def _of_each(values: Tensor) -> Tensor:
    """Values `[N]` or `[N, ...]` → their mean for each example, `[N]`."""
    return values.reshape(len(values), -1).mean(1)


def _squared_gradient(logits: Tensor, sample: Sample) -> Tensor:
    """‖∂D/∂x‖² for each example, `[N]`, differentiable once more; of the floats in x that D looks at."""
    floats = [x for x in tensors_of(sample) if x.is_floating_point()]
    with no_weight_gradients(), full_precision(logits):
        gradients = torch.autograd.grad(_of_each(logits).sum(), floats, create_graph=True, allow_unused=True)
    return torch.stack([g.reshape(len(g), -1).square().sum(1) for g in gradients if g is not None]).sum(0)


def _map_floats(fn: Callable[[Tensor], Tensor], sample: Sample) -> Sample:
    """`fn` of every float tensor of a sample; lengths, tokens and the like stay."""
    return map_tensors(lambda x: fn(x) if x.is_floating_point() else x, sample)


def _squared_norm_deviation(round: Round, sample: Sample) -> Tensor:
    """(‖∇D‖ − 1)² at a sample, `[N]`."""
    return ((_squared_gradient(round.discriminate(sample).logits, sample) + 1e-12).sqrt() - 1.0).square()


def r1(round: Round) -> Tensor:
    """½‖∇D(x)‖² at the reals. Mescheder et al. 2018, eq. 9; the weight is γ."""
    assert round.real_logits is not None, "a discriminator's turn has judged the reals"
    return 0.5 * _squared_gradient(round.real_logits, round.real)


def r2(round: Round) -> Tensor:
    """½‖∇D(G(z))‖² at the fakes. Mescheder et al. 2018, eq. 10; the weight is γ."""
    return 0.5 * _squared_gradient(round.fake_logits, round.fake)


def _moves_weights(discriminator: Callable[..., object]) -> bool:
    """Whether each forward changes the weights that the next one uses, as spectral norm does in training."""
    return (
        isinstance(discriminator, nn.Module)
        and discriminator.training
        and any(
            next(module.buffers(), None) is not None
            for module in discriminator.modules()
            if isinstance(module, parametrize.ParametrizationList)
        )
    )


@dataclass(frozen=True)
class R1Approx:
    """½ (D(x + σε) − D(x))² / σ² at the reals, ε ~ N(0, I): r1 by a finite difference. The weight is γ.

    Its expectation over ε is that of `r1` up to O(σ²), and so is the expectation of its gradient, which flows through
    both logits, as in the code of Adversarial Flow Models (Lin et al. 2025b). Seaweed-APT (Lin et al. 2025a), from
    which it comes, neither halves nor divides by σ²: its λ is γ / 2σ² here. It costs one more forward and backward,
    no second derivatives, so it also suits networks that cannot be differentiated twice.

    ε is added before augmentation, where r1 takes its gradient. Augmentation draws anew at each call, so with it D(x)
    is computed once more, under the draws of D(x + σε). The authors' code adds ε after augmentation.

    σ must be small against the curvature of D, or the estimate has little to do with the gradient at x: on images of
    Fashion-MNIST it is 7 times as large at σ = 0.1. It must be large against the resolution of the logits: a logit of
    2 in bfloat16 moves in steps of 0.016, so both logits are computed in float32 also under autocast, D(x) once more.
    The same holds where D has spectral norm, whose weights differ slightly from one forward in training to the next.
    With minibatch deviation the expectation is Σⱼ‖∂Dᵢ/∂xⱼ‖² over the group, where r1 has ‖Σⱼ∂Dⱼ/∂xᵢ‖².
    """

    sigma: PositiveFloat = 0.01
    """standard deviation of the perturbation, in the units of the samples"""
    batch_shrink: PositiveInt = 1
    """the penalty is computed at one example in this many"""

    def __call__(self, round: Round) -> Tensor:
        """A discriminator's turn → `[N / batch_shrink]`."""
        assert round.real_logits is not None, "a discriminator's turn has judged the reals"
        return _squared_difference(round, round.real, round.real_logits, self.sigma, self.batch_shrink)


@dataclass(frozen=True)
class R2Approx:
    """The same at the fakes: r2 by a finite difference."""

    sigma: PositiveFloat = 0.01
    """as of `R1Approx`"""
    batch_shrink: PositiveInt = 1
    """as of `R1Approx`"""

    def __call__(self, round: Round) -> Tensor:
        """A discriminator's turn → `[N / batch_shrink]`."""
        return _squared_difference(round, round.fake, round.fake_logits, self.sigma, self.batch_shrink)


def _squared_difference(round: Round, sample: Sample, logits: Tensor, sigma: float, batch_shrink: int) -> Tensor:
    """½ (D(x + σε) − D(x))² / σ² at samples with these logits, `[N / batch_shrink]`."""
    game, rows = round.game, _leading_rows(round, logits, batch_shrink)
    device = logits.device.type

    def logits_of(seen: Sample) -> Tensor:
        """The logits of the chosen rows, already augmented."""
        cond = None if round.deal.cond is None else round.deal.cond[rows]
        plain = dataclasses.replace(game, augmentation=None)
        return discriminate(plain, map_tensors(lambda x: x[rows], seen), cond, round.noise).logits

    def perturb(x: Tensor) -> Tensor:
        return x + sigma * round.noise.normal(*x.shape[1:]).to(x)

    again = game.augmentation is not None or torch.is_autocast_enabled(device) or _moves_weights(game.discriminator)
    with torch.autocast(device, enabled=False), parametrize.cached():  # one weight for both forwards
        # fakes may be of half precision
        sample = _map_floats(lambda x: x.detach().to(torch.promote_types(x.dtype, torch.float32)), sample)
        near = _map_floats(perturb, sample)
        if game.augmentation is not None:
            sample = game.augmentation(sample, copy.copy(round.noise))
            near = game.augmentation(near, round.noise)
        difference = _of_each(logits_of(near)) - _of_each(logits_of(sample) if again else logits[rows])
        return 0.5 * (difference / sigma).square()


def _leading_rows(round: Round, logits: Tensor, batch_shrink: int) -> Tensor | slice:
    """The rows at which the penalty is computed: of each run of `Game.group` rows the leading ones.

    So they are the same for any number of ranks and microbatches, and hold whole groups of minibatch deviation.
    """
    group = round.game.group
    if batch_shrink == 1:
        return slice(None)
    if group % batch_shrink:
        raise ValueError(f"batch_shrink: {batch_shrink} does not divide Game.group, {group}")
    rows = torch.arange(len(logits), device=logits.device).view(-1, group)
    return rows[:, : group // batch_shrink].flatten()


def gradient_penalty(round: Round) -> Tensor:
    """(‖∇D(x̂)‖ − 1)² at x̂ = εx + (1 − ε)G(z), ε uniform. Gulrajani et al. 2017, eq. 3; the weight is λ."""
    share = round.noise.uniform()

    def mix(real: Tensor, fake: Tensor) -> Tensor:
        if not real.is_floating_point():
            return real
        epsilon = share.view(-1, *[1] * (real.dim() - 1))
        return (epsilon * real.detach() + (1 - epsilon) * fake.detach()).requires_grad_()

    if isinstance(round.real, dict) and isinstance(round.fake, dict):
        between: Sample = {name: mix(part, round.fake[name]) for name, part in round.real.items()}
    else:
        between = mix(tensors_of(round.real)[0], tensors_of(round.fake)[0])
    return _squared_norm_deviation(round, between)


def dragan(round: Round) -> Tensor:
    """(‖∇D(x + δ)‖ − 1)² near the reals. Kodali et al. 2017, algorithm 1; the weight is λ.

    δ = ½ α σ U(0, 1) for each number, α ~ U(0, 1) for each example, as in the authors' code (the paper has N(0, c)),
    with σ the standard deviation within the example, where theirs is that of the batch: so it is the same for any
    number of ranks.
    """
    share = round.noise.uniform()

    def perturb(real: Tensor) -> Tensor:
        reach = 0.5 * share * real.detach().reshape(len(real), -1).std(1, correction=0)
        apart = reach.view(-1, *[1] * (real.dim() - 1)) * round.noise.uniform(*real.shape[1:])
        return (real.detach() + apart).requires_grad_()

    return _squared_norm_deviation(round, _map_floats(perturb, round.real))


_flip_and_shift = Augment(
    AugmentConfig(kind="ada", operations=("flip", "translate_integer"), probability=1.0, target=None)
)


def _inconsistency(round: Round, sample: Sample, logits: Tensor) -> Tensor:
    """‖D(x) − D(T(x))‖², `[N]`; T flips every other image and shifts it by up to ⅛, mirrored at the edges."""
    if any(part.dim() != 4 for part in tensors_of(sample)):
        raise ValueError("consistency flips and shifts, and so needs images, [N, C, H, W]")
    if round.deal.cond is not None and round.deal.cond.dim() == 4:
        raise ValueError("consistency moves images, and would move them away from the image they are paired with")
    moved = map_tensors(lambda images: _flip_and_shift(images.detach(), round.noise, 0.0), sample)
    return _of_each((logits - round.discriminate(moved).logits).square())


def consistency(round: Round) -> Tensor:
    """‖D(x) − D(T(x))‖² at the reals, on the logits. Zhang et al. 2020 (CR-GAN); the weight is λ."""
    assert round.real_logits is not None, "a discriminator's turn has judged the reals"
    return _inconsistency(round, round.real, round.real_logits)


def balanced_consistency(round: Round) -> Tensor:
    """The same at the reals and at the fakes, with one λ. Zhao et al. 2021 (bCR)."""
    return consistency(round) + _inconsistency(round, round.fake, round.fake_logits)


class LeCam(nn.Module):
    """‖D(x) − α_F‖² + ‖D(G(z)) − α_R‖², α the running means of the logits of fakes and of reals. Tseng et al. 2021.

    The means are over all ranks and those of the turns before; in the first turn, its own.
    """

    means: Tensor
    started: Tensor

    def __init__(self, decay: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.99):
        super().__init__()
        self.decay = decay
        self.register_buffer("means", torch.zeros(2))  # of reals, of fakes
        self.register_buffer("started", torch.tensor(False))

    def forward(self, round: Round) -> Tensor:
        """A discriminator's turn → `[N]`; updates the running means."""
        assert round.real_logits is not None, "a discriminator's turn has judged the reals"
        real, fake = round.real_logits, round.fake_logits
        now = torch.stack([real.detach().mean(), fake.detach().mean()]).to(self.means)
        now = distributed.all_reduce(now) / distributed.world_size()
        of_real, of_fake = means = torch.where(self.started, self.means, now)
        self.means.copy_(now.lerp(means, self.decay))
        self.started.fill_(True)
        return _of_each((real - of_fake).square()) + _of_each((fake - of_real).square())


PENALTIES: dict[str, Callable[[Round], Tensor] | type[Callable[[Round], Tensor]]] = {
    "r1": r1,
    "r2": r2,
    "r1_approx": R1Approx,
    "r2_approx": R2Approx,
    "gradient_penalty": gradient_penalty,
    "dragan": dragan,
    "consistency": consistency,
    "balanced_consistency": balanced_consistency,
    "lecam": LeCam,
}
"""by the names of a model's file; a class is called once, with its options, and its instance may keep running means"""

MOVE = frozenset({"consistency", "balanced_consistency"})
"""penalties that shift and flip images, and so would part them from what they are paired with"""

DIFFERENTIATE = frozenset({"r1", "r2", "gradient_penalty", "dragan"})
"""those that take gradients with respect to samples"""

PER_EXAMPLE = DIFFERENTIATE | {"r1_approx", "r2_approx"}
"""those that take each logit to depend on its own example alone: BatchNorm is refused with them"""
