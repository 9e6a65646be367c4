"""Time to quality: FD(efficientnet-lite0@64) against CPU minutes, every family and a plain PyTorch DCGAN loop.

    python tests/bench/quality.py --minutes 10 --seeds 0 1 --families plain dcgan resnet ... [--out quality.json]
    python tests/bench/quality.py --table quality.json [--plot quality.png]

Fashion-MNIST at 32x32 (Debian: apt install dataset-fashion-mnist; `--data` names the folder of its files), or
`--data mnist`. One thread each. Minutes are the process's own CPU time, so that other work on the machine counts as
little as it can, and hold everything that training does but measuring. FD is of 5,000 samples of the moving average
against 10,000 reals; the floor is 5,000 other reals. The in-domain distance is the same in the features of a classifier
that is trained here on 20,000 labelled examples. Models are unconditional unless the name ends in `+labels`;
`NAME@PRESET` lays a preset of params/presets over the family, `NAME:key=value,...` sets keys of the model.
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
import os
import re
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import torch
from ruamel.yaml import YAML
from torch import nn

from ganlib import shards
from ganlib.config import load_params, override, parse_params
from ganlib.data.image import decode, preview
from ganlib.export import load_generator
from ganlib.metrics.fd import distance, gaussian
from ganlib.spaces._classifier import Classifier, fit
from ganlib.spaces.picture import efficientnet_lite0
from ganlib.trainer import train
from pipelines.prepare import prepare
from pipelines.training import keep_freed_memory

ROOT = Path(__file__).parent.parent.parent
SAMPLES = 5_000
FIGURES = {"fd": "FD(efficientnet-lite0@64)", "in_domain": "FD(in-domain classifier)"}


class Enough(Exception):
    """The minutes are over."""


class Clock:
    """Calls `snapshot(minute)` at each mark of training time; raises Enough after the last."""

    def __init__(self, marks, snapshot):
        self.marks, self.snapshot = list(marks), snapshot
        self.spent, self.since = 0.0, time.process_time()

    def tick(self):
        self.spent += time.process_time() - self.since
        while self.marks and self.spent >= self.marks[0] * 60:
            self.snapshot(self.marks.pop(0))
        if not self.marks:
            raise Enough
        self.since = time.process_time()


def plain(clock, prepared, seed, keep):
    """The loop of the PyTorch tutorial at 32x32: width 64, batch 64, Adam 2e-4 and (0.5, 0.999); a moving average."""
    torch.manual_seed(seed)
    data = decode(None, "sample", shards.read(prepared, "train")["sample"]).to(memory_format=torch.channels_last)
    channels, w = data.shape[1], 64

    def up(a, b):
        return [nn.ConvTranspose2d(a, b, 4, 2, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU(True)]

    def down(a, b):
        return [nn.Conv2d(a, b, 4, 2, 1, bias=False), nn.BatchNorm2d(b), nn.LeakyReLU(0.2, True)]

    first = [nn.ConvTranspose2d(100, 4 * w, 4, 1, 0, bias=False), nn.BatchNorm2d(4 * w), nn.ReLU(True)]
    g = nn.Sequential(*first, *up(4 * w, 2 * w), *up(2 * w, w), nn.ConvTranspose2d(w, channels, 4, 2, 1), nn.Tanh())
    d = nn.Sequential(
        *[nn.Conv2d(channels, w, 4, 2, 1), nn.LeakyReLU(0.2, True)],
        *[*down(w, 2 * w), *down(2 * w, 4 * w), nn.Conv2d(4 * w, 1, 4, 1, 0), nn.Flatten(0)],
    )
    for net in (g, d):
        net.to(memory_format=torch.channels_last)
        for layer in net.modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.normal_(layer.weight, std=0.02)
    average = copy.deepcopy(g)
    to_g, to_d = (torch.optim.Adam(net.parameters(), lr=2e-4, betas=(0.5, 0.999)) for net in (g, d))
    bce, ones, zeros = nn.BCEWithLogitsLoss(), torch.ones(64), torch.zeros(64)

    def sample():
        return torch.cat([average.eval()(torch.randn(500, 100, 1, 1)) for _ in range(SAMPLES // 500)])

    clock.snapshot = lambda minute: keep(minute, kimg, sample)
    step = 0
    while True:
        for rows in torch.randperm(len(data)).split(64)[:-1]:
            d.zero_grad()
            bce(d(data[rows]), ones).backward()
            fake = g(torch.randn(64, 100, 1, 1))
            bce(d(fake.detach()), zeros).backward()
            to_d.step()
            g.zero_grad()
            bce(d(fake), ones).backward()
            to_g.step()
            with torch.no_grad():
                for mine, theirs in zip(average.state_dict().values(), g.state_dict().values(), strict=True):
                    mine.copy_(theirs) if not mine.is_floating_point() else mine.lerp_(theirs, 0.005)
            step += 1
            kimg = step * 64 / 1000
            if step % 100 == 0:
                clock.tick()


def ours(name, clock, prepared, seed, keep, generators=None):
    """A family as `params/models` has it, in this process."""
    family, _, changes = name.removesuffix("+labels").partition(":")
    family, _, preset = family.partition("@")
    params = load_params(ROOT / "params.yaml")
    params = parse_params(params.model_dump(mode="json") | {"seed": seed, "model": family, "preset": preset or "none"})
    read = YAML(typ="safe", pure=True).load
    wanted = read("{" + re.sub(r"(^|,)([\w.]+)=", r"\1\2: ", changes) + "}")  # values may be mappings with commas
    if not name.endswith("+labels"):
        wanted["network.conditioning"] = "none"
    of_train = {key.removeprefix("train."): wanted.pop(key) for key in list(wanted) if key.startswith("train.")}
    params = override(params, wanted)
    budget = {"kimg": 1e6, "report_kimg": 4, "checkpoint_kimg": 4, "quality_samples": 0} | of_train
    params = params.model_copy(update={"train": params.train.model_copy(update=budget)})
    folder, kimg = None, 0.0

    def report(row, reported):
        nonlocal folder, kimg
        folder, kimg = reported, row["kimg"]
        clock.tick()

    def snapshot(minute):
        generator = load_generator(folder / "generator")
        keep(minute, kimg, lambda: generator.sample(SAMPLES, seed=seed)["sample"])
        if generators is not None:
            shutil.copytree(folder / "generator", generators / f"{family}-{seed}", dirs_exist_ok=True)

    clock.snapshot = snapshot
    train(params, report, prepared=prepared)


def run(name, prepared, seed, marks, spaces, pictures, generators):
    """The distances at each mark, and how far training had come."""
    rows = []

    def keep(minute, kimg, sample):
        with torch.inference_mode():
            torch.manual_seed(seed)
            made = sample()
        found = {
            figure: round(distance(real, gaussian(extract(made))), 2) for figure, (extract, real) in spaces.items()
        }
        rows.append({"name": name, "seed": seed, "minutes": minute, "kimg": round(kimg, 1), **found})
        print(json.dumps(rows[-1]), flush=True)
        if pictures is not None:
            pictures.mkdir(parents=True, exist_ok=True)
            label = "".join(c if c.isalnum() else "-" for c in name)
            preview(None, {"sample": made[:64]}, 8).save(pictures / f"{label}-{seed}-{minute:g}.png")

    clock = Clock(marks, None)
    try:
        if name == "plain":
            plain(clock, prepared, seed, keep)
        else:
            ours(name, clock, prepared, seed, keep, generators)
    except Enough:
        return rows


def data_set(data, out):
    params = load_params(ROOT / "params.yaml")
    if data != "mnist":
        raw = out / "raw"
        raw.mkdir(parents=True)
        for file in Path(data).glob("*.gz"):
            (raw / file.name).symlink_to(file)
    cfg = params.datasets["mnist" if data == "mnist" else "fashion_mnist"]
    sample = cfg.sample.model_copy(update={"resolution": (32, 32), "fit": "pad", "background": (0, 0, 0)})
    share = 0.2 if data == "mnist" else 1 / 7
    prepare(cfg.model_copy(update={"sample": sample, "test_share": share}), out / "raw", out / "prepared")
    return out / "prepared"


def in_domain(prepared):
    """What takes images to the features of a classifier of the data's own classes."""
    spec, train = shards.read_spec(prepared), shards.read(prepared, "train", limit=20_000)
    cfg = load_params(ROOT / "params.yaml").reference.classifier
    torch.manual_seed(0)
    classifier = Classifier(spec.shape, len(spec.classes), cfg.width)
    fit(classifier, train["sample"], train["label"], functools.partial(decode, None, "sample"), cfg, seed=0)
    return lambda images: torch.cat([classifier.features(part) for part in images.split(500)])


