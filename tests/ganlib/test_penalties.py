"""Penalties against closed forms, and their gradients against finite differences."""

import pytest
import torch
from torch import nn

from ganlib.game import Deal, Game, Noise, Round
from ganlib.penalties import PENALTIES


class Quadratic(nn.Module):
    """D(x) = ½ a‖x‖² + b·x, whose gradient is a x + b."""

    def __init__(self, a=0.7, dim=6):
        super().__init__()
        self.a = nn.Parameter(torch.tensor(a, dtype=torch.float64))
        self.b = nn.Parameter(torch.linspace(-1, 1, dim, dtype=torch.float64))

    def forward(self, x, cond=None):
        x = x.flatten(1)
        return 0.5 * self.a * x.square().sum(1) + x @ self.b


def a_round(discriminator, n=5, shape=(1, 2, 3)):
    generator = torch.Generator().manual_seed(3)
    real = torch.randn(n, *shape, generator=generator, dtype=torch.float64).requires_grad_()
    fake = torch.randn(n, *shape, generator=generator, dtype=torch.float64).requires_grad_()
    game = Game(nn.Identity(), discriminator, deal=lambda batch: None, latent=lambda noise, truncation: None)
    deal = Deal(inputs=fake, real=real)
    return Round(game, deal, Noise(0, size=n), real, fake, discriminator(real), discriminator(fake))


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
    share = Noise(0, size=5).uniform().double().view(-1, 1, 1, 1)
    between = share * round.real + (1 - share) * round.fake
    expected = (slope(discriminator, between).norm(dim=1) - 1).square()
    torch.testing.assert_close(PENALTIES["gradient_penalty"](a_round(discriminator)), expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", PENALTIES)
def test_gradient_on_the_discriminator_by_finite_differences(name):
    class Smooth(nn.Module):
        def __init__(self, a, b):
            super().__init__()
            self.a, self.b = a, b

        def forward(self, x, cond=None):
            return (x.flatten(1) @ self.a).tanh() @ self.b

    a = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    b = torch.randn(4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b: PENALTIES[name](a_round(Smooth(a, b))), (a, b))
