"""StyleGAN2 against plain references: layers, styles, path length, growing."""

import copy
import dataclasses
import math

import numpy as np
import pytest
import scipy.signal
import scipy.stats
import torch
import torch.nn.functional as F
from torch import nn
from zoo import batches, game_of, spec_of

from ganlib import distributed
from ganlib.game import Batch, Learner, Round, adversarial_step
from ganlib.losses import LOSSES
from ganlib.models import _layers as layers
from ganlib.models import stylegan2
from ganlib.noise import Noise, normal

TAPS = np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 64


def a_game(size=16, channels=3, classes=(), **network):
    return game_of("stylegan2", spec_of("stylegan2", (channels, size, size), classes), **network)


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def inputs_of(game, n=4, key=0, **changes):
    return game.ask({}, Noise(key, size=n), None) | changes


# --- layers ----------------------------------------------------------------------------------------------------------


def test_the_published_number_of_parameters():
    """At 1024² with 3 channels, as NVlabs/stylegan2-ada-pytorch prints its networks when training starts.

    Discriminator 29,012,513; generator 28,794,124 with two mapping layers, each of 512 · 512 + 512 parameters, so
    30,370,060 with the eight of the paper.
    """
    spec = spec_of("stylegan2", (3, 1024, 1024), ())
    counts = {}
    for depth in (2, 8):
        with torch.device("meta"):
            game = stylegan2.build(stylegan2.Config(mapping_layers=depth), spec)
        counts[depth] = [sum(p.numel() for p in m.parameters()) for m in (game.generator, game.discriminator)]
    assert counts == {2: [28_794_124, 29_012_513], 8: [30_370_060, 29_012_513]}


@pytest.mark.parametrize("shape", [(3, 4, 4), (3, 24, 24), (1, 32, 64), (3, 2048, 2048)], ids=str)
def test_refused_sizes(shape):
    with pytest.raises(ValueError, match=r"^stylegan2 makes square images.*found"):
        a_game(shape[1]) if shape[1] == shape[2] else game_of("stylegan2", spec_of("stylegan2", shape))


def zeros_between(x):
    """Pixels at even places of twice the size less one."""
    wide = x.new_zeros(*x.shape[:2], 2 * x.shape[2] - 1, 2 * x.shape[3] - 1)
    wide[:, :, ::2, ::2] = x
    return wide


@pytest.mark.parametrize("what", ["blur", "down", "up"])
def test_the_filter_is_a_convolution(what):
    x, gain = draw(2, 3, 6, 8), 4.0 if what == "up" else 1.0
    fir = layers.Fir(gain)
    # [1, 3, 3, 1] is symmetric: convolution and correlation are one
    full = [[scipy.signal.convolve2d(plane, TAPS * gain) for plane in image] for image in x.numpy()]
    if what == "blur":
        ours, wanted = fir.blur(x, padding=2), np.array(full)[:, :, 1:-1, 1:-1]
    elif what == "down":
        ours, wanted = fir.down(x), np.array(full)[:, :, 2:-2:2, 2:-2:2]
    else:
        wide = zeros_between(x).numpy()
        full = [[scipy.signal.convolve2d(plane, TAPS * gain) for plane in image] for image in wide]
        ours, wanted = fir.up(x), np.array(full)[:, :, 1:-1, 1:-1]
    np.testing.assert_allclose(ours.numpy(), wanted, atol=1e-12)


def test_doubling_the_size_keeps_a_plane_and_halving_undoes_it():
    plane = torch.full((1, 2, 8, 8), 0.7)
    up = layers.Fir(4.0).up(plane)
    torch.testing.assert_close(up[..., 1:-1, 1:-1], torch.full((1, 2, 14, 14), 0.7))
    torch.testing.assert_close(layers.Fir().down(up)[..., 1:-1, 1:-1], plane[..., 1:-1, 1:-1])


