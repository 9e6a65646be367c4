"""Prepared data on disk: Parquet shards a split, in the order of a hash of the content.

A row holds a column for each part of the example, `label` where labelled, `attributes` where there are any, and
`hash`, the 128-bit BLAKE2b of the parts. The hash decides everything: equal hashes are duplicates, hashes below
`test_share` of their range are the test split (unless the source says which split a row is in), and rows lie in the
hash's order. So the order is random but independent of the order of the source, a split is stratified in
expectation, and adding or relabelling data never moves an example to the other split. Where equal examples are data in
their own right, as rows of a table are, each but the first is hashed with its number. Anomalies have a split of their
own.

Parts are fixed-shape tensors, large images lossless PNG. The schema's metadata carries the `Spec`.
"""

from __future__ import annotations

import functools
import hashlib
import io
import itertools
import math
import shutil
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
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

from ganlib.data._kind import Part, Stored
from ganlib.data._spec import Spec

__all__ = [
    "ANOMALIES",
    "SPLITS",
    "DamagedShard",
    "Group",
    "LazyRows",
    "Summary",
    "content_hashes",
    "pack",
    "read",
    "read_groups",
    "read_spec",
    "row_groups",
    "rows_per_chunk",
    "split_of_group",
    "stored",
    "table",
    "write",
]

SPLITS = ("train", "test")
ANOMALIES = "anomalies"
"""A third split, of examples that are neither trained on nor what samples are compared with; most data have none.

A split and not a column: nothing that reads `train` or `test` can meet an anomaly, and data without one are written as
they would be if there were no such split.
"""

_SPLITS = (*SPLITS, ANOMALIES)  # their numbers stand in the content hash

_KEY = b"ganlib"
_TENSOR_BYTES = 64 * 64 * 3  # larger images are stored as PNG
_GROUP_BYTES = 2 * 2**20  # of unpacked examples in a row group: what a streaming reader takes at once
_SPILL_BYTES = 32 * 2**20  # of packed examples held while sorting
_OTHER_COLUMNS = ("hash", "label", "split", "attributes", "id", "reason")  # names that no part can have


class DamagedShard(OSError):
    """A shard whose checksums do not fit what it holds. The message names it."""


# -- writing -------------------------------------------------------------------------------------------------


def pack(parts: Mapping[str, Part], example: Stored) -> tuple[bytes, dict[str, bytes]]:
    """`(hash, packed parts)` of one encoded example.

    Raises TypeError where the example is not what `parts` say: a fault of the kind of data, not of the data.
    """
    found = {name: (array.shape, str(array.dtype)) for name, array in example.items()}
    expected = {name: (part.stored, part.dtype) for name, part in parts.items()}
    if found != expected or not expected.keys().isdisjoint(_OTHER_COLUMNS):
        raise TypeError(f"encoded as {found}, but the parts are {expected}")
    raw = {name: example[name].tobytes() for name in parts}
    packed = {name: _png(example[name]) if _is_png(part) else raw[name] for name, part in parts.items()}
    return hashlib.blake2b(b"".join(raw.values()), digest_size=16).digest(), packed


def table(
    hashes: list[bytes],
    packed: Sequence[Mapping[str, bytes]],
    labels: list[int],
    splits: Sequence[str | None] | None = None,
    attributes: Sequence[Sequence[float]] | None = None,
) -> pa.Table:
    """Packed rows as `write` takes them; an unlabelled row has label 0, a row without a split goes by its hash."""
    numbers = [None if split is None else _SPLITS.index(split) for split in splits or [None] * len(hashes)]
    columns = {
        "hash": pa.array(hashes, pa.binary(16)),
        "label": pa.array(labels, pa.int64()),
        "split": pa.array(numbers, pa.int8()),
        "attributes": pa.array([()] * len(hashes) if attributes is None else attributes, pa.list_(pa.float64())),
        **{name: pa.array([row[name] for row in packed], pa.binary()) for name in packed[0]},
    }
    return pa.table(columns)


