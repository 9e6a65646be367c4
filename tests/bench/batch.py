"""A million samples in a folder, killed twice, against an undisturbed job and against the bare generator.

    python tests/bench/batch.py outputs/train/generator -n 1000000

Prints images/s of the generator alone (its module, on the batches that the job makes, nothing kept), of an undisturbed
job and of one that is killed when a third and two thirds of its shards are there, start of the processes included; and
whether both folders hold the same bytes, and every index once. CPU seconds are of the process and its threads: on a
machine that others use they say more than wall time.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch

from ganlib.device import one_thread
from ganlib.export import load_generator
from ganlib.noise import Noise


def bare(source: Path, n: int) -> tuple[float, float]:
    """Wall and CPU seconds for `n` samples of the module alone."""
    generator = load_generator(source)
    size = generator.batch_size
    label = torch.arange(size) % generator.game.classes if generator.game.classes else None
    with torch.inference_mode(), one_thread():
        for warm in (True, False):
            wall, cpu = time.perf_counter(), time.process_time()
            for first in range(0, size if warm else n, size):
                noise = Noise(0, "sample", size=first + size, rows=slice(first, first + size))
                generator.game.generator(generator.game.ask({}, noise, None), label)
    return time.perf_counter() - wall, time.process_time() - cpu


def job(source: Path, n: int, folder: Path, kill_at: float = 1.0) -> tuple[float, float]:
    """Wall and CPU seconds of a job, which is killed when that share of its shards is there."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    words = [sys.executable, "-m", "pipelines.cli", "sample", str(source), "-n", str(n), "-o", str(folder)]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    while process.poll() is None:
        found = sorted(folder.glob("samples-*"))
        if kill_at < 1 and found and len(found) >= kill_at * int(found[0].stem.rpartition("-")[2]):
            process.send_signal(signal.SIGKILL)
            process.wait()
            print(f"  killed with {len(found)} shards")
            break
        time.sleep(0.2)
    assert kill_at < 1 or process.returncode == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.perf_counter() - began, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("generator", type=Path)
    parser.add_argument("-n", type=int, default=1_000_000)
    parser.add_argument("--bare", type=int, default=100_000, help="samples of the bare generator, before and after")
    args = parser.parse_args()
    scratch = Path(tempfile.mkdtemp())
    try:
        report("generator alone", args.bare, *bare(args.generator, args.bare))
        report("undisturbed job", args.n, *job(args.generator, args.n, scratch / "whole"))
        report("generator alone", args.bare, *bare(args.generator, args.bare))
        for share in (1 / 3, 2 / 3, 1.0):
            wall, _ = job(args.generator, args.n, scratch / "killed", share)
            print(f"job until {share:.0%} of the shards: {wall:.0f} s", flush=True)
        one, other = ({f.name: f.read_bytes() for f in (scratch / of).iterdir()} for of in ("whole", "killed"))
        index = pq.read_table(scratch / "killed", columns=["index"])["index"].to_numpy()
        once = np.array_equal(index, np.arange(args.n))
        size = sum(map(len, one.values())) / 1e6
        print(f"same bytes: {one == other}; every index once: {once}; {len(one) - 1} shards, {size:.0f} MB")
    finally:
        shutil.rmtree(scratch)


def report(what: str, n: int, wall: float, cpu: float) -> None:
    rates = f"{n / wall:7.0f} images/s by the clock, {n / cpu:7.0f} by CPU seconds"
    print(f"{what:18} {rates} ({wall:.0f} s, CPU {cpu:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
