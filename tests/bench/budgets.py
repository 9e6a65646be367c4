"""What a training on few images gains and loses as it goes on, with and without augmentation.

    python tests/bench/budgets.py --data fashion:300 icons --kimg 90 --seeds 0 [--augment none diffaugment]
        [--size 28] [--every 15] [--images /usr/share/datasets/fashion-mnist]

`fashion:N` is N of Fashion-MNIST's training images as PNG files in a folder for each class (Debian:
dataset-fashion-mnist), `icons` the icons of GNOME in all their folders, resized to `--size` (Debian:
adwaita-icon-theme). Both are read by `image_folder`, prepared and measured as the pipeline does it, with the default
model: one training gives every budget up to `--kimg`, as no schedule depends on it. Figures are of `evaluate`, against
test images that were not trained on. Tables are Markdown.
"""

from __future__ import annotations

import argparse
import gzip
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ganlib import reference, shards
from ganlib.config import Params, load_params, override, parse_params
from ganlib.evaluate import evaluate, sample_for_evaluation
from ganlib.export import load_generator
from ganlib.reference import Reference
from ganlib.trainer import train
from pipelines.prepare import prepare

ROOT = Path(__file__).parents[2]
ICONS = Path("/usr/share/icons/Adwaita/96x96")
SHOWN = ("kid", "fd", "coverage", "precision", "recall", "memorisation_ratio")


def write_fashion(folder: Path, source: Path, count: int) -> None:
    """The first `count` training images, in a folder for each class."""
    with gzip.open(source / "train-images-idx3-ubyte.gz") as file:
        images = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28)
    with gzip.open(source / "train-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(), np.uint8, offset=8)
    for i in range(count):
        (folder / f"class{labels[i]}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[i]).save(folder / f"class{labels[i]}/{i}.png")


def data_of(name: str, size: int, images: Path, scratch: Path) -> tuple[Params, Path]:
    """Parameters that name the data, and the raw folder."""
    raw = scratch / "raw"
    if name == "icons":
        raw.symlink_to(ICONS)
        sample = {"kind": "image", "resolution": [size, size], "channels": 3}
        labels = "none"
    else:
        write_fashion(raw, images, int(name.partition(":")[2]))
        sample = {"kind": "image", "resolution": [28, 28], "channels": 1}
        labels = "folders"
    plain = load_params(ROOT / "params.yaml").model_dump(mode="json") | {"data": "photos"}
    plain["datasets"]["photos"]["sample"] |= sample
    plain["datasets"]["photos"]["source"]["labels"] = labels
    plain["datasets"]["photos"]["test_share"] = 0.2
    return parse_params(plain), raw


def measure(params: Params, args: argparse.Namespace, scratch: Path, augment: str, seed: int) -> None:
    params = params.model_copy(update={"seed": seed})
    params = override(params, {"augment": None if augment == "none" else {"kind": augment}})
    budget = {"kimg": args.kimg, "report_kimg": args.every, "checkpoint_kimg": args.every, "quality_samples": 0}
    params = params.model_copy(update={"train": params.train.model_copy(update=budget)})
    known, cfg = Reference.load(scratch / "reference"), params.evaluate
    size, start = min(args.samples, known.size), time.process_time()
    space = next(iter(known.spaces))

    def report(row: dict[str, float], folder: Path | None) -> None:
        nonlocal start
        if folder is None:
            return
        seconds = time.process_time() - start
        generator = load_generator(folder / "generator")
        samples = sample_for_evaluation(generator, scratch / "prepared", size, seed=seed, batch=cfg.batch)
        found = evaluate(samples, known, cfg.model_copy(update={"resamples": 10}), seed)
        figures = [found[space][name] for name in SHOWN if name in found[space]]
        cells = " | ".join(f"{of['value']:.3g} ({of.get('floor', float('nan')):.3g})" for of in figures)
        right = found.get("samples", {}).get("label_accuracy", {}).get("value", float("nan"))
        print(
            f"| {augment} | {seed} | {row['kimg']:.0f} | {cells} | {right:.2f} | {row['overfitting']:.2f} | "
            f"{seconds:.0f} |",
            flush=True,
        )
        start = time.process_time()

    train(params, report, prepared=scratch / "prepared", reference=scratch / "reference")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="+", required=True)
    parser.add_argument("--kimg", type=float, default=90)
    parser.add_argument("--every", type=float, default=15)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--augment", nargs="+", default=["none", "diffaugment"])
    parser.add_argument("--size", type=int, default=28)
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--images", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name in args.data:
        with tempfile.TemporaryDirectory() as folder:
            scratch = Path(folder)
            params, raw = data_of(name, args.size, args.images, scratch)
            prepare(params.dataset, raw, scratch / "prepared")
            spec = shards.read_spec(scratch / "prepared")
            splits = (shards.stored(scratch / "prepared", split) for split in ("train", "test"))
            reference.build(scratch / "reference", spec, *splits, params.reference, params.seed)
            print(
                f"\n{name}: {spec.counts['train']} training images, {spec.counts['test']} test images; floors in ()\n"
            )
            print(f"| augment | seed | kimg | {' | '.join(SHOWN)} | labels right | overfitting | CPU s |")
            print("|" + "---|" * (len(SHOWN) + 6))
            for augment in args.augment:
                for seed in args.seeds:
                    measure(params, args, scratch, augment, seed)


if __name__ == "__main__":
    main()