@pytest.mark.parametrize("up", [False, True])
@pytest.mark.parametrize("normal", [True, False])
def test_modulated_convolutions_are_those_of_scaled_weights(normal, up):
    """Karras et al. 2020, eq. 1 and 3, with weights of its own for each example."""
    conv = layers.ModulatedConv(5, 3, 4, normal=normal, up=up and normal).double()
    with torch.no_grad():
        conv.bias.copy_(draw(4, seed=1))
    x, w = draw(2, 3, 6, 6, seed=2), draw(2, 5, seed=3)
    styles = F.linear(w, conv.affine.parametrizations.weight.original.detach() / math.sqrt(5)) + 1.0
    wanted = []
    for image, style in zip(x, styles, strict=True):
        weight = conv.weight.detach() / math.sqrt(conv.weight[0].numel()) * style[None, :, None, None]
        if not normal:
            wanted.append(F.conv2d(image[None], weight) + conv.bias.detach()[:, None, None])
            continue
        weight = weight / (weight.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
        if up:
            y = F.conv2d(F.pad(zeros_between(image[None]), [2, 2, 2, 2]), weight.flip(2, 3))
            filtered = [scipy.signal.convolve2d(plane, TAPS * 4)[2:-2, 2:-2] for plane in y[0].numpy()]
            y = torch.tensor(np.array(filtered))[None]
        else:
            y = F.conv2d(image[None], weight, padding=1)
        wanted.append(F.leaky_relu(y + conv.bias.detach()[:, None, None], 0.2) * math.sqrt(2))
    torch.testing.assert_close(conv(x, w).detach(), torch.cat(wanted))


def test_noise_is_added_to_every_channel_by_its_learned_strength():
    conv = layers.ModulatedConv(5, 3, 4, start=100)
    x, w, keys = draw(2, 3, 6, 6).float(), draw(2, 5).float(), torch.tensor([1, 2])
    assert torch.equal(conv(x, w, keys), conv(x, w))  # it starts at 0
    nn.init.constant_(conv.noise_strength, 0.5)
    noise = normal(keys, 100, 36).view(2, 1, 6, 6)

    def before(y):  # the activation
        return torch.where(y < 0, y / 0.2, y) / math.sqrt(2)

    with torch.no_grad():
        torch.testing.assert_close(before(conv(x, w, keys)) - before(conv(x, w)), (0.5 * noise).expand(2, 4, 6, 6))


@pytest.mark.parametrize(("rows", "group"), [(8, 4), (6, 3), (4, 4), (2, 2), (7, 1), (5, 1)])
def test_minibatch_deviation(rows, group):
    """Groups of 4 neighbours, or of the next smaller number that divides the rows."""
    x, wanted = draw(rows, 3, 2, 2), []
    for start in range(0, rows, group):
        wanted += [x[start : start + group].numpy().std(0).mean()] * group
    y = layers.MinibatchDeviation(4)(x)
    assert torch.equal(y[:, :3], x)
    torch.testing.assert_close(
        y[:, 3], torch.tensor(wanted, dtype=x.dtype)[:, None, None].expand(rows, 2, 2), atol=2e-4, rtol=0
    )


def test_minibatch_deviation_of_ranks_is_that_of_the_batch():
    x, layer = draw(16, 3, 2, 2), layers.MinibatchDeviation(4)
    torch.testing.assert_close(torch.cat([layer(part) for part in x.split(8)]), layer(x))
    assert not torch.equal(torch.cat([layer(part) for part in x.split(2)]), layer(x))


def test_equalised_weights():
    layer = layers.equalised(nn.Conv2d(50, 40, 3), gain=2.0, bias=1.0, lr_multiplier=0.1)
    raw = layer.parametrizations.weight.original
    assert float(raw.detach().std()) == pytest.approx(10, rel=0.05)
    assert float(layer.weight.detach().std()) == pytest.approx(2 / math.sqrt(450), rel=0.05)
    assert torch.equal(layer.bias, torch.full((40,), 2.0))
    before, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.01)
    layer(torch.ones(1, 50, 3, 3)).sum().backward()
    optimizer.step()  # Adam's first step is of lr, scaled: Karras et al. 2018, section 4.1
    torch.testing.assert_close(before - layer.weight, torch.full_like(before, 0.01 * 0.1 * 2 / math.sqrt(450)))
    torch.testing.assert_close(bias - layer.bias, torch.full_like(bias, 0.01 * 0.1 * 2))


# --- styles ----------------------------------------------------------------------------------------------------------


