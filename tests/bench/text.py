"""What the game adds to a likelihood model of text, next to that model at other temperatures.

    pip install -e '.[text]'
    python tests/bench/text.py surnames [--seeds 0 1 2] [-S kimg=9.6 generator.lr=1e-4 …] [--out .ganlib/bench/text]
    python tests/bench/text.py verses        # after what params/datasets/verses.yaml says

Trains the model `relgan` on a data set of `params/`. The generator after the fit is the likelihood model, and after the
game that of RelGAN. Both write 1,000 lines at some temperatures; test's first 1,000 lines are the references of BLEU. A
game is worth it if its line in the table lies beyond the curve of the likelihood model, whose temperature trades one
BLEU for the other (Caccia et al. 2020): so the last column is what the likelihood model's BLEU is at the temperature at
which its self-BLEU is that of the game, between two measured ones.

What was measured is kept in `--out`, by data, changes and seed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import time
from pathlib import Path

import numpy as np
import torch

from ganlib import shards
from ganlib.config import load_params, override
from ganlib.export import load_generator
from ganlib.metrics import copied, fd
from ganlib.metrics._neighbours import nearest
from ganlib.metrics.sequence._ngrams import bleu, distinct, self_bleu
from ganlib.spaces.sequence import ngrams
from ganlib.trainer import train
from pipelines.prepare import prepare

LINES = 1000
NLL_LINES = 2000
TEMPERATURES = {"before": (0.7, 0.8, 0.9, 1.0, 1.1), "after": (0.8, 1.0)}
ORDERS = {"surnames": (3, 4), "verses": (2, 3, 4)}


def measure(lines, data):
    """Of lines as networks see them `[N, L, V]`."""
    spec, space, real, train_features = data
    tokens = spec.kind.quantise(spec.sample, lines)
    features = space(lines)
    nearest_of = [nearest(x, train_features, 1)[0][:, 0] for x in (real["features"], features)]
    sides = [{"features": real["features"], "nearest": nearest_of[0]}, {"features": features, "nearest": nearest_of[1]}]
    found = {f"bleu_{n}": bleu(tokens, real["tokens"], n) for n in (2, 3, 4, 5)}
    found |= {f"self_bleu_{n}": self_bleu(tokens, n) for n in (2, 3, 4, 5)}
    return {**found, "distinct_2": distinct(tokens, 2), "fd": fd.compute(*sides), "copied": copied.compute(*sides)}


def real_lines(folder):
    spec = shards.read_spec(folder)
    space = ngrams.load(ngrams.Config(), spec, torch.device("cpu"))
    stored = {split: shards.read(folder, split, 10_000)["sample"] for split in ("train", "test")}

    def seen(rows):
        return spec.kind.decode(spec.sample, "sample", rows)

    features = torch.cat([space(seen(part)) for part in stored["train"].split(500)])
    test = stored["test"][:LINES]
    data = spec, space, {"tokens": test, "features": space(seen(test))}, features
    return data, seen(stored["train"][:LINES]), seen(stored["test"][:NLL_LINES])


def run(name, seed, changes, out):
    """`{before, after: {nll, temperature: figures}, floor: figures}` of one training."""
    params = load_params()
    params = params.model_copy(update={"data": name, "model": "relgan", "seed": seed})
    folder = out / name
    if not folder.exists():
        prepare(params.dataset, Path("data/raw", name), folder)
    kimg = changes.pop("kimg", 9.6)
    budget = {"kimg": kimg, "report_kimg": kimg / 3, "checkpoint_kimg": 1e9, "quality_samples": 0, "amp": False}
    params = override(params.model_copy(update={"train": params.train.model_copy(update=budget)}), changes)
    generators, rows = {}, []

    def report(row, made):
        rows.append(row)
        print(f"  {row['kimg']:.1f} kimg, {row['seconds']:.0f} s", flush=True)
        if made is not None:
            which = "before" if "fit_kimg" in row else "after"
            generators[which] = shutil.copytree(made / "generator", out / f"{name}-{which}", dirs_exist_ok=True)

    started = time.process_time()
    train(params, report, prepared=folder)
    found = {"cpu_seconds": round(time.process_time() - started), "rows": rows}
    data, floor, held_out = real_lines(folder)
    found["floor"] = measure(floor, data)
    for which, path in generators.items():
        generator = load_generator(path)
        answers = generator.answer({"sample": held_out})
        found[which] = {
            "nll": float(answers["nll"].mean()),
            "nll_per_token": float(answers["nll"].sum() / (answers["nll"] / answers["nll_per_token"]).sum()),
        }
        for temperature in TEMPERATURES[which]:
            lines = generator.sample(LINES, seed=seed, truncation=temperature)["sample"]
            found[which][str(temperature)] = measure(lines, data)
        spec = data[0]
        shown = spec.kind.quantise(spec.sample, generator.sample(12, seed=seed)["sample"]).numpy()
        found[which]["lines"] = spec.kind.present(spec.sample, "sample", shown)
    return found


def at_equal_variety(before, figures, n):
    """The likelihood model's BLEU where its self-BLEU is that of `figures`; NaN outside of what was measured."""
    curve = [(before[str(t)][f"self_bleu_{n}"], before[str(t)][f"bleu_{n}"]) for t in TEMPERATURES["before"]]
    varied, good = zip(*sorted(curve), strict=True)
    return float(np.interp(figures[f"self_bleu_{n}"], varied, good, left=np.nan, right=np.nan))


