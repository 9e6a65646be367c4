"""How players are conditioned: against the papers' formulas, written plainly in float64."""

import math

import pytest
import torch
from zoo import batches, spec_of

from ganlib.game import Batch, Deal, Game, Round
from ganlib.models._conditioning import Embedding, Head, concat_condition, condition_of
from ganlib.noise import Noise

LABELS = torch.tensor([0, 1, 1, 2, 0])


def head(mode, attributes=()):
    torch.manual_seed(0)
    spec = spec_of("mlp", classes=() if attributes else ("a", "b", "c"), attributes=attributes)
    return Head(condition_of(mode, spec, auto="none"), features=6).double()


def features(seed=0):
    return torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def a_round(of_real, of_fake, cond):
    game = Game(torch.nn.Identity(), torch.nn.Identity(), deal=lambda batch: None, ask=None)
    deal, logits = Deal(of_fake, of_real, cond), of_fake.sum(1)
    return Round(game, deal, Batch({}, Noise(0, size=5)), of_real, of_fake, logits, logits, of_real, of_fake)


def test_projection():
    """f(x, y) = yᵀVφ(x) + ψ(φ(x)). Miyato & Koyama 2018, eq. 4."""
    player = head("projection")
    seen = features()
    verdict = player(seen, LABELS)
    one_hot = torch.eye(3, dtype=torch.float64)[LABELS]
    expected = torch.einsum("ny,yd,nd->n", one_hot, player.embedding.table.weight, seen)
    expected = expected + seen @ player.logit.weight[0] + player.logit.bias
    torch.testing.assert_close(verdict.logits, expected)
    assert verdict.features is seen


def test_projection_of_attributes():
    player = head("projection", ("age", "smile"))
    cond, seen = torch.rand(5, 2, dtype=torch.float64), features()
    table = player.embedding.table
    expected = ((cond @ table.weight.T + table.bias) * seen).sum(1) + seen @ player.logit.weight[0] + player.logit.bias
    torch.testing.assert_close(player(seen, cond).logits, expected)


def test_auxiliary_classifier():
    """Both players want the class to be seen, in reals and in fakes. Odena et al. 2017, eq. 3."""
    player = head("auxiliary")
    real, fake = features(1), features(2)
    of_discriminator, of_generator = player.terms()
    assert (of_discriminator.player, of_generator.player) == ("discriminator", "generator")
    assert not of_discriminator.needs_input_grad

    def surprise(seen):
        return -torch.log_softmax(seen @ player.names.weight.T + player.names.bias, 1)[torch.arange(5), LABELS]

    round = a_round(real, fake, LABELS)
    torch.testing.assert_close(of_discriminator.fn(round), surprise(real) + surprise(fake))
    torch.testing.assert_close(of_generator.fn(round), surprise(fake))


def test_auxiliary_regression_of_attributes():
    player = head("auxiliary", ("age", "smile"))
    cond, seen = torch.rand(5, 2, dtype=torch.float64), features()
    expected = ((seen @ player.names.weight.T + player.names.bias - cond) ** 2).mean(1)
    torch.testing.assert_close(player.terms()[1].fn(a_round(seen, seen, cond)), expected)


def test_reacgan():
    """The data-to-data cross-entropy, one pair after the other. Kang et al. 2021, eq. 7."""
    player = head("reacgan")
    real, fake = features(1), features(2)
    of_discriminator, of_generator = player.terms()

    def unit(x):
        return x / x.norm()

    @torch.no_grad()
    def contrast(seen):
        projected = [unit(player.projector.weight @ x + player.projector.bias) for x in seen]
        classes = [unit(player.embedding.table.weight[y]) for y in LABELS]
        costs = []
        for i in range(5):
            own = math.exp(min(float(projected[i] @ classes[i]) - 0.98, 0) / 0.5)
            others = sum(
                math.exp(max(float(projected[i] @ projected[j]) - 0.02, 0) / 0.5)
                for j in range(5)
                if LABELS[i] != LABELS[j]
            )
            costs.append(-math.log(own / (own + others)))
        return torch.tensor(costs, dtype=torch.float64)

    round = a_round(real, fake, LABELS)
    torch.testing.assert_close(of_discriminator.fn(round), contrast(real))  # fakes do not teach the discriminator
    torch.testing.assert_close(of_generator.fn(round), contrast(fake))


@pytest.mark.parametrize(("mode", "cond"), [("auxiliary", LABELS), ("reacgan", LABELS)])
def test_gradients_of_the_extra_losses(mode, cond):
    player = head(mode)
    fn = player.terms()[1].fn
    assert torch.autograd.gradcheck(lambda x: fn(a_round(x, x, cond)), features(3).requires_grad_())


def test_concatenation():
    (batch,) = batches(spec_of("mlp"), n=4)
    spec = spec_of("mlp")
    how = condition_of("concat", spec, auto="none")
    assert how.planes == 3
    wide = concat_condition(batch.data["sample"], how.cond(batch), how)
    assert wide.shape == (4, 4, 8, 8)
    assert torch.equal(wide[:, 0], batch.data["sample"][:, 0])
    for row, label in zip(wide, batch.data["label"], strict=True):
        assert [float(plane.min()) for plane in row[1:]] == [float(y == label) for y in range(3)]
        assert torch.equal(row[1:].amin((1, 2)), row[1:].amax((1, 2)))
    assert torch.equal(
        concat_condition(torch.zeros(4, 2), batch.data["label"], how)[:, 2:].argmax(1), batch.data["label"]
    )
    same = condition_of("projection", spec, auto="none")
    assert concat_condition(wide, batch.data["label"], same) is wide


def test_condition_of_a_spec():
    labelled, described = spec_of("mlp"), spec_of("mlp", classes=(), attributes=("age",))
    bare = spec_of("mlp", classes=())
    assert condition_of("auto", labelled, auto="concat").mode == "concat"
    assert condition_of("auto", bare, auto="concat").size == 0
    assert (
        condition_of("none", labelled, auto="concat").classes,
        condition_of("auto", described, auto="concat").attributes,
    ) == (0, 1)
    (batch,) = batches(described, n=2)
    assert condition_of("auto", described, auto="concat").cond(batch).shape == (2, 1)
    assert condition_of("none", described, auto="concat").cond(batch) is None
    assert Embedding(condition_of("auto", described, auto="concat"), 5)(torch.rand(2, 1)).shape == (2, 5)
    with pytest.raises(ValueError, match=r"network\.conditioning is auxiliary, but the data have no labels"):
        condition_of("auxiliary", bare, auto="concat")
