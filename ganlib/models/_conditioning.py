"""How players are conditioned on labels or attributes, the same choices for every family.

| `conditioning` | the generator is conditioned by | the discriminator by |
|---|---|---|
| `concat` | what the family does | the condition concatenated to its input (Mirza & Osindero 2014) |
| `projection` | the same | the inner product of features and embedding (Miyato & Koyama 2018) |
| `auxiliary` | the same | having to name the condition itself: AC-GAN (Odena et al. 2017) |
| `reacgan` | the same | a contrast between examples and classes: ReACGAN (Kang et al. 2021) |

`auto` is the family's choice where the data have labels or attributes; with `none` both
players are unconditional.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ganlib import distributed
from ganlib.data._spec import Spec
from ganlib.device import full_precision
from ganlib.game import Batch, Deal, DiscriminatorOutput, Game, Round, Term
from ganlib.models._layers import gaussian_latent

__all__ = ["Condition", "Conditioning", "Embedding", "Head", "concat_condition", "condition_of", "noise_game"]

Conditioning = Literal["auto", "none", "concat", "projection", "auxiliary", "reacgan"]

_TEMPERATURE, _POSITIVE_MARGIN, _NEGATIVE_MARGIN = 0.5, 0.98, 0.02  # of ReACGAN
_PROJECTED = 64


@dataclass(frozen=True)
class Condition:
    """What the players of one game are conditioned on."""

    mode: Conditioning
    classes: int
    attributes: int

    @property
    def size(self) -> int:
        """Numbers in one-hot labels or attributes; 0 where the model is unconditional."""
        return self.classes or self.attributes

    @property
    def planes(self) -> int:
        """Inputs that `concat_condition` adds."""
        return self.size if self.mode == "concat" else 0

    def cond(self, batch: Batch) -> Tensor | None:
        """Labels `[N]`, attributes `[N, A]`, or None."""
        if self.classes:
            return batch.data["label"]
        return batch.data["attributes"] if self.attributes else None


def condition_of(mode: Conditioning, spec: Spec, *, auto: Conditioning) -> Condition:
    """The condition of a game on these data; `auto` is the mode that the family takes for `mode: auto`.

    Raises ValueError for a condition that the data do not have, or that the mode cannot express.
    """
    if mode == "none" or (mode == "auto" and not spec.classes and not spec.attributes):
        return Condition("none", 0, 0)
    mode = auto if mode == "auto" else mode
    if not spec.classes and not spec.attributes:
        raise ValueError(f"network.conditioning is {mode}, but the data have no labels; use auto or none")
    if spec.classes and spec.unlabelled:
        raise ValueError(
            f"network.conditioning: {spec.unlabelled} examples have no label, so players cannot be conditioned on "
            "classes; set it to none, or the data set's unlabelled to reject"
        )
    if mode == "reacgan" and not spec.classes:
        raise ValueError("network.conditioning: reacgan needs class labels, these data have attributes; use projection")
    return Condition(mode, len(spec.classes), 0 if spec.classes else len(spec.attributes))


class Embedding(nn.Module):
    """Labels `[N]` or attributes `[N, A]` → `[N, dim]`."""

    def __init__(self, condition: Condition, dim: int):
        super().__init__()
        self.table: nn.Module = (
            nn.Embedding(condition.classes, dim) if condition.classes else nn.Linear(condition.attributes, dim)
        )

    def forward(self, cond: Tensor) -> Tensor:
        embedded: Tensor = self.table(cond)
        return embedded


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """Labels `[N]` → bool `[N, classes]`. Unlike torch's own it reads no label on the CPU."""
    return labels[:, None] == torch.arange(classes, device=labels.device)


def concat_condition(x: Tensor, cond: Tensor | None, condition: Condition) -> Tensor:
    """`x` with the condition concatenated: numbers to `[N, D]`, constant planes to `[N, C, H, W]`; classes are one-hot.

    `x` itself unless the mode is `concat`.
    """
    if condition.mode != "concat" or cond is None or not condition.size:
        return x
    numbers = one_hot(cond, condition.classes).to(x) if condition.classes else cond.to(x)
    planes = numbers.view(*numbers.shape, *[1] * (x.dim() - 2)).expand(-1, -1, *x.shape[2:])
    return torch.cat([x, planes], 1)