def mean(values, digits=3):
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def table(name, runs):
    orders = ORDERS.get(name, (2, 3, 4))
    heads = [f"BLEU-{n}" for n in orders] + [f"self-BLEU-{n}" for n in orders] + ["distinct-2", "FD", "copied"]
    keys = [f"bleu_{n}" for n in orders] + [f"self_bleu_{n}" for n in orders] + ["distinct_2", "fd", "copied"]
    print(f"\n| {name} | {' | '.join(heads)} | likelihood's BLEU-{orders[-1]} at equal self-BLEU |")
    print("|---" * (len(heads) + 2) + "|")
    print(f"| train's lines | {' | '.join(mean([run['floor'][key] for run in runs]) for key in keys)} | |")
    for which, label in (("before", "likelihood"), ("after", "game")):
        for temperature in TEMPERATURES[which]:
            of = [run[which][str(temperature)] for run in runs]
            same = [at_equal_variety(run["before"], x, orders[-1]) for run, x in zip(runs, of, strict=True)]
            last = mean(same) if which == "after" else ""
            print(f"| {label}, T {temperature} | {' | '.join(mean([x[key] for x in of]) for key in keys)} | {last} |")
    for key in ("nll", "nll_per_token"):
        before, after = ([run[which][key] for run in runs] for which in ("before", "after"))
        ratios = [b / a for a, b in zip(before, after, strict=True)]
        print(f"test {key}: likelihood {mean(before)}, after the game {mean(after)}: x {mean(ratios, 4)}")
    print(f"CPU seconds of a training: {mean([run['cpu_seconds'] for run in runs], 0)}")
    for which in ("before", "after"):
        print(f"{which}:", *runs[0][which]["lines"], sep="\n  ")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", default="surnames")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "-S", dest="changes", nargs="+", default=[], help="KEY=VALUE of the model's file, or kimg=VALUE"
    )
    parser.add_argument("--out", type=Path, default=Path(".ganlib/bench/text"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    changes = {key: json.loads(value) for key, _, value in (change.partition("=") for change in args.changes)}
    runs = []
    for seed in args.seeds:
        kept = args.out / f"{'_'.join([args.data, *args.changes]).replace('/', '')}_{seed}.json"
        if not kept.exists():
            print(f"{args.data}, seed {seed}", flush=True)
            kept.write_text(json.dumps(run(args.data, seed, dict(changes), args.out)))
        runs.append(json.loads(kept.read_text()))
    table(args.data, runs)


if __name__ == "__main__":
    main()
