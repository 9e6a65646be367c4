"""A GAN is a game: two players, what each is dealt, and the extra terms each pays.

A family is a `Game`, data rather than a class. `turns_of` lists the turns of a step and `play` plays them: the
only training step of the project; no family's name appears in it.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from ganlib import distributed
from ganlib.convolution import differentiated_twice
from ganlib.device import is_accelerator
from ganlib.losses import Loss
from ganlib.noise import Noise
from ganlib.pool import Pool
from ganlib.schedules import Schedule, value

__all__ = [
    "OPTIMIZERS",
    "Augmentation",
    "Batch",
    "Deal",
    "DiscriminatorOutput",
    "Fit",
    "Game",
    "Learner",
    "Player",
    "Round",
    "Sample",
    "Stats",
    "Term",
    "Turn",
    "adversarial_step",
    "discriminate",
    "due_terms",
    "fit_step",
    "map_tensors",
    "period",
    "play",
    "sample_of",
    "tensors_of",
    "turns_of",
]

Sample = Tensor | dict[str, Tensor]
"""What is generated and judged: a batch of tensors, or several under names (unpaired domains, table parts)."""
Player = Literal["generator", "discriminator"]
Augmentation = Callable[[Sample, Noise], Sample]
"""what the discriminator sees in a sample's place; must be twice differentiable"""


class DiscriminatorOutput(NamedTuple):
    """The output of a discriminator; one without features may return the logits alone."""

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


def sample_of(made: Sample) -> Tensor:
    """What is made, where a generator returns more than that: the tensor called `"sample"`, or the only one."""
    return made["sample"] if isinstance(made, dict) else made


@dataclass(frozen=True)
class Batch:
    """Real data and the randomness that goes with it."""

    data: dict[str, Tensor]
    noise: Noise
    training: bool = True
    """False for a deal that is shown or measured: without jitter and flips"""


@dataclass(frozen=True)
class Deal:
    """The inputs of both players, made of one batch."""

    inputs: Sample
    """the generator's inputs: noise, a source image, a prefix of frames, …"""
    real: Sample
    """real samples, for the discriminator"""
    cond: Tensor | None = None
    """what both are conditioned on: class labels `[N]`, attributes `[N, A]`, a source image; or None"""


@dataclass(frozen=True)
class Fit:
    """A phase of training in which one module learns alone, before the game or after it: likelihood first, an encoder
    for a finished generator. Its budget and optimiser are `fits.NAME` of the model's file in `params/models`."""

    name: str
    module: str
    """`"generator"`, `"discriminator"`, or one of the game's `others`"""
    loss: Callable[[Game, Batch], Tensor]
    """`(game, batch) -> [N]`; after the game, the game's generator is the moving average"""


