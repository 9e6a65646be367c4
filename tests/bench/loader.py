"""Batches from prepared shards, against what the default training needs and against Hugging Face `datasets`.

    pip install datasets
    dvc repro reference                    # data/prepared, for the training's need
    python tests/bench/loader.py [--images 200000] [--memory-mb 32] [--epochs 10] [--rounds 3]

Random 28x28 greyscale images in 10 classes, prepared by ganlib's own writer, and the same in `datasets`' format. A
batch is of 32, shuffled, float32 in [-1, 1] with its labels. Speeds are images per second of CPU time, of all threads
of the process together, which other work on the machine disturbs less than the time of a clock:

- `shards, streamed`: `memory_mb` is a fifth of the data, as for data larger than memory;
- `shards, in memory`: all fits, as the default data do;
- `datasets, indexed`: a shuffled index over memory-mapped Arrow, torch format;
- `datasets, iterable`: shards in random order and a shuffle buffer of 10,000, torch format;
- `datasets, numpy`: the same in numpy format, and tensors made of that.

What the training needs is the speed of `ganlib.trainer.train` on the default model, in one process with one thread.
Two workers on two cores need twice that, of twice the cores. All take turns. The memory is that of a process of its own
which streams `--epochs` epochs: anonymous pages after each, in MiB.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import torch

from ganlib import shard_writer
from ganlib.config import load_params
from ganlib.data import image
from ganlib.data._spec import Spec
from ganlib.loader import Loader

ROOT = Path(__file__).parents[2]
BATCH = 32
PART = 10_000


def pixels(part: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(part)
    return rng.integers(0, 256, (rows, 1, 28, 28), np.uint8), rng.integers(0, 10, rows)


def parts(images: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for number, start in enumerate(range(0, images, PART)):
        yield pixels(number, min(PART, images - start))


def write_shards(folder: Path, images: int) -> None:
    cfg = load_params(ROOT / "params.yaml").datasets["mnist"]
    classes = tuple(str(label) for label in range(10))

    of_parts = image.parts(cfg.sample)

    def rows():
        for samples, labels in parts(images):
            packed = [shard_writer.pack(of_parts, {"sample": sample}) for sample in samples]
            yield shard_writer.table([digest for digest, _ in packed], [raw for _, raw in packed], labels.tolist())

    def describe(found, training):
        return Spec(cfg.sample, "image", classes, found.counts, found.content_hash)

    folder.mkdir()
    shard_writer.write(folder, rows(), of_parts, describe, test_share=0.01, shard_mb=cfg.shard_mb)


def write_datasets(folder: Path, images: int) -> None:
    import datasets

    datasets.disable_progress_bars()
    features = datasets.Features({"pixels": datasets.Array3D((1, 28, 28), "uint8"), "label": datasets.Value("int64")})

    def rows(images):
        for samples, labels in parts(images):
            for sample, label in zip(samples, labels, strict=True):
                yield {"pixels": sample, "label": int(label)}

    made = datasets.Dataset.from_generator(
        rows, features=features, gen_kwargs={"images": images}, cache_dir=str(folder / "cache")
    )
    made.save_to_disk(str(folder / "data"))
    shutil.rmtree(folder / "cache")


def from_shards(folder: Path, memory_mb: float) -> Iterator[torch.Tensor]:
    loader = Loader(folder, "train", batch=BATCH, seed=0, memory_mb=memory_mb)
    step = 0
    while True:
        yield loader.batch_at(step)["sample"]
        step += 1


def decoded(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.as_tensor(batch["pixels"]).float().div_(127.5).sub_(1)


def indexed(folder: Path) -> Iterator[torch.Tensor]:
    import datasets

    data = datasets.load_from_disk(str(folder / "data")).with_format("torch")
    for epoch in range(1_000_000):
        order = np.random.default_rng(epoch).permutation(len(data))
        for start in range(0, len(order) - BATCH + 1, BATCH):
            yield decoded(data[order[start : start + BATCH]])


def iterable(folder: Path, format: str) -> Iterator[torch.Tensor]:
    import datasets

    stored = datasets.load_from_disk(str(folder / "data"))
    data = stored.to_iterable_dataset(num_shards=16).with_format(format).shuffle(seed=0, buffer_size=10_000)
    for epoch in range(1_000_000):
        data.set_epoch(epoch)
        for batch in data.iter(BATCH, drop_last_batch=True):
            yield decoded(batch)


def speed(batches: Iterator[torch.Tensor], seconds: float) -> float:
    """Images per CPU second, after a first one, in which files are opened and buffers filled."""
    warm = time.process_time() + 1
    while time.process_time() < warm:
        next(batches)
    start, seen = time.process_time(), 0
    while (elapsed := time.process_time() - start) < seconds:
        seen += len(next(batches))
    return seen / elapsed


def training_speed(prepared: Path) -> float:
    """Images per CPU second of the default training after its first report."""
    from ganlib.trainer import train
    from pipelines.training import keep_freed_memory

    keep_freed_memory()
    params = load_params(ROOT / "params.yaml")
    budget = {"kimg": 3.0, "report_kimg": 1.0, "checkpoint_kimg": 3.0, "quality_samples": 0}
    params = params.model_copy(update={"train": params.train.model_copy(update=budget)})
    seen: list[tuple[float, float]] = []
    train(params, lambda row, folder: seen.append((row["kimg"], time.process_time())), prepared=str(prepared))
    return 1000 * (seen[-1][0] - seen[0][0]) / (seen[-1][1] - seen[0][1])


def anonymous_mib() -> float:
    info = psutil.Process().memory_full_info()
    return (info.rss - info.shared) / 2**20


def stream_epochs(folder: Path, memory_mb: float, epochs: int) -> None:
    """Print the memory after each epoch."""
    loader = Loader(folder, "train", batch=BATCH, seed=0, memory_mb=memory_mb)
    steps = loader.examples // BATCH
    for epoch in range(epochs):
        for step in range(epoch * steps, (epoch + 1) * steps):
            loader.batch_at(step)
        print(f"{anonymous_mib():.0f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=200_000)
    parser.add_argument(
        "--memory-mb", type=float, default=32.0, help="of the streamed reading; the data have 784 B each"
    )
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    parser.add_argument("--prepared", type=Path, default=ROOT / "data/prepared", help="of the default data")
    parser.add_argument("--stream", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.stream:
        stream_epochs(args.stream, args.memory_mb, args.epochs)
        return
    with tempfile.TemporaryDirectory() as scratch:
        prepared, other = Path(scratch, "prepared"), Path(scratch, "datasets")
        write_shards(prepared, args.images)
        write_datasets(other, args.images)
        sides = {
            "shards, streamed": from_shards(prepared, args.memory_mb),
            "shards, in memory": from_shards(prepared, 4096.0),
            "datasets, indexed": indexed(other),
            "datasets, iterable": iterable(other, "torch"),
            "datasets, numpy": iterable(other, "numpy"),
        }
        found: dict[str, list[float]] = {name: [] for name in [*sides, "training"]}
        for _ in range(args.rounds):
            for name, batches in sides.items():
                found[name].append(speed(batches, args.seconds))
            found["training"].append(training_speed(args.prepared))
            print("  ".join(f"{name} {figures[-1]:.0f}" for name, figures in found.items()), flush=True)
        command = [sys.executable, __file__, "--stream", str(prepared)]
        command += ["--memory-mb", str(args.memory_mb), "--epochs", str(args.epochs)]
        memory = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    print(f"{args.images} images of 784 B, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the end")
    for name, figures in found.items():
        print(f"{name:19} {statistics.median(figures):8.0f} images/s of CPU  {[round(x) for x in figures]}")
    need = found["training"]
    best = [max(speeds) for speeds in zip(*(found[name] for name in sides if "datasets" in name), strict=True)]
    for name in ("shards, streamed", "shards, in memory"):
        for what, others in (("the training's need", need), ("the fastest of datasets", best)):
            ratios = [a / b for a, b in zip(found[name], others, strict=True)]
            print(f"{name} / {what}: x{statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})")
    print(f"MiB after each epoch, streamed with memory_mb {args.memory_mb:g}: {' '.join(memory)}")


if __name__ == "__main__":
    main()
