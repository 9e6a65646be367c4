"""Images of two domains without pairs, out of any source of images with classes: rows of Parquet, a data set of the
hub, folders with a table, files of MNIST's format.

`of` is that source, and two of its classes are the domains. An example is an image of one and one of the other, which
have nothing to do with each other; for both directions, counts and splits see `two_folders`. Rows are read in their
order, in two places at a time; what is kept of each is where it is and 16 bytes of its hash. Each image is decoded
once beforehand: a damaged one is one reject and in no example.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import cycle, islice, pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BeforeValidator, Field, SerializeAsAny

from ganlib import registry
from ganlib._config import Config as _Base
from ganlib.data._classes import label_of
from ganlib.sources._images import MADE, decoding_fault, rejects_note, split_of
from ganlib.sources._source import Item, Part, Source, SourceError, Split

__all__ = ["KINDS", "Config", "load"]

KINDS = ("unpaired",)
HELD = 1024

Position = tuple[int, int]
"""number of a part, and of an item in it"""


def _labelled_images(value: Any) -> _Base:
    if isinstance(value, _Base):
        return value
    known = [
        name for name in registry.names("sources") if "image" in getattr(registry.load("sources", name), "KINDS", ())
    ]
    name = value.get("name") if isinstance(value, Mapping) else None
    if name not in known:
        raise ValueError(f"expected a source of images by its name ({', '.join(known)}), found {name!r}")
    if value.get("image", "") is None:
        raise ValueError("image: expected a column, found null: an example would be a row")
    config: _Base = registry.load("sources", name).Config.model_validate(dict(value))
    return config


class Config(_Base):
    name: Literal["two_classes"] = "two_classes"
    of: Annotated[SerializeAsAny[_Base], BeforeValidator(_labelled_images)]
    """a source of images, with its keys"""
    domains: tuple[bool | str | int | float, bool | str | int | float] | None = None
    """two of its classes; null: it has no others. They are also the names of the labels"""
    direction: Literal["both", "a_to_b", "b_to_a"] = "both"
    """which domain is given, and which is to be made of it; both: examples are labelled by what is to be made"""
    test_share: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    """of each domain, where the source says nothing of a split"""


def load(cfg: Config, raw: Path) -> Source:
    """Raises SourceError as that source does, for classes that it does not have, or if a domain has no images in a
    split."""
    source: Source = registry.load("sources", cfg.of.name).load(cfg.of, raw)  # type: ignore[attr-defined]
    domains = _domains(cfg, source.classes)
    of: dict[Split, tuple[list[Position], list[Position]]] = {"train": ([], []), "test": ([], [])}
    rejects, seen, copies = list[Item](), set[tuple[int, bytes]](), 0
    for number, part in enumerate(source.parts):
        for place, item in enumerate(part()):
            if item.label is not None and source.classes[item.label] not in domains:
                continue
            if item.payload is None or item.label is None:
                rejects.append(Item(item.id, None, reason=item.reason if item.payload is None else "it has no class"))
                continue
            domain = domains.index(source.classes[item.label])
            try:
                content = _digest(item.payload)
            except (OSError, ValueError) as error:
                rejects.append(Item(item.id, None, reason=str(error)))
                continue
            key = (domain, bytes.fromhex(content[:32]))
            copies += key in seen
            if key in seen:
                continue
            seen.add(key)
            if why := decoding_fault(item.payload):
                rejects.append(Item(item.id, None, reason=why))
                continue
            of[item.split or split_of(content, cfg.test_share)][domain].append((number, place))
    for split, (one, other) in of.items():
        if not one or not other:
            raise SourceError(
                f"{source.about}: for {split}ing {len(one)} images of {domains[0]} and {len(other)} of {domains[1]}; "
                f"expected some of both{rejects_note(rejects)}"
            )
    parts, count = list[Part](), len(rejects)
    for split, lists in of.items():
        n = max(map(len, lists)) if split == "train" else min(map(len, lists))
        for made in MADE[cfg.direction]:
            count += n
            # a third further on, so that rows which did come in pairs are none here
            given, sample = _from(lists[1 - made], 0, n), _from(lists[made], len(lists[made]) // 3, n)
            for start, stop in pairwise([*_starts(given), n]):
                rows = given[start:stop], sample[start:stop]
                used = {number: source.parts[number] for positions in rows for number, _ in positions}
                parts.append(partial(_items, used, *rows, made, split))
    parts += [partial(iter, rejects)] if rejects else []
    counts = {split: " and ".join(f"{len(lists[i])} {domains[i]}" for i in (0, 1)) for split, lists in of.items()}
    notes = [*source.notes, f"Different images: {counts['train']} for training, {counts['test']} for testing."]
    notes += [f"Copies of another image of the same domain, left out: {copies}."] if copies else []
    if left := abs(len(of["test"][0]) - len(of["test"][1])):
        larger = domains[len(of["test"][0]) < len(of["test"][1])]
        notes.append(f"{left} test images of {larger} have no counterpart in number and are left out.")
    return Source(
        f"images of two domains, {domains[0]} and {domains[1]}, {cfg.direction}; {source.about}",
        count,
        parts,
        classes=domains if cfg.direction == "both" else (),
        passed_over=source.passed_over,
        notes=tuple(notes),
    )


def _domains(cfg: Config, classes: tuple[str, ...]) -> tuple[str, str]:
    if cfg.domains is None:
        if len(classes) != 2:
            raise SourceError(f"source.domains: name two of the classes: {', '.join(classes) or 'there are none'}")
        return classes[0], classes[1]
    try:
        one, other = (classes[label_of(classes, name)] for name in cfg.domains)
    except ValueError as error:
        raise SourceError(f"source.domains: {error}") from error
    if one == other:
        raise SourceError(f"source.domains: expected two classes, found {one!r} twice")
    return one, other


def _from(positions: list[Position], start: int, n: int) -> list[Position]:
    """`n` of them in their order, from `start` on, again and again."""
    return [*islice(cycle(positions), start, start + n)]


def _starts(positions: list[Position]) -> list[int]:
    """Where another part begins, so that none is read from its start again and again."""
    numbers = [number for number, _ in positions]
    return [i for i, number in enumerate(numbers) if i == 0 or number != numbers[i - 1]]


def _digest(payload: Any) -> str:
    """SHA-256 of the content of an image, as the source gives it. Raises ValueError for what is none, OSError for a
    file that cannot be read."""
    if isinstance(payload, Path):
        with payload.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    if isinstance(payload, bytes):
        return hashlib.sha256(payload).hexdigest()
    if not isinstance(payload, np.ndarray):
        raise ValueError(f"expected an image, found {type(payload).__name__}")
    return hashlib.sha256(f"{payload.dtype} {payload.shape} ".encode() + payload.tobytes()).hexdigest()


def _items(
    parts: Mapping[int, Part], given: Sequence[Position], sample: Sequence[Position], made: int, split: Split
) -> Iterator[Item]:
    for one, other in zip(_read(parts, given), _read(parts, sample), strict=True):
        yield Item(f"{one.id} -> {other.id}", (one.payload, other.payload), made, split)


def _read(parts: Mapping[int, Part], positions: Sequence[Position]) -> Iterator[Item]:
    """The items at these positions; a part is read once as long as they rise. Few that come again are held."""
    different = sorted({*positions})
    if len(different) < len(positions) and len(different) <= HELD:
        held = dict(zip(different, _read(parts, different), strict=True))
        yield from (held[position] for position in positions)
        return
    at, items = (-1, -1), iter(enumerate(list[Item]()))
    for number, place in positions:
        if number != at[0] or place <= at[1]:
            items = enumerate(parts[number]())
        at = (number, place)
        yield next(item for i, item in items if i == place)