def table(rows, floor, figure="fd"):
    """Markdown: a distance at each mark, mean over seeds and their range."""
    rows = [row for row in rows if figure in row]
    marks = sorted({row["minutes"] for row in rows})
    print(
        f"\n{FIGURES[figure]}, floor {floor:.4g}\n\n| | "
        + " | ".join(f"{m:g} min" for m in marks)
        + " | kimg |\n|---|"
        + "---|" * (len(marks) + 1)
    )
    for name in dict.fromkeys(row["name"] for row in rows):
        mine = [row for row in rows if row["name"] == name]
        cells = []
        for mark in marks:
            found = [row[figure] for row in mine if row["minutes"] == mark]
            spread = f" ({shown(min(found))} to {shown(max(found))})" if len(found) > 1 else ""
            cells.append(f"{shown(statistics.mean(found))}{spread}" if found else "")
        print(f"| {name} | " + " | ".join(cells) + f" | {max(row['kimg'] for row in mine):.0f} |")


def shown(distance):
    return f"{distance:.0f}" if distance >= 100 else f"{distance:.3g}"


def plot(rows, floor, path):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    ax = figure.subplots()
    for name in dict.fromkeys(row["name"] for row in rows):
        mine = [row for row in rows if row["name"] == name]
        marks = sorted({row["minutes"] for row in mine})
        means = [statistics.mean(row["fd"] for row in mine if row["minutes"] == mark) for mark in marks]
        ax.plot(marks, means, marker="o", label=name, linestyle="--" if name == "plain" else "-")
    ax.axhline(floor, color="grey", linewidth=1, label="real against real")
    ax.set(xlabel="CPU minutes, one thread", ylabel="FD(efficientnet-lite0@64)", yscale="log")
    ax.legend(fontsize="small")
    figure.savefig(path, dpi=110)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="/usr/share/datasets/fashion-mnist")
    parser.add_argument("--families", nargs="+", default=["plain", "dcgan", "resnet", "stylegan2", "r3gan", "mlp"])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--every", type=float, default=2)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=Path("quality.json"))
    parser.add_argument("--pictures", type=Path, help="a folder for grids of samples at each mark")
    parser.add_argument("--generators", type=Path, help="a folder for the last generator of each run")
    parser.add_argument("--table", type=Path, nargs="+", help="print what such files hold, and run nothing")
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    if args.table:
        found = [json.loads(path.read_text()) for path in args.table]
        rows = [row for part in found for row in part["rows"]]
        for figure, floor in found[0]["floor"].items():
            table(rows, floor, figure)
        if args.plot:
            plot(rows, found[0]["floor"]["fd"], args.plot)
        return

    torch.set_num_threads(1)
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as scratch:
        prepared = data_set(args.data, Path(scratch))
        reals = decode(None, "sample", shards.read(prepared, "test", limit=10_000)["sample"])
        others = decode(None, "sample", shards.read(prepared, "train", limit=SAMPLES)["sample"])
        extractors = {"fd": efficientnet_lite0.load(), "in_domain": in_domain(prepared)}
        spaces = {figure: (extract, gaussian(extract(reals))) for figure, extract in extractors.items()}
        floor = {
            figure: round(distance(real, gaussian(extract(others))), 3) for figure, (extract, real) in spaces.items()
        }
        print(f"floor {floor}, {os.cpu_count()} cores", flush=True)
        marks = [args.every * (i + 1) for i in range(round(args.minutes / args.every))]
        rows = []
        for seed in args.seeds:
            for name in args.families:
                rows += run(name, prepared, seed, marks, spaces, args.pictures, args.generators)
                partial = args.out.with_name(f".{args.out.name}")
                partial.write_text(json.dumps({"data": args.data, "floor": floor, "rows": rows}, indent=1))
                partial.replace(args.out)
    for figure in FIGURES:
        table(rows, floor[figure], figure)


if __name__ == "__main__":
    main()
