"""Losses: any by finite differences and by what the players want of it, those known here by values worked out."""

import math
import re
from pathlib import Path

import pytest
import torch

from ganlib import losses
from ganlib.losses import LOSSES

ROOT = Path(__file__).parents[2]

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


EXAMPLE = re.search(
    r"## A loss is two functions.*?```python\n(.*?)```", (ROOT / "docs" / "extending.md").read_text(), re.DOTALL
)


@pytest.fixture(params=[*LOSSES, "exponential"])
def name(request, monkeypatch):
    """Of every loss, and of the one that docs/extending.md adds."""
    if request.param not in LOSSES:
        assert EXAMPLE is not None
        monkeypatch.setattr("ganlib.losses.LOSSES", dict(LOSSES))
        namespace = dict(vars(losses))
        exec(EXAMPLE[1], namespace)
        monkeypatch.setitem(LOSSES, request.param, namespace["LOSSES"][request.param])
    return request.param


@pytest.mark.parametrize("name", DISCRIMINATOR)
def test_values(name):
    pairs = list(zip(REAL.tolist(), FAKE.tolist(), strict=True))
    judged = LOSSES[name].discriminator(REAL, FAKE)
    torch.testing.assert_close(judged, torch.tensor([DISCRIMINATOR[name](r, f) for r, f in pairs]).double())
    made = LOSSES[name].generator(FAKE, REAL if LOSSES[name].paired else None)
    torch.testing.assert_close(made, torch.tensor([GENERATOR[name](r, f) for r, f in pairs]).double())


def test_gradients_by_finite_differences(name):
    real, fake = REAL.clone().requires_grad_(), FAKE.clone().requires_grad_()
    assert torch.autograd.gradcheck(LOSSES[name].discriminator, (real, fake))
    paired = REAL if LOSSES[name].paired else None
    assert torch.autograd.gradcheck(lambda f: LOSSES[name].generator(f, paired), (fake,))


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


def test_signs_tell_a_discriminator_that_is_right_from_one_that_guesses(name):
    """At what is optimal for each loss; where only differences count, wherever the logits lie."""
    loss, logits = LOSSES[name], torch.randn(4000, generator=torch.Generator().manual_seed(0))
    shift = 7.0 if loss.decision_threshold is None else loss.decision_threshold
    of_real, of_fake = loss.signs(logits[:2000] + shift, logits[2000:] + shift)
    assert abs(float(of_real.mean())) < 0.1
    assert abs(float(of_fake.mean())) < 0.1
    of_real, of_fake = loss.signs(torch.rand(9) * 0.4 + shift + 0.1, torch.rand(9) * 0.4 + shift - 0.5)
    assert of_real.eq(1).all()
    assert of_fake.eq(-1).all()


def test_boundaries_lie_where_the_best_discriminators_logit_changes_sides(name):
    """Equal shares of reals and fakes: the logit that the discriminator's loss asks for."""
    loss, logits = LOSSES[name], torch.linspace(-2, 2, 4001, dtype=torch.float64)
    cost = loss.discriminator(logits, logits)
    if loss.decision_threshold is None:
        assert float(cost.max() - cost.min()) < 1e-12
    else:
        assert float(cost[logits.sub(loss.decision_threshold).abs().argmin()]) == pytest.approx(float(cost.min()))


def test_each_example_has_a_value_of_its_own(name):
    """For any shape of logits, and any other logits; a loss that is not paired is given no reals."""
    loss, rng = LOSSES[name], torch.Generator().manual_seed(0)
    real, fake = (torch.randn(3, 2, 2, generator=rng, dtype=torch.float64) for _ in range(2))
    whole = loss.discriminator(real, fake), loss.generator(fake, real if loss.paired else None)
    for values in whole:
        assert values.shape == real.shape
    torch.testing.assert_close(loss.discriminator(real[1:2], fake[1:2]), whole[0][1:2])
    torch.testing.assert_close(loss.generator(fake[1:2], real[1:2] if loss.paired else None), whole[1][1:2])
