"""Penalties against closed forms, and their gradients against finite differences."""

import dataclasses

import pytest
import torch
from torch import nn

from ganlib import penalties
from ganlib.augment import OPERATIONS, Augment, AugmentConfig
from ganlib.game import Deal, Game, Round, discriminate
from ganlib.noise import Noise
from ganlib.penalties import DIFFERENTIATE, PENALTIES, LeCam

N, SHAPE = 5, (1, 2, 3)


class Quadratic(nn.Module):
    """D(x) = ½ a‖x‖² + b·x, whose gradient is a x + b."""

    def __init__(self, a=0.7, dim=6):
        super().__init__()
        self.a = nn.Parameter(torch.tensor(a, dtype=torch.float64))
        self.b = nn.Parameter(torch.linspace(-1, 1, dim, dtype=torch.float64))

    def forward(self, x, cond=None):
        x = x.flatten(1)
        return 0.5 * self.a * x.square().sum(1) + x @ self.b


class Smooth(nn.Module):
    """A two-layer network with given weights; one logit, or 2 x 2 patches."""

    def __init__(self, a, b):
        super().__init__()
        self.a, self.b = a, b

    def forward(self, x, cond=None):
        logits = (x.flatten(1) @ self.a).tanh() @ self.b
        return logits if self.b.dim() == 1 else logits.view(-1, 2, 2)


def normal(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def smooth(patches=False, dim=6):
    return normal(dim, 4, seed=1).requires_grad_(), normal(*((4, 4) if patches else (4,)), seed=2).requires_grad_()


def a_round(discriminator, shape=SHAPE, view=None, cond=None, n=N):
    real, fake = (normal(n, *shape, seed=seed).requires_grad_() for seed in (3, 4))
    game = Game(nn.Identity(), discriminator, deal=lambda batch: None, latent=None, augmentation=view)
    deal, noise = Deal(inputs=fake, real=real, cond=cond), Noise(0, size=n)
    logits = [discriminate(game, x, cond, noise).logits for x in (real, fake)]
    return Round(game, deal, noise, real, fake, *logits)


def penalty(name):
    fn = PENALTIES[name]
    return fn() if isinstance(fn, type) else fn


def slope(discriminator, x):
    return discriminator.a * x.flatten(1) + discriminator.b


def test_r1_and_r2():
    discriminator = Quadratic()
    round = a_round(discriminator)
    for name, where in (("r1", round.real), ("r2", round.fake)):
        expected = 0.5 * slope(discriminator, where).square().sum(1)
        torch.testing.assert_close(PENALTIES[name](round), expected)


def test_gradient_penalty():
    discriminator = Quadratic()
    round = a_round(discriminator)
    share = Noise(0, size=N).uniform().double().view(-1, 1, 1, 1)
    between = share * round.real + (1 - share) * round.fake
    expected = (slope(discriminator, between).norm(dim=1) - 1).square()
    torch.testing.assert_close(PENALTIES["gradient_penalty"](a_round(discriminator)), expected, rtol=1e-6, atol=1e-8)


def test_dragan():
    discriminator = Quadratic()
    round = a_round(discriminator)
    deviation = round.real.var((1, 2, 3), correction=0, keepdim=True).sqrt()
    noise = Noise(0, size=N)
    share = noise.uniform().double().view(-1, 1, 1, 1)
    near = round.real + 0.5 * share * deviation * noise.uniform(*SHAPE).double()
    expected = (slope(discriminator, near).norm(dim=1) - 1).square()
    torch.testing.assert_close(PENALTIES["dragan"](round), expected, rtol=1e-6, atol=1e-8)


def test_consistency_is_the_distance_to_the_logits_of_flipped_and_shifted_images():
    discriminator = Quadratic(dim=64)
    round = a_round(discriminator, (1, 8, 8), n=40)
    padded = [nn.functional.pad(x, (1, 1, 1, 1), mode="reflect") for x in (round.real, round.fake)]
    moves = [(y, x, flip) for y in range(3) for x in range(3) for flip in (False, True)]

    def outcomes(images, logits):
        """The penalty of each example for each of the 18 moves there are, `[18, N]`."""
        for y, x, flip in moves:
            moved = images[:, :, y : y + 8, x : x + 8]
            yield (logits - discriminator(moved.flip(3) if flip else moved)).square()

    reals = torch.stack(list(outcomes(padded[0], round.real_logits)))
    fakes = torch.stack(list(outcomes(padded[1], round.fake_logits)))
    found = PENALTIES["consistency"](round)
    move = (found - reals).abs().argmin(0)
    torch.testing.assert_close(found, reals.gather(0, move[None])[0])
    assert len(move.unique()) > 9

    again = dataclasses.replace(round, noise=Noise(0, size=40))
    again.noise.uniform(1, 5), again.noise.normal(1, 2)  # any draws: the moves are other ones
    of_both = PENALTIES["balanced_consistency"](again)
    sums = (reals[:, None] + fakes[None]).flatten(0, 1)
    torch.testing.assert_close(of_both, sums.gather(0, (of_both - sums).abs().argmin(0)[None])[0])
    assert ((of_both - found).abs() > 0).double().mean() > 0.9


@pytest.mark.parametrize("name", ["consistency", "balanced_consistency"])
def test_consistency_needs_images_that_stand_alone(name):
    with pytest.raises(ValueError, match="needs images"):
        PENALTIES[name](a_round(Quadratic(), (6,)))
    with pytest.raises(ValueError, match="paired"):
        PENALTIES[name](a_round(Quadratic(), cond=torch.zeros(N, 1, 2, 3)))


def test_lecam_compares_with_the_means_of_turns_before(monkeypatch):
    lecam = LeCam(decay=0.9)
    generator = torch.Generator().manual_seed(5)
    alpha_real = alpha_fake = None
    for turn in range(4):
        real, fake = torch.randn(2, 8, generator=generator, dtype=torch.float64)
        if turn == 0:
            alpha_real, alpha_fake = real.mean(), fake.mean()
        if turn == 3:  # with a rank whose means are both 2
            monkeypatch.setattr(penalties.distributed, "world_size", lambda: 2)
            monkeypatch.setattr(
                penalties.distributed, "average_gradients", lambda ts: [t.add_(2.0).div_(2.0) for t in ts]
            )
        round = dataclasses.replace(a_round(Quadratic()), real_logits=real, fake_logits=fake)
        expected = (real - alpha_fake).square() + (fake - alpha_real).square()
        torch.testing.assert_close(lecam(round), expected, rtol=1e-5, atol=1e-5)
        now_real, now_fake = [(m + 2.0) / 2.0 if turn == 3 else m for m in (real.mean(), fake.mean())]
        alpha_real, alpha_fake = 0.9 * alpha_real + 0.1 * now_real, 0.9 * alpha_fake + 0.1 * now_fake
    torch.testing.assert_close(lecam.means.double(), torch.stack([alpha_real, alpha_fake]), rtol=1e-5, atol=1e-5)

    other = LeCam(decay=0.9)
    other.load_state_dict(lecam.state_dict())
    assert torch.equal(other(round), lecam(round))


@pytest.mark.parametrize("name", PENALTIES)
def test_one_value_an_example_of_the_mean_over_patches(name):
    """A discriminator with the same logit for each patch is penalised like one that says it once."""

    class Patches(Quadratic):
        def forward(self, x, cond=None):
            return super().forward(x).view(-1, 1, 1).expand(-1, 2, 3)

    found = penalty(name)(a_round(Patches()))
    assert found.shape == (N,)
    torch.testing.assert_close(found, penalty(name)(a_round(Quadratic())))


@pytest.mark.parametrize("name", PENALTIES)
def test_those_that_differentiate_are_those_named(name, monkeypatch):
    asked, grad = [], torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: asked.append(1) or grad(*a, **k))
    penalty(name)(a_round(Quadratic()))
    assert bool(asked) == (name in DIFFERENTIATE)