@dataclass(frozen=True)
class Game:
    """Players are modules: `generator(inputs, cond) -> sample`, `discriminator(sample, cond) -> logits or
    DiscriminatorOutput`."""

    generator: nn.Module
    discriminator: nn.Module
    deal: Callable[[Batch], Deal]
    ask: Callable[[Mapping[str, Tensor], Noise, float | None], Sample]
    """`(given parts, noise, truncation) -> inputs`, for sampling when there is no batch"""
    ask_known: Callable[[Tensor, Noise], Sample] | None = None
    """`(known, noise) -> inputs`, as `ask`, for samples with known numbers, `[*shape]`, NaN where unknown: inputs whose
    samples are likely to have these. None: `ask` is used"""
    classes: int = 0
    """how many class labels `cond` chooses from; 0 where the game is not conditional on it"""
    attributes: int = 0
    """how many numbers `cond` holds for each example; 0 where the game is not conditional on it"""
    terms: tuple[Term, ...] = ()
    progress: Callable[[nn.Module, float], None] | None = None
    """`(a player or the EMA generator, kimg)`, called before each step: for networks that grow"""
    augmentation: Augmentation | None = None
    """between samples and discriminator"""
    group: int = 1
    """how many neighbouring examples some layer or term takes together: a share of a batch holds whole groups"""
    margin: int | None = None
    """of a generator that takes given parts of any size: on how much around a place of these its samples depend there,
    at most; it takes parts of these that start at multiples of it. None: it takes the spec's sizes"""
    weights: Callable[[Mapping[str, Tensor]], Tensor] | None = None
    """`(parts) -> [N]`: how often, relative to one another, training examples, as networks see them, are drawn; None:
    each once an epoch. It may depend on nothing but the example"""
    others: Mapping[str, nn.Module] = field(default_factory=dict)
    """further modules, which learn in a fit"""
    pool: Pool | None = None
    """of past fakes, some shown to the discriminator in place of new ones; None: it is shown the new ones"""
    before: tuple[Fit, ...] = ()
    """fits that run before the game, in order"""
    after: tuple[Fit, ...] = ()
    """fits that run after it, in order; the game's generator is then the EMA"""
    answers: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] | None = None
    """`(parts) -> {name: [N], [N, K] or [N, *shape]}`: what the trained game says of examples, as a score, a class or a
    likelihood; of a sample's shape, something to be looked at next to the example, such as a reconstruction. In
    a conditional game `parts` may also hold `label` or `attributes`. Discriminator and `others` are exported too, where
    a game has answers"""

    @property
    def modules(self) -> dict[str, nn.Module]:
        """All modules by name."""
        return {"generator": self.generator, **self.modules_besides_generator}

    @property
    def modules_besides_generator(self) -> dict[str, nn.Module]:
        return {"discriminator": self.discriminator, **self.others}


@dataclass(frozen=True)
class Round:
    """One player's turn on one batch, as extra terms see it."""

    game: Game
    deal: Deal
    batch: Batch
    """its data include labels and attributes even if the game is unconditional; its noise is that of the turn"""
    real: Sample
    fake: Sample
    real_logits: Tensor | None
    """None in a generator's turn whose loss does not compare with reals"""
    fake_logits: Tensor
    real_features: Tensor | None = None
    """None unless the discriminator returns them (and in a generator's turn, unless the loss compares with reals)"""
    fake_features: Tensor | None = None

    @property
    def noise(self) -> Noise:
        """The turn's randomness."""
        return self.batch.noise

    def discriminate(self, sample: Sample) -> DiscriminatorOutput:
        """The discriminator's output for another sample, augmented in the same way, under the same condition."""
        return discriminate(self.game, sample, self.deal.cond, self.noise)


def discriminate(
    game: Game,
    sample: Sample,
    cond: Tensor | None,
    noise: Noise,
    discriminator: Callable[..., Tensor | DiscriminatorOutput] | None = None,
) -> DiscriminatorOutput:
    """The output for a sample after augmentation; `discriminator` is the compiled form of the game's, if any."""
    seen = sample if game.augmentation is None else game.augmentation(sample, noise)
    output = (game.discriminator if discriminator is None else discriminator)(seen, cond)
    logits, features = output if isinstance(output, DiscriminatorOutput) else (output, None)
    return DiscriminatorOutput(_at_least_float32(logits), features)


@dataclass(frozen=True)
class Term:
    """An auxiliary loss `fn(round) -> [N]` of one player. Applied every k-th turn it is weighted k times (lazily:
    Karras et al. 2020, appendix B). `fn` may be a module with running means in buffers: checkpoints keep them."""

    name: str
    player: Player
    fn: Callable[[Round], Tensor]
    weight: float | Schedule = 1.0
    every: int = 1
    needs_input_grad: bool = True
    """whether a discriminator's term needs gradients with respect to the samples"""


OPTIMIZERS: dict[str, type[torch.optim.Adam | torch.optim.AdamW]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}
"""by the names of a model's file"""


