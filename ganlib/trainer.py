"""Training, the same for every family, every Ray worker, every Tune trial and a debug run in this process.

`train(params, report)` plays `adversarial_step` until `train.kimg` thousand real samples were seen. Its only
outlet is `report(row, folder)`. Random draws and data order are functions of (seed, step), and ranks share one
global batch, so a resume continues bit for bit, and any number of ranks computes what one would.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ganlib import checkpoint, distributed, health, registry, shards
from ganlib.augment import Augment
from ganlib.config import ConfigError, Params, PlayerConfig
from ganlib.data._spec import Spec
from ganlib.export import save_generator
from ganlib.game import (
    Batch,
    Game,
    Learner,
    Noise,
    Sample,
    Term,
    adversarial_step,
    map_tensors,
    seed_of,
)
from ganlib.loader import Loader
from ganlib.losses import LOSSES
from ganlib.models._layers import BatchNorm
from ganlib.penalties import DIFFERENTIATE, MOVE, PENALTIES, PER_EXAMPLE
from ganlib.schedules import value
from ganlib.watch import Watch

__all__ = ["Plan", "Report", "build_game", "check_groups", "plan", "train", "update_ema"]

Report = Callable[[dict[str, float], Path | None], None]
"""`(row, folder)`, called on every rank. `folder`, now and then and on rank 0 alone, holds `checkpoint.pt`,
`generator/` (the average, exported) and `samples.png`; it is gone after the call."""


@dataclass(frozen=True)
class Plan:
    """When things happen, in steps."""

    steps: int
    images_per_step: int
    report_every: int
    checkpoint_every: int


def plan(params: Params, world: int) -> Plan:
    """Raises ConfigError for a batch that does not divide."""
    cfg, batch = params.train, params.game.batch
    if batch % (world * cfg.accumulate):
        raise ConfigError(
            f"models.{params.model}.batch: {batch} does not divide into {world} workers x {cfg.accumulate} "
            f"microbatches (scale.num_workers, train.accumulate); a multiple of {world * cfg.accumulate} is wanted"
        )
    images = batch * params.game.discriminator_steps
    report_every = max(1, round(cfg.report_kimg * 1000 / images))
    return Plan(
        steps=max(1, math.ceil(cfg.kimg * 1000 / images)),
        images_per_step=images,
        report_every=report_every,
        checkpoint_every=report_every * max(1, round(cfg.checkpoint_kimg / cfg.report_kimg)),
    )


def check_groups(params: Params, game: Game, world: int) -> None:
    """Raises ConfigError where shares of a batch would tear examples apart that the game takes together."""
    shares = world * params.train.accumulate
    share = params.game.batch // shares
    if shares > 1 and share % game.group:
        raise ConfigError(
            f"models.{params.model}.batch: {params.game.batch} leaves {share} examples to each of {world} workers x "
            f"{params.train.accumulate} microbatches; the networks take {game.group} together, so a multiple of "
            f"{shares * game.group} is wanted"
        )


def build_game(params: Params, spec: Spec) -> Game:
    """The chosen family on these data, with the penalties of `params`. Raises ConfigError if they do not fit."""
    cfg = params.game
    where = f"models.{params.model} on data '{params.data}'"
    family = registry.load("models", cfg.network.family)  # type: ignore[attr-defined]
    if spec.modality != family.MODALITY:
        raise ConfigError(f"{where}: the family is for {family.MODALITY} data, these are {spec.modality}")
    try:
        game: Game = family.build(cfg.network, spec)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error
    if cfg.mirror and len(spec.shape) != 3:
        raise ConfigError(f"{where}: mirror is for images, these are {spec.modality}; set it to false")
    per_example = sorted(PER_EXAMPLE & cfg.penalties.keys())
    if per_example and any(isinstance(layer, BatchNorm) for layer in game.discriminator.modules()):
        raise ConfigError(
            f"{where}: penalties ({', '.join(per_example)}) need a discriminator without BatchNorm, "
            "which mixes the examples of a batch; choose another norm for it, or no penalty"
        )
    moving = sorted(MOVE & cfg.penalties.keys())
    if spec.given and (moving or cfg.augment):
        torn = ", ".join([*moving, *(["augment"] if cfg.augment else [])])
        raise ConfigError(f"{where}: {torn} would tear given and generated images asunder; leave it out")
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
    if cfg.top_k != 1.0 and params.train.accumulate > 1:
        raise ConfigError(f"{where}: top_k compares the fakes of a whole step; set train.accumulate to 1")
    penalties, group = [], game.group
    for name, penalty in cfg.penalties.items():
        fn = PENALTIES[name]
        shrink = penalty.options.get("batch_shrink", 1)
        group = math.lcm(group, game.group * shrink)
        if shrink > 1 and cfg.batch % (game.group * shrink):
            raise ConfigError(
                f"{where}: penalties.{name}.batch_shrink: {shrink} x {game.group} examples that the networks take "
                f"together do not divide the batch of {cfg.batch}; choose a divisor of {cfg.batch // game.group}"
            )
        penalties.append(
            Term(
                name,
                "discriminator",
                fn(**penalty.options) if isinstance(fn, type) else fn,
                penalty.weight,
                penalty.every,
                slopes=name in DIFFERENTIATE,
            )
        )
    return dataclasses.replace(game, terms=(*game.terms, *penalties), group=group)


def train(
    params: Params,
    report: Report,
    *,
    prepared: str | Path,
    reference: str | Path | None = None,
    resume: str | Path | None = None,
) -> None:
    """Train on the shards in `prepared`, on every rank of the default process group, or alone without one.

    With `reference`, rows carry the quality of `train.quality_samples` fakes. `resume` is a folder once reported.
    Raises ConfigError before any work if `params` do not fit the data or the ranks, `health.Diverged` when
    numbers stop being numbers or, by `train.health`, when training has gone wrong for good.
    """
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    cfg, play, timing, spec = params.train, params.game, plan(params, world), shards.read_spec(Path(prepared))
    layout = torch.channels_last if cfg.channels_last else torch.preserve_format

    def place(x: Tensor) -> Tensor:
        return x.to(device, memory_format=layout if x.dim() == 4 else torch.preserve_format, non_blocking=True)

    training = _Training(params, spec, timing, world, device, layout)
    check_groups(params, training.game, world)
    if resume is not None:
        training.restore(checkpoint.load(resume))
    state = training.state
    healthy = copy.deepcopy(training.snapshot()) if cfg.health.policy == "rollback" else None

    loader = Loader(
        Path(prepared), "train", batch=play.batch, seed=params.seed, memory_mb=cfg.memory_mb, mirror=play.mirror
    )
    microbatches = world * cfg.accumulate
    share = play.batch // microbatches

    def batch(turn: int, part: int) -> Batch:
        """Part `part` of the global batch of a discriminator's turn."""
        data = {k: place(v) for k, v in loader.batch_at(turn, rank=part, world=microbatches).items()}
        rows = slice(part * share, (part + 1) * share)
        return Batch(data, Noise(params.seed, "turn", turn, size=play.batch, rows=rows, device=device))

    watch = None
    if rank == 0:
        watch = Watch(params, training.game, training.average, spec, Path(prepared), reference, place)
    sums: dict[str, Tensor] = {}
    began, began_at = time.perf_counter(), state["step"]
    while state["step"] < timing.steps:
        first = state["step"] * play.discriminator_steps
        turns = [
            [batch(first + i, rank * cfg.accumulate + part) for part in range(cfg.accumulate)]
            for i in range(play.discriminator_steps)
        ]
        for name, amount in training.step(turns).items():
            sums.setdefault(name, torch.zeros(2, device=device)).add_(torch.stack([amount, torch.ones_like(amount)]))
        done = state["step"]
        last = done == timing.steps
        if done % timing.report_every and not last:
            continue

        elapsed = time.perf_counter() - began
        state["seconds"] += elapsed
        row = {
            "kimg": training.kimg,
            "seconds": state["seconds"],
            "images_per_second": (done - began_at) * timing.images_per_step / elapsed,
            **_means(sums, world),
            **training.settings(),
        }
        trouble, doubt = _same_on_all_ranks(
            ("", False) if watch is None else watch.look(row, state["rows"], done), world
        )
        due = not last and done % timing.checkpoint_every == 0 and not (doubt and healthy is not None)
        if trouble:
            if healthy is None:
                raise health.Diverged(trouble)
            if state["rollbacks"] == cfg.health.max_rollbacks:
                raise health.Diverged(f"{trouble}; given up after {state['rollbacks']} rollbacks")
            report(row, None)
            rollbacks, seconds = state["rollbacks"] + 1, state["seconds"]
            training.restore(healthy)
            state.update(rollbacks=rollbacks, seconds=seconds)
        else:
            state["rows"] = [*state["rows"], row]
            if healthy is not None and due:
                healthy = copy.deepcopy(training.snapshot())
            with tempfile.TemporaryDirectory(prefix="ganlib-") as scratch:
                folder = None
                if watch is not None and (last or due):
                    folder = Path(scratch)
                    checkpoint.save(folder, training.snapshot())
                    about = {"kimg": row["kimg"], "seed": params.seed, "model": params.model, "data": params.data}
                    save_generator(
                        folder / "generator",
                        training.average,
                        network=play.network,
                        spec=spec,
                        attributes=watch.known.cond if training.game.attributes else None,
                        about=about,
                    )
                    watch.picture(folder / "samples.png")
                report(row, folder)
        sums = {}
        began, began_at = time.perf_counter(), state["step"]


