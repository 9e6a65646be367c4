"""Samples for requests, of many requests in one run of the network.

A sample depends on its own request alone, not on the other requests of the run: see `Generator.sample_rows`.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ganlib.data._classes import class_name, label_of
from ganlib.export import Generator
from ganlib.game import Sample, map_tensors, sample_of, tensors_of
from ganlib.interpolation import slerp
from ganlib.noise import Noise
from ganlib.scratch import scratch_folder
from pipelines.attributes import attributes_of, numbers_of
from pipelines.serve.models import Served
from pipelines.serve.schemas import Answers, Interpolation, Neighbours, Point, Samples, Walk
from pipelines.serve.training_data import TrainingData

__all__ = [
    "Expired",
    "Found",
    "Job",
    "Rows",
    "Work",
    "answers",
    "answers_of_file",
    "interpolation",
    "labels_of",
    "neighbours",
    "run",
    "samples",
    "translated",
    "walk",
]

Found = dict[str, NDArray[np.generic]]
"""arrays by name, of what is no sample that was asked for"""


class Expired(Exception):
    """A request waited for longer than it may, and nothing was done for it."""


@dataclass(frozen=True)
class Rows:
    """Samples `indices` of a seed, with their conditions and given parts, as `Generator.sample_rows` takes them."""

    seed: int
    indices: range
    conditions: Mapping[str, Tensor]
    truncation: float | None = None
    given: Mapping[str, Tensor] = field(default_factory=dict)


Work = Callable[[Generator], Rows | Tensor | Found]
"""what a job asks for, or, where others cannot join the run, the samples themselves, or what was found"""


@dataclass(frozen=True, eq=False)
class Job:
    served: Served
    n: int
    work: Work
    expires: float
    """`time.monotonic()` until when it has to begin"""


def run(jobs: Sequence[Job], seconds: float) -> list[NDArray[np.generic] | Found | Exception]:
    """What each job asked for: samples as they are stored, `[n, *stored]`, what was found, or why there is nothing:
    ValueError, TooSlow or Expired, or another exception, which is a fault of ours: what fails is that job alone.

    Jobs for one version with one truncation share runs of the network, which take `seconds` at most.
    """
    found = dict[int, NDArray[np.generic] | Found | Exception]()
    together = dict[tuple[int, float | None], list[tuple[int, Rows]]]()
    now = time.monotonic()
    for number, job in enumerate(jobs):
        generator = job.served.generator
        job.served.limit.start(seconds)
        try:
            if job.expires < now:
                raise Expired
            asked = job.work(generator)
            if isinstance(asked, Rows):
                together.setdefault((id(job.served), asked.truncation), []).append((number, asked))
            else:
                found[number] = asked if isinstance(asked, dict) else _stored(generator, asked)
        except Exception as error:
            found[number] = error
    for group in together.values():
        numbers, rows = zip(*group, strict=True)
        served = jobs[numbers[0]].served
        served.limit.start(seconds)
        try:
            stored = _stored(served.generator, _sampled(served.generator, rows))
        except Exception as error:
            found |= dict.fromkeys(numbers, error)
            continue
        ends = np.cumsum([len(one.indices) for one in rows])[:-1]
        found |= zip(numbers, np.split(stored, ends), strict=True)
    return [found[number] for number in range(len(jobs))]


def _sampled(generator: Generator, rows: Sequence[Rows]) -> Tensor:
    def concatenated(of_each: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        return {name: torch.cat([one[name] for one in of_each]) for name in of_each[0]}

    return generator.sample_rows(
        [one.seed for one in rows for _ in one.indices],
        [index for one in rows for index in one.indices],
        given=concatenated([one.given for one in rows]),
        **concatenated([one.conditions for one in rows]),
        truncation=rows[0].truncation,
    )


def _stored(generator: Generator, made: Tensor) -> NDArray[np.generic]:
    spec = generator.spec
    stored: NDArray[np.generic] = spec.kind.quantise(spec.sample, made).numpy()
    return stored


def samples(asked: Samples) -> Work:
    """Raises ValueError, when it is run, for what the model cannot make."""

    def work(generator: Generator) -> Rows | Tensor:
        if asked.where:
            return _rows_where(generator, asked)
        indices = range(asked.first, asked.first + asked.n)
        conditions = _conditions_of(generator, indices, asked.label, asked.attributes)
        return Rows(asked.seed, indices, conditions, asked.truncation)

    return work


def _rows_where(generator: Generator, asked: Samples) -> Tensor:
    if asked.first:
        raise ValueError("where: cannot be combined with first")
    rows = generator.stream(
        asked.n,
        where=generator.where(asked.where),
        seed=asked.seed,
        label=asked.label,
        attributes=asked.attributes or None,
        truncation=asked.truncation,
    )
    return torch.cat(list(rows))


def interpolation(asked: Interpolation) -> Work:
    """Inputs on the great circle between those of both ends (slerp, White 2016), attributes on the line.

    Raises ValueError, when it is run, for ends of two classes: classes are not interpolated.
    """

    @torch.inference_mode()
    def work(generator: Generator) -> Tensor:
        first, last = (_inputs(generator, point, asked.truncation) for point in (asked.start, asked.end))
        at_start, at_end = (_conditions_at(generator, point) for point in (asked.start, asked.end))
        if "label" in at_start and not torch.equal(at_start["label"], at_end["label"]):
            raise ValueError("start, end: they are of two classes; expected one label")
        made = []
        for share in torch.linspace(0.0, 1.0, asked.steps):
            conditions = dict(at_start)
            if "attributes" in at_start:
                conditions["attributes"] = torch.lerp(at_start["attributes"], at_end["attributes"], share.double())
            inputs = _joined(first, last, functools.partial(slerp, share=share))
            made.append(_made_of(generator, inputs, conditions))
        return torch.cat(made)

    return work


def walk(asked: Walk, served: Served) -> Work:
    """Raises ValueError, when it is run, for a direction that the model does not have."""

    @torch.inference_mode()
    def work(generator: Generator) -> Tensor:
        directions, conditions = served.directions, _conditions_at(generator, asked.point)
        if asked.direction >= len(directions):
            raise ValueError(f"direction: expected 0 to {len(directions) - 1}, found {asked.direction}")
        point, direction = _inputs(generator, asked.point, None), directions[asked.direction]
        made = []
        for far in torch.linspace(-asked.reach, asked.reach, asked.steps).tolist():
            inputs = _joined(point, direction, functools.partial(torch.add, alpha=far))
            made.append(_made_of(generator, inputs, conditions))
        return torch.cat(made)

    return work


def neighbours(asked: Neighbours, data: TrainingData) -> Work:
    """`examples`, as they are stored, and their `distances`. Raises ValueError, when it is run, for a model of other
    data."""

    @torch.inference_mode()
    def work(generator: Generator) -> Found:
        if not data.are_of(generator.spec):
            raise ValueError("neighbours: the training data that are here are not those of this version")
        point = asked.point
        conditions = _conditions_at(generator, point)
        made = generator.sample_rows([point.seed], [point.index], given={}, **conditions, truncation=asked.truncation)
        distances, stored = data.nearest(made, asked.n)
        return {"examples": stored[0].numpy(), "distances": distances[0].numpy()}

    return work


def answers(asked: Answers) -> Work:
    """What the model answers about examples, `[n]` or `[n, ...]` each; one that looks like a sample as it is stored.

    Raises ValueError, when it is run, for what is no such example."""

    def work(generator: Generator) -> Found:
        names = [*generator.spec.parts]
        if len(names) > 1 and not all(isinstance(one, dict) and one.keys() >= {*names} for one in asked.examples):
            raise ValueError(f"examples: expected objects with {', '.join(names)}")
        raw = asked.examples if len(names) > 1 else [{"sample": one} for one in asked.examples]
        try:
            parts = {name: generator.take(name, [one[name] for one in raw]) for name in names}
        except ValueError as error:
            raise ValueError(f"examples: {error}") from error
        return _answered(generator, parts, asked.label)

    return work


def answers_of_file(file: bytes, label: str | int | None) -> Work:
    """As `answers`, about one example that is read from a file."""

    def work(generator: Generator) -> Found:
        if len(generator.spec.parts) > 1:
            raise ValueError(f"examples consist of {', '.join(generator.spec.parts)}; expected JSON with all of them")
        return _answered(generator, {"sample": _decode_upload(generator, "sample", file)}, label)

    return work


def _answered(generator: Generator, parts: dict[str, Tensor], label: str | int | None) -> Found:
    index = _label(generator, label)
    if index is not None:
        parts["label"] = torch.full((len(parts["sample"]),), index)
    spec, found = generator.spec, generator.answer(parts)
    like_sample = {name for name, answer in found.items() if tuple(answer.shape[1:]) == spec.shape}
    return {name: _stored(generator, x) if name in like_sample else x.numpy() for name, x in found.items()}


def _made_of(generator: Generator, inputs: Sample, conditions: Mapping[str, Tensor]) -> Tensor:
    """The generator's output for the inputs and conditions of one sample, `[1, *shape]`."""
    cond = next(iter(conditions.values()), None)
    if "attributes" in conditions:
        cond = generator.spec.standardise(conditions["attributes"])
    cond = None if cond is None else cond.to(generator.device)
    made = generator.game.generator(map_tensors(lambda x: x.to(generator.device), inputs), cond)
    return sample_of(made).float().cpu()


