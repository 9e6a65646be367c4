"""RelGAN: a recurrent generator with relational memory, fitted by likelihood first. Nie, Narodytska & Patel 2019.

The generator writes a line token by token. In the fit `likelihood` it learns to predict the next token of real lines;
in the game it is given its own. A token is chosen by the Gumbel-max trick, and its gradient is that of the
Gumbel-softmax at a temperature that may fall as the game goes on (straight-through: Jang, Gu & Poole 2017; the paper's
softmax is not rounded). As in the paper, that gradient reaches earlier tokens through the memory, not through what was
fed back.

The discriminator embeds a line several times, convolves it, and gives a logit for each embedding. In the paper the
generator forgets the likelihood in the game; here a share of it may stay (`likelihood_weight`), which keeps the
generator's own estimate of a line, `answers`, worth asking.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from ganlib import noise as noises
from ganlib._config import Config as _Config
from ganlib.data._spec import Spec
from ganlib.game import Batch, Deal, DiscriminatorOutput, Fit, Game, Round, Sample, Term
from ganlib.models._conditioning import Condition, Conditioning, Embedding, Head, concat_condition, condition_of
from ganlib.noise import Noise
from ganlib.schedules import Schedule, value

__all__ = ["MODALITY", "Config", "build"]

MODALITY = "sequence"

_END = 0  # the token that ends a line and pads it
_WINDOWS = (2, 3, 4, 5)  # tokens that a filter of the discriminator looks at


class Config(_Config):
    family: Literal["relgan"] = "relgan"
    core: Literal["relational", "gru"] = "relational"
    """of the generator: the paper's relational memory, or a gated recurrent unit, for comparison"""
    embedding: PositiveInt = 64
    """numbers a token, in the generator"""
    width: PositiveInt = 256
    """numbers in each slot of the memory, or units of the GRU"""
    slots: PositiveInt = 1
    heads: PositiveInt = 2
    """of the memory's attention; they divide the width"""
    temperature: PositiveFloat | Schedule = 0.5
    """of the Gumbel-softmax whose gradient a chosen token has; the paper's goes from 1 to 0.01 or 0.001"""
    likelihood_weight: NonNegativeFloat = 1.0
    """in the game, of the negative log-likelihood of the batch's lines, over the length of the longest"""
    representations: PositiveInt = 8
    """embeddings of a line in the discriminator; the paper has 64"""
    discriminator_embedding: PositiveInt = 16
    """numbers a token in each of these"""
    discriminator_width: PositiveInt = 64
    """filters of each window; the paper has 300"""
    conditioning: Conditioning = "auto"
    conditioning_weight: NonNegativeFloat = 1.0

    @model_validator(mode="after")
    def _heads_divide(self) -> Config:
        if self.width % self.heads:
            raise ValueError(f"heads: expected a divisor of width, {self.width}, found {self.heads}")
        return self


def build(cfg: Config, spec: Spec) -> Game:
    """Raises ValueError for a condition that the data do not have."""
    condition = condition_of(cfg.conditioning, spec, auto="projection")
    length, tokens = spec.shape
    generator = _Generator(cfg, length, tokens, condition)
    discriminator = _Discriminator(cfg, tokens, condition)
    terms = discriminator.head.terms()
    if cfg.likelihood_weight:
        terms += (Term("likelihood", "generator", _likelihood_of_round, cfg.likelihood_weight),)
    scheduled = isinstance(cfg.temperature, Schedule)
    return Game(
        generator,
        discriminator,
        deal=lambda batch: Deal(_inputs(batch.noise), batch.data["sample"], condition.cond(batch)),
        ask=lambda given, noise, truncation: _inputs(noise, truncation),
        classes=condition.classes,
        attributes=condition.attributes,
        terms=terms,
        progress=(lambda module, kimg: _anneal(cfg, module, kimg)) if scheduled else None,
        before=(Fit("likelihood", "generator", lambda game, batch: _nll_of_batch(game, batch, condition)),),
        answers=lambda parts: _answers(generator, condition, parts),
    )


def _inputs(noise: Noise, truncation: float | None = None) -> Sample:
    """Keys of the noise, int64 `[N]`, and the temperature `[N]` at which tokens are drawn, `truncation`: less variety
    below 1, more above."""
    keys = noise.row_keys
    return {"keys": keys, "temperature": torch.full(keys.shape, truncation or 1.0, device=keys.device)}


def _anneal(cfg: Config, module: nn.Module, kimg: float) -> None:
    if isinstance(module, _Generator):
        module.softness = float(value(cfg.temperature, kimg))


