"""Images whose attributes are known, and by how much these differ: what "20 years older" is learnt from.

A table in the folder, CSV or JSON Lines, has the path of each image, then numbers that describe it, as `image_folder`
reads them: ages, or 1 and -1 for what an image has and has not. An example is an image, another image, and what has
to be added to the attributes of the first to get those of the second. Folders `train` and `test` (or `val`, which
trains where there is a `test`) fix the split; else each image's content decides. Images in archives are read, but for
compressed tars.

For training each image is given `partners` times, with others at random, and is as often the other one, so that
changes are 0 on average; for testing each is given once. Each image is decoded once beforehand: a damaged one is one
reject and in no example.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from ganlib._config import Config as _Base
from ganlib.sources._files import File, split_name, splits_note, splits_of
from ganlib.sources._images import PART, Known, digest, fault_of, images, read_two, rejects_note, split_of
from ganlib.sources._source import Item, Source, SourceError, Split, passed_over, printable, ranges
from ganlib.sources._tables import Table, file_called

__all__ = ["KINDS", "Config", "load"]

KINDS = ("unpaired",)

_Example = tuple[File, File, Split, tuple[float, ...]]
"""given, sample, split, changes of attributes"""


class Config(_Base):
    name: Literal["attribute_changes"] = "attribute_changes"
    table: str = "attributes.csv"
    """a file with a header in the folder: the path of each image, then its attributes"""
    attributes: tuple[str, ...] = ()
    """columns of the table, each once; none: all but the path"""
    partners: PositiveInt = 4
    """how many other images each is paired with in training"""
    test_share: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    """of the images, where folders say nothing of a split"""

    @model_validator(mode="after")
    def _each_once(self) -> Config:
        if twice := [name for name, count in Counter(self.attributes).items() if count > 1]:
            raise ValueError(f"attributes: expected each once, found {', '.join(twice)} again")
        return self


def load(cfg: Config, raw: Path) -> Source:
    """Raises SourceError if there are not two images in each split, or the table is wrong."""
    found, others = images(raw)
    for file in found:
        if file.kind == "stream":
            raise SourceError(f"{file.path}: pairs of images in a compressed tar cannot be read: unpack it")
    file = file_called(raw, cfg.table, others, "table")
    table = Table(file, [image for image in found if not image.fault], "attributes")
    names, rows = table.numbers(cfg.attributes)
    numbers, rejects = table.by_image(rows)
    folders = {image: next(filter(split_name, PurePosixPath(image.place).parts[:-1]), "") for image in found}
    known = splits_of({name for name in folders.values() if name})
    left = {image.name for image in found if known and folders[image] not in known}
    found = [image for image in found if image.name not in left]
    of: dict[Split, list[File]] = {"train": [], "test": []}
    damaged, contents, copies = list[Item](), set[str](), 0
    for image in found:
        if image.fault or image.name not in numbers:
            rejects.append(Item(printable(image.name), None, reason=image.fault or "its attributes are not known"))
            continue
        content = digest(image)
        copies += content in contents
        if content in contents:
            continue
        contents.add(content)
        if why := fault_of(image):
            damaged.append(Item(printable(image.name), None, reason=why))
            continue
        of[known.get(folders[image]) or split_of(content, cfg.test_share)].append(image)
    for split, here in of.items():
        if len(here) < 2:
            raise SourceError(
                f"{raw}: {len(here)} images with attributes for {split}ing; expected 2 or more{rejects_note(damaged)}"
            )
    examples: list[_Example] = []
    for split, here in of.items():
        for given, sample in _paired(here, cfg.partners if split == "train" else 1):
            before, after = numbers[given.name], numbers[sample.name]
            examples.append((given, sample, split, tuple(b - a for a, b in zip(before, after, strict=True))))
    parts = [partial(_items, examples[start:stop]) for start, stop in ranges(len(examples), PART)]
    notes = [f"Different images: {len(of['train'])} for training, {len(of['test'])} for testing."]
    notes += [splits_note(known)] if known else ["The split is by each image's content."]
    notes += [f"Copies of another file, left out: {copies}."] if copies else []
    notes += [f"Images outside of these folders, left out: {len(left)}."] if left else []
    notes += [f"Images without attributes, and rows without an image: {len(rejects)}."] if rejects else []
    rejects += damaged
    return Source(
        f"images and changes of {', '.join(names)}",
        len(examples) + len(rejects),
        [*parts, *([partial(iter, rejects)] if rejects else [])],
        attributes=names,
        differences=True,
        passed_over=passed_over(others, [file]),
        notes=tuple(notes),
    )


def _paired(files: list[File], partners: int) -> Iterator[tuple[File, File]]:
    """Each file with so many others, and as often as another's partner: in random circles, with the next one."""
    for number in range(partners):
        circle = random.Random(number).sample(files, len(files))
        yield from zip(circle, circle[1:] + circle[:1], strict=True)


def _items(examples: list[_Example]) -> Iterator[Item]:
    known: list[Known] = [(None, split, changes) for _, _, split, changes in examples]
    return read_two(((given, sample) for given, sample, _, _ in examples), known)
