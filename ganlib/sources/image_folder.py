"""Image files as data sets come: flat, in a folder per class, with a table of labels, in archives.

Archives (zip, tar; WebDataset's shards are tars) are read where they lie, as if they were unpacked there. Files are
images by their suffix or else by their content; the card counts what was passed over. What is found decides:

- Folders `train` and `test` (or `val`, `valid`, `validation`), around or below the classes, also called as in
  `training_set`, `Testing` or `val2017`, are the split. `val` is for training if there is a `test`, else it is the
  test split.
- A table `metadata.csv` or `metadata.jsonl` (Hugging Face's imagefolder), `labels.csv`, or `dataset.json` (NVlabs'
  dataset_tool.py), in any folder, says the class of each image in that folder, or, where there are none in it, in all
  folders: the first of these that has classes. Its column `split` is the split where no folders are.
- Else files `KEY.cls` next to images `KEY.png` (WebDataset) hold the classes.
- Else folders are the classes; a folder around all of them is none, and neither are folders called by the number of
  the first image in them, as FFHQ's.
"""

from __future__ import annotations

import math
from collections import Counter
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import model_validator

from ganlib._config import Config as _Base
from ganlib.data._classes import natural_order
from ganlib.sources._files import File, Split, chunks, payloads, split_name, splits_note, splits_of, without_wrapper
from ganlib.sources._images import PART, images, read
from ganlib.sources._source import (
    Item,
    Part,
    Source,
    SourceError,
    class_names,
    labels_of,
    listed,
    passed_over,
    printable,
)
from ganlib.sources._tables import Table, file_called, is_foreign

__all__ = ["KINDS", "Config", "load"]

KINDS = ("image",)
_TABLES = ("metadata.jsonl", "metadata.csv", "labels.csv", "dataset.json")
_CHUNK = 100  # images a folder; fewer may be classes by accident


class Config(_Base):
    name: Literal["image_folder"] = "image_folder"
    labels: Literal["auto", "folders", "none"] = "auto"
    """"auto": a table's, those of files `.cls`, or folders; "folders": the top folders, if there are any, are the
    classes; "none": unlabelled"""
    splits: Literal["auto", "folders", "none"] = "auto"
    """"folders": images lie in `train` and in `test` or `val`, and those in other folders are left out
    (masks of anomalies); "auto": the same where there are such folders, else by a table's column `split`; "none": the
    split is made by content"""
    table: str | None = None
    """a CSV file with a header, or JSON Lines, in the folder, that names the class of each image; null: as above"""
    label_column: str | None = None
    """of the table; null: `label`, `class`, `category` or `target`; of `labels.csv` also the only one besides path and
    `split`"""
    attributes: str | None = None
    """a CSV file in the folder: the path of each image, then numbers that describe it, named in the first line; then
    there are no classes"""

    @model_validator(mode="after")
    def _one_condition(self) -> Config:
        if self.table and (self.attributes or self.labels != "auto"):
            raise ValueError("a table of labels goes with labels auto and without attributes")
        return self