class Head(nn.Module):
    """The end of a discriminator: features `[N, D]` and condition → DiscriminatorOutput.

    `wrap` is applied to every layer that holds weights (spectral norm). `weight` is that of the extra losses in
    `terms()`, which the family adds to its game.
    """

    def __init__(
        self,
        condition: Condition,
        features: int,
        *,
        wrap: Callable[[nn.Module], nn.Module] = lambda layer: layer,
        weight: float = 1.0,
    ):
        super().__init__()
        self.condition, self.weight = condition, weight
        self.logit = wrap(nn.Linear(features, 1))
        self.embedding = self.names = self.projector = None
        if condition.mode == "projection":
            self.embedding = Embedding(condition, features)
            self.embedding.table = wrap(self.embedding.table)
        elif condition.mode == "auxiliary":
            self.names = wrap(nn.Linear(features, condition.size))
        elif condition.mode == "reacgan":
            self.projector = wrap(nn.Linear(features, _PROJECTED))
            self.embedding = Embedding(condition, _PROJECTED)

    def forward(self, features: Tensor, cond: Tensor | None) -> DiscriminatorOutput:
        """Features `[N, D]`, condition → logits `[N]`, features `[N, D]` in float32."""
        with full_precision(features):
            features = features.to(torch.promote_types(features.dtype, torch.float32))
            logits = self.logit(features).squeeze(1)
            if self.condition.mode == "projection" and self.embedding is not None and cond is not None:
                logits = logits + (self.embedding(cond) * features).sum(1)  # Miyato & Koyama 2018, eq. 4
        return DiscriminatorOutput(logits, features)

    def terms(self) -> tuple[Term, ...]:
        """Both players' extra losses; none for `concat` and `projection`."""
        if self.condition.mode == "auxiliary":
            name, of_real, of_fake = "auxiliary", self._misnamed, self._misnamed
        elif self.condition.mode == "reacgan":
            name, of_real, of_fake = "reacgan", self._contrast, None
        else:
            return ()

        def discriminators(round: Round) -> Tensor:
            with full_precision(round.fake_logits):
                cost = of_real(round.real_features, round.deal.cond)
                return cost if of_fake is None else cost + of_fake(round.fake_features, round.deal.cond)

        def generators(round: Round) -> Tensor:
            with full_precision(round.fake_logits):
                return of_real(round.fake_features, round.deal.cond)

        return (
            Term(name, "discriminator", discriminators, self.weight, needs_input_grad=False),
            Term(name, "generator", generators, self.weight),
        )

    def _misnamed(self, features: Tensor | None, cond: Tensor | None) -> Tensor:
        """−log P(C = c | x), `[N]`; squared error for attributes. Odena et al. 2017, eq. 3."""
        assert self.names is not None
        assert features is not None
        assert cond is not None
        named = self.names(features)
        if self.condition.classes:
            # of probabilities: on GPUs, cross-entropy of indices is not promised to be deterministic
            return F.cross_entropy(named, one_hot(cond, self.condition.classes).to(named), reduction="none")
        squares: Tensor = (named - cond).square()
        return squares.mean(1)

    def _contrast(self, features: Tensor | None, cond: Tensor | None) -> Tensor:
        """The data-to-data cross-entropy, `[N]`. Kang et al. 2021, eq. 7.

        An example is drawn to its class's embedding and away from examples, of all ranks, of other classes.
        """
        assert self.projector is not None
        assert self.embedding is not None
        assert features is not None
        assert cond is not None
        seen = F.normalize(self.projector(features), dim=1)
        classes = F.normalize(self.embedding(cond), dim=1)
        everyone, labels = distributed.all_gather(seen), distributed.all_gather(cond)
        to_class = ((seen * classes).sum(1) - _POSITIVE_MARGIN).clamp(max=0.0) / _TEMPERATURE
        to_others = (seen @ everyone.T - _NEGATIVE_MARGIN).clamp(min=0.0) / _TEMPERATURE
        to_others = to_others.masked_fill(cond[:, None] == labels[None, :], -torch.inf)
        return torch.logsumexp(torch.cat([to_class[:, None], to_others], 1), 1) - to_class


def noise_game(
    generator: nn.Module,
    discriminator: nn.Module,
    condition: Condition,
    latent_dim: int,
    terms: tuple[Term, ...] = (),
    group: int = 0,
) -> Game:
    """The game of families whose generator is given Gaussian noise `[N, latent_dim]` and the condition, and whose
    discriminator ends in a `head`; with the head's terms and others. Its `MinibatchDeviation` has the `group`."""
    head = discriminator.head
    assert isinstance(head, Head)
    return Game(
        generator,
        discriminator,
        deal=lambda batch: Deal(
            inputs=gaussian_latent(batch.noise, latent_dim),
            real=batch.data["sample"],
            cond=condition.cond(batch),
        ),
        ask=lambda given, noise, truncation: gaussian_latent(noise, latent_dim, truncation),
        classes=condition.classes,
        attributes=condition.attributes,
        terms=(*head.terms(), *terms),
        group=group or 1,
    )
