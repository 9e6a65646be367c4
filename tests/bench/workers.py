"""Two one-thread workers against one two-thread process, same global batch: images/s, side by side.

    python tests/bench/workers.py [--kimg 12] [--rounds 3] [--model dcgan] [--width 64] [--batch 256]

Trains the chosen model of `params.yaml` on `data/prepared` (run `dvc repro prepare` first), in turns.
The clock starts after the first report, when all is warm.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from ganlib.config import load_params, override
from ganlib.trainer import train
from pipelines.training import keep_freed_memory


def rank_main(rank, world, threads, kimg, model, width, batch, rendezvous, answers):
    keep_freed_memory()
    torch.set_num_threads(threads)
    if world > 1:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world)
    params = load_params().model_copy(update={"model": model})
    params = override(params, {"network.width": width} if width else {})
    params = override(params, {"batch": batch} if batch else {})
    budget = {"kimg": kimg, "report_kimg": kimg / 3, "checkpoint_kimg": kimg, "quality_samples": 0}
    params = params.model_copy(update={"train": params.train.model_copy(update=budget)})
    speeds = []
    train(params, lambda row, folder: speeds.append(row["examples_per_second"]), prepared="data/prepared")
    if rank == 0:
        answers.put(statistics.mean(speeds[1:3]))
    if world > 1:
        dist.destroy_process_group()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kimg", type=float, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default="dcgan")
    parser.add_argument("--width", type=int, help="of the network, instead of that of params.yaml")
    parser.add_argument("--batch", type=int, help="of all workers together, instead of that of params.yaml")
    args = parser.parse_args()
    context = mp.get_context("spawn")
    found = {(1, 2): [], (2, 1): []}
    for _ in range(args.rounds):
        for (world, threads), speeds in found.items():
            answers = context.Queue()
            with tempfile.TemporaryDirectory() as scratch:
                chosen = (args.kimg, args.model, args.width, args.batch)
                arguments = (world, threads, *chosen, f"{scratch}/rendezvous", answers)
                mp.spawn(rank_main, arguments, nprocs=world)
            speeds.append(answers.get())
    for (world, threads), speeds in found.items():
        print(f"{world} x {threads} thread(s): {statistics.median(speeds):6.0f} images/s  {[round(s) for s in speeds]}")
    ratios = [b / a for a, b in zip(*found.values(), strict=True)]
    print(f"two workers / one process: x{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