def load(cfg: Config, raw: Path) -> Source:
    """Raises SourceError if there are no images, some in class folders and some next to these, or a table is wrong."""
    found, others = images(raw)
    usable = [file for file in found if not file.fault]
    folders = without_wrapper({file.name: PurePosixPath(file.place).parts[:-1] for file in usable})
    splits: dict[str, Split] = {}
    notes: list[str] = []
    left = Counter[str]()
    if cfg.splits != "none" and (level := _level_of_splits(folders)) is not None:
        folders, splits, notes, left = _split(folders, level)
        usable = [file for file in usable if file.name in splits]
        found = [file for file in found if file.fault or file.name in splits]
    elif cfg.splits == "folders":
        raise SourceError(f"{raw}: source.splits is folders, expected images in train and in test or val")
    names: tuple[str, ...] = ()
    attributes: dict[str, tuple[float, ...]] = {}
    classes: dict[str, Any] = {}
    missing: list[Item] = []
    used: list[File] = []
    if cfg.attributes:
        used = [file_called(raw, cfg.attributes, others, "attributes")]
        table = Table(used[0], usable, "attributes")
        names, described = table.numbers()
        attributes, missing = table.by_image(described)
    elif cfg.labels == "auto":
        classes, missing, tables = _of_tables(cfg, raw, others, usable)
        used = [table.file for table in tables]
        companions = [file for file in others if file.place.endswith(".cls") and not file.fault]
        if used:
            shown = listed([file.name for file in used])
            notes.append(f"The classes are those of {shown}." if classes else f"There are no labels in {shown}.")
            if cfg.splits == "auto":
                splits, contradictions, said = _of_column(tables, splits)
                said_before = {item.id for item in missing}
                missing += [item for item in contradictions if item.id not in said_before]
                notes += said
        elif companions:
            classes, used = _of_companions(companions, usable), companions
            notes.append("The classes are those of the files .cls.")
    if cfg.labels != "none" and not used:
        classes = _of_folders(raw, folders)
        shown = listed(natural_order(classes.values()))
        if cfg.labels == "auto" and _are_chunks(classes):
            classes = {}
            notes.append(
                f"The folders are named by the number of their first image ({shown}), so they are not classes; "
                "source.labels folders makes them classes."
            )
        elif len(set(classes.values())) > 1:
            notes.append(f"The classes are the folders: {shown}.")
        _check_classes(raw, classes, splits)
    known = labels_of(classes.values())
    parts: list[Part] = [
        partial(
            read,
            chunk,
            [(known.get(classes.get(f.name)), splits.get(f.name), attributes.get(f.name)) for f in chunk],
        )
        for chunk in chunks(found, PART)
    ]
    parts += [partial(iter, missing)] if missing else []
    left.update(passed_over(others, used))
    about, count = f"{len(found)} image files", len(found) + len(missing)
    return Source(about, count, parts, class_names(known), names, left, tuple(notes))


# -- by folders ----------------------------------------------------------------------------------------------------


_Folders = dict[str, tuple[str, ...]]
"""of each image by the file's name"""


def _level_of_splits(folders: _Folders) -> int | None:
    """How many folders lie around those of the split; None where there are none."""
    if splits_of({parts[0] for parts in folders.values() if parts}):
        return 0
    inner = {parts[1] if len(parts) > 1 else "" for parts in folders.values()}
    return 1 if inner and inner == splits_of(inner).keys() else None


def _split(folders: _Folders, level: int) -> tuple[_Folders, dict[str, Split], list[str], Counter[str]]:
    """`(folders without those of the split and around all, split of each image, note, images in other folders)`."""
    known = splits_of({parts[level] for parts in folders.values() if len(parts) > level})
    splits, inside, left = dict[str, Split](), _Folders(), Counter[str]()
    for name, parts in folders.items():
        folder = parts[level] if len(parts) > level else ""
        if folder not in known:
            left[f"images in {printable(folder)}" if folder else "images outside the folders of the split"] += 1
            continue
        rest = parts[level + 1 :]
        while rest and (rest[0] == folder or (split_name(rest[0]) and split_name(rest[0]) == split_name(folder))):
            rest = rest[1:]  # train2017.zip holds a folder train2017
        splits[name], inside[name] = known[folder], parts[:level] + rest
    return without_wrapper(inside), splits, [splits_note(known)], left


def _of_folders(raw: Path, folders: _Folders) -> dict[str, str]:
    """The class of each image by its outermost folder."""
    loose = [name for name, parts in folders.items() if not parts]
    if 0 < len(loose) < len(folders):
        raise SourceError(
            f"{raw}: {len(loose)} images lie next to class folders (as {loose[0]}), "
            f"{len(folders) - len(loose)} in them; move them, or set source.labels to none"
        )
    return {name: parts[0] for name, parts in folders.items() if parts}