def started(name):
    """LeCam's first turn compares with means of its own, through which it does not differentiate."""
    fn = penalty(name)
    if isinstance(fn, LeCam):
        fn(a_round(Quadratic()))
    return fn


@pytest.mark.parametrize("patches", [False, True], ids=["scalar", "patches"])
@pytest.mark.parametrize("name", PENALTIES)
def test_gradient_on_the_discriminator_by_finite_differences(name, patches):
    weights = smooth(patches)
    assert torch.autograd.gradcheck(lambda a, b: started(name)(a_round(Smooth(a, b))), weights)


@pytest.mark.parametrize("name", sorted(DIFFERENTIATE))
@pytest.mark.parametrize("kind", OPERATIONS)
def test_gradient_through_augmentation_by_finite_differences(kind, name):
    weights = smooth(dim=48)
    augment = Augment(AugmentConfig(kind=kind, operations=OPERATIONS[kind], probability=0.7, target=None))

    def cost(a, b):
        round = a_round(Smooth(a, b), (3, 4, 4), view=lambda x, noise: augment(x, noise, 0.0), n=3)
        return penalty(name)(round)

    assert torch.autograd.gradcheck(cost, weights, fast_mode=True)


@pytest.mark.parametrize(("kind", "operation"), [(k, o) for k, names in OPERATIONS.items() for o in names])
def test_r1_through_each_operation_is_the_slope_before_it(kind, operation):
    """½‖∂D(aug(x))/∂x‖² with the gradient taken by central differences of the images before augmentation."""
    augment = Augment(AugmentConfig(kind=kind, operations=(operation,), probability=1.0, target=None))
    discriminator = Smooth(*smooth(dim=48))
    round = a_round(discriminator, (3, 4, 4), view=lambda x, noise: augment(x, noise, 0.0), n=3)

    def logits(x):
        with torch.no_grad():
            return discriminator(augment(x, Noise(0, size=3), 0.0))

    torch.testing.assert_close(round.real_logits, logits(round.real))
    step, squares = 1e-5, torch.zeros(3, dtype=torch.float64)
    for k in range(48):
        nudge = torch.zeros(48, dtype=torch.float64)
        nudge[k] = step
        nudge = nudge.view(1, 3, 4, 4)
        squares += ((logits(round.real + nudge) - logits(round.real - nudge)) / (2 * step)).square()
    torch.testing.assert_close(PENALTIES["r1"](round), 0.5 * squares, rtol=1e-6, atol=1e-8)