@dataclass
class Learner:
    """A player's module and its optimiser."""

    module: nn.Module
    optimizer: torch.optim.Optimizer
    lr: float | Schedule
    beta2: float | Schedule | None = None
    """Adam's second; None leaves it as it is"""
    lr_scale: float = 1.0
    """what the learning rate is multiplied by after rollbacks"""
    clip_norm: float | None = None
    average_gradients: Callable[[list[Tensor]], None] | None = None
    """replaces gradients by their mean over ranks, in place"""
    compiled: Callable[..., Any] | None = None
    """the module compiled, where `train.compile` asks for it; called like the module"""
    parameters: list[nn.Parameter] = field(init=False)

    def __post_init__(self) -> None:
        self.parameters = [p for p in self.module.parameters() if p.requires_grad]

    @property
    def forward(self) -> Callable[..., Any]:
        """The module, compiled where it is."""
        return self.module if self.compiled is None else self.compiled

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Inside, backward passes through the module spend nothing on its own gradients."""
        for p in self.parameters:
            p.requires_grad_(False)
        try:
            yield
        finally:
            for p in self.parameters:
                p.requires_grad_(True)

    def step(self, kimg: float) -> Tensor:
        """Update by the accumulated gradients. Returns their norm over all ranks, before clipping."""
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


Stats = dict[str, Tensor]
"""statistics by name, scalars on the device"""


@dataclass(frozen=True)
class Turn:
    """What one player does in a step before its optimiser moves it."""

    player: Player
    learner: Learner
    play: Callable[[], Stats]
    """leaves gradients in the learner's parameters"""


def adversarial_step(
    game: Game,
    loss: Loss,
    generator: Learner,
    discriminator: Learner,
    batches: Sequence[Sequence[Batch]],
    *,
    step: int,
    kimg: float,
    **options: Any,
) -> Stats:
    """One training step: see `turns_of`, whose options these are, and `play`."""
    return play(turns_of(game, loss, generator, discriminator, batches, step=step, kimg=kimg, **options), kimg)


def play(turns: Iterable[Turn], kimg: float) -> Stats:
    """Play one turn after the other. Returns statistics, means over microbatches and turns, not yet over ranks."""
    return _mean_of_turns([{**turn.play(), f"gradient/{turn.player}": turn.learner.step(kimg)} for turn in turns])


def fit_step(
    game: Game,
    fit: Fit,
    learner: Learner,
    microbatches: Sequence[Batch],
    *,
    kimg: float,
    autocast: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext,
) -> Stats:
    """One step in which the learner's module learns alone; `kimg` are those of this fit."""
    stats = _Mean(len(microbatches))
    for batch in microbatches:
        with autocast():
            loss = fit.loss(game, batch).mean()
        _backward(learner, loss * stats.share, last=batch is microbatches[-1])
        stats.add(f"loss/{fit.name}", loss)
    return {**stats.means, f"gradient/{fit.name}": learner.step(kimg)}


def due_terms(game: Game, player: Player, turn: int) -> list[Term]:
    """The player's terms that apply in this turn of its own, counted from 0."""
    return [term for term in game.terms if term.player == player and turn % term.every == 0]


