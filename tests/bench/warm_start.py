"""What a warm start buys on few images, with and without FreezeD.

    python tests/bench/warm_start.py --parent mnist --few 200 --size 16 --kimg 16 --seeds 0 1 2
        [--parent-kimg 24] [--freeze discriminator.layers.0] [--model dcgan] [--augment diffaugment]

The parent is trained once, on all of `--parent`, a data set of params/datasets. Then, for each seed, the model is
trained on `--few` images of Fashion-MNIST (Debian: dataset-fashion-mnist), as many of each class: from nothing for
`--kimg`; and for a quarter of it from the parent, and from the parent with the layers `--freeze` frozen. Lines are
Markdown: the Fréchet distance and KID of 1,000 samples and 1,000 test images, in the first feature space, at a quarter
of the budget and at its end. One process and thread, no search.
"""

from __future__ import annotations

import argparse
import gzip
import json
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ganlib import checkpoint, reference, registry, shards
from ganlib.config import Params, load_params, override, parse_params
from ganlib.evaluate import extract_features, sample_for_evaluation
from ganlib.export import load_generator
from ganlib.reference import Reference
from ganlib.trainer import train
from ganlib.warm_start import PARENT, save_discriminator
from pipelines.prepare import prepare
from pipelines.training import keep_freed_memory

ROOT = Path(__file__).parents[2]
JUDGED = 1_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parent", default="mnist")
    parser.add_argument("--few", type=int, default=200)
    parser.add_argument("--model", default="dcgan")
    parser.add_argument("--augment", choices=["none", "diffaugment", "ada"], default="diffaugment")
    parser.add_argument("--size", type=int, default=28, help="pixels a side, of both data sets")
    parser.add_argument("--parent-kimg", type=float, default=24)
    parser.add_argument("--kimg", type=float, default=16)
    parser.add_argument("--freeze", nargs="+", default=["discriminator.layers.0"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--images", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    args = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        scratch, start = Path(folder), time.process_time()
        parent = train_parent(args, scratch)
        print(
            f"parent: {args.model}, {args.parent}, {args.parent_kimg:g} kimg, {time.process_time() - start:.0f} CPU s"
        )
        few = prepare_few(args, scratch)
        print("| start | seed | kimg | FD | KID | CPU s |\n|---|---|---|---|---|---|", flush=True)
        for seed in args.seeds:
            quarter = args.kimg / 4
            measure("nothing", with_train(few, seed, args.kimg, quarter), scratch)
            for name, freeze in {"parent": [], "parent, frozen": args.freeze}.items():
                params = with_train(few, seed, quarter, quarter, init="parent", freeze=freeze)
                measure(name, params, scratch, parent)


def with_train(params: Params, seed: int, kimg: float, every: float, **changes) -> Params:
    plain = params.model_dump(mode="json") | {"seed": seed}
    budget = {"kimg": kimg, "report_kimg": every, "checkpoint_kimg": every, "quality_samples": 0}
    return parse_params(plain | {"train": plain["train"] | budget | changes})


def train_parent(args: argparse.Namespace, scratch: Path) -> Path:
    plain = load_params(ROOT / "params.yaml").model_dump(mode="json") | {"data": args.parent, "model": args.model}
    plain["datasets"][args.parent]["sample"]["resolution"] = [args.size, args.size]
    params, parent = parse_params(plain), scratch / "parent"

    def report(row, folder):
        if folder is not None:
            shutil.copytree(folder / "generator", parent / "generator")
            save_discriminator(parent, checkpoint.load(folder)["discriminator"])

    prepare(params.dataset, ROOT / "data/raw" / args.parent, scratch / "of_parent")
    train(with_train(params, 0, args.parent_kimg, args.parent_kimg), report, prepared=scratch / "of_parent")
    (parent / PARENT).write_text(json.dumps({"name": "parent"}))
    return parent


def write_images(folder: Path, images: Path, prefix: str, count: int) -> None:
    """The first of each class, `count` in all, in a folder for each class."""
    with gzip.open(images / f"{prefix}-images-idx3-ubyte.gz") as file:
        pixels = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28)
    with gzip.open(images / f"{prefix}-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(), np.uint8, offset=8)
    for label in range(10):
        (folder / str(label)).mkdir(parents=True)
        for row in np.flatnonzero(labels == label)[: count // 10]:
            Image.fromarray(pixels[row]).save(folder / str(label) / f"{row}.png")


def prepare_few(args: argparse.Namespace, scratch: Path) -> Params:
    """Prepare the few images and those to judge by, and measure their features."""
    for split, prefix, count in (("train", "train", args.few), ("test", "t10k", JUDGED)):
        write_images(scratch / "raw" / split, args.images, prefix, count)
    plain = load_params(ROOT / "params.yaml").model_dump(mode="json") | {"data": "photos", "model": args.model}
    plain["datasets"]["photos"]["sample"] |= {"resolution": [args.size, args.size], "channels": 1}
    plain["datasets"]["photos"]["source"]["labels"] = "folders"
    params = parse_params(plain)
    if args.augment != "none":
        params = override(params, {"augment": {"kind": args.augment}})
    prepare(params.dataset, scratch / "raw", scratch / "few")
    spec = shards.read_spec(scratch / "few")
    print(f"few: {spec.counts['train']} training images, {spec.counts['test']} test images")
    splits = (shards.stored(scratch / "few", split) for split in shards.SPLITS)
    reference.build(scratch / "reference", spec, *splits, params.reference, 0)
    return params


def measure(name: str, params: Params, scratch: Path, parent: Path | None = None) -> None:
    """Train, and print a line at a quarter of the budget and at its end."""
    known, start, seconds = Reference.load(scratch / "reference"), time.process_time(), 0.0
    fd, kid = (registry.load("metrics", metric) for metric in ("fd", "kid"))
    space = next(iter(known.spaces))
    real, budget = {"features": known.spaces[space].test}, params.train.game_kimg

    def report(row, folder):
        nonlocal start, seconds
        if folder is None:
            return
        seconds += time.process_time() - start
        if not budget / 4 < row["kimg"] < budget - params.train.report_kimg / 2:
            generator = load_generator(folder / "generator")
            made = sample_for_evaluation(generator, scratch / "few", JUDGED, seed=params.seed + 1000, batch=100)
            fake = extract_features(made, known, 100, [space])[space]
            figures = f"{fd.compute(real, fake):.3f} | {kid.compute(real, fake):.4f}"
            print(f"| {name} | {params.seed} | {row['kimg']:.1f} | {figures} | {seconds:.0f} |", flush=True)
        start = time.process_time()

    train(params, report, prepared=scratch / "few", parent=parent)


if __name__ == "__main__":
    main()
