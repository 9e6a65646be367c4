"""Penalties against closed forms, and their gradients against finite differences."""

import copy
import dataclasses

import pytest
import torch
from torch import nn

from ganlib import penalties
from ganlib.augment import OPERATIONS, Augment, AugmentConfig
from ganlib.game import Batch, Deal, Game, Round, discriminate
from ganlib.models._layers import MinibatchDeviation
from ganlib.noise import Noise
from ganlib.penalties import DIFFERENTIATE, PENALTIES, PER_EXAMPLE, LeCam, R1Approx, R2Approx

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
    game = Game(nn.Identity(), discriminator, deal=lambda batch: None, ask=None, augmentation=view)
    deal, noise = Deal(inputs=fake, real=real, cond=cond), Noise(0, size=n)
    logits = [discriminate(game, x, cond, noise).logits for x in (real, fake)]
    return Round(game, deal, Batch({}, noise), real, fake, *logits)


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


APPROXIMATIONS = {"r1": R1Approx, "r2": R2Approx}


def repeated(discriminator, sample, cond=None, group=1, view=None, draws=20_000, noise=0):
    """A turn in which each row of a sample, real and fake alike, stands `draws` times, each with an ε of its own."""
    spread = sample.detach().repeat_interleave(draws, 0)
    game = Game(nn.Identity(), discriminator, lambda batch: None, None, augmentation=view, group=group)
    cond = None if cond is None else cond.repeat_interleave(draws, 0)
    noise = Noise(noise, size=len(spread))
    deal = Deal(inputs=spread, real=spread, cond=cond)
    logits = discriminate(game, spread, cond, copy.deepcopy(noise)).logits
    return Round(game, deal, Batch({}, noise), spread, spread, logits, logits)


@pytest.mark.parametrize("patches", [False, True], ids=["scalar", "patches"])
@pytest.mark.parametrize("exact", APPROXIMATIONS)
def test_finite_differences_are_the_exact_penalty_in_expectation(exact, patches):
    """So are their gradients by the weights: means of 20,000 draws within five standard errors (2 % or less)."""
    weights = smooth(patches)
    discriminator, round = Smooth(*weights), a_round(Smooth(*weights))
    sample = round.real if exact == "r1" else round.fake
    of_each = APPROXIMATIONS[exact](sigma=1e-3)(repeated(discriminator, sample)).view(N, -1)
    expected = PENALTIES[exact](round)
    error = of_each.std(1) / of_each.shape[1] ** 0.5
    assert ((of_each.mean(1) - expected).abs() < 5 * error).all()
    assert (error < 0.02 * expected).all()

    parts = [torch.autograd.grad(part.mean(), weights, retain_graph=True) for part in of_each.view(N, 50, -1).unbind(1)]
    for found, wanted in zip(
        zip(*parts, strict=True), torch.autograd.grad(expected.mean(), weights, retain_graph=True), strict=True
    ):
        found = torch.stack(found)
        assert ((found.mean(0) - wanted).abs() < 5 * found.std(0) / 50**0.5 + 1e-9).all()
        assert (found.mean(0) - wanted).norm() < 0.05 * wanted.norm()


def test_the_bias_of_finite_differences_is_quadratic_in_sigma():
    """Of the quadratic: D(x + σε) − D(x) = σ g·ε + ½ a σ²‖ε‖², so E[½ (…)² / σ²] = ½‖g‖² + ⅛ a² σ² d (d + 2)."""
    discriminator = Quadratic()
    for sigma in (0.1, 0.5):
        of_each = R1Approx(sigma)(repeated(discriminator, a_round(discriminator).real, draws=100_000)).view(N, -1)
        exact = PENALTIES["r1"](a_round(discriminator))
        bias = discriminator.a**2 * sigma**2 * 6 * 8 / 8
        error = of_each.std(1) / of_each.shape[1] ** 0.5
        assert ((of_each.mean(1) - exact - bias).abs() < 5 * error).all()


@pytest.mark.parametrize("kind", OPERATIONS)
def test_finite_differences_through_augmentation(kind):
    """D(x) and D(x + σε) are augmented alike; with draws of their own they would differ by far more than σ."""
    augment = Augment(AugmentConfig(kind=kind, operations=OPERATIONS[kind], probability=0.7, target=None))

    def view(x, noise):
        return augment(x, noise, 0.0)

    discriminator, images = Smooth(*smooth(dim=48)), normal(3, 3, 4, 4, seed=3)
    found = R1Approx(1e-3)(repeated(discriminator, images, view=view))
    round = repeated(discriminator, images, view=view, noise=1)
    spread = round.real.requires_grad_()
    round = dataclasses.replace(round, real_logits=discriminate(round.game, spread, None, round.noise).logits)
    exact = PENALTIES["r1"](round)
    error = (found.var() / len(found) + exact.var() / len(exact)).sqrt()
    assert (found.mean() - exact.mean()).abs() < 5 * error
    assert error < 0.05 * exact.mean()


