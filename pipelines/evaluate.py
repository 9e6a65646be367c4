"""Stage `evaluate`: how good the trained generator is. `python -m pipelines.evaluate`.

Writes `metrics.json` (numbers alone, in the form of `dvc metrics`), `about.json` (how to read them), `samples.png`,
`neighbours.png` (fakes, each with its nearest training examples; `neighbours.csv` of data that are read rather than
looked at) and, where labelled, `classes.csv`. Of a model that answers questions also `answers.png`,
test examples and anomalies next to those answers that look like samples, and the curve of each metric that is the area
under one. `report.html` shows all of it, with the model card, in one file.
"""

from __future__ import annotations

import csv
import functools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from ganlib import registry, shards
from ganlib.config import EvaluateConfig, Params
from ganlib.data._spec import Spec
from ganlib.device import default_device
from ganlib.evaluate import (
    SAMPLES,
    Features,
    Metrics,
    Samples,
    available_metrics,
    curves,
    evaluate,
    extract_features,
    sample_for_evaluation,
)
from ganlib.export import Generator, load_generator
from ganlib.metrics._types import Examples
from ganlib.reference import Reference
from pipelines._stage import EVALUATED, PREPARED, REFERENCE, TRAINED, StageError, atomic_folder, main, read_json
from pipelines.model_card import model_card
from pipelines.neighbours import nearest_examples, space_of_features
from pipelines.pictures import (
    COLUMNS,
    ROWS,
    TRUNCATIONS,
    interpolations,
    least_realistic,
    picture_of_samples,
    presented,
    truncated,
)
from pipelines.report import Exhibits, write_report

__all__ = ["show_samples", "stage"]

ANSWERED_COLUMNS = 2  # examples in a row of `answers.png`: a normal one and an anomaly
COPY = "what is given, or made of it without learning,"
BEFORE = "what the fitted generator made before the game"


def stage(params: Params) -> None:
    """Sample with the fixed seed, measure, draw. Raises StageError if there is no generator of these data."""
    cfg, spec = params.evaluate, shards.read_spec(PREPARED)
    reference = Reference.load(REFERENCE)
    reference.check(spec)
    try:
        generator = load_generator(TRAINED / "generator", default_device())
        fitted = load_generator(TRAINED / "before", default_device()) if (TRAINED / "before").is_dir() else None
    except ValueError as error:
        raise StageError(str(error)) from error
    size = min(cfg.num_samples, reference.size)
    available_metrics(
        reference, labelled=generator.conditional, answers=generator.answer_shapes()
    )  # refuses misspelt columns
    samples = sample_for_evaluation(generator, PREPARED, size, seed=params.seed, batch=cfg.batch)
    before = (
        None if fitted is None else sample_for_evaluation(fitted, PREPARED, size, seed=params.seed, batch=cfg.batch)
    )
    n = len(samples["sample"])
    if n < cfg.num_samples:
        print(f"{n} samples, not {cfg.num_samples}: there are no more real examples to judge them by")
    try:
        seen = extract_features(samples, reference, cfg.batch)
    except ValueError as error:
        raise StageError(f"{TRAINED / 'generator'}: {error}") from error
    metrics = evaluate(samples, reference, cfg, params.seed, seen, before)
    _check_finite(metrics)
    exhibits = Exhibits()
    with atomic_folder(EVALUATED) as folder:
        _write(folder / "metrics.json", metrics)
        about = _about(reference, generator, n, cfg, params.seed, fitted=before is not None)
        about |= {"not_measured": _not_measured(metrics, spec)}
        _write(folder / "about.json", about)
        preview = functools.partial(spec.kind.preview, spec.sample)
        picture_of_samples(generator, samples, PREPARED, params.seed, before).save(folder / "samples.png")
        show_samples(exhibits, folder / "samples.png", generator, samples, seen, reference, params.seed)
        neighbours = _with_nearest_training_examples(samples["sample"][:COLUMNS], reference, spec)
        shown = presented(spec, neighbours)
        if isinstance(shown, np.ndarray):
            preview({"sample": neighbours}, COLUMNS).save(folder / "neighbours.png")
            near = "Each row: a generated sample, then the training examples nearest to it in features."
            exhibits.add_picture("Nearest training examples", near, folder / "neighbours.png")
        else:
            rows = _numbered(shown)
            rows.to_csv(folder / "neighbours.csv", index=False)
            near = 'Rows with 0 under "nearest" are generated; below are the training examples nearest to them.'
            exhibits.add_table("Nearest training examples", near, rows[: 3 * COLUMNS])
        if reference.classifier is not None:
            _write_classes(folder / "classes.csv", seen[SAMPLES], reference)
        if answered := _answered(generator, spec):
            preview(answered, ANSWERED_COLUMNS).save(folder / "answers.png")
            exhibits.add_picture("Answers", f"In each group: {', '.join(answered)}.", folder / "answers.png")
        for name, curve in curves(samples, reference).items():
            _write_curve(folder / name, curve)
        write_report(
            folder / "report.html",
            generator=generator,
            card=model_card(generator, metrics, read_json(PREPARED / "card.json", {})),
            metrics=metrics,
            about=about,
            exhibits=exhibits,
            health=params.train.health,
            trained=TRAINED,
            prepared=PREPARED,
        )
    _print_metrics(metrics, n, cfg)


