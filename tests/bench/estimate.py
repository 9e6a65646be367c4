"""What `ganlib params check --estimate` says, beside what the stage `train` then takes, family by family.

    python tests/bench/estimate.py [--families dcgan relgan] [--seconds 60]

A project in a scratch folder for each family, at its shipped settings, on data that come with packages (pix2pix: the
digits beside their outlines). The stages prepare and reference run first. The budget is chosen by a first estimate so
that training takes about `--seconds`; then come an estimate, the training, and another estimate, since the speed of a
busy machine changes meanwhile. Training counts from the workers' start to the last report; the stage's own time has
Ray's start and stop too.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter
from sklearn.datasets import load_digits

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from params_files import copy_params, edit_params  # noqa: E402

FAMILIES = {
    "mlp": {"data": "mnist"},
    "dcgan": {"data": "mnist"},
    "resnet": {"data": "mnist"},
    "stylegan2": {"data": "mnist", "params/datasets/mnist.yaml:sample.resolution": [32, 32]},
    "r3gan": {"data": "mnist"},
    "pix2pix": {
        "data": "pairs",
        "params/datasets/pairs.yaml:sample.resolution": [32, 32],
        "params/datasets/pairs.yaml:sample.channels": [1, 1],
    },
    "restore": {"data": "mnist_x4"},
    "f_anogan": {"data": "mnist_one_class"},
    "ctgan": {"data": "breast_cancer"},
    "relgan": {"data": "surnames"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", default=list(FAMILIES), choices=list(FAMILIES))
    parser.add_argument("--seconds", type=float, default=60)
    args = parser.parse_args()
    print(
        "family kimg estimate_s trained_s estimate_after_s trained/estimate trained/mean_of_both stage_s load",
        flush=True,
    )
    for family in args.families:
        with tempfile.TemporaryDirectory() as scratch:
            one(family, args.seconds, Path(scratch))


def one(family: str, seconds: float, folder: Path) -> None:
    copy_params(folder)
    (folder / "data").mkdir()
    if family == "pix2pix":
        write_pairs(folder / "data/raw/pairs")
    else:
        (folder / "data/raw").symlink_to(ROOT / "data/raw")
    edit_params(folder, {**FAMILIES[family], "model": family, "tune.num_samples": 0})
    for stage in ("prepare", "reference", "tune"):
        run(folder, "-m", f"pipelines.{stage}")
    shipped = estimate(folder)
    kimg = round(max(2.0, shipped["kimg"] * min(1.0, seconds / shipped["train_seconds"])), 1)
    shrink = kimg / shipped["kimg"]
    changes = {"train.kimg": kimg, "train.report_kimg": kimg / 9, "train.checkpoint_kimg": kimg / 4.5}
    for name, fit in shipped["fits"].items():
        changes[f"params/models/{family}.yaml:fits.{name}.kimg"] = round(fit * shrink, 2)
    edit_params(folder, changes)
    before = estimate(folder)["train_seconds"]
    start, ends, began = time.time(), [], None
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "pipelines.train"], cwd=folder, env=ENV, stdout=subprocess.PIPE, text=True
    )
    for line in process.stdout:
        if line.startswith("Ray is up"):
            began = time.time()
        if re.match(r" *[\d.]+ of [\d.]+ kimg", line):
            ends.append(time.time())
    assert process.wait() == 0
    stage = time.time() - start
    after = estimate(folder)["train_seconds"]
    trained = ends[-1] - began
    mean = (before + after) / 2
    print(
        f"{family} {kimg:g} {before:.1f} {trained:.1f} {after:.1f} {trained / before:.2f} {trained / mean:.2f} "
        f"{stage:.1f} {os.getloadavg()[0]:.1f}",
        flush=True,
    )


def estimate(folder: Path) -> dict:
    code = """
import dataclasses, json
from ganlib.config import load_params
from pipelines._stage import PREPARED, REFERENCE
from pipelines.budget import with_budget
from pipelines.estimate import estimate
params = load_params()
found = estimate(params, PREPARED, REFERENCE)
kimg = with_budget(params, PREPARED, quiet=True).train.kimg
fits = {name: fit.kimg for name, fit in params.game.fits.items()}
print(json.dumps({**dataclasses.asdict(found), "train_seconds": found.train_seconds, "kimg": kimg, "fits": fits}))
"""
    found = json.loads(run(folder, "-c", code).splitlines()[-1])
    print("#", {k: v for k, v in found.items() if k != "parameters"}, file=sys.stderr, flush=True)
    return found


ENV = {**os.environ, "PYTHONPATH": str(ROOT)}


def run(folder: Path, *words: str) -> str:
    done = subprocess.run([sys.executable, *words], cwd=folder, env=ENV, capture_output=True, text=True)
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout


def write_pairs(folder: Path) -> None:
    folder.mkdir(parents=True)
    for i, digit in enumerate(load_digits().images):
        image = Image.fromarray(np.uint8(digit * 15)).resize((32, 32))
        both = Image.new("L", (64, 32))
        both.paste(image.filter(ImageFilter.FIND_EDGES), (0, 0))
        both.paste(image, (32, 0))
        both.save(folder / f"{i}.png")


if __name__ == "__main__":
    main()
