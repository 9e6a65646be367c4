"""Sneakers into boots and back, without pairs: what a family of translation makes, next to copies and matched levels.

    apt-get install dataset-fashion-mnist
    python tests/bench/unpaired.py [--model cyclegan] [--seeds 0 1 2] [--kimg 12] [--set network.width=16 ...]

Fashion-MNIST at 28 px in two folders, one for each class, by `params/datasets/domains.yaml` and
`params/models/MODEL.yaml`; each training on one thread in this process. Test images are translated, both ways where the
model does that, and compared with the test images of the other domain. `matched` are the given images with the grey
levels of the other domain's training images, by their cumulative distributions; `floor` are training images. Intervals
are those of the stage `evaluate`. CPU minutes are those of the process, from the start of a training.
"""

from __future__ import annotations

import argparse
import gzip
import json
import shutil
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from ruamel.yaml import YAML

from ganlib import reference, shards
from ganlib.config import load_params, override, parse_params
from ganlib.data import unpaired
from ganlib.evaluate import evaluate, sample_for_evaluation
from ganlib.export import load_generator
from ganlib.trainer import train
from pipelines import prepare as stage
from pipelines.launch import keep_freed_memory

ROOT = Path(__file__).parents[2]
CLASSES = {"sneakers": 7, "boots": 9}
METRICS = ("fd", "kid", "coverage")


def write_folders(args, raw):
    """PNG files in `train/NAME` and `test/NAME`."""
    for split, prefix, count in (("train", "train", args.train), ("test", "t10k", args.test)):
        levels, labels = (
            np.frombuffer(
                gzip.decompress((Path(args.raw) / f"{prefix}-{what}.gz").read_bytes()), np.uint8, offset=start
            )
            for what, start in (("images-idx3-ubyte", 16), ("labels-idx1-ubyte", 8))
        )
        for name, label in CLASSES.items():
            folder = raw / split / name
            folder.mkdir(parents=True)
            for i in (labels == label).nonzero()[0][:count]:
                Image.fromarray(levels.reshape(-1, 28, 28)[i]).save(folder / f"{i}.png")


def prepared(args):
    """Parameters, the prepared folder and the reference."""
    params = parse_params(
        load_params(ROOT / "params.yaml").model_dump(mode="json")
        | {"data": "domains", "model": args.model, "preset": args.preset}
    )
    changes = {key: YAML(typ="safe").load(value) for key, _, value in (one.partition("=") for one in args.set)}
    params = override(params, changes)
    out = args.out / args.direction
    if not (out / "reference").is_dir():
        shutil.rmtree(out, ignore_errors=True)
        write_folders(args, out / "raw")
        source = params.dataset.source.model_copy(update={"domains": tuple(CLASSES), "direction": args.direction})
        sample = unpaired.Config(resolution=(28, 28), channels=1)
        stage.PARALLEL_FROM_S = float("inf")  # one process, also on a busy machine
        stage.prepare(
            params.dataset.model_copy(update={"source": source, "sample": sample}), out / "raw", out / "prepared"
        )
        splits = [shards.stored(out / "prepared", split) for split in shards.SPLITS]
        spec = shards.read_spec(out / "prepared")
        reference.build(out / "reference", spec, *splits, params.reference, params.seed)
    return params, out / "prepared", reference.Reference.load(out / "reference")


def matched(samples, folder, spec):
    """Given test images with the levels of the training images of the domain that is to be made."""
    rows = shards.stored(folder, "train")
    labels = samples.get("label", torch.zeros(len(samples["sample"]), dtype=torch.int64))
    made = torch.empty(len(labels), *spec.shape)
    for label in labels.unique():
        of = rows["label"] == label if "label" in rows else slice(None)
        target = np.sort(rows["sample"][: len(rows["sample"])][of].numpy().ravel())
        given = unpaired.quantise(None, samples["given"][: len(labels)][labels == label])
        counts = np.bincount(given.numpy().ravel(), minlength=256)
        middle = (counts.cumsum() - counts / 2) / counts.sum()
        levels = target[(middle * len(target)).astype(int).clip(0, len(target) - 1)]
        made[labels == label] = unpaired.decode(None, "sample", torch.from_numpy(levels)[given.long()])
    return made


def trained(args, params, folder, seed, into):
    """CPU minutes; writes what was reported last."""
    budget = {"kimg": args.kimg, "report_kimg": args.kimg / 6, "checkpoint_kimg": 1e6, "quality_samples": 0}
    params = params.model_copy(update={"seed": seed, "train": params.train.model_copy(update=budget)})
    began = time.process_time()

    def report(row, reported):
        shown = {k: round(v, 4) for k, v in row.items() if k.startswith(("loss/", "kimg", "sign", "diversity"))}
        print(json.dumps(shown | {"min": round((time.process_time() - began) / 60, 2)}), flush=True)
        if reported is not None:
            shutil.rmtree(into, ignore_errors=True)
            shutil.copytree(reported, into)

    train(params, report, prepared=folder)
    return (time.process_time() - began) / 60


def tell(name, sections):
    for section, metrics in sections.items():
        for metric, figures in metrics.items():
            if metric in METRICS or section == "answers":
                print(name, section, metric, json.dumps({k: round(v, 3) for k, v in figures.items()}), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--raw", default="/usr/share/datasets/fashion-mnist")
    parser.add_argument("--model", default="cyclegan")
    parser.add_argument("--preset", default="none")
    parser.add_argument("--direction", default="both", choices=["both", "a_to_b", "b_to_a"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--kimg", type=float, default=12)
    parser.add_argument("--set", nargs="*", default=[], help="KEY=VALUE of the model's file")
    parser.add_argument("--train", type=int, default=1500, help="images of each domain")
    parser.add_argument("--test", type=int, default=500, help="images of each domain")
    parser.add_argument("--out", type=Path, default=Path(".ganlib/bench/unpaired"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    params, folder, judge = prepared(args)
    compared = False
    for seed in args.seeds:
        into = args.out / f"{args.model}-{args.direction}-{seed}"
        minutes = trained(args, params, folder, seed, into)
        print(f"seed {seed}: {minutes:.2f} CPU minutes", flush=True)
        generator = load_generator(into / "generator")
        samples = sample_for_evaluation(generator, folder, judge.size, seed=seed, batch=100)
        if not compared:
            label = {name: samples[name] for name in ("label",) if name in samples}
            by_levels = {"sample": matched(samples, folder, generator.spec), **label}
            tell("matched", evaluate(by_levels, judge, params.evaluate, 0))
            compared = True
        tell(f"seed {seed}", evaluate(samples, judge, params.evaluate, seed))


if __name__ == "__main__":
    main()
