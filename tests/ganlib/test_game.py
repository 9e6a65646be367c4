"""The one training step: contracts that hold for every family, loss and penalty there is."""

import copy
import dataclasses
import itertools

import pytest
import torch
from torch import nn
from zoo import CONDITIONED, FAMILIES, FROM_NOISE, batches, game_of, spec_of

from ganlib.augment import OPERATIONS, Augment, AugmentConfig
from ganlib.game import (
    Batch,
    DiscriminatorOutput,
    Learner,
    Round,
    Term,
    adversarial_step,
    discriminate,
    map_tensors,
    tensors_of,
)
from ganlib.losses import LOSSES
from ganlib.noise import Noise
from ganlib.penalties import MOVE, PENALTIES


def learners(game, kind=torch.optim.SGD, **options):
    return [
        Learner(module, kind(module.parameters(), lr=0.1, **options), lr=0.1)
        for module in (game.generator, game.discriminator)
    ]


def weights(module):
    return [p.detach().clone() for p in module.parameters()]


def moved(before, module):
    return [not torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True)]


def played(game, spec, loss, **options):
    """One step; what each player's step moved of itself and of the other, and the statistics."""
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
    stats = adversarial_step(game, LOSSES[loss], generator, discriminator, [batches(spec)], step=0, kimg=0.0, **options)
    return before, snapshots, stats


def contract(game, spec, loss):
    before, snapshots, stats = played(game, spec, loss)
    for start, module in zip(before, (game.generator, game.discriminator), strict=True):
        # what is left: a last bias where the loss is of a difference, biases that normalisation takes out again
        assert all(m for m, w in zip(moved(start, module), start, strict=True) if w.dim() > 1)
    assert not any(snapshots["generator"] + snapshots["discriminator"])
    assert all(p.grad is None for m in (game.generator, game.discriminator) for p in m.parameters())
    assert all(torch.isfinite(v) for v in stats.values())
    assert {"sign/real", "sign/fake", "logit/gap", "gradient/generator", "gradient/discriminator"} <= set(stats)
    return stats


CONDITIONINGS = ["none", "concat", "projection", "auxiliary", "reacgan", "attributes"]
TOLD = [(f, c) for f in FAMILIES for c in (CONDITIONINGS if f in CONDITIONED else ["given"])]


# Every game with every penalty, every game with every loss, and every loss with every penalty, in a sixth of all
# combinations of the three. What is left out are triples, and no triple can fail where its pairs do not:
# - A loss sees logits alone, and what it gives is added to what the terms give (`_Step._total`). Terms get the round
#   and never see the loss; no term reads what another has computed.
# - The one thing that a loss changes in what is computed is `paired`: reals are judged in the generator's turn, too.
#   That depends on the game (conditions, a discriminator's features), which meets every loss; the discriminator's
#   penalties are no part of that turn.
# - What penalties change is how the discriminator's turn is differentiated (`needs_input_grad`). That depends on its
#   layers, so on the game, which meets every penalty; to it, a loss is a number for each logit.
# Conditioning on labels does interact with the family, both with losses (auxiliary terms in both turns) and with
# penalties (slopes by the sample, not by the condition): so the two are one axis, with all their combinations.
GAMES, LOSS_NAMES, PENALTY_NAMES = TOLD, list(LOSSES), ["none", *PENALTIES]
PAIRWISE = [
    (*told, LOSS_NAMES[(i + j) % len(LOSS_NAMES)], penalty)
    for i, told in enumerate(GAMES)
    for j, penalty in enumerate(PENALTY_NAMES)
]


def test_all_pairs_are_among_the_cases():
    assert {loss for _, loss in SPLIT} == set(LOSSES)
    through = [case for case in PENALISED if case[0] in FROM_NOISE]
    assert {case[:2] for case in through} == set(itertools.product(FROM_NOISE, VIEWS))
    assert {case[1:] for case in through} == set(itertools.product(VIEWS, PENALTIES))
    found = [(case[:2], case[2], case[3]) for case in PAIRWISE]
    axes = (GAMES, LOSS_NAMES, PENALTY_NAMES)
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert {(case[one], case[other]) for case in found} == set(itertools.product(axes[one], axes[other]))


