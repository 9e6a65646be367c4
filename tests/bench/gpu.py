"""Steps on one GPU: a plain PyTorch loop, ours launched kernel by kernel, ours recorded, and ours inside `train`.

    python tests/bench/gpu.py [--cases dcgan64 stylegan2_256 ...] [--seconds 3] [--json FILE]

Images a second, each the median of rounds that take turns; the peak of GPU memory of the shipped step; the share of
time in which the GPU has work, by torch's profiler. The plain loop has the same networks, loss and precision, and
neither penalties nor a moving average (`tests/bench/step.py`); "ours, no terms" is to be compared with it. "In train"
counts loading; "train, with reports" reports and checkpoints too. Data are random, prepared in a temporary folder.
Needs torch, pyarrow, Pillow, safetensors, pydantic, ruamel.yaml and the EfficientNet pair, but neither Ray, MLflow nor
DVC. `--cpu` tries it without a GPU.

To compare with another project, run its own loop on the same machine before and after.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from step import plain

from ganlib import device as devices
from ganlib import shard_writer
from ganlib.config import load_params, override
from ganlib.data import image
from ganlib.data._spec import Spec
from ganlib.losses import LOSSES
from ganlib.trainer import _Run, train

ROOT = Path(__file__).parents[2]
# model, preset, size, channels, batch, changes of the network
CASES = {
    "dcgan28": ("dcgan", "none", 28, 1, 32, {}),
    "resnet32": ("resnet", "none", 32, 1, 32, {}),
    "stylegan2_32": ("stylegan2", "none", 32, 1, 16, {}),
    "dcgan64": ("dcgan", "none", 64, 3, 128, {"network.width": 64}),
    "r3gan_cifar10": ("r3gan", "r3gan_cifar10", 32, 3, 128, {}),
    "stylegan2_256": ("stylegan2", "stylegan2_ffhq", 256, 3, 32, {"network.width": 64}),
}


def prepare(folder: Path, size: int, channels: int) -> None:
    """Random images of ten classes, as the stage `prepare` writes them."""
    rng, n = np.random.default_rng(0), 4000 if size < 128 else 600
    images = rng.integers(0, 256, (n, channels, size, size), np.uint8)
    sample = image.Config(resolution=(size, size), channels=channels)
    parts = image.parts(sample)
    hashes, stored = zip(*(shard_writer.pack(parts, {"sample": one}) for one in images), strict=True)
    rows = shard_writer.table(list(hashes), list(stored), rng.integers(0, 10, n).tolist())

    def spec(summary, training):
        return Spec(sample, "image", tuple("0123456789"), summary.counts, summary.content_hash)

    folder.mkdir()
    shard_writer.write(folder, [rows], parts, spec, test_share=0.1, shard_mb=64)


def dealt_by(run):
    """The batches of a step of the game, as `train` deals them."""
    return functools.partial(run.batches, run.training.phase)


WARMUP = 40
"""steps until each set of due terms has been recorded, which starts when those of every sixteenth come a third time"""


class Timer:
    """Runs a step for some time and says how many images a second that was."""

    def __init__(self, step, images, device):
        self.step, self.images, self.device, self.done, self.speeds = step, images, device, 0, []

    def run(self, seconds):
        wait(self.device)
        start, steps = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            for _ in range(4):
                self.step(self.done)
                self.done, steps = self.done + 1, steps + 1
            wait(self.device)
        self.speeds.append(steps * self.images / (time.perf_counter() - start))

    @property
    def speed(self):
        return statistics.median(self.speeds)


def wait(device):
    if devices.is_accelerator(device):
        torch.cuda.synchronize(device)


def working(step, first, device):
    """The share of 16 steps in which the GPU has work."""
    if not devices.is_accelerator(device):
        return float("nan")
    activities = [torch.profiler.ProfilerActivity.CUDA]
    wait(device)
    with torch.profiler.profile(activities=activities, acc_events=True) as profiler:
        start = time.perf_counter()
        for i in range(16):
            step(first + i)
        wait(device)
        seconds = time.perf_counter() - start
    return min(1.0, sum(event.self_device_time_total for event in profiler.key_averages()) / 1e6 / seconds)


def measure(name, args, device):
    """A row of the table."""
    model, preset, size, channels, batch, changes = CASES[name]
    params = load_params(ROOT / "params.yaml").model_copy(update={"model": model, "preset": preset})
    params = override(params, {"batch": batch, **changes})
    fixed = {"kimg": 1000.0, "quality_samples": 0, "amp": args.amp, "deterministic": not args.fastest}
    cfg = params.train.model_copy(update=fixed)
    params = params.model_copy(update={"train": cfg})
    with tempfile.TemporaryDirectory() as scratch:
        prepared = Path(scratch) / "prepared"
        prepare(prepared, size, channels)
        with devices.configured(device, deterministic=not args.fastest):
            row = {"case": name, **steps(params, prepared, args, device)}
        row["memory, GiB"] = memory(params, prepared, device)
        row["train, with reports"] = whole(params, prepared, device, row["in train"] * args.seconds / 1000)
    return row


def steps(params, prepared, args, device):
    """Images a second of each kind of step, and how much of the time the GPU works in ours."""

    def run():
        return _Run(params, lambda *_: None, prepared, None, device)

    shipped, launched, without_terms, by_hand = run(), run().training, run().training, run().training
    launched.recorded = None
    for training in (without_terms, by_hand):
        training.game = dataclasses.replace(training.game, terms=(), augmentation=None)
    dealt = dealt_by(shipped)(0)
    loop = plain(
        by_hand.game,
        LOSSES[params.game.loss],
        dealt[0][0].data,
        autocast=lambda: devices.autocast(device, by_hand.mixed),
    )
    timers = {
        "plain loop": loop,
        "ours, no terms": lambda i: without_terms.step(dealt),
        "shipped, launched": lambda i: launched.step(dealt),
        "shipped, recorded": lambda i: shipped.training.step(dealt),
        "in train": lambda i: shipped.training.step(dealt_by(shipped)(i)),
    }
    timers = {name: Timer(step, params.game.batch, device) for name, step in timers.items()}
    for name, timer in timers.items():  # libraries start, and each set of due terms is recorded
        for i in range(WARMUP if name == "shipped, recorded" and devices.is_accelerator(device) else 4):
            timer.step(i)
    for _ in range(args.rounds):
        for timer in timers.values():
            timer.run(args.seconds / args.rounds)
    ours = timers["shipped, recorded"]
    recorded = shipped.training.recorded
    return {
        **{name: round(timer.speed, 1) for name, timer in timers.items()},
        "replayed": 0.0 if recorded is None else round(recorded.share(), 3),
        "GPU works": round(working(ours.step, ours.done, device), 3),
    }


def memory(params, prepared, device):
    """What a training of its own has reserved once all is recorded, pools of recordings included, in GiB."""
    if not devices.is_accelerator(device):
        return float("nan")
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_reserved(device)
    run = _Run(params, lambda *_: None, prepared, None, device)
    for step in range(WARMUP):
        run.training.step(dealt_by(run)(step))
    return round((torch.cuda.max_memory_reserved(device) - before) / 2**30, 2)


def whole(params, prepared, device, kimg):
    """Images a second of `train`, from its first report to its last."""
    every = min(params.train.report_kimg, kimg / 4)
    cfg = params.train.model_copy(update={"kimg": kimg, "report_kimg": every, "checkpoint_kimg": kimg})
    seen = []
    train(
        params.model_copy(update={"train": cfg}),
        lambda row, folder: seen.append((row["kimg"], time.perf_counter())),
        prepared=prepared,
        device=device,
    )
    (first, since), (last, until) = seen[0], seen[-1]
    return round((last - first) * 1000 / (until - since), 1) if last > first else float("nan")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--seconds", type=float, default=3.0, help="for each figure")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--amp", default="auto", type=lambda word: {"auto": "auto", "true": True, "false": False}[word])
    parser.add_argument("--fastest", action="store_true", help="train.deterministic: false")
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    device = torch.device("cpu") if args.cpu else devices.default_device()
    name = "CPU" if device.type == "cpu" else torch.cuda.get_device_name(device)
    print(f"{name}, torch {torch.__version__}, amp {args.amp}, deterministic {not args.fastest}", flush=True)
    rows = []
    for case in args.cases:
        row = measure(case, args, device)
        if not rows:
            print("\n| " + " | ".join(row) + " |\n|" + "---|" * len(row), flush=True)
        rows.append(row)
        print("| " + " | ".join(str(cell) for cell in row.values()) + " |", flush=True)
    if args.json:
        args.json.write_text(json.dumps({"device": name, "torch": torch.__version__, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
