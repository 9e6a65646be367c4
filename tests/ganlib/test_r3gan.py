"""R3GAN: its shapes, the paper's initialisation, the published sizes, and penalties that can be differentiated."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from specs import image_spec
from torch import nn
from torch.func import functional_call

from ganlib.game import Batch, Deal, Learner, Round, Term, adversarial_step
from ganlib.losses import LOSSES
from ganlib.models import r3gan
from ganlib.noise import Noise
from ganlib.penalties import PENALTIES

SPEC = image_spec((1, 8, 8), ("a", "b", "c"))


def build(shape=(1, 8, 8), classes=("a", "b", "c"), attributes=(), **network):
    torch.manual_seed(0)
    spec = image_spec(shape, classes, attributes=attributes)
    return r3gan.build(r3gan.Config(**{"latent_dim": 4, "width": 4, **network}), spec)


def let_blocks_speak(module, gain=1.0):
    """Undo the blocks' start from zero."""
    for layer in module.modules():
        if isinstance(layer, r3gan._Block):
            r3gan._scaled(layer.narrow, gain)
            for bias in (layer.widen.bias, layer.convolve.bias):
                nn.init.normal_(bias, std=0.1)


def mean_square(x):
    return float(x.square().mean())


@pytest.mark.parametrize("classes", [("a", "b", "c"), ()], ids=["labelled", "unlabelled"])
@pytest.mark.parametrize(
    ("shape", "base", "stages"),
    [
        ((1, 8, 8), (4, 4), 2),
        ((1, 28, 28), (7, 7), 3),
        ((3, 32, 64), (4, 8), 4),
        ((1, 48, 16), (12, 4), 3),
        ((3, 24, 40), (6, 10), 3),
        ((3, 256, 256), (4, 4), 7),
    ],
    ids=str,
)
def test_shapes(shape, base, stages, classes):
    game = build(shape, classes, max_width=8, blocks=2)
    cond = torch.tensor([0, 2]) if classes else None
    images = game.generator(game.ask({}, Noise(0, size=2), None), cond)
    assert images.shape == (2, *shape)
    verdict = game.discriminator(images, cond)
    assert verdict.logits.shape == (2,)
    assert verdict.features.shape == (2, 8)
    for player in (game.generator, game.discriminator):
        assert player.basis.shape == (8, *base)
        assert sum(isinstance(layer, r3gan._Block) for layer in player.modules()) == 2 * stages


@pytest.mark.parametrize("shape", [(1, 4, 4), (1, 30, 30), (3, 36, 36), (1, 512, 512), (1, 8, 64), (1, 4, 8)], ids=str)
def test_sizes_it_cannot_make_are_refused(shape):
    with pytest.raises(ValueError, match=rf"8 to 256 pixels.*found {shape[1]}x{shape[2]}$"):
        build(shape)


# Counted in the published networks (github.com/brownvc/R3GAN at 19a7ddf, R3GAN/Networks.py), built with the presets of
# its train.py. 96 groups everywhere at 768 and at 1536 channels: 16 and 32 channels in a group.
@pytest.mark.parametrize(
    ("side", "classes", "network", "generator", "discriminator"),
    [
        (32, 0, {"width": 768, "max_width": 768}, 20_732_160, 20_683_776),  # CIFAR-10
        (32, 10, {"width": 768, "max_width": 768}, 20_781_952, 21_280_512),
        (64, 0, {"width": 384, "max_width": 768}, 22_429_824, 22_381_440),  # FFHQ-64
        (256, 0, {"width": 96, "max_width": 768}, 23_057_952, 23_009_568),  # FFHQ-256
        (32, 1000, {"width": 1536, "max_width": 1536, "group_size": 32}, 82_914_304, 86_548_992),  # ImageNet-32
        (64, 1000, {"width": 1536, "max_width": 1536, "group_size": 32}, 103_570_432, 107_205_120),  # ImageNet-64
    ],
    ids=["cifar10", "cifar10-conditional", "ffhq64", "ffhq256", "imagenet32", "imagenet64"],
)
def test_published_parameter_counts(side, classes, network, generator, discriminator):
    with torch.device("meta"):
        game = build((3, side, side), tuple(map(str, range(classes))), latent_dim=64, blocks=2, **network)
    count = {name: sum(p.numel() for p in getattr(game, name).parameters()) for name in ("generator", "discriminator")}
    # what `Head` has and the paper lacks: a bias, and beside a projection the unconditional logit
    count["discriminator"] -= 1 + (game.discriminator.head.logit.in_features if classes else 0)
    assert count == {"generator": generator, "discriminator": discriminator}


@pytest.mark.parametrize(
    ("width", "group_size", "groups"), [(768, 16, 96), (1536, 32, 96), (4, 16, 1), (20, 16, 5), (8, 1, 16)], ids=str
)
def test_groups(width, group_size, groups):
    with torch.device("meta"):
        block = r3gan._Block(r3gan.Config(group_size=group_size), width, depth=8)
    assert block.convolve.groups == groups


def test_blocks_start_as_the_identity_and_learn():
    block = r3gan._Block(r3gan.Config(), 8, depth=4)
    x = torch.randn(2, 8, 6, 6)
    y = block(x)
    assert torch.equal(y, x)
    y.square().sum().backward()
    assert block.narrow.weight.grad.abs().max() > 0
    let_blocks_speak(block)
    assert not torch.allclose(block(x), x)


