"""What tables say of image files: a CSV file with a header, or JSON Lines, with the path of each image, or JSON as of
NVlabs' dataset_tool.py."""

from __future__ import annotations

import codecs
import contextlib
import csv
import io
import json
import math
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

from ganlib.data._classes import class_name
from ganlib.sources._files import File, payloads
from ganlib.sources._source import Item, SourceError

__all__ = ["Table", "file_called", "is_foreign"]

_FILE_COLUMNS = ("file_name", "filename", "file", "path", "image")
_CLASS_COLUMNS = ("label", "class", "category", "target")
_SHOWN = 5
_DELIMITERS = ",;\t|"
_SNIFFED = 200  # records by which the delimiter is guessed
_ENCODINGS = "tables are read in UTF-8, or in UTF-16 with a byte order mark: save it as UTF-8"
_TRIED = 1_000  # rows of a table, to find the column of paths

Row = tuple[int, str, Any]
"""line, image, what the table says of it"""


def file_called(raw: Path, name: str, others: list[File], key: str) -> File:
    """The file that `source.KEY` names. Raises SourceError where there is none."""
    for file in others:
        if name in (file.name, file.place) and not file.fault:
            return file
    raise SourceError(f"source.{key}: {raw / name}: no such file")


def is_foreign(file: File) -> bool:
    """Whether a JSON file is not one of labels."""
    ((_, content, _),) = list(payloads([file]))
    data = content.read_bytes() if isinstance(content, Path) else content or b""
    try:
        return _pairs(_decoded(data)) is None
    except ValueError:
        return b'"labels"' not in data  # of one that has labels `Table` says why


def _pairs(text: str) -> list[Any] | None:
    """`[[path, label], ...]`, empty where the labels are null; None of a JSON file with other content."""
    content = json.loads(text)
    if not isinstance(content, dict) or "labels" not in content:
        return None
    if (pairs := content["labels"]) is None:
        return []
    is_ours = isinstance(pairs, list) and all(
        isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str) for pair in pairs
    )
    return pairs if is_ours and pairs else None


def _parts(path: str) -> tuple[str, ...]:
    """Folders and name. Of two ways to write an accent, as macOS and others do, it is one."""
    return PurePosixPath(unicodedata.normalize("NFC", path)).parts


