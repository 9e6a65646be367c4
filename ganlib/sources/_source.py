"""What every source gives: items in parts, each of which can be read by itself, in whatever process.

A source's file may say in `KINDS` which kinds of data (`sample.kind`) its payloads suit; where it does not, any do.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from ganlib.data._classes import class_name, natural_order

__all__ = ["Item", "Part", "Source", "SourceError", "Split", "class_names", "files", "labels_of", "ranges", "splits_of"]

T = TypeVar("T")
Split = Literal["train", "test"]


class SourceError(ValueError):
    """A source cannot be opened. The message is one line."""


@dataclass(frozen=True)
class Item:
    id: str
    """says where it comes from; stands in the list of rejects"""
    payload: Any
    """what the kind's `encode` takes: a path, bytes, an array; None where there is none, for the `reason`"""
    label: int | None = None
    split: Split | None = None
    """where the source itself says it; None: by the hash of the content"""
    attributes: tuple[float, ...] | None = None
    """as many as the source names, or None where they are unknown"""
    reason: str = "there is no readable sample in it"
    """why the payload is None, for the list of rejects"""


Part = Callable[[], Iterable[Item]]


@dataclass(frozen=True)
class Source:
    about: str
    """one line for the data card"""
    count: int
    """items in all parts"""
    parts: Sequence[Part]
    """picklable; their order is the order of the items"""
    classes: tuple[str, ...] = ()
    """names in label order; empty where unlabelled"""
    attributes: tuple[str, ...] = ()
    """names of the numbers that describe each item"""


def ranges(count: int, size: int) -> list[tuple[int, int]]:
    """`[start, stop)` of parts of `size` items."""
    return [(start, min(start + size, count)) for start in range(0, count, size)]


def labels_of(values: Iterable[T]) -> dict[T, int]:
    """Label of each distinct value, in the natural order of the classes' names; a missing value has none."""
    named = {value: name for value in values if (name := class_name(value)) is not None}
    labels = {name: label for label, name in enumerate(natural_order(named.values()))}
    return {value: labels[name] for value, name in named.items()}


def class_names(labels: Mapping[Any, int]) -> tuple[str, ...]:
    """Names in label order of what `labels_of` gave."""
    names = {label: class_name(value) or "" for value, label in labels.items()}
    return tuple(names[label] for label in range(len(names)))


def splits_of(folders: Collection[str]) -> dict[str, Split]:
    """The split of each folder, where there is one to train and one to test on."""
    if "train" not in folders or not {"val", "test"} & {*folders}:
        return {}
    return {"train": "train", "val": "train" if "test" in folders else "test", "test": "test"}


def files(folder: Path, what: str, suffixes: Iterable[str]) -> list[Path]:
    """Files below `folder` with one of the suffixes, sorted by path. Raises SourceError if there are none."""
    if not folder.is_dir():
        raise SourceError(f"{folder}: no such folder; put {what} there")
    wanted = tuple(suffixes)
    every = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    found = [path for path in every if path.name.lower().endswith(wanted)]
    if not found:
        here = f"{len(every)} other files, as {every[0].relative_to(folder)}" if every else "nothing"
        raise SourceError(f"{folder}: no {what} ({', '.join(wanted)}); it holds {here}")
    return found
