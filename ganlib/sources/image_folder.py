"""Image files as data sets come: flat, in a folder per class, with a table of labels, in archives.

Archives (zip, tar; WebDataset's shards are tars) are read where they lie, as if they were unpacked there. Files are
images by their suffix or else by their content; the card counts what was passed over. What is found decides:

- Folders `train` and `test` (or `val`, `valid`, `validation`), around or below the classes, also called as in
  `training_set`, `Testing` or `val2017`, are the split. `val` is for training if there is a `test`, else it is the
  test split.
- A table `metadata.csv` or `metadata.jsonl` (Hugging Face's imagefolder), or `labels.csv`, in any folder, says the
  class of each image in that folder, or, where there are none in it, in all folders.
- Else files `KEY.cls` next to images `KEY.png` (WebDataset) hold the classes.
- Else folders are the classes; a folder around all of them is none.
"""

from __future__ import annotations

import csv
import io
import json
import math
import unicodedata
from collections import Counter
from collections.abc import Iterable
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import model_validator

from ganlib._config import Config as _Base
from ganlib.data._classes import class_name, natural_order
from ganlib.sources._files import File, Split, chunks, payloads, split_name, splits_note, splits_of, without_wrapper
from ganlib.sources._images import PART, images, read
from ganlib.sources._source import Item, Part, Source, SourceError, class_names, labels_of, passed_over, printable

__all__ = ["KINDS", "Config", "load"]

KINDS = ("image",)
_TABLES = ("metadata.jsonl", "metadata.csv", "labels.csv")
_FILE_COLUMNS = ("file_name", "filename", "file", "path", "image")
_CLASS_COLUMNS = ("label", "class", "category", "target")
_SHOWN = 5
_TRIED = 1_000  # rows of a table, to find the column of paths


class Config(_Base):
    name: Literal["image_folder"] = "image_folder"
    labels: Literal["auto", "folders", "none"] = "auto"
    """"auto": a table's, those of files `.cls`, or folders; "folders": the top folders, if there are any, are the
    classes; "none": unlabelled"""
    splits: Literal["auto", "folders", "none"] = "auto"
    """"folders": images lie in `train` and in `test` or `val`, and those in other folders are left out
    (masks of anomalies); "auto": the same where there are such folders; "none": the split is made by content"""
    table: str | None = None
    """a CSV file with a header, or JSON Lines, in the folder, that names the class of each image; null: as above"""
    label_column: str | None = None
    """of the table; null: `label`, `class`, `category` or `target`; of `labels.csv` also the only one but the path"""
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
        used = [_file(raw, cfg.attributes, others, "attributes")]
        names, described = _Table(used[0], usable, "attributes").numbers()
        attributes, missing = _by_image(used[0], described, usable)
    elif cfg.labels == "auto":
        classes, missing, used = _of_tables(cfg, raw, others, usable)
        companions = [file for file in others if file.place.endswith(".cls") and not file.fault]
        if used:
            notes.append(f"The classes are those of {', '.join(file.name for file in used[:_SHOWN])}.")
        elif companions:
            classes, used = _of_companions(companions, usable), companions
            notes.append("The classes are those of the files .cls.")
    if cfg.labels != "none" and not used:
        classes = _of_folders(raw, folders)
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
            left[f"images in {printable(folder)}" if folder else "images beside those of the split"] += 1
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


def _check_classes(raw: Path, classes: dict[str, str], splits: dict[str, Split]) -> None:
    """Raise SourceError where the folders of one split have other classes than those of the other, all of them."""
    train, test = (
        {classes[name] for name, one in splits.items() if one == split and name in classes}
        for split in ("train", "test")
    )
    if len(train) > 1 and test and not train & test:  # anomalies are of another class than the one trained on
        shown = (", ".join(natural_order(found)[:_SHOWN]) for found in (train, test))
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


def _file(raw: Path, name: str, others: list[File], key: str) -> File:
    for file in others:
        if name in (file.name, file.place) and not file.fault:
            return file
    raise SourceError(f"source.{key}: {raw / name}: no such file")


