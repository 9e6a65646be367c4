"""The stage `train`: the best parameters found, trained data-parallel. `python -m pipelines.train`."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from rich.console import Console

from ganlib.config import Params, TrainConfig
from ganlib.health import Monitor, quality_name
from pipelines._stage import PREPARED, REFERENCE, TRAINED, atomic_folder, main
from pipelines.budget import tuned
from pipelines.launch import train_distributed
from pipelines.outbox import Draft, open_outbox, try_run
from pipelines.training import fingerprint

__all__ = ["stage"]

TIMES = ("seconds", "examples_per_second")
SHOWN = {
    "loss/discriminator": "D",
    "loss/generator": "G",
    "quality/label_accuracy": "labels right",
}


def stage(params: Params) -> None:
    preset = params.preset  # which the changes are laid over
    params = tuned(params)
    key = fingerprint(params, PREPARED, "train")
    outbox = open_outbox(params.tracking)
    with atomic_folder(TRAINED) as out, try_run(outbox, key, key, tags={"stage": "train"}) as run:
        run.log_params(params.model_dump(mode="json", include={"seed", "data", "model", "train"}))
        run.log_params({"preset": preset, "game": params.game.model_dump(mode="json")})
        rows = train_distributed(params, PREPARED, REFERENCE, _Progress(run, params.train, params.budget_kimg), out)
        _write_curves(rows, out)
        run.log_stats(rows)  # what was not logged when it came
        run.log_folder(out / "samples", "samples")


class _Progress:
    """What the driver does with each report: it prints a line, and logs points to the tracking store."""

    def __init__(self, run: Draft, cfg: TrainConfig, budget_kimg: float | None = None):
        self.run, self.kimg, self.health = run, cfg.game_kimg if budget_kimg is None else budget_kimg, cfg.health
        self.monitor, self.said = Monitor(cfg.health), dict[str, float]()
        self.rows: list[dict[str, float]] = []
        self.logging = True
        self.console = Console(soft_wrap=True)

    def __call__(self, row: dict[str, float]) -> None:
        if self.rows and row["kimg"] <= self.rows[-1]["kimg"]:
            self._back(row)
        self.rows.append(row)
        # the last batch may end past the budget
        left = round(max(0.0, self.kimg - row["kimg"]) * 1000 / row["examples_per_second"])
        names = {name: name.removeprefix("quality/") for name in [quality_name(row)] if name} | SHOWN
        figures = "  ".join(f"{short} {row[name]:.3g}" for name, short in names.items() if name in row)
        self.console.print(
            f"{row['kimg']:7.1f} of {self.kimg:g} kimg  {row['examples_per_second']:6.0f} examples/s  {figures}  "
            f"left {left // 60}:{left % 60:02d}",
            highlight=False,
            markup=False,
        )
        for alarm in self.monitor.update(row):
            if self.said.get(alarm.kind) != alarm.since_kimg:  # once for each time it goes wrong
                self.said[alarm.kind] = alarm.since_kimg
                self.console.print(alarm.message, style="yellow", markup=False)
        if not self.logging:  # the end of the stage logs what is missing
            return
        try:
            self.run.log_stats([row])
        except Exception as error:  # of any kind: this thread must survive to print the next report
            self.logging = False
            self.console.print(
                f"tracking: {' '.join(str(error).split())[:200]}; training goes on, and logs at its end",
                style="yellow",
                markup=False,  # an error may hold what looks like markup, as [/html]
            )

    def _back(self, row: dict[str, float]) -> None:
        """Training went back, to a healthy checkpoint or to a lost worker's last one: forget what came after it."""
        times = row.get("health/rollbacks", 0.0)
        rolled = times > max(past.get("health/rollbacks", 0.0) for past in self.rows)
        self.rows = [past for past in self.rows if past["kimg"] < row["kimg"]]
        self.monitor, self.said = Monitor(self.health), {}
        for past in self.rows:
            self.monitor.update(past)
        if rolled:
            since = self.rows[-1]["kimg"] if self.rows else 0.0
            pace = self.health.lr_factor**times
            self.console.print(
                f"rolled back to {since:.1f} kimg, rollback {times:g} of {self.health.max_rollbacks}; "
                f"learning rates at {pace:.3g} of what they were",
                style="yellow",
                highlight=False,
                markup=False,
            )


def _write_curves(rows: list[dict[str, float]], out: Path) -> None:
    """All statistics as JSON lines, and as the CSV that `dvc plots` draws.

    Without those that time the machine, which the tracking store has: equal trainings have equal files.
    """
    rows = [{name: value for name, value in row.items() if name not in TIMES} for row in rows]
    with (out / "stats.jsonl").open("w") as lines:
        lines.writelines(json.dumps(row) + "\n" for row in rows)
    names = list(dict.fromkeys(name for row in rows for name in row))
    # the curve that `dvc plots` draws of quality is its last column, for any feature space
    quality = next((name for row in rows if (name := quality_name(row))), None)
    for path, columns in (("curves.csv", names), ("quality.csv", ["kimg", *([quality] if quality else [])])):
        with (out / path).open("w", newline="") as file:
            table = csv.DictWriter(file, columns, extrasaction="ignore")
            table.writeheader()
            table.writerows(rows)


if __name__ == "__main__":
    main(stage)