def period(game: Game, discriminator_steps: int) -> int:
    """The number of steps after which the same terms are due again."""
    turns = {"generator": 1, "discriminator": discriminator_steps}  # in one step
    return math.lcm(*(term.every // math.gcd(term.every, turns[term.player]) for term in game.terms))


def turns_of(
    game: Game,
    loss: Loss,
    generator: Learner,
    discriminator: Learner,
    batches: Sequence[Sequence[Batch]],
    *,
    step: int,
    kimg: float,
    clock: Tensor | None = None,
    top_k: float | Schedule = 1.0,
    generator_plays: bool = True,
    autocast: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext,
) -> list[Turn]:
    """A turn of the discriminator for each of `batches`, each given in microbatches, then one of the generator.

    The generator answers the last deal: its fakes are those that the discriminator has just been shown, so they
    are made once where memory holds the graph: see `_Step.discriminator_turn`. It learns from the share `top_k` of its
    fakes that the discriminator likes best (Sinha et al. 2020), and not at all unless it plays. `clock` is `kimg` on
    the device, a float64 scalar: scheduled weights are computed from it there. Turns read no tensor on the host, so
    that a device which works asynchronously is never waited for.
    """
    if game.progress is not None:
        for module in (generator.module, discriminator.module):
            game.progress(module, kimg)
    time = torch.tensor(kimg, dtype=torch.float64) if clock is None else clock
    shared = _Step(game, loss, generator, discriminator, time, top_k, autocast)
    turns = []
    for index, microbatches in enumerate(batches):
        terms = due_terms(game, "discriminator", step * len(batches) + index)
        answered = generator_plays and index == len(batches) - 1
        turn = partial(shared.discriminator_turn, microbatches, terms, answered=answered)
        turns.append(Turn("discriminator", discriminator, turn))
    if generator_plays:
        turns.append(Turn("generator", generator, partial(shared.generator_turn, due_terms(game, "generator", step))))
    return turns


class _Answer(NamedTuple):
    """A microbatch after the discriminator's turn, which the generator's turn goes on with."""

    batch: Batch
    deal: Deal
    fake: Sample | None
    """with its autograd graph; None where the generator has to make its fakes again"""


@dataclass
class _Step:
    """What the turns of one step share."""

    game: Game
    loss: Loss
    generator: Learner
    discriminator: Learner
    clock: Tensor
    top_k: float | Schedule
    autocast: Callable[[], contextlib.AbstractContextManager[object]]
    answers: list[_Answer] = field(default_factory=list)
    """of the discriminator's last turn"""

    def discriminator_turn(self, microbatches: Sequence[Batch], terms: Sequence[Term], *, answered: bool) -> Stats:
        """Tell reals from fakes, to which the generator's turn answers or not.

        If it does, the fakes keep the generator's autograd graph, or are made again there: for several microbatches,
        and on a GPU while its memory is filled by second derivatives.
        """
        needs_input_grad = any(term.needs_input_grad for term in terms)
        crowded = len(microbatches) > 1 or (needs_input_grad and is_accelerator(self.clock.device))
        keep_graph, made_again = answered and not crowded, answered and crowded
        # a compiled graph cannot be differentiated twice, as penalties need
        network = self.discriminator.module if needs_input_grad else self.discriminator.forward
        self.answers, stats = [], _Mean(len(microbatches))
        for batch in microbatches:
            deal, noise = self.game.deal(batch), batch.noise
            with self.autocast():
                with torch.set_grad_enabled(keep_graph), _same_buffers(self.generator.module, afterwards=made_again):
                    fake = self._fake(deal)
                past = fake if self.game.pool is None else self.game.pool(map_tensors(Tensor.detach, fake), noise)
                with differentiated_twice(needs_input_grad):
                    real, shown = (_detached(sample, needs_input_grad) for sample in (deal.real, past))
                    of_real, of_fake = (discriminate(self.game, x, deal.cond, noise, network) for x in (real, shown))
                    round = _round(self.game, deal, batch, real, shown, of_real, of_fake)
                    main = self.loss.discriminator(of_real.logits, of_fake.logits).mean()
                    total = self._total("discriminator", main, terms, round, stats)
            _backward(self.discriminator, total * stats.share, last=batch is microbatches[-1])
            signs = self.loss.signs(of_real.logits, of_fake.logits)
            stats.add("sign/real", signs[0].mean())
            stats.add("sign/fake", signs[1].mean())
            stats.add("logit/gap", of_real.logits.mean() - of_fake.logits.mean())
            self.answers.append(_Answer(batch, deal, fake if keep_graph else None))
        return stats.means

    def generator_turn(self, terms: Sequence[Term]) -> Stats:
        """Make fakes that look real, for the deals of the discriminator's last turn."""
        stats, network = _Mean(len(self.answers)), self.discriminator.forward
        with self.discriminator.frozen():
            for batch, deal, kept in self.answers:
                noise = batch.noise.fork("generator")  # independent of what the discriminator's terms drew
                with self.autocast():
                    fake = self._fake(deal) if kept is None else kept
                    of_real: DiscriminatorOutput | None = None
                    if self.loss.paired:
                        with torch.no_grad():
                            of_real = discriminate(self.game, deal.real, deal.cond, noise, network)
                    of_fake = discriminate(self.game, fake, deal.cond, noise, network)
                    round = _round(self.game, deal, replace(batch, noise=noise), deal.real, fake, of_real, of_fake)
                    losses = self.loss.generator(of_fake.logits, round.real_logits)
                    main = losses.mean()
                    if self.top_k != 1.0:
                        main = _mean_of_best(losses, of_fake.logits, value(self.top_k, self.clock))
                    total = self._total("generator", main, terms, round, stats)
                _backward(self.generator, total * stats.share, last=batch is self.answers[-1].batch)
        return stats.means

    def _fake(self, deal: Deal) -> Sample:
        # also under autocast: penalties take gradients with respect to samples, which have the samples' precision
        return map_tensors(_at_least_float32, self.generator.forward(deal.inputs, deal.cond))

    def _total(self, player: Player, main: Tensor, terms: Iterable[Term], round: Round, stats: _Mean) -> Tensor:
        """The main loss and the weighted terms of a microbatch, a scalar."""
        stats.add(f"loss/{player}", main)
        total = main
        for term in terms:
            cost, weight = term.fn(round).mean(), value(term.weight, self.clock) * term.every
            total = total + cost * (weight.to(cost.dtype) if isinstance(weight, Tensor) else weight)
            stats.add(f"loss/{player}/{term.name}", cost)
        return total


@contextlib.contextmanager
def _same_buffers(module: nn.Module, *, afterwards: bool) -> Iterator[None]:
    """If `afterwards`, what a forward pass inside has moved is put back, such as running means: it will be repeated."""
    kept = [(buffer, buffer.clone()) for buffer in module.buffers()] if afterwards else []
    yield
    with torch.no_grad():
        for buffer, before in kept:
            buffer.copy_(before)


def _backward(learner: Learner, loss: Tensor, *, last: bool) -> None:
    """Accumulate gradients in the learner's parameters alone; the `last` pass of a turn completes them.

    Outside of autocast, or gradients of layers that compute in float32 would be rounded.
    """
    with distributed.during_last_backward(learner.average_gradients if last else None):
        loss.backward(inputs=learner.parameters)


class _Mean:
    """Means of statistics over a turn's microbatches."""

    def __init__(self, microbatches: int):
        self.share, self.means = 1.0 / microbatches, Stats()

    def add(self, name: str, amount: Tensor) -> None:
        amount = amount.detach() * self.share
        self.means[name] = self.means[name] + amount if name in self.means else amount


def _mean_of_turns(found: Sequence[Stats]) -> Stats:
    """Of each statistic, over the turns that had it."""
    names = {name: None for stats in found for name in stats}
    parts = {name: [stats[name] for stats in found if name in stats] for name in names}
    return {name: part[0] if len(part) == 1 else torch.stack(part).mean() for name, part in parts.items()}


def _round(
    game: Game,
    deal: Deal,
    batch: Batch,
    real: Sample,
    fake: Sample,
    of_real: DiscriminatorOutput | None,
    of_fake: DiscriminatorOutput,
) -> Round:
    real_logits, real_features = of_real or (None, None)
    return Round(game, deal, batch, real, fake, real_logits, of_fake.logits, real_features, of_fake.features)


def _at_least_float32(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _detached(sample: Sample, needs_grad: bool) -> Sample:
    """The sample cut from its graph; with gradients of its own where penalties ask for them and numbers are floats."""
    return map_tensors(lambda x: x.detach().requires_grad_(needs_grad and x.is_floating_point()), sample)


def _mean_of_best(losses: Tensor, logits: Tensor, share: float | Tensor) -> Tensor:
    """Mean loss of the share of fakes, of all ranks, with the highest logits. Sinha et al. 2020, algorithm 1."""
    scores = logits.detach().flatten(1).mean(1) if logits.dim() > 1 else logits.detach()
    all_scores = distributed.all_gather(scores)
    number = all_scores.new_full((1,), len(all_scores), dtype=torch.float64)
    chosen = (share * number).ceil().clamp_min(1.0)
    least = all_scores.sort(descending=True).values.index_select(0, chosen.long() - 1)
    mask = (scores >= least).to(losses).view(-1, *[1] * (losses.dim() - 1))
    return (losses * mask).mean() * (number / chosen).squeeze(0).to(losses.dtype)
