"""Image files: flat, or in a folder per class, nested as deep as one likes below that; perhaps in folders of splits."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Literal

from ganlib._config import Config as _Base
from ganlib.sources._source import Item, Source, SourceError, Split, files, ranges, splits_of

__all__ = ["KINDS", "Config", "load"]

KINDS = ("image",)
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
_PART = 256


class Config(_Base):
    name: Literal["image_folder"] = "image_folder"
    labels: Literal["folders", "none"] = "folders"
    """"folders": the top folders, if there are any, are the classes; "none": folders mean nothing"""
    splits: Literal["folders", "none"] = "none"
    """"folders": the top folders are `train`, `val`, `test`, and others that are left out (masks of anomalies); the
    folders in them are the classes. "none": the split is made by content"""
    attributes: str | None = None
    """a CSV file in the folder: the path of each image, then numbers that describe it, named in the first line; then
    folders mean nothing"""


def load(cfg: Config, raw: Path) -> Source:
    """Raises SourceError if there are no images, or some in class folders and some beside these."""
    paths = [str(path.relative_to(raw)) for path in files(raw, "images", _SUFFIXES)]
    splits: dict[str, Split] = {}
    if cfg.splits == "folders":
        splits = splits_of({path.split("/", 1)[0] for path in paths})
        if not splits:
            raise SourceError(f"{raw}: source.splits is folders, expected images in train and in test or val")
        paths = [path for path in paths if path.split("/", 1)[0] in splits]
    within = {path: path.split("/", 1)[1] if splits else path for path in paths}
    loose = [path for path in paths if "/" not in within[path]]
    names, described = _table(raw / cfg.attributes) if cfg.attributes else ((), {})
    if cfg.attributes or cfg.labels == "none" or len(loose) == len(paths):
        classes: tuple[str, ...] = ()
    elif loose:
        raise SourceError(
            f"{raw}: {len(loose)} images lie beside class folders (as {loose[0]}), "
            f"{len(paths) - len(loose)} in them; move them, or set source.labels to none"
        )
    else:
        classes = tuple(sorted({within[path].split("/", 1)[0] for path in paths}))
    known = {name: label for label, name in enumerate(classes)}
    parts = []
    for start, stop in ranges(len(paths), _PART):
        some = paths[start:stop]
        attributes = {path: described[path] for path in some if path in described}
        labels = {path: known[within[path].split("/", 1)[0]] for path in some} if known else {}
        parts.append(partial(_items, raw, some, labels, splits, attributes))
    return Source(f"{len(paths)} image files", len(paths), parts, classes, names)


def _items(
    raw: Path,
    paths: list[str],
    labels: dict[str, int],
    splits: dict[str, Split],
    attributes: dict[str, tuple[float, ...]],
) -> Iterator[Item]:
    for path in paths:
        split = splits.get(path.split("/", 1)[0])
        yield Item(path, raw / path, labels.get(path), split, attributes.get(path))


def _table(path: Path) -> tuple[tuple[str, ...], dict[str, tuple[float, ...]]]:
    """Names of attributes, and those of each image. Raises SourceError, naming the line that is wrong."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.reader(file) if row]
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"source.attributes: {path}: {error}") from error
    if not rows or len(rows[0]) < 2:
        raise SourceError(f"{path}: a first line of a name for the path and names of attributes is wanted")
    described = {}
    for number, (image, *values) in enumerate(rows[1:], 2):
        try:
            numbers = tuple(float(value) for value in values)
        except ValueError as error:
            raise SourceError(f"{path}: line {number}: {error}") from error
        if len(numbers) != len(rows[0]) - 1 or not all(math.isfinite(value) for value in numbers):
            raise SourceError(f"{path}: line {number}: {len(rows[0]) - 1} finite numbers are wanted, found {values}")
        described[image] = numbers
    return tuple(rows[0][1:]), described
