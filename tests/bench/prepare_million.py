"""Many small images prepared: images/s and peak memory, against Hugging Face `datasets` doing the same.

    pip install datasets
    python tests/bench/prepare_million.py [--images 200000] [--rounds 2]      # a million: --images 1000000 --rounds 1

The images are 28x28 greyscale PNGs made by numpy, smooth shapes with noise, all different but for one in a hundred,
which repeats another; with a class each, in Parquet files of 20,000. Both sides decode them, drop exact duplicates,
shuffle, split off a tenth for testing and write the result to disk: `pipelines.prepare`, and `load_dataset`, `map` on
all cores, `select`, `shuffle`, `train_test_split`, `save_to_disk`. (ganlib also makes its card.) They take turns, each
in a process of its own; the peak is of that process and all its children, of proportional set size (PSS), sampled
every 0.2 s (a PSS counts memory that several processes share once). CPU seconds are of the same processes, up to their
last sample; other work on the machine disturbs them less than the time of a clock.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

ROOT = Path(__file__).parents[2]
FILE = 20_000
GROUP = 1000  # rows in a row group


def write(raw: Path, images: int) -> None:
    """The Parquet files."""
    ramp = np.linspace(-1, 1, 28)
    for number, start in enumerate(range(0, images, FILE)):
        rng, rows = np.random.default_rng(number), min(FILE, images - start)
        centres, width = rng.uniform(-0.6, 0.6, (rows, 2, 1)), rng.uniform(0.2, 0.6, (rows, 1))
        bumps = np.exp(-(((ramp - centres) / width[:, None]) ** 2))
        pixels = 220 * bumps[:, 0, :, None] * bumps[:, 1, None, :] + rng.integers(0, 8, (rows, 28, 28))
        pixels[::100] = pixels[0]
        cells = []
        for picture in pixels.astype(np.uint8):
            file = io.BytesIO()
            Image.fromarray(picture).save(file, "PNG", compress_level=1)
            cells.append({"bytes": file.getvalue(), "path": None})
        kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
        columns = {"image": pa.array(cells, kind), "label": pa.array(rng.integers(0, 10, rows))}
        pq.write_table(pa.table(columns), raw / f"{number:03d}.parquet", row_group_size=GROUP)


def ganlib(raw: Path, out: Path) -> None:
    from ganlib.config import load_params
    from pipelines.prepare import prepare

    cfg = load_params(ROOT / "params.yaml").datasets["table_of_images"]
    sample = cfg.sample.model_copy(update={"resolution": (28, 28), "channels": 1})
    prepare(cfg.model_copy(update={"sample": sample}), raw, out / "prepared")


def decode(batch):
    pixels = [np.asarray(image.convert("L")) for image in batch["image"]]
    digests = [hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in pixels]
    return {"pixels": np.stack(pixels), "digest": digests}


def huggingface(raw: Path, out: Path) -> None:
    import datasets

    datasets.disable_progress_bars()
    files = sorted(str(path) for path in raw.glob("*.parquet"))
    data = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(out / "cache"))
    data = data.cast_column("image", datasets.Image())
    features = datasets.Features(
        {
            "label": data.features["label"],
            "pixels": datasets.Array2D((28, 28), "uint8"),
            "digest": datasets.Value("binary"),
        }
    )
    cores = os.cpu_count()
    data = data.map(decode, batched=True, remove_columns=["image"], features=features, num_proc=cores)
    _, first = np.unique(np.array(data.with_format("numpy")["digest"][:]), return_index=True)
    data = data.select(np.sort(first)).remove_columns("digest").shuffle(seed=0)
    data.train_test_split(0.1, seed=0).save_to_disk(str(out / "prepared"), num_proc=cores)


SIDES = {"ganlib": ganlib, "datasets": huggingface}


@dataclass(frozen=True)
class Cost:
    """What one run took."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int


def measure(side: str, raw: Path) -> Cost:
    """Run a side to its end, the start of its process included."""
    with tempfile.TemporaryDirectory(dir=raw.parent) as out:
        start, peak, cpu = time.perf_counter(), 0, dict[int, float]()
        child = subprocess.Popen([sys.executable, __file__, "--side", side, str(raw), out], stdout=subprocess.DEVNULL)
        process = psutil.Process(child.pid)
        while child.poll() is None:
            total = 0
            for one in [process, *process.children(recursive=True)]:
                try:
                    total += one.memory_full_info().pss
                    times = one.cpu_times()
                except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                    continue  # it has ended meanwhile
                cpu[one.pid] = times.user + times.system
            peak = max(peak, total)
            time.sleep(0.2)
        if child.returncode:
            sys.exit(f"{side} failed with exit status {child.returncode}")
        return Cost(time.perf_counter() - start, sum(cpu.values()), peak)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--side", nargs=3, metavar=("SIDE", "RAW", "OUT"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        SIDES[args.side[0]](Path(args.side[1]), Path(args.side[2]))
        return
    found: dict[str, list[Cost]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as scratch:
        raw = Path(scratch, "raw")
        raw.mkdir()
        write(raw, args.images)
        for _ in range(args.rounds):
            for side, costs in found.items():
                load = os.getloadavg()[0]
                costs.append(cost := measure(side, raw))
                print(
                    f"{side:9} {args.images} images: "
                    f"{cost.seconds:6.1f} s, {args.images / cost.seconds:6.0f} images/s; "
                    f"{cost.cpu_seconds:6.1f} CPU s, {args.images / cost.cpu_seconds:6.0f} images/s of CPU; "
                    f"peak {cost.peak_bytes >> 20} MiB (load {load:.1f} before)",
                    flush=True,
                )
    pairs = list(zip(*found.values(), strict=True))
    for what, ratios in (
        ("images/s", [other.seconds / own.seconds for own, other in pairs]),
        ("images/s of CPU", [other.cpu_seconds / own.cpu_seconds for own, other in pairs]),
        ("peak memory", [own.peak_bytes / other.peak_bytes for own, other in pairs]),
    ):
        print(f"ganlib / datasets, {what}: x{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