def _of_tables(
    cfg: Config, raw: Path, others: list[File], usable: list[File]
) -> tuple[dict[str, Any], list[Item], list[File]]:
    """`(class of each image, rows without an image, tables that were used)`."""
    if cfg.table:
        tables = [_file(raw, cfg.table, others, "table")]
    else:
        of_folder: dict[str, list[File]] = {}
        for file in others:
            if PurePosixPath(file.place).name.lower() in _TABLES and not file.hidden and not file.fault:
                of_folder.setdefault(file.place.rpartition("/")[0], []).append(file)
        by_name = _TABLES.index
        tables = [
            min(here, key=lambda file: by_name(PurePosixPath(file.place).name.lower())) for here in of_folder.values()
        ]
    classes, missing, used = dict[str, Any](), list[Item](), list[File]()
    for file in tables:
        rows = _Table(file, usable, "classes").classes(cfg)
        if rows is not None:
            of_images, without = _by_image(file, rows, usable)
            classes |= of_images
            missing += without
            used.append(file)
    return classes, missing, used


_Row = tuple[int, str, Any]
"""line, image, what the table says of it"""


def _by_image(table: File, rows: Iterable[_Row], usable: list[File]) -> tuple[dict[str, Any], list[Item]]:
    """What a table says of each image, and items for rows without one.

    It names images by their path from its own folder, or by the end of it, with or without a suffix, where only one
    image is called so; where no image lies in its folder, from the top. Raises SourceError where it names none.
    """
    inside = _parts(table.place)[:-1]
    if not any(_parts(file.place)[: len(inside)] == inside for file in usable):
        inside = ()
    named: dict[tuple[str, ...], set[str]] = {}
    for file in usable:
        parts = _parts(file.place)
        if parts[: len(inside)] == inside:
            for start in range(len(inside), len(parts)):
                for end in (parts[-1], PurePosixPath(parts[-1]).stem):
                    named.setdefault((*parts[start:-1], end), set()).add(file.name)
            whole = ("/", *parts[len(inside) :])
            named.setdefault(whole, set()).add(file.name)
    found, missing = dict[str, Any](), list[Item]()
    for line, name, value in rows:
        parts = tuple(part for part in _parts(name.replace("\\", "/")) if part not in (".", "/"))
        matches = named.get(("/", *parts)) or named.get(parts, set())
        image = next(iter(matches)) if len(matches) == 1 else ""
        why = ""
        if not image:
            why = f"{len(matches)} images are called so" if matches else "there is no such image"
        elif found.setdefault(image, value) != value:
            why = f"{value} here, {found[image]} in a line above"
        if why:
            missing.append(Item(f"{table.name}, line {line}: {name}", None, reason=why))
    if missing and not found:
        raise SourceError(
            f"{table.name}: none of its {len(missing)} rows names an image: {missing[0].id}: {missing[0].reason}; "
            "mend the paths, or set source.labels to folders or none to leave the table out"
        )
    return found, missing


def _parts(path: str) -> tuple[str, ...]:
    """Folders and name. Of two ways to write an accent, as macOS and others do, it is one."""
    return PurePosixPath(unicodedata.normalize("NFC", path)).parts


