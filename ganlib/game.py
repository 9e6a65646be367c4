"""A GAN is a game: two players, what each is dealt, and the extra terms each pays.

A family is a `Game`, data rather than a class. `adversarial_step` plays one turn of each player and is the only
training step of the project; no family's name appears in it.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from ganlib import distributed
from ganlib.losses import Loss
from ganlib.schedules import Schedule, value

__all__ = [
    "Batch",
    "Deal",
    "DiscriminatorOutput",
    "Game",
    "Learner",
    "Noise",
    "Player",
    "Round",
    "Sample",
    "Term",
    "adversarial_step",
    "discriminate",
    "map_tensors",
    "tensors_of",
]

Sample = Tensor | dict[str, Tensor]
"""What is generated and judged: a batch of tensors, or several under names (unpaired domains, table parts)."""
Player = Literal["generator", "discriminator"]
View = Callable[[Sample, "Noise"], Sample]
"""what the discriminator sees in a sample's place; must be twice differentiable"""


class DiscriminatorOutput(NamedTuple):
    """What a discriminator makes of a sample; one that has no more to say than logits may return these alone."""

    logits: Tensor
    """`[N]`, or `[N, ...]` for patches"""
    features: Tensor | None = None
    """`[N, D]`, what a term such as classification or feature matching looks at"""


def map_tensors(fn: Callable[[Tensor], Tensor], sample: Sample) -> Sample:
    """`fn` of every tensor of a sample."""
    return {name: fn(part) for name, part in sample.items()} if isinstance(sample, dict) else fn(sample)


def tensors_of(sample: Sample) -> list[Tensor]:
    """The tensors of a sample."""
    return list(sample.values()) if isinstance(sample, dict) else [sample]


def _cut(sample: Sample, needs_gradient: bool) -> Sample:
    """The sample cut from its graph; with gradients of its own where penalties ask for them."""
    return map_tensors(lambda x: x.detach().requires_grad_(needs_gradient), sample)


def seed_of(*key: int | str) -> int:
    """A 63-bit seed for a key such as (seed, purpose, step); unrelated keys give unrelated streams."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest()) >> 1


class Noise:
    """Random draws for some rows of a global batch.

    The draws are made for the whole batch on the CPU and then cut, so they are a function of the key alone: the
    same on any device, for any number of ranks and any accumulation.
    """

    def __init__(self, *key: int | str, size: int, rows: slice | None = None, device: torch.device | str = "cpu"):
        self._generator = torch.Generator().manual_seed(seed_of(*key))
        self._size, self._rows, self._device = size, rows or slice(0, size), device

    def normal(self, *shape: int) -> Tensor:
        """Standard normal, `[rows, *shape]`."""
        return torch.randn(self._size, *shape, generator=self._generator)[self._rows].to(self._device)

    def uniform(self, *shape: int) -> Tensor:
        """Uniform on [0, 1), `[rows, *shape]`."""
        return torch.rand(self._size, *shape, generator=self._generator)[self._rows].to(self._device)


@dataclass(frozen=True)
class Batch:
    """Real data and the randomness that goes with it."""

    data: dict[str, Tensor]
    noise: Noise
    training: bool = True
    """False where a deal is made to be looked at: without jitter, flips and the like"""


@dataclass(frozen=True)
class Deal:
    """What one batch becomes for the players."""

    inputs: Sample
    """what the generator gets: noise, a source image, a prefix of frames, …"""
    real: Sample
    """what the discriminator compares with"""
    cond: Tensor | None = None
    """what both are told: class labels `[N]`, attributes `[N, A]`, a source image; or None"""


@dataclass(frozen=True)
class Game:
    """Players are modules: `generator(inputs, cond) -> sample`, `discriminator(sample, cond) -> logits or
    DiscriminatorOutput`."""

    generator: nn.Module
    discriminator: nn.Module
    deal: Callable[[Batch], Deal]
    latent: Callable[[Noise, float | None], Sample] | None
    """`(noise, truncation) -> inputs` for sampling when there is no batch; None where there must be a source"""
    classes: int = 0
    """how many class labels `cond` chooses from; 0 where both players are told none"""
    attributes: int = 0
    """how many numbers `cond` holds for each example; 0 where both players are told none"""
    terms: tuple[Term, ...] = ()
    progress: Callable[[nn.Module, float], None] | None = None
    """`(player or averaged generator, kimg)`, called before each step: for networks that grow"""
    view: View | None = None
    """augmentation between samples and discriminator"""
    group: int = 1
    """how many neighbouring examples some layer or term takes together: a share of a batch holds whole groups"""


@dataclass(frozen=True)
class Round:
    """One player's turn on one batch, as extra terms see it."""

    game: Game
    deal: Deal
    noise: Noise
    real: Sample
    fake: Sample
    real_logits: Tensor | None
    """None in a generator's turn whose loss does not compare with reals"""
    fake_logits: Tensor
    real_features: Tensor | None = None
    """None unless the discriminator returns them (and in a generator's turn, unless the loss compares with reals)"""
    fake_features: Tensor | None = None

    def discriminate(self, sample: Sample) -> DiscriminatorOutput:
        """The verdict on another sample, seen in the same way under the same condition."""
        return discriminate(self.game, sample, self.deal.cond, self.noise)


