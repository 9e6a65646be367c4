"""Images of two domains without pairs: folders `A` and `B`, as the data sets of Zhu et al. 2017 come.

Also `trainA`, `trainB`, `testA`, `testB`, or `A` and `B` inside or around folders `train` and `test` (or `val`, which
trains where there is a `test`), which fix the split, and images outside of them are left out; else each image's
content decides. Any other names of two folders will do if `domains` says them. Archives are read, and images are known
by their content, as `image_folder` does.

An example is an image of one domain and one of the other, which have nothing to do with each other; each image is in
one split alone. For training, images of the smaller domain are repeated; for testing, those of the larger that are
too many are left out, so that none is measured twice. Each image is decoded once beforehand: a damaged one is one
reject and in no example.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from pydantic import Field, model_validator

from ganlib._config import Config as _Base
from ganlib.sources._files import File, split_name, splits_note, splits_of
from ganlib.sources._images import MADE, PART, Known, digest, fault_of, images, read_two, rejects_note, split_of
from ganlib.sources._source import Item, Part, Source, SourceError, Split, passed_over, printable, ranges

__all__ = ["KINDS", "Config", "load"]

KINDS = ("unpaired",)
_JOINED = re.compile(r"(train|test|val)[-_. ]?(.+)", re.IGNORECASE)

Direction = Literal["both", "a_to_b", "b_to_a"]


class Config(_Base):
    name: Literal["two_folders"] = "two_folders"
    domains: tuple[str, str] = ("A", "B")
    """what the folders are called; also the names of the labels"""
    direction: Direction = "both"
    """which domain is given, and which is to be made of it; both: examples are labelled by what is to be made"""
    test_share: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    """of each domain, where folders say nothing of a split"""

    @model_validator(mode="after")
    def _two(self) -> Config:
        if self.domains[0] == self.domains[1]:
            raise ValueError(f"domains: expected two names, found {self.domains[0]!r} twice")
        return self


def load(cfg: Config, raw: Path) -> Source:
    """Raises SourceError if a domain has no images, in a split that the other has."""
    found, others = images(raw)
    for file in found:
        if file.kind == "stream":
            raise SourceError(f"{file.path}: two folders in a compressed tar cannot be read: unpack it")
    placed = {file: _placed(file, cfg.domains) for file in found}
    strays = [file for file, (domain, _) in placed.items() if domain is None]
    if strays:
        raise SourceError(
            f"{raw}: {printable(strays[0].name)} lies in no folder {' or '.join(cfg.domains)} ({len(strays)} such "
            "files); source.domains names the folders"
        )
    known = splits_of({name for _, name in placed.values() if name})
    left_out = [file for file, (_, name) in placed.items() if known and name not in known]
    files: dict[Split, tuple[list[File], list[File]]] = {"train": ([], []), "test": ([], [])}
    rejects, copies, seen = list[Item](), 0, set[tuple[int, str]]()
    for file, (domain, name) in placed.items():
        assert domain is not None
        if known and name not in known:
            continue
        content = digest(file)
        copies += (domain, content) in seen
        if (domain, content) in seen:
            continue
        seen.add((domain, content))
        if why := fault_of(file):
            rejects.append(Item(printable(file.name), None, reason=why))
            continue
        files[known.get(name) or split_of(content, cfg.test_share)][domain].append(file)
    for split, of in files.items():
        for domain, here in enumerate(of):
            if not here:
                outside = f"; outside of {', '.join(sorted(known))}: {len(left_out)}" if left_out else ""
                raise SourceError(
                    f"{raw}: no image of {cfg.domains[domain]} for {split}ing ({len(of[1 - domain])} of "
                    f"{cfg.domains[1 - domain]}{outside}); expected some of both{rejects_note(rejects)}"
                )
    examples = [example for split in files for example in _examples(files[split], split, cfg.direction)]
    parts: list[Part] = [partial(_items, examples[start:stop]) for start, stop in ranges(len(examples), PART)]
    counts = {split: " and ".join(f"{len(files[split][i])} {cfg.domains[i]}" for i in (0, 1)) for split in files}
    notes = [f"Different images: {counts['train']} for training, {counts['test']} for testing."]
    notes += [splits_note(known)] if known else ["The split is by each image's content."]
    notes += [f"Copies of another file of the same domain, left out: {copies}."] if copies else []
    notes += [f"Images outside of these folders, left out: {len(left_out)}."] if left_out else []
    if left := abs(len(files["test"][0]) - len(files["test"][1])):
        larger = cfg.domains[len(files["test"][0]) < len(files["test"][1])]
        notes.append(f"{left} test images of {larger} have no counterpart in number and are left out.")
    return Source(
        f"images of two domains, {cfg.domains[0]} and {cfg.domains[1]}, {cfg.direction}",
        len(examples) + len(rejects),
        [*parts, *([partial(iter, rejects)] if rejects else [])],
        classes=cfg.domains if cfg.direction == "both" else (),
        passed_over=passed_over(others),
        notes=tuple(notes),
    )


_Example = tuple[File, File, int, Split]
"""given, sample, domain of the sample, split"""


def _examples(files: tuple[list[File], list[File]], split: Split, direction: Direction) -> Iterator[_Example]:
    """Each domain's images in an order that says nothing, the smaller one's again and again in training."""
    lengths = [len(of) for of in files]
    n = max(lengths) if split == "train" else min(lengths)
    for made in MADE[direction]:
        rng = random.Random(made)  # other partners in the other direction
        shuffled = [rng.sample(of, len(of)) for of in files]
        given, sample = shuffled[1 - made], shuffled[made]
        for i in range(n):
            yield given[i % len(given)], sample[i % len(sample)], made, split


def _items(examples: list[_Example]) -> Iterator[Item]:
    known: list[Known] = [(made, split, None) for _, _, made, split in examples]
    return read_two(((given, sample) for given, sample, _, _ in examples), known)


def _placed(file: File, domains: tuple[str, str]) -> tuple[int | None, str]:
    """The domain, None where no folder says it, and the name of the folder's split, empty where none is said."""
    folders = PurePosixPath(file.place).parts[:-1]
    for i, folder in enumerate(folders):
        if folder in domains:
            return domains.index(folder), next(filter(split_name, (*folders[:i], *folders[i + 1 :])), "")
        joined = _JOINED.fullmatch(folder)
        if joined and joined[2] in domains:
            return domains.index(joined[2]), joined[1]
    return None, ""
