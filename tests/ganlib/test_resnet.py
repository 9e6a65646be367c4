"""Residual networks under spectral norm, against the papers' equations and sizes."""

import copy

import pytest
import torch
from torch import nn
from zoo import batches, game_of, play, spec_of

from ganlib.game import Learner, adversarial_step
from ganlib.losses import LOSSES
from ganlib.models import resnet
from ganlib.noise import Noise

EVERYTHING = {
    "hierarchical": True,
    "latent_dim": 12,
    "generator_spectral": True,
    "orthogonal": 1e-4,
    "embedding_dim": 3,
    "max_width": 8,
}


def game(shape=(1, 16, 16), classes=("a", "b", "c"), **network):
    return game_of("resnet", spec_of("resnet", shape, classes), **network)


def plainly(layer, init="xavier"):
    return resnet._wrap(init, spectral=False)(layer)


def reals(n=2, shape=(1, 16, 16), seed=0):
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed))


def normed_layers(module):
    return {n: m for n, m in module.named_modules() if nn.utils.parametrize.is_parametrized(m, "weight")}


def largest(layer):
    """σ by the singular value decomposition."""
    return float(torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2))


@pytest.mark.parametrize("classes", [("a", "b", "c"), ()], ids=["labelled", "unlabelled"])
@pytest.mark.parametrize("network", [{}, EVERYTHING], ids=["plain", "everything"])
@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 32, 32), (1, 28, 56), (3, 96, 48), (1, 16, 256)], ids=str)
def test_shapes(shape, network, classes):
    if network:
        network = network | {"attention": [shape[1] // 2]}
    spec = spec_of("resnet", shape, classes)
    game = game_of("resnet", spec, **network)
    _, images, logits = play(game, spec)
    assert images.shape == (2, *shape)
    assert images.abs().max() <= 1
    assert logits.shape == (2,)


@pytest.mark.parametrize(
    ("shape", "network", "message"),
    [
        ((1, 4, 4), {}, "8 to 256 pixels.*found 4x4 with 1"),
        ((3, 100, 100), {}, "shorter side of 4 to 7; found 100x100"),
        ((1, 8, 512), {}, "found 8x512"),
        ((3, 32, 32), {"attention": [8, 32]}, r"attention: \[32\] are not among.*\[16, 8\]"),
        ((3, 64, 64), {"attention": [8], "discriminator_base": 16}, r"attention: \[8\] are not among.*\[32, 16\]"),
        ((3, 32, 32), {"hierarchical": True, "latent_dim": 6}, "6 does not divide into 4 chunks"),
    ],
)
def test_what_cannot_be_made_is_refused_in_one_line(shape, network, message):
    with pytest.raises(ValueError, match=message) as refusal:
        game(shape, **network)
    assert "\n" not in str(refusal.value)


# parameters of generator (None: it is not of this file's kind) and discriminator, and the network. From the logs of
# github.com/POSTECH-CVLab/PyTorch-StudioGAN: SNGAN and BigGAN on CIFAR-10 (2020-09-18, 2021-01-15), SAGAN on ImageNet
# (2021-02-11), BigGAN on Tiny ImageNet (2021-01-18). BigGAN-128: Brock et al. 2019, table 1, has 158.3 million for both
PUBLISHED = {
    "SNGAN-32": (
        None,
        1_055_105,
        (32, 10),
        {"width": 256, "max_width": 256, "discriminator_width": 128, "discriminator_base": 8},
    ),
    "BigGAN-32": (
        9_416_196,
        2_415_170,
        (32, 10),
        {
            "latent_dim": 80,
            "hierarchical": True,
            "width": 384,
            "max_width": 384,
            "discriminator_width": 192,
            "discriminator_base": 8,
            "attention": [16],
        },
    ),
    "BigGAN-64": (
        17_335_204,
        30_796_722,
        (64, 200),
        {"latent_dim": 100, "hierarchical": True, "width": 80, "max_width": 1280, "attention": [32]},
    ),
    "SAGAN-128": (None, 39_448_258, (128, 1000), {"width": 64, "max_width": 1024, "attention": [64]}),
    "BigGAN-128": (
        70_433_988,
        87_982_370,
        (128, 1000),
        {"latent_dim": 120, "hierarchical": True, "width": 96, "max_width": 1536, "attention": [64]},
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name):
    of_generator, of_discriminator, (size, classes), network = PUBLISHED[name]
    spec = spec_of("resnet", (3, size, size), tuple(map(str, range(classes))))
    common = {"latent_dim": 128, "discriminator_width": None, "init": "xavier"}
    common |= {"generator_spectral": False, "discriminator_spectral": False}  # slow on the device meta
    with torch.device("meta"):
        game = game_of("resnet", spec, **(common | network))
    counted = [sum(p.numel() for p in m.parameters()) for m in (game.generator, game.discriminator)]
    assert counted[1] == of_discriminator
    if of_generator is not None:  # which has biases before BatchNorm, where they do nothing
        idle = sum(block.convolve1.out_channels for block in game.generator.blocks)
        assert counted[0] + idle == of_generator


def test_sngans_generator_has_the_published_size():
    """StudioGAN's log has 4,304,387 with 10 classes; without, six BatchNorms have 2 rather than 20 rows of 256."""
    with torch.device("meta"):
        network = {"latent_dim": 128, "width": 256, "max_width": 256, "init": "xavier", "discriminator_spectral": False}
        generator = game((3, 32, 32), (), **network).generator
    assert sum(p.numel() for p in generator.parameters()) + 3 * 256 == 4_304_387 - 6 * 18 * 256


@pytest.mark.parametrize(("base", "size"), [(4, 4), (8, 8), (16, 16), (32, 16)])
def test_the_discriminator_stops_at_its_base(base, size):
    network = game((3, 32, 32), discriminator_base=base).discriminator
    assert network.layers(reals(shape=(3, 32, 32))).shape[2:] == (size, size)


@pytest.mark.parametrize("hierarchical", [False, True])
def test_what_the_players_make_depends_on_the_label(hierarchical):
    players = game(hierarchical=hierarchical, latent_dim=12)
    generator, discriminator = players.generator.eval(), players.discriminator.eval()
    z = players.ask({}, Noise(0, size=1), None)
    a, b = (generator(z, torch.tensor([label])) for label in (0, 1))
    assert (a - b).abs().max() > 1e-3
    logits = [discriminator(a, torch.tensor([label])).logits for label in (0, 1)]
    assert (logits[0] - logits[1]).abs().max() > 1e-3


@pytest.mark.parametrize("classes", [("a", "b", "c"), ()], ids=["labelled", "unlabelled"])
def test_each_chunk_of_a_hierarchical_latent_enters_at_its_block(classes):
    generator = game(classes=classes, hierarchical=True, latent_dim=12).generator.eval()
    cond = torch.tensor([1]) if classes else None
    seen = []
    for block in generator.blocks:
        block.register_forward_hook(lambda *args: seen.append(args[2].detach()))
    z = torch.randn(1, 12, generator=torch.Generator().manual_seed(0))
    generator(z, cond)
    before, changed = list(seen), []
    for chunk in range(3):
        other = z.clone()
        other[:, chunk * 4 : chunk * 4 + 4] += 1
        seen.clear()
        generator(other, cond)
        changed.append([not torch.equal(a, b) for a, b in zip(before, seen, strict=True)])
    assert changed == [[True, True], [True, True], [False, True]]  # the base's, the first block's, the second's


def test_the_players_begin_and_end_as_in_the_papers():
    """Miyato et al. 2018, table 4: dense, blocks, BatchNorm, ReLU, convolution, tanh; blocks, ReLU, sum, dense."""
    players = game(classes=())
    generator, discriminator = players.generator.eval(), players.discriminator.eval()
    z = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    maps = nn.Sequential(*generator.blocks)(generator.first(z).reshape(2, -1, 4, 4))
    images = torch.tanh(generator.last(torch.relu(generator.norm(maps))))
    torch.testing.assert_close(generator(z), images)
    features = torch.einsum("nchw->nc", torch.relu(discriminator.layers(images)))
    verdict = discriminator(images)
    torch.testing.assert_close(verdict.features, features)
    torch.testing.assert_close(verdict.logits, discriminator.head.logit(features)[:, 0])


@pytest.mark.parametrize(
    ("inner", "outer", "first", "halve"), [(3, 4, True, True), (4, 6, False, True), (4, 4, False, False)]
)
def test_the_discriminators_block_is_the_papers(inner, outer, first, halve):
    """Miyato et al. 2018, figure 8, whose shortcut convolves before it pools; the first block pools first."""
    torch.manual_seed(0)
    block = resnet._DiscriminatorBlock(inner, outer, plainly, first=first, halve=halve)
    nn.init.normal_(block.convolve1.bias)
    x = reals(shape=(inner, 8, 8))
    y = block.convolve2(torch.relu(block.convolve1(x if first else torch.relu(x))))
    expected = nn.AvgPool2d(2)(y) + nn.AvgPool2d(2)(block.shortcut(x)) if halve else y + x
    torch.testing.assert_close(block(x.clone()), expected, rtol=1e-4, atol=1e-5)


def test_the_generators_block_is_the_papers():
    """Miyato et al. 2018, figure 8, whose shortcut doubles before it convolves."""
    torch.manual_seed(0)
    block = resnet._GeneratorBlock(4, 6, nn.BatchNorm2d, plainly, nn.Identity())
    twice = nn.Upsample(scale_factor=2)
    x = reals(shape=(4, 5, 3))
    y = block.convolve1(twice(torch.relu(block.norm1(x))))
    expected = block.convolve2(torch.relu(block.norm2(y))) + block.shortcut(twice(x))
    torch.testing.assert_close(block(x.clone()), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("init", ["orthogonal", "xavier"])
@pytest.mark.parametrize("conditioning", ["projection", "auxiliary", "concat"])
def test_spectral_norm_bounds_every_layer_of_the_discriminator(conditioning, init):
    network = game(conditioning=conditioning, init=init, attention=[8]).discriminator
    layers = normed_layers(network)
    weighty = {n for n, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear | nn.Embedding)}
    assert set(layers) == weighty
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in layers.values():
            original = layer.parametrizations.weight.original
            original.copy_(torch.randn(original.shape, generator=generator) * 3)
            for _ in range(60):  # each look is a use
                _ = layer.weight
    assert {n: largest(layer) for n, layer in layers.items()} == pytest.approx(dict.fromkeys(layers, 1.0), rel=0.02)


def test_spectral_norm_is_switched_for_each_player():
    for spectral in (False, True):
        players = game(generator_spectral=spectral, discriminator_spectral=not spectral)
        assert bool(normed_layers(players.generator)) == spectral
        assert bool(normed_layers(players.discriminator)) != spectral
    assert "embedding.table" not in normed_layers(game(generator_spectral=True).generator)


def test_spectral_norm_survives_a_moving_average():
    """A mean of vectors that turn is short; where two are averaged, as in torch's own, σ = uᵀWv is the smaller."""
    torch.manual_seed(0)
    layer = resnet._wrap("xavier", spectral=True)(nn.Linear(20, 10))
    average = copy.deepcopy(layer).eval()
    for step in range(1, 101):
        with torch.no_grad():
            layer.parametrizations.weight.original.add_(0.1 * torch.randn(10, 20))
        layer(torch.ones(20))
        for mine, theirs in zip(average.state_dict().values(), layer.state_dict().values(), strict=True):
            mine.lerp_(theirs, 1 / step)
    assert average.parametrizations.weight[0].v.norm() < 0.95
    assert largest(average) == pytest.approx(1.0, abs=0.03)
    before = copy.deepcopy(average.state_dict())
    average(torch.ones(20))
    torch.testing.assert_close(average.state_dict(), before, rtol=0, atol=0)  # used, but not moved


def test_attention_starts_as_the_identity_and_is_the_papers():
    """Zhang et al. 2019, eq. 1 to 3, place by place in float64; keys and values are the largest of each 2x2 places."""
    torch.manual_seed(0)
    attention = resnet._Attention(8, plainly).double()
    x = reals(shape=(8, 4, 6)).double()
    torch.testing.assert_close(attention(x), x, rtol=0, atol=0)
    nn.init.constant_(attention.gamma, 0.7)
    f, g, h, v = (
        m.weight[:, :, 0, 0].detach() for m in (attention.key, attention.query, attention.value, attention.out)
    )
    expected = x.clone()
    for n in range(2):
        cells = [x[n, :, i : i + 2, j : j + 2].flatten(1) for i in range(0, 4, 2) for j in range(0, 6, 2)]
        keys = torch.stack([(f @ cell).amax(1) for cell in cells])
        values = torch.stack([(h @ cell).amax(1) for cell in cells])
        for i in range(4):
            for j in range(6):
                share = torch.softmax(keys @ (g @ x[n, :, i, j]), 0)
                expected[n, :, i, j] += 0.7 * (v @ (share @ values))
    assert (expected - x).abs().max() > 0.1
    torch.testing.assert_close(attention(x), expected)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_conditional_batch_norm_is_batch_norm_with_gains_of_its_own(layout):
    torch.manual_seed(0)
    mine = resnet._ConditionalBatchNorm(5, 3, plainly)
    theirs = nn.BatchNorm2d(5, affine=False)
    hint, seed = torch.randn(4, 3), torch.randn(4, 5, 6, 2)
    x = (torch.randn(4, 5, 6, 2) * 3 + 1).to(memory_format=layout)

    def reference(x, hint):
        gain, bias = hint @ mine.gain.weight.T, hint @ mine.bias.weight.T
        return theirs(x) * (1 + gain)[:, :, None, None] + bias[:, :, None, None]

    ends = []
    for layer in (mine, reference):
        a, b = x.clone().requires_grad_(), hint.clone().requires_grad_()
        y = layer(a, b)
        ends.append([y, *torch.autograd.grad((y * seed).sum(), [a, b, *mine.parameters()])])
        assert y.is_contiguous(memory_format=layout)
    for ours, expected in zip(*ends, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(mine.norm.running_var, theirs.running_var)
    mine.eval()
    theirs.eval()
    torch.testing.assert_close(mine(x, hint), reference(x, hint), rtol=1e-4, atol=1e-4)


def test_the_orthogonal_term_is_the_papers():
    """β ‖WᵀW ⊙ (1 − I)‖², Brock et al. 2019, eq. 3, whose W has a filter in each column."""
    players = game(orthogonal=1e-4, attention=[8], width=3, init="xavier")
    (term,) = players.terms
    assert (term.name, term.player, term.weight) == ("orthogonal", "generator", 1e-4)
    generator = players.generator.double()
    expected = 0.0
    for name, p in generator.named_parameters():
        if p.dim() > 1 and name != "embedding.table.weight":
            w = p.detach().reshape(len(p), -1).T
            expected += ((w.T @ w) * (1 - torch.eye(len(p), dtype=p.dtype))).square().sum()
    torch.testing.assert_close(resnet._overlap(generator).detach(), expected)
    assert not game().terms


def test_the_orthogonal_term_turns_filters_apart():
    spec, ends = spec_of("resnet", (1, 16, 16)), []
    for weight in (0.0, 1e-2):
        players = game(init="xavier", orthogonal=weight)
        modules = (players.generator, players.discriminator)
        learners = [Learner(m, torch.optim.SGD(m.parameters()), 0.01) for m in modules]
        for step in range(3):
            adversarial_step(players, LOSSES["hinge"], *learners, [batches(spec, key=step)], step=step, kimg=0.0)
        ends.append(resnet._overlap(players.generator).detach())
    assert ends[1] < 0.999 * ends[0]


def test_the_discriminator_can_be_differentiated_twice():
    """By finite differences in float64: attention is what curves it. Its buffers stand still outside training."""
    torch.manual_seed(0)
    network = game((1, 16, 16), (), attention=[8], width=2, discriminator_width=2).discriminator.double().eval()
    for module in network.modules():
        if isinstance(module, resnet._Attention):
            nn.init.constant_(module.gamma, 0.7)
    x = reals(1).double().requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: network(x).logits, (x,), atol=1e-4)

    weights = list(network.parameters())
    directions = [torch.randn_like(p) for p in weights]

    def r1():
        (slope,) = torch.autograd.grad(network(x).logits.sum(), x, create_graph=True)
        return slope.square().sum()

    gradients = torch.autograd.grad(r1(), weights, allow_unused=True)
    slope = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True) if g is not None)
    ends = []
    for move in (1e-6, -2e-6):
        with torch.no_grad():
            torch._foreach_add_(weights, directions, alpha=move)
        ends.append(r1().detach())
    torch.testing.assert_close((ends[0] - ends[1]) / 2e-6, slope.detach(), rtol=1e-4, atol=1e-6)


def test_a_resume_is_exact():
    spec = spec_of("resnet", (1, 16, 16))

    def players():
        made = game_of("resnet", spec, **(EVERYTHING | {"attention": [8]}))
        return made, [Learner(m, torch.optim.Adam(m.parameters()), 1e-3) for m in (made.generator, made.discriminator)]

    def play(made, learners, step):
        adversarial_step(made, LOSSES["hinge"], *learners, [batches(spec, key=step)], step=step, kimg=0.0)

    through, ours = players()
    for step in range(3):
        if step == 2:
            saved = copy.deepcopy([(a.module.state_dict(), a.optimizer.state_dict()) for a in ours])
        play(through, ours, step)
    resumed, theirs = players()
    for learner, (module, optimizer) in zip(theirs, saved, strict=True):
        learner.module.load_state_dict(module)
        learner.optimizer.load_state_dict(optimizer)
    play(resumed, theirs, 2)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.module.state_dict(), b.module.state_dict(), rtol=0, atol=0)
