"""CSV files with a header, one or many, in the raw folder: rows of cells by column name.

Where it has folders or files `train` and `test` or `val` (or `NAME.data` and `NAME.test`), these are the splits;
otherwise rows are split by their content.
"""

from __future__ import annotations

import codecs
import csv
import itertools
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from ganlib._config import Config as _Base
from ganlib.sources._files import SourceError, Split, splits_of_files
from ganlib.sources._source import Item, Source, class_names, files, labels_of, left_over

__all__ = ["KINDS", "Config", "load"]

KINDS = ("table",)

_DELIMITERS = (",", ";", "\t", "|")
_SNIFFED = 200  # records by which the delimiter is guessed
_PART = 20_000  # rows
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_SHOWN = 5  # cells of a header that is none


class Config(_Base):
    name: Literal["csv"] = "csv"
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] | None = None
    """null: the one of comma, semicolon, tab and bar by which most lines have as many cells as the header"""
    encoding: str | None = None
    """null: UTF-8, or UTF-16 where the file looks like it"""
    label: str | None = None
    """a column that is the class of each row, and then no longer one of its columns; null: unlabelled"""


@dataclass(frozen=True)
class _File:
    path: Path
    encoding: str
    delimiter: str
    header: tuple[str, ...]
    split: Split | None = None


def load(cfg: Config, raw: Path) -> Source:
    """Every file is read once, to count rows. Raises SourceError for a file that is empty or not text in the encoding,
    has no header or an open quote, for headers that differ or name a column twice, and a label that is no column."""
    paths = files(raw, "CSV files", (".csv", ".tsv", ".txt"))
    splits, note = splits_of_files(raw, paths)
    found = [_opened(path, cfg, splits.get(path)) for path in paths]
    first = found[0]
    for other in found[1:]:
        if sorted(other.header) != sorted(first.header):
            differing = sorted(set(other.header) ^ set(first.header))
            raise SourceError(f"{other.path}: its columns are not those of {first.path.name}: {', '.join(differing)}")
    if cfg.label is not None and cfg.label not in first.header:
        raise SourceError(f"{first.path}: no column {cfg.label!r}; it has: {', '.join(first.header)}")
    starts, count, values = list[tuple[_File, int, int]](), 0, set[str]()
    for file in found:
        label_at = file.header.index(cfg.label) if cfg.label else -1
        rows = offset = 0
        for offset, cells in _records(file):
            if not rows % _PART:
                starts.append((file, offset, rows))
            rows += 1
            if cfg.label and len(cells) == len(file.header):
                values.add(cells[label_at].strip())
        _check_quotes(file, offset)
        count += rows
    if not count:
        raise SourceError(f"{first.path}: there are no rows below the header")
    known = labels_of(values - {""})
    columns = tuple(name for name in first.header if name != cfg.label)
    parts = [partial(_items, raw, file, columns, offset, row, cfg.label, known) for file, offset, row in starts]
    about = f"{len(found)} CSV files, {first.encoding}, delimiter {first.delimiter!r}"
    notes = (note,) if note else ()
    return Source(about, count, parts, class_names(known), passed_over=left_over(raw, paths), notes=notes)


def _items(
    raw: Path, file: _File, columns: tuple[str, ...], offset: int, row: int, label: str | None, known: dict[str, int]
) -> Iterator[Item]:
    """Up to `_PART` rows from an offset on; the first has the number `row`."""
    names, width = file.header, len(file.header)
    kept = [(name, names.index(name)) for name in columns]
    at = names.index(label) if label else -1
    for number, (_, cells) in zip(range(row, row + _PART), _records(file, offset), strict=False):
        where = f"{file.path.relative_to(raw)}, row {number + 1}"
        if len(cells) != width:
            reason = f"it has {len(cells)} cells, the header has {width}"
            yield Item(where, None, reason=reason)
        else:
            payload = {name: cells[i] for name, i in kept}
            yield Item(where, payload, known.get(cells[at].strip()) if label else None, file.split)


# -- one file -----------------------------------------------------------------------------------------------------


def _opened(path: Path, cfg: Config, split: Split | None) -> _File:
    encoding = cfg.encoding or _encoding(path)
    try:
        codecs.lookup(encoding)
    except LookupError as error:
        raise SourceError(f"encoding: {encoding!r} is not known") from error
    if codecs.lookup(encoding).name == "utf-8" and _encoding(path) == "utf-8-sig":
        encoding = "utf-8-sig"
    delimiter = cfg.delimiter or _delimiter(path, encoding)
    header, *rows = _first(path, encoding, delimiter) or [[""]]
    if header == [""]:
        raise SourceError(f"{path}: empty, expected a header and rows")
    if _is_row(header, rows):
        raise SourceError(
            f"{path}: no header: its first line is already of numbers ({', '.join(header[:_SHOWN])}); "
            "write a line of names above it"
        )
    # pandas calls a column without a name, as `to_csv` writes the index, so
    names = tuple(name.strip() or f"Unnamed: {i}" for i, name in enumerate(header))
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise SourceError(f"{path}: more than one column is called {', '.join(map(repr, twice))}")
    return _File(path, encoding, delimiter, names, split)


