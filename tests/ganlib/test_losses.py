"""Losses against values worked out by hand."""

import math

import pytest
import torch

from ganlib.losses import LOSSES

REAL, FAKE = torch.tensor([0.5, -1.0], dtype=torch.float64), torch.tensor([-0.25, 2.0], dtype=torch.float64)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


DISCRIMINATOR = {
    "minimax": lambda r, f: -math.log(sigmoid(r)) - math.log(1 - sigmoid(f)),
    "non_saturating": lambda r, f: -math.log(sigmoid(r)) - math.log(1 - sigmoid(f)),
    "hinge": lambda r, f: max(0, 1 - r) + max(0, 1 + f),
    "wasserstein": lambda r, f: f - r,
    "least_squares": lambda r, f: 0.5 * (r - 1) ** 2 + 0.5 * f**2,
    "relativistic": lambda r, f: -math.log(sigmoid(r - f)),
}
GENERATOR = {
    "minimax": lambda r, f: math.log(1 - sigmoid(f)),
    "non_saturating": lambda r, f: -math.log(sigmoid(f)),
    "hinge": lambda r, f: -f,
    "wasserstein": lambda r, f: -f,
    "least_squares": lambda r, f: 0.5 * (f - 1) ** 2,
    "relativistic": lambda r, f: -math.log(sigmoid(f - r)),
}


@pytest.mark.parametrize("name", LOSSES)
def test_values(name):
    pairs = list(zip(REAL.tolist(), FAKE.tolist(), strict=True))
    judged = LOSSES[name].discriminator(REAL, FAKE)
    torch.testing.assert_close(judged, torch.tensor([DISCRIMINATOR[name](r, f) for r, f in pairs]).double())
    made = LOSSES[name].generator(FAKE, REAL if LOSSES[name].paired else None)
    torch.testing.assert_close(made, torch.tensor([GENERATOR[name](r, f) for r, f in pairs]).double())


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_by_finite_differences(name):
    real, fake = REAL.clone().requires_grad_(), FAKE.clone().requires_grad_()
    assert torch.autograd.gradcheck(LOSSES[name].discriminator, (real, fake))
    paired = REAL if LOSSES[name].paired else None
    assert torch.autograd.gradcheck(lambda f: LOSSES[name].generator(f, paired), (fake,))


@pytest.mark.parametrize("name", LOSSES)
def test_the_players_pull_the_fakes_logit_apart(name):
    """The discriminator wants it lower, the generator higher."""
    real, fake = torch.zeros(4), torch.full((4,), 0.1, requires_grad=True)
    (down,) = torch.autograd.grad(LOSSES[name].discriminator(real, fake).sum(), fake)
    (up,) = torch.autograd.grad(LOSSES[name].generator(fake, real).sum(), fake)
    assert (down > 0).all()
    assert (up < 0).all()


def test_only_the_non_saturating_loss_moves_a_beaten_generator():
    beaten = torch.tensor([-12.0], requires_grad=True)
    slopes = {
        n: torch.autograd.grad(LOSSES[n].generator(beaten, None).sum(), beaten)[0]
        for n in ("minimax", "non_saturating")
    }
    assert slopes["minimax"].abs() < 1e-4
    assert slopes["non_saturating"].abs() > 0.99