def _nll_of_batch(game: Game, batch: Batch, condition: Condition) -> Tensor:
    assert isinstance(game.generator, _Generator)
    return game.generator.nll(batch.data["sample"], condition.cond(batch))[0]


def _likelihood_of_round(round: Round) -> Tensor:
    """Nats a line, over the length of the longest."""
    assert isinstance(round.game.generator, _Generator)
    assert isinstance(round.deal.real, Tensor)
    return round.game.generator.nll(round.deal.real, round.deal.cond)[0] / round.game.generator.length


def _answers(generator: _Generator, condition: Condition, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`nll`, −log p(line) in nats, `[N]`, and `nll_per_token`, the same over the line's tokens, its end included.

    Without `parts["label"]`, a class-conditional model's p is the mean over the classes; without `parts["attributes"]`,
    all attributes are 0.
    """
    lines = parts["sample"]
    if condition.classes and "label" not in parts:
        each = [
            generator.nll(lines, lines.new_full((len(lines),), k, dtype=torch.long)) for k in range(condition.classes)
        ]
        nll, tokens = math.log(condition.classes) - (-torch.stack([n for n, _ in each])).logsumexp(0), each[0][1]
    else:
        cond = parts["label"] if condition.classes else None
        if condition.attributes:
            cond = parts.get("attributes", lines.new_zeros(len(lines), condition.attributes))
        nll, tokens = generator.nll(lines, cond)
    return {"nll": nll, "nll_per_token": nll / tokens}


class _Memory(nn.Module):
    """Slots that attend to themselves and to what comes in, with gates: Santoro et al. 2018, eq. 2 to 9.

    What depends on the inputs alone is computed for all steps at once.
    """

    def __init__(self, cfg: Config):
        super().__init__()
        width = cfg.width
        self.slots, self.heads, self.width = cfg.slots, cfg.heads, width
        self.inward = nn.Linear(cfg.embedding, width)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.first_norm, self.second_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.gates_of_input = nn.Linear(width, 2 * width)
        self.gates_of_memory = nn.Linear(width, 2 * width, bias=False)
        with torch.no_grad():
            self.gates_of_input.bias[:width] = 1.0  # forget little at first
        self.start = nn.Parameter(torch.eye(cfg.slots, width))
        self.size = cfg.slots * width

    def initial(self, n: int) -> Tensor:
        return self.start.expand(n, -1, -1)

    def forward(self, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs `[N, T, E]` and memory `[N, S, D]` → outputs `[N, T, S·D]` and the memory after them."""
        inward = self.inward(x)
        of_input = zip(self.key_value(inward).unbind(1), self.gates_of_input(inward).unbind(1), strict=True)
        outputs = []
        for key_value, gates in of_input:
            memory = self._step(memory, key_value, gates)
            outputs.append(memory.flatten(1))
        return torch.stack(outputs, 1), memory

    def _step(self, memory: Tensor, key_value: Tensor, gates: Tensor) -> Tensor:
        n = memory.shape[0]
        seen = torch.cat([self.key_value(memory), key_value[:, None]], 1)  # [N, S + 1, 2 D]
        key, content = seen.view(n, self.slots + 1, 2, self.heads, -1).permute(2, 0, 3, 1, 4)  # [N, H, S + 1, D / H]
        query = self.query(memory).view(n, self.slots, self.heads, -1).transpose(1, 2)
        attention = (query @ key.transpose(2, 3) / math.sqrt(self.width / self.heads)).softmax(3)
        attended = (attention @ content).transpose(1, 2).flatten(2)
        updated = self.first_norm(memory + attended)
        updated = self.second_norm(updated + self.mlp(updated))
        keep, let_in = (gates[:, None] + self.gates_of_memory(memory.tanh())).sigmoid().chunk(2, 2)
        written: Tensor = keep * memory + let_in * updated.tanh()
        return written


class _Gru(nn.Module):
    def __init__(self, cfg: Config):
        super().__init__()
        self.gru = nn.GRU(cfg.embedding, cfg.width, batch_first=True)
        self.size = cfg.width

    def initial(self, n: int) -> Tensor:
        return next(self.gru.parameters()).new_zeros(1, n, self.size)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        found: tuple[Tensor, Tensor] = self.gru(x, state)
        return found


class _Generator(nn.Module):
    """The condition, if any, is added to the embedding of each token that is read."""

    def __init__(self, cfg: Config, length: int, tokens: int, condition: Condition):
        super().__init__()
        self.length, self.tokens = length, tokens
        self.embedding = nn.Embedding(tokens, cfg.embedding)
        self.condition = Embedding(condition, cfg.embedding) if condition.size else None
        self.core: _Memory | _Gru = _Memory(cfg) if cfg.core == "relational" else _Gru(cfg)
        self.logits = nn.Linear(self.core.size, tokens)
        self.softness = float(value(cfg.temperature, 0.0))
        """temperature of the gradient"""

    def forward(self, inputs: Mapping[str, Tensor], cond: Tensor | None = None) -> Tensor:
        """Keys and temperatures `[N]`, and a condition → lines, one-hot `[N, L, V]`."""
        keys, temperature = inputs["keys"], inputs["temperature"][:, None]
        n, embedded = keys.shape[0], self._embed_condition(cond)  # len() would fix the size in an exported graph
        state, lines = self.core.initial(n), []
        output: Tensor
        token = torch.full((n,), _END, device=keys.device)
        open_ = torch.ones(n, 1, dtype=torch.bool, device=keys.device)
        for place in range(self.length):
            output, state = self.core((self.embedding(token) + embedded)[:, None], state)
            scores = self.logits(output[:, 0]).float() / temperature
            uniform = noises.uniform(keys, place * self.tokens, self.tokens)
            scores = scores - (-uniform.clamp_min(2.0**-25).log()).log()  # and Gumbel's noise
            token = torch.where(open_[:, 0], scores.argmax(1), _END)
            line = (token[:, None] == torch.arange(self.tokens, device=token.device)).float()
            if torch.is_grad_enabled():
                soft = (scores / self.softness).softmax(1)
                line = torch.where(open_, line + (soft - soft.detach()), line)
            lines.append(line)
            open_ = open_ & (token != _END)[:, None]
        return torch.stack(lines, 1)

    def nll(self, lines: Tensor, cond: Tensor | None) -> tuple[Tensor, Tensor]:
        """−log p, in nats, of one-hot lines `[N, L, V]`, and of how many tokens, the end included: `[N]` each."""
        tokens = lines.argmax(2)
        before = F.pad(tokens[:, :-1], (1, 0), value=_END)
        x = self.embedding(before) + self._embed_condition(cond)[:, None]
        outputs, _ = self.core(x, self.core.initial(len(lines)))
        log_p = self.logits(outputs).float().log_softmax(2)
        # by the one-hot lines: on GPUs the gradient of a gather is not promised to be deterministic
        nll = -(log_p * (tokens[..., None] == torch.arange(self.tokens, device=tokens.device))).sum(2)
        # up to the first end
        read = F.pad((tokens != _END).long()[:, :-1], (1, 0), value=1).cumprod(1)
        return (nll * read).sum(1), read.sum(1)

    def _embed_condition(self, cond: Tensor | None) -> Tensor:
        """`[N, E]`, or zeros that are added to all."""
        if self.condition is None or cond is None:
            return self.embedding.weight.new_zeros(1, self.embedding.embedding_dim)
        embedded: Tensor = self.condition(cond)
        return embedded


class _Discriminator(nn.Module):
    """Kim 2014's convolutions over several embeddings of a line, which share their filters: Nie et al. 2019, 3.2."""

    def __init__(self, cfg: Config, tokens: int, condition: Condition):
        super().__init__()
        self.condition, self.representations = condition, cfg.representations
        self.embedding = nn.Linear(
            tokens + condition.planes, cfg.representations * cfg.discriminator_embedding, bias=False
        )
        self.windows = nn.ModuleList(
            nn.Conv1d(cfg.discriminator_embedding, cfg.discriminator_width, window, padding=window - 1)
            for window in _WINDOWS
        )
        features = cfg.discriminator_width * len(_WINDOWS)
        self.highway, self.gate = nn.Linear(features, features), nn.Linear(features, features)
        self.head = Head(condition, features, weight=cfg.conditioning_weight)

    def forward(self, lines: Tensor, cond: Tensor | None = None) -> DiscriminatorOutput:
        """Lines `[N, L, V]`, one-hot or near it, and condition → logits `[N, representations]`, features `[N, F]`."""
        n, size = len(lines), self.representations
        x = concat_condition(lines.transpose(1, 2), cond, self.condition).transpose(1, 2)
        x = self.embedding(x).unflatten(2, (size, -1)).permute(0, 2, 3, 1).flatten(0, 1)  # [N · R, E, L]
        features = torch.cat([F.leaky_relu(conv(x), 0.2).amax(2) for conv in self.windows], 1)
        gate = self.gate(features).sigmoid()
        features = gate * F.leaky_relu(self.highway(features), 0.2) + (1 - gate) * features
        each = None if cond is None else cond.repeat_interleave(size, 0)
        logits, _ = self.head(features, each)
        return DiscriminatorOutput(logits.view(n, size), features.view(n, size, -1).mean(1))