@dataclass
class Moments:
    """Mean and deviation of each column of rows that come in chunks. Chan, Golub & LeVeque 1983."""

    rows: int = 0
    mean: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    squares: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    """sums of squared distances from the mean"""

    def add(self, chunk: NDArray[np.float64]) -> None:
        """Rows `[N, K]`."""
        if not len(chunk):
            return
        if not self.rows:
            self.mean, self.squares = np.zeros(chunk.shape[1]), np.zeros(chunk.shape[1])
        mean, total = chunk.mean(0), self.rows + len(chunk)
        gap = mean - self.mean
        self.squares += ((chunk - mean) ** 2).sum(0) + gap**2 * (self.rows * len(chunk) / total)
        self.mean += gap * (len(chunk) / total)
        self.rows = total

    @property
    def std(self) -> NDArray[np.float64]:
        """`[K]`; 0 where a column is constant up to rounding."""
        std = np.sqrt(self.squares / max(1, self.rows))
        return np.where(std > 1e-12 * np.abs(self.mean), std, 0.0)


@dataclass
class Summary:
    """Counts and moments of the rows that were written."""

    duplicates: int = 0
    """rows that repeat an earlier one: dropped, unless repetitions are kept"""
    conflicts: int = 0
    """those of them that had another label, where they were dropped"""
    classes: dict[str, Counter[int]] = field(default_factory=lambda: {split: Counter() for split in _SPLITS})
    """examples of each label in each split"""
    content_hash: str = ""
    attributes: Moments = field(default_factory=Moments)
    """of the training examples"""

    @property
    def counts(self) -> dict[str, int]:
        """Examples in each split; of anomalies, if there are any."""
        return {split: of.total() for split, of in self.classes.items() if split in SPLITS or of}


def write(
    directory: Path,
    rows: Iterable[pa.Table],
    parts: Mapping[str, Part],
    describe: Callable[[Summary, Iterable[Stored]], Spec],
    *,
    test_share: float,
    shard_mb: float,
    duplicates: bool = False,
) -> Summary:
    """Sort, de-duplicate (unless `duplicates` are kept), split and write rows; the first of equal rows stays.

    `describe` makes the spec, which every shard carries, once all is counted, or raises to stop before anything is
    written. Its second argument is the training examples in chunks, which can be read more than once. Memory: a few
    times `_SPILL_BYTES`, or a 256th of the packed data if that is more.
    """
    spill = directory / "spill"
    spill.mkdir()
    buckets = _spill(spill, rows)
    cut = np.uint64(int(test_share * 2**64))
    summary = Summary()
    if duplicates:
        repeated = spill / "repeated"
        repeated.mkdir()
        buckets = _spill(repeated, (_numbered_repetitions(bucket(), summary) for bucket in buckets))
    digest = hashlib.sha256()
    for bucket in buckets:
        _count(bucket(), cut, summary, digest)
    summary.content_hash = digest.hexdigest()
    spec = describe(summary, _Examples(buckets, parts, cut))

    writers = {split: _Writer(directory, split, spec, shard_mb) for split in summary.counts}
    for bucket in buckets:
        kept, _, _ = _unique(bucket())
        number = _split_of(kept, cut)
        for split, writer in writers.items():
            writer.add(kept.filter(pa.array(number == _SPLITS.index(split))))
    for writer in writers.values():
        writer.close()
    shutil.rmtree(spill)
    return summary


def _numbered_repetitions(bucket: pa.Table, summary: Summary) -> pa.Table:
    """The bucket with other hashes for repeated rows: of the first hash and the number of the repetition.

    Rows with equal parts are numbered by their labels, so that the order of arrival changes nothing.
    """
    bucket = bucket.take(pc.sort_indices(bucket, [("hash", "ascending"), ("label", "ascending")]))
    hashes: list[bytes] = []
    for digest, equal in itertools.groupby(bucket["hash"].to_pylist()):
        again = [number for number, _ in enumerate(equal)][1:]
        hashes += [digest, *(_repeated(digest, k) for k in again)]
        summary.duplicates += len(again)
    return bucket.set_column(bucket.schema.get_field_index("hash"), "hash", pa.array(hashes, pa.binary(16)))


