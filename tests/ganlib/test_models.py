"""What every family promises, and what each refuses."""

import dataclasses

import pytest
import torch

from ganlib import registry
from ganlib.data._spec import Spec
from ganlib.game import Noise

SPEC = Spec("image", "image", (1, 8, 8), ("a", "b", "c"), {"train": 8, "test": 8}, "")


def build(family, shape=(1, 8, 8), classes=("a", "b", "c"), **network):
    module = registry.load("models", family)
    return module.build(
        module.Config(latent_dim=4, width=4, **network), dataclasses.replace(SPEC, shape=shape, classes=classes)
    )


@pytest.mark.parametrize("classes", [("a", "b", "c"), ()], ids=["labelled", "unlabelled"])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 28, 28), (3, 32, 64), (1, 48, 16), (3, 128, 128)], ids=str)
@pytest.mark.parametrize("family", registry.names("models"))
def test_shapes(family, shape, classes):
    game = build(family, shape, classes)
    assert game.classes == len(classes)
    z = game.latent(Noise(0, size=2), None)
    cond = torch.tensor([0, 2]) if classes else None
    images = game.generator(z, cond)
    assert images.shape == (2, *shape)
    assert images.abs().max() <= 1
    assert game.discriminator(images, cond).shape == (2,)


@pytest.mark.parametrize("family", registry.names("models"))
def test_a_conditional_players_answer_depends_on_the_label(family):
    game = build(family)
    z = game.latent(Noise(0, size=1), None)
    images = [game.generator.eval()(z, torch.tensor([label])) for label in (0, 1)]
    assert not torch.equal(*images)
    logits = [game.discriminator(images[0], torch.tensor([label])) for label in (0, 1)]
    assert not torch.equal(*logits)


@pytest.mark.parametrize("family", registry.names("models"))
def test_labels_asked_of_unlabelled_data_are_refused(family):
    with pytest.raises(ValueError, match="no labels"):
        build(family, classes=(), conditional=True)
    assert build(family, conditional=False).classes == 0


@pytest.mark.parametrize("shape", [(1, 4, 4), (1, 30, 30), (1, 256, 256), (1, 8, 64)], ids=str)
def test_dcgan_refuses_sizes_it_cannot_make(shape):
    with pytest.raises(ValueError, match=r"8 to 128 pixels.*found"):
        build("dcgan", shape)


@pytest.mark.parametrize("norm", ["none", "batch", "spectral"])
def test_dcgan_norms(norm):
    game = build("dcgan", (1, 16, 16), discriminator_norm=norm)
    names = {type(layer).__name__ for layer in game.discriminator.modules()}
    assert ("BatchNorm" in names or "_SpectralNorm" in names) == (norm != "none")
    assert torch.isfinite(game.discriminator(torch.rand(4, 1, 16, 16), torch.zeros(4, dtype=torch.long))).all()


def test_dcgan_is_the_papers_shape():
    """Radford et al. 2016, figure 1: from 4x4x1024 by four deconvolutions to 64x64x3, at width 128."""
    module = registry.load("models", "dcgan")
    spec = dataclasses.replace(SPEC, shape=(3, 64, 64), classes=())
    game = module.build(module.Config(latent_dim=100, width=128, max_width=1024, generator_norm="none"), spec)
    kernels = [tuple(p.shape) for n, p in game.generator.named_parameters() if p.dim() == 4]
    assert kernels == [(1024, 512, 4, 4), (512, 256, 4, 4), (256, 128, 4, 4), (128, 3, 4, 4)]
    assert game.generator.base == (1024, 4, 4)


def test_truncation_cuts_the_tails_and_keeps_the_key():
    game = build("mlp")
    z = game.latent(Noise(0, size=4000), 0.5)
    assert z.abs().max() <= 0.5
    assert z.std() == pytest.approx(0.284, abs=0.01)  # of a normal cut at ±0.5
    assert torch.equal(z, game.latent(Noise(0, size=4000), 0.5))