def _joined(first: Sample, second: Sample, fn: Callable[[Tensor, Tensor], Tensor]) -> Sample:
    """`fn` of each tensor of two samples of one structure."""
    others = iter(tensors_of(second))
    return map_tensors(lambda x: fn(x, next(others)), first)


def _conditions_at(generator: Generator, point: Point) -> dict[str, Tensor]:
    return _conditions_of(generator, range(point.index, point.index + 1), point.label, point.attributes)


def _inputs(generator: Generator, point: Point, truncation: float | None) -> Sample:
    """The generator's inputs of one sample, `[1, ...]` each."""
    index = slice(point.index, point.index + 1)
    return generator.game.ask({}, Noise(point.seed, "sample", size=index.stop, rows=index), truncation)


def translated(file: bytes, seed: int, label: str | None = None, attributes: Sequence[str] = ()) -> Work:
    """A sample made of an uploaded file, the given part of an example; `attributes` are NAME=NUMBER each. Raises
    ValueError, when it is run, for a file that cannot be read, a condition that is not known, or a model that makes
    samples of noise or of several parts."""

    def work(generator: Generator) -> Rows | Tensor:
        if len(generator.spec.given) != 1:
            made_of = ", ".join(generator.spec.given) or "noise"
            raise ValueError(f"this model makes samples of {made_of}; expected one that makes them of one file")
        given = {generator.spec.given[0]: _decode_upload(generator, generator.spec.given[0], file)}
        index, values = _label(generator, label), _attributes(generator, tuple(attributes))
        if generator.takes_any_size:
            return generator.sample_any_size(given, seed=seed, label=index, attributes=values)
        return Rows(seed, range(1), generator.conditions(1, index, values), given=given)

    return work