@pytest.mark.parametrize(("family", "conditioning", "loss", "penalty"), PAIRWISE)
def test_each_player_moves_itself_and_only_itself(family, conditioning, loss, penalty):
    network = {} if conditioning == "given" else {"conditioning": conditioning}
    spec = spec_of(family)
    if conditioning == "attributes":
        spec, network = spec_of(family, classes=(), attributes=("age", "smile")), {"conditioning": "auxiliary"}
    penalties = [] if penalty == "none" else [penalty]
    game = game_of(family, spec, penalties, **network)
    paired = (cond := game.deal(batches(spec)[0]).cond) is not None and cond.ndim > 2  # the condition is an image
    if (paired or not spec.kind.is_picture) and "consistency" in penalty:  # refused by `build_game`, too
        with pytest.raises(ValueError, match=r"paired with|needs images"):
            contract(game, spec, loss)
        return
    stats = contract(game, spec, loss)
    assert {f"loss/discriminator/{name}" for name in penalties} <= set(stats)
    if network.get("conditioning") in ("auxiliary", "reacgan"):
        both = ("generator", "discriminator")
        assert {f"loss/{player}/{network['conditioning']}" for player in both} <= set(stats)


def through(view, game):
    """The game with that kind of augmentation before the discriminator; "plain": none."""
    if view == "plain":
        return game
    augment = Augment(AugmentConfig(kind=view, probability=0.9, target=None))
    return dataclasses.replace(
        game, augmentation=lambda sample, noise: map_tensors(lambda x: augment(x, noise, 0.0), sample)
    )


def on_trial(family, view):
    """A discriminator's turn on two examples in float64, `turn(reals, weights)`, with the tensors of reals and the
    weights to begin with.

    Its draws are the same each time. Outside training, layers with running statistics have none to move.
    """
    spec = spec_of(family)
    game = through(view, game_of(family, spec))
    discriminator = game.discriminator.double().eval()
    weights = dict(discriminator.named_parameters())
    deal = game.deal(batches(spec, n=2)[0])
    made = game.generator.eval()(deal.inputs, deal.cond)
    fake = map_tensors(lambda x: x.detach().double().requires_grad_(), made)
    cond = deal.cond.double() if deal.cond is not None and deal.cond.is_floating_point() else deal.cond

    def turn(reals, now):
        parts = iter(reals)
        real = map_tensors(lambda _: next(parts), deal.real)
        weighed = dict(zip(weights, now, strict=True))
        played = dataclasses.replace(
            game, discriminator=lambda sample, cond: torch.func.functional_call(discriminator, weighed, (sample, cond))
        )
        noise = Noise(0, size=2)
        of_real, of_fake = (discriminate(played, sample, cond, noise) for sample in (real, fake))
        shown = dataclasses.replace(deal, real=real, cond=cond)
        return Round(played, shown, Batch({}, noise), real, fake, of_real.logits, of_fake.logits)

    reals = [x.double() for x in tensors_of(deal.real)]
    if not spec.kind.is_picture:  # away from ties, as of two tokens that are the same, where a maximum has a kink
        generator = torch.Generator().manual_seed(0)
        reals = [x + 0.01 * torch.rand(x.shape, generator=generator, dtype=x.dtype) for x in reals]
    return turn, [x.requires_grad_() for x in reals], list(weights.values())


VIEWS = ("plain", *OPERATIONS)
JUDGED = [(f, view) for f in FAMILIES for view in VIEWS if view == "plain" or f in FROM_NOISE]
# Every family with every penalty, and each of them through every view; not all triples: a view changes the samples
# before the discriminator, whatever that is, and a penalty calls both as one function. That each discriminator
# can be differentiated through each view is the next test.
PENALISED = [
    (family, VIEWS[(i + j) % len(VIEWS)] if family in FROM_NOISE else "plain", penalty)
    for i, family in enumerate(FAMILIES)
    for j, penalty in enumerate(PENALTIES)
    if family in FROM_NOISE or penalty not in MOVE
]


@pytest.mark.parametrize(("family", "view"), JUDGED)
def test_every_discriminator_can_be_differentiated_twice(family, view):
    """∂D/∂(sample, weights) has the right derivative by the sample and by each weight, also through augmentation."""
    turn, reals, weights = on_trial(family, view)
    torch.autograd.gradgradcheck(
        lambda *inputs: turn(inputs[: len(reals)], inputs[len(reals) :]).real_logits,
        (*reals, *weights),
        fast_mode=True,
        check_undefined_grad=False,
        rtol=1e-5,
        atol=1e-9,
    )


