"""What the game adds to restoration by pixels alone: copies, the fit before the game, and its end.

    apt-get install dataset-fashion-mnist
    python tests/bench/restoration.py [--data fashion_x4 fashion_noise] [--seeds 0 1 2] [--preset restore_projected]
        [--set network.l1_weight=5 ...]

Fashion-MNIST by the shipped `params/datasets/DATA.yaml` and `params/models/restore.yaml`, each training on one thread
in this process. The first test images are judged, all answers by the same truth. `FD` is of EfficientNet-Lite0's
features at 64 px; `FD of classifier` of those of a classifier of Fashion-MNIST, which no loss looks at. CPU minutes are
those of the process, from the start of a training.
"""

from __future__ import annotations

import argparse
import functools
import json
import shutil
import statistics
import time
from pathlib import Path

import torch
from ruamel.yaml import YAML

from ganlib import shards
from ganlib.config import load_params, override, parse_params
from ganlib.data.image import decode
from ganlib.evaluate import sample_for_evaluation
from ganlib.export import load_generator
from ganlib.metrics import fd
from ganlib.metrics.picture import psnr, ssim
from ganlib.spaces._classifier import Classifier, fit
from ganlib.spaces.picture import efficientnet_lite0
from ganlib.trainer import train
from pipelines import prepare as stage
from pipelines.training import keep_freed_memory

ROOT = Path(__file__).parents[2]
COLUMNS = ("PSNR", "SSIM", "FD", "FD of classifier", "CPU min")


def prepared(args, data):
    params = parse_params(
        load_params(ROOT / "params.yaml").model_dump(mode="json")
        | {"data": data, "model": "restore", "preset": args.preset}
    )
    raw, folder = args.out / "raw", args.out / data
    if not folder.is_dir():
        raw.mkdir(parents=True, exist_ok=True)
        for file in Path(args.raw).glob("*.gz"):
            if not (raw / file.name).exists():
                (raw / file.name).symlink_to(file)
        stage.PARALLEL_FROM_S = float("inf")  # one process, also on a busy machine
        stage.prepare(params.dataset.model_copy(update={"test_share": 1 / 7}), raw, folder)
    return params, folder


def classifier(args, folder):
    """Features of a classifier of the data's classes, `[N, D]`."""
    spec, rows = shards.read_spec(folder), shards.read(folder, "train", limit=20_000)
    cfg = load_params(ROOT / "params.yaml").reference.classifier
    torch.manual_seed(0)
    network = Classifier(spec.shape, len(spec.classes), cfg.width)
    fit(network, rows["sample"], rows["label"], functools.partial(decode, None, "sample"), cfg, seed=0)
    return torch.inference_mode()(lambda x: torch.cat([network.features(part) for part in x.split(500)]))


def trained(args, params, folder, seed, into):
    """CPU minutes of the fit and of the game; writes `before/` and `generator/`."""
    changes = {key: YAML(typ="safe").load(value) for key, _, value in (one.partition("=") for one in args.set)}
    budget = {"kimg": args.kimg, "report_kimg": 4, "checkpoint_kimg": 1e6, "quality_samples": 0}
    params = params.model_copy(update={"seed": seed, "train": params.train.model_copy(update=budget)})
    params = override(params, changes)
    began, marks = time.process_time(), {}

    def report(row, reported):
        marks["fit" if "fit_kimg" in row else "game"] = (time.process_time() - began) / 60
        shown = {k: round(v, 4) for k, v in row.items() if k.startswith(("loss/", "kimg", "logit"))}
        print(json.dumps(shown | {"min": round((time.process_time() - began) / 60, 2)}), flush=True)
        if reported is not None:
            shutil.rmtree(into, ignore_errors=True)
            shutil.copytree(reported, into)

    train(params, report, prepared=folder)
    return marks


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--raw", default="/usr/share/datasets/fashion-mnist")
    parser.add_argument("--data", nargs="+", default=["fashion_x4", "fashion_noise"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--kimg", type=float, default=20, help="of the game")
    parser.add_argument("--preset", default="none")
    parser.add_argument("--set", nargs="*", default=[], help="KEY=VALUE of the model's section")
    parser.add_argument("--images", type=int, default=5000, help="of the test split, judged")
    parser.add_argument("--no-classifier", action="store_true")
    parser.add_argument("--out", type=Path, default=Path(".ganlib/bench/restoration"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    for data in args.data:
        params, folder = prepared(args, data)
        spaces = {"FD": efficientnet_lite0.load()}
        if not args.no_classifier:
            spaces["FD of classifier"] = classifier(args, folder)
        spec, stored = shards.read_spec(folder), shards.read(folder, "test", limit=args.images)
        parts = {name: spec.kind.decode(spec.sample, name, stored[name]) for name in spec.parts}
        truth = {name: {"features": extract(parts["sample"])} for name, extract in spaces.items()}

        def judged(made, minutes=0.0, parts=parts, spaces=spaces, truth=truth):
            scored = [
                (metric, list(zip(made.split(100), parts["sample"].split(100), strict=True))) for metric in (psnr, ssim)
            ]
            found = [float(torch.cat([metric.score(None, *pair) for pair in pairs]).mean()) for metric, pairs in scored]
            distances = [fd.compute(truth[name], {"features": extract(made)}) for name, extract in spaces.items()]
            row = dict(zip(["PSNR", "SSIM", *spaces], [*found, *distances], strict=True)) | {"CPU min": minutes}
            print({name: round(value, 3) for name, value in row.items()}, flush=True)
            return row

        others = shards.read(folder, "train", limit=args.images)["sample"]
        rows = {"other images": [judged(spec.kind.decode(spec.sample, "sample", others))]}
        rows["copy"] = [judged(spec.kind.naive(spec.sample, parts))]
        for seed in args.seeds:
            into = args.out / f"{data}-{seed}"
            minutes = trained(args, params, folder, seed, into)
            answers = {}
            for name, caption, of in (("before", "L1 alone", "fit"), ("generator", "after the game", "game")):
                drawn = sample_for_evaluation(load_generator(into / name), folder, args.images, seed=0, batch=250)
                answers[caption] = drawn["sample"][: args.images]
                rows.setdefault(caption, []).append(judged(answers[caption], minutes[of]))
            shown = {
                "given": parts["given"][:24],
                **{n: x[:24] for n, x in answers.items()},
                "truth": parts["sample"][:24],
            }
            spec.kind.preview(spec.sample, shown, 4).save(args.out / f"{data}-{seed}.png")
            (args.out / f"{data}.json").write_text(json.dumps(rows, indent=1))
        columns = [name for name in COLUMNS if name in rows["copy"][0]]
        print(f"\n{data}, seeds {args.seeds}, {args.images} test images\n\n| | " + " | ".join(columns) + " |")
        print("|---" * (len(columns) + 1) + "|")
        for caption, found in rows.items():
            cells = []
            for column in columns:
                values = [row[column] for row in found]
                spread = f" ({min(values):.3g} to {max(values):.3g})" if len(values) > 1 else ""
                cells.append(f"{statistics.mean(values):.4g}{spread}")
            print(f"| {caption} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
