"""Prepared data on disk: Parquet shards a split, in the order of a hash of the content.

A row holds a column for each part of the example, `label` where labelled, `attributes` where there are any, and
`hash`, the 128-bit BLAKE2b of the parts. The hash decides everything: equal hashes are duplicates, hashes below
`test_share` of their range are the test split (unless the source says which split a row is in), and rows lie in the
hash's order. So the order is random but independent of the order of the source, a split is stratified in
expectation, and adding or relabelling data never moves an example to the other split. Where equal examples are data in
their own right, as rows of a table are, each but the first is hashed with its number. Anomalies have a split of their
own.

Parts are fixed-shape tensors, large images lossless PNG. The schema's metadata carries the `Spec`. This module
reads shards; `ganlib.shard_writer` writes them.
"""

from __future__ import annotations

import functools
import hashlib
import io
import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ganlib.data._kind import Part
from ganlib.data._spec import Spec

__all__ = [
    "ALL_SPLITS",
    "ANOMALIES",
    "KEY",
    "SPLITS",
    "DamagedShard",
    "Group",
    "LazyRows",
    "content_hashes",
    "is_png",
    "read",
    "read_groups",
    "read_spec",
    "repeated_hash",
    "row_groups",
    "rows_per_chunk",
    "stored",
    "unpacked",
]

SPLITS = ("train", "test")
ANOMALIES = "anomalies"
"""A third split, of examples that are neither trained on nor what samples are compared with; most data have none.

A split and not a column: nothing that reads `train` or `test` can meet an anomaly, and data without one are written as
they would be if there were no such split.
"""

ALL_SPLITS = (*SPLITS, ANOMALIES)  # their numbers stand in the content hash

KEY = b"ganlib"
_TENSOR_BYTES = 64 * 64 * 3  # larger images are stored as PNG


class DamagedShard(OSError):
    """A shard whose checksums do not fit what it holds. The message names it."""


def repeated_hash(digest: bytes, number: int) -> bytes:
    """The hash of the k-th repetition of an example."""
    return hashlib.blake2b(digest + number.to_bytes(8), digest_size=16).digest()


def is_png(part: Part) -> bool:
    """Whether a part is a large grey or coloured image."""
    is_image = part.dtype == "uint8" and len(part.stored) == 3 and part.stored[0] in (1, 3)
    return is_image and part.stored_bytes > _TENSOR_BYTES


def unpacked(cells: Sequence[bytes], part: Part) -> NDArray[Any]:
    """Packed examples of a part, `[N, *stored]`."""
    if not is_png(part):
        return np.frombuffer(b"".join(cells), part.dtype).reshape(-1, *part.stored)
    images = [np.asarray(Image.open(io.BytesIO(cell), formats=("PNG",))) for cell in cells]
    return np.stack([image.transpose(2, 0, 1) if image.ndim == 3 else image[None] for image in images])


@dataclass(frozen=True)
class Group:
    """A row group: the least a reader can take."""

    path: Path
    index: int
    rows: int


def read_spec(directory: str | Path) -> Spec:
    """The spec that every shard carries. Raises FileNotFoundError where there are no shards."""
    path = _shards(Path(directory), "train")[0]
    with _undamaged(path):
        text = pq.read_schema(path).metadata[KEY].decode()
    try:
        return Spec.from_json(text)
    except (KeyError, ValueError, TypeError) as error:
        why = " ".join(str(error).split())[:150]
        raise DamagedShard(f"{path}: of another version ({why}); `dvc repro` makes the folder anew") from error


def row_groups(directory: str | Path, split: str) -> list[Group]:
    """All row groups of a split, in stored order."""
    groups = []
    for path in _shards(Path(directory), split):
        with _undamaged(path):
            footer = pq.read_metadata(path)
        groups += [Group(path, i, footer.row_group(i).num_rows) for i in range(footer.num_row_groups)]
    return groups


