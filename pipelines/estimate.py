"""What a training will take on this machine, from real steps, reports and a checkpoint of it:
`ganlib params check --estimate`."""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from ganlib import shards
from ganlib.build import build_game
from ganlib.config import Params
from ganlib.device import default_device, is_accelerator
from ganlib.game import Game
from ganlib.scratch import scratch_folder
from ganlib.trainer import Phase, phases, plan, train
from pipelines._stage import StageError
from pipelines.budget import with_budget
from pipelines.checkpoints import Checkpoints
from pipelines.cluster import local_cpus
from pipelines.halving import rungs
from pipelines.launch import keep
from pipelines.scale import resolve_scale
from pipelines.storage import Storage
from pipelines.training import keep_freed_memory, possible_workers

__all__ = ["Estimate", "estimate"]

STEPS = 3
"""of each phase, at least, after a first one that waits for kernels to be chosen and memory to be taken"""
LEAST_S, MOST_S = 2.0, 60.0
"""for the steps of a phase: below, chance is too large a part of it; above, no whole cycle of lazy terms is played"""


@dataclass(frozen=True)
class Estimate:
    """Of this machine's share: as many workers as it holds. Ray's start and stop are not counted."""

    parameters: dict[str, int]
    """of each module that learns"""
    peak_memory_mb: float
    """of one process, with data and libraries"""
    workers: int
    examples_per_second: float
    """in steps of the game, all workers together"""
    step_seconds: float
    """of all steps, of fits too"""
    reports: int
    report_seconds: float
    """of all reports: what is measured there"""
    checkpoints: int
    checkpoint_seconds: float
    """of all checkpoints"""
    search_fits: int
    """how often a trial starts, or goes on from a rung"""
    search_seconds: float
    """of all trials by successive halving, as the model stands"""
    starts_ray: bool
    """whether the stage `train` starts Ray; that time is not included"""

    @property
    def train_seconds(self) -> float:
        return self.step_seconds + self.report_seconds + self.checkpoint_seconds

    def lines(self) -> list[str]:
        counts = ", ".join(f"{name} {count:,}" for name, count in self.parameters.items())
        parts = (
            f"steps {_clock(self.step_seconds)}, {self.reports} reports {_clock(self.report_seconds)}, "
            f"{self.checkpoints} checkpoints {_clock(self.checkpoint_seconds)}"
        )
        search = (
            f"{_clock(self.search_seconds)}, and {self.search_fits} starts of trials" if self.search_fits else "none"
        )
        return [
            f"parameters: {counts}",
            f"peak memory of a worker: {self.peak_memory_mb:,.0f} MB",
            f"steps of the game: {self.examples_per_second:,.0f} examples/s, workers: {self.workers}",
            f"training: {_clock(self.train_seconds)} ({parts}){', and the start of Ray' if self.starts_ray else ''}",
            f"search: {search}",
        ]


