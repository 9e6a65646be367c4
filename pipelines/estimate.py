"""What a training will take on this machine, from a few real steps of it: `ganlib params check --estimate`."""

from __future__ import annotations

import resource
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from ganlib import shards
from ganlib.config import Params
from ganlib.trainer import build_game, train
from pipelines._stage import StageError
from pipelines.budget import with_budget

__all__ = ["Estimate", "estimate"]

STEPS = 3
FIRST = 1  # steps before those, which wait for kernels to be chosen and memory to be taken


@dataclass(frozen=True)
class Estimate:
    """Of one process with its share of the cores; several share the batch."""

    parameters: dict[str, int]
    """of each module that learns"""
    peak_memory_mb: float
    """of this process, with data and libraries"""
    examples_per_second: float
    """in steps of the game; what is measured at reports, and checkpoints, come on top"""
    train_seconds: float
    """for the budget of the game"""
    search_seconds: float
    """for all trials one after the other, none of which is stopped: at most"""

    def lines(self) -> list[str]:
        counts = ", ".join(f"{name} {count:,}" for name, count in self.parameters.items())
        return [
            f"parameters: {counts}",
            f"peak memory of a worker: {self.peak_memory_mb:,.0f} MB",
            f"steps of the game: {self.examples_per_second:,.0f} examples/s in one process, without reports",
            f"training: {_clock(self.train_seconds)}",
            f"search: {_clock(self.search_seconds)} at most, one trial at a time",
        ]


def estimate(params: Params, prepared: Path) -> Estimate:
    """Play `STEPS` steps of the game on prepared data, with no search, fits or measurements, and keep nothing.

    Raises StageError where no data are prepared, ConfigError where the model does not suit them.
    """
    if not (prepared / "card.json").is_file():
        raise StageError(f"{prepared}: no prepared data to take steps on; run `dvc repro prepare`")
    params = with_budget(params, prepared, quiet=True)
    cfg, game_kimg = params.game, params.train.game_kimg
    counted = build_game(params, shards.read_spec(prepared)).modules
    kimg = cfg.batch * cfg.discriminator_steps / 1000
    short = {"kimg": (FIRST + STEPS) * kimg, "report_kimg": kimg, "checkpoint_kimg": 1e9, "quality_samples": 0}
    fits = {name: fit.model_copy(update={"kimg": 0.0}) for name, fit in cfg.fits.items()}
    game = cfg.model_copy(update={"fits": fits})
    steps = params.model_copy(
        update={
            "models": {**params.models, params.model: game},
            "preset": "none",
            # whose the first weights are costs nothing
            "train": params.train.model_copy(update={**short, "init": None, "freeze": ()}),
        }
    )
    speeds = list[float]()
    train(steps, lambda row, folder: speeds.append(row["examples_per_second"]), prepared=prepared)
    speed = median(speeds[FIRST:])
    return Estimate(
        {name: sum(p.numel() for p in module.parameters()) for name, module in counted.items()},
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        speed,
        game_kimg * 1000 / speed,
        params.tune.num_samples * params.tune.kimg * 1000 / speed,
    )


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
