"""A simulation, no measurement: what a search that waits at its rungs loses to slow nodes, against ASHA.

    python tests/bench/stragglers.py [--trials 1000] [--slots 16 64 256] [--slow 0.02] [--times 5] [--seeds 3]

The search is `pipelines.halving.search` itself, with the budgets of params.yaml and scores at random; only training is
replaced, by a clock: a kimg takes 1, times lognormal noise (sigma 0.1) drawn for each stretch of training, and
`--times` as long for a share `--slow` of the stretches. A trial starts on the first slot that is free, in the order of
numbers, as Ray Tune does. ASHA (Li et al. 2020, algorithm 2) has the same slots, speeds and scores: a free slot
promotes what is in the best 1/eta of a rung, else starts the next trial. Both end when no slot has work.

Printed is the time over that of slots that are never idle and never slow, doing what halving of all trials in one
bracket would train; the median over seeds. Starting a process is free here, and Ray's scheduling too.
"""

from __future__ import annotations

import argparse
import heapq
import statistics

import numpy as np

from ganlib.config import load_params
from pipelines.halving import Outcome, rungs, search


class Scores:
    """In place of proposals: nothing is learnt from what was tried."""

    def ask(self):
        return {}

    def tell(self, trial, *, stopped):
        pass


class World:
    """Speeds and scores, by (trial, rung), whoever asks."""

    def __init__(self, seed: int, trials: int, budgets: list[float], slow: float, times: float):
        rng = np.random.default_rng(seed)
        shape = trials, len(budgets)
        self.seconds = (
            np.diff([0.0, *budgets]) * rng.lognormal(0, 0.1, shape) * np.where(rng.random(shape) < slow, times, 1)
        )
        self.scores = rng.normal(size=(trials, 1)) + 0.5 * rng.normal(size=shape)


def synchronous(world: World, budgets: list[float], slots: int, bracket: int, eta: int) -> float:
    """Seconds that our search takes."""
    now = 0.0

    def play(trials, kimg):
        nonlocal now
        rung = budgets.index(kimg)
        free = [now] * slots
        ends = []
        for trial in trials:
            ends.append(heapq.heappop(free) + world.seconds[trial.number, rung])
            heapq.heappush(free, ends[-1])
        now = max(ends)
        return [Outcome([], float(world.scores[trial.number, rung])) for trial in trials]

    search(Scores(), play, num_samples=len(world.scores), bracket_size=bracket, rungs=budgets, reduction_factor=eta)
    return now


def asynchronous(world: World, budgets: list[float], slots: int, eta: int) -> float:
    """Seconds that ASHA takes."""
    done: list[list[tuple[float, int]]] = [[] for _ in budgets]
    promoted: list[set[int]] = [set() for _ in budgets]
    running: list[tuple[float, int, int]] = []
    started, now = 0, 0.0

    def job():
        nonlocal started
        for rung in reversed(range(len(budgets) - 1)):
            best = sorted(done[rung])[: len(done[rung]) // eta]
            if waiting := [number for _, number in best if number not in promoted[rung]]:
                promoted[rung].add(waiting[0])
                return waiting[0], rung + 1
        if started < len(world.scores):
            started += 1
            return started - 1, 0
        return None

    while True:
        while len(running) < slots and (next_one := job()) is not None:
            number, rung = next_one
            heapq.heappush(running, (now + world.seconds[number, rung], number, rung))
        if not running:
            return now
        now, number, rung = heapq.heappop(running)
        done[rung].append((world.scores[number, rung], number))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--slots", type=int, nargs="+", default=[16, 64, 256])
    parser.add_argument("--slow", type=float, default=0.02, help="share of stretches on a slow node")
    parser.add_argument("--times", type=float, default=5.0, help="how many times as long they take")
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    cfg = load_params().tune
    eta, budgets = cfg.reduction_factor, rungs(cfg.kimg, cfg.grace_kimg, cfg.report_kimg, cfg.reduction_factor)
    # what one bracket of all trials would train, on slots that are never idle
    work = sum(
        step * max(1, -(-args.trials // eta**rung)) for rung, step in enumerate(np.diff([0.0, *budgets]).tolist())
    )
    worlds = [World(seed, args.trials, budgets, args.slow, args.times) for seed in range(args.seeds)]
    print(
        f"{args.trials} trials, rungs at {', '.join(f'{kimg:g}' for kimg in budgets)} kimg; {args.slow:.0%} of "
        f"stretches take {args.times:g} times as long; time over that of slots never idle nor slow, "
        f"median of {args.seeds} seeds\n"
    )
    sizes = sorted({cfg.bracket_size, 4 * cfg.bracket_size, 16 * cfg.bracket_size, args.trials})
    print("| slots | " + " | ".join(f"brackets of {size}" for size in sizes) + " | ASHA |")
    print("|---" * (len(sizes) + 2) + "|")
    for slots in args.slots:
        cells = [
            statistics.median(synchronous(world, budgets, slots, bracket, eta) for world in worlds) for bracket in sizes
        ]
        cells.append(statistics.median(asynchronous(world, budgets, slots, eta) for world in worlds))
        print(f"| {slots} | " + " | ".join(f"{cell * slots / work:.2f}" for cell in cells) + " |", flush=True)


if __name__ == "__main__":
    main()