@pytest.mark.parametrize(("family", "view", "penalty"), PENALISED)
def test_every_penaltys_gradient_by_finite_differences(family, view, penalty):
    """What a penalty asks of the discriminator's weights, a second derivative for most, also through augmentation.

    In one direction that all of them move in; each weight for itself is moved above.
    """
    turn, reals, weights = on_trial(family, view)
    fn = game_of(family, None, [penalty]).terms[-1].fn
    if isinstance(fn, nn.Module):
        fn.double()
        fn(turn(reals, weights))  # a running mean now has a past, which no gradient flows through

    def cost(flat):
        parts = flat.split([w.numel() for w in weights])
        return copy.deepcopy(fn)(turn(reals, [p.view_as(w) for p, w in zip(parts, weights, strict=True)])).mean()

    flat = nn.utils.parameters_to_vector(weights).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(cost(flat), flat)
    assert gradient.abs().max() > 1e-4  # what finite differences tell from 0: atol is far below
    torch.autograd.gradcheck(cost, (flat,), fast_mode=True, check_undefined_grad=False, rtol=1e-5, atol=1e-9)


# Each family with a loss that is paired and one that is not, which is all that the step tells losses by, and each loss
# with some family.
PAIRED, ALONE = ([name for name, of in LOSSES.items() if of.paired == paired] for paired in (True, False))
SPLIT = [(family, names[i % len(names)]) for names in (PAIRED, ALONE) for i, family in enumerate(FAMILIES)]


@pytest.mark.parametrize(("family", "loss"), SPLIT)
def test_microbatches_equal_one_batch(family, loss):
    """Exact where no layer mixes examples and no term keeps a running mean; so in evaluation mode."""
    spec, ends = spec_of(family), []
    for parts in (1, 2, 4):
        game = game_of(family, spec, ["r1", "gradient_penalty"])
        game = dataclasses.replace(game, terms=tuple(t for t in game.terms if not isinstance(t.fn, nn.Module)))
        game.generator.eval()
        game.discriminator.eval()
        adversarial_step(game, LOSSES[loss], *learners(game), [batches(spec, n=16, parts=parts)], step=0, kimg=0.0)
        ends.append(weights(game.generator) + weights(game.discriminator))
    for other in ends[1:]:
        torch.testing.assert_close(other, ends[0], rtol=1e-4, atol=1e-6)


def test_the_step_is_the_textbooks():
    """Against the loop of Goodfellow et al. 2014, algorithm 1, written plainly."""
    spec = spec_of("mlp")
    game = game_of("mlp", spec)
    plain = copy.deepcopy((game.generator, game.discriminator))
    adversarial_step(game, LOSSES["non_saturating"], *learners(game), [batches(spec)], step=0, kimg=0.0)

    (batch,) = batches(spec)
    g, d = plain
    bce = nn.functional.binary_cross_entropy_with_logits
    z, cond = batch.noise.normal(4), batch.data["label"]
    fake = g(z, cond)
    loss = bce(d(batch.data["sample"], cond).logits, torch.ones(8)) + bce(d(fake.detach(), cond).logits, torch.zeros(8))
    for p, grad in zip(d.parameters(), torch.autograd.grad(loss, list(d.parameters())), strict=True):
        p.data -= 0.1 * grad
    loss = bce(d(fake, cond).logits, torch.ones(8))
    for p, grad in zip(g.parameters(), torch.autograd.grad(loss, list(g.parameters())), strict=True):
        p.data -= 0.1 * grad
    torch.testing.assert_close(weights(game.generator), weights(g))
    torch.testing.assert_close(weights(game.discriminator), weights(d))


def test_several_discriminator_steps_and_lazy_terms():
    paid, spec = [], spec_of("mlp")
    game = game_of("mlp", spec)

    def fn(round):
        paid.append(len(round.fake_logits))
        return round.fake_logits * 0

    game = dataclasses.replace(game, terms=(Term("t", "discriminator", fn, every=4),))
    players = learners(game)
    for step in range(4):  # 12 turns of the discriminator: the 1st, 5th and 9th pay
        turns = [batches(spec, key=step * 3 + i) for i in range(3)]
        adversarial_step(game, LOSSES["wasserstein"], *players, turns, step=step, kimg=0.0)
    assert paid == [8, 8, 8]


def test_a_lazy_term_weighs_as_much_as_it_is_rare():
    ends = []
    for weight, every in ((6.0, 1), (2.0, 3)):
        spec = spec_of("mlp")
        game = game_of("mlp", spec)
        game = dataclasses.replace(game, terms=(Term("r1", "discriminator", PENALTIES["r1"], weight, every),))
        adversarial_step(game, LOSSES["hinge"], *learners(game), [batches(spec)], step=0, kimg=0.0)
        ends.append(weights(game.discriminator))
    torch.testing.assert_close(ends[0], ends[1])