def read(directory: str | Path, split: str, limit: int | None = None) -> dict[str, Tensor]:
    """The first `limit` rows as stored: each part, `[N, *stored]`; `label`, int64 `[N]`, if labelled; `attributes`,
    float64 `[N, A]` in their own units, if there are any."""
    groups = _first(row_groups(directory, split), limit)
    return {name: column[:limit] for name, column in read_groups(read_spec(directory), groups).items()}


def stored(directory: str | Path, split: str, limit: int | None = None, *, keep: int = 1) -> dict[str, Any]:
    """As `read`, but parts are `LazyRows`: a row group's part is read when a row of it is accessed, the last `keep` are
    kept."""
    spec, groups = read_spec(directory), _first(row_groups(directory, split), limit)
    ends = [end if limit is None else min(end, limit) for end in itertools.accumulate(group.rows for group in groups)]

    def lazy(name: str) -> LazyRows:
        return LazyRows(ends, lambda i: read_groups(spec, [groups[i]], columns=[name])[name], keep=keep)

    conditions = [name for name in _columns(spec) if name not in spec.parts]
    known = read_groups(spec, groups, columns=conditions) if conditions else {}
    return {**{name: lazy(name) for name in spec.parts}, **{name: column[:limit] for name, column in known.items()}}


def content_hashes(directory: str | Path) -> set[str]:
    """What `Spec.content_hash` is of the examples that the shards hold, computed anew from these.

    Two, if the examples have attributes: the hash is another one where rows were sorted on disk. Raises DamagedShard
    for an example that is not what its own hash says, ValueError where shards do not keep all that the hash is of.
    """
    directory, spec = Path(directory), read_spec(directory)
    splits = [split for split in ALL_SPLITS if split in SPLITS or split in spec.counts]
    if ANOMALIES in splits and not spec.classes:
        raise ValueError(f"{directory}: the labels of anomalies next to a single normal class are not stored")
    found: list[tuple[bytes, int, int, bytes]] = []
    equal: dict[bytes, set[bytes]] = {}
    for number, split in enumerate(ALL_SPLITS):
        for group in row_groups(directory, split) if split in splits else ():
            rows = {name: column.numpy() for name, column in read_groups(spec, [group]).items()}
            (_, table), *_ = _tables([group], ["hash"])
            nothing = np.zeros((group.rows, 0))
            labels, attributes = rows.get("label", np.zeros(group.rows, np.int64)), rows.get("attributes", nothing)
            for i, digest in enumerate(table["hash"].to_pylist()):
                raw = b"".join(rows[name][i].tobytes() for name in spec.parts)
                equal.setdefault(hashlib.blake2b(raw, digest_size=16).digest(), set()).add(digest)
                found.append((digest, int(labels[i]), number, attributes[i].astype("<f8").tobytes()))
    for first, digests in equal.items():
        if digests != {first, *(repeated_hash(first, k) for k in range(1, len(digests)))}:
            raise DamagedShard(f"{directory}: an example is not what its hash says; `dvc repro` makes it anew")
    found.sort()

    def digest_of(buckets: Iterable[list[tuple[bytes, int, int, bytes]]]) -> str:
        digest = hashlib.sha256()
        for bucket in buckets:
            for key, label, number, _ in bucket:
                words = [int.from_bytes(key[:8]), int.from_bytes(key[8:]), label % 2**64, number]
                digest.update(np.array(words, "<u8").tobytes())
            digest.update(b"".join(row[3] for row in bucket))
        return digest.hexdigest()

    spilled = [list(rows) for _, rows in itertools.groupby(found, key=lambda row: row[0][0])]
    return {digest_of([found]), digest_of(spilled)}


