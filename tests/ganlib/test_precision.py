"""Under bfloat16 autocast: what would lose by it stays in float32, and gradients stay close to those of float32."""

import copy
import dataclasses

import pytest
import torch
from zoo import CONDITIONED, FAMILIES, batches, game_of, spec_of

from ganlib import device as devices
from ganlib.config import TrainConfig
from ganlib.game import Learner, Term, adversarial_step, discriminate
from ganlib.losses import LOSSES
from ganlib.penalties import r1, r2
from ganlib.trainer import update_ema

CPU = torch.device("cpu")


def stepped(game, spec, mixed):
    """Gradients of both players, by plain descent of a step of length 1, and statistics."""
    game = copy.deepcopy(game)
    players = [
        Learner(m, torch.optim.SGD(m.parameters(), lr=1.0), lr=1.0) for m in (game.generator, game.discriminator)
    ]
    before = [[p.detach().clone() for p in player.parameters] for player in players]
    stats = adversarial_step(
        game,
        LOSSES["non_saturating"],
        *players,
        [batches(spec)],
        step=0,
        kimg=0.0,
        autocast=lambda: devices.autocast(CPU, mixed),
    )
    moves = [
        torch.cat([(old - new.detach()).flatten() for old, new in zip(start, player.parameters, strict=True)])
        for start, player in zip(before, players, strict=True)
    ]
    return moves, stats


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_close_to_those_of_float32(family):
    spec = spec_of(family)
    game = game_of(family, spec)
    exact, statistics = stepped(game, spec, False)
    mixed, rounded = stepped(game, spec, True)
    for one, other in zip(exact, mixed, strict=True):
        assert other.dtype == torch.float32
        assert float(torch.nn.functional.cosine_similarity(one, other, dim=0)) > 0.9
    assert {x.dtype for x in rounded.values()} == {torch.float32}
    for name, amount in statistics.items():
        assert float(rounded[name]) == pytest.approx(float(amount), rel=0.3, abs=0.05), name


@pytest.mark.parametrize("conditioning", ["projection", "auxiliary", "reacgan"])
@pytest.mark.parametrize("family", CONDITIONED)
def test_slopes_heads_and_losses_are_float32(family, conditioning):
    """Slopes are those of a float32 image; bfloat16 alters them by less than a tenth."""
    spec, found = spec_of(family), {}
    game = game_of(family, spec, conditioning=conditioning)

    def penalty(round):
        for sample, logits in ((round.real, round.real_logits), (round.fake, round.fake_logits)):
            assert sample.dtype == logits.dtype == torch.float32
        cost = r1(round) + r2(round)
        assert cost.dtype == torch.float32
        found.setdefault("cost", []).append(cost.detach().mean())
        return cost

    game = dataclasses.replace(game, terms=(*game.terms, Term("slopes", "discriminator", penalty)))
    for mixed in (False, True):
        stepped(game, spec, mixed)
    exact, rounded = map(float, found["cost"])
    assert rounded == pytest.approx(exact, rel=0.1)
    (batch,) = batches(spec)
    with devices.autocast(CPU, True):
        output = discriminate(game, batch.data["sample"], batch.data["label"], batch.noise)
    assert output.logits.dtype == output.features.dtype == torch.float32


def test_auto_is_off_on_the_cpu_and_the_average_stays_float32():
    assert TrainConfig(kimg=1.0).amp == "auto"
    assert not devices.mixed_precision(CPU, "auto")
    assert devices.mixed_precision(CPU, True)
    module = torch.nn.Linear(2, 2)
    ema = copy.deepcopy(module)
    with devices.autocast(CPU, True):
        update_ema(ema, module, 0.5)
    assert {p.dtype for p in ema.parameters()} == {torch.float32}