def test_mixing_takes_the_second_style_from_the_crossing_on():
    game = a_game()
    generator = game.generator.eval()
    assert generator.synthesis.layers == 6  # 2 log₂ 16 − 2
    z = torch.stack([draw(4, seed=1), draw(4, seed=2)])[None].float()
    first, second = generator.mapping(z[:, 0]), generator.mapping(z[:, 1])
    for crossing in range(1, 7):
        inputs = inputs_of(game, 1, z=z, crossing=torch.tensor([crossing]))
        ws = torch.stack([first] * crossing + [second] * (6 - crossing), 1)
        torch.testing.assert_close(generator(inputs), generator.synthesis(ws, inputs["noise"]))
    alone = inputs_of(game, 1, z=z[:, :1])
    torch.testing.assert_close(generator(inputs | {"noise": alone["noise"]}), generator(alone))


def test_which_layer_has_which_style():
    """As published: an image's convolution and the next size's first share one; 18 styles at 1024²."""
    synthesis, seen = a_game().generator.synthesis, {}
    for name, part in synthesis.named_modules():
        if isinstance(part, layers.ModulatedConv):
            part.register_forward_pre_hook(lambda _, given, name=name: seen.update({name: int(given[1][0, 0])}))
    synthesis(torch.arange(6.0)[None, :, None].expand(1, 6, 4))
    assert seen == {
        "convs.0": 0,
        "to_image.0": 1,
        "ups.0": 1,
        "convs.1": 2,
        "to_image.1": 3,
        "ups.1": 3,
        "convs.2": 4,
        "to_image.2": 5,
    }


@pytest.mark.parametrize("classes", [(), ("a", "b")], ids=["unlabelled", "labelled"])
def test_the_mapping_network(classes):
    """z and the label's embedding at unit length, then layers whose weights move a hundredth as fast."""
    mapping = a_game(classes=classes, mapping_layers=2).generator.mapping.double()
    z, cond = draw(3, 4) * 5, torch.tensor([0, 1, 1])

    def at_unit_length(x):
        return x / x.norm(dim=1, keepdim=True) * 2  # √4

    w = at_unit_length(z)
    if classes:
        w = torch.cat([w, at_unit_length(mapping.embedding.table.weight[cond])], 1)
    for layer in mapping.layers:
        raw, bias = layer.parametrizations.weight.original, layer.parametrizations.bias.original
        w = F.leaky_relu(F.linear(w, raw * 0.01 / math.sqrt(raw.shape[1]), bias * 0.01), 0.2) * math.sqrt(2)
    torch.testing.assert_close(mapping(z, cond), w)


def test_mixing_is_dealt_to_the_share_that_is_asked_for():
    spec = spec_of("stylegan2", (3, 16, 16), ())
    (batch,) = batches(spec, n=2000)
    for share in (0.9, 0.0):
        crossing = game_of("stylegan2", spec, style_mixing=share).deal(batch).inputs["crossing"]
        assert (crossing < 6).double().mean() == pytest.approx(share, abs=0.03)
    crossing = game_of("stylegan2", spec, style_mixing=1.0).deal(batch).inputs["crossing"]
    assert torch.bincount(crossing).tolist()[1:] == pytest.approx([400] * 5, rel=0.2)
    calm = game_of("stylegan2", spec).deal(dataclasses.replace(batch, training=False))
    assert (calm.inputs["crossing"] == 6).all()


def test_truncation_draws_to_the_mean_style():
    game = a_game()
    generator = game.generator.eval()
    generator.w_mean.copy_(draw(4))
    inputs = inputs_of(game) | {"noise": torch.full((4,), 7, dtype=torch.int32)}
    images = generator(inputs | {"truncation": torch.zeros(4)})
    torch.testing.assert_close(images, images[:1].expand_as(images))
    w = generator.mapping(inputs["z"][:, 0])
    half = generator.styles(inputs | {"truncation": torch.full((4,), 0.5)})
    torch.testing.assert_close(half, ((w + generator.w_mean) / 2)[:, None].expand_as(half))
    assert torch.equal(generator.styles(inputs)[:, 0], w)
    assert torch.equal(game.ask({}, Noise(0, size=4), 0.3)["truncation"], torch.full((4,), 0.3))


