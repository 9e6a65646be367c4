"""What checkpoints cost: their share of a training's time at the cadence of `params.yaml`.

    python tests/bench/checkpoints.py [--kimg 60] [--storage FOLDER]

The shipped model and data in one process, as a trial of a search trains, each checkpoint with its checksums, its
exported generator and its picture, stored and synced to disk. Time is wall-clock: what waits for the disk counts.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch

from ganlib import trainer
from ganlib.config import load_params
from pipelines._stage import PREPARED, REFERENCE
from pipelines.checkpoints import Checkpoints
from pipelines.launch import keep
from pipelines.storage import Storage
from pipelines.training import keep_freed_memory


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kimg", type=float, default=60.0)
    parser.add_argument("--storage", type=Path)
    args = parser.parse_args()
    params = load_params()
    params = params.model_copy(update={"train": params.train.model_copy(update={"kimg": args.kimg})})
    keep_freed_memory()
    torch.set_num_threads(params.scale.cpus_per_worker)
    spent, sizes = {"writing": 0.0, "storing": 0.0}, []

    save = trainer._Run.save

    def timed_save(run, folder, kimg):
        start = time.perf_counter()
        save(run, folder, kimg)
        spent["writing"] += time.perf_counter() - start

    trainer._Run.save = timed_save
    with tempfile.TemporaryDirectory() as scratch:
        checkpoints = Checkpoints(Storage(str((args.storage or Path(scratch)).resolve())) / "checkpoints")

        def report(row, folder):
            if folder is not None:
                start = time.perf_counter()
                keep(checkpoints, row, folder)
                spent["storing"] += time.perf_counter() - start
                sizes.append(sum(size for size, _ in (checkpoints.folder / checkpoints.sound[-1].name).contents()))

        start = time.perf_counter()
        trainer.train(params, report, prepared=PREPARED, reference=REFERENCE)
        total = time.perf_counter() - start
    print(f"{len(sizes)} checkpoints of {sizes[-1] / 1e6:.1f} MB in {total:.1f} s of training")
    for what, seconds in spent.items():
        print(f"{what:8} {seconds / len(sizes) * 1000:7.0f} ms each  {seconds / total:6.2%} of the training")
    print(f"{'both':8} {sum(spent.values()) / len(sizes) * 1000:7.0f} ms each  {sum(spent.values()) / total:6.2%}")


if __name__ == "__main__":
    main()
