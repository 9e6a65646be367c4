import json

import pytest
import torch

from ganlib import registry
from ganlib.data._spec import Spec
from ganlib.export import load_generator, save_generator

SPEC = Spec("image", "image", (1, 8, 8), ("a", "b", "c"), {"train": 8, "test": 8}, "")


@pytest.fixture(params=registry.names("models"))
def saved(request, tmp_path):
    module = registry.load("models", request.param)
    config = module.Config(latent_dim=4, width=4)
    game = module.build(config, SPEC)
    for layer in game.generator.modules():
        if hasattr(layer, "running_mean") and layer.running_mean is not None:
            layer.running_mean.normal_()
    save_generator(tmp_path, game.generator, network=config, spec=SPEC, about={"kimg": 3})
    return tmp_path, game


def test_what_was_saved_is_loaded(saved):
    folder, game = saved
    assert sorted(p.name for p in folder.iterdir()) == ["generator.json", "generator.safetensors"]
    generator = load_generator(folder)
    assert (generator.spec, generator.about, generator.conditional) == (SPEC, {"kimg": 3}, True)
    for (name, mine), theirs in zip(
        generator.game.generator.state_dict().items(), game.generator.state_dict().values(), strict=True
    ):
        assert torch.equal(mine, theirs), name


def test_samples_are_a_function_of_the_seed(saved):
    generator = load_generator(saved[0])
    one, two = generator.sample(7, seed=1), generator.sample(7, seed=1)
    assert torch.equal(one["sample"], two["sample"])
    assert one["label"].tolist() == [0, 1, 2, 0, 1, 2, 0]
    torch.testing.assert_close(generator.sample(7, seed=1, batch=3)["sample"], one["sample"])
    assert not torch.equal(generator.sample(7, seed=2)["sample"], one["sample"])
    assert generator.sample(3, label=2)["label"].tolist() == [2, 2, 2]
    assert generator.sample(3, truncation=0.3)["sample"].shape == (3, 1, 8, 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0}, "n: at least 1"),
        ({"n": 1, "label": 3}, "label: 0 to 2 is wanted, found 3"),
        ({"n": 1, "truncation": 0.0}, "truncation"),
    ],
)
def test_bad_requests(saved, arguments, message):
    with pytest.raises(ValueError, match=message):
        load_generator(saved[0]).sample(**arguments)


def test_what_is_not_a_generator_is_refused_by_name(saved):
    folder, _ = saved
    weights = folder / "generator.safetensors"
    good = weights.read_bytes()
    weights.write_bytes(good[: len(good) // 2])
    with pytest.raises(ValueError, match=f"{folder}: not a generator"):
        load_generator(folder)
    weights.unlink()
    with pytest.raises(ValueError, match=f"{folder}: not a generator"):
        load_generator(folder)
    weights.write_bytes(good)
    described = json.loads((folder / "generator.json").read_text())
    described["network"]["family"] = "os.system"
    (folder / "generator.json").write_text(json.dumps(described))
    with pytest.raises(ValueError, match=r"'os\.system' is not one of ganlib/models"):
        load_generator(folder)