def test_the_mean_style_follows_the_batchs_first_styles_over_all_ranks(monkeypatch):
    (batch,) = batches(spec_of("stylegan2", (3, 16, 16), ()), n=4)
    game = a_game(w_mean_decay=0.75)
    generator = game.generator
    inputs = game.deal(batch).inputs
    generator.eval()(inputs)
    assert not generator.w_mean.any()
    wanted = generator.mapping(inputs["z"][:, 0]).mean(0).detach()
    generator.train()(inputs)
    torch.testing.assert_close(generator.w_mean, wanted * 0.25)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "all_reduce", lambda x: x + 3.0)  # another rank's
    generator(inputs)
    torch.testing.assert_close(generator.w_mean, wanted * 0.25 * 0.75 + (wanted + 3) / 2 * 0.25)


def test_images_do_not_depend_on_the_rest_of_the_batch():
    game = a_game(classes=("a", "b"))
    inputs, cond = inputs_of(game), torch.tensor([0, 1, 0, 1])
    images = game.generator.eval()(inputs, cond)
    alone = game.generator({name: x[2:3] for name, x in inputs.items()}, cond[2:3])
    torch.testing.assert_close(alone, images[2:3], rtol=1e-4, atol=1e-5)
    assert images.std(0).mean() > 0.01


@pytest.mark.parametrize("part", ["z", "noise"])
def test_microbatches_are_dealt_what_the_batch_is(part):
    spec = spec_of("stylegan2", (3, 16, 16), ())
    game = game_of("stylegan2", spec)
    (whole,) = batches(spec)
    parts = [game.deal(b).inputs[part] for b in batches(spec, parts=4)]
    assert torch.equal(torch.cat(parts), game.deal(whole).inputs[part])
    assert len(torch.cat(parts).unique(dim=0)) == 8


# --- path length -----------------------------------------------------------------------------------------------------


def path_length_of(game, spec, n):
    (batch,) = batches(spec, n=n)
    deal = game.deal(batch)
    deal = dataclasses.replace(
        deal, inputs={k: x.double() if x.is_floating_point() else x for k, x in deal.inputs.items()}
    )
    return Round(game, deal, Batch({}, Noise(9, size=n)), deal.real, deal.real, None, torch.zeros(n))


def test_path_length_is_the_jacobians():
    """‖Jᵀy‖ by the whole Jacobian, for every second example; then the running mean, by hand."""
    spec = spec_of("stylegan2", (1, 8, 8))
    game = game_of("stylegan2", spec, path_length_decay=0.25)
    generator, (term,) = game.generator.double(), game.terms
    assert (term.player, term.weight, term.every) == ("generator", 2.0, 4)
    mean = 0.0
    for _ in range(2):
        round = path_length_of(game, spec, 4)
        y = normal(Noise(9, size=4).fork("path length").row_keys, 0, 64).double() / 8
        ws = generator.styles(round.deal.inputs, round.deal.cond).detach()
        lengths = []
        for row in (0, 2):
            noise = round.deal.inputs["noise"][row : row + 1]
            jacobian = torch.autograd.functional.jacobian(
                lambda w, noise=noise: generator.synthesis(w, noise).flatten(), ws[row : row + 1]
            )
            pulled = torch.einsum("pnld,p->ld", jacobian, y[row])
            lengths.append(pulled.square().sum(1).mean().sqrt())
        mean = mean + 0.25 * (float(torch.stack(lengths).mean()) - mean)
        wanted = (torch.stack(lengths) - mean).square()
        torch.testing.assert_close(term.fn(round).detach(), wanted)
        assert float(term.fn.mean) == pytest.approx(mean)


def test_path_lengths_gradient_by_finite_differences():
    spec = spec_of("stylegan2", (1, 8, 8))
    game = game_of("stylegan2", spec, path_length_decay=0.0, path_length_shrink=1)
    generator, fn = game.generator.double(), game.terms[0].fn.double()
    fn.mean.fill_(0.5)

    def fresh():
        return path_length_of(game, spec, 2)

    weights = [p for p in generator.parameters() if p.dim() > 1]
    gradients = torch.autograd.grad(fn(fresh()).sum(), weights)
    directions, ends = [draw(*p.shape, seed=i) for i, p in enumerate(weights)], []
    for step in (1e-6, -2e-6):
        with torch.no_grad():
            for p, direction in zip(weights, directions, strict=True):
                p.add_(step * direction)
        ends.append(float(fn(fresh()).detach().sum()))
    slope = sum(float((g * d).sum()) for g, d in zip(gradients, directions, strict=True))
    assert slope != 0
    assert (ends[0] - ends[1]) / 2e-6 == pytest.approx(slope, rel=1e-4)


