"""Does `ganlib.health.Monitor` see trouble, and does it keep quiet where there is none? 44 short runs.

    python tests/bench/health.py [--rows DIR] [--seed 1000] [--jobs 2]
    python tests/bench/health.py --replay DIR          # the same tables from rows that were kept

Twenty healthy runs (digits at 16x16 and MNIST, DCGAN and perceptrons, five losses) and 24 sabotaged ones, each some
seconds on one thread. Rows are kept as JSON lines, a file a run, so that thresholds can be tried without training
again. The shipped thresholds were chosen on the runs of `--seed 0` and are judged on those of `--seed 1000`.

Not every sabotage does harm: some networks learn all the same. A run counts as harmed if its last Fréchet distance is
more than twice that of the healthy run of the same data, family and loss.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import math
import statistics
import tempfile
import time
from collections import Counter
from pathlib import Path
from unittest import mock

import torch
import torch.multiprocessing as mp

from ganlib import health, reference, shard_writer, shards, trainer
from ganlib.config import Params, load_params, override
from ganlib.game import map_tensors
from pipelines.prepare import prepare

ROOT = Path(__file__).parents[2]
HARMED = 2.0  # times the distance of the healthy run
FEW = 24  # different training examples of the data sets made of copies

# what each healthy run plays, and what keeps it healthy
LOSSES = {
    "non_saturating": {"r1": {"weight": 0.1, "every": 8}},
    "hinge": {"r1": {"weight": 0.1, "every": 8}},
    "wasserstein": {"gradient_penalty": {"weight": 10.0, "every": 2}},
    "least_squares": {"r1": {"weight": 0.1, "every": 8}},
    "relativistic": {"r1": {"weight": 0.5, "every": 4}, "r2": {"weight": 0.5, "every": 4}},
}

SABOTAGE = {
    "discriminator learns 100x faster": {"discriminator.lr": 1e-2, "generator.lr": 1e-4},
    "generator learns 100x faster": {"discriminator.lr": 1e-4, "generator.lr": 1e-2},
    "frozen discriminator": {"discriminator.lr": 1e-12},
    "latent of one dimension": {"network.latent_dim": 1},
    "latent times zero": {},
    f"{FEW} examples, duplicated": {},
}

DATA = ("digits", "mnist")
BUDGET = {"kimg": 48.0, "report_kimg": 2.4, "checkpoint_kimg": 1000.0, "quality_samples": 256}
WIDTH = {"dcgan": 16, "mlp": 256}


@dataclasses.dataclass(frozen=True)
class Case:
    sabotage: str
    """empty where healthy"""
    data: str
    family: str
    loss: str
    seed: int

    @property
    def name(self) -> str:
        return "-".join([self.sabotage.replace(" ", "_") or "healthy", self.data, self.family, self.loss])


def cases(seed: int) -> list[Case]:
    """All runs, each with a seed of its own from `seed` on."""
    numbers = itertools.count(seed)
    places = list(itertools.product(DATA, ("dcgan", "mlp")))
    found = [Case("", *place, loss, next(numbers)) for place in places for loss in LOSSES]
    losses = itertools.cycle(LOSSES)
    for sabotage in SABOTAGE:
        found += [Case(sabotage, *place, next(losses), next(numbers)) for place in places]
    return found


def folder_of(case: Case) -> str:
    return f"{case.data}-few" if "duplicated" in case.sabotage else case.data


def params_of(case: Case) -> Params:
    params = _params(case.data)
    params = params.model_copy(
        update={
            "model": case.family,
            "seed": case.seed,
            "train": params.train.model_copy(update=BUDGET),
        }
    )
    return override(
        params,
        {
            "batch": 32,
            "network.width": WIDTH[case.family],
            "generator.lr": 1e-3,
            "discriminator.lr": 1e-3,
            "loss": case.loss,
            "penalties": LOSSES[case.loss],
            **SABOTAGE.get(case.sabotage, {}),
        },
    )


def _params(data: str) -> Params:
    params = load_params(ROOT / "params.yaml")
    dataset = params.datasets[data]
    if data == "digits":  # 8x8, enlarged so that a DCGAN has two levels
        dataset = dataset.model_copy(update={"sample": dataset.sample.model_copy(update={"resolution": (16, 16)})})
    return params.model_copy(update={"data": data, "datasets": {**params.datasets, data: dataset}})


def prepare_all(root: Path) -> None:
    """`root/DATA` and `root/DATA-few` with `prepared` and `reference` in each."""
    for data in DATA:
        params = _params(data)
        prepare(params.dataset, ROOT / "data/raw" / data, root / data / "prepared")
        _few(root / data / "prepared", root / f"{data}-few" / "prepared")
        for name in (data, f"{data}-few"):
            prepared = root / name / "prepared"
            train, test = (shards.read(prepared, split) for split in ("train", "test"))
            spec = shards.read_spec(prepared)
            reference.build(root / name / "reference", spec, train, test, params.reference, params.seed)


def _few(prepared: Path, out: Path) -> None:
    """As many training examples as there were, but only `FEW` different ones; the test examples are as they were."""
    out.mkdir(parents=True)
    splits = {split: shards.read(prepared, split) for split in shards.SPLITS}
    copies = len(splits["train"]["label"]) // FEW * FEW
    kept = torch.arange(copies) % FEW
    train = {name: column[kept] for name, column in splits["train"].items()}
    # a row's hash decides its split: the upper half of the range trains
    spec, rows = shards.read_spec(prepared), []
    for high, part in ((b"\x00", splits["test"]), (b"\xff", train)):
        hashes = [high + i.to_bytes(15, "big") for i in range(len(part["label"]))]
        stored = [shard_writer.pack(spec.parts, {"sample": sample})[1] for sample in part["sample"].numpy()]
        rows.append(shard_writer.table(hashes, stored, part["label"].tolist()))

    def describe(found: shard_writer.Summary, training):
        return dataclasses.replace(spec, counts=found.counts, content_hash=found.content_hash)

    shard_writer.write(out, rows, spec.parts, describe, test_share=0.5, shard_mb=64.0)


def blind(build):
    """`build_game`, but the generator is given nothing but zeros for z."""

    def built(*args, **kwargs):
        game = build(*args, **kwargs)

        def deal(batch):
            dealt = game.deal(batch)
            return dataclasses.replace(dealt, inputs=map_tensors(torch.zeros_like, dealt.inputs))

        return dataclasses.replace(game, deal=deal)

    return built


def play(case: Case, root: Path) -> None:
    """One run; its rows go to a file."""
    out = root / "rows" / f"{case.name}-{case.seed}.jsonl"
    if out.exists():
        return
    torch.set_num_threads(1)
    rows: list[dict[str, float]] = []
    folder = root / "data" / folder_of(case)
    hook = mock.patch("ganlib.trainer.build_game", blind(trainer.build_game)) if "zero" in case.sabotage else None
    start, end = time.perf_counter(), ""
    with hook or mock.patch.dict({}):
        try:
            trainer.train(
                params_of(case),
                lambda row, _: rows.append(row),
                prepared=folder / "prepared",
                reference=folder / "reference",
            )
        except Exception as error:  # Diverged
            end = f"{type(error).__name__}: {error}"
    head = {**dataclasses.asdict(case), "end": end}
    out.parent.mkdir(exist_ok=True, parents=True)
    partial = out.with_suffix(".tmp")
    partial.write_text("".join(json.dumps(line) + "\n" for line in [head, *rows]))
    partial.rename(out)
    last = rows[-1] if rows else {}
    print(
        f"{time.perf_counter() - start:5.0f} s  {out.stem}  fd "
        f"{last.get('quality/classifier.fd', float('nan')):.1f} {end}",
        flush=True,
    )


def replay(lines: list[dict], without: tuple[str, ...] = ()) -> list[health.Alarm]:
    """The alarms that the shipped thresholds raise on a run's rows, each once."""
    monitor, raised = health.Monitor(health.HealthConfig()), {}
    for row in lines:
        for alarm in monitor.update({name: amount for name, amount in row.items() if name not in without}):
            raised.setdefault(alarm.kind, alarm)
    return list(raised.values())