def test_finite_differences_of_a_sample_of_several_tensors():
    class Several(nn.Module):
        def forward(self, x, cond=None):
            return (x["a"].flatten(1) @ a).tanh() + x["b"].flatten(1).square().sum(1)

    a = normal(6, seed=1)
    sample = {"a": normal(1, 1, 2, 3, seed=2), "b": normal(1, 4, seed=3)}
    game = Game(nn.Identity(), Several(), lambda batch: None, None)
    real = {name: x.repeat_interleave(20_000, 0).requires_grad_() for name, x in sample.items()}
    logits = discriminate(game, real, None, Noise(0, size=20_000)).logits
    round = Round(game, Deal(real, real), Batch({}, Noise(0, size=20_000)), real, real, logits, logits)
    found, exact = R1Approx(1e-3)(round), PENALTIES["r1"](round)
    assert (found.mean() - exact.mean()).abs() < 5 * found.std() / 20_000**0.5


class Conditional(nn.Module):
    """Logits of the sample, its label and, by minibatch deviation, its neighbours."""

    def __init__(self):
        super().__init__()
        self.compare, self.seen = MinibatchDeviation(2), []

    def forward(self, x, cond=None):
        self.seen.append((x.detach(), cond))
        x = self.compare(x.flatten(1))
        return (x.square().sum(1) + 3 * x[:, -1]) * (1 + cond)


@pytest.mark.parametrize("view", [None, lambda x, noise: x * (1 + noise.uniform().view(-1, 1, 1, 1))])
def test_a_share_of_the_batch_is_the_same_rows_whoever_computes_it(view):
    """Of 8 rows in runs of 4 the leading 2, with their labels and draws; in microbatches of 4 as in one batch."""
    images, labels = normal(8, *SHAPE, seed=3), torch.arange(8)

    def turn(rows, shrink):
        discriminator = Conditional()
        game = Game(nn.Identity(), discriminator, lambda batch: None, None, augmentation=view, group=4)
        noise = Noise(0, size=8, rows=rows)
        real, cond = images[rows], labels[rows]
        logits = discriminate(game, real, cond, copy.deepcopy(noise)).logits
        discriminator.seen.clear()
        round = Round(game, Deal(real, real, cond), Batch({}, noise), real, real, logits, logits)
        return R1Approx(1e-2, batch_shrink=shrink)(round), discriminator.seen

    chosen = torch.tensor([0, 1, 4, 5])
    whole, seen = turn(slice(0, 8), 2)
    everyone, _ = turn(slice(0, 8), 1)
    torch.testing.assert_close(whole, everyone[chosen])
    assert len(seen) == (1 if view is None else 2)
    for x, cond in seen:
        assert len(x) == 4
        assert cond.tolist() == [0, 1, 4, 5]
    parts = [turn(slice(i, i + 4), 2)[0] for i in (0, 4)]
    torch.testing.assert_close(torch.cat(parts), whole)


def test_a_share_needs_whole_groups():
    with pytest.raises(ValueError, match=r"batch_shrink: 3 does not divide Game\.group, 1"):
        R1Approx(batch_shrink=3)(a_round(Quadratic()))


def test_finite_differences_need_no_gradient_of_the_sample():
    assert {"r1_approx", "r2_approx"} == PER_EXAMPLE - DIFFERENTIATE
    for cls in APPROXIMATIONS.values():
        round, again = (a_round(Quadratic()) for _ in range(2))
        cut = dataclasses.replace(round, real=round.real.detach(), fake=round.fake.detach())
        torch.testing.assert_close(cls()(cut), cls()(again))


@pytest.mark.parametrize("exact", APPROXIMATIONS)
def test_finite_differences_are_in_float32_under_autocast(exact):
    """Also of fakes that autocast left in bfloat16."""
    torch.manual_seed(0)
    discriminator = nn.Sequential(nn.Flatten(), nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1), nn.Flatten(0))

    def turn():
        game = Game(nn.Identity(), lambda x, cond: discriminator(x), lambda batch: None, None)
        real, fake = normal(N, *SHAPE, seed=3).float(), normal(N, *SHAPE, seed=4).bfloat16()
        logits = [discriminate(game, x, None, Noise(0, size=N)).logits for x in (real, fake.to(real))]
        return Round(game, Deal(real, real), Batch({}, Noise(0, size=N)), real, fake, *logits)

    expected = APPROXIMATIONS[exact]()(turn())
    with torch.autocast("cpu", torch.bfloat16):
        round = turn()
        assert torch.equal(round.real_logits, round.real_logits.bfloat16().float())  # as coarse as they are computed
        found = APPROXIMATIONS[exact]()(round)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-5)


def test_finite_differences_have_one_weight_for_both_logits():
    """Spectral norm in training moves its weight at each forward, which divided by σ is far more than the slope."""

    class Normed(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.layer = nn.utils.parametrizations.spectral_norm(nn.Linear(6, 4).double())
            with torch.no_grad():
                self.layer.parametrizations.weight.original.copy_(normal(4, 6, seed=5))  # the kept vectors lag behind

        def forward(self, x, cond=None):
            return self.layer(x.flatten(1)).tanh().sum(1)

    discriminator = Normed()
    coarse = R1Approx(1e-2)(a_round(discriminator))
    for _ in range(100):
        discriminator(normal(N, 6, seed=6))
    fine = R1Approx(1e-5)(a_round(discriminator))
    torch.testing.assert_close(fine, coarse, rtol=0.5, atol=0.01)
    discriminator.eval()
    torch.testing.assert_close(R1Approx(1e-5)(a_round(discriminator)), fine, rtol=1e-3, atol=0.0)


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

    again = dataclasses.replace(round, batch=Batch({}, Noise(0, size=40)))
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
            monkeypatch.setattr(penalties.distributed, "all_reduce", lambda means: means + 2.0)
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
