"""Pairs of image files, laid out as for pytorch-CycleGAN-and-pix2pix.

Either folders `A` and `B` that hold files of equal names, or files with A in the left half and B in the right.
Folders `train` and `test`, inside or around these, fix the split, and so does `val`: it trains where there is a `test`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

from ganlib._config import Config as _Base
from ganlib.data.pair import SideBySide
from ganlib.sources._source import Item, Source, SourceError, Split, files, ranges, splits_of

__all__ = ["KINDS", "Config", "load"]

KINDS = ("pair",)
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
_PART = 256


class Config(_Base):
    name: Literal["paired_folder"] = "paired_folder"
    layout: Literal["auto", "folders", "side_by_side"] = "auto"
    """"folders": `A` and `B`; "side_by_side": A left, B right in one file; "auto": folders if there is an `A` or `B`"""
    direction: Literal["a_to_b", "b_to_a"] = "a_to_b"
    """which half is given, and which is to be made of it"""


class _Entry(NamedTuple):
    paths: tuple[str, ...]
    """A's file and B's, or the one that holds both; relative to the folder"""
    split: Split | None


def load(cfg: Config, raw: Path) -> Source:
    """Raises SourceError if there are no images, or one has no partner, naming the first."""
    paths = [path.relative_to(raw).as_posix() for path in files(raw, "images", _SUFFIXES)]
    sides = {path: _side(path) for path in paths}
    folders = cfg.layout == "folders" or (cfg.layout == "auto" and any(sides.values()))
    known = splits_of({_group(path) for path in paths})
    if not folders:
        entries = [_Entry((path,), known.get(_group(path))) for path in paths]
    else:
        for path, side in sides.items():
            if not side:
                raise SourceError(f"{raw}: {path} lies in neither of the folders A and B")
        a, b = (_by_name(raw, [path for path in paths if sides[path] == side]) for side in ("A", "B"))
        for own, other, missing in ((a, b, "B"), (b, a, "A")):
            alone = [own[name] for name in own if name not in other]
            if alone:
                raise SourceError(f"{raw}: {alone[0]} has no partner in {missing} ({len(alone)} such files)")
        entries = [_Entry((a[name], b[name]), known.get(_group(a[name]))) for name in a]
    parts = [partial(_items, raw, entries[start:stop], cfg.direction) for start, stop in ranges(len(entries), _PART)]
    return Source(f"{len(entries)} pairs of images", len(entries), parts)


def _items(raw: Path, entries: list[_Entry], direction: str) -> Iterator[Item]:
    for paths, split in entries:
        whole = [raw / path for path in paths]
        if len(whole) == 1:
            payload: object = SideBySide(whole[0], "left" if direction == "a_to_b" else "right")
        else:
            payload = tuple(whole if direction == "a_to_b" else reversed(whole))
        yield Item(" + ".join(paths), payload, split=split)


def _side(path: str) -> str:
    """`A` or `B`, after the first folder so called; empty where there is none."""
    return next((part for part in PurePosixPath(path).parts[:-1] if part in ("A", "B")), "")


def _group(path: str) -> str:
    """The outermost folder other than `A` and `B`: perhaps the split."""
    parts = PurePosixPath(path).parts[:-1]
    return next((part for part in parts if part not in ("A", "B")), "")


def _by_name(raw: Path, paths: list[str]) -> dict[str, str]:
    """Paths by what a partner has in common with them: folders but for the side, and the name without suffix."""
    found: dict[str, str] = {}
    for path in paths:
        parts = list(PurePosixPath(path).with_suffix("").parts)
        parts.remove(_side(path))
        name = "/".join(parts)
        if name in found:
            raise SourceError(f"{raw}: {found[name]} and {path} have the same name; one of them must go")
        found[name] = path
    return found