def test_clipping_bounds_the_step():
    spec = spec_of("mlp")
    game = game_of("mlp", spec)
    generator, discriminator = learners(game)
    discriminator.clip_norm = 1e-3
    before = weights(game.discriminator)
    adversarial_step(game, LOSSES["hinge"], generator, discriminator, [batches(spec)], step=0, kimg=0.0)
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


def test_top_k_follows_the_best_fakes():
    """Sinha et al. 2020: with the share 1/4, the generator's step is that of the two fakes that are liked best."""
    spec = spec_of("mlp")
    game = game_of("mlp", spec)
    played(game, spec, "hinge", top_k=0.25)
    ends = weights(game.generator)

    plain = game_of("mlp", spec)
    plain.discriminator.load_state_dict(game.discriminator.state_dict())
    (batch,) = batches(spec)
    deal = plain.deal(batch)
    logits = plain.discriminator(plain.generator(deal.inputs, deal.cond), deal.cond).logits
    loss = -logits.topk(2).values.mean()
    for p, grad in zip(
        plain.generator.parameters(), torch.autograd.grad(loss, list(plain.generator.parameters())), strict=True
    ):
        p.data -= 0.1 * grad
    torch.testing.assert_close(ends, weights(plain.generator))


def test_a_generator_that_does_not_play_stays():
    spec = spec_of("mlp")
    game = game_of("mlp", spec)
    before, _, stats = played(game, spec, "hinge", generator_plays=False)
    assert not any(moved(before[0], game.generator))
    assert any(moved(before[1], game.discriminator))
    assert "loss/generator" not in stats


def test_the_discriminator_sees_through_the_view_alone():
    """With every sample blacked out it cannot tell reals from fakes, and the generator has nothing to learn."""
    spec = spec_of("mlp", classes=())
    game = dataclasses.replace(
        game_of("mlp", spec, ["gradient_penalty"]), augmentation=lambda s, n: map_tensors(lambda x: x * 0, s)
    )
    before, _, stats = played(game, spec, "hinge")
    assert stats["logit/gap"] == 0
    assert not any(moved(before[0], game.generator))
    assert stats["loss/discriminator/gradient_penalty"] == pytest.approx(1.0, abs=1e-5)  # (‖0‖ − 1)²


@pytest.mark.parametrize("kind", OPERATIONS)
@pytest.mark.parametrize("family", CONDITIONED)
def test_penalties_through_augmentation(family, kind):
    spec = spec_of(family)
    contract(through(kind, game_of(family, spec, ["r1", "r2"])), spec, "relativistic")


def test_features_reach_terms():
    spec, seen = spec_of("dcgan"), []

    def fn(round):
        seen.append((round.real_features, round.fake_features))
        return round.fake_features.square().mean(1)

    game = game_of("dcgan", spec)
    terms = tuple(Term("t", player, fn, needs_input_grad=False) for player in ("discriminator", "generator"))
    played(dataclasses.replace(game, terms=terms), spec, "hinge")
    (of_real, of_fake), (without, again) = seen
    assert of_real.shape == of_fake.shape == again.shape
    assert without is None  # the loss does not compare with reals in the generator's turn


def test_plain_logits_are_a_verdict():
    spec = spec_of("mlp")
    game = game_of("mlp", spec)

    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = game.discriminator

        def forward(self, x, cond):
            return self.inner(x, cond).logits

    plain = dataclasses.replace(game, discriminator=Plain())
    stats = adversarial_step(plain, LOSSES["hinge"], *learners(plain), [batches(spec)], step=0, kimg=0.0)
    assert torch.isfinite(stats["loss/generator"])
    assert DiscriminatorOutput(torch.zeros(1)).features is None


def test_betas_follow_their_schedule():
    from ganlib.schedules import Schedule

    spec = spec_of("mlp")
    game = game_of("mlp", spec)
    players = learners(game, torch.optim.Adam)
    for player in players:
        player.beta2 = Schedule(kind="linear", start=0.9, end=0.99, to_kimg=1.0)
    adversarial_step(game, LOSSES["hinge"], *players, [batches(spec)], step=0, kimg=0.5)
    assert players[0].optimizer.param_groups[0]["betas"] == (0.9, pytest.approx(0.945))
