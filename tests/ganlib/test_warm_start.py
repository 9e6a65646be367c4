"""A training that starts from another's weights: what it takes, what it leaves, what it freezes."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from runs import Kept, equal, without_clock
from specs import image_spec

from ganlib import checkpoint, registry
from ganlib.build import build_game
from ganlib.config import ConfigError, TrainConfig, override
from ganlib.export import load_generator, save_generator
from ganlib.shards import read_spec
from ganlib.trainer import train
from ganlib.warm_start import DISCRIMINATOR, PARENT, save_discriminator, warm_start

CLASSES = tuple("0123456789")


def of_train(params, **changes):
    return params.model_copy(update={"train": params.train.model_copy(update=changes)})


def game_of(params, spec, seed):
    torch.manual_seed(seed)
    return build_game(params, spec)


def write_parent(folder, params, spec, seed=1):
    """A parent whose weights are the first of another seed."""
    game = game_of(params, spec, seed)
    save_generator(folder / "generator", game.generator, network=params.game.network, spec=spec)
    save_discriminator(folder, game.discriminator.state_dict())
    (folder / PARENT).write_text(json.dumps({"name": "models:/parent/1"}))
    return game


@pytest.mark.parametrize("family", registry.names("models"))
def test_both_players_start_from_the_parent(family, small, data_of, tmp_path):
    params, spec = small(family), read_spec(data_of(family))
    parent = write_parent(tmp_path, params, spec)
    game = game_of(params, spec, 2)
    assert not equal(dict(game.generator.state_dict()), dict(parent.generator.state_dict()))
    found = warm_start(game, params, spec, tmp_path)
    for player in ("generator", "discriminator"):
        assert equal(dict(game.modules[player].state_dict()), dict(parent.modules[player].state_dict()))
        assert found.taken[player] == (len(parent.modules[player].state_dict()),) * 2
    assert (found.not_taken, found.frozen, found.settings) == ({}, (), {})


def test_what_has_other_shapes_or_names_starts_as_without_a_parent(small, tmp_path):
    params = small("dcgan")
    parent = write_parent(tmp_path, params, image_spec((1, 16, 16), CLASSES))
    wider = override(params, {"network.discriminator_norm": "batch", "penalties": {}})
    three = image_spec((1, 16, 16), CLASSES[:3])
    game, alone = game_of(wider, three, 2), game_of(wider, three, 2)
    found = warm_start(game, wider, three, tmp_path)
    assert found.settings == {"discriminator_norm": "batch here, none there"}
    assert found.conditions == {"classes": "0, 1, 2 here, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 there"}
    assert any(line.startswith("  classes: 0, 1, 2 here, ") for line in found.lines())
    assert found.not_taken["generator.embedding.table.weight"] == "[3, 20] here, [10, 20] there"
    assert "not in the parent" in found.not_taken.values()
    assert "only in the parent" in found.not_taken.values()
    ours, theirs, before = (dict(one.generator.state_dict()) for one in (game, parent, alone))
    taken = [name for name in ours if f"generator.{name}" not in found.not_taken]
    assert found.taken["generator"] == (len(taken), len(ours))
    for name, x in ours.items():
        assert torch.equal(x, (theirs if name in taken else before)[name]), name
    said = found.lines()
    assert said[0].startswith("warm start from models:/parent/1: tensors taken: generator ")
    assert "  settings: network.discriminator_norm: batch here, none there" in said
    assert len(said) == 3 + len(found.not_taken)


def test_frozen_layers_stay_the_parents_and_a_resume_is_exact(small, prepared, tmp_path):
    params = of_train(small("dcgan"), init="parent", freeze=("discriminator.layers.0", "generator.embed*"))
    parent = write_parent(tmp_path / "parent", params, read_spec(prepared))
    whole, first, second = (Kept(tmp_path / name) for name in ("whole", "first", "second"))
    first.stop_after = 2
    train(params, whole, prepared=prepared, parent=tmp_path / "parent")
    with pytest.raises(KeyboardInterrupt):
        train(params, first, prepared=prepared, parent=tmp_path / "parent")
    train(params, second, prepared=prepared, parent=tmp_path / "parent", resume=first.folders[-1])
    ends = [without_clock(checkpoint.load(kept.folders[-1])) for kept in (whole, second)]
    assert equal(*ends)
    for player in ("generator", "discriminator"):
        weights = dict(parent.modules[player].named_parameters())
        same = {name for name, x in weights.items() if torch.equal(x, ends[0][player][name])}
        prefix = {"generator": "embed", "discriminator": "layers.0."}[player]
        frozen = {name for name in weights if name.startswith(prefix)}
        assert same == frozen != set(), player
    assert all(torch.equal(x, ends[0]["generator"][name]) for name, x in ends[0]["ema"].items() if "embed" in name)
    assert load_generator(whole.folders[-1] / "generator").about["parent"] == "models:/parent/1"


def test_without_a_discriminator_it_is_said(small, prepared, tmp_path):
    params, spec = small("mlp"), read_spec(prepared)
    write_parent(tmp_path, params, spec)
    (tmp_path / DISCRIMINATOR).unlink()
    game, alone = game_of(params, spec, 2), game_of(params, spec, 2)
    found = warm_start(game, params, spec, tmp_path)
    assert equal(dict(game.discriminator.state_dict()), dict(alone.discriminator.state_dict()))
    assert found.taken["discriminator"][0] == 0
    assert set(found.not_taken.values()) == {"no discriminator is kept with the parent"}
    frozen = of_train(params, init="parent", freeze=("discriminator.*",))
    with pytest.raises(
        ConfigError, match=r"is not the parent's .no discriminator is kept with the parent.: it would stay"
    ):
        warm_start(game, frozen, spec, tmp_path)


@pytest.mark.parametrize(
    ("freeze", "message"),
    [
        (
            "discriminator.layer.0",
            r"'discriminator.layer.0' names no weights \(did you mean 'discriminator.layers.0'\?\)",
        ),
        ("layers.0", "'layers.0' names no weights.*; layers: generator"),
        ("discriminator", r"discriminator leaves the discriminator no weights to learn"),
    ],
)
def test_what_cannot_be_frozen_is_one_line(small, prepared, tmp_path, freeze, message):
    params, spec = of_train(small("dcgan"), init="parent", freeze=(freeze,)), read_spec(prepared)
    write_parent(tmp_path, params, spec)
    with pytest.raises(ConfigError, match=f"^train.freeze: {message}") as error:
        warm_start(game_of(params, spec, 2), params, spec, tmp_path)
    assert "\n" not in str(error.value)


def test_what_is_no_parent_is_one_line(small, prepared, tmp_path):
    params, spec = small("dcgan"), read_spec(prepared)
    game = game_of(params, spec, 2)
    with pytest.raises(ConfigError, match=r"^train\.init: .*parent\.json: .*No such file"):
        warm_start(game, params, spec, tmp_path)
    write_parent(tmp_path, params, spec)
    with pytest.raises(ConfigError, match=r"^train\.init: parent: the parent that it names was not given with it"):
        train(of_train(params, init="parent"), print, prepared=prepared)
    other = small("mlp")
    message = r"^train\.init: models:/parent/1: expected a parent of model mlp, found dcgan"
    with pytest.raises(ConfigError, match=message):
        warm_start(game_of(other, spec, 2), other, spec, tmp_path)
    (tmp_path / "generator/generator.safetensors").write_bytes(b"no weights")
    with pytest.raises(ConfigError, match=r"^train\.init: models:/parent/1: not a generator: "):
        warm_start(game, params, spec, tmp_path)
    shutil.rmtree(tmp_path / "generator")
    with pytest.raises(ConfigError, match=r"not a generator: .*generator\.json"):
        warm_start(game, params, spec, tmp_path)
    with pytest.raises(
        ValueError, match=r"freeze: without init there are no weights of a parent to keep; set train.init"
    ):
        TrainConfig(kimg=1, freeze=("discriminator.layers.0",))
