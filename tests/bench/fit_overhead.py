"""What a trivial two-worker Ray Train run costs beyond its training, and where the time goes.

    python tests/bench/fit_overhead.py [--rounds 3]

The function reports once with a small checkpoint, through the same door as the stage `train`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

from ganlib.config import load_params
from pipelines import launch
from pipelines.checkpoints import Checkpoints
from pipelines.scale import resolve_scale
from pipelines.storage import Storage


def trivial(config):
    """In place of the training: say when it began and ended."""
    import ray.train  # not above: Ray reads at once how it authenticates, which `pipelines.cluster` settles

    began = time.time()
    with tempfile.TemporaryDirectory() as scratch:
        Path(scratch, "x").write_text("x")
        context = ray.train.get_context()
        if context.get_world_rank() == 0:
            Checkpoints(config["run"] / "checkpoints").save(Path(scratch), kimg=1.0, score=None)
        ray.train.report({"began": began})
    if context.get_world_rank() == 0:
        config["run"].write("times.json", json.dumps([began, time.time()]).encode())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    launch._worker = trivial
    params = load_params()
    scale = resolve_scale(params.scale.model_copy(update={"num_workers": 2}), {"CPU": 2.0}, ())
    phases = {"connect": [], "fit until the function": [], "function": [], "fit after the function": [], "all": []}
    for _ in range(args.rounds):
        with tempfile.TemporaryDirectory() as scratch:
            start = time.time()
            run = Storage(scratch)
            with launch.cluster(params):
                connected = time.time()
                launch._fit(None, scale, 2, run, None, [])
                ended = time.time()
            down = time.time()
            began, over = json.loads(run.read("times.json"))
        for name, seconds in zip(
            phases, (connected - start, began - connected, over - began, ended - over, down - start), strict=True
        ):
            phases[name].append(seconds)
    for name, found in phases.items():
        print(f"{name:24} {statistics.median(found):5.1f} s  {[round(x, 1) for x in found]}")


if __name__ == "__main__":
    main()