class Table:
    """A CSV file with a header, JSON Lines, or JSON of labels: its columns, and its rows by line."""

    def __init__(self, file: File, usable: list[File], what: str) -> None:
        """`what` it says of the images. Raises SourceError for what is neither, or has no header."""
        self.file, self.columns, self._usable, self._what = file, list[str](), usable, what
        self._rows: list[tuple[int, dict[str, Any]]] = []
        self._unit = "line"
        ((_, content, why),) = list(payloads([file]))
        try:
            if content is None:
                raise ValueError(why)
            text = _decoded(content.read_bytes() if isinstance(content, Path) else content)
            readers = {".jsonl": self._read_json, ".ndjson": self._read_json, ".json": self._read_pairs}
            readers.get(PurePosixPath(file.name.lower()).suffix, self._read_csv)(text)
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

    def by_image(self, rows: Iterable[Row]) -> tuple[dict[str, Any], list[Item]]:
        """What `rows` say of each image, and items for rows without one.

        Rows name images by their path from the table's own folder, or by the end of it, with or without a suffix, where
        only one image is called so; where no image lies in its folder, from the top. Raises SourceError where all rows
        name none.
        """
        inside = _parts(self.file.place)[:-1]
        if not any(_parts(file.place)[: len(inside)] == inside for file in self._usable):
            inside = ()
        named: dict[tuple[str, ...], set[str]] = {}
        for file in self._usable:
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
                why = f"{value} here, {found[image]} in a {self._unit} above"
            if why:
                missing.append(Item(f"{self.file.name}, {self._unit} {line}: {name}", None, reason=why))
        if missing and not found:
            mend = "mend the paths"
            if self._what == "classes":
                mend += ", or set source.labels to folders or none to leave the table out"
            first = f"{missing[0].id}: {missing[0].reason}"
            raise SourceError(f"{self.file.name}: none of its {len(missing)} rows names an image: {first}; {mend}")
        return found, missing

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

    def _read_pairs(self, text: str) -> None:
        pairs = _pairs(text)
        if pairs is None:
            raise ValueError('expected {"labels": [[path, class], ...]}, or null in place of the list')
        self.columns, self._unit = ["file_name", "label"], "label"
        self._rows = [(i, {"file_name": path, "label": label}) for i, (path, label) in enumerate(pairs, 1)]

    def _read_csv(self, text: str) -> None:
        rows = _records(text, _delimiter(text))
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

    def classes(self, column: str | None, named: bool, last: bool) -> list[Row] | None:
        """By the `column`, or the one that is called like classes. None where there is none, in a table that was only
        found, and not `named`, or is not the `last` of its folder."""
        column = self._class_column(column, named, last)
        if column is None:
            return None
        for line, row in self._rows:
            if isinstance(row.get(column), list | dict):
                raise SourceError(f"{self.file.name}: {self._unit} {line}: {column} is a list; expected one class")
        return [(line, str(row.get(self._path, "")), class_name(row.get(column))) for line, row in self._rows]

    def splits(self) -> list[Row]:
        """By the column `split`, as text; none where there is no such column."""
        found = [name for name in self.columns if name.lower() == "split"][:1]
        return [
            (line, str(row.get(self._path, "")), str(row.get(name) or "")) for name in found for line, row in self._rows
        ]

    def _class_column(self, column: str | None, named: bool, last: bool) -> str | None:
        others = [name for name in self.columns if name != self._path]
        wanted = [column] if column else _CLASS_COLUMNS
        if found := [name for one in wanted for name in others if one in (name, name.lower())]:
            return found[0]
        is_for_labels = named or PurePosixPath(self.file.place).name.lower() == "labels.csv"
        rest = [name for name in others if name.lower() != "split"]
        if is_for_labels and len(rest) == 1 and not column:
            return rest[0]
        if last and (is_for_labels or column):
            hint = "" if column else "; name the one of classes in source.label_column"
            raise SourceError(f"{self.file.name}: no column {' or '.join(wanted)}; it has: {', '.join(others)}{hint}")
        return None

    def numbers(self, columns: Sequence[str] = ()) -> tuple[tuple[str, ...], list[Row]]:
        """`(names of attributes, rows)`, of some columns or of all.

        Raises SourceError, naming the line that is wrong, or the columns that there are.
        """
        names = tuple(name for name in self.columns if name != self._path)
        for name in columns:
            if name not in names:
                raise SourceError(f"{self.file.name}: no column {name!r}; it has: {', '.join(names)}")
        names = tuple(columns) or names
        found = []
        for line, row in self._rows:
            values = tuple(self._number(line, name, row.get(name)) for name in names)
            found.append((line, str(row.get(self._path, "")), values))
        return names, found

    def _number(self, line: int, name: str, cell: Any) -> float:
        try:
            number = float(cell)
        except (OverflowError, TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise SourceError(
                f"{self.file.name}: {self._unit} {line}: {name}: expected a finite number, found {cell!r}"
            )
        return number


def _decoded(content: bytes) -> str:
    """Raises ValueError for what is neither UTF-8 nor UTF-16 with a byte order mark."""
    is_utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode("utf-16" if is_utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is not {'UTF-16' if is_utf16 else 'UTF-8'}; {_ENCODINGS}") from error
    if "\0" in text.split("\n", 1)[0]:  # UTF-16 without a mark is valid UTF-8 where it is Latin text
        raise ValueError(f"its first line has null characters; {_ENCODINGS}")
    return text


def _records(text: str, delimiter: str) -> Any:
    """The reader of `csv`."""
    return csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)


def _delimiter(text: str) -> str:
    """By which most of the first records have as many cells as the header, more than one; where there is none such,
    the most frequent one of the first line."""

    def agreement(delimiter: str) -> tuple[bool, float, int]:
        widths = list[int]()
        # The wrong delimiter may find a quote that is never closed, and then a field above the limit.
        with contextlib.suppress(csv.Error):
            widths += (len(cells) for cells in islice(_records(text, delimiter), _SNIFFED) if cells)
        header = widths[0] if widths else 0
        share = widths.count(header) / max(1, len(widths))
        return header > 1 and share > 0.5, share, header

    best = max(_DELIMITERS, key=agreement)
    first = text.split("\n", 1)[0]
    return best if agreement(best)[0] else max(_DELIMITERS, key=first.count)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