def _encoding(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(4096)
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    if start.startswith(codecs.BOM_UTF8):
        return "utf-8-sig"
    zeros = start[1::2].count(0), start[::2].count(0)
    if max(zeros) > 0.3 * len(start[::2]):  # Latin text without a mark
        return "utf-16-le" if zeros[0] > zeros[1] else "utf-16-be"
    return "utf-8"


def _first(path: Path, encoding: str, delimiter: str) -> list[list[str]]:
    """The cells of the first records."""
    return [cells for _, cells in itertools.islice(_records(_File(path, encoding, delimiter, ()), 0), _SNIFFED)]


def _delimiter(path: Path, encoding: str) -> str:
    """By which most of the first records have as many cells as the header: more than one, or else one. Raises
    SourceError where they agree with one another, but not with the header."""
    first = {delimiter: _first(path, encoding, delimiter) for delimiter in _DELIMITERS}
    widths = {delimiter: [len(cells) for cells in records] or [0] for delimiter, records in first.items()}

    def agreement(delimiter: str) -> tuple[bool, float, int]:
        header = widths[delimiter][0]
        share = widths[delimiter].count(header) / len(widths[delimiter])
        return header > 1 and share > 0.5, share, header

    best = max(_DELIMITERS, key=agreement)
    if agreement(best)[0]:
        return best
    for delimiter, found in widths.items():
        usual, count = Counter(found).most_common(1)[0]
        if usual > 1 and count > 0.5 * len(found) and not (delimiter == "," and _are_decimals(first[delimiter])):
            raise SourceError(
                f"{path}: its first line has {found[0]} cells, most lines have {usual} (delimiter {delimiter!r}); "
                "expected a line of as many names, or, where the lines are of one cell, source.delimiter"
            )
    return best


def _are_decimals(records: list[list[str]]) -> bool:
    """Whether what commas part are the numbers of one column, with a decimal comma."""
    return all(len(cells) <= 2 and all(cell.lstrip("+-").isdecimal() for cell in cells) for cells in records[1:])


def _is_row(header: list[str], rows: list[list[str]]) -> bool:
    """Whether what should be names are numbers of a row: one with a fraction, above numbers, or nothing but numbers
    that are no years."""

    def number(text: str) -> bool:
        return _NUMBER.fullmatch(text.strip()) is not None

    def above_numbers(i: int) -> bool:
        return all(len(row) > i and (not row[i].strip() or number(row[i])) for row in rows)

    fractions = [i for i, name in enumerate(header) if number(name) and not name.strip().lstrip("+-").isdecimal()]
    years = all(re.fullmatch(r"\s*[12]\d{3}\s*", name) for name in header)
    return any(map(above_numbers, fractions)) or (all(map(number, header)) and not years)


def _records(file: _File, offset: int | None = None) -> Iterator[tuple[int, list[str]]]:
    """`(where it begins, cells)` of each record from an `offset` on, by default from the first below the header; empty
    lines are none. Raises SourceError for what is not text in the encoding."""
    lines = _Lines(file.path, file.encoding, offset or 0)
    records = csv.reader(iter(lines), delimiter=file.delimiter)
    start, is_header = lines.position, offset is None
    while True:
        try:
            cells = next(records, None)
        except UnicodeError as error:
            raise SourceError(
                f"{file.path}: not {file.encoding} after {lines.unit} {start}: {error}; write its `encoding`"
            ) from error
        except csv.Error as error:
            raise SourceError(f"{file.path}: after {lines.unit} {start}: {error}") from error
        if cells is None:
            return
        if cells and not is_header:
            yield start, cells
        is_header = is_header and not cells
        start = lines.position


def _check_quotes(file: _File, start: int) -> None:
    """Raise SourceError where the last record, which begins there, is all that follows a quote that is never closed."""
    lines = _Lines(file.path, file.encoding, start)
    try:
        list(csv.reader(iter(lines), delimiter=file.delimiter, strict=True))
    except csv.Error as error:
        if "unexpected end of data" in str(error):
            raise SourceError(
                f"{file.path}: a cell after {lines.unit} {start} begins with a quote that is never closed"
            ) from error


class _Lines:
    """Lines of a file from a position on, and the position after the last one given."""

    def __init__(self, path: Path, encoding: str, position: int) -> None:
        self._path, self._encoding, self.position = path, encoding, position
        self._wide = encoding.lower().startswith(("utf-16", "utf_16", "utf-32", "utf_32"))
        self.unit = "line" if self._wide else "byte"
        """of positions: where a newline is several bytes, lines are counted"""

    def __iter__(self) -> Iterator[str]:
        if self._wide:
            first = self.position
            with self._path.open(encoding=self._encoding, newline="") as text:
                for number, line in enumerate(text):
                    if number >= first:
                        self.position = number + 1
                        yield line
            return
        encoding = "utf-8" if self._encoding == "utf-8-sig" else self._encoding
        with self._path.open("rb") as file:
            if not self.position and self._encoding == "utf-8-sig":
                self.position = len(codecs.BOM_UTF8)
            file.seek(self.position)
            for raw in file:
                self.position += len(raw)
                yield raw.decode(encoding)