@pytest.mark.parametrize("depth", [2, 16])
def test_variance_does_not_grow_with_depth(depth):
    """Each of L branches adds 1/L of the mean square: (1 + 1/L)^L in all, where without Fixup it would be 2^L."""
    torch.manual_seed(0)
    blocks = nn.Sequential(*[r3gan._Block(r3gan.Config(), 64, depth) for _ in range(depth)])
    for block in blocks:
        r3gan._scaled(block.narrow)
    with torch.no_grad():
        grown = mean_square(blocks(torch.randn(8, 64, 16, 16)))
    assert grown == pytest.approx((1 + 1 / depth) ** depth, rel=0.15)


@pytest.mark.parametrize("side", [8, 16, 64])
def test_signals_stay_of_order_one_at_first(side):
    game = build((3, side, side), latent_dim=64, width=32, max_width=32, blocks=1)
    cond = torch.arange(16) % 3
    with torch.no_grad():
        images = game.generator(game.ask({}, Noise(0, size=16), None), cond)
        verdict = game.discriminator(torch.randn(16, 3, 1, 1).expand(-1, -1, side, side), cond)  # smooth, as images are
    assert 0.05 < mean_square(images) < 1  # white noise, here the basis, is what resampling takes away
    assert 0.05 < mean_square(verdict.features) < 2
    assert 0.01 < mean_square(verdict.logits) < 10


def test_resampling_is_bilinear_and_its_adjoint():
    x, y = torch.randn(2, 3, 5, 6), torch.randn(2, 3, 10, 12)
    up, down = r3gan._Resample(up=True), r3gan._Resample(up=False)
    expected = F.interpolate(x, scale_factor=2, mode="bilinear")
    torch.testing.assert_close(up(x)[..., 1:-1, 1:-1], expected[..., 1:-1, 1:-1])
    torch.testing.assert_close((up(x) * y).sum(), 4 * (x * down(y)).sum())
    assert down(torch.ones(1, 1, 8, 8))[..., 1:-1, 1:-1].allclose(torch.ones(()))


@pytest.mark.parametrize("penalty", ["r1", "r2"])
def test_penalties_have_the_right_gradients(penalty):
    """The second derivative, against differences."""
    game = build(blocks=1, width=2)
    discriminator = game.discriminator.double()
    let_blocks_speak(discriminator)
    cond = torch.tensor([0, 2])
    real, fake = (torch.randn(2, 1, 8, 8, dtype=torch.float64, requires_grad=True) for _ in range(2))
    names, weights = zip(*[(n, p) for n, p in discriminator.named_parameters() if p.dim() > 1], strict=True)

    def paid(*weights):
        def logits(x):
            return functional_call(discriminator, dict(zip(names, weights, strict=True)), (x, cond)).logits

        deal = Deal(torch.zeros(2, 4), real, cond)
        return PENALTIES[penalty](
            Round(game, deal, Batch({}, Noise(0, size=2)), real, fake, logits(real), logits(fake))
        )

    assert paid(*weights).min() > 0
    assert torch.autograd.gradcheck(paid, weights, fast_mode=True)


@pytest.mark.parametrize("conditioning", ["concat", "projection", "auxiliary", "reacgan"])
def test_players_are_conditioned_on_the_label(conditioning):
    game = build(conditioning=conditioning)
    z = game.ask({}, Noise(0, size=1), None)
    images = [game.generator(z, torch.tensor([label])) for label in (0, 1)]
    assert not torch.equal(*images)
    logits = [game.discriminator(images[0], torch.tensor([label])).logits for label in (0, 1)]
    if conditioning in ("concat", "projection"):
        assert not torch.equal(*logits)
    else:  # conditioned by extra losses instead
        assert {term.name for term in game.terms} == {conditioning}


def test_players_are_conditioned_on_attributes():
    game = build(classes=(), attributes=("age", "size"))
    cond = torch.tensor([[0.0, 1.0], [2.0, 0.0]])
    z = game.ask({}, Noise(0, size=1), None).expand(2, -1)
    images = game.generator(z, cond)
    assert not torch.equal(images[0], images[1])
    logits = game.discriminator(images[:1].expand(2, -1, -1, -1), cond).logits
    assert logits[0] != logits[1]
    assert game.attributes == 2


def test_training_moves_everything_towards_the_data():
    """On images all of one grey a class, with the paper's loss and penalties: the generator finds the greys."""
    game = build(classes=("dark", "bright"), width=8, blocks=1)
    terms = tuple(Term(name, "discriminator", PENALTIES[name], 0.05) for name in ("r1", "r2"))
    game = dataclasses.replace(game, terms=terms)
    before = [p.detach().clone() for m in (game.generator, game.discriminator) for p in m.parameters()]
    players = [
        Learner(m, torch.optim.Adam(m.parameters(), lr=2e-3, betas=(0.0, 0.9)), 2e-3)
        for m in (game.generator, game.discriminator)
    ]
    labels = torch.arange(16) % 2
    greys = labels.float().view(-1, 1, 1, 1) - 0.5
    stats = {}
    for step in range(80):
        batch = Batch({"sample": greys.expand(-1, 1, 8, 8), "label": labels}, Noise(0, step, size=16))
        stats = adversarial_step(game, LOSSES["relativistic"], *players, [[batch]], step=step, kimg=0.0)
        assert all(torch.isfinite(value) for value in stats.values())
    assert {"loss/discriminator/r1", "loss/discriminator/r2"} <= set(stats)
    after = [p for m in (game.generator, game.discriminator) for p in m.parameters()]
    still = [tuple(a.shape) for a, b in zip(after, before, strict=True) if torch.equal(a, b)]
    assert still == [(1,)]  # the last bias, which a loss of differences leaves where it is
    with torch.no_grad():
        fake = game.generator(game.ask({}, Noise(1, size=16), None), labels)
    assert fake[labels == 0].mean() == pytest.approx(-0.5, abs=0.25)
    assert fake[labels == 1].mean() == pytest.approx(0.5, abs=0.25)
