"""The game of the chosen family on prepared data. What does not fit is refused before any work starts."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import torch

from ganlib import registry
from ganlib.augment import Augment
from ganlib.config import ConfigError, FitConfig, ModelConfig, Params
from ganlib.data._spec import Spec
from ganlib.game import Game, Term
from ganlib.models._layers import BatchNorm
from ganlib.noise import Noise
from ganlib.penalties import DIFFERENTIATE, MOVE, PENALTIES, PER_EXAMPLE

__all__ = ["build_game", "check_groups"]


def build_game(params: Params, spec: Spec) -> Game:
    """The chosen family on these data, with the penalties of `params`. Raises ConfigError if they do not fit."""
    cfg = params.game
    where = f"{params.model_file} on data '{params.data}'"
    family = registry.load("models", cfg.network.family)  # type: ignore[attr-defined]
    suits = registry.modalities(family)
    if spec.modality not in suits:
        raise ConfigError(f"{where}: the family is for {' and '.join(suits)} data, these are {spec.modality}")
    try:
        game: Game = family.build(cfg.network, spec)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error
    moving = sorted(MOVE & cfg.penalties.keys())
    asked = [*(["mirror"] if cfg.mirror else []), *(["augment"] if cfg.augment else []), *moving]
    if asked and not spec.kind.is_picture:
        raise ConfigError(f"{where}: {', '.join(asked)} is for images, these are {spec.modality}; leave it out")
    _check_fits(game, cfg.fits, where)
    per_example = sorted(PER_EXAMPLE & cfg.penalties.keys())
    if per_example and any(isinstance(layer, BatchNorm) for layer in game.discriminator.modules()):
        raise ConfigError(
            f"{where}: penalties ({', '.join(per_example)}) need a discriminator without BatchNorm, "
            "which mixes the examples of a batch; choose another norm for it, or no penalty"
        )
    if spec.given and (moving or cfg.augment):
        torn = ", ".join([*moving, *(["augment"] if cfg.augment else [])])
        raise ConfigError(f"{where}: {torn} breaks the alignment of given and generated images; leave it out")
    if cfg.augment and moving:
        raise ConfigError(
            f"{where}: {', '.join(moving)} compare an image with the same image moved, and augment would change each "
            "in its own way; choose one of them"
        )
    if cfg.augment is not None:
        try:
            Augment(cfg.augment)(torch.zeros(1, *spec.shape), Noise(0, size=1), 0.0)
        except ValueError as error:
            raise ConfigError(f"{where}: {error}") from error
    if game.pool is not None and cfg.batch > game.pool.size:
        raise ConfigError(
            f"{where}: batch: {cfg.batch} examples of a step do not fit into a pool of {game.pool.size} past fakes; "
            "choose a larger pool or a smaller batch"
        )
    if cfg.top_k != 1.0 and params.train.accumulate > 1:
        raise ConfigError(f"{where}: top_k compares the fakes of a whole step; set train.accumulate to 1")
    return _with_penalties(game, cfg, where)


def _with_penalties(game: Game, cfg: ModelConfig, where: str) -> Game:
    """The game with the penalties of the model's file. Raises ConfigError where a batch cannot be shrunk as asked."""
    penalties, group = [], game.group
    for name, penalty in cfg.penalties.items():
        fn = PENALTIES[name]
        shrink = penalty.options.get("batch_shrink", 1)
        group = math.lcm(group, game.group * shrink)
        if shrink > 1 and cfg.batch % (game.group * shrink):
            raise ConfigError(
                f"{where}: penalties.{name}.batch_shrink: {shrink} x {game.group} examples, which the networks "
                f"process together, do not divide the batch of {cfg.batch}; "
                f"choose a divisor of {cfg.batch // game.group or 1}"
            )
        penalties.append(
            Term(
                name,
                "discriminator",
                fn(**penalty.options) if isinstance(fn, type) else fn,
                penalty.weight,
                penalty.every,
                needs_input_grad=name in DIFFERENTIATE,
            )
        )
    return dataclasses.replace(game, terms=(*game.terms, *penalties), group=group)


def _check_fits(game: Game, configs: Mapping[str, FitConfig], where: str) -> None:
    """Raises ConfigError where the game's fits and those of the model's file are not the same."""
    names = [fit.name for fit in (*game.before, *game.after)]
    if sorted(names) != sorted(configs):
        raise ConfigError(f"{where}: fits: expected {', '.join(names) or 'none'}, found {', '.join(configs) or 'none'}")
    for fit in (*game.before, *game.after):
        if fit.module not in game.modules or (fit.module == "generator" and fit in game.after):
            raise ValueError(f"fit {fit.name!r}: module {fit.module!r} does not exist, or is the finished generator")


def check_groups(params: Params, game: Game, world: int) -> None:
    """Raises ConfigError where shares of a batch would separate examples that the game takes together."""
    shares = world * params.train.accumulate
    share = params.game.batch // shares
    if shares > 1 and share % game.group:
        raise ConfigError(
            f"{params.model_file}: batch: {params.game.batch} leaves {share} examples to each of {world} workers x "
            f"{params.train.accumulate} microbatches; the networks process examples in groups of {game.group}: "
            f"expected a multiple of {shares * game.group}"
        )
