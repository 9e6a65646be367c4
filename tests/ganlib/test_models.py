"""What every family promises, and what each refuses."""

import dataclasses

import pytest
import torch
from zoo import CLASSES, CONDITIONED, FAMILIES, FROM_NOISE, batches, builds, config, game_of, play, spec_of

from ganlib import registry
from ganlib.game import map_tensors, sample_of, tensors_of
from ganlib.noise import Noise

COMPARE = [f for f in FROM_NOISE if "minibatch_group" in registry.load("models", f).Config.model_fields]
SHAPES = [(1, 8, 8), (3, 16, 16), (1, 28, 28), (3, 32, 32), (3, 32, 64), (1, 48, 16), (3, 64, 64), (3, 128, 128)]


@pytest.mark.parametrize("classes", [CLASSES, ()], ids=["labelled", "unlabelled"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("family", FROM_NOISE)
def test_shapes_or_a_refusal_in_one_line(family, shape, classes):
    spec = spec_of(family, shape, classes)
    if not builds(family, shape):
        with pytest.raises(ValueError, match=r"\A[^\n]+\Z"):
            game_of(family, spec)
        return
    game = game_of(family, spec)
    assert game.classes == (len(classes) if family in CONDITIONED else 0)
    _, images, logits = play(game, spec)
    assert images.shape == (2, *shape)
    assert images.isfinite().all()
    assert logits.shape[0] == 2


@pytest.mark.parametrize("family", FROM_NOISE)
def test_every_family_makes_common_sizes(family):
    assert builds(family, (3, 32, 32))
    assert builds(family, (1, 64, 64))


@pytest.mark.parametrize("conditioning", ["auto", "concat", "projection", "auxiliary", "reacgan"])
@pytest.mark.parametrize("family", CONDITIONED)
def test_a_conditional_players_answer_depends_on_the_label(family, conditioning):
    spec = spec_of(family)
    game = game_of(family, spec, conditioning=conditioning)
    game.generator.eval()
    game.discriminator.eval()
    z = game.ask({}, Noise(0, size=1), None)
    images = [game.generator(z, torch.tensor([label])) for label in (0, 1)]
    assert not torch.equal(*images)
    verdicts = [game.discriminator(images[0], torch.tensor([label])) for label in (0, 1)]
    by_loss = conditioning in ("auxiliary", "reacgan")  # these judge the label by a loss of their own
    assert torch.equal(verdicts[0].logits, verdicts[1].logits) == by_loss
    assert bool(game.terms) or not by_loss


@pytest.mark.parametrize("family", CONDITIONED)
def test_attributes_as_a_condition(family):
    spec = spec_of(family, classes=(), attributes=("age", "smile"))
    for conditioning in ("auto", "concat", "projection", "auxiliary"):
        game = game_of(family, spec, conditioning=conditioning)
        assert (game.classes, game.attributes) == (0, 2)
        deal, images, logits = play(game, spec)
        assert deal.cond.shape == (2, 2)
        assert images.isfinite().all()
        assert logits.shape == (2,)
    with pytest.raises(ValueError, match="reacgan needs class labels"):
        game_of(family, spec, conditioning="reacgan")


@pytest.mark.parametrize("family", CONDITIONED)
def test_labels_asked_of_unlabelled_data_are_refused(family):
    spec = spec_of(family, classes=())
    with pytest.raises(ValueError, match="no labels"):
        game_of(family, spec, conditioning="projection")
    assert game_of(family, spec_of(family), conditioning="none").classes == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_dealt_depends_on_the_key_alone(family):
    spec = spec_of(family)
    game = game_of(family, spec)
    same, again, other = (play(game, spec, n=4, key=key)[0] for key in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(tensors_of(same.inputs), tensors_of(again.inputs), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(tensors_of(same.inputs), tensors_of(other.inputs), strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_players_draw_nothing_themselves(family):
    """Or a resume would not be exact, and ranks would not agree."""
    spec = spec_of(family)
    game = game_of(family, spec)
    deal, *_ = play(game, spec)
    ends = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        game.generator.eval()
        ends.append(sample_of(game.generator(map_tensors(lambda x: x.clone(), deal.inputs), deal.cond)))
    assert torch.equal(*ends)


@pytest.mark.parametrize("group", [2, 0])
@pytest.mark.parametrize("family", COMPARE)
def test_an_example_is_judged_beside_those_of_its_group(family, group):
    game = game_of(family, minibatch_group=group)
    game.discriminator.eval()  # where spectral norm does not move
    (batch,) = batches(spec_of(family), n=4)
    deal = game.deal(batch)
    before = game.discriminator(deal.real, deal.cond).logits
    moved = torch.cat([deal.real[:1], -deal.real[1:2], deal.real[2:]])
    unequal = game.discriminator(moved, deal.cond).logits != before
    assert unequal.tolist() == [bool(group), True, False, False]
    assert game.group % max(group, 1) == 0


@pytest.mark.parametrize("shape", [(1, 4, 4), (1, 30, 30), (1, 256, 256), (1, 8, 64)], ids=str)
def test_dcgan_refuses_sizes_it_cannot_make(shape):
    with pytest.raises(ValueError, match=r"8 to 128 pixels.*found"):
        game_of("dcgan", spec_of("dcgan", shape))


@pytest.mark.parametrize("norm", ["none", "batch", "spectral"])
def test_dcgan_norms(norm):
    game = game_of("dcgan", spec_of("dcgan", (1, 16, 16)), discriminator_norm=norm)
    names = {type(layer).__name__ for layer in game.discriminator.modules()}
    assert ("BatchNorm" in names or "_SpectralNorm" in names) == (norm != "none")
    assert game.discriminator(torch.rand(4, 1, 16, 16), torch.zeros(4, dtype=torch.long)).logits.isfinite().all()


@pytest.mark.parametrize("norm", ["none", "batch", "spectral"])
def test_dcgan_starts_small_under_any_norm(norm):
    """From N(0, 0.02²), class embeddings too."""
    module, spec = registry.load("models", "dcgan"), spec_of("dcgan", (1, 32, 32))
    players = module.build(module.Config(width=32, discriminator_norm=norm), spec)
    for player in (players.generator, players.discriminator):
        for name, p in player.named_parameters():
            if p.dim() > 1:
                assert float(p.detach().std()) == pytest.approx(0.02, rel=0.25), name


def test_dcgan_is_the_papers_shape():
    """Radford et al. 2016, figure 1: from 4x4x1024 by four deconvolutions to 64x64x3, at width 128."""
    module = registry.load("models", "dcgan")
    spec = dataclasses.replace(spec_of("dcgan", (3, 64, 64)), classes=())
    game = module.build(module.Config(latent_dim=100, width=128, max_width=1024, generator_norm="none"), spec)
    kernels = [tuple(p.shape) for n, p in game.generator.named_parameters() if p.dim() == 4]
    assert kernels == [(1024, 512, 4, 4), (512, 256, 4, 4), (256, 128, 4, 4), (128, 3, 4, 4)]
    assert game.generator.base == (1024, 4, 4)


def test_truncation_cuts_the_tails_and_keeps_the_key():
    game = game_of("mlp")
    z = game.ask({}, Noise(0, size=4000), 0.5)
    assert z.abs().max() <= 0.5
    assert z.std() == pytest.approx(0.284, abs=0.01)  # of a normal cut at ±0.5
    assert torch.equal(z, game.ask({}, Noise(0, size=4000), 0.5))


def test_configurations_are_small():
    for family in FAMILIES:
        assert sum(p.numel() for p in game_of(family).generator.parameters()) < 200_000, config(family)