def _repeated(digest: bytes, number: int) -> bytes:
    """The hash of the k-th repetition of an example."""
    return hashlib.blake2b(digest + number.to_bytes(8), digest_size=16).digest()


class _Examples:
    """The training examples on their way to disk, a chunk `{part: [N, *stored]}` for each bucket."""

    def __init__(self, buckets: list[Callable[[], pa.Table]], parts: Mapping[str, Part], cut: np.uint64) -> None:
        self._buckets, self._parts, self._cut = buckets, parts, cut

    def __iter__(self) -> Iterator[Stored]:
        for bucket in self._buckets:
            kept, _, _ = _unique(bucket())
            train = kept.filter(pa.array(_split_of(kept, self._cut) == _SPLITS.index("train")))
            if train.num_rows:
                yield {name: _unpacked(train[name].to_pylist(), part) for name, part in self._parts.items()}


def _spill(folder: Path, rows: Iterable[pa.Table]) -> list[Callable[[], pa.Table]]:
    """The rows in buckets of rising hash, each with its rows in order of arrival.

    What fits in memory is one bucket; otherwise rows go to a file for each first byte of the hash.
    """
    pending: list[pa.Table] = []
    files: dict[int, pa.ipc.RecordBatchStreamWriter] = {}

    def flush() -> None:
        whole = pa.concat_tables(pending)
        pending.clear()
        first = (_prefix(whole) >> np.uint64(56)).astype(np.int64)
        order = np.argsort(first, kind="stable")
        whole = whole.take(order).combine_chunks()
        ends = np.searchsorted(first[order], np.arange(257))
        for byte in range(256):
            if ends[byte] < ends[byte + 1]:
                if byte not in files:
                    files[byte] = pa.ipc.new_stream(str(folder / f"{byte:02x}"), whole.schema)
                files[byte].write_table(whole.slice(ends[byte], ends[byte + 1] - ends[byte]))

    size = 0
    for part in rows:
        if part.num_rows:
            pending.append(part)
            size += part.nbytes
            if size > _SPILL_BYTES:
                flush()
                size = 0
    if not files:
        return [lambda: pa.concat_tables(pending)] if pending else []
    if pending:
        flush()
    for file in files.values():
        file.close()
    return [_reader(folder / f"{byte:02x}") for byte in sorted(files)]


def _reader(path: Path) -> Callable[[], pa.Table]:
    return lambda: pa.ipc.open_stream(pa.memory_map(str(path))).read_all()


def _prefix(rows: pa.Table) -> NDArray[np.uint64]:
    """The first 64 bits of each hash."""
    return _words(rows)[:, 0]


def _split_of(rows: pa.Table, cut: np.uint64) -> NDArray[np.int8]:
    """The number of each row's split: as it is said; where nothing is said, by the hash."""
    by_hash = pa.chunked_array([pa.array((_prefix(rows) < cut).astype(np.int8))])
    decided: NDArray[np.int8] = pc.coalesce(rows["split"], by_hash).to_numpy()
    return decided


def split_of_group(group: str, test_share: float) -> str:
    """The split of all examples of a group, as that of an example with the group's hash."""
    prefix = int.from_bytes(hashlib.blake2b(group.encode(), digest_size=16).digest()[:8])
    return "test" if prefix < int(test_share * 2**64) else "train"


def _words(rows: pa.Table) -> NDArray[np.uint64]:
    """Each hash as two big-endian words, `[N, 2]`."""
    column = rows["hash"].combine_chunks()
    if isinstance(column, pa.ChunkedArray):
        column = pa.concat_arrays(column.chunks)
    words = np.frombuffer(column.buffers()[1], ">u8").reshape(-1, 2)[column.offset :][: len(column)]
    return words.astype(np.uint64)


