"""Adversarial losses: functions of logits, one value an example.

`real` and `fake` are the discriminator's logits, `[N]` or `[N, ...]` for patch discriminators; the result has
their shape. The discriminator and the generator both minimise. A `paired` loss compares each fake with a real.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

__all__ = ["LOSSES", "Loss"]


@dataclass(frozen=True)
class Loss:
    discriminator: Callable[[Tensor, Tensor], Tensor]
    """`(real, fake) -> value`"""
    generator: Callable[[Tensor, Tensor | None], Tensor]
    """`(fake, real) -> value`; `real` is None unless `paired`"""
    paired: bool = False
    decision_threshold: float | None = 0.0
    """the logit between what looks real and what looks fake; None where only differences of logits count"""

    def signs(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        """Which logits are on the side of the reals, 1, and of the fakes, −1: all 1 and all −1 from a discriminator
        that is always right, means of 0 from one that guesses. Without a threshold, each real is compared
        with a fake.
        """
        if self.decision_threshold is None:
            return (real - fake).sign(), (fake - real).sign()
        return (real - self.decision_threshold).sign(), (fake - self.decision_threshold).sign()


def _cross_entropy(real: Tensor, fake: Tensor) -> Tensor:
    """−log σ(D(x)) − log(1 − σ(D(G(z)))). Goodfellow et al. 2014, eq. 1."""
    return F.softplus(-real) + F.softplus(fake)


def _minimax(fake: Tensor, _: Tensor | None) -> Tensor:
    """log(1 − σ(D(G(z)))). Goodfellow et al. 2014, eq. 1."""
    return -F.softplus(fake)


def _non_saturating(fake: Tensor, _: Tensor | None) -> Tensor:
    """−log σ(D(G(z))). Goodfellow et al. 2014, section 3."""
    return F.softplus(-fake)


def _hinge(real: Tensor, fake: Tensor) -> Tensor:
    """max(0, 1 − D(x)) + max(0, 1 + D(G(z))). Lim & Ye 2017; Miyato et al. 2018, eq. 16."""
    return F.relu(1.0 - real) + F.relu(1.0 + fake)


def _wasserstein(real: Tensor, fake: Tensor) -> Tensor:
    """D(G(z)) − D(x). Arjovsky et al. 2017, eq. 2, its negative."""
    return fake - real


def _minus(fake: Tensor, _: Tensor | None) -> Tensor:
    """−D(G(z)). Arjovsky et al. 2017; Miyato et al. 2018, eq. 17."""
    return -fake


def _least_squares(real: Tensor, fake: Tensor) -> Tensor:
    """½(D(x) − 1)² + ½D(G(z))². Mao et al. 2017, eq. 9."""
    return 0.5 * (real - 1.0).square() + 0.5 * fake.square()


def _least_squares_generator(fake: Tensor, _: Tensor | None) -> Tensor:
    """½(D(G(z)) − 1)². Mao et al. 2017, eq. 9."""
    return 0.5 * (fake - 1.0).square()


def _relativistic(real: Tensor, fake: Tensor) -> Tensor:
    """−log σ(D(x) − D(G(z))). Jolicoeur-Martineau 2018 (RSGAN); Huang et al. 2024, eq. 2."""
    return F.softplus(fake - real)


def _relativistic_generator(fake: Tensor, real: Tensor | None) -> Tensor:
    """−log σ(D(G(z)) − D(x)). Jolicoeur-Martineau 2018 (RSGAN)."""
    assert real is not None, "a paired loss is given the real logits"
    return F.softplus(real - fake)


LOSSES: dict[str, Loss] = {
    "minimax": Loss(_cross_entropy, _minimax),
    "non_saturating": Loss(_cross_entropy, _non_saturating),
    "hinge": Loss(_hinge, _minus),
    "wasserstein": Loss(_wasserstein, _minus, decision_threshold=None),
    "least_squares": Loss(_least_squares, _least_squares_generator, decision_threshold=0.5),
    "relativistic": Loss(_relativistic, _relativistic_generator, paired=True, decision_threshold=None),
}
