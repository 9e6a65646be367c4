"""CSV files with a header, one or many, in the raw folder: rows of cells by column name.

Where it has folders `train` and `test` or `val`, these are the splits; otherwise rows are split by their content.
"""

from __future__ import annotations

import codecs
import csv
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from ganlib._config import Config as _Base
from ganlib.sources._files import SourceError, Split, splits_note, splits_of
from ganlib.sources._source import Item, Source, class_names, files, labels_of, left_over

__all__ = ["KINDS", "Config", "load"]

KINDS = ("table",)

_DELIMITERS = (",", ";", "\t", "|")
_SNIFFED = 200  # records by which the delimiter is guessed
_PART = 20_000  # rows


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
    headers that differ or name a column twice, and a label that is no column."""
    paths = files(raw, "CSV files", (".csv", ".tsv", ".txt"))
    splits = splits_of({path.relative_to(raw).parts[0] for path in paths})
    found = [_opened(path, cfg, splits.get(path.relative_to(raw).parts[0])) for path in paths]
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
        rows = 0
        for offset, cells in _records(file):
            if not rows % _PART:
                starts.append((file, offset, rows))
            rows += 1
            if cfg.label and len(cells) == len(file.header):
                values.add(cells[label_at].strip())
        count += rows
    if not count:
        raise SourceError(f"{first.path}: there are no rows below the header")
    known = labels_of(values - {""})
    columns = tuple(name for name in first.header if name != cfg.label)
    parts = [partial(_items, raw, file, columns, offset, row, cfg.label, known) for file, offset, row in starts]
    about = f"{len(found)} CSV files, {first.encoding}, delimiter {first.delimiter!r}"
    notes = (splits_note(splits),) if splits else ()
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
    delimiter = cfg.delimiter or _delimiter(path, encoding)
    _, header = next(_records(_File(path, encoding, delimiter, ()), 0), (0, [""]))
    if header == [""]:
        raise SourceError(f"{path}: empty, expected a header and rows")
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


def _delimiter(path: Path, encoding: str) -> str:
    """By which most of the first records have as many cells as the header: more than one, or else one."""
    scores = {}
    for delimiter in _DELIMITERS:
        records = _records(_File(path, encoding, delimiter, ()), 0)
        widths = [len(cells) for _, (_, cells) in zip(range(_SNIFFED), records, strict=False)] or [0]
        share = sum(width == widths[0] for width in widths) / len(widths)
        scores[delimiter] = (widths[0] > 1 and share > 0.5, share, widths[0])
    return max(_DELIMITERS, key=lambda delimiter: scores[delimiter])


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