def test_path_lengths_mean_is_that_of_all_ranks(monkeypatch):
    spec = spec_of("stylegan2", (1, 8, 8))
    game = game_of("stylegan2", spec, path_length_decay=1.0)
    game.generator.double()
    game.terms[0].fn(path_length_of(game, spec, 4))
    mine = float(game.terms[0].fn.mean)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "all_reduce", lambda x: x + 5.0)
    game.terms[0].fn(path_length_of(game, spec, 4))
    assert float(game.terms[0].fn.mean) == pytest.approx((mine + 5) / 2)


def test_without_path_length_there_is_no_term():
    assert a_game(path_length_weight=0).terms == ()


# --- players ---------------------------------------------------------------------------------------------------------


def test_the_discriminator_is_the_papers():
    """A block by its definition: (skip + convolved) / √2, each halved through the filter."""
    block = a_game(8).discriminator.blocks[0].double()
    x, fir = draw(2, 4, 8, 8), layers.Fir()
    raw = {name: p.detach() for name, p in block.named_parameters()}

    def convolved(x, name, **options):
        weight = raw[f"{name}.parametrizations.weight.original"]
        return F.conv2d(x, weight / math.sqrt(weight[0].numel()), raw.get(f"{name}.bias"), **options)

    hidden = convolved(x, "conv", padding=1) + raw["conv.parametrizations.bias.original"][:, None, None]
    hidden = F.leaky_relu(hidden, 0.2) * math.sqrt(2)
    hidden = F.leaky_relu(convolved(fir.blur(hidden, 2), "down", stride=2), 0.2) * math.sqrt(2)
    wanted = (hidden + convolved(fir.down(x), "skip")) / math.sqrt(2)
    torch.testing.assert_close(block(x).detach(), wanted)


def test_half_precision_stays_close():
    game = a_game(classes=("a", "b"))
    inputs, cond = inputs_of(game), torch.tensor([0, 1, 0, 1])
    with torch.no_grad():
        images = game.generator(inputs, cond)
        logits = game.discriminator(images, cond).logits
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = game.generator(inputs, cond)
            judged = game.discriminator(images, cond).logits
    assert rough.dtype == judged.dtype == torch.float32
    assert 0 < (rough - images).abs().max() < 0.05 * images.abs().max()
    assert 0 < (judged - logits).abs().max() < 0.1 * logits.abs().max()


# --- growing ---------------------------------------------------------------------------------------------------------

GROWING = {"progressive": True, "stage_kimg": 2.0, "fade_kimg": 4.0}


def grown(kimg, **network):
    game = a_game(**GROWING, **network)
    for module in (game.generator, game.discriminator):
        game.progress(module, kimg)
    return game


@pytest.mark.parametrize(
    ("kimg", "level"), [(0, 0), (2, 0), (3, 0.25), (6, 1), (8, 1), (11, 1.75), (12, 2), (13, 2), (1e6, 2)]
)
def test_levels_are_held_then_the_next_fades_in(kimg, level):
    game = grown(kimg)
    assert float(game.generator.synthesis.level) == float(game.discriminator.level) == level
    assert "synthesis.level" in game.generator.state_dict()  # so what is exported mid-fade is what was trained


def test_the_level_is_loaded_and_copied_with_the_weights():
    grown_half, fresh = grown(11).generator, grown(0).generator
    assert copy.deepcopy(grown_half).synthesis.current_level == 1.75
    fresh.load_state_dict(grown_half.state_dict())
    assert fresh.synthesis.current_level == 1.75
    inputs = inputs_of(a_game())
    assert torch.equal(fresh(inputs), grown_half(inputs))


@pytest.mark.parametrize("progressive", [True, False], ids=["growing", "of one size"])
def test_no_tensor_is_read_on_the_host(progressive):
    """To read one would wait for the GPU, and cannot be captured in a CUDA graph."""
    game = grown(10) if progressive else a_game()
    (batch,) = batches(spec_of("stylegan2", (3, 16, 16), ()))
    with torch.profiler.profile(acc_events=True) as profiler:
        deal = game.deal(batch)
        images = game.generator(deal.inputs, deal.cond)
        game.discriminator(images, deal.cond)
    assert not {"aten::item", "aten::_local_scalar_dense", "aten::nonzero"} & {e.name for e in profiler.events()}


