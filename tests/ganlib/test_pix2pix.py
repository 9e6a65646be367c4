"""Pix2pix: its published sizes, what each player sees, and the deal."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from specs import pair_spec
from torch import nn

from ganlib.game import Batch, Learner, adversarial_step
from ganlib.losses import LOSSES
from ganlib.models import pix2pix
from ganlib.models._layers import BatchNorm
from ganlib.noise import Noise

SPEC = pair_spec(3, 3, (32, 32))


def build(shape=(6, 32, 32), given=3, **network):
    torch.manual_seed(0)
    network = {"width": 4, "max_width": 8, "discriminator_width": 4, **network}
    return pix2pix.build(pix2pix.Config(**network), pair_spec(given, shape[0] - given, shape[1:]))


def pairs(n, *shape, seed=0):
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def batch(data, *, training=True, key=0, rows=None):
    """Of the two halves of the channels, or one and the rest."""
    size = len(data)
    source, sample = (data if rows is None else data[rows]).tensor_split([data.shape[1] // 2], 1)
    return Batch({"source": source, "sample": sample}, Noise(key, size=size, rows=rows), training=training)


# -- networks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_parameters_are_those_published(norm):
    """54.414 M and 2.769 M: what pytorch-CycleGAN-and-pix2pix prints for facades (unet_256, basic, batch norm)."""
    with torch.device("meta"):
        game = build((6, 256, 256), width=64, max_width=512, discriminator_width=64, norm=norm)
    counts = [sum(p.numel() for p in player.parameters()) for player in (game.generator, game.discriminator)]
    assert counts == [54_413_955, 2_768_705]


@pytest.mark.parametrize(("levels", "pixels"), [(0, 1), (1, 16), (2, 34), (3, 70), (4, 142), (5, 286)])
def test_each_logit_sees_one_patch(levels, pixels):
    """Isola et al. 2017, section 4.4 has 1, 16, 70 and 286. By where its gradient is not zero."""
    side = 320
    game = build((2, side, side), 1, discriminator_width=1, patch_levels=levels)
    for layer in game.discriminator.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.constant_(layer.weight, 1.0)  # so that no gradients cancel
    game.discriminator.layers = nn.Sequential(  # a norm looks at the whole image, if only at its mean
        *(layer for layer in game.discriminator.layers if not isinstance(layer, nn.InstanceNorm2d))
    )
    image, source = (torch.rand(1, 1, side, side, requires_grad=True) for _ in range(2))
    logits = game.discriminator(image, source)
    logits[0, logits.shape[1] // 2, logits.shape[2] // 2].backward()
    for gradient in (image.grad, source.grad):
        rows, columns = gradient[0, 0].nonzero().T
        assert (rows.max() - rows.min() + 1, columns.max() - columns.min() + 1) == (pixels, pixels)


def test_patches_at_256_are_30_by_30():
    game = build((6, 256, 256), patch_levels=3)
    assert game.discriminator(torch.zeros(2, 3, 256, 256), torch.zeros(2, 3, 256, 256)).shape == (2, 30, 30)


@pytest.mark.parametrize(
    ("shape", "given", "levels"),
    [((4, 16, 16), 3, 4), ((4, 32, 64), 1, 5), ((2, 96, 48), 1, 4), ((6, 512, 512), 3, 8)],
    ids=str,
)
@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_shapes(shape, given, levels, norm):
    game = build(shape, given, norm=norm, patch_levels=2)
    deal = game.deal(batch(pairs(2, *shape)))
    assert len(game.generator.down) == levels
    assert deal.inputs["source"].shape == deal.cond.shape == (2, given, *shape[1:])
    image = game.generator(deal.inputs, deal.cond)
    assert image.shape == deal.real.shape == (2, shape[0] - given, *shape[1:])
    assert image.abs().max() <= 1
    logits = game.discriminator(image, deal.cond)
    assert logits.shape == (2, shape[1] // 4 - 2, shape[2] // 4 - 2)
    assert game.classes == 0


def test_every_level_of_the_u_net_hands_over_what_it_saw():
    game = build(dropout=0)
    source = pairs(1, 3, 32, 32)
    whole = game.generator({"source": source})
    for level in range(len(game.generator.down) - 1):
        cut = copy.deepcopy(game.generator)
        before = cut.up[-level] if level else cut.last
        deconvolution = before[1]
        with torch.no_grad():  # its inputs are what is above, then what the skip brought
            deconvolution.weight[len(deconvolution.weight) // 2 :] = 0
        assert not torch.allclose(cut({"source": source}), whole)
    around = copy.deepcopy(game.generator)
    for layer in around.up:
        nn.init.zeros_(layer[1].weight)  # nothing comes up from below
    assert around({"source": source}).std() > 0


def test_the_discriminator_sees_the_source():
    game = build()
    image, one, other = pairs(3, 3, 32, 32).split(1)
    assert not torch.allclose(game.discriminator(image, one), game.discriminator(image, other))


@pytest.mark.parametrize(
    ("shape", "network", "said"),
    [
        ((6, 8, 8), {}, r"16 to 1024 pixels.*found 8x8"),
        ((6, 40, 64), {}, r"multiple of 16; found 40x64"),
        ((6, 2048, 64), {}, "found 2048x64"),
        ((6, 16, 64), {}, r"patch_levels 3 needs 24 pixels a side, found 16x64: at most 2 levels"),
        ((6, 64, 64), {"patch_levels": 5}, "needs 96 pixels a side, found 64x64: at most 4 levels"),
    ],
    ids=str,
)
def test_sizes_that_do_not_fit_are_refused(shape, network, said):
    with pytest.raises(ValueError, match=said):
        build(shape, **network)


@pytest.mark.parametrize("side", range(16, 129, 16))
def test_as_many_patch_levels_as_are_said_do_fit(side):
    most = (side // 3).bit_length() - 1
    game = build((2, side, side), 1, patch_levels=most)
    assert game.discriminator(torch.zeros(1, 1, side, side), torch.zeros(1, 1, side, side)).numel() > 0
    with pytest.raises(ValueError, match=f"at most {most} levels"):
        build((2, side, side), 1, patch_levels=most + 1)


def test_norms():
    kinds = {"batch": BatchNorm, "instance": nn.InstanceNorm2d}
    data = pairs(4, 6, 32, 32)
    for norm, kind in kinds.items():
        game = build(norm=norm, dropout=0)
        for player, count in ((game.generator, 7), (game.discriminator, 3)):
            assert sum(isinstance(layer, kind) for layer in player.modules()) == count
        together, alone = game.generator({"source": data[:, :3]}), game.generator({"source": data[:1, :3]})
        assert torch.allclose(together[:1], alone, atol=1e-5) == (norm == "instance")


# -- the deal ------------------------------------------------------------------------------------------------


def test_jitter_moves_both_halves_alike():
    game = build((6, 64, 64))
    half = pairs(6, 3, 64, 64)
    deal = game.deal(batch(half.repeat(1, 2, 1, 1)))
    assert torch.equal(deal.inputs["source"], deal.real)
    assert torch.equal(deal.cond, deal.real)
    assert not torch.equal(deal.real, half)


def test_jitter_is_a_cut_of_the_enlarged_image():
    height, width = 32, 48
    rows, columns = torch.linspace(-1, 1, height), torch.linspace(-1, 1, width)
    image = torch.stack([rows[:, None].expand(height, width), columns.expand(height, width)])
    larger = F.interpolate(image[None], (36, 54), mode="bilinear", align_corners=False)[0]
    game = build((2, height, width), 1, patch_levels=2)
    deal = game.deal(batch(image.expand(64, -1, -1, -1).contiguous()))
    where = {(top, left): larger[:, top : top + height, left : left + width] for top in range(5) for left in range(7)}
    cuts = torch.cat([deal.cond, deal.real], 1)
    found = [next(place for place, window in where.items() if torch.equal(cut, window)) for cut in cuts]
    assert [set(axis) for axis in zip(*found, strict=True)] == [set(range(5)), set(range(7))]
    assert len(set(found)) > 22  # of 35, in 64 draws: the two are drawn independently


def test_no_jitter_to_look_at_but_dropout():
    data = pairs(4, 6, 32, 32)
    for game, training in ((build(), False), (build(jitter=False), True)):
        deal = game.deal(batch(data, training=training))
        assert torch.equal(torch.cat([deal.cond, deal.real], 1), data)
        assert sorted(deal.inputs) == ["drop0", "drop1", "drop2", "source"]


def test_dropout_is_dealt():
    game = build((6, 64, 64), width=8, max_width=64, dropout=0.25)
    data = pairs(32, 6, 64, 64)
    deal = game.deal(batch(data, training=False))
    shapes = [tuple(deal.inputs[f"drop{i}"].shape[1:]) for i in range(3)]
    assert shapes == [(64, 2, 2), (64, 4, 4), (32, 8, 8)]
    assert deal.inputs["drop2"].unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert (deal.inputs["drop2"] == 0).float().mean() == pytest.approx(0.25, abs=0.01)
    other = game.deal(batch(data, training=False, key=1))
    first, second = (game.generator(d.inputs) for d in (deal, other))
    assert torch.equal(deal.inputs["source"], other.inputs["source"])
    assert not torch.allclose(first, second)
    assert set(build(dropout=0).deal(batch(pairs(2, 6, 32, 32))).inputs) == {"source"}
    for i in range(3):  # each mask reaches the image
        less = {**deal.inputs, f"drop{i}": torch.zeros_like(deal.inputs[f"drop{i}"])}
        assert not torch.allclose(game.generator(less), first)


def test_the_deal_is_a_function_of_the_key_however_the_batch_is_cut():
    game, data = build(), pairs(6, 6, 32, 32)
    whole = game.deal(batch(data))
    again = game.deal(batch(data))
    parts = [game.deal(batch(data, rows=rows)) for rows in (slice(0, 2), slice(2, 6))]
    images = [game.generator(part.inputs, part.cond) for part in parts]
    for name, value in whole.inputs.items():
        assert torch.equal(value, again.inputs[name])
        assert torch.equal(value, torch.cat([part.inputs[name] for part in parts]))
    assert torch.equal(whole.real, torch.cat([part.real for part in parts]))
    torch.testing.assert_close(game.generator(whole.inputs, whole.cond), torch.cat(images))
    assert not torch.equal(whole.real, game.deal(batch(data, key=1)).real)


# -- learning ------------------------------------------------------------------------------------------------


def learners(game, lr=2e-3):
    return [
        Learner(player, torch.optim.Adam(player.parameters(), lr=lr, betas=(0.5, 0.999)), lr)
        for player in (game.generator, game.discriminator)
    ]


def test_l1_is_the_mean_distance_and_paid_100_times():
    game, data = build(), pairs(3, 6, 32, 32)
    (term,) = game.terms
    assert (term.name, term.player, term.weight) == ("l1", "generator", 100.0)
    deal = game.deal(batch(data))
    with torch.no_grad():
        expected = (game.generator(deal.inputs, deal.cond) - deal.real).abs().mean()
    stats = adversarial_step(game, LOSSES["non_saturating"], *learners(game), [[batch(data)]], step=0, kimg=0.0)
    assert stats["loss/generator/l1"] == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("cut", [2, 4])
def test_a_step_does_not_depend_on_microbatches(cut):
    data = pairs(4, 6, 32, 32)
    weights = []
    for parts in (1, cut):
        game = build()
        rows = [slice(i * 4 // parts, (i + 1) * 4 // parts) for i in range(parts)]
        turns = [[batch(data, rows=part) for part in rows]]
        # plain descent: Adam would make much of the last bit of a gradient of zero
        players = [
            Learner(player, torch.optim.SGD(player.parameters(), lr=1e-2), 1e-2)
            for player in (game.generator, game.discriminator)
        ]
        adversarial_step(game, LOSSES["non_saturating"], *players, turns, step=0, kimg=0.0)
        weights.append([p.detach() for p in game.generator.parameters()])
    torch.testing.assert_close(*weights)


def test_it_learns_to_invert():
    game = build((2, 16, 16), 1, width=8, patch_levels=1)
    source = F.interpolate(pairs(64, 1, 4, 4), (16, 16), mode="bilinear")
    data, players = torch.cat([source, -source], 1), learners(game)
    first, *_, last = (
        adversarial_step(game, LOSSES["non_saturating"], *players, [[batch(data, key=i)]], step=i, kimg=0.0)
        for i in range(40)
    )
    assert last["loss/generator/l1"] < 0.5 * first["loss/generator/l1"]