def tell(rows: Path, seed: int, without: tuple[str, ...] = ()) -> None:
    """The tables, in Markdown, of the runs with seeds from `seed` on."""
    found: dict[str, list[tuple[dict, list[health.Alarm]]]] = {}
    for path in sorted(rows.glob("*.jsonl")):
        head, *lines = map(json.loads, path.read_text().splitlines())
        if head["seed"] < seed:
            continue
        alarms = replay(lines, without)
        head["fd"] = lines[-1].get("quality/classifier.fd", math.nan) if lines else math.nan
        if head["end"]:
            alarms.append(health.Alarm("diverged", lines[-1]["kimg"] if lines else 0.0, 0.0, head["end"]))
        found.setdefault(head["sabotage"], []).append((head, alarms))
    well = {of(head): head["fd"] for head, _ in found.get("", [])}
    for name, runs in found.items():
        for head, _ in runs:
            head["harmed"] = bool(name) and not head["fd"] <= HARMED * well.get(of(head), math.inf)
    print("| | runs | with an alarm | harmed | of these with an alarm | first alarm, kimg (median, latest) | kinds |")
    print("|---|---|---|---|---|---|---|")
    for sabotage in ["", *SABOTAGE]:
        runs = found.get(sabotage, [])
        harmed = [alarms for head, alarms in runs if head["harmed"]]
        first = [min(alarm.kimg for alarm in alarms) for _, alarms in runs if alarms]
        when = f"{statistics.median(first):.0f}, {max(first):.0f}" if first else ""
        kinds = Counter(alarm.kind for _, alarms in runs for alarm in alarms)
        listed = ", ".join(f"{kind} {count}" for kind, count in kinds.most_common())
        counts = f"{len(runs)} | {len(first)} | {len(harmed)} | {sum(map(bool, harmed))}"
        print(f"| {sabotage or 'healthy'} | {counts} | {when} | {listed} |")
    sabotaged = [(head, alarms) for name, runs in found.items() if name for head, alarms in runs]
    print(
        f"\nDetected {_share([alarms for _, alarms in sabotaged])} of the sabotaged, "
        f"{_share([alarms for head, alarms in sabotaged if head['harmed']])} of the harmed; "
        f"false alarms in {_share([alarms for _, alarms in found.get('', [])])} of the healthy.\n"
    )
    for sabotage, runs in found.items():
        for head, alarms in runs:
            if bool(sabotage) != bool(alarms):
                said = alarms[0].message if alarms else "nothing seen"
                where = f"{sabotage or 'healthy'}, {head['data']}, {head['family']}, {head['loss']}"
                print(f"- {where}, FD {head['fd']:.1f} at last, {well.get(of(head), math.nan):.1f} healthy: {said}")


def of(head: dict) -> tuple[str, ...]:
    """What a sabotaged run has in common with its healthy twin."""
    return head["data"], head["family"], head["loss"]


def _share(found: list[list]) -> str:
    return f"{sum(map(bool, found))} of {len(found)} ({statistics.mean(map(bool, found or [[]])):.0%})"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=Path, help="where rows are kept; a folder that is thrown away, unless given")
    parser.add_argument("--replay", type=Path, help="judge these rows instead of training")
    parser.add_argument("--without", default="", help="statistics to ignore, separated by commas")
    parser.add_argument("--seed", type=int, default=1000, help="seed of the first run")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = args.replay or args.rows or Path(scratch)
        if args.replay is None:
            if not (root / "data").exists():
                prepare_all(root / "data")
            with mp.get_context("spawn").Pool(args.jobs) as pool:
                pool.starmap(play, [(case, root) for case in cases(args.seed)], chunksize=1)
        tell(root / "rows", args.seed, tuple(args.without.split(",")))


if __name__ == "__main__":
    main()