def estimate(params: Params, prepared: Path, reference: Path | None = None) -> Estimate:
    """Play steps of each phase, report and save a checkpoint on prepared data, without Ray, and keep nothing.

    Quality is measured where there is a `reference`. Networks that grow are taken at their first size, and a warm-up of
    the discriminator is left out. Raises StageError where no data are prepared, ConfigError where the model does not
    suit them.
    """
    if not (prepared / "card.json").is_file():
        raise StageError(f"{prepared}: no prepared data to take steps on; run `dvc repro prepare`")
    params = with_budget(params, prepared, quiet=True)
    game = build_game(params, shards.read_spec(prepared))
    available = {"CPU": float(local_cpus()), "GPU": float(torch.cuda.device_count())}
    scale = resolve_scale(params.scale, available, possible_workers(params, game))
    device, workers = default_device(scale.gpus_per_worker), scale.num_workers
    keep_freed_memory()
    threads = torch.get_num_threads()
    try:
        run = _Runs(params, game, prepared, reference, device, workers if is_accelerator(device) else 1)
        torch.set_num_threads(scale.cpus_per_worker)  # one worker reports while the others wait
        report_s, checkpoint_s, step_s = run.reports()
        if not is_accelerator(device):  # workers with a share of the batch each are as fast as one with all cores
            torch.set_num_threads(min(workers * scale.cpus_per_worker, local_cpus()))
        seconds = run.steps(step_s)
    finally:
        torch.set_num_threads(threads)
    whole = phases(params, game, plan(params, 1))
    (of_game,) = (phase.plan for phase in whole if phase.fit is None)
    game_step_s = seconds[[phase.fit is None for phase in whole].index(True)]
    reports, checkpoints = _reports(of_game.steps, of_game.reports), sum(map(_checkpoints, whole))
    at_once = min(params.scale.max_concurrent_trials or math.inf, available["CPU"] // scale.cpus_per_worker)
    fits, search_kimg = _halving(params) if params.game.search else (0, 0.0)
    search_reports = search_kimg / params.tune.report_kimg
    before = [(s, phase.plan.steps) for s, phase in zip(seconds, whole, strict=True) if phase.fit and not phase.after]
    search_s = search_kimg * 1000 / of_game.examples_per_step * game_step_s
    search_s += params.tune.num_samples * sum(s * steps for s, steps in before)
    return Estimate(
        {name: sum(p.numel() for p in module.parameters()) for name, module in game.modules.items()},
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        workers,
        of_game.examples_per_step / game_step_s,
        sum(s * phase.plan.steps for s, phase in zip(seconds, whole, strict=True)),
        reports,
        reports * report_s,
        checkpoints,
        checkpoints * checkpoint_s,
        fits,
        search_s + search_reports * (report_s + checkpoint_s) / max(1.0, at_once),
        params.scale.num_workers != 0,
    )


class _Runs:
    """Short trainings of the game at hand, which keep nothing."""

    def __init__(
        self,
        params: Params,
        game: Game,
        prepared: Path,
        reference: Path | None,
        device: torch.device,
        shares: int,
    ):
        self.params, self.prepared, self.device = params, prepared, device
        self.reference = reference if reference and (reference / "reference.json").is_file() else None
        self.batch = params.game.batch // shares
        self.turns = params.game.discriminator_steps
        self.cycle = math.lcm(1, *(term.every for term in game.terms))

    def reports(self) -> tuple[float, float, float]:
        """Seconds of a report, of a checkpoint, and of a step, roughly."""
        ends, steps_s = list[float](), list[float]()
        with scratch_folder() as scratch:
            checkpoints = Checkpoints(Storage(scratch) / "checkpoints")

            def report(row: dict[str, float], folder: Path | None) -> None:
                if folder is not None:
                    keep(checkpoints, row, folder)
                ends.append(time.perf_counter())
                steps_s.append(self.batch * self.turns / row["examples_per_second"])

            self.play(report, steps=STEPS, fit_steps=0, steps_per_report=1, quality=True)
        *_, before, last = (end - start - step for start, end, step in zip(ends, ends[1:], steps_s[1:], strict=False))
        return before, max(0.0, last - before), mean(steps_s[1:])

    def steps(self, step_s: float) -> list[float]:
        """Seconds of a step of each phase, the mean over a whole cycle of the terms that are applied now and then."""
        cycle_s = self.cycle * step_s
        if cycle_s < LEAST_S:
            per_report, count = self.cycle, self.cycle * (1 + math.ceil(LEAST_S / cycle_s))
        else:
            per_report, count = 1, 1 + (max(STEPS, self.cycle) if cycle_s < MOST_S else STEPS)
        rows = list[dict[str, float]]()
        found = self.play(
            lambda row, _: rows.append(row), steps=count, fit_steps=count, steps_per_report=per_report, quality=False
        )
        seconds = []
        for phase in found:
            size = self.batch * (self.turns if phase.fit is None else 1)
            of_phase = [size / row["examples_per_second"] for row in rows[: _reports(count, phase.plan.reports)]]
            del rows[: len(of_phase)]
            first, *others = of_phase
            if phase.fit is None and per_report == 1 and len(others) < self.cycle:  # the first has every term
                others = [first, *[mean(others)] * (self.cycle - 1)]
            seconds.append(mean(others or [first]))
        return seconds

    def play(
        self,
        report: Callable[[dict[str, float], Path | None], None],
        *,
        steps: int,
        fit_steps: int,
        steps_per_report: int,
        quality: bool,
    ) -> list[Phase]:
        """Train for so many steps of the game and of each fit that has a budget; returns the phases."""
        params, kimg = self.params, self.batch / 1000
        budgets = {name: {"kimg": fit_steps * kimg if fit.kimg else 0.0} for name, fit in params.game.fits.items()}
        fits = {name: fit.model_copy(update=budgets[name]) for name, fit in params.game.fits.items()}
        game = params.game.model_copy(update={"fits": fits, "batch": self.batch, "warmup": None})
        short: dict[str, Any] = {
            "kimg": steps * kimg * self.turns,
            "report_kimg": steps_per_report * kimg * self.turns,
            "checkpoint_kimg": 1e9,
            "health": params.train.health.model_copy(update={"policy": "warn"}),
        }
        if not quality:
            short["quality_samples"] = 0
        changes = {
            "models": {**params.models, params.model: game},
            "preset": "none",
            # speed does not depend on the initial weights
            "train": params.train.model_copy(update={**short, "init": None, "freeze": ()}),
        }
        params = params.model_copy(update=changes)
        reference = self.reference if quality else None
        train(params, report, prepared=self.prepared, reference=reference, device=self.device)
        return phases(params, build_game(params, shards.read_spec(self.prepared)), plan(params, 1))


def _reports(steps: int, due: Callable[[int], int]) -> int:
    """How many reports a phase makes: the last step's is made in any case."""
    return due(steps - 1) + 1


def _checkpoints(phase: Phase) -> int:
    return (phase.plan.reports(phase.plan.steps - 1) // phase.plan.reports_per_checkpoint) + 1


def _halving(params: Params) -> tuple[int, float]:
    """How often trials start or go on, and thousands of examples that all of them see together."""
    cfg = params.tune
    fits, kimg, left = 0, 0.0, cfg.num_samples
    while left > 0:
        trials = min(cfg.bracket_size, left)
        left -= trials
        before = 0.0
        for rung in rungs(cfg.kimg, cfg.grace_kimg, cfg.report_kimg, cfg.reduction_factor):
            fits, kimg, before = fits + trials, kimg + trials * (rung - before), rung
            trials = math.ceil(trials / cfg.reduction_factor)
    return fits, kimg


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