def test_full_grown_players_are_those_that_never_grew():
    growing, plain = grown(12), a_game()
    plain.generator.load_state_dict(growing.generator.state_dict(), strict=False)
    plain.discriminator.load_state_dict(growing.discriminator.state_dict(), strict=False)
    inputs = inputs_of(plain)
    images = growing.generator(inputs)
    assert torch.equal(images, plain.generator(inputs))
    assert torch.equal(growing.discriminator(images).logits, plain.discriminator(images).logits)
    assert plain.progress is None


def test_at_first_there_are_4x4_pixels():
    game = grown(0)
    images = game.generator(inputs_of(game))
    assert images.shape == (4, 3, 16, 16)
    small = images[..., ::4, ::4]
    assert torch.equal(images, small.repeat_interleave(4, 2).repeat_interleave(4, 3))
    reals = draw(4, 3, 16, 16).float()
    coarse = F.avg_pool2d(reals, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    torch.testing.assert_close(game.discriminator(reals).logits, game.discriminator(coarse).logits)


@pytest.mark.parametrize("kimg", [2, 6, 8, 12])  # where a fade begins or ends
def test_growing_is_continuous(kimg):
    before, at, after = (grown(kimg + shift) for shift in (-1e-4, 0, 1e-4))
    reals = draw(4, 3, 16, 16).float()
    for near in (before, after):
        for wanted, ours in (
            (at.generator(inputs_of(at)), near.generator(inputs_of(at))),
            (at.discriminator(reals).logits, near.discriminator(reals).logits),
        ):
            torch.testing.assert_close(ours, wanted, rtol=1e-3, atol=1e-3)


def test_a_fade_blends_both_sizes():
    """Karras et al. 2018, figure 2: half way from 8x8 to 16x16, in generator, discriminator and reals."""
    game = grown(10)
    low, high = grown(6), grown(12)
    inputs = inputs_of(game)
    torch.testing.assert_close(game.generator(inputs), (low.generator(inputs) + high.generator(inputs)) / 2)

    (batch,) = batches(spec_of("stylegan2", (3, 16, 16), ()))
    real, coarse = batch.data["sample"], F.avg_pool2d(batch.data["sample"], 2)
    coarse = coarse.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(game.deal(batch).real, (real + coarse) / 2)
    assert torch.equal(game.deal(dataclasses.replace(batch, training=False)).real, real)
    assert torch.equal(high.deal(batch).real, real)

    d = game.discriminator
    x = (d.blocks[1](d.from_image["2"](real)) + d.from_image["1"](F.avg_pool2d(real, 2))) / 2
    for layer in (d.blocks[0], d.compare, d.conv):
        x = layer(x)
    wanted = d.head(layers.activate(d.linear(layers.activate(x).flatten(1))), None)
    torch.testing.assert_close(d(real).logits, wanted.logits)


def test_sizes_still_to_come_take_no_work_and_do_not_move():
    spec = spec_of("stylegan2", (3, 16, 16), ())
    game = game_of("stylegan2", spec, **GROWING)
    players = [
        Learner(m, torch.optim.Adam(m.parameters(), lr=0.1), lr=0.1) for m in (game.generator, game.discriminator)
    ]
    before = {name: p.detach().clone() for player in players for name, p in player.module.named_parameters()}
    called = []
    for name, part in game.generator.named_modules():
        part.register_forward_hook(lambda *_, name=name: called.append(name))
    stats = adversarial_step(game, LOSSES["non_saturating"], *players, [batches(spec)], step=0, kimg=3.0)
    assert all(torch.isfinite(v) for v in stats.values())
    moved = {
        name: not torch.equal(before[name], p) for player in players for name, p in player.module.named_parameters()
    }
    sleeping = ("synthesis.ups.1", "synthesis.convs.2", "synthesis.to_image.2", "blocks.1", "from_image.2")
    for name, did in moved.items():
        if "weight" in name:
            assert did != name.startswith(sleeping), name
    assert "synthesis.convs.1" in called
    assert not [name for name in called if name.startswith(sleeping)]
