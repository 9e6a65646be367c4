"""Restoration: what each degradation does, images of any size, and a training that begins with a fit."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from runs import Kept, equal, without_clock
from safetensors.torch import load_file
from test_identity import parameters
from typer.testing import CliRunner
from zoo import batches, game_of

from ganlib import checkpoint, shards
from ganlib.config import DatasetConfig
from ganlib.data import restoration
from ganlib.data._spec import Spec
from ganlib.export import Generator, load_generator, save_generator
from ganlib.game import Deal, Learner, fit_step
from ganlib.models import restore
from ganlib.trainer import train
from pipelines import evaluate, reference
from pipelines._stage import EVALUATED, PREPARED, REFERENCE, TRAINED
from pipelines.cli import app
from pipelines.prepare import prepare
from pipelines.pyfunc import GeneratorModel, logged

RNG = np.random.default_rng(0)
PHOTO = np.asarray(
    Image.fromarray(RNG.integers(0, 256, (10, 12, 3), np.uint8)).resize((48, 40), Image.Resampling.BICUBIC)
)
SCALE_2, NOISE = {"name": "bicubic", "factor": 2}, {"name": "noise", "sigma": 25}
ALL = (
    SCALE_2,
    {"name": "bicubic", "factor": 4},
    NOISE,
    {"name": "blur", "sigma": 1.5},
    {"name": "jpeg", "quality": 20},
)


NOISE_OF_ZEROS = [4, 10, 0, 4, 22, 29]


def config(degradation, size=(40, 48), channels=3, **more):
    return restoration.Config(resolution=size, channels=channels, degradation=degradation, **more)


def spec_of(cfg):
    return Spec(cfg, "restoration", (), {"train": 9, "test": 9}, "")


def degraded(degradation, pixels=PHOTO, **more):
    cfg = config(degradation, pixels.shape[:2], 1 if pixels.ndim == 2 else 3, **more)
    return restoration.encode(cfg, pixels)["given"]


@pytest.mark.parametrize("factor", [2, 4])
def test_downscaling_is_pillows(factor):
    for pixels in (PHOTO, PHOTO[:, :, 0]):
        image = Image.fromarray(pixels)
        expected = np.asarray(image.resize((48 // factor, 40 // factor), Image.Resampling.BICUBIC))
        found = degraded({"name": "bicubic", "factor": factor}, pixels)
        np.testing.assert_array_equal(np.moveaxis(found, 0, -1).reshape(expected.shape), expected)


def test_noise_follows_from_the_content():
    grey = np.full((64, 64), 128, np.uint8)
    found = degraded(NOISE, grey).astype(float) - 128
    assert abs(found.mean()) < 1.5
    assert found.std() == pytest.approx(25, rel=0.05)
    np.testing.assert_array_equal(degraded(NOISE, grey), degraded(NOISE, grey.copy()))
    other = degraded(NOISE, np.full((64, 64), 129, np.uint8)).astype(float) - 129
    assert abs(np.corrcoef(found.ravel(), other.ravel())[0, 1]) < 0.1
    # by numpy's legacy generator, which no version changes
    assert degraded(NOISE, np.zeros((2, 3), np.uint8)).ravel().tolist() == NOISE_OF_ZEROS


def test_blur_is_a_gaussian_window():
    dot = np.zeros((33, 33), np.uint8)
    dot[16, 16] = 255
    sigma = 1.0
    (found,) = degraded({"name": "blur", "sigma": sigma}, dot)
    window = np.exp(-(np.arange(-4, 5) ** 2) / 2)
    expected = 255 * np.outer(window, window) / window.sum() ** 2
    np.testing.assert_array_equal(found[12:21, 12:21], np.rint(expected))
    assert degraded({"name": "blur", "sigma": 3}, np.full((8, 8), 77, np.uint8)).tolist() == [[[77] * 8] * 8]


def test_jpeg_is_pillows():
    file = io.BytesIO()
    Image.fromarray(PHOTO).save(file, "JPEG", quality=20)
    expected = np.asarray(Image.open(file)).transpose(2, 0, 1)
    np.testing.assert_array_equal(degraded({"name": "jpeg", "quality": 20}), expected)


@pytest.mark.parametrize("degradation", ALL, ids=str)
def test_the_naive_answer(degradation):
    cfg, soft = config(degradation), PHOTO // 2 + 64  # Pillow clamps, and rounds, between its two passes
    stored = restoration.encode(cfg, soft)["given"]
    given = restoration.decode(cfg, "given", torch.from_numpy(stored)[None])
    made = restoration.quantise(cfg, restoration.naive(cfg, {"given": given}))[0].numpy().transpose(1, 2, 0)
    drawn = Image.fromarray(stored.transpose(1, 2, 0))
    expected = np.asarray(drawn.resize((48, 40), Image.Resampling.BICUBIC)).astype(int)
    assert abs(made - expected).max() <= 1


def test_the_centre_is_cut_out_as_it_is():
    cut = restoration.encode(config(NOISE, (20, 24), fit="cut"), PHOTO)["sample"]
    np.testing.assert_array_equal(cut, PHOTO[10:30, 12:36].transpose(2, 0, 1))
    with pytest.raises(ValueError, match="48x40 pixels, too small to cut 64x64 out"):
        restoration.encode(config(NOISE, (64, 64), fit="cut"), PHOTO)


def test_files_are_taken_in_their_size(tmp_path):
    Image.fromarray(PHOTO[:, :31]).save(tmp_path / "small.png")
    taken = restoration.take(config(SCALE_2), "given", tmp_path / "small.png")
    np.testing.assert_array_equal(taken, PHOTO[:, :31].transpose(2, 0, 1))
    assert restoration.take(config(SCALE_2, channels=1), "given", tmp_path / "small.png").shape == (1, 40, 31)
    with pytest.raises(ValueError, match=r"expected images of shape \[height, width, 3\], found \[40, 48\]"):
        restoration.take(config(SCALE_2), "given", PHOTO[:, :, 0])


def test_config_refuses():
    for wrong, message in (
        ({"degradation": {"name": "bicubic", "factor": 3}}, "2 or 4"),
        ({"degradation": {"name": "fog"}}, "bicubic"),
        ({"degradation": {"name": "noise", "sigma": 0}}, "greater than 0"),
        ({"degradation": {"name": "noise", "quality": 3}}, "sigma"),
        ({"degradation": SCALE_2, "resolution": [29, 28]}, "cannot be downscaled by 2; expected multiples of 2"),
        ({}, "degradation"),
    ):
        with pytest.raises(ValidationError, match=message):
            restoration.Config.model_validate({"resolution": [28, 28], **wrong})


def test_sources_of_images_feed_it():
    sample = {"kind": "restoration", "resolution": [28, 28], "degradation": NOISE}
    assert DatasetConfig(source={"name": "mnist"}, sample=sample).sample.degradation.sigma == 25
    with pytest.raises(ValidationError, match="'restoration' does not suit; source 'paired_folder' feeds pair"):
        DatasetConfig(source={"name": "paired_folder"}, sample=sample)


# -- the family ---------------------------------------------------------------------------------------------------


def generator_of(degradation, **network):
    """With weights that carry far."""
    spec = spec_of(config(degradation, (32, 32)))
    torch.manual_seed(0)
    cfg = restore.Config(width=8, blocks=2, discriminator_width=4, **network)
    game = restore.build(cfg, spec)
    with torch.no_grad():
        for p in game.generator.parameters():
            p.copy_(torch.randn_like(p) * (p[0].numel() ** -0.5 if p.dim() > 1 else 0.1))
    game.generator.eval()
    return Generator(game, spec, {}, torch.device("cpu"))


@pytest.mark.parametrize("degradation", ALL, ids=str)
def test_tiles_have_no_seams(degradation, monkeypatch):
    monkeypatch.setattr(restoration, "_TILE", 16)
    generator = generator_of(degradation)
    given = torch.rand(1, 3, 61, 83, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        whole = generator.game.generator(given)
    tiled = generator.sample_any_size({"given": given})
    with pytest.raises(ValueError, match=r"^seed: expected a whole number from 0"):
        generator.sample_any_size({"given": given}, seed=-1)
    assert tiled.shape == whole.shape
    assert float(whole.abs().mean()) < 1, "not all is clamped"
    torch.testing.assert_close(tiled, whole, rtol=0, atol=2e-5)
    narrow = dataclasses.replace(generator, game=dataclasses.replace(generator.game, margin=2))
    assert float((narrow.sample_any_size({"given": given}) - whole).abs().max()) > 1e-3, "seams would be seen"


def test_a_small_image_is_one_tile():
    generator = generator_of(NOISE)
    given = torch.rand(1, 3, 5, 3) * 2 - 1
    with torch.inference_mode():
        torch.testing.assert_close(generator.sample_any_size({"given": given}), generator.game.generator(given))


def test_first_answers_are_near_the_naive_ones():
    spec = spec_of(config(SCALE_2, (32, 32)))
    game = restore.build(restore.Config(), spec)
    given = {"given": torch.rand(4, 3, 16, 16) * 2 - 1}
    with torch.no_grad():
        made = game.generator(given["given"])
    error = (made - restoration.naive(spec.sample, given)).abs().mean()
    assert 0 < error < 0.3


@pytest.mark.parametrize("discriminator", ["pixels", "features"])
@pytest.mark.parametrize("features", ["efficientnet_lite0", "discriminator"])
def test_the_distance_of_features(features, discriminator):
    spec = spec_of(config(SCALE_2, (32, 32)))
    game = game_of("restore", spec, features=features, discriminator=discriminator)
    (term,) = (term for term in game.terms if term.name == "features")
    (batch,) = batches(spec, 4)
    real, given = batch.data["sample"], batch.data["given"]

    def distance(fake):
        from ganlib.game import _round, discriminate

        outputs = (discriminate(game, x, None, batch.noise) for x in (real, fake))
        return term.fn(_round(game, Deal(given, real), batch, real, fake, *outputs))

    game.discriminator.eval()
    assert distance(real).abs().max() < 1e-6
    near, far = real.lerp(real.flip(2), 0.1), real.flip(2)
    assert (distance(near) < distance(far)).all()
    fake = near.clone().requires_grad_()
    (slope,) = torch.autograd.grad(distance(fake).sum(), fake, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.square().sum(), fake)
    assert slope.isfinite().all()
    assert curvature.isfinite().all()
    assert slope.abs().max() > 0
    assert torch.equal(distance(near), distance(near))


def test_the_perceptual_distance_is_the_same_for_either_discriminator():
    from ganlib.game import _round, discriminate

    spec = spec_of(config(SCALE_2, (32, 32)))
    (batch,) = batches(spec, 4)
    real, fake = batch.data["sample"], batch.data["sample"].flip(2)
    found = []
    for discriminator in ("pixels", "features"):
        game = game_of("restore", spec, discriminator=discriminator, features="efficientnet_lite0")
        (term,) = (term for term in game.terms if term.name == "features")
        outputs = [discriminate(game, x, None, batch.noise) for x in (real, fake)]
        for of_real in (outputs[0], None):  # a loss that is not paired asks for no reals in the generator's turn
            deal = Deal(batch.data["given"], real)
            found.append(term.fn(_round(game, deal, batch, real, fake, of_real, outputs[1])))
    for distance in found[1:]:
        torch.testing.assert_close(distance, found[0])


def test_a_discriminator_of_features_learns():
    spec = spec_of(config(SCALE_2, (32, 32)))
    (batch,) = batches(spec, 16)
    discriminator = game_of("restore", spec, discriminator="features").discriminator
    real, fake = batch.data["sample"], torch.nn.functional.avg_pool2d(batch.data["sample"], 3, 1, 1)
    optimizer = torch.optim.Adam(discriminator.parameters(), 1e-2)
    for _ in range(20):
        of_real, of_fake = discriminator(real).logits, discriminator(fake).logits
        assert of_real.shape == (16, 3)
        optimizer.zero_grad()
        torch.nn.functional.softplus(of_fake - of_real).mean().backward()
        optimizer.step()
    assert (discriminator(real).logits > discriminator(fake).logits).float().mean() > 0.9


@pytest.mark.parametrize("discriminator", ["pixels", "features"])
def test_constants_are_not_exported_nor_trained(discriminator):
    spec = spec_of(config(SCALE_2, (32, 32)))
    game = restore.build(restore.Config(discriminator=discriminator), spec)
    assert not game.others
    for module in game.modules.values():
        names = {type(layer).__name__ for layer in module.modules()}
        assert "EfficientNet" not in names
    assert all(not isinstance(term.fn, torch.nn.Module) for term in game.terms), "or checkpoints would hold it"
    network = restore._maps(torch.device("cpu"))(torch.zeros(1, 1, 16, 16))
    assert all(not x.requires_grad for x in network)
    assert [x.shape[2] for x in network] == [8, 4, 2]
    assert tuple(x.shape[1] for x in network) == restore._MAP_CHANNELS


def test_too_small_for_the_patches():
    spec = spec_of(config(SCALE_2, (16, 16)))
    with pytest.raises(ValueError, match="patch_levels 3 needs 32 pixels a side, found 16x16: at most 2 levels"):
        restore.build(restore.Config(patch_levels=3), spec)


def test_the_fit_is_of_the_mean_absolute_error():
    spec = spec_of(config(NOISE, (32, 32)))
    game = game_of("restore", spec)
    (batch,) = batches(spec, 4)
    generator = Learner(game.generator, torch.optim.Adam(game.generator.parameters()), 1e-3)
    expected = (game.generator(batch.data["given"]) - batch.data["sample"]).abs().mean()
    stats = fit_step(game, game.before[0], generator, [batch], kimg=0.0)
    torch.testing.assert_close(stats["loss/pixels"], expected.detach())


def test_killed_in_the_fit_or_in_the_game_and_resumed(small, data_of, tmp_path):
    fit = {"fits.pixels.kimg": 0.128, "network.features": "efficientnet_lite0", "network.discriminator": "features"}
    params, prepared = (
        small("restore", changes=fit, kimg=0.128, report_kimg=0.064, checkpoint_kimg=0.064),
        data_of("restore"),
    )
    whole = Kept(tmp_path / "whole")
    train(params, whole, prepared=prepared)
    assert ["fit_kimg" in row for row in whole.rows] == [True, True, False, False]
    assert [(folder / "before").is_dir() for folder in whole.folders] == [False, False, True, True]
    end = without_clock(checkpoint.load(whole.folders[-1]))
    for done in (0, 1, 2):
        again = Kept(tmp_path / f"{done}")
        train(params, again, prepared=prepared, resume=whole.folders[done])
        assert equal(without_clock(checkpoint.load(again.folders[-1])), end)
        assert (again.folders[-1] / "generator" / "generator.safetensors").read_bytes() == (
            whole.folders[-1] / "generator" / "generator.safetensors"
        ).read_bytes()
    fitted, kept = (
        load_file(folder / "generator.safetensors")
        for folder in (whole.folders[1] / "generator", whole.folders[-1] / "before")
    )
    assert equal(fitted, kept)
    assert load_generator(whole.folders[-1] / "before").about["kimg"] == pytest.approx(0.128)
    names = set(itertools.chain(fitted, load_file(whole.folders[-1] / "generator" / "generator.safetensors")))
    assert names == set(load_generator(whole.folders[-1] / "generator").game.generator.state_dict())
    assert shards.read_spec(prepared).given == ("given",)


def test_files_of_any_size_are_restored(tmp_path, monkeypatch):
    monkeypatch.setattr(restoration, "_TILE", 16)
    generator = generator_of(SCALE_2)
    network = restore.Config(width=8, blocks=2, discriminator_width=4)
    save_generator(tmp_path / "model", generator.game.generator, network=network, spec=generator.spec)
    files = [tmp_path / "a.png", tmp_path / "b.jpg"]
    for file, size in zip(files, ((50, 21), (9, 40)), strict=True):
        Image.fromarray(PHOTO).resize(size).save(file)

    def sample(*arguments):
        return CliRunner().invoke(app, ["sample", str(tmp_path / "model"), *map(str, arguments)])

    assert sample("--given", files[0], "-o", tmp_path / "one.png").exit_code == 0
    assert sample("--given", files[0], "--given", files[1], "-o", tmp_path / "both").exit_code == 0

    def drawn(name):
        with Image.open(tmp_path / name) as image:
            return np.asarray(image)

    one, again = drawn("one.png"), drawn("both/a.png")
    assert drawn("both/b.png").shape == (80, 18, 3)
    np.testing.assert_array_equal(one, again)
    given = restoration.take(generator.spec.sample, "given", files[0])
    with torch.inference_mode():
        whole = generator.game.generator(restoration.decode(None, "given", torch.from_numpy(given)[None]))
    expected = restoration.quantise(None, whole)[0].numpy().transpose(1, 2, 0).astype(int)
    assert one.shape == (42, 100, 3)
    assert abs(one - expected).max() <= 1
    twice = sample("--given", files[0], "--given", files[0], "-o", tmp_path / "both")
    assert twice.exit_code == 1
    assert "under one name" in twice.stderr
    (tmp_path / "no.png").write_text("text")
    assert "not an image" in sample("--given", tmp_path / "no.png", "-o", tmp_path / "x.png").stderr


def test_from_files_to_the_registered_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("raw").mkdir()
    for i in range(60):
        image = Image.fromarray(RNG.integers(0, 256, (5, 5), np.uint8)).resize((20, 16), Image.Resampling.BICUBIC)
        image.save(f"raw/{i}.png")
    sample = {"kind": "restoration", "resolution": [16, 16], "channels": 1, "degradation": SCALE_2, "fit": "cut"}
    dataset = {"source": {"name": "image_folder"}, "sample": sample, "test_share": 0.4}
    network = {"width": 8, "blocks": 1, "discriminator_width": 4}
    play = {"loss": "relativistic", "fits": {"pixels": {"kimg": 0.032, "lr": 1e-3}}}
    params = parameters(dataset, "restore", network, play)
    prepare(params.dataset, Path("raw"), PREPARED)
    reference.stage(params)
    kept = Kept(tmp_path)
    train(params, kept, prepared=PREPARED, reference=REFERENCE)
    shutil.copytree(kept.folders[-1], TRAINED)
    evaluate.stage(params)
    metrics = json.loads((EVALUATED / "metrics.json").read_text())
    for name in ("psnr", "ssim", "l1"):
        assert set(metrics["samples"][name]) == {"value", "low", "high", "copy", "before"}
    assert set(metrics["efficientnet_lite0"]["fd"]) == {"value", "low", "high", "floor", "copy", "before"}
    with Image.open(EVALUATED / "samples.png") as picture:  # five a row: given, naive, before, made, true
        assert picture.width == 5 * (5 * 16 + 2)

    model = GeneratorModel()
    model.generator = load_generator(TRAINED / "generator")
    spec, stored = shards.read_spec(PREPARED), shards.read(PREPARED, "test")
    given = spec.kind.present(spec.sample, "given", stored["given"].numpy())
    made = model.predict(None, given)
    assert (made.shape, made.dtype) == ((len(given), 16, 16, 1), np.uint8)
    inputs = json.loads(logged(TRAINED / "generator")["signature"].to_dict()["inputs"])
    assert inputs[0]["tensor-spec"] == {"dtype": "uint8", "shape": [-1, 8, 8, 1]}
