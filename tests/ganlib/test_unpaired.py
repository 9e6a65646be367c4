"""Unpaired translation: two folders, the pool of past fakes, both families, and what is measured by domain."""

from __future__ import annotations

import dataclasses
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from runs import Kept, equal, without_clock
from specs import kind_of
from test_identity import parameters
from torch import nn

from ganlib import checkpoint, registry, shards
from ganlib.build import build_game
from ganlib.config import ConfigError, DatasetConfig, EvaluateConfig
from ganlib.data import unpaired
from ganlib.data._pixels import open_image
from ganlib.data._spec import Spec
from ganlib.evaluate import available_metrics, compare, evaluate
from ganlib.export import load_generator
from ganlib.game import Batch
from ganlib.models import cut, cyclegan
from ganlib.models._translation import scores
from ganlib.noise import Noise
from ganlib.pool import Pool
from ganlib.reference import Reference, Space
from ganlib.sources import two_folders
from ganlib.sources._source import SourceError
from ganlib.trainer import train
from pipelines._stage import StageError
from pipelines.prepare import prepare

COUNTS = {"train": 40, "test": 40}
SMALL = {"width": 4, "blocks": 1, "discriminator_width": 4, "patch_levels": 1}


def spec_of(classes=("A", "B"), size=(16, 16), channels=1):
    return Spec(unpaired.Config(resolution=size, channels=channels), "unpaired", classes, COUNTS, "")