def _unique(bucket: pa.Table) -> tuple[pa.Table, int, int]:
    """`(rows in order of hash, the first of equal ones; how many others; those with another label)`. Of equal ones an
    anomaly comes first, so that none is trained on."""
    anomalous = pc.fill_null(pc.equal(bucket["split"], _SPLITS.index(ANOMALIES)), False)
    if pc.any(anomalous).as_py():
        bucket = pa.concat_tables([bucket.filter(anomalous), bucket.filter(pc.invert(anomalous))])
    order = pc.sort_indices(bucket["hash"])  # stable: first come, first kept
    index = bucket.select(["hash", "label"]).take(order)
    words, labels = _words(index), index["label"].to_numpy()
    first = np.ones(len(words), bool)
    first[1:] = (words[1:] != words[:-1]).any(1)
    kept_labels = labels[first][np.cumsum(first) - 1]
    conflicts = int((labels != kept_labels).sum())
    return bucket.take(order.filter(pa.array(first))), int((~first).sum()), conflicts


def _count(bucket: pa.Table, cut: np.uint64, summary: Summary, digest: Any) -> None:
    kept, duplicates, conflicts = _unique(bucket.select(["hash", "label", "split", "attributes"]))
    summary.duplicates += duplicates
    summary.conflicts += conflicts
    labels, number = kept["label"].to_numpy(), _split_of(kept, cut)
    for i, split in enumerate(_SPLITS):
        values, counts = np.unique(labels[number == i], return_counts=True)
        summary.classes[split].update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
    record = np.column_stack([_words(kept), labels.astype(np.uint64), number.astype(np.uint64)])
    digest.update(record.astype("<u8").tobytes())
    attributes = pc.list_flatten(kept["attributes"]).to_numpy()
    digest.update(attributes.astype("<f8").tobytes())
    if len(attributes):
        summary.attributes.add(attributes.reshape(len(labels), -1)[number == _SPLITS.index("train")])