def _check_finite(metrics: Metrics) -> None:
    """Raise StageError for a figure that is not finite: JSON cannot hold it and the gate cannot compare it."""
    for section, named in metrics.items():
        for name, figures in named.items():
            if faults := [f"{key} {x}" for key, x in figures.items() if not math.isfinite(x)]:
                raise StageError(f"{section}.{name}: expected finite numbers, found {', '.join(faults)}")


def show_samples(
    exhibits: Exhibits,
    picture: Path,
    generator: Generator,
    samples: Samples,
    seen: Features,
    reference: Reference,
    seed: int,
) -> None:
    """Add pictures of samples to the report: by seed, at several truncations, interpolated, and the least realistic."""
    spec, kind = generator.spec, generator.spec.kind
    preview = functools.partial(kind.preview, spec.sample)
    first = presented(spec, samples["sample"][:COLUMNS])
    if isinstance(first, np.ndarray):
        exhibits.add_picture("Samples", _what_samples_show(generator, spec), picture)
    else:
        exhibits.add_table("Samples", "The first, not chosen.", _as_rows(first))
    if kind.compare is not None:
        exhibits.add_picture("Distributions", "Of generated samples, next to those of test examples.", picture)
    if (typical := truncated(generator, COLUMNS, seed)) is not None:
        levels = ["none" if at is None else f"{at:g}" for at in TRUNCATIONS]
        what = "The same seeds at each truncation: less is more typical and less varied, as the family truncates."
        if isinstance(shown := presented(spec, typical), np.ndarray):
            about = f"{what} From above: {', '.join(levels)}."
            exhibits.add_picture("By truncation", about, preview({"sample": typical}, COLUMNS))
        else:
            table = _as_rows(shown)
            table.insert(0, "truncation", np.repeat(levels, COLUMNS), allow_duplicates=True)
            exhibits.add_table("By truncation", what, table)
    if (between := interpolations(generator, 3, seed)) is not None:
        ways = "From left to right, from one latent to another, on the great circle."
        exhibits.add_picture("Interpolations", ways, preview({"sample": between}, COLUMNS))
    space = space_of_features(reference.spaces.values()).name
    rows = torch.tensor(least_realistic(seen[space]["features"], reference, COLUMNS))
    what = f"Of all samples measured, those farthest from any training example in {space}, the farthest first."
    worst = {name: column[rows] for name, column in samples.items() if name in spec.parts or name == "target"}
    if isinstance(shown := presented(spec, worst["sample"]), np.ndarray):
        order = {name: worst[name] for name in (*spec.given, "sample", "target") if name in worst}
        exhibits.add_picture("Least realistic", what, preview(order, COLUMNS // len(order) or 1))
    else:
        exhibits.add_table("Least realistic", what, _as_rows(shown))


def _what_samples_show(generator: Generator, spec: Spec) -> str:
    if generator.translates:
        return (
            "Test examples. In each group, in this order: what is given, a baseline without learning where the kind of "
            "data shows one, what a fitted generator made of it before the game where there was one, what the "
            "generator makes of it, and the target."
        )
    by_class = generator.conditional and spec.kind.is_picture
    return "Not chosen. " + (f"A row for each class: {', '.join(spec.classes[:ROWS])}." if by_class else "")


def _about(
    reference: Reference, generator: Generator, n: int, cfg: EvaluateConfig, seed: int, *, fitted: bool
) -> dict[str, Any]:
    """What a reader of metrics.json should know; text and settings, so not in it."""
    return {
        "samples": n,
        "seed": seed,
        "intervals": {"confidence": cfg.confidence, "halves": cfg.resamples},
        "floor": f"the first {n} training examples in the fakes' place; of answers, in test examples' place",
        **({"copy": f"{COPY} in the fakes' place"} if reference.spec.kind.naive is not None else {}),
        **({"before": f"{BEFORE}, in the fakes' place"} if fitted else {}),
        "spaces": reference.about["spaces"],
        "classifier": reference.about["classifier"],
        "generator": generator.about,
        "content_hash": reference.spec.content_hash,
        "metrics": {
            name: {"better": module.DIRECTION, "meaning": (module.__doc__ or "").split("\n")[0]}
            for name, module in registry.load_all("metrics", reference.spec.kind.LOOKS).items()
        },
    }


def _not_measured(metrics: Metrics, spec: Spec) -> dict[str, list[str]]:
    """Metrics that no section has, each with the columns that it needs; no section has all of these."""
    found = {name for section in metrics.values() for name in section}
    return {
        name: [*module.NEEDS]
        for name, module in registry.load_all("metrics", spec.kind.LOOKS).items()
        if found.isdisjoint({name, *getattr(module, "ALIASES", {}).values()})
    }


def _with_nearest_training_examples(fakes: Tensor, reference: Reference, spec: Spec) -> Tensor:
    """Rows of one fake and the training examples nearest to it, nearest first."""
    space = space_of_features(reference.spaces.values())
    stored = shards.stored(PREPARED, "train", limit=len(space.train))["sample"]
    _, found = nearest_examples(fakes, space, stored, COLUMNS - 1)
    near = spec.kind.decode(spec.sample, "sample", found.flatten(0, 1)).unflatten(0, found.shape[:2])
    return torch.cat([fakes[:, None], near], dim=1).flatten(0, 1)


def _as_rows(shown: Any) -> pd.DataFrame:
    return shown if isinstance(shown, pd.DataFrame) else pd.DataFrame({"sample": shown})


def _numbered(shown: Any) -> pd.DataFrame:
    """A row for each fake (`nearest` 0) and each of the training examples nearest to it, nearest first."""
    rows = _as_rows(shown)
    rows.insert(0, "nearest", np.arange(len(rows)) % COLUMNS, allow_duplicates=True)
    rows.insert(0, "fake", np.arange(len(rows)) // COLUMNS, allow_duplicates=True)
    return rows


def _answered(generator: Generator, spec: Spec) -> dict[str, Tensor]:
    """Test examples and anomalies in turns, all their parts, and the answers that look like samples; empty where there
    are none such."""
    pictures = [name for name, shape in generator.answer_shapes().items() if shape == spec.shape]
    if not pictures:
        return {}
    splits = ["test", *([shards.ANOMALIES] if shards.ANOMALIES in spec.counts else [])]
    n = min(COLUMNS, *(spec.counts[split] for split in splits))
    columns = [shards.read(PREPARED, split, n) for split in splits]
    stored = {name: torch.stack([of[name] for of in columns], 1).flatten(0, 1) for name in columns[0]}
    parts = {name: spec.kind.decode(spec.sample, name, stored[name]) for name in spec.parts}
    conditions = generator.conditioned_on if len(splits) == 1 else ()  # anomalies are of no class that the model knows
    answers = generator.answer({**parts, **{name: stored[name] for name in conditions}})
    shown = parts if spec.kind.ALIGNED else {name: parts[name] for name in spec.given}
    return {**shown, **{name: answers[name] for name in pictures}}


def _write_curve(path: Path, curve: dict[str, list[float]]) -> None:
    """As a table and as a picture: the second column over the first."""
    from matplotlib.figure import Figure

    (x, xs), (y, ys) = curve.items()
    with path.with_suffix(".csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerows([(x, y), *((round(a, 5), round(b, 5)) for a, b in zip(xs, ys, strict=True))])
    figure = Figure(figsize=(4, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(xs, ys)
    axes.plot([0, 1], [0, 1], ":", color="grey")
    axes.set(xlabel=x.replace("_", " "), ylabel=y.replace("_", " "), title=path.name)
    figure.savefig(path.with_suffix(".png"), dpi=100)


def _write_classes(path: Path, fakes: Examples, reference: Reference) -> None:
    """For each class: its share of the test examples and of the fakes, as the classifier sees them, and how many of
    the fakes that were asked to be of it are."""
    classes = reference.spec.classes
    real = reference.predict(reference.spaces["classifier"].test)
    right = fakes["label"] == fakes["predicted"] if "label" in fakes else None
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["class", "real_share", "fake_share", *([] if right is None else ["label_accuracy"])])
        for label, name in enumerate(classes):
            shares = ((predicted == label).double().mean() for predicted in (real, fakes["predicted"]))
            row: list[object] = [name, *(round(float(share), 4) for share in shares)]
            if right is not None:
                asked = right[fakes["label"] == label]
                row.append(round(float(asked.double().mean()), 4) if len(asked) else "")
            rows.writerow(row)


def _write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _print_metrics(metrics: Metrics, n: int, cfg: EvaluateConfig) -> None:
    captions = {
        "floor": "training data in the samples' place",
        "copy": f"{COPY} in their place",
        "before": f"{BEFORE}, in their place",
    }
    baselines = [name for name in captions if any(name in f for of in metrics.values() for f in of.values())]
    caption = "; ".join(f"{name}: {captions[name]}" for name in baselines)
    table = Table(title=f"{n} samples against test data", caption=caption)
    table.add_column("metric", no_wrap=True)
    for column in ("value", f"{cfg.confidence:.0%} interval", *baselines):
        table.add_column(column, justify="right", no_wrap=True)
    for section, named in metrics.items():
        table.add_row(f"[bold]{section}[/bold]")
        for name, found in named.items():
            interval = f"{found['low']:.3g} to {found['high']:.3g}"
            others = [f"{found[baseline]:.3g}" if baseline in found else "" for baseline in baselines]
            table.add_row(f"  {name}", f"{found['value']:.3g}", interval, *others)
        table.add_section()
    Console().print(table)


if __name__ == "__main__":
    main(stage)
