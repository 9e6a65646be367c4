"""Does bfloat16 cost quality? The same training in float32 and under bfloat16 autocast, for several seeds.

    dvc repro train    # or any run before: uses its data/prepared and data/reference
    python tests/bench/precision.py [--model dcgan] [--kimg 60] [--seeds 3]

Quality is the Fréchet distance in the classifier's features of 1,000 samples of the moving average, as training reports
it, at the end and as the mean of the last three reports. CPUs emulate bfloat16, at a third of the speed; results are
those of the format, not of a GPU's kernels.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import torch

from ganlib.config import load_params
from ganlib.trainer import train

ROOT = Path(__file__).parents[2]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="dcgan")
    parser.add_argument("--kimg", type=float, default=60.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--prepared", type=Path, default=ROOT / "data/prepared")
    parser.add_argument("--reference", type=Path, default=ROOT / "data/reference")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    shipped = load_params(ROOT / "params.yaml").model_copy(update={"model": args.model})
    print("| | seed | quality/fd at the end | mean of the last three reports |\n|---|---|---|---|", flush=True)
    for amp in (False, True):
        ends = []
        for seed in range(args.seeds):
            cfg = shipped.train.model_copy(update={"kimg": args.kimg, "checkpoint_kimg": 1e6, "amp": amp})
            found = []
            train(
                shipped.model_copy(update={"train": cfg, "seed": seed}),
                lambda row, _, found=found: found.append(row["quality/fd"]),
                prepared=args.prepared,
                reference=args.reference,
            )
            ends.append(statistics.mean(found[-3:]))
            print(f"| {'bfloat16' if amp else 'float32'} | {seed} | {found[-1]:.2f} | {ends[-1]:.2f} |", flush=True)
        print(f"| {'bfloat16' if amp else 'float32'} | mean | | {statistics.mean(ends):.2f} |", flush=True)


if __name__ == "__main__":
    main()
