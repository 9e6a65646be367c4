"""Quality of one training as shipped, without the search before it, for several seeds and precisions.

    dvc repro reference    # or any run before: uses data/prepared and data/reference
    python tests/bench/training.py [--seeds 0 1 2] [--kimg 180] [--model dcgan] [--amp false true]

Each figure is the mean over three draws of 1,000 samples of the moving average, which `evaluate` compares with test
data: FD and KID(efficientnet-lite0@64), FD in the classifier's features, the share of labels that the classifier sees
as asked, coverage. One thread. CPUs emulate bfloat16 at a third of the speed: `--amp true` shows what the format does
to quality, not what a GPU's kernels do. To measure another checkout, run its packages: `PYTHONPATH=CHECKOUT`.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
from pathlib import Path

import torch

from ganlib import evaluate
from ganlib.config import load_params
from ganlib.export import load_generator
from ganlib.reference import Reference
from ganlib.trainer import train

ROOT = Path(__file__).parents[2]
FIGURES = {
    "FD": ("efficientnet_lite0", "fd"),
    "KID": ("efficientnet_lite0", "kid"),
    "FD(classifier)": ("classifier", "fd"),
    "labels right": ("samples", "label_accuracy"),
    "coverage": ("efficientnet_lite0", "coverage"),
}


def trained(params, args, folder):
    """The generator at the end of a training."""

    def report(row, found):
        if found is not None:
            shutil.copytree(found, folder, dirs_exist_ok=True)

    train(params, report, prepared=args.prepared, reference=args.reference)
    return load_generator(folder / "generator")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="dcgan")
    parser.add_argument("--kimg", type=float, default=180.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--amp", nargs="+", default=["false"], choices=["false", "true"])
    parser.add_argument("--prepared", type=Path, default=ROOT / "data/prepared")
    parser.add_argument("--reference", type=Path, default=ROOT / "data/reference")
    args = parser.parse_args()
    torch.set_num_threads(1)
    reference = Reference.load(args.reference, "cpu")
    shipped = load_params(ROOT / "params.yaml").model_copy(update={"model": args.model})
    print("| amp | seed | " + " | ".join(FIGURES) + " |\n" + "|---" * (2 + len(FIGURES)) + "|", flush=True)
    for amp in args.amp:
        for seed in args.seeds:
            cfg = shipped.train.model_copy(
                update={"kimg": args.kimg, "report_kimg": 30.0, "checkpoint_kimg": 1e6, "amp": amp == "true"}
            )
            with tempfile.TemporaryDirectory() as folder:
                params = shipped.model_copy(update={"train": cfg, "seed": seed})
                generator = trained(params, args, Path(folder))
            draws = []
            for draw in range(3):
                samples = evaluate.sample_for_evaluation(generator, args.prepared, 1000, seed=draw, batch=100)
                found = evaluate.evaluate(
                    samples, reference, shipped.evaluate.model_copy(update={"resamples": 2}), seed=0
                )
                draws.append([found[space][metric]["value"] for space, metric in FIGURES.values()])
            means = (f"{statistics.mean(values):.3f}" for values in zip(*draws, strict=True))
            print(f"| {amp} | {seed} | " + " | ".join(means) + " |", flush=True)


if __name__ == "__main__":
    main()