class _Writer:
    """Cuts one split's rows, which come in order, into shards of row groups of fixed numbers of rows."""

    def __init__(self, directory: Path, split: str, spec: Spec, shard_mb: float) -> None:
        self._directory, self._split, self._parts, self._schema = directory, split, spec.parts, _schema(spec)
        size = spec.stored_bytes
        self._group_rows = max(1, _GROUP_BYTES // size)
        self._shard_groups = max(1, round(shard_mb * 1e6 / (self._group_rows * size)))
        self._pending: list[pa.Table] = []
        self._groups = 0
        self._file: pq.ParquetWriter | None = None

    def add(self, rows: pa.Table) -> None:
        if not rows.num_rows:
            return  # even an empty slice would keep the whole bucket in memory
        self._pending.append(rows)
        if sum(part.num_rows for part in self._pending) >= self._group_rows:
            whole = pa.concat_tables(self._pending)
            full = whole.num_rows // self._group_rows * self._group_rows
            for start in range(0, full, self._group_rows):
                self._write(whole.slice(start, self._group_rows))
            self._pending = [whole.slice(full)]

    def close(self) -> None:
        rest = pa.concat_tables(self._pending) if self._pending else None
        if rest is not None and rest.num_rows:
            self._write(rest)
        if self._file is not None:
            self._file.close()

    def _write(self, rows: pa.Table) -> None:
        shard, within = divmod(self._groups, self._shard_groups)
        if within == 0:
            if self._file is not None:
                self._file.close()
            tensors = [f"{name}.list.element" for name, part in self._parts.items() if not _is_png(part)]
            self._file = pq.ParquetWriter(
                str(self._directory / f"{self._split}-{shard:05d}.parquet"),
                self._schema,
                compression=dict.fromkeys(tensors, "zstd"),  # PNG is compressed already
                # Parquet has no bytes among its numbers; this takes the zeros above each out before compressing
                column_encoding=dict.fromkeys(tensors, "BYTE_STREAM_SPLIT") or None,
                use_dictionary=False,
                write_statistics=False,
                write_page_checksum=True,
            )
        assert self._file is not None
        rows = rows.combine_chunks()
        columns = {}
        for name, kind in zip(self._schema.names, self._schema.types, strict=True):
            if name in self._parts and not _is_png(self._parts[name]):
                part = self._parts[name]
                numbers = np.frombuffer(b"".join(rows[name].to_pylist()), part.dtype)
                storage = pa.FixedSizeListArray.from_arrays(pa.array(numbers), math.prod(part.stored))
                columns[name] = pa.ExtensionArray.from_storage(kind, storage)
            else:
                columns[name] = rows[name].cast(kind)
        self._file.write_table(pa.table(columns, schema=self._schema), row_group_size=self._group_rows)
        self._groups += 1


def _schema(spec: Spec) -> pa.Schema:
    parts = [
        pa.field(name, pa.binary() if _is_png(part) else _tensor_type(part), nullable=False)
        for name, part in spec.parts.items()
    ]
    label = [pa.field("label", pa.int64(), nullable=False)] if spec.classes else []
    size = len(spec.attributes)
    attributes = [pa.field("attributes", pa.list_(pa.float64(), size), nullable=False)] if size else []
    fields = [*parts, *label, *attributes, pa.field("hash", pa.binary(16), nullable=False)]
    return pa.schema(fields, metadata={_KEY: spec.to_json().encode()})


def _tensor_type(part: Part) -> pa.DataType:
    return pa.fixed_shape_tensor(pa.from_numpy_dtype(np.dtype(part.dtype)), part.stored)


def _is_png(part: Part) -> bool:
    """Whether a part is a large grey or coloured image."""
    is_image = part.dtype == "uint8" and len(part.stored) == 3 and part.stored[0] in (1, 3)
    return is_image and part.stored_bytes > _TENSOR_BYTES


def _png(image: NDArray[np.uint8]) -> bytes:
    """An image `[1 or 3, H, W]`."""
    buffer = io.BytesIO()
    Image.fromarray(image.transpose(1, 2, 0) if len(image) == 3 else image[0]).save(buffer, "png")
    return buffer.getvalue()


def _unpacked(cells: Sequence[bytes], part: Part) -> NDArray[Any]:
    """Packed examples of a part, `[N, *stored]`."""
    if not _is_png(part):
        return np.frombuffer(b"".join(cells), part.dtype).reshape(-1, *part.stored)
    images = [np.asarray(Image.open(io.BytesIO(cell), formats=("PNG",))) for cell in cells]
    return np.stack([image.transpose(2, 0, 1) if image.ndim == 3 else image[None] for image in images])


# -- reading -------------------------------------------------------------------------------------------------


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
        text = pq.read_schema(path).metadata[_KEY].decode()
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
    splits = [split for split in _SPLITS if split in SPLITS or split in spec.counts]
    if ANOMALIES in splits and not spec.classes:
        raise ValueError(f"{directory}: the labels of anomalies next to a single normal class are not stored")
    found: list[tuple[bytes, int, int, bytes]] = []
    equal: dict[bytes, set[bytes]] = {}
    for number, split in enumerate(_SPLITS):
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
        if digests != {first, *(_repeated(first, k) for k in range(1, len(digests)))}:
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
    if _is_png(part):
        return _unpacked(column.to_pylist(), part)
    tensors: NDArray[Any] = column.to_numpy_ndarray()
    return tensors


def _shards(directory: Path, split: str) -> list[Path]:
    found = sorted(directory.glob(f"{split}-*.parquet"))
    if not found:
        raise FileNotFoundError(f"{directory} holds no prepared {split} data; run the stage `prepare`")
    return found
