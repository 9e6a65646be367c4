"""Pairs of image files, laid out as for pytorch-CycleGAN-and-pix2pix.

Either folders `A` and `B` that hold files of equal names, or files with A in the left half and B in the right.
Folders `train` and `test`, inside or around these, fix the split, and so does `val`: it trains where there is a `test`.
Images in archives are read, and known by their content, as `image_folder` does. Where files of folders `A` and `B` fix
no split, pairs whose given files are equal are in one.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

from ganlib._config import Config as _Base
from ganlib.data.pair import SideBySide
from ganlib.sources._files import File, chunks, payloads, split_name, splits_note, splits_of, without_wrapper
from ganlib.sources._images import PART, digest, images
from ganlib.sources._source import Item, Source, SourceError, Split, passed_over, printable, ranges

__all__ = ["KINDS", "Config", "load"]

KINDS = ("pair",)
_SHOWN = 5
_A_SIDE = re.compile(r"((train|test|val)[-_]?)?[ab]|inputs?|targets?|sources?|masks?", re.IGNORECASE)
"""folders that are halves of pairs elsewhere"""


class Config(_Base):
    name: Literal["paired_folder"] = "paired_folder"
    layout: Literal["auto", "folders", "side_by_side"] = "auto"
    """"folders": `A` and `B`; "side_by_side": A left, B right in one file; "auto": folders if there is an `A` or `B`,
    and an error where other folders hold files of equal names"""
    direction: Literal["a_to_b", "b_to_a"] = "a_to_b"
    """which half is given, and which is to be made of it"""


class _Entry(NamedTuple):
    files: tuple[File, ...]
    """A's and B's, or the one that holds both"""
    split: Split | None
    group: str | None = None


def load(cfg: Config, raw: Path) -> Source:
    """Raises SourceError if there are no images, or one has no partner, naming the first."""
    found, others = images(raw)
    sides = {file: _side(file) for file in found}
    groups = without_wrapper({file.name: _folders(file) for file in found})
    known = splits_of({parts[0] for parts in groups.values() if parts})
    split = {name: known.get(parts[0]) if parts else None for name, parts in groups.items()}
    if cfg.layout == "folders" or (cfg.layout == "auto" and any(sides.values())):
        for file, side in sides.items():
            if not side:
                raise SourceError(f"{raw}: {file.name} lies in neither of the folders A and B")
            if file.kind == "stream":
                raise SourceError(f"{file.path}: folders A and B in a compressed tar cannot be read: unpack it")
        a, b = (_by_name(raw, [file for file in found if sides[file] == side]) for side in ("A", "B"))
        for own, other, missing in ((a, b, "B"), (b, a, "A")):
            alone = [own[name].name for name in own if name not in other]
            if alone:
                raise SourceError(f"{raw}: {alone[0]} has no partner in {missing} ({len(alone)} such files)")
        of_given = {} if known else a if cfg.direction == "a_to_b" else b  # folders of a split decide instead
        given = {name: digest(file) for name, file in of_given.items()}
        times = Counter(given.values())  # where a given image has one target, the pair's own content decides
        groups_of = {name: content for name, content in given.items() if times[content] > 1}
        entries = [_Entry((a[name], b[name]), split[a[name].name], groups_of.get(name)) for name in a]
        parts = [partial(_items, entries[start:stop], cfg.direction) for start, stop in ranges(len(entries), PART)]
    else:
        folders = {part for parts in groups.values() for part in parts}
        halves = sorted(filter(_A_SIDE.fullmatch, folders)) or _folders_of_equal_names(groups)
        if cfg.layout == "auto" and halves:
            raise SourceError(
                f"{raw}: images lie in {', '.join(halves[:_SHOWN])}; expected folders A and B, with files of equal "
                "names, or source.layout side_by_side where each image holds both"
            )
        entries = [_Entry((file,), split[file.name]) for file in found]
        by_file = {entry.files[0]: entry for entry in entries}
        parts = [partial(_items, [by_file[file] for file in chunk], cfg.direction) for chunk in chunks(found, PART)]
    notes = (splits_note(known),) if known else ()
    left = passed_over(others)
    return Source(f"{len(entries)} pairs of images", len(entries), parts, passed_over=left, notes=notes)


def _items(entries: list[_Entry], direction: str) -> Iterator[Item]:
    read = payloads(file for entry in entries for file in entry.files)
    for files, split, group in entries:
        halves = [(content, why) for _, content, why in itertools.islice(read, len(files))]
        reason = next((why for _, why in halves if why), "")
        payload: Any = None
        if not reason and len(files) == 1:
            (whole,) = (content for content, _ in halves)
            assert whole is not None
            payload = SideBySide(whole, "left" if direction == "a_to_b" else "right")
        elif not reason:
            payload = tuple(content for content, _ in (halves if direction == "a_to_b" else reversed(halves)))
        name = " + ".join(printable(file.name) for file in files)
        yield Item(name, payload, split=split, reason=reason or Item.reason, group=group)


def _side(file: File) -> str:
    """`A` or `B`, after the first folder so called; empty where there is none."""
    return next((part for part in PurePosixPath(file.place).parts[:-1] if part in ("A", "B")), "")


def _folders(file: File) -> tuple[str, ...]:
    """The folders other than `A` and `B`."""
    return tuple(part for part in PurePosixPath(file.place).parts[:-1] if part not in ("A", "B"))


def _folders_of_equal_names(groups: dict[str, tuple[str, ...]]) -> list[str]:
    """Two folders most of whose files have equal names, as those of pairs have; a split's folders are none."""
    folders_of = dict[str, set[str]]()
    for name, parts in groups.items():
        if folder := "/".join(part for part in parts if not split_name(part)):
            folders_of.setdefault(_composed(PurePosixPath(name).stem), set()).add(folder)
    sizes = Counter(folder for folders in folders_of.values() for folder in folders)
    # names in more folders than two are those of classes
    shared = Counter(tuple(sorted(folders)) for folders in folders_of.values() if len(folders) == 2)
    return next(([*two] for two, count in shared.items() if 2 * count > max(sizes[folder] for folder in two)), [])


def _composed(name: str) -> str:
    """Of two ways to write an accent, as macOS and others do, one."""
    return unicodedata.normalize("NFC", name)


def _by_name(raw: Path, files: list[File]) -> dict[str, File]:
    """Files by what the two of a pair have in common: folders without the side's, and the name without suffix."""
    found: dict[str, File] = {}
    for file in files:
        parts = list(PurePosixPath(file.place).with_suffix("").parts)
        parts.remove(_side(file))
        name = _composed("/".join(parts))
        if name in found:
            raise SourceError(f"{raw}: {found[name].name} and {file.name} have the same name; one of them must go")
        found[name] = file
    return found