def _decode_upload(generator: Generator, part: str, file: bytes) -> Tensor:
    spec = generator.spec
    if spec.kind.take is None:
        raise ValueError(f"{spec.modality} data cannot be read from files")
    with scratch_folder() as scratch:
        path = Path(scratch) / "upload"
        path.write_bytes(file)
        try:
            stored = spec.kind.take(spec.sample, part, path)
        except (ValueError, OSError) as error:
            raise ValueError(f"the file: {str(error).replace(str(path), 'upload')}") from error
    return spec.kind.decode(spec.sample, part, torch.from_numpy(np.stack([stored])))


def _conditions_of(
    generator: Generator, indices: range, label: str | int | None, attributes: dict[str, float] | None
) -> dict[str, Tensor]:
    """The conditions of samples `indices`. Raises ValueError for what the data do not have."""
    rows = slice(indices.start, indices.stop)
    return generator.conditions(indices.stop, _label(generator, label), _attributes(generator, attributes), rows)


def _attributes(generator: Generator, asked: Mapping[str, float] | Sequence[str] | None) -> Tensor | None:
    """By name, or as NAME=NUMBER each."""
    if asked is None or asked == ():
        return None
    try:
        by_name = asked if isinstance(asked, Mapping) else numbers_of(asked)
        return attributes_of(generator.spec.attributes, by_name)
    except ValueError as error:
        raise ValueError(f"attributes: {error}") from None


def _label(generator: Generator, asked: str | int | None) -> int | None:
    if class_name(asked) is None:
        return None
    if not generator.conditional:
        raise ValueError("label: this model is not class-conditional")
    try:
        return label_of(generator.spec.classes, asked)
    except ValueError as error:
        raise ValueError(f"label: {error}") from None


def labels_of(generator: Generator, asked: Samples) -> list[str] | None:
    """The class of each sample, or None if the model is not class-conditional."""
    if not generator.conditional:
        return None
    classes, label = generator.spec.classes, _label(generator, asked.label)
    rows = range(asked.first, asked.first + asked.n)
    return [classes[i % len(classes) if label is None else label] for i in rows]
