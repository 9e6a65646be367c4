"""Writing prepared data: rows are sorted by their hash on disk, de-duplicated, split and cut into shards.

`ganlib.shards`, which reads shards, says what they hold and how the hash decides the split.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import math
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from ganlib.data._kind import Part, Stored
from ganlib.data._spec import Spec
from ganlib.shards import ALL_SPLITS, ANOMALIES, KEY, SPLITS, is_png, repeated_hash, unpacked

__all__ = ["Summary", "pack", "split_of_group", "table", "write"]

_GROUP_BYTES = 2 * 2**20  # of unpacked examples in a row group: what a streaming reader takes at once
_SPILL_BYTES = 32 * 2**20  # of packed examples held while sorting
_OTHER_COLUMNS = ("hash", "label", "split", "attributes", "id", "reason")  # names that no part can have


def pack(parts: Mapping[str, Part], example: Stored) -> tuple[bytes, dict[str, bytes]]:
    """`(hash, packed parts)` of one encoded example.

    Raises TypeError where the example is not what `parts` say: a fault of the kind of data, not of the data.
    """
    found = {name: (array.shape, str(array.dtype)) for name, array in example.items()}
    expected = {name: (part.stored, part.dtype) for name, part in parts.items()}
    if found != expected or not expected.keys().isdisjoint(_OTHER_COLUMNS):
        raise TypeError(f"encoded as {found}, but the parts are {expected}")
    raw = {name: example[name].tobytes() for name in parts}
    packed = {name: _png(example[name]) if is_png(part) else raw[name] for name, part in parts.items()}
    return hashlib.blake2b(b"".join(raw.values()), digest_size=16).digest(), packed


def table(
    hashes: list[bytes],
    packed: Sequence[Mapping[str, bytes]],
    labels: list[int],
    splits: Sequence[str | None] | None = None,
    attributes: Sequence[Sequence[float]] | None = None,
) -> pa.Table:
    """Packed rows as `write` takes them; an unlabelled row has label 0, a row without a split goes by its hash."""
    numbers = [None if split is None else ALL_SPLITS.index(split) for split in splits or [None] * len(hashes)]
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
    classes: dict[str, Counter[int]] = field(default_factory=lambda: {split: Counter() for split in ALL_SPLITS})
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
            writer.add(kept.filter(pa.array(number == ALL_SPLITS.index(split))))
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
        hashes += [digest, *(repeated_hash(digest, k) for k in again)]
        summary.duplicates += len(again)
    return bucket.set_column(bucket.schema.get_field_index("hash"), "hash", pa.array(hashes, pa.binary(16)))


class _Examples:
    """The training examples on their way to disk, a chunk `{part: [N, *stored]}` for each bucket."""

    def __init__(self, buckets: list[Callable[[], pa.Table]], parts: Mapping[str, Part], cut: np.uint64) -> None:
        self._buckets, self._parts, self._cut = buckets, parts, cut

    def __iter__(self) -> Iterator[Stored]:
        for bucket in self._buckets:
            kept, _, _ = _unique(bucket())
            train = kept.filter(pa.array(_split_of(kept, self._cut) == ALL_SPLITS.index("train")))
            if train.num_rows:
                yield {name: unpacked(train[name].to_pylist(), part) for name, part in self._parts.items()}


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
    anomalous = pc.fill_null(pc.equal(bucket["split"], ALL_SPLITS.index(ANOMALIES)), False)
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
    for i, split in enumerate(ALL_SPLITS):
        values, counts = np.unique(labels[number == i], return_counts=True)
        summary.classes[split].update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
    record = np.column_stack([_words(kept), labels.astype(np.uint64), number.astype(np.uint64)])
    digest.update(record.astype("<u8").tobytes())
    attributes = pc.list_flatten(kept["attributes"]).to_numpy()
    digest.update(attributes.astype("<f8").tobytes())
    if len(attributes):
        summary.attributes.add(attributes.reshape(len(labels), -1)[number == ALL_SPLITS.index("train")])


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
            tensors = [f"{name}.list.element" for name, part in self._parts.items() if not is_png(part)]
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
            if name in self._parts and not is_png(self._parts[name]):
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
        pa.field(name, pa.binary() if is_png(part) else _tensor_type(part), nullable=False)
        for name, part in spec.parts.items()
    ]
    label = [pa.field("label", pa.int64(), nullable=False)] if spec.classes else []
    size = len(spec.attributes)
    attributes = [pa.field("attributes", pa.list_(pa.float64(), size), nullable=False)] if size else []
    fields = [*parts, *label, *attributes, pa.field("hash", pa.binary(16), nullable=False)]
    return pa.schema(fields, metadata={KEY: spec.to_json().encode()})


def _tensor_type(part: Part) -> pa.DataType:
    return pa.fixed_shape_tensor(pa.from_numpy_dtype(np.dtype(part.dtype)), part.stored)


def _png(image: NDArray[np.uint8]) -> bytes:
    """An image `[1 or 3, H, W]`."""
    buffer = io.BytesIO()
    Image.fromarray(image.transpose(1, 2, 0) if len(image) == 3 else image[0]).save(buffer, "png")
    return buffer.getvalue()
