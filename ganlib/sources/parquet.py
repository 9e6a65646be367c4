"""Parquet files: a column of images (bytes, `{bytes, path}`, tensors, lists of numbers), or whole rows.

Where there are folders or files `train` and `test` or `val`, also in shards (`train-00000-of-00002`), these are the
splits; otherwise examples are split by their content.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import model_validator

from ganlib._config import Config as _Base
from ganlib.data._column import Text
from ganlib.sources._files import Split, splits_of_files
from ganlib.sources._source import Item, Source, SourceError, class_names, files, labels_of, left_over

__all__ = ["KINDS", "Config", "load"]

KINDS = ("image", "table")
_BATCH = 64


class Config(_Base):
    name: Literal["parquet"] = "parquet"
    image: str | None = "image"
    """the column of images; null: an example is a row, by the names of its columns"""
    label: str | None = "label"
    """the column of labels, numbers or strings; null: unlabelled"""
    attributes: tuple[str, ...] = ()
    """columns of numbers or booleans that describe each image: several labels, continuous conditions"""

    @model_validator(mode="after")
    def _one_condition(self) -> Config:
        if self.label and self.attributes:
            raise ValueError(
                "attributes and a label cannot both be the condition; set label to null, or leave attributes out"
            )
        return self


def load(cfg: Config, raw: Path) -> Source:
    """Raises SourceError if a file is unreadable, or a column is missing or cannot hold images or labels, or rows of
    one file have other columns than those of another."""
    paths = files(raw, "Parquet files", (".parquet",))
    columns = [*([cfg.image] if cfg.image else []), *([cfg.label] if cfg.label else []), *cfg.attributes]
    first: list[str] = []
    groups: list[tuple[Path, int]] = []
    values: set[Any] = set()
    with_names: dict[bool, Path] = {}
    count = 0
    for path in paths:
        try:
            file = pq.ParquetFile(path)
        except (OSError, pa.ArrowInvalid) as error:
            raise SourceError(f"{path}: {' '.join(str(error).split())}") from error
        own, folders = _columns(file), _partitions(raw, path, file)
        names = [*own, *folders]
        if cfg.image is None and (differing := set(names) ^ set(first := first or names)):
            raise SourceError(f"{path}: its columns are not those of {paths[0].name}: {', '.join(sorted(differing))}")
        for column in columns:
            if column not in (names if column == cfg.label else own):
                hint = "; source.label: null reads data without labels" if column == cfg.label else ""
                raise SourceError(f"{path}: no column {column!r}; it has: {', '.join(own)}{hint}")
        if cfg.image:
            _reader(path, cfg.image, file.schema_arrow.field(cfg.image).type)
        for column in cfg.attributes:
            kind = file.schema_arrow.field(column).type
            if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
                raise SourceError(f"{path}: column {column!r} is {kind}; attributes are numbers or booleans")
        groups += [(path, i) for i in range(file.num_row_groups)]
        count += file.metadata.num_rows
        if cfg.label in folders:
            values.add(folders[cfg.label])
        elif cfg.label:
            names_of_labels = _names_of_labels(file, cfg.label)
            if pa.types.is_integer(file.schema_arrow.field(cfg.label).type):
                with_names[bool(names_of_labels)] = path
            for batch in file.iter_batches(columns=[cfg.label]):
                try:
                    values.update(_named(batch.column(0).unique().to_pylist(), names_of_labels))
                except (pa.ArrowNotImplementedError, TypeError) as error:
                    kind = batch.schema.types[0]
                    raise SourceError(f"{path}: column {cfg.label!r} of {kind} cannot be labels") from error
    if len(with_names) == 2:
        raise SourceError(
            f"{with_names[False]}: column {cfg.label!r} has numbers, and in {with_names[True].name} names of classes "
            "for them; write names in place of the numbers"
        )
    known = labels_of(values)
    splits, note = splits_of_files(raw, paths)
    parts = [partial(_items, raw, path, group, cfg, known, splits.get(path)) for path, group in groups]
    about, classes, notes = f"{len(paths)} Parquet files", class_names(known), (note,) if note else ()
    return Source(about, count, parts, classes, cfg.attributes, left_over(raw, paths), notes)


def _columns(file: pq.ParquetFile) -> list[str]:
    """Those of the file, without an index of pandas that has no name."""
    return [name for name in file.schema_arrow.names if not re.fullmatch(r"__index_level_\d+__", name)]


def _partitions(raw: Path, path: Path, file: pq.ParquetFile) -> dict[str, str | None]:
    """The columns that folders hold, `year=2020/`, as Hive, Spark and pandas write them, and the file does not."""
    pairs = (part.split("=", 1) for part in path.relative_to(raw).parts[:-1] if "=" in part)
    found = {name: None if value == "__HIVE_DEFAULT_PARTITION__" else unquote(value) for name, value in pairs}
    return {name: value for name, value in found.items() if name not in file.schema_arrow.names}


def _names_of_labels(file: pq.ParquetFile, column: str) -> list[str]:
    """What the numbers of a column mean where Hugging Face's `datasets` wrote it as a ClassLabel; empty elsewhere."""
    about = json.loads((file.schema_arrow.metadata or {}).get(b"huggingface", b"{}"))
    feature = ((about.get("info") or {}).get("features") or {}).get(column)
    return list(feature["names"]) if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" else []