class LazyRows:
    """A column `[N, ...]` in parts that are made when one of their rows is accessed; the last `keep` are kept.

    Slices and rows `[K]` of it, in any order, are tensors, as of a tensor.
    """

    def __init__(self, ends: list[int], make: Callable[[int], Tensor], *, keep: int = 1) -> None:
        """`ends` of the parts, rising to N; `make(i)` is the i-th part."""
        self._ends, self._make = torch.tensor(ends), functools.lru_cache(keep)(make)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, rows: slice | Tensor) -> Tensor:
        rows = torch.arange(len(self))[rows]
        of = torch.bucketize(rows, self._ends, right=True)
        starts = torch.cat([torch.zeros(1, dtype=torch.int64), self._ends])
        made = torch.cat([self._make(i)[rows[of == i] - starts[i]] for i in of.unique().tolist()])
        return made[of.argsort(stable=True).argsort()]

    def split(self, size: int) -> Iterator[Tensor]:
        return (self[start : start + size] for start in range(0, len(self), size))


def rows_per_chunk(size: int) -> int:
    """How many examples, of `size` numbers each, to hold as floats at a time: 64 MiB of them."""
    return max(1, min(4096, 2**24 // size))


def _first(groups: list[Group], rows: int | None) -> list[Group]:
    """The groups that the first `rows` are in."""
    starts = itertools.accumulate((group.rows for group in groups), initial=0)
    return [group for group, start in zip(groups, starts, strict=False) if rows is None or start < rows]


def read_groups(spec: Spec, groups: Iterable[Group], *, columns: Collection[str] | None = None) -> dict[str, Tensor]:
    """Row groups as `read` gives them, one after the other; of some `columns` only, if these are named."""
    groups = list(groups)
    total = sum(group.rows for group in groups)
    found = {
        name: torch.from_numpy(np.empty((total, *shape), dtype))
        for name, (shape, dtype) in _columns(spec).items()
        if columns is None or name in columns
    }
    start = 0
    for group, rows in _tables(groups, list(found)):
        end = start + group.rows
        for name, column in found.items():
            if name in spec.parts:
                column.numpy()[start:end] = _samples(rows[name].combine_chunks(), spec.parts[name])
            elif name == "attributes":
                column.numpy()[start:end] = pc.list_flatten(rows[name]).to_numpy().reshape(group.rows, -1)
            else:
                column.numpy()[start:end] = rows[name].to_numpy()
        start = end
    return found


def _columns(spec: Spec) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape of a row and dtype of each column that is read."""
    columns: dict[str, tuple[tuple[int, ...], str]] = {
        name: (part.stored, part.dtype) for name, part in spec.parts.items()
    }
    if spec.classes:
        columns["label"] = ((), "int64")
    if spec.attributes:
        columns["attributes"] = ((len(spec.attributes),), "float64")
    return columns


def _tables(groups: list[Group], names: list[str]) -> Iterator[tuple[Group, pa.Table]]:
    """Each group's table; a file is opened once for neighbours."""
    path, file = None, None
    for group in groups:
        with _undamaged(group.path):
            if group.path != path:
                path, file = group.path, pq.ParquetFile(group.path, page_checksum_verification=True)
            assert file is not None
            table = file.read_row_group(group.index, columns=names)
        yield group, table


@contextmanager
def _undamaged(path: Path) -> Iterator[None]:
    """Raise DamagedShard where what was read is not Parquet, or not what its checksums say."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        if isinstance(error, OSError) and error.errno:  # it could not be read, which says nothing of what it holds
            raise
        why = " ".join(str(error).split())[:150]
        raise DamagedShard(f"{path}: damaged: {why}; `dvc repro` makes the folder anew") from error


def _samples(column: Any, part: Part) -> NDArray[Any]:
    if isinstance(column, pa.ChunkedArray):
        column = pa.concat_arrays(column.chunks)
    if is_png(part):
        return unpacked(column.to_pylist(), part)
    tensors: NDArray[Any] = column.to_numpy_ndarray()
    return tensors


def _shards(directory: Path, split: str) -> list[Path]:
    found = sorted(directory.glob(f"{split}-*.parquet"))
    if not found:
        raise FileNotFoundError(f"{directory} holds no prepared {split} data; run the stage `prepare`")
    return found