def save(folder, *names, size=(16, 16)):
    """Grey files, each of other noise."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)).save(path)


def numbered(folder, count):
    return [f"{folder}/{i}.png" for i in range(count)]


def items_of(raw, **config):
    source = two_folders.load(two_folders.Config(**config), raw)
    found = [item for part in source.parts for item in part()]
    assert len(found) == source.count
    return source, found


# -- two folders ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["{split}{side}", "{split}/{side}", "{side}/{split}", "set/{split}_{side}"])
def test_layouts_that_fix_the_split(layout, tmp_path):
    for split in ("train", "test"):
        for side, count in (("A", 3), ("B", 2)):
            save(tmp_path, *numbered(layout.format(split=split, side=side), count))
    source, found = items_of(tmp_path)
    assert source.classes == ("A", "B")
    of = {(item.split, item.label): [] for item in found}
    for item in found:
        of[item.split, item.label].append(item.id)
        given, sample = item.id.split(" -> ")
        assert all(item.split in path for path in (given, sample))
        sides = ["A" if "A" in path else "B" for path in (given, sample)]
        assert sides == (["A", "B"] if item.label == 1 else ["B", "A"])
    assert {key: len(ids) for key, ids in of.items()} == {
        ("train", 1): 3,
        ("train", 0): 3,
        ("test", 1): 2,
        ("test", 0): 2,
    }
    for place in (0, 1):  # every training image is given, and is a sample
        assert len({item.id.split(" -> ")[place] for item in found if item.split == "train"}) == 5
    assert any("1 test images of A" in note for note in source.notes)


def test_images_outside_of_the_folders_of_the_split_are_left_out(tmp_path):
    for folder, count in (("trainA", 4), ("trainB", 4), ("testA", 3), ("testB", 3), ("A", 5)):
        save(tmp_path, *numbered(folder, count))
    source, found = items_of(tmp_path)
    assert not any(name.startswith("A/") for item in found for name in item.id.split(" -> "))
    assert "Different images: 4 A and 4 B for training, 3 A and 3 B for testing." in source.notes
    assert "Images outside of these folders, left out: 5." in source.notes


def test_a_damaged_image_is_one_reject_and_in_no_example(tmp_path):
    """However often images of its domain are repeated."""
    for folder, count in (("trainA", 12), ("trainB", 3), ("testA", 2), ("testB", 2)):
        save(tmp_path, *numbered(folder, count))
    _, sound = items_of(tmp_path)
    (tmp_path / "trainB/bad.png").write_bytes((tmp_path / "trainB/0.png").read_bytes()[:150])
    (tmp_path / "trainB/gone.png").symlink_to(tmp_path / "nowhere.png")
    source, found = items_of(tmp_path)
    assert found[:-2] == sound
    assert [(item.id, item.payload) for item in found[-2:]] == [("trainB/bad.png", None), ("trainB/gone.png", None)]
    assert "truncated" in found[-2].reason
    assert "12 A and 3 B for training" in source.notes[0]
    for name in numbered("trainB", 3):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(SourceError, match=r"no image of B for training .*; 3 rejected, as trainB/0.png: not an image"):
        items_of(tmp_path)


def test_a_very_large_image_is_left_to_the_limit_of_the_kind(tmp_path, monkeypatch):
    monkeypatch.setattr(open_image, "__defaults__", (1e-6,))
    for folder in ("trainA", "trainB", "testA", "testB"):
        save(tmp_path, f"{folder}/0.png")
    _, found = items_of(tmp_path)
    assert len(found) == 4
    assert all(item.payload for item in found)


def test_without_a_split_the_content_decides_and_no_image_is_in_both(tmp_path):
    save(tmp_path, *numbered("A", 60), *numbered("B", 40))
    (tmp_path / "A/copy.png").write_bytes((tmp_path / "A/0.png").read_bytes())
    source, found = items_of(tmp_path, test_share=0.3, direction="a_to_b")
    assert source.classes == ()
    assert all(item.id.startswith("A/") and " -> B/" in item.id for item in found)
    by_split = {
        split: {name for item in found if item.split == split for name in item.id.split(" -> ")}
        for split in ("train", "test")
    }
    assert not by_split["train"] & by_split["test"]
    assert len(by_split["train"] | by_split["test"]) <= 100
    assert any(note.endswith("left out: 1.") for note in source.notes)
    again, _ = items_of(tmp_path, test_share=0.3, direction="a_to_b")
    assert again.notes == source.notes


@pytest.mark.parametrize(
    ("files", "config", "message"),
    [
        (["A/1.png", "A/2.png"], {}, r"no image of A for testing|no image of B for"),
        (["trainA/1.png", "trainB/1.png", "testA/1.png"], {}, r"no image of B for testing \(1 of A\)"),
        (["trainA/1.png", "testA/1.png", "B/1.png"], {}, r"B for training \(1 of A; outside of test, train: 1\)"),
        (["day/1.png", "night/1.png"], {}, r"day/1.png lies in no folder A or B \(2 such files\); source.domains"),
        (["A/1.png", "x.png"], {}, r"x.png lies in no folder A or B"),
    ],
)
def test_what_is_no_two_domains_is_one_line(files, config, message, tmp_path):
    save(tmp_path, *files)
    with pytest.raises(SourceError, match=message) as error:
        items_of(tmp_path, **config)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="'A' twice"):
        two_folders.Config(domains=("A", "A"))


def dataset(**source):
    sample = {"kind": "unpaired", "resolution": [16, 16], "channels": 1}
    return DatasetConfig.model_validate({"source": {"name": "two_folders", **source}, "sample": sample})


def test_one_image_is_too_few_to_be_a_domain(tmp_path):
    save(tmp_path / "raw", *numbered("trainA", 20), *numbered("testA", 20), "trainB/1.png", "testB/1.png")
    with pytest.raises(StageError, match=r"too few data.*10 of each are needed"):
        prepare(dataset(), tmp_path / "raw", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Prepared images of both ways, of unequal sizes, and a damaged one."""
    raw, out = tmp_path_factory.mktemp("raw"), tmp_path_factory.mktemp("two") / "prepared"
    save(raw, *numbered("trainA", 30), *numbered("testA", 12))
    save(raw, *numbered("trainB", 24), *numbered("testB", 10), size=(20, 30))
    (raw / "trainA/bad.png").write_bytes((raw / "trainA/0.png").read_bytes()[:60])
    prepare(dataset().model_copy(update={"max_reject_share": 0.1}), raw, out)
    return out


def test_both_domains_are_in_one_prepared_set(folder):
    spec = shards.read_spec(folder)
    assert (spec.classes, spec.counts, spec.given) == (("A", "B"), {"train": 60, "test": 20}, ("given",))
    assert len((folder / "rejects.csv").read_text().splitlines()) == 2  # a damaged image, once
    rows = shards.read(folder, "train")
    of_a = {x.numpy().tobytes() for x in rows["sample"][rows["label"] == 0]}
    assert of_a == {x.numpy().tobytes() for x in rows["given"][rows["label"] == 1]}
    assert len(of_a) == 30
    assert (rows["label"] == 0).sum() == (rows["label"] == 1).sum()


