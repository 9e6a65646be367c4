"""Start a training from the weights of another, its parent, and freeze some of them.

Each player takes the parent's tensors whose names and shapes are its own; the others, as where classes, sizes or widths
differ, start as they would without a parent. The generator and its moving average both start from the parent's moving
average, which is what is exported. Optimisers, schedules and kimg start anew. Frozen weights stay the parent's:
FreezeD (Mo et al. 2020) freezes the lower layers of the discriminator, those next to the image.

A parent is a folder: `generator/` as `save_generator` writes it, `discriminator.safetensors` where one is known, and
`parent.json`, whose `name` messages use.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from ganlib import registry
from ganlib.config import ConfigError, Params
from ganlib.data._spec import Spec
from ganlib.game import Game

__all__ = ["DISCRIMINATOR", "PARENT", "PLAYERS", "WarmStart", "read_parent", "save_discriminator", "warm_start"]

PARENT = "parent.json"
DISCRIMINATOR = "discriminator.safetensors"
PLAYERS = ("generator", "discriminator")


@dataclass(frozen=True)
class WarmStart:
    """What a training takes of its parent. Names are PLAYER.NAME, of tensors in the players' states."""

    parent: str
    taken: Mapping[str, tuple[int, int]]
    """of each player: how many tensors it takes, of how many it has"""
    not_taken: Mapping[str, str]
    """why, by name; also what only the parent has"""
    frozen: tuple[str, ...]
    settings: Mapping[str, str]
    """settings of the networks that are not the parent's, as "32 here, 24 there\""""
    conditions: Mapping[str, str]
    """classes and attributes that are not the parent's; their weights are matched by position"""

    def lines(self) -> list[str]:
        """For the log."""
        counts = ", ".join(f"{player} {taken} of {all_}" for player, (taken, all_) in self.taken.items())
        lines = [f"warm start from {self.parent}: tensors taken: {counts}"]
        if self.settings:
            lines.append("  settings: " + "; ".join(f"network.{key}: {why}" for key, why in self.settings.items()))
        lines += [
            f"  {name}: {why}; weights are matched by position, not by name" for name, why in self.conditions.items()
        ]
        lines += [f"  not taken: {name}: {why}" for name, why in self.not_taken.items()]
        return lines + ([f"  frozen: {', '.join(self.frozen)}"] if self.frozen else [])


def save_discriminator(folder: Path, state: Mapping[str, Tensor]) -> None:
    """Write the state of a discriminator to `folder`, where a parent has it."""
    tensors = {name: x.detach().cpu().contiguous().clone() for name, x in state.items()}
    (folder / DISCRIMINATOR).write_bytes(save(tensors))  # save_file raises no OSError on a full disk


def read_parent(folder: Path) -> dict[str, Any]:
    """The content of `parent.json`. Raises ConfigError if the folder holds no parent."""
    try:
        about: dict[str, Any] = json.loads((folder / PARENT).read_text(encoding="utf-8"))
        return about
    except (OSError, ValueError) as error:
        raise ConfigError(f"train.init: {folder / PARENT}: {' '.join(str(error).split())}") from error


def warm_start(game: Game, params: Params, spec: Spec, folder: Path) -> WarmStart:
    """Give the players of a new game, on data of `spec`, the parent's weights; freeze those that `train.freeze` names.

    Raises ConfigError for a folder that is no parent, where nothing of it suits, and for what cannot be frozen.
    """
    name = str(read_parent(folder)["name"])
    taken, not_taken = dict[str, tuple[int, int]](), dict[str, str]()
    try:
        described = json.loads((folder / "generator/generator.json").read_text(encoding="utf-8"))
        network, data = described["network"], described["spec"]
        parent = {
            "generator": load_file(folder / "generator/generator.safetensors"),
            "discriminator": load_file(folder / DISCRIMINATOR) if (folder / DISCRIMINATOR).is_file() else None,
        }
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ConfigError(f"train.init: {name}: not a generator: {' '.join(str(error).split())}") from error
    own = params.game.network.model_dump(mode="json")
    if network.get("family") != own["family"]:
        raise ConfigError(
            f"train.init: {name}: expected a parent of model {own['family']}, found {network.get('family')}"
        )
    for player in PLAYERS:
        module, theirs = game.modules[player], parent[player]
        state = module.state_dict()
        if theirs is None:
            not_taken |= dict.fromkeys((f"{player}.{key}" for key in state), f"no {player} is kept with the parent")
            taken[player] = (0, len(state))
            continue
        theirs = {key: x for key, x in theirs.items() if " " not in key}  # not what a generator is kept with
        suits = {key: x for key, x in theirs.items() if key in state and x.shape == state[key].shape}
        module.load_state_dict({**state, **suits})
        taken[player] = (len(suits), len(state))
        not_taken |= {f"{player}.{key}": why for key, why in _differences(state, theirs)}
    if not any(count for count, _ in taken.values()):
        raise ConfigError(
            f"train.init: {name}: none of its tensors has the name and shape of one of {params.model_file}"
        )
    frozen = _freeze(game, params.train.freeze, not_taken)
    return WarmStart(name, taken, not_taken, frozen, _settings(own, network), _conditions(game, spec, data))


def _differences(own: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> Iterator[tuple[str, str]]:
    for key, x in own.items():
        if key not in theirs:
            yield key, "not in the parent"
        elif theirs[key].shape != x.shape:
            yield key, f"{[*x.shape]} here, {[*theirs[key].shape]} there"
    yield from ((key, "only in the parent") for key in theirs if key not in own)


def _settings(own: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, str]:
    return {
        key: f"{own.get(key)} here, {theirs.get(key)} there"
        for key in {**own, **theirs}
        if own.get(key) != theirs.get(key)
    }


def _conditions(game: Game, spec: Spec, theirs: Mapping[str, Any]) -> dict[str, str]:
    own = {"classes": spec.classes * bool(game.classes), "attributes": spec.attributes * bool(game.attributes)}
    return {
        key: f"{_some_of(names)} here, {_some_of(theirs[key])} there"
        for key, names in own.items()
        if names and theirs.get(key) and [*names] != theirs[key]
    }


def _some_of(names: Sequence[str], most: int = 10) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _freeze(game: Game, patterns: Sequence[str], not_taken: Mapping[str, str]) -> tuple[str, ...]:
    """Have the parameters that a pattern names, or whose layer it names, not learn. Returns their names."""
    learning = {
        f"{player}.{name}": parameter
        for player in PLAYERS
        for name, parameter in game.modules[player].named_parameters()
        if parameter.requires_grad
    }
    frozen = dict[str, nn.Parameter]()
    for pattern in patterns:
        named = {
            name: p for name, p in learning.items() if any(fnmatchcase(name, x) for x in (pattern, f"{pattern}.*"))
        }
        if not named:
            layers = list(dict.fromkeys(name.rpartition(".")[0] for name in learning))
            raise ConfigError(
                f"train.freeze: {pattern!r} names no weights{registry.nearest(pattern, [*layers, *learning])}; "
                f"layers: {', '.join(layers)}"
            )
        frozen |= named
    for name, parameter in frozen.items():
        if name in not_taken:
            raise ConfigError(f"train.freeze: {name} is not the parent's ({not_taken[name]}): it would stay random")
        parameter.requires_grad_(False)
    for player in PLAYERS:
        if frozen and not any(name.startswith(f"{player}.") for name in learning.keys() - frozen):
            raise ConfigError(f"train.freeze: {', '.join(patterns)} leaves the {player} no weights to learn")
    return tuple(frozen)