class _Table:
    """A CSV file with a header, or JSON Lines: its columns, and its rows by line."""

    def __init__(self, file: File, usable: list[File], what: str) -> None:
        """`what` it says of the images. Raises SourceError for what is neither, or has no header."""
        self.file, self.columns, self._what = file, list[str](), what
        self._rows: list[tuple[int, dict[str, Any]]] = []
        ((_, content, why),) = list(payloads([file]))
        try:
            if content is None:
                raise ValueError(why)
            text = (content.read_bytes() if isinstance(content, Path) else content).decode("utf-8-sig")
            (self._read_json if file.name.lower().endswith((".jsonl", ".ndjson")) else self._read_csv)(text)
        except (OSError, ValueError, csv.Error) as error:
            raise SourceError(f"{file.name}: {error}") from error
        if len(self.columns) < 2:
            raise SourceError(f"{file.name}: expected a first line of a name for the path and names of {what}")
        known = [name for name in self.columns if name.lower() in _FILE_COLUMNS]
        self._path = known[0] if known else self._column_of_paths(usable)
        suffixes = {PurePosixPath(one.name).suffix for one in usable} - {""}
        first = PurePosixPath(self.columns[0])
        if first.suffix in suffixes or all(_is_number(name) for name in self.columns[1:]):
            raise SourceError(
                f"{file.name}: no header: its first line is already of an image ({', '.join(self.columns[:_SHOWN])}); "
                "write a line of names above it, such as path,label"
            )

    def _column_of_paths(self, usable: list[File]) -> str:
        """The column by whose values most rows, of the first ones, name an image; the first of those."""
        images = {end for one in usable for end in (_parts(one.place)[-1], PurePosixPath(_parts(one.place)[-1]).stem)}

        def found(column: str) -> int:
            values = (str(row.get(column, "")).replace("\\", "/") for _, row in self._rows[:_TRIED])
            return sum(_parts(value)[-1:] != () and _parts(value)[-1] in images for value in values)

        return max(self.columns, key=found)

    def _read_json(self, text: str) -> None:
        for line, row in enumerate(text.split("\n"), 1):  # JSON may hold what else Python takes for an end of line
            if row.strip():
                try:
                    cells = json.loads(row)
                except ValueError as error:
                    raise ValueError(f"line {line}: {error}") from error
                if not isinstance(cells, dict):
                    raise ValueError(f"line {line}: expected an object")
                self._rows.append((line, cells))
                self.columns += [name for name in cells if name not in self.columns]

    def _read_csv(self, text: str) -> None:
        first = text.split("\n", 1)[0]
        delimiter = max(",;\t|", key=first.count)
        rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
        try:
            header = [name.strip() for name in next(rows, [])]
            self.columns = [name for name in header if name]  # pandas leaves that of the index empty
            for cells in rows:
                if cells:
                    if len(cells) != len(header):
                        wanted = "finite numbers" if self._what == "attributes" else self._what
                        raise ValueError(
                            f"line {rows.line_num}: expected {len(header) - 1} {wanted}, found {cells[1:]}"
                        )
                    row = {name: cell.strip() for name, cell in zip(header, cells, strict=True)}
                    self._rows.append((rows.line_num, row))
        except csv.Error as error:
            raise ValueError(f"line {rows.line_num}: {error}") from error
        if twice := [name for name, count in Counter(self.columns).items() if count > 1]:
            raise ValueError(f"more than one column is called {', '.join(twice)}")

    def classes(self, cfg: Config) -> list[_Row] | None:
        """None where no column is of classes, in a table that is only found, and not named."""
        column = self._class_column(cfg)
        if column is None:
            return None
        for line, row in self._rows:
            if isinstance(row.get(column), list | dict):
                raise SourceError(f"{self.file.name}: line {line}: {column} is a list; expected one class")
        return [(line, str(row.get(self._path, "")), class_name(row.get(column))) for line, row in self._rows]

    def _class_column(self, cfg: Config) -> str | None:
        others = [name for name in self.columns if name != self._path]
        wanted = [cfg.label_column] if cfg.label_column else _CLASS_COLUMNS
        if found := [name for one in wanted for name in others if one in (name, name.lower())]:
            return found[0]
        is_for_labels = cfg.table or PurePosixPath(self.file.place).name.lower() == "labels.csv"
        if is_for_labels and len(others) == 1 and not cfg.label_column:
            return others[0]
        if is_for_labels or cfg.label_column:
            hint = "" if cfg.label_column else "; name the one of classes in source.label_column"
            raise SourceError(f"{self.file.name}: no column {' or '.join(wanted)}; it has: {', '.join(others)}{hint}")
        return None

    def numbers(self) -> tuple[tuple[str, ...], list[_Row]]:
        """`(names of attributes, rows)`. Raises SourceError, naming the line that is wrong."""
        names = tuple(name for name in self.columns if name != self._path)
        found = []
        for line, row in self._rows:
            try:
                values = tuple(float(row[name]) for name in names)
            except (KeyError, TypeError, ValueError) as error:
                raise SourceError(f"{self.file.name}: line {line}: {error}") from error
            if not all(math.isfinite(value) for value in values):
                raise SourceError(f"{self.file.name}: line {line}: expected finite numbers, found {values}")
            found.append((line, str(row[self._path]), values))
        return names, found


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