def _named(labels: list[Any], names: list[str]) -> list[Any]:
    """The names of labels, where these are numbers with names: then others, as -1, are no labels."""
    known = dict(enumerate(names))
    return [known.get(label) for label in labels] if names else labels


def _items(
    raw: Path, path: Path, group: int, cfg: Config, known: dict[Any, int], split: Split | None
) -> Iterator[Item]:
    file = pq.ParquetFile(path)
    folders = _partitions(raw, path, file)
    condition_columns = [*([cfg.label] if cfg.label and cfg.label not in folders else []), *cfg.attributes]
    names = [name for name in _columns(file) if name not in condition_columns]
    columns = [*([cfg.image] if cfg.image else names), *condition_columns]
    read, rows = None, _BATCH
    if cfg.image:
        kind = file.schema_arrow.field(cfg.image).type
        read = _reader(path, cfg.image, kind)
        # Out of a few bytes, a dictionary may repeat a large image in every row: it is kept as a dictionary, or else
        # one row is read at a time.
        if encoded := _encoded(cfg.image, kind):
            file = pq.ParquetFile(path, read_dictionary=[encoded])
        else:
            rows = 1
    names_of_labels = _names_of_labels(file, cfg.label or "")
    batches, row = file.iter_batches(rows, row_groups=[group], columns=columns), 0
    where = f"{path.relative_to(raw)}[group {group}"
    while True:
        try:
            batch = next(batches, None)
        except (OSError, pa.ArrowException) as error:
            raise SourceError(f"{path}: group {group}: {' '.join(str(error).split())}") from error
        if batch is None:
            return
        labels = [folders.get(cfg.label or "")] * batch.num_rows
        if cfg.label and cfg.label not in folders:
            labels = _named(batch.column(cfg.label).to_pylist(), names_of_labels)
        described = zip(*(batch.column(name).to_pylist() for name in cfg.attributes), strict=True)
        attributes = list(described) if cfg.attributes else [()] * batch.num_rows
        inside = {name: value for name, value in folders.items() if name != cfg.label}
        cells = batch.column(cfg.image) if cfg.image else [row | inside for row in _rows(batch.select(names))]
        for cell, label, numbers in zip(cells, labels, attributes, strict=True):
            try:
                payload = cell if read is None else read(cell) if cell.is_valid else None
            except ValueError:  # lists of unequal lengths
                payload = None
            complete = all(number is not None and math.isfinite(number) for number in numbers)
            known_numbers = tuple(float(number) for number in numbers) if complete else None
            yield Item(f"{where}, row {row}]", payload, known.get(label), split, known_numbers)
            row += 1


def _rows(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """Cells by column; a float32 is the float64 that is written with the same digits."""
    columns = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        cells = column.cast(pa.string()).cast(pa.float64()) if pa.types.is_float32(column.type) else column
        values = cells.to_pylist()
        has_text = (
            pa.types.is_string(column.type)
            or pa.types.is_large_string(column.type)
            or pa.types.is_dictionary(column.type)
        )
        columns[name] = [Text(x) if isinstance(x, str) else x for x in values] if has_text else values
    rows = zip(*columns.values(), strict=True) if columns else [()] * batch.num_rows
    return [dict(zip(columns, row, strict=True)) for row in rows]


def _encoded(column: str, kind: pa.DataType) -> str | None:
    """The column of image files in a column, or None for one of numbers."""
    if pa.types.is_struct(kind) and (index := kind.get_field_index("bytes")) >= 0:
        return f"{column}.bytes" if pa.types.is_binary(kind.field(index).type) else None
    return column if pa.types.is_binary(kind) else None


def _reader(path: Path, column: str, kind: pa.DataType) -> Any:
    """`cell -> payload` for a column's type."""
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        return lambda cell: cell["bytes"].as_py()
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return lambda cell: cell.as_py()
    if isinstance(kind, pa.FixedShapeTensorType):
        return lambda cell: cell.to_numpy()
    leaf = kind
    while pa.types.is_list(leaf) or pa.types.is_large_list(leaf) or pa.types.is_fixed_size_list(leaf):
        leaf = leaf.value_type
    if leaf is not kind and (pa.types.is_integer(leaf) or pa.types.is_floating(leaf)):
        return lambda cell: np.asarray(cell.as_py(), dtype=leaf.to_pandas_dtype())
    raise SourceError(
        f"{path}: column {column!r} is {kind}; "
        "images are bytes, a struct with bytes, a tensor or nested lists of numbers"
    )