# -- the pool ------------------------------------------------------------------------------------------------------


def fakes(step, n=4):
    return {"sample": torch.arange(n).float().view(n, 1) + 10 * step + 1}


def test_a_pool_shows_new_fakes_until_it_is_full_and_half_the_time_past_ones():
    pool, past = Pool(8, {"sample": (1,)}), set()
    shown_past, held = 0, set()
    for step in range(60):
        new = fakes(step)
        shown = pool(new, Noise(0, "turn", step, size=4))["sample"].flatten().tolist()
        assert set(shown) <= set(new["sample"].flatten().tolist()) | held
        shown_past += sum(value in past for value in shown) if step >= 10 else 0
        past |= set(new["sample"].flatten().tolist())
        held = set(pool.get_buffer("of_sample").flatten().tolist()) - {0.0}
    assert pool.get_buffer("filled").all()
    assert 0.35 < shown_past / 200 < 0.65


def test_microbatches_change_nothing_of_a_pool():
    one, parts = Pool(8, {"sample": (1,)}), Pool(8, {"sample": (1,)})
    for step in range(12):
        new = fakes(step)
        whole = one(new, Noise(0, "turn", step, size=4))["sample"]
        halves = [
            parts({"sample": new["sample"][rows]}, Noise(0, "turn", step, size=4, rows=rows))["sample"]
            for rows in (slice(0, 2), slice(2, 4))
        ]
        assert torch.equal(whole, torch.cat(halves))
    assert equal(one.state_dict(), parts.state_dict())


# -- the families --------------------------------------------------------------------------------------------------


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_parameters_are_as_many_as_the_authors_print():
    """pytorch-CycleGAN-and-pix2pix, `resnet_9blocks`, `resnet_6blocks` and `basic`, which also have a bias before each
    instance norm, where it has no effect: a channel each."""
    with torch.device("meta"):
        game = cyclegan.build(cyclegan.Config(), spec_of(size=(256, 256), channels=3))
        shallow = cyclegan.build(cyclegan.Config(blocks=6), spec_of(size=(128, 128), channels=3))
        unet = cyclegan.build(cyclegan.Config(generator="unet"), spec_of(size=(256, 256), channels=3))

    def authors(module):
        return count(module) + sum(one.num_channels for one in module.modules() if isinstance(one, nn.GroupNorm))

    assert [round(authors(one) / 1e6, 3) for one in game.generator.into] == [11.378, 11.378]
    assert [round(authors(one) / 1e6, 3) for one in game.discriminator.of] == [2.765, 2.765]
    assert round(authors(shallow.generator.into[0]) / 1e6, 3) == 7.838
    assert authors(unet.generator.into[0]) == 54_409_603


@pytest.mark.parametrize("generator", ["residual", "unet"])
def test_each_image_goes_through_the_networks_of_its_domain(generator):
    torch.manual_seed(0)
    game = cyclegan.build(cyclegan.Config(generator=generator, **SMALL), spec_of())
    label, (a, b) = torch.tensor([0, 1, 1]), torch.rand(2, 3, 1, 16, 16) * 2 - 1
    into_a, into_b = game.generator.into
    rows = label.view(-1, 1, 1, 1) == 1
    given, sample = torch.where(rows, a, b), torch.where(rows, b, a)
    made = game.generator({"given": given, "sample": sample}, label)
    torch.testing.assert_close(made["sample"], torch.where(rows, into_b(a), into_a(b)))
    torch.testing.assert_close(made["given"], torch.where(rows, into_a(b), into_b(a)))
    torch.testing.assert_close(game.generator(given, label), made["sample"])
    torch.testing.assert_close(
        game.generator.back(made["sample"], label), torch.where(rows, into_a(made["sample"]), into_b(made["sample"]))
    )
    logits = game.discriminator({"given": given, "sample": sample}, label)
    torch.testing.assert_close(logits, torch.stack([game.discriminator.of[0](a), game.discriminator.of[1](b)], 1))
    of_samples = game.discriminator(sample, label)
    torch.testing.assert_close(of_samples, torch.where(rows[..., 0], logits[:, 1], logits[:, 0]))


