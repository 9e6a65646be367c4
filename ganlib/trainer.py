"""Training, the same for every family, every Ray worker, every Tune trial and a debug run in this process.

`train(params, report)` plays the turns of a step until `train.kimg` thousand real samples were seen. Its only
outlet is `report(row, folder)`. Random draws and data order are functions of (seed, step), and ranks share one
global batch, so a resume continues bit for bit, and any number of ranks computes what one would.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ganlib import checkpoint, distributed, health, shards
from ganlib import device as devices
from ganlib.augment import Augment
from ganlib.build import build_game, check_groups
from ganlib.config import ConfigError, Params, PlayerConfig
from ganlib.data._spec import Spec
from ganlib.export import save_generator
from ganlib.game import (
    OPTIMIZERS,
    Batch,
    Fit,
    Game,
    Learner,
    Sample,
    Stats,
    Turn,
    due_terms,
    fit_step,
    map_tensors,
    period,
    play,
    turns_of,
)
from ganlib.loader import Loader
from ganlib.losses import LOSSES
from ganlib.noise import Noise, seed_of
from ganlib.recording import RecordedSteps
from ganlib.schedules import value
from ganlib.scratch import scratch_folder
from ganlib.warm_start import read_parent, warm_start
from ganlib.watch import Watch

__all__ = ["Phase", "Plan", "Report", "phases", "plan", "train", "update_ema"]

Report = Callable[[dict[str, float], Path | None], None]
"""`(row, folder)`, called on every rank. `folder`, now and then and on rank 0 alone, holds `checkpoint.pt`,
`generator/` (the moving average, exported), `samples.png` and, if the generator was fitted before the game, `before/`
(the generator after those fits, exported); it is gone after the call."""


@dataclass(frozen=True)
class Plan:
    """The steps at which a phase of training reports and writes checkpoints. They follow from its kimg, so that
    they are the same for any budget."""

    steps: int
    examples_per_step: int
    report_kimg: float
    reports_per_checkpoint: int

    def reports(self, step: int) -> int:
        """How many reports are due by the end of `step`, the last step aside."""
        return math.floor(step * self.examples_per_step / (1000 * self.report_kimg) + 1e-9)

    def report_due(self, step: int) -> bool:
        return step == self.steps or self.reports(step) > self.reports(step - 1)

    def checkpoint_due(self, step: int) -> bool:
        """Whether one is due at `step`, a step that is reported. The last step's checkpoint is due always."""
        due, before = (self.reports(n) // self.reports_per_checkpoint for n in (step, step - 1))
        return step == self.steps or due > before


def plan(params: Params, world: int) -> Plan:
    """Raises ConfigError for a batch that does not divide."""
    cfg, batch = params.train, params.game.batch
    if batch % (world * cfg.accumulate):
        raise ConfigError(
            f"{params.model_file}: batch: {batch} does not divide into {world} workers x {cfg.accumulate} "
            f"microbatches (scale.num_workers, train.accumulate); expected a multiple of {world * cfg.accumulate}"
        )
    return _plan(params, cfg.game_kimg, batch * params.game.discriminator_steps)


def _plan(params: Params, kimg: float, examples_per_step: int) -> Plan:
    return Plan(
        steps=max(1, math.ceil(kimg * 1000 / examples_per_step - 1e-9)),
        examples_per_step=examples_per_step,
        report_kimg=params.train.report_kimg,
        reports_per_checkpoint=max(1, round(params.train.checkpoint_kimg / params.train.report_kimg)),
    )


@dataclass(frozen=True)
class Phase:
    """A part of a training: a fit, or the game."""

    fit: Fit | None
    """None: the game"""
    plan: Plan
    start_kimg: float
    """thousands of real samples seen in the phases before, as planned"""
    after: bool = False
    """whether it follows the game"""


def phases(params: Params, game: Game, timing: Plan) -> list[Phase]:
    """Fits before, the game, fits after; without fits of no budget."""
    found, start = list[Phase](), 0.0
    fits = params.game.fits
    for fit, after in [*((f, False) for f in game.before), (None, False), *((f, True) for f in game.after)]:
        if fit is not None and not fits[fit.name].kimg:
            continue
        plan = timing if fit is None else _plan(params, fits[fit.name].kimg, params.game.batch)
        found.append(Phase(fit, plan, start, after))
        start += params.train.game_kimg if fit is None else fits[fit.name].kimg
    return found


def train(
    params: Params,
    report: Report,
    *,
    prepared: str | Path,
    reference: str | Path | None = None,
    resume: str | Path | None = None,
    parent: str | Path | None = None,
    device: torch.device | None = None,
) -> None:
    """Train on the shards in `prepared`, on every rank of the default process group, or alone without one.

    With `reference`, rows carry the quality of `train.quality_samples` fakes. `resume` is a folder once reported,
    `parent` the folder (`ganlib.warm_start`) of what `train.init` names, which is for the caller to find.
    `device` is this process's GPU, or the CPU where there is none, unless given.
    Raises ConfigError before any work if `params` do not fit the data or the ranks, `health.Diverged` when
    numbers stop being numbers or, by `train.health`, when training has gone wrong for good.
    """
    if (parent is None) != (params.train.init is None):
        raise ConfigError(f"train.init: {params.train.init}: the parent that it names was not given with it")
    device = devices.default_device() if device is None else device
    with devices.configured(device, deterministic=params.train.deterministic):
        run = _Run(params, report, Path(prepared), reference, device, None if parent is None else Path(parent))
        if resume is not None:
            run.training.restore(checkpoint.load(resume))
        with contextlib.closing(run.loader):
            run.until_done()


class _Run:
    """One call of `train`: the loop, and what is reported on the way."""

    def __init__(
        self,
        params: Params,
        report: Report,
        prepared: Path,
        reference: str | Path | None,
        device: torch.device,
        parent: Path | None = None,
    ):
        self.params, self.report, self.device = params, report, device
        self.parent = {} if parent is None else {"parent": read_parent(parent)["name"]}
        self.world = distributed.world_size()
        self.rank = distributed.rank()
        self.spec = shards.read_spec(prepared)
        self.training = _Training(params, self.spec, plan(params, self.world), self.world, device, parent)
        check_groups(params, self.training.game, self.world)
        self.healthy: dict[str, Any] | None = None
        """what a rollback goes back to; None where `train.health.policy` is another"""
        cfg = params.train
        self.loader = Loader(
            prepared,
            "train",
            batch=params.game.batch,
            seed=params.seed,
            memory_mb=cfg.memory_mb,
            device_memory_mb=cfg.device_memory_mb,
            mirror=params.game.mirror,
            device=device,
            steps_ahead=params.game.discriminator_steps,
            weights=self.training.game.weights,
        )
        self.watch = None
        if self.rank == 0:
            self.watch = Watch(
                params,
                self.training.game,
                self.training.ema,
                self.spec,
                prepared,
                reference,
                self.training.place,
                device,
            )

    def until_done(self) -> None:
        """Step and report until the budget of every phase is spent."""
        training, state = self.training, self.training.state
        if self.params.train.health.policy == "rollback":
            self.healthy = copy.deepcopy(training.snapshot())
        statistics, since, first = _Statistics(), time.perf_counter(), state["step"]
        while not training.is_done:
            if state["step"] >= training.phase.plan.steps:
                training.start_next_phase()
                first = 0
            phase, timing = training.phase, training.phase.plan
            statistics.add(training.step(self.batches(phase, state["step"])))
            done = state["step"]
            if not timing.report_due(done):
                continue
            means = statistics.means()  # waits for the device
            elapsed = time.perf_counter() - since
            state["seconds"] += elapsed
            speed = (done - first) * timing.examples_per_step / elapsed
            self.account({"examples_per_second": speed, **means, **training.settings()})
            statistics, since, first = _Statistics(), time.perf_counter(), state["step"]

    def batches(self, phase: Phase, step: int) -> list[list[Batch]]:
        """This rank's microbatches for each turn of the discriminator, or for the only one of a fit."""
        turns = self.params.game.discriminator_steps if phase.fit is None else 1
        parts, purpose = self.params.train.accumulate, "turn" if phase.fit is None else f"fit {phase.fit.name}"
        return [
            [self.batch(purpose, step * turns + i, self.rank * parts + part) for part in range(parts)]
            for i in range(turns)
        ]

    def batch(self, purpose: str, turn: int, part: int) -> Batch:
        """Part `part` of the global batch of a turn."""
        size, parts = self.params.game.batch, self.world * self.params.train.accumulate
        share = size // parts
        data = {k: self.training.place(v) for k, v in self.loader.batch_at(turn, rank=part, world=parts).items()}
        rows = slice(part * share, (part + 1) * share)
        return Batch(data, Noise(self.params.seed, purpose, turn, size=size, rows=rows, device=self.device))

    def account(self, found: dict[str, float]) -> None:
        """Report a row, or go back to the last healthy state. Raises Diverged."""
        training, state = self.training, self.training.state
        row = {"kimg": training.kimg, "seconds": state["seconds"], **training.progress(), **found}
        alarm, suspicion = "", False
        if self.watch is not None:
            alarm, suspicion = self.watch.assess(row, state["rows"], state["step"])
        alarm, suspicion = _from_rank_0((alarm, suspicion), self.world)
        if alarm:
            self.roll_back(row, alarm)
            return
        state["rows"] = [*state["rows"], row]
        last = training.is_done
        due = not last and training.phase.plan.checkpoint_due(state["step"])
        if self.healthy is not None and suspicion:
            due = False
        elif self.healthy is not None and due:
            self.healthy = copy.deepcopy(training.snapshot())
        with scratch_folder() as scratch:
            folder = Path(scratch) if self.watch is not None and (last or due) else None
            if folder is not None:
                try:
                    self.save(folder, row["kimg"])
                except OSError as error:
                    if error.errno is None or error.filename is not None:
                        raise
                    raise OSError(error.errno, error.strerror, str(folder)) from error  # where the disk is full
            self.report(row, folder)

    def roll_back(self, row: dict[str, float], alarm: str) -> None:
        """Go back to the last healthy state, with lower learning rates. Raises Diverged if there is none or it was done
        `max_rollbacks` times before."""
        state = self.training.state
        if self.healthy is None:
            raise health.Diverged(alarm)
        if state["rollbacks"] == self.params.train.health.max_rollbacks:
            raise health.Diverged(f"{alarm}; given up after {state['rollbacks']} rollbacks")
        self.report(row, None)
        rollbacks, seconds = state["rollbacks"] + 1, state["seconds"]
        self.training.restore(self.healthy)
        state.update(rollbacks=rollbacks, seconds=seconds)

    def save(self, folder: Path, kimg: float) -> None:
        """Write a checkpoint, the exported generator and a picture."""
        params, training, watch = self.params, self.training, self.watch
        assert watch is not None
        checkpoint.save(folder, training.snapshot())
        known = watch.held_out.cond if training.game.attributes else None
        exported = {"generator": (training.ema, kimg)}
        if training.before is not None and training.start_of_game_kimg is not None:
            exported["before"] = (training.before, training.start_of_game_kimg)
        for name, (module, of_kimg) in exported.items():
            save_generator(
                folder / name,
                module,
                network=params.game.network,
                spec=self.spec,
                attributes=None if known is None else self.spec.in_own_units(known),
                others=training.game.modules_besides_generator if training.game.answers else {},
                about={
                    "kimg": of_kimg,
                    "seed": params.seed,
                    "model": params.model,
                    "data": params.data,
                    **self.parent,
                },
            )
        watch.picture(folder / "samples.png")


_LONGEST_PERIOD = 64
"""steps that are played at most before any is recorded, also where some term is due less often"""


class _Training:
    """All that learns, and how far it has come: what an exact resume needs."""

    def __init__(
        self,
        params: Params,
        spec: Spec,
        timing: Plan,
        world: int,
        device: torch.device,
        parent: Path | None = None,
    ):
        self.params, self.play, self.device = params, params.game, device
        cfg = params.train
        self.mixed = devices.mixed_precision(device, cfg.amp)
        torch.manual_seed(seed_of(params.seed, "weights"))  # the same first weights on every rank
        game = build_game(params, spec)
        if parent is not None:
            warm_start(game, params, spec, parent)
        networks = game.modules.values()
        self.layout = devices.memory_format(device, networks, channels_last=cfg.channels_last)
        for module in networks:
            module.to(device, memory_format=self.layout)  # type: ignore[call-overload]
        if game.pool is not None:
            game.pool.start(device)
        self.ema = copy.deepcopy(game.generator).requires_grad_(False)
        self.generator = _learner(game.generator, self.play.generator, cfg.compile)
        self.discriminator = _learner(game.discriminator, self.play.discriminator, cfg.compile)
        self.phases = phases(params, game, timing)
        self.fits = {
            s.fit.name: _learner(game.modules[s.fit.module], self.play.fits[s.fit.name], compile=False)
            for s in self.phases
            if s.fit is not None
        }
        fitted = any(s.fit is not None and not s.after and s.fit.module == "generator" for s in self.phases)
        self.before = copy.deepcopy(self.ema) if fitted else None
        """the generator as fits before the game have made it, once they are over"""
        self.augment = None if self.play.augment is None else Augment(self.play.augment).to(device)
        self.game = game if self.augment is None else dataclasses.replace(game, augmentation=self._augmented)
        self.clock = torch.zeros((), dtype=torch.float64, device=device)
        """kimg at the start of the step"""
        self.recorded = self._recorder(world)
        self.parts: dict[str, Any] = {
            "generator": game.generator,
            "discriminator": game.discriminator,
            "ema": self.ema,
            "generator_optimizer": self.generator.optimizer,
            "discriminator_optimizer": self.discriminator.optimizer,
            **{f"others/{name}": module for name, module in game.others.items()},
            **{f"fits/{name}_optimizer": learner.optimizer for name, learner in self.fits.items()},
            **({} if self.before is None else {"before": self.before}),
            **({} if self.augment is None else {"augment": self.augment}),
            **({} if game.pool is None else {"pool": game.pool}),
            **{f"{t.player}/{t.name}": t.fn.to(device) for t in game.terms if isinstance(t.fn, nn.Module)},
        }
        self.state: dict[str, Any] = {
            "phase": 0,
            "step": 0,
            "seconds": 0.0,
            "rows": [],
            "rollbacks": 0,
            "accuracy": 0.0 if self.play.warmup else 1.0,
        }

    def _recorder(self, world: int) -> RecordedSteps | None:
        """None where steps cannot be recorded: on devices without graphs, where ranks communicate inside a step, where
        networks grow or are compiled."""
        cfg = self.params.train
        record = devices.recorder(self.device)
        if record is None or not cfg.cuda_graphs or world > 1 or cfg.compile or self.game.progress is not None:
            return None
        return RecordedSteps(record, min(period(self.game, self.play.discriminator_steps), _LONGEST_PERIOD))

    def place(self, x: Tensor) -> Tensor:
        """`x` on the device, in the layout of the networks."""
        return devices.on_device(x, self.device, self.layout)

    def snapshot(self) -> dict[str, Any]:
        return {**{name: part.state_dict() for name, part in self.parts.items()}, **self.state}

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Go back to a snapshot, which stays as it is."""
        for name, part in self.parts.items():
            part.load_state_dict(copy.deepcopy(snapshot[name]))
        # a checkpoint from before there were phases is one of the game; they were called stretches
        snapshot = {"phase": snapshot.get("stretch", 0), **snapshot}
        self.state.update({name: copy.deepcopy(snapshot.get(name, 0)) for name in self.state})

    @property
    def phase(self) -> Phase:
        """The phase of training that goes on."""
        index: int = self.state["phase"]
        return self.phases[index]

    @property
    def is_done(self) -> bool:
        last = len(self.phases) - 1
        return bool(self.state["phase"] == last and self.state["step"] >= self.phase.plan.steps)

    def start_next_phase(self) -> None:
        """From the end of a phase to the start of the next."""
        self.state.update(phase=self.state["phase"] + 1, step=0)
        if self.before is not None and self.phase.fit is None:
            self.before.load_state_dict(self.ema.state_dict())

    @property
    def kimg(self) -> float:
        """Thousands of real samples seen, in fits too."""
        return self.phase.start_kimg + self.phase_kimg

    @property
    def start_of_game_kimg(self) -> float | None:
        """None before the game."""
        game = next(i for i, phase in enumerate(self.phases) if phase.fit is None)
        return self.phases[game].start_kimg if self.state["phase"] >= game else None

    @property
    def phase_kimg(self) -> float:
        """Thousands of real samples seen in this phase: what schedules go by."""
        return float(self.state["step"] * self.phase.plan.examples_per_step / 1000)

    def progress(self) -> dict[str, float]:
        """Progress of the phase, if it differs from that of the training."""
        if self.phase.fit is not None:
            return {"fit_kimg": self.phase_kimg}
        return {"game_kimg": self.phase_kimg} if self.phase.start_kimg else {}

    def settings(self) -> dict[str, float]:
        """Settings that the training itself changes, for the report."""
        found: dict[str, float] = {}
        if self.augment is not None:
            found["augment/probability"] = float(self.augment.probability)
        if self.state["rollbacks"]:
            found["health/rollbacks"] = self.state["rollbacks"]
        if devices.is_accelerator(self.device):
            found["recorded_steps"] = 0.0 if self.recorded is None else self.recorded.share()
        return found

    def step(self, batches: Sequence[Sequence[Batch]]) -> Stats:
        """Play one step of the game and update the moving average; or play one step of a fit."""
        if self.phase.fit is not None:
            return self._fit(self.phase.fit, batches[0])
        step, kimg, cfg = self.state["step"], self.phase_kimg, self.play
        # for modules that draw on their own
        torch.manual_seed(seed_of(self.params.seed, "modules", step, distributed.rank()))
        slower = self.params.train.health.lr_factor ** self.state["rollbacks"]
        self.generator.lr_scale = self.discriminator.lr_scale = slower
        self.clock.fill_(kimg)
        stats = play(self._turns(batches, step, kimg), kimg)
        if cfg.warmup is not None:
            self._note_accuracy(stats)
        if self.augment is not None:
            self.augment.adjust(stats["sign/real"], turn=step, images=self.phase.plan.examples_per_step)
        halflife = value(cfg.ema_halflife_kimg, kimg)
        if cfg.ema_rampup is not None:  # Karras et al. 2020a: no longer than a share of the training so far
            halflife = min(halflife, kimg * cfg.ema_rampup)
        examples = self.phase.plan.examples_per_step
        update_ema(self.ema, self.game.generator, 0.5 ** (examples / max(halflife * 1000, 1e-9)))
        if self.game.progress is not None:
            self.game.progress(self.ema, kimg)
        self.state["step"] += 1
        return stats

    def _fit(self, fit: Fit, microbatches: Sequence[Batch]) -> Stats:
        """One step of a fit. Before the game the moving average is kept equal to the generator; after it, the game's
        generator is the moving average."""
        step, game = self.state["step"], self.game
        torch.manual_seed(seed_of(self.params.seed, f"fit {fit.name}", step, distributed.rank()))
        if self.phase.after:
            game = dataclasses.replace(game, generator=self.ema.eval())
        autocast = partial(devices.autocast, self.device, self.mixed)
        learner = self.fits[fit.name]
        stats = fit_step(game, fit, learner, microbatches, kimg=self.phase_kimg, autocast=autocast)
        if fit.module == "generator":
            update_ema(self.ema, game.generator, 0.0)
        self.state["step"] += 1
        return stats

    def _turns(self, batches: Sequence[Sequence[Batch]], step: int, kimg: float) -> list[Turn]:
        """The turns of a step, recorded where steps are recorded."""
        plays = self._warm(kimg)

        def make(batches: Sequence[Sequence[Batch]]) -> list[Turn]:
            return turns_of(
                self.game,
                LOSSES[self.play.loss],
                self.generator,
                self.discriminator,
                batches,
                step=step,
                kimg=kimg,
                clock=self.clock,
                top_k=self.play.top_k,
                generator_plays=plays,
                autocast=partial(devices.autocast, self.device, self.mixed),
            )

        if self.recorded is None:
            return make(batches)
        turns = range(step * len(batches), (step + 1) * len(batches))
        due = [due_terms(self.game, "discriminator", turn) for turn in turns] + [
            due_terms(self.game, "generator", step)
        ]
        key = (plays, *(tuple(term.name for term in terms) for terms in due))
        return self.recorded.turns(key, batches, make)

    def _augmented(self, sample: Sample, noise: Noise) -> Sample:
        assert self.augment is not None
        augment = self.augment
        return map_tensors(lambda images: augment(images, noise, self.clock), sample)

    def _warm(self, kimg: float) -> bool:
        """Whether the discriminator is ahead far enough for the generator to play."""
        warmup = self.play.warmup
        return warmup is None or self.state["accuracy"] >= warmup.accuracy or kimg >= warmup.max_kimg

    def _note_accuracy(self, stats: Mapping[str, Tensor]) -> None:
        """Update the running mean of the discriminator's accuracy, until the warm-up is over; waits for the device."""
        if self._warm(self.phase_kimg):
            self.state["accuracy"] = 1.0
            return
        right = distributed.all_reduce((2 + stats["sign/real"] - stats["sign/fake"]) / 4) / distributed.world_size()
        self.state["accuracy"] += (float(right) - self.state["accuracy"]) / 10


class _Statistics:
    """Sums of statistics on the device, until they are reported."""

    def __init__(self) -> None:
        self.sums: dict[tuple[str, ...], Tensor] = {}
        """of the statistics that came together; the last number counts how often they came"""

    def add(self, stats: Stats) -> None:
        values = list(stats.values())
        row = torch.stack([*values, torch.ones_like(values[0])])
        names = tuple(stats)
        self.sums[names] = self.sums[names] + row if names in self.sums else row

    def means(self) -> dict[str, float]:
        """Means over ranks and over the steps that had the statistic."""
        sums: dict[str, float] = {}
        counts: dict[str, float] = {}
        everything = distributed.all_reduce(torch.cat(list(self.sums.values()))).tolist()
        for names in self.sums:
            *values, count = everything[: len(names) + 1]
            del everything[: len(names) + 1]
            for name, amount in zip(names, values, strict=True):
                sums[name] = sums.get(name, 0.0) + amount
                counts[name] = counts.get(name, 0.0) + count
        return {name: amount / counts[name] for name, amount in sums.items()}


def _from_rank_0(found: tuple[str, bool], world: int) -> tuple[str, bool]:
    """Broadcast the findings of rank 0 to all ranks."""
    if world == 1:
        return found
    shared: list[Any] = [*found]
    dist.broadcast_object_list(shared)
    return shared[0], shared[1]


def _learner(module: nn.Module, cfg: PlayerConfig, compile: bool) -> Learner:
    trained = [p for p in module.parameters() if p.requires_grad]
    # the learning rate is set at every step, from `cfg.lr`
    betas = (cfg.betas[0], value(cfg.betas[1], 0.0))
    optimizer = OPTIMIZERS[cfg.optimizer](trained, lr=0.0, betas=betas, weight_decay=cfg.weight_decay, fused=True)
    return Learner(
        module,
        optimizer,
        cfg.lr,
        beta2=cfg.betas[1],
        clip_norm=cfg.clip_norm,
        average_gradients=distributed.gradient_averager(trained),
        compiled=torch.compile(module) if compile else None,
    )


@torch.no_grad()
def update_ema(ema: nn.Module, module: nn.Module, decay: float) -> None:
    """ema ← decay·ema + (1 − decay)·module, running statistics of norms included."""
    pairs = [
        *zip(ema.parameters(), module.parameters(), strict=True),
        *zip(ema.buffers(), module.buffers(), strict=True),
    ]
    floats = [(mine, theirs) for mine, theirs in pairs if mine.is_floating_point()]
    get_ema_multi_avg_fn(decay)([mine for mine, _ in floats], [theirs for _, theirs in floats], None)
    for mine, theirs in pairs:
        if not mine.is_floating_point():
            mine.copy_(theirs)