def _are_chunks(folders: dict[str, str]) -> bool:
    """Whether each folder is called by the number of the first image in it, as FFHQ's, which hold `01000/01000.png` to
    `01000/01999.png`."""
    numbers = [(folder, PurePosixPath(name).stem) for name, folder in folders.items()]
    if not all(one.isdecimal() and other.isdecimal() and len(one) == len(other) for one, other in numbers):
        return False
    size = math.gcd(*(int(folder) for folder, _ in numbers))
    return size >= _CHUNK and all(int(image) // size * size == int(folder) for folder, image in numbers)


def _check_classes(raw: Path, classes: dict[str, str], splits: dict[str, Split]) -> None:
    """Raise SourceError where the folders of one split have other classes than those of the other, all of them."""
    train, test = (
        {classes[name] for name, one in splits.items() if one == split and name in classes}
        for split in ("train", "test")
    )
    if len(train) > 1 and test and not train & test:  # anomalies are of another class than the one trained on
        shown = (listed(natural_order(found)) for found in (train, test))
        raise SourceError(
            f"{raw}: the folders for training ({next(shown)}) and for testing ({next(shown)}) have no class in common; "
            "make them alike, or set source.labels or source.splits to none"
        )


def _of_companions(companions: list[File], usable: list[File]) -> dict[str, str]:
    """Classes by files `KEY.cls`, where a key ends before the first dot of a name."""
    known = {}
    for file, content, why in payloads(companions):
        if content is None:
            raise SourceError(f"{file.name}: {why}")
        text = content.read_bytes() if isinstance(content, Path) else content
        known[_key(file.name)] = text.decode("utf-8", "backslashreplace")
    return {file.name: known[_key(file.name)] for file in usable if _key(file.name) in known}


def _key(name: str) -> str:
    folder, slash, name = name.rpartition("/")
    return folder + slash + name.partition(".")[0]


# -- by tables -----------------------------------------------------------------------------------------------------


def _of_tables(
    cfg: Config, raw: Path, others: list[File], usable: list[File]
) -> tuple[dict[str, Any], list[Item], list[Table]]:
    """`(class of each image, rows without an image, tables that were used)`."""
    of_folder: dict[str, list[File]] = {}
    if cfg.table:
        of_folder[""] = [file_called(raw, cfg.table, others, "table")]
    else:
        for file in others:
            name = PurePosixPath(file.place).name.lower()
            is_table = name in _TABLES and not file.hidden and not file.fault
            if is_table and not (name == "dataset.json" and is_foreign(file)):
                of_folder.setdefault(file.place.rpartition("/")[0], []).append(file)
        for here in of_folder.values():
            here.sort(key=lambda file: _TABLES.index(PurePosixPath(file.place).name.lower()))
    classes, missing, used = dict[str, Any](), list[Item](), list[Table]()
    for here in of_folder.values():
        for file in here:
            table = Table(file, usable, "classes")
            rows = table.classes(cfg.label_column, named=bool(cfg.table), last=file is here[-1])
            if rows is not None:
                of_images, without = table.by_image(rows)
                classes |= of_images
                missing += without
                used.append(table)
                break
    return classes, missing, used


def _of_column(tables: list[Table], of_folders: dict[str, Split]) -> tuple[dict[str, Split], list[Item], list[str]]:
    """`(split of each image, rows that contradict one above them, note)` by a column `split`: the folders' where they
    have one, and none where a value is no name of a split."""
    texts, contradictions = dict[str, str](), list[Item]()
    for table in tables:
        if rows := table.splits():
            of_images, without = table.by_image(rows)
            texts |= of_images
            contradictions += without
    values = set(texts.values())
    known = splits_of(values)
    if not values:
        return of_folders, [], []
    if of_folders:
        return of_folders, [], ["The column split is not used, as the folders have a split."]
    if known.keys() != values:
        shown = listed(sorted(text or "an empty cell" for text in values))
        return {}, [], [f"The column split ({shown}) is not used: expected train, and test or val, in each row."]
    return {name: known[text] for name, text in texts.items()}, contradictions, [splits_note(known, "column split")]
