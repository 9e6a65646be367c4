"""What a trivial two-worker Ray Train run costs beyond its training, and where the time goes.

    python tests/bench/fit_overhead.py [--rounds 3]

The function reports once with a small checkpoint, through the same door as the stage `train`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import ray

from ganlib.config import load_params
from pipelines import launch


def trivial(config):
    """In place of the training: say when it began and ended."""
    began = time.time()
    with tempfile.TemporaryDirectory() as scratch:
        Path(scratch, "x").write_text("x")
        context = ray.train.get_context()
        folder = Path(scratch) if context.get_world_rank() == 0 else None
        launch._report_to_train({"began": began, "imported": "torch" in sys.modules}, folder)
    if ray.train.get_context().get_world_rank() == 0:
        Path(config["verdict"]).with_name("times.json").write_text(json.dumps([began, time.time()]))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    launch._worker = trivial
    params = load_params()
    phases = {"connect": [], "fit until the function": [], "function": [], "fit after the function": [], "all": []}
    for i in range(args.rounds):
        with tempfile.TemporaryDirectory() as scratch:
            start = time.time()
            with launch.cluster(params):
                connected = time.time()
                launch.run_workers(None, params, workers=2, name=f"r{i}", folder=Path(scratch), callbacks=[])
                ended = time.time()
            down = time.time()
            began, over = json.loads(Path(scratch, f"r{i}", "times.json").read_text())
        for name, seconds in zip(
            phases, (connected - start, began - connected, over - began, ended - over, down - start), strict=True
        ):
            phases[name].append(seconds)
    for name, found in phases.items():
        print(f"{name:24} {statistics.median(found):5.1f} s  {[round(x, 1) for x in found]}")


if __name__ == "__main__":
    main()
