"""The one training step: contracts that hold for every family, loss and penalty there is."""

import copy
import dataclasses

import pytest
import torch
from torch import nn

from ganlib import registry
from ganlib.data._spec import Spec
from ganlib.game import Batch, Learner, Noise, Term, adversarial_step, seed_of
from ganlib.losses import LOSSES
from ganlib.penalties import PENALTIES

SPEC = Spec("image", "image", (1, 8, 8), ("a", "b", "c"), {"train": 8, "test": 8}, "")
FAMILIES = registry.names("models")


def a_game(family, penalties=(), spec=SPEC, **network):
    module = registry.load("models", family)
    torch.manual_seed(0)
    game = module.build(module.Config(width=8, latent_dim=4, **network), spec)
    terms = tuple(Term(name, "discriminator", PENALTIES[name]) for name in penalties)
    return dataclasses.replace(game, terms=game.terms + terms)


def learners(game, kind=torch.optim.SGD, **options):
    return [
        Learner(module, kind(module.parameters(), lr=0.1, **options), lr=0.1)
        for module in (game.generator, game.discriminator)
    ]


def batches(n=8, parts=1, key=0, spec=SPEC):
    generator = torch.Generator().manual_seed(seed_of(key))
    data = {"sample": torch.rand(n, *spec.shape, generator=generator) * 2 - 1}
    if spec.classes:
        data["label"] = torch.arange(n) % len(spec.classes)
    rows = [slice(i * n // parts, (i + 1) * n // parts) for i in range(parts)]
    return [Batch({k: v[r] for k, v in data.items()}, Noise(0, key, size=n, rows=r)) for r in rows]


def weights(module):
    return [p.detach().clone() for p in module.parameters()]


def moved(before, module):
    return [not torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True)]


@pytest.mark.parametrize("spec", [SPEC, dataclasses.replace(SPEC, classes=())], ids=["labelled", "unlabelled"])
@pytest.mark.parametrize("penalty", [(), *[(p,) for p in PENALTIES]], ids=str)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("family", FAMILIES)
def test_each_player_moves_itself_and_only_itself(family, loss, penalty, spec):
    game = a_game(family, penalty, spec)
    generator, discriminator = learners(game)
    before = weights(game.generator), weights(game.discriminator)
    snapshots = {}

    def watched(learner, name, other):
        step = learner.step

        def stepping(kimg):
            still = weights(other)
            norm = step(kimg)
            snapshots[name] = moved(still, other)
            return norm

        learner.step = stepping

    watched(generator, "generator", game.discriminator)
    watched(discriminator, "discriminator", game.generator)
    stats = adversarial_step(game, LOSSES[loss], generator, discriminator, [batches(spec=spec)], step=0, kimg=0.0)

    assert all(moved(before[0], game.generator))
    # losses of the logits' difference leave a last bias where it is
    assert all(m for m, w in zip(moved(before[1], game.discriminator), before[1], strict=True) if w.dim() > 1)
    assert not any(snapshots["generator"] + snapshots["discriminator"])
    assert all(p.grad is None for m in (game.generator, game.discriminator) for p in m.parameters())
    assert all(torch.isfinite(v) for v in stats.values())
    assert {"sign/real", "sign/fake", "logit/gap", "gradient/generator", "gradient/discriminator"} <= set(stats)
    assert {f"loss/discriminator/{name}" for name in penalty} <= set(stats)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("family", FAMILIES)
def test_microbatches_equal_one_batch(family, loss):
    """Exact where no layer mixes examples, and so without BatchNorm."""
    network = {"generator_norm": "none"} if family == "dcgan" else {}
    ends = []
    for parts in (1, 2, 4):
        game = a_game(family, ("r1", "gradient_penalty"), **network)
        adversarial_step(game, LOSSES[loss], *learners(game), [batches(parts=parts)], step=0, kimg=0.0)
        ends.append(weights(game.generator) + weights(game.discriminator))
    for other in ends[1:]:
        torch.testing.assert_close(other, ends[0], rtol=1e-4, atol=1e-6)


def test_the_step_is_the_textbooks():
    """Against the loop of Goodfellow et al. 2014, algorithm 1, written plainly."""
    game = a_game("mlp")
    plain = copy.deepcopy((game.generator, game.discriminator))
    adversarial_step(game, LOSSES["non_saturating"], *learners(game), [batches()], step=0, kimg=0.0)

    (batch,) = batches()
    g, d = plain
    bce = nn.functional.binary_cross_entropy_with_logits
    z, cond = batch.noise.normal(4), batch.data["label"]
    fake = g(z, cond)
    loss = bce(d(batch.data["sample"], cond), torch.ones(8)) + bce(d(fake.detach(), cond), torch.zeros(8))
    for p, grad in zip(d.parameters(), torch.autograd.grad(loss, list(d.parameters())), strict=True):
        p.data -= 0.1 * grad
    loss = bce(d(fake, cond), torch.ones(8))
    for p, grad in zip(g.parameters(), torch.autograd.grad(loss, list(g.parameters())), strict=True):
        p.data -= 0.1 * grad
    torch.testing.assert_close(weights(game.generator), weights(g))
    torch.testing.assert_close(weights(game.discriminator), weights(d))


def test_several_discriminator_steps_and_lazy_terms():
    paid = []
    game = a_game("mlp")

    def fn(round):
        paid.append(len(round.fake_logits))
        return round.fake_logits * 0

    game = dataclasses.replace(game, terms=(Term("t", "discriminator", fn, every=4),))
    players = learners(game)
    for step in range(4):  # 12 turns of the discriminator: the 1st, 5th and 9th pay
        turns = [batches(key=step * 3 + i) for i in range(3)]
        adversarial_step(game, LOSSES["wasserstein"], *players, turns, step=step, kimg=0.0)
    assert paid == [8, 8, 8]


def test_a_lazy_term_weighs_as_much_as_it_is_rare():
    ends = []
    for weight, every in ((6.0, 1), (2.0, 3)):
        game = a_game("mlp")
        game = dataclasses.replace(game, terms=(Term("r1", "discriminator", PENALTIES["r1"], weight, every),))
        adversarial_step(game, LOSSES["hinge"], *learners(game), [batches()], step=0, kimg=0.0)
        ends.append(weights(game.discriminator))
    torch.testing.assert_close(ends[0], ends[1])


def test_clipping_bounds_the_step():
    game = a_game("mlp")
    generator, discriminator = learners(game)
    discriminator.clip_norm = 1e-3
    before = weights(game.discriminator)
    adversarial_step(game, LOSSES["hinge"], generator, discriminator, [batches()], step=0, kimg=0.0)
    distance = nn.utils.get_total_norm([a - b for a, b in zip(before, game.discriminator.parameters(), strict=True)])
    assert float(distance) == pytest.approx(0.1 * 1e-3, rel=1e-3)


def test_noise_is_the_same_however_it_is_cut():
    whole = Noise(1, 2, size=12)
    parts = [Noise(1, 2, size=12, rows=slice(i * 4, i * 4 + 4)) for i in range(3)]
    for draw in ("normal", "uniform"):
        torch.testing.assert_close(
            torch.cat([getattr(p, draw)(3) for p in parts]), getattr(whole, draw)(3), rtol=0, atol=0
        )
    assert not torch.equal(Noise(1, 2, size=4).normal(3), Noise(1, 3, size=4).normal(3))
