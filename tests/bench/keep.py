"""What `train.keep: best` gains over the last checkpoint, on fresh samples and test examples.

    python tests/bench/keep.py --data mnist --model dcgan --kimg 60 --seeds 0 1 2
    python tests/bench/keep.py --data fashion_mnist --model resnet --kimg 16 --seeds 0 1 2   # IDX files in data/raw

One process and thread, no search. A line for each training: the checkpoint with the least Fréchet distance, which is of
1,000 samples and of training examples, and the last; where these differ, the kid of fresh samples and test examples.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

import torch
from ruamel.yaml import YAML

from ganlib import shards
from ganlib.config import load_params, parse_params
from ganlib.evaluate import compare, sample_for_evaluation
from ganlib.export import load_generator
from ganlib.health import quality_name
from ganlib.reference import Reference, build
from ganlib.trainer import train
from pipelines.gate import metric_of
from pipelines.prepare import prepare
from pipelines.training import keep_freed_memory

ROOT = Path(__file__).parent.parent.parent
SAMPLES = 4_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--raw", type=Path, help="folder of the raw data; default: data/raw/DATA")
    parser.add_argument("--model", default="dcgan")
    parser.add_argument("--set", default="", help="keys of the model's file, as KEY: VALUE, …")
    parser.add_argument("--kimg", type=float, default=60)
    parser.add_argument("--every", type=float, default=4, help="kimg between checkpoints")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(1)
    shipped = load_params(ROOT / "params.yaml").model_dump(mode="json")
    shipped |= {"data": args.data, "model": args.model}
    shipped["train"] |= {"kimg": args.kimg, "report_kimg": args.every, "checkpoint_kimg": args.every}
    shipped["reference"]["max_samples"] = SAMPLES
    for key, value in (YAML(typ="safe", pure=True).load(f"{{{args.set}}}") or {}).items():
        section, _, leaf = key.rpartition(".")
        (shipped["models"][args.model][section] if section else shipped["models"][args.model])[leaf] = value
    with tempfile.TemporaryDirectory() as scratch:
        prepared, reference = Path(scratch) / "prepared", Path(scratch) / "reference"
        params = parse_params(shipped)
        prepare(params.dataset, args.raw or ROOT / "data/raw" / args.data, prepared)
        measure_reference(params, prepared, reference)
        for seed in args.seeds:
            one(parse_params(shipped | {"seed": seed}), prepared, reference, Path(scratch) / str(seed))


def measure_reference(params, prepared: Path, reference: Path) -> None:
    of_each = (shards.stored(prepared, split, limit=SAMPLES) for split in shards.SPLITS)
    reference.mkdir()
    build(reference, shards.read_spec(prepared), *of_each, params.reference, params.seed)


def one(params, prepared: Path, reference: Path, folder: Path) -> None:
    found = []

    def report(row, reported):
        if reported is not None:
            shutil.copytree(reported / "generator", folder / f"{row['kimg']}")
            found.append((row[quality_name(row)], row["kimg"]))

    train(params, report, prepared=prepared, reference=reference)
    known = Reference.load(reference)
    best_kimg, last_kimg = min(found)[1], found[-1][1]
    trace = " ".join(f"{score:.3g}" for score, _ in found)
    line = f"{params.data} {params.model} seed {params.seed}: FD {trace}; best at {best_kimg:g} of {last_kimg:g}"
    if best_kimg != last_kimg:
        n = min(SAMPLES, known.size, *(len(space.test) for space in known.spaces.values()))
        metric = metric_of(params.gate, [f"{space}.kid" for space in known.spaces])
        of_best, of_last = (
            sample_for_evaluation(load_generator(folder / f"{kimg}"), prepared, n, seed=params.seed + 1000, batch=100)
            for kimg in (best_kimg, last_kimg)
        )
        fresh = compare(of_best, of_last, known, metric, params.evaluate, params.seed)
        line += (
            f"; fresh {metric} of {n}: best {fresh.challenger:.4g}, last {fresh.champion:.4g}, difference "
            f"{fresh.difference:+.3g} [{fresh.low:+.3g}, {fresh.high:+.3g}]"
        )
    print(line, flush=True)


if __name__ == "__main__":
    main()
