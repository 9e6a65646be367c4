"""Text files, UTF-8, in which each line is an example; blank lines are none.

Of a line all is text, or one of its columns; its class is that of its file, or another column. A header is a line like
any other. Where there are folders or files `train` and `test` or `val`, these are the splits (folders alone where files
are classes); otherwise lines are split by their content.
"""

from __future__ import annotations

import glob
import importlib.util
from collections.abc import Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from ganlib._config import Config as _Base
from ganlib.sources._files import Split, splits_of_files
from ganlib.sources._source import Item, Source, SourceError, class_names, labels_of, left_over

__all__ = ["Config", "load"]

_PART_LINES = 8192
_LINE_BYTES = 2**20  # of a line that is read at all

Column = Annotated[int, Field(ge=0)]


class Config(_Base):
    name: Literal["lines"] = "lines"
    package: str | None = None
    """an installed package whose files are read in place of those in data/raw/NAME"""
    files: tuple[str, ...] = ("**/*.txt",)
    """patterns of paths below the folder"""
    delimiter: str | None = None
    """between the columns of a line; a space: any white space; None: a line is one column"""
    column: Column = 0
    """which column is the text, counted from 0"""
    labels: Literal["none", "files", "column"] = "none"
    """"files": each file is a class, by its name without suffix; "column": `label_column` names the class"""
    label_column: Column = 1

    @model_validator(mode="after")
    def _columns(self) -> Config:
        if self.delimiter == "":
            raise ValueError("delimiter: expected one character or more, or null, found an empty string")
        if self.labels == "column" and (self.delimiter is None or self.column == self.label_column):
            raise ValueError("labels: column needs a delimiter, and a label_column other than column")
        return self


def load(cfg: Config, raw: Path) -> Source:
    """Reads all files once, for the number of lines and the labels. Raises SourceError if there is nothing to read."""
    folder, about = (raw, "") if cfg.package is None else _package(cfg.package)
    if not folder.is_dir():
        raise SourceError(f"{folder}: no such folder; put text files there")
    paths = sorted({path for pattern in cfg.files for path in _matching(folder, pattern)})
    if not paths:
        raise SourceError(f"{folder}: no file matches source.files ({', '.join(cfg.files)})")
    starts, count, labels, quoted = list[tuple[Path, int, int]](), 0, set[str](), 0
    for path in paths:
        _check_encoding(path)
        lines = 0
        for number, (start, line) in enumerate(_lines(path), 1):
            if _is_blank(line):
                continue
            if lines % _PART_LINES == 0:
                starts.append((path, start, number))
            lines += 1
            quoted += cfg.delimiter is not None and line is not None and line.startswith(b'"')
            if cfg.labels == "column" and (label := _label(cfg, line)):
                labels.add(label)
        count += lines
    if not count:
        raise SourceError(f"{folder}: no line of text in {len(paths)} files, as {paths[0].name}")
    known = labels_of(labels) if cfg.labels == "column" else labels_of(p.stem for p in paths if cfg.labels == "files")
    splits, note = splits_of_files(folder, paths, by_name=cfg.labels != "files")
    parts = [partial(_items, cfg, folder, path, at, number, known, splits.get(path)) for path, at, number in starts]
    what = about or f"{len(paths)} text files"
    left = left_over(raw, paths) if cfg.package is None else {}  # a package has code next to its text
    notes = [note] if note else []
    if 2 * quoted > count:
        notes.append(
            "Most lines begin with a quotation mark: they are not read as CSV, so the marks around a cell are part of "
            "it, and a delimiter between them ends it."
        )
    return Source(f"{what}: {count} lines", count, parts, class_names(known), passed_over=left, notes=tuple(notes))


def _matching(folder: Path, pattern: str) -> Iterator[Path]:
    """Files of a pattern, links followed, but none twice by a link to a folder that it lies in; no hidden ones. Raises
    SourceError for a pattern that leads out of the folder."""
    if pattern.startswith("/") or ".." in Path(pattern).parts:
        raise SourceError(f"source.files: {pattern}: expected a pattern of paths below {folder}")
    for name in glob.glob(pattern, root_dir=folder, recursive=True):
        path = folder / name
        around = [parent.resolve() for parent in path.parents if parent.is_relative_to(folder)]
        if path.is_file() and "__MACOSX" not in path.parts and len(set(around)) == len(around):
            yield path


def _is_blank(line: bytes | None) -> bool:
    """Whether there is nothing but white space of any language."""
    return line is not None and not line.decode("utf-8-sig", "replace").strip()


def _package(name: str) -> tuple[Path, str]:
    """The folder of an installed package, and what it is. Raises SourceError if there is none."""
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise SourceError(f"source.package: {name!r} is not installed; pip install {name}")
    try:
        about = f"{name} {version(name)}"
    except PackageNotFoundError:
        about = name
    return Path(next(iter(spec.submodule_search_locations))), about


def _check_encoding(path: Path) -> None:
    """Raises SourceError for a file that says itself that it is not UTF-8."""
    with path.open("rb") as file:
        beginning = file.read(4)
    if beginning[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise SourceError(f"{path}: UTF-16 or UTF-32 by its first bytes; expected UTF-8 (iconv -t utf-8 converts it)")


def _lines(path: Path, start: int = 0) -> Iterator[tuple[int, bytes | None]]:
    """`(position, line)` from a position on; None in place of a line that is too long to be held."""
    with path.open("rb") as file:
        file.seek(start)
        while line := file.readline(_LINE_BYTES):
            position, whole = start, line
            while len(line) == _LINE_BYTES and not line.endswith(b"\n"):
                line = file.readline(_LINE_BYTES)
            start = file.tell()
            yield position, whole if start - position <= _LINE_BYTES else None


def _items(
    cfg: Config, folder: Path, path: Path, start: int, number: int, known: dict[str, int], split: Split | None
) -> Iterator[Item]:
    """The next `_PART_LINES` lines from a position, which is that of line `number`."""
    lines, name = 0, str(path.relative_to(folder))
    for at, (_, line) in enumerate(_lines(path, start), number):
        if _is_blank(line):
            continue
        if lines == _PART_LINES:
            return
        lines += 1
        try:
            text = _column(_text(line), cfg, cfg.column)
            label = known[path.stem] if cfg.labels == "files" else known.get(_label(cfg, line) or "")
            yield Item(f"{name}:{at}", text, label, split)
        except ValueError as error:
            yield Item(f"{name}:{at}", None, reason=str(error))


def _text(line: bytes | None) -> str:
    """Raises ValueError for what is not UTF-8, or too long."""
    if line is None:
        raise ValueError(f"longer than {_LINE_BYTES:,} bytes")
    try:
        return line.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8: byte 0x{line[error.start]:02x} at {error.start}, {error.reason}") from error


def _column(text: str, cfg: Config, column: int) -> str:
    """Raises ValueError if the line has no such column."""
    if cfg.delimiter is None:
        if column:
            raise ValueError(f"no column {column}: source.delimiter is null")
        return text
    columns = text.split(None if cfg.delimiter == " " else cfg.delimiter)
    if column >= len(columns):
        raise ValueError(f"{len(columns)} columns, expected one of number {column} (from 0)")
    return columns[column].strip()


def _label(cfg: Config, line: bytes | None) -> str | None:
    """What stands in the label's column; None where nothing can be read there."""
    if cfg.labels != "column":
        return None
    try:
        return _column(_text(line), cfg, cfg.label_column) or None
    except ValueError:
        return None