def discriminate(
    game: Game,
    sample: Sample,
    cond: Tensor | None,
    noise: Noise,
    discriminator: Callable[..., Tensor | DiscriminatorOutput] | None = None,
) -> DiscriminatorOutput:
    """The discriminator's verdict on a sample as it sees it; `discriminator` is its compiled form, if wanted."""
    seen = sample if game.view is None else game.view(sample, noise)
    verdict = (game.discriminator if discriminator is None else discriminator)(seen, cond)
    return verdict if isinstance(verdict, DiscriminatorOutput) else DiscriminatorOutput(verdict)


@dataclass(frozen=True)
class Term:
    """An extra loss `fn(round) -> [N]` of one player. Paid every k-th turn it is weighted k times (lazily:
    Karras et al. 2020, appendix B). `fn` may be a module with running means in buffers: checkpoints keep them."""

    name: str
    player: Player
    fn: Callable[[Round], Tensor]
    weight: float | Schedule = 1.0
    every: int = 1
    slopes: bool = True
    """whether a discriminator's term needs gradients with respect to the samples"""


@dataclass
class Learner:
    """A player's module with what moves it."""

    module: nn.Module
    optimizer: torch.optim.Optimizer
    lr: float | Schedule
    beta2: float | Schedule | None = None
    """Adam's second; None leaves it as it is"""
    lr_scale: float = 1.0
    """what the learning rate is multiplied by, once training had to go back"""
    clip_norm: float | None = None
    average_gradients: Callable[[list[Tensor]], None] | None = None
    """replaces gradients by their mean over ranks, in place"""
    compiled: Callable[..., Any] | None = None
    """the module compiled, where that is wanted; called like the module"""
    parameters: list[nn.Parameter] = field(init=False)

    def __post_init__(self) -> None:
        self.parameters = [p for p in self.module.parameters() if p.requires_grad]

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Inside, backward passes through the module spend nothing on its own gradients."""
        for p in self.parameters:
            p.requires_grad_(False)
        yield
        for p in self.parameters:
            p.requires_grad_(True)

    def step(self, kimg: float) -> Tensor:
        """Move by the gradients that have been gathered. Returns their norm over all ranks, before clipping."""
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        if self.average_gradients is not None:
            self.average_gradients(gradients)
        norm = nn.utils.get_total_norm(gradients)
        if self.clip_norm is not None:
            nn.utils.clip_grads_with_norm_(self.parameters, self.clip_norm, norm)
        for group in self.optimizer.param_groups:
            group["lr"] = value(self.lr, kimg) * self.lr_scale
            if self.beta2 is not None:
                group["betas"] = (group["betas"][0], value(self.beta2, kimg))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm


def adversarial_step(
    game: Game,
    loss: Loss,
    generator: Learner,
    discriminator: Learner,
    turns: Sequence[Sequence[Batch]],
    *,
    step: int,
    kimg: float,
    top_k: float = 1.0,
    generator_plays: bool = True,
    autocast: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext,
) -> dict[str, Tensor]:
    """One turn of the discriminator for each of `turns`, each given in microbatches, then one of the generator.

    The generator answers the last deal: its fakes are those that the discriminator has just been shown, so they
    are made once where memory holds the graph (one microbatch). It learns from the share `top_k` of its fakes that
    the discriminator likes best (Sinha et al. 2020), and not at all unless it plays. Returns statistics as scalar
    tensors, not yet averaged over ranks.
    """
    stats: dict[str, Tensor] = {}

    def note(name: str, amount: Tensor, share: float = 1.0) -> None:
        amount = amount.detach() * share
        stats[name] = stats[name] + amount if name in stats else amount

    def due(player: Player, turn: int) -> list[Term]:
        return [t for t in game.terms if t.player == player and turn % t.every == 0]

    def pay(name: Player, terms: list[Term], round: Round, total: Tensor, share: float) -> None:
        note(f"loss/{name}", total, share)
        for term in terms:
            cost = term.fn(round).mean()
            total = total + cost * (value(term.weight, kimg) * term.every)
            note(f"loss/{name}/{term.name}", cost, share)
        (total * share).backward()

    if game.progress is not None:
        for module in (generator.module, discriminator.module):
            game.progress(module, kimg)
    generate = game.generator if generator.compiled is None else generator.compiled
    quick = game.discriminator if discriminator.compiled is None else discriminator.compiled
    made: list[tuple[Deal, Batch, Sample | None]] = []
    for index, microbatches in enumerate(turns):
        terms = due("discriminator", step * len(turns) + index)
        slopes = any(term.slopes for term in terms)
        # compiled graphs cannot be differentiated twice, as penalties need
        sharp = game.discriminator if slopes else quick
        share = 1.0 / len(microbatches)
        keep_graph = generator_plays and index == len(turns) - 1 and len(microbatches) == 1
        made = []
        for batch in microbatches:
            deal = game.deal(batch)
            with autocast():
                with torch.set_grad_enabled(keep_graph):
                    fake = generate(deal.inputs, deal.cond)
                real, shown = _cut(deal.real, slopes), _cut(fake, slopes)
                of_real = discriminate(game, real, deal.cond, batch.noise, sharp)
                of_fake = discriminate(game, shown, deal.cond, batch.noise, sharp)
                round = Round(
                    game,
                    deal,
                    batch.noise,
                    real,
                    shown,
                    of_real.logits,
                    of_fake.logits,
                    of_real.features,
                    of_fake.features,
                )
                main = loss.discriminator(of_real.logits, of_fake.logits).mean()
                pay("discriminator", terms, round, main, share)
            share_of_turn = share / len(turns)
            for name, signs in zip(("real", "fake"), loss.signs(of_real.logits, of_fake.logits), strict=True):
                note(f"sign/{name}", signs.mean(), share_of_turn)
            note("logit/gap", of_real.logits.mean() - of_fake.logits.mean(), share_of_turn)
            made.append((deal, batch, fake if keep_graph else None))
        note("gradient/discriminator", discriminator.step(kimg), 1.0 / len(turns))
    if not generator_plays:
        return stats

    terms = due("generator", step)
    share = 1.0 / len(made)
    with discriminator.frozen():
        for deal, batch, kept in made:
            with autocast():
                fake = generate(deal.inputs, deal.cond) if kept is None else kept
                seen: DiscriminatorOutput | None = None
                if loss.paired:
                    with torch.no_grad():
                        seen = discriminate(game, deal.real, deal.cond, batch.noise, quick)
                of_fake = discriminate(game, fake, deal.cond, batch.noise, quick)
                round = Round(
                    game,
                    deal,
                    batch.noise,
                    deal.real,
                    fake,
                    seen and seen.logits,
                    of_fake.logits,
                    seen and seen.features,
                    of_fake.features,
                )
                costs = loss.generator(of_fake.logits, round.real_logits)
                main = costs.mean() if top_k >= 1.0 else _of_best(costs, of_fake.logits, top_k)
                pay("generator", terms, round, main, share)
    note("gradient/generator", generator.step(kimg))
    return stats


def _of_best(costs: Tensor, logits: Tensor, share: float) -> Tensor:
    """Mean cost of the share of fakes, of all ranks, with the highest logits. Sinha et al. 2020, algorithm 1."""
    likes = logits.detach().flatten(1).mean(1) if logits.dim() > 1 else logits.detach()
    everyones = distributed.all_gather(likes)
    kept = max(1, math.ceil(share * len(everyones)))
    least = everyones.topk(kept).values[-1]
    chosen = (likes >= least).to(costs).view(-1, *[1] * (costs.dim() - 1))
    return (costs * chosen).mean() * (len(everyones) / kept)
