"""What every source gives: items in parts; any process can read any part by itself.

A source's file may say in `KINDS` whose payloads it delivers, by kinds of data (`sample.kind`); these also suit kinds
that name one of them in `PAYLOADS`. Where it does not say, any kind will do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from ganlib.data._classes import class_name, natural_order
from ganlib.sources._files import File, SourceError, Split, walk

__all__ = [
    "Item",
    "Part",
    "Source",
    "SourceError",
    "Split",
    "class_names",
    "files",
    "labels_of",
    "left_over",
    "listed",
    "passed_over",
    "printable",
    "ranges",
]

T = TypeVar("T")
_SHOWN = 5


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
    group: str | None = None
    """examples of one group, such as the clips of a film, are in one split, by its hash; None: each by its own"""


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
    passed_over: Mapping[str, int] = field(default_factory=dict)
    """how many files are no items, by what they are: a suffix, "hidden"; for the card"""
    notes: tuple[str, ...] = ()
    """sentences for the card: how files were interpreted"""
    differences: bool = False
    """whether the attributes are differences: they are scaled, and not shifted, so that none stays 0"""


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


def files(folder: Path, what: str, suffixes: Iterable[str]) -> list[Path]:
    """Files below `folder` with one of the suffixes, sorted by path, links followed.

    Raises SourceError if there are none, or one cannot be opened by its name.
    """
    wanted = tuple(suffixes)
    every = [file for file in walk(folder, what) if not file.hidden]
    found = [file for file in every if file.name.lower().endswith(wanted)]
    for file in found:
        if file.fault:
            raise SourceError(f"{printable(file.path)}: {file.fault}")
    if not found:
        here = f"{len(every)} other files, as {printable(every[0].name)}" if every else "nothing"
        raise SourceError(f"{folder}: no {what} ({', '.join(wanted)}); it holds {here}")
    return [Path(file.path) for file in found]


def passed_over(others: Iterable[File], used: Iterable[File] = ()) -> dict[str, int]:
    """How many of the other files there are by what they are, without those that were `used`."""
    without = {file.name for file in used}
    found = Counter(_what(file) for file in others if file.name not in without)
    return dict(sorted(found.items()))


def left_over(folder: Path, used: Iterable[Path]) -> dict[str, int]:
    """How many files below `folder` there are, by what they are, besides those that were `used`."""
    without = {path.resolve() for path in used}
    return passed_over(file for file in walk(folder, "files") if Path(file.path).resolve() not in without)


def _what(file: File) -> str:
    if file.hidden:
        return "hidden"
    if file.fault:
        return file.fault
    return PurePosixPath(printable(file.place)).suffix.lower() or "without a suffix"


def listed(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def printable(name: object) -> str:
    """A name without what no text can hold: bytes that are not UTF-8 as `\\xe9`."""
    text = str(name)
    try:
        text.encode()
    except UnicodeEncodeError:
        pass
    else:
        return text
    escaped = (f"\\x{ord(c) & 255:02x}" if "\udc80" <= c <= "\udcff" else c for c in text)
    return "".join(escaped).encode("utf-8", "backslashreplace").decode()
