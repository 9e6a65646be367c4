"""Pictures of what a generator makes, by the functions of its kind of data: for the outputs of `evaluate`, and for the
comparison with the champion that `register` adds to the report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from ganlib import shards
from ganlib.data._spec import Spec
from ganlib.evaluate import Samples
from ganlib.export import Generator
from ganlib.metrics._neighbours import nearest
from ganlib.reference import Reference
from pipelines.neighbours import space_of_features

__all__ = [
    "COLUMNS",
    "ROWS",
    "TRUNCATIONS",
    "interpolations",
    "least_realistic",
    "picture_of_samples",
    "presented",
    "truncated",
]

COLUMNS = 10  # of pictures
ROWS = 20  # classes shown, at most
DRAWN = 10_000  # examples behind a picture of distributions, at most
STEPS = 10  # of an interpolation
TRUNCATIONS = (None, 0.7, 0.5, 0.3)


def picture_of_samples(
    generator: Generator, samples: Samples, prepared: Path, seed: int, other: Samples | None = None
) -> Image:
    """Samples as the kind of data shows them best: test examples with what is made of them, and, before that, what
    `other` has for them; how samples are distributed, next to test examples; or a row for each of the first classes,
    of which `samples`, in the shares of the data, may have few."""
    spec = generator.spec
    if spec.given:
        columns = {
            **{name: samples[name] for name in spec.given},
            **({} if other is None else {"other": other["sample"]}),
            **{name: samples[name] for name in ("sample", "target") if name in samples},
        }
        return _preview(spec, {name: column[: COLUMNS * COLUMNS] for name, column in columns.items()}, COLUMNS // 2)
    if spec.kind.compare is not None:
        return _compared(samples, spec, prepared)
    shown = samples["sample"][: COLUMNS * COLUMNS]
    if "label" in samples and spec.kind.is_picture:
        labels = torch.arange(min(ROWS, len(spec.classes))).repeat_interleave(COLUMNS)
        shown = generator.sample(len(labels), seed=seed, label=labels, batch=COLUMNS)["sample"]
    return _preview(spec, {"sample": shown}, COLUMNS)


def presented(spec: Spec, samples: Tensor) -> Any:
    """Samples `[N, ...]` as a consumer gets them: an array, a DataFrame, a list of strings."""
    return spec.kind.present(spec.sample, "sample", spec.kind.quantise(spec.sample, samples).numpy())


def truncated(generator: Generator, n: int, seed: int) -> Tensor | None:
    """`n` samples at each of `TRUNCATIONS`, the same ones; None of generators that know none."""
    if generator.translates:
        return None
    try:
        return torch.cat([generator.sample(n, seed=seed, truncation=at)["sample"] for at in TRUNCATIONS])
    except ValueError:
        return None


def interpolations(generator: Generator, rows: int, seed: int) -> Tensor | None:
    """`rows` times `STEPS` pictures on the great circle between two latents of one class; None where samples are no
    pictures, or are made of something."""
    if generator.translates or not generator.spec.kind.is_picture:
        return None
    made = []
    for row in range(rows):
        condition: dict[str, Any] = {name: x[row] for name, x in generator.conditions(rows).items()}
        if "label" in condition:
            condition["label"] = int(condition["label"])
        made.append(generator.interpolate([2 * row, 2 * row + 1], STEPS - 1, seed=seed, **condition))
    return torch.cat(made)


def least_realistic(features: Tensor, reference: Reference, n: int) -> list[int]:
    """The rows of the `n` samples whose `features` are the farthest from those of any training example, farthest
    first."""
    distances, _ = nearest(features, space_of_features(reference.spaces.values()).train, 1)
    rows: list[int] = distances[:, 0].argsort(descending=True, stable=True)[:n].tolist()
    return rows


def _preview(spec: Spec, samples: Mapping[str, Tensor], columns: int) -> Image:
    return spec.kind.preview(spec.sample, samples, columns)


def _compared(samples: Samples, spec: Spec, prepared: Path) -> Image:
    """How the samples are distributed, next to as many test examples, or all if there are fewer."""
    n = min(len(samples["sample"]), DRAWN)
    chunks = samples["sample"][:n].split(shards.rows_per_chunk(spec.size))
    made = torch.cat([spec.kind.quantise(spec.sample, chunk) for chunk in chunks])
    real = shards.stored(prepared, "test", limit=n)["sample"][:n]
    assert spec.kind.compare is not None
    return spec.kind.compare(spec.sample, made.numpy(), real.numpy())