class _Training:
    """All that learns, and how far it has come: what an exact resume needs."""

    def __init__(
        self,
        params: Params,
        spec: Spec,
        timing: Plan,
        world: int,
        device: torch.device,
        layout: torch.memory_format,
    ):
        self.params, self.play, self.timing, self.device = params, params.game, timing, device
        torch.manual_seed(seed_of(params.seed, "weights"))  # the same first weights on every rank
        game = build_game(params, spec)
        for module in (game.generator, game.discriminator):
            module.to(device, memory_format=layout)  # type: ignore[call-overload]
        self.average = copy.deepcopy(game.generator).requires_grad_(False)
        self.generator = _learner(game.generator, self.play.generator, world, params.train.compile)
        self.discriminator = _learner(game.discriminator, self.play.discriminator, world, params.train.compile)
        self.augment = None if self.play.augment is None else Augment(self.play.augment)
        self.game = game if self.augment is None else dataclasses.replace(game, view=self._view)
        self.parts: dict[str, Any] = {
            "generator": game.generator,
            "discriminator": game.discriminator,
            "average": self.average,
            "generator_optimizer": self.generator.optimizer,
            "discriminator_optimizer": self.discriminator.optimizer,
            **({} if self.augment is None else {"augment": self.augment}),
            **{f"{t.player}/{t.name}": t.fn.to(device) for t in game.terms if isinstance(t.fn, nn.Module)},
        }
        self.state: dict[str, Any] = {
            "step": 0,
            "seconds": 0.0,
            "rows": [],
            "rollbacks": 0,
            "accuracy": 0.0 if self.play.warmup else 1.0,
        }

    def snapshot(self) -> dict[str, Any]:
        return {**{name: part.state_dict() for name, part in self.parts.items()}, **self.state}

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Go back to a snapshot, which stays as it is."""
        for name, part in self.parts.items():
            part.load_state_dict(copy.deepcopy(snapshot[name]))
        self.state.update({name: copy.deepcopy(snapshot[name]) for name in self.state})

    @property
    def kimg(self) -> float:
        return float(self.state["step"] * self.timing.images_per_step / 1000)

    def settings(self) -> dict[str, float]:
        """What has changed by itself as training went on."""
        return {
            **({"augment/probability": self.augment.probability} if self.augment is not None else {}),
            **({"health/rollbacks": self.state["rollbacks"]} if self.state["rollbacks"] else {}),
        }

    def step(self, turns: Sequence[Sequence[Batch]]) -> dict[str, Tensor]:
        """Play one step, and have the average follow."""
        step, kimg, play = self.state["step"], self.kimg, self.play
        rank = dist.get_rank() if dist.is_initialized() else 0
        torch.manual_seed(seed_of(self.params.seed, "modules", step, rank))  # for modules that draw on their own
        slower = self.params.train.health.lr_factor ** self.state["rollbacks"]
        self.generator.lr_scale = self.discriminator.lr_scale = slower
        stats = adversarial_step(
            self.game,
            LOSSES[play.loss],
            self.generator,
            self.discriminator,
            turns,
            step=step,
            kimg=kimg,
            top_k=value(play.top_k, kimg),
            generator_plays=self._warm(kimg),
            autocast=self._autocast,
        )
        if play.warmup is not None:
            self._note_accuracy(stats)
        if self.augment is not None:
            self.augment.watch(stats["sign/real"])
            self.augment.adjust(self.timing.images_per_step)
        images = self.timing.images_per_step
        halflife = value(play.ema_halflife_kimg, kimg)
        if play.ema_rampup is not None:  # Karras et al. 2020a: no longer than a share of the training so far
            halflife = min(halflife, kimg * play.ema_rampup)
        update_ema(self.average, self.game.generator, 0.5 ** (images / max(halflife * 1000, 1e-9)))
        if self.game.progress is not None:
            self.game.progress(self.average, kimg)
        self.state["step"] += 1
        return stats

    def _view(self, sample: Sample, noise: Noise) -> Sample:
        assert self.augment is not None
        augment, kimg = self.augment, self.kimg
        return map_tensors(lambda images: augment(images, noise, kimg), sample)

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        if not self.params.train.amp:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def _warm(self, kimg: float) -> bool:
        """Whether the discriminator is ahead far enough for the generator to play."""
        warmup = self.play.warmup
        return warmup is None or self.state["accuracy"] >= warmup.accuracy or kimg >= warmup.max_kimg

    def _note_accuracy(self, stats: Mapping[str, Tensor]) -> None:
        """A running mean of how often the discriminator is right; it counts until the warm-up is over."""
        if self._warm(self.kimg):
            self.state["accuracy"] = 1.0
            return
        right = (2 + stats["sign/real"] - stats["sign/fake"]) / 4
        if distributed.world_size() > 1:
            right = distributed.all_reduce(right) / distributed.world_size()
        self.state["accuracy"] += (float(right) - self.state["accuracy"]) / 10


def _same_on_all_ranks(found: tuple[str, bool], world: int) -> tuple[str, bool]:
    """What rank 0 found."""
    if world == 1:
        return found
    told: list[Any] = [*found]
    dist.broadcast_object_list(told)
    return told[0], told[1]


def _learner(module: nn.Module, cfg: PlayerConfig, world: int, compile: bool) -> Learner:
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[cfg.optimizer]
    trained = [p for p in module.parameters() if p.requires_grad]
    # the learning rate is set at every step, from `cfg.lr`
    betas = (cfg.betas[0], value(cfg.betas[1], 0.0))
    optimizer = kind(trained, lr=0.0, betas=betas, weight_decay=cfg.weight_decay, fused=True)
    return Learner(
        module,
        optimizer,
        cfg.lr,
        beta2=cfg.betas[1],
        clip_norm=cfg.clip_norm,
        average_gradients=distributed.average_gradients if world > 1 else None,
        compiled=torch.compile(module) if compile else None,
    )


def _means(sums: dict[str, Tensor], world: int) -> dict[str, float]:
    """Means over ranks and over the steps that had the statistic; `sums` holds (sum, count) of each."""
    flat = torch.stack(list(sums.values()))
    if world > 1:
        flat = distributed.all_reduce(flat)
    return dict(zip(sums, (flat[:, 0] / flat[:, 1]).tolist(), strict=True))


@torch.no_grad()
def update_ema(average: nn.Module, module: nn.Module, decay: float) -> None:
    """average ← decay·average + (1 − decay)·module, running statistics of norms included."""
    torch._foreach_lerp_(list(average.parameters()), list(module.parameters()), 1 - decay)
    for mine, theirs in zip(average.buffers(), module.buffers(), strict=True):
        if mine.is_floating_point():
            mine.lerp_(theirs, 1 - decay)
        else:
            mine.copy_(theirs)
