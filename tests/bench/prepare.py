"""Time and memory of preparing many images.

    python tests/bench/prepare.py [--images 1000000]

MNIST's 5,000 digits again and again, each time with other noise, as IDX files of 50,000; then the stage's own code. The
peak is of this process.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from ganlib import registry
from ganlib.config import load_params
from pipelines.prepare import prepare

ROOT = Path(__file__).parents[2]
FILE = 50_000


def write(raw, images):
    digits = list(registry.load("sources", "mnist")._items())
    pixels = np.stack([item.payload for item in digits]).astype(np.int16)
    labels = np.array([item.label for item in digits], np.uint8)
    rng = np.random.default_rng(0)
    for number, start in enumerate(range(0, images, FILE)):
        rows = np.arange(start, min(start + FILE, images)) % len(pixels)
        noisy = (pixels[rows] + rng.integers(-9, 10, (len(rows), 28, 28), np.int16)).clip(0, 255).astype(np.uint8)
        for name, magic, data in (("images-idx3", 0x803, noisy), ("labels-idx1", 0x801, labels[rows])):
            header = np.array([magic, *data.shape], ">u4").tobytes()
            (raw / f"{number:03d}-{name}-ubyte").write_bytes(header + data.tobytes())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1_000_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        raw = Path(scratch, "raw")
        raw.mkdir()
        write(raw, args.images)
        before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
        prepare(load_params(ROOT / "params.yaml").datasets["fashion_mnist"], raw, Path(scratch, "prepared"))
        seconds, peak = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"{args.images} images: {seconds:.0f} s, peak {peak >> 10} MB ({before >> 10} MB before)")


if __name__ == "__main__":
    main()