def test_a_generator_takes_images_of_any_size():
    for module, config in ((cyclegan, {}), (cyclegan, {"generator": "unet"}), (cut, {"layers": (0, 4)})):
        game = module.build(module.Config(**(SMALL | config)), spec_of(classes=()))
        for size in ((37, 50), (3, 5), (1, 1)):
            given = torch.rand(1, 1, *size)
            inputs = game.ask({"given": given}, Noise(0, size=1), None)
            assert game.generator(inputs).shape == given.shape


def test_the_contrast_is_least_for_a_translation_that_keeps_its_places():
    torch.manual_seed(0)
    game = cut.build(cut.Config(**SMALL, layers=(0, 2, 4)), spec_of(classes=()))
    image = torch.rand(2, 1, 16, 16) * 2 - 1
    same, other = (game.generator.contrast(image, x, Noise(0, size=2)) for x in (image, image.flip(3)))
    assert same.shape == (2,)
    assert (same < other).all()


def test_what_a_family_cannot_do_is_one_line():
    for build, message in (
        (lambda: cyclegan.build(cyclegan.Config(), spec_of(("a", "b", "c"))), "24 to 1024|between two domains"),
        (lambda: cyclegan.build(cyclegan.Config(**SMALL), spec_of(("a", "b", "c"))), "two domains, found labels of 3"),
        (lambda: cyclegan.build(cyclegan.Config(patch_levels=3), spec_of()), "24 to 1024 pixels.*found 16x16"),
        (lambda: cut.build(cut.Config(**SMALL), spec_of()), "cut translates one way.*source.direction"),
        (lambda: cut.build(cut.Config(**SMALL), spec_of(())), "layers: 8 is none of.*at most 4"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            build()
        assert "\n" not in str(error.value)


def test_edges_and_the_way_back_are_scored():
    images = torch.rand(3, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    kept = scores(images, -images, images)
    torch.testing.assert_close(kept["edge_correlation"], torch.ones(3))
    assert (kept["cycle_psnr"] > 58).all()
    lost = scores(images, images.roll(1, 0), -images)
    assert lost["edge_correlation"].abs().max() < 0.4
    assert (lost["cycle_psnr"] < 10).all()
    assert scores(images, torch.zeros_like(images))["edge_correlation"].tolist() == [0.0] * 3


# -- trained -------------------------------------------------------------------------------------------------------


def params_of(family="cyclegan", **play):
    network = SMALL | ({"pool": 8} if family == "cyclegan" else {"layers": (0, 2, 4), "units": 8, "patches": 16})
    play = {"loss": "least_squares", "batch": 4} | play
    return parameters(dataset().model_dump(mode="json"), family, network, play)


def test_a_resume_in_the_middle_goes_on_with_the_pool(folder, tmp_path):
    whole, first, second = (Kept(tmp_path / name) for name in ("whole", "first", "second"))
    params = params_of()
    train(params, whole, prepared=folder)
    first.stop_after = 1
    with pytest.raises(KeyboardInterrupt):
        train(params, first, prepared=folder)
    train(params, second, prepared=folder, resume=first.folders[0])
    one, other = (without_clock(checkpoint.load(kept.folders[-1])) for kept in (whole, second))
    assert one["pool"]["filled"].any()
    assert equal(one, other)
    generator = load_generator(whole.folders[-1] / "generator")
    given = {"given": torch.rand(1, 1, 23, 18) * 2 - 1}
    one, other = (generator.sample_any_size(given, label=label) for label in ("A", "B"))
    assert one.shape == other.shape == (1, 1, 23, 18)
    assert not torch.equal(one, other)
    with pytest.raises(ValueError, match="label: expected the one that is to be made: A, B"):
        generator.sample_any_size(given)
    with pytest.raises(ConfigError, match="batch: 16 examples of a step do not fit into a pool of 8 past fakes"):
        build_game(params_of(batch=16), shards.read_spec(folder))


# -- measured by domain --------------------------------------------------------------------------------------------


@pytest.fixture
def reference():
    """Pixels as features; the first domain is dark, the second bright."""
    labels = {split: torch.arange(40) % 2 for split in ("train", "test")}
    features = {split: images(labels[split], seed).flatten(1) for seed, split in enumerate(labels)}
    space = Space("pixels", lambda x: x.flatten(1), features["train"], features["test"])
    return Reference(dataclasses.replace(spec_of(), content_hash="f" * 64), {"pixels": space}, labels, None, {})


def images(labels, seed):
    noise = torch.randn(len(labels), 1, 16, 16, generator=torch.Generator().manual_seed(seed))
    return (labels.view(-1, 1, 1, 1) - 0.5 + 0.1 * noise).clamp(-1, 1)


def test_translations_are_compared_with_the_domain_they_are_to_be_of(reference):
    """Copies of what is given are, all together, distributed like the data; of each domain they are not."""
    cfg, labels = EvaluateConfig(num_samples=40, resamples=10), torch.arange(40) % 2
    good, copies = images(labels, 5), images(1 - labels, 6)
    found = evaluate({"sample": good, "label": labels, "naive": copies}, reference, cfg, 0)
    assert list(found) == ["pixels", "pixels/A", "pixels/B"]
    for section in found.values():
        fd = section["fd"]
        assert fd["value"] < 2 * fd["floor"] < 0.2 * fd["copy"]
        assert fd["low"] <= fd["value"] <= fd["high"]
    mean = (found["pixels/A"]["fd"]["value"] + found["pixels/B"]["fd"]["value"]) / 2
    assert found["pixels"]["fd"]["value"] == pytest.approx(mean)
    one_way = {"sample": torch.where(labels.view(-1, 1, 1, 1) == 1, good, copies), "label": labels}
    for metric, expected in (("pixels/A.kid", True), ("pixels.kid", True), ("pixels/B.kid", False)):
        result = compare({"sample": good, "label": labels}, one_way, reference, metric, cfg, 0)
        assert (result.high < 0) == expected, metric
    assert {"pixels.fd", "pixels/A.kid", "pixels/B.coverage"} <= {*available_metrics(reference, labelled=True)}
    quality = [reference.quality(x.flatten(1), labels)["quality/pixels.fd"] for x in (good, copies)]
    assert quality[0] < 0.1 * quality[1]


def test_a_class_may_have_a_dot_in_its_name(reference):
    spec = dataclasses.replace(reference.spec, classes=("v1.0", "v2.0"))
    named, labels = dataclasses.replace(reference, spec=spec), torch.arange(40) % 2
    sides = [{"sample": images(labels, seed), "label": labels} for seed in (5, 6)]
    result = compare(*sides, named, "pixels/v1.0.kid", EvaluateConfig(num_samples=40, resamples=10), 0)
    assert result.low < 0 < result.high


def test_the_floor_has_as_many_of_each_label_as_there_are_to_be_compared_with(reference):
    """The first training examples may all have one label."""
    order = reference.labels["train"].argsort(stable=True)
    spaces = {n: dataclasses.replace(space, train=space.train[order]) for n, space in reference.spaces.items()}
    labels = {**reference.labels, "train": reference.labels["train"][order]}
    sorted_ones = dataclasses.replace(reference, spaces=spaces, labels=labels)
    made = torch.arange(20) % 2
    cfg = EvaluateConfig(num_samples=20, resamples=10)
    found = evaluate({"sample": images(made, 5), "label": made}, sorted_ones, cfg, 0)
    assert all(0 <= found[f"pixels/{one}"]["c2st"]["floor"] <= 1 for one in "AB")


def test_an_image_that_is_the_sample_of_several_examples_is_no_copy_of_itself(reference):
    """The smaller domain's images are, for training."""
    space = reference.spaces["pixels"]
    repeated = dataclasses.replace(space, train=space.train[:20].repeat(2, 1))
    reference = dataclasses.replace(reference, spaces={"pixels": repeated})
    cfg, labels = EvaluateConfig(num_samples=40, resamples=10), torch.arange(40) % 2
    found = evaluate({"sample": images(labels, 5), "label": labels}, reference, cfg, 0)["pixels"]
    assert found["copied"]["floor"] == 0
    assert 0.8 < found["memorisation_ratio"]["floor"] < 1.2


def test_kind_and_families_are_registered():
    assert kind_of("unpaired").name == "unpaired"
    assert {"cyclegan", "cut"} <= {*registry.names("models")}
    batch = Batch({"given": torch.zeros(1, 1, 16, 16), "sample": torch.zeros(1, 1, 16, 16)}, Noise(0, size=1))
    assert cut.build(cut.Config(**SMALL, layers=(0,)), spec_of(())).deal(batch).cond is None
