"""What a trivial two-worker Ray Train run costs beyond its training, and where the time goes.

    python tests/bench/fit_overhead.py [--rounds 3]

The function reports once with a small checkpoint, through the same door as the stage `train`. Printed are the phases by
the clock, and the CPU seconds of each process in one more round, which other work on the machine hardly changes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import psutil

from ganlib.config import load_params
from pipelines import launch
from pipelines.background import background_thread
from pipelines.checkpoints import Checkpoints
from pipelines.scale import resolve_scale
from pipelines.storage import Storage


def trivial(job, run, start):
    """In place of the training: say when it began and ended."""
    import ray.train  # not above: Ray reads at once how it authenticates, which `pipelines.cluster` settles

    began = time.time()
    with tempfile.TemporaryDirectory() as scratch:
        Path(scratch, "x").write_text("x")
        context = ray.train.get_context()
        if context.get_world_rank() == 0:
            Checkpoints(run / "checkpoints").save(Path(scratch), kimg=1.0, score=None)
        ray.train.report({"began": began})
    if context.get_world_rank() == 0:
        run.write("times.json", json.dumps([began, time.time()]).encode())


def fit(params, scale) -> list[float]:
    """When it started, was connected, the function began and ended, the fit ended, and Ray was gone."""
    with tempfile.TemporaryDirectory() as scratch:
        start, run = time.time(), Storage(scratch)
        with launch.cluster(params):
            connected = time.time()
            launch._fit(None, scale, 2, run, None, [])
            ended = time.time()
        return [start, connected, *json.loads(run.read("times.json")), ended, time.time()]


def name_of(process: psutil.Process) -> str:
    words = process.cmdline()
    if words[0].startswith("ray::"):  # the title that Ray gives it: its class and what it does
        return words[0].removeprefix("ray::").split(".")[0].strip()
    return next((Path(word).name for word in words if word.endswith(".py")), process.name())


def watch(over, names: dict[psutil.Process, str], seconds: dict[psutil.Process, float]) -> None:
    """Keep the last name that says something, and the CPU seconds, of each process below this one."""
    while not over.wait(0.3):
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error, IndexError):  # it has ended
                times = process.cpu_times()
                seconds[process] = times.user + times.system
                if (name := name_of(process)) != "IDLE":
                    names[process] = name


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    launch._worker = trivial
    params = load_params()
    scale = resolve_scale(params.scale.model_copy(update={"num_workers": 2}), {"CPU": 2.0}, ())
    rounds = [fit(params, scale) for _ in range(args.rounds)]
    phases = ("connect", "fit until the function", "function", "fit after the function")
    for i, phase in enumerate(phases):
        found = [times[i + 1] - times[i] for times in rounds]
        print(f"{phase:24} {statistics.median(found):5.1f} s  {[round(x, 1) for x in found]}")
    found = [times[-1] - times[0] for times in rounds]
    print(f"{'all':24} {statistics.median(found):5.1f} s  {[round(x, 1) for x in found]}")

    names: dict[psutil.Process, str] = {}
    seconds: dict[psutil.Process, float] = {}
    before = time.process_time()
    with background_thread(lambda over: watch(over, names, seconds), "watch"):
        fit(params, scale)
    cpu = Counter[str]()
    for process, spent in seconds.items():
        cpu[names.get(process, "others")] += spent
    cpu["this process, imports aside"] = time.process_time() - before
    print(f"\nCPU seconds: {sum(cpu.values()):.1f}")
    for name, spent in cpu.most_common():
        print(f"{name:32} {spent:5.1f}")


if __name__ == "__main__":
    main()
