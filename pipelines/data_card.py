"""The data card: what was prepared, in figures, notes and a picture."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ganlib import shard_writer, shards
from ganlib.config import DatasetConfig
from ganlib.data._classes import MISSING_WORDS
from ganlib.data._kind import Kind
from ganlib.data._spec import NO_LABEL, Spec
from ganlib.sources._source import Source, listed
from pipelines.budget import resolve_budget

__all__ = ["data_card"]

_LOOKED_AT, _LOOKED_AT_BYTES = 10_000, 64 * 2**20  # training data behind the card's statistics and picture
_DARK = 20  # of 255; 12 bits in a type of 16 are at most 16, and resizing overshoots
_PICTURE = (1280, 1280)  # pixels, at most


def data_card(
    folder: Path,
    kind: Kind,
    cfg: DatasetConfig,
    source: Source,
    found: shard_writer.Summary,
    labels: tuple[int | None, ...],
    normals: tuple[str, ...],
    *,
    items: int,
    rejected: int,
) -> dict[str, Any]:
    """The data card, as plain values; writes `card.png`. `labels` are those of the source's classes, of which `normals`
    are trained on."""
    spec = shards.read_spec(folder)
    in_train, in_test = found.classes["train"], found.classes["test"]
    looked_at = min(_LOOKED_AT, max(10, _LOOKED_AT_BYTES // spec.stored_bytes))
    columns = shards.read(folder, "train", looked_at)
    shown = {
        name: kind.decode(spec.sample, name, _grid(columns[name], columns.get("label"), spec)) for name in spec.parts
    }
    picture = kind.preview(spec.sample, shown, 10)
    picture.thumbnail(_PICTURE)
    picture.save(folder / "card.png")
    total = sum(spec.counts.values())
    anomalies = _anomalies(source, spec, labels, normals)
    described = kind.describe(spec.sample, {name: columns[name].numpy() for name in spec.parts})
    notes = _notes(cfg, source, spec, found, columns, normals, [name for _, name in anomalies], described)
    return {
        "source": {**cfg.source.model_dump(mode="json"), "about": source.about},
        "licence": cfg.licence,
        "sample": spec.sample.model_dump(mode="json"),
        "shape": list(spec.shape),
        **({"given": {name: list(spec.parts[name].shape) for name in spec.given}} if spec.given else {}),
        "items": items,
        **({"passed_over": dict(source.passed_over)} if source.passed_over else {}),
        "rejected": rejected,
        "duplicates": found.duplicates,
        "duplicates_with_another_label": found.conflicts,
        "examples": total,
        "splits": {
            split: {
                "examples": count,
                "share": round(count / total, 4),
                "classes": {
                    name: found.classes[split][label]
                    for label, name in (anomalies if split == shards.ANOMALIES else enumerate(spec.classes))
                },
            }
            for split, count in spec.counts.items()
        },
        "test_share_of_class": {
            name: round(in_test[label] / (in_test[label] + in_train[label]), 4)
            for label, name in enumerate(spec.classes)
        },
        **({"attributes": _attributes(columns, spec)} if spec.attributes else {}),
        **described,
        "budget": resolve_budget(cfg.budget, spec),
        "content_hash": spec.content_hash,
        "made_with": {name: version(name) for name in ("pillow", "pyarrow")},
        "notes": notes,
    }


def _notes(
    cfg: DatasetConfig,
    source: Source,
    spec: Spec,
    found: shard_writer.Summary,
    columns: dict[str, Tensor],
    normals: tuple[str, ...],
    anomalies: list[str],
    described: dict[str, Any],
) -> list[str]:
    """What a user should know of the data, in sentences; takes those of the kind out of `described`."""
    notes = [*source.notes]
    if source.passed_over:
        passed = ", ".join(f"{count} {what}" for what, count in source.passed_over.items())
        notes.append(f"Files that are no items: {passed}.")
    classes = [*normals, *anomalies]
    if len(classes) == 1:
        notes.append(f"All examples are of one class, {classes[0]!r}: treated as unlabelled.")
    if called := [name for name in classes if name in MISSING_WORDS]:
        notes.append(
            f"A class is called {', '.join(map(repr, called))}: if that means a missing label, leave the label empty."
        )
    if cfg.normal:
        notes.append(
            f"Normal is {', '.join(normals)}; {spec.counts[shards.ANOMALIES]} examples of other classes are anomalies, "
            "in a split of their own: never trained on, and no part of what samples are compared with."
        )
    if spec.unlabelled:
        notes.append(f"{spec.unlabelled} examples have no label ({NO_LABEL}): no model can be conditioned on classes.")
    for name in spec.parts if "levels" in described else ():
        if (top := int(columns[name].max())) <= _DARK:
            notes.append(
                f"Pixels of {name!r} are at most {top} of 255 in the training examples looked at: almost black. "
                "Integers of 16 bits are read as 0 to 65535: save those of fewer bits as 8 bits, or scaled to all 16."
            )
    for name, std, mean in zip(spec.attributes, found.attributes.std, spec.attribute_means, strict=True):
        if not std:
            notes.append(f"Attribute {name!r} is {mean:g} in all training examples: it tells nothing.")
    notes += described.pop("notes", ())
    in_test = found.classes["test"]
    if lacking := [name for label, name in enumerate(spec.classes) if not in_test[label]]:
        notes.append(f"Classes without a test example: {listed(lacking)}.")
    return notes


def _anomalies(
    source: Source, spec: Spec, labels: tuple[int | None, ...], normals: tuple[str, ...]
) -> list[tuple[int, str]]:
    """Labels and names of the classes of anomalies."""
    named = sorted((label, name) for label, name in zip(labels, source.classes, strict=True) if label is not None)
    return named[len(normals) :] if shards.ANOMALIES in spec.counts else []


def _attributes(columns: dict[str, Tensor], spec: Spec) -> dict[str, dict[str, float]]:
    """Mean, deviation and range of each, of the training examples looked at."""
    found = {}
    for name, values in zip(spec.attributes, columns["attributes"].double().unbind(1), strict=True):
        figures = {"mean": values.mean(), "std": values.std(), "min": values.min(), "max": values.max()}
        found[name] = {key: round(float(value), 5) for key, value in figures.items()}
    return found


def _grid(stored: Tensor, labels: Tensor | None, spec: Spec) -> Tensor:
    """What to look at, ten a row: a row of labelled pictures for each of the first 20 classes, else the first 100."""
    if labels is None or not spec.kind.is_picture:
        return stored[:100]
    rows = []
    for label in range(min(20, len(spec.classes))):
        row = stored[labels == label][:10]
        rows.append(torch.cat([row, row.new_zeros((10 - len(row), *row.shape[1:]))]))
    return torch.cat(rows)
