"""`ganlib drift`: are new data still what the champion was trained on?

New examples take the place of fakes: each metric compares them with test examples, as `evaluate` compares samples, and
its floor is what as many training examples score there. They are encoded as the champion's data were: its resolution,
its vocabulary, its columns; what cannot be is counted as rejected.
"""

from __future__ import annotations

import contextlib
import heapq
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ganlib import registry, shard_writer
from ganlib.config import DatasetConfig, Params
from ganlib.data import _kind
from ganlib.data._spec import Spec
from ganlib.evaluate import Metrics, evaluate, metrics_of_section
from ganlib.reference import Reference
from ganlib.sources._source import SourceError
from pipelines._stage import REFERENCE, StageError
from pipelines.gate import metric_of

__all__ = ["Drift", "is_drift", "measure_drift"]

LEAST = 50
"""new examples; fewer are an error"""


@dataclass(frozen=True)
class Drift:
    drifted: bool
    metric: str
    """`section.metric` that decides"""
    examples: int
    """that were compared"""
    items: int
    rejected: int
    metrics: Metrics


def measure_drift(params: Params, data: str, spec: Spec) -> Drift:
    """Compare `data` with what `spec` describes: a name in `params/datasets`, a folder like that of `params.data`, or
    `NAME=FOLDER`, a folder like that of another data set.

    They drifted where kid in the first space, which sees any difference of two distributions, or the gate's metric, if
    data have such a figure, is worse than the floor by more than sqrt(2) of its interval's half width: that of a
    difference of two such figures. Raises StageError where the data cannot be read, are too few, or the reference is of
    other data.
    """
    if not (REFERENCE / "reference.json").is_file():
        raise StageError(f"{REFERENCE}: not here; `dvc pull` or `dvc repro reference` brings it")
    reference = Reference.load(REFERENCE)
    if reference.spec.content_hash != spec.content_hash:
        raise StageError(f"{REFERENCE}: of other data than the model was trained on")
    most = min(params.evaluate.num_samples, reference.size)
    samples, items, rejected = _encoded(*_source_of(params, data), spec, most)
    if len(samples) < LEAST:
        raise StageError(f"{data}: expected at least {LEAST} examples, found {len(samples)} ({rejected} rejected)")
    metrics = evaluate({"sample": samples}, reference, params.evaluate, params.seed)
    known = [f"{section}.{name}" for section, named in metrics.items() for name in named]
    kid = metric_of(params.gate.model_copy(update={"metric": None}), known)
    deciding = [kid] if params.gate.metric not in known else [params.gate.metric, kid]
    drifted = [metric for metric in deciding if _is_worse(metric, metrics, spec.kind.LOOKS)]
    return Drift(bool(drifted), (drifted or deciding)[0], len(samples), items, rejected, metrics)


def _is_worse(metric: str, metrics: Metrics, looks: str) -> bool:
    section, _, name = metric.rpartition(".")
    return is_drift(metrics[section][name], metrics_of_section(section, looks)[name].DIRECTION)


def is_drift(figures: Mapping[str, float], direction: str) -> bool:
    """Whether a metric's `value` is worse than its `floor` by more than sqrt(2) of the half width of its interval, or
    one of them is not a number."""
    worse = (figures["value"] - figures["floor"]) * (1 if direction == "lower" else -1)
    halfwidth = max(figures["high"] - figures["value"], figures["value"] - figures["low"])
    return not worse <= math.sqrt(2) * halfwidth


def _source_of(params: Params, data: str) -> tuple[DatasetConfig, Path]:
    """How the data are read, and the folder that they are read from."""
    if data in params.datasets:
        return params.datasets[data], Path("data/raw", data)
    read_as, equals, folder = data.rpartition("=")
    name = read_as if equals else params.data
    if name not in params.datasets or not Path(folder).is_dir():
        near = registry.nearest(data, params.datasets)
        known = ", ".join(params.datasets)
        raise StageError(f"{data}: neither a data set{near}, a folder nor NAME=FOLDER; known: {known}")
    cfg = params.datasets[name]
    with contextlib.suppress(SourceError, OSError):  # as of a source that looks for files
        registry.load("sources", cfg.source.name).load(cfg.source, Path(folder, "no such folder"))  # type: ignore[attr-defined]
        raise StageError(
            f"{data}: {name} comes with a package and reads no folder; expected NAME=FOLDER of one that does"
        )
    return cfg, Path(folder)


def _encoded(cfg: DatasetConfig, raw: Path, spec: Spec, most: int) -> tuple[torch.Tensor, int, int]:
    """Samples of the source's items, as networks see them, how many items there are, and how many were rejected.

    If there are more than `most`, those with the largest hashes are taken. That is as good as a random choice, and for
    data that the model was trained on it contains no test example.
    """
    kind, offered = spec.kind, _kind.load(cfg.sample.kind)  # type: ignore[attr-defined]
    if kind.PAYLOADS != offered.PAYLOADS:
        raise StageError(f"{raw}: data of {offered.PAYLOADS}, expected {kind.PAYLOADS}, which the model makes")
    kept: list[tuple[bytes, int, Any]] = []
    items = rejected = 0
    try:
        source = registry.load("sources", cfg.source.name).load(cfg.source, raw.resolve())  # type: ignore[attr-defined]
        for part in source.parts:
            for item in part():
                items += 1
                try:
                    if item.payload is None:
                        raise ValueError(item.reason)
                    example = kind.encode(spec.sample, item.payload)
                except ValueError:
                    rejected += 1
                    continue
                digest, _ = shard_writer.pack(spec.parts, example)
                entry = (digest, items, example["sample"])
                heapq.heappush(kept, entry) if len(kept) < most else heapq.heappushpop(kept, entry)
    except SourceError as error:
        raise StageError(str(error)) from error
    if not kept:
        return torch.empty(0, *spec.shape), items, rejected
    stored = torch.from_numpy(np.stack([sample for _, _, sample in sorted(kept, key=lambda entry: entry[:2])]))
    return kind.decode(spec.sample, "sample", stored), items, rejected
