"""Prepared data on disk: Parquet shards a split, in the order of a hash of the content.

A row holds `sample`, `label` where labelled, `attributes` where there are any, and `hash`, the 128-bit BLAKE2b of the
encoded sample. The hash decides everything: equal hashes are duplicates, hashes below `test_share` of their range are
the test split (unless the source says which split a row is in), and rows lie in the hash's order. So the order is
random but the same whatever the order of the source, a split is stratified in expectation, and adding or relabelling
data never moves an example to the other split.

Small samples are fixed-shape tensors, large ones lossless PNG. The schema's metadata carries the `Spec`.
"""

from __future__ import annotations

import functools
import hashlib
import io
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate
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

from ganlib.data._spec import Spec

__all__ = [
    "SPLITS",
    "DamagedShard",
    "Group",
    "Rows",
    "Summary",
    "few",
    "pack",
    "read",
    "read_groups",
    "read_spec",
    "row_groups",
    "stored",
    "table",
    "write",
]

SPLITS = ("train", "test")

_KEY = b"ganlib"
_TENSOR_BYTES = 64 * 64 * 3  # larger samples are stored as PNG
_GROUP_BYTES = 2 * 2**20  # of decoded samples in a row group: what a streaming reader takes at once
_SPILL_BYTES = 32 * 2**20  # of packed samples held while sorting


class DamagedShard(OSError):
    """A shard whose checksums do not fit what it holds. The message names it."""


# -- writing -------------------------------------------------------------------------------------------------


def pack(sample: NDArray[np.uint8]) -> tuple[bytes, bytes]:
    """`(hash, stored)` of one uint8 `[C, H, W]` sample."""
    raw = sample.tobytes()
    return hashlib.blake2b(raw, digest_size=16).digest(), raw if _as_tensor(sample.shape) else _png(sample)


def table(
    hashes: list[bytes],
    stored: list[bytes],
    labels: list[int],
    splits: Sequence[str | None] | None = None,
    attributes: Sequence[Sequence[float]] | None = None,
) -> pa.Table:
    """Packed rows as `write` takes them; an unlabelled row has label 0, a row without a split goes by its hash."""
    tests = [None] * len(hashes) if splits is None else [None if split is None else split == "test" for split in splits]
    columns = {
        "hash": pa.array(hashes, pa.binary(16)),
        "label": pa.array(labels, pa.int64()),
        "sample": pa.array(stored, pa.binary()),
        "test": pa.array(tests, pa.bool_()),
        "attributes": pa.array([()] * len(hashes) if attributes is None else attributes, pa.list_(pa.float32())),
    }
    return pa.table(columns)


@dataclass
class Summary:
    """What was found on the way to disk."""

    duplicates: int = 0
    """rows dropped because an earlier one has the same sample"""
    conflicts: int = 0
    """those of them that had another label"""
    classes: dict[str, Counter[int]] = field(default_factory=lambda: {split: Counter() for split in SPLITS})
    """examples of each label in each split"""
    content_hash: str = ""

    @property
    def counts(self) -> dict[str, int]:
        return {split: sum(self.classes[split].values()) for split in SPLITS}


def write(
    directory: Path,
    rows: Iterable[pa.Table],
    describe: Callable[[Summary], Spec],
    *,
    test_share: float,
    shard_mb: float,
) -> Summary:
    """Sort, de-duplicate, split and write rows, of which the first of equal ones stays.

    `describe` makes the spec, which every shard carries, once all is counted, or raises to stop before
    anything is written. Memory: a few times `_SPILL_BYTES`, or a 256th of the packed data if that is more.
    """
    spill = directory / "spill"
    spill.mkdir()
    buckets = _spill(spill, rows)
    cut = np.uint64(int(test_share * 2**64))
    summary = Summary()
    digest = hashlib.sha256()
    for bucket in buckets:
        _count(bucket(), cut, summary, digest)
    summary.content_hash = digest.hexdigest()
    spec = describe(summary)

    writers = {split: _Writer(directory, split, spec, shard_mb) for split in SPLITS}
    for bucket in buckets:
        kept, _, _ = _unique(bucket())
        is_test = _is_test(kept, cut)
        writers["test"].add(kept.filter(pa.array(is_test)))
        writers["train"].add(kept.filter(pa.array(~is_test)))
    for writer in writers.values():
        writer.close()
    for file in spill.iterdir():
        file.unlink()
    spill.rmdir()
    return summary


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


def _is_test(rows: pa.Table, cut: np.uint64) -> NDArray[np.bool_]:
    """As the source says; where it says nothing, by the hash."""
    by_hash = pa.chunked_array([pa.array(_prefix(rows) < cut)])
    decided: NDArray[np.bool_] = pc.coalesce(rows["test"], by_hash).to_numpy()
    return decided


def _words(rows: pa.Table) -> NDArray[np.uint64]:
    """Each hash as two big-endian words, `[N, 2]`."""
    column = rows["hash"].combine_chunks()
    if isinstance(column, pa.ChunkedArray):
        column = pa.concat_arrays(column.chunks)
    words = np.frombuffer(column.buffers()[1], ">u8").reshape(-1, 2)[column.offset :][: len(column)]
    return words.astype(np.uint64)


def _unique(bucket: pa.Table) -> tuple[pa.Table, int, int]:
    """`(rows in order of hash, the first of equal ones; how many others; those with another label)`."""
    order = pc.sort_indices(bucket["hash"])  # stable: first come, first kept
    index = bucket.select(["hash", "label"]).take(order)
    words, labels = _words(index), index["label"].to_numpy()
    first = np.ones(len(words), bool)
    first[1:] = (words[1:] != words[:-1]).any(1)
    kept_labels = labels[first][np.cumsum(first) - 1]
    conflicts = int((labels != kept_labels).sum())
    return bucket.take(order.filter(pa.array(first))), int((~first).sum()), conflicts


def _count(bucket: pa.Table, cut: np.uint64, summary: Summary, digest: Any) -> None:
    kept, duplicates, conflicts = _unique(bucket.select(["hash", "label", "test", "attributes"]))
    summary.duplicates += duplicates
    summary.conflicts += conflicts
    labels, is_test = kept["label"].to_numpy(), _is_test(kept, cut)
    for split, chosen in (("test", is_test), ("train", ~is_test)):
        values, counts = np.unique(labels[chosen], return_counts=True)
        summary.classes[split].update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
    record = np.column_stack([_words(kept), labels.astype(np.uint64), is_test.astype(np.uint64)])
    digest.update(record.astype("<u8").tobytes())
    digest.update(pc.list_flatten(kept["attributes"]).to_numpy().astype("<f4").tobytes())


class _Writer:
    """Cuts one split's rows, which come in order, into shards of row groups of fixed numbers of rows."""

    def __init__(self, directory: Path, split: str, spec: Spec, shard_mb: float) -> None:
        self._directory, self._split, self._shape, self._schema = directory, split, spec.shape, _schema(spec)
        size = math.prod(spec.shape)
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
            tensors = _as_tensor(self._shape)
            self._file = pq.ParquetWriter(
                str(self._directory / f"{self._split}-{shard:05d}.parquet"),
                self._schema,
                compression="zstd" if tensors else "none",  # PNG is compressed already
                # Parquet has no bytes among its numbers; this takes the zeros above each out before compressing
                column_encoding={"sample.list.element": "BYTE_STREAM_SPLIT"} if tensors else None,
                use_dictionary=False,
                write_statistics=False,
                write_page_checksum=True,
            )
        assert self._file is not None
        rows = rows.combine_chunks()
        columns = {name: rows[name].cast(self._schema.field(name).type) for name in self._schema.names[1:]}
        columns["sample"] = rows["sample"]
        if _as_tensor(self._shape):
            pixels = np.frombuffer(b"".join(rows["sample"].to_pylist()), np.uint8)
            storage = pa.FixedSizeListArray.from_arrays(pa.array(pixels), math.prod(self._shape))
            columns["sample"] = pa.ExtensionArray.from_storage(self._schema.field("sample").type, storage)
        self._file.write_table(pa.table(columns, schema=self._schema), row_group_size=self._group_rows)
        self._groups += 1


def _schema(spec: Spec) -> pa.Schema:
    sample = pa.fixed_shape_tensor(pa.uint8(), spec.shape) if _as_tensor(spec.shape) else pa.binary()
    label = [pa.field("label", pa.int64(), nullable=False)] if spec.classes else []
    size = len(spec.attributes)
    attributes = [pa.field("attributes", pa.list_(pa.float32(), size), nullable=False)] if size else []
    fields = [pa.field("sample", sample), *label, *attributes, pa.field("hash", pa.binary(16), nullable=False)]
    return pa.schema(fields, metadata={_KEY: spec.to_json().encode()})


def _as_tensor(shape: tuple[int, ...]) -> bool:
    return math.prod(shape) <= _TENSOR_BYTES


def _png(sample: NDArray[np.uint8]) -> bytes:
    """Three channels are colours; any other number of them stand one below the other in a grey image."""
    buffer = io.BytesIO()
    Image.fromarray(sample.transpose(1, 2, 0) if len(sample) == 3 else np.concatenate(sample)).save(buffer, "png")
    return buffer.getvalue()


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
        return Spec.from_json(pq.read_schema(path).metadata[_KEY].decode())


def row_groups(directory: str | Path, split: str) -> list[Group]:
    """All row groups of a split, in stored order."""
    groups = []
    for path in _shards(Path(directory), split):
        with _undamaged(path):
            footer = pq.read_metadata(path)
        groups += [Group(path, i, footer.row_group(i).num_rows) for i in range(footer.num_row_groups)]
    return groups


def read(directory: str | Path, split: str, limit: int | None = None) -> dict[str, Tensor]:
    """The first `limit` rows as stored: `sample`, uint8 `[N, *shape]`; `label`, int64 `[N]`, if labelled;
    `attributes`, float32 `[N, A]`, if there are any."""
    groups = _first(row_groups(directory, split), limit)
    return {name: column[:limit] for name, column in read_groups(read_spec(directory), groups).items()}


def stored(directory: str | Path, split: str, limit: int | None = None, *, keep: int = 1) -> dict[str, Any]:
    """As `read`, but `sample` is `Rows`: a row group is read when a row of it is wanted, the last `keep` are kept."""
    spec, groups = read_spec(directory), _first(row_groups(directory, split), limit)
    ends = [end if limit is None else min(end, limit) for end in accumulate(group.rows for group in groups)]
    sample = Rows(ends, lambda i: read_groups(spec, [groups[i]])["sample"], keep=keep)
    told = read_groups(spec, groups, samples=False) if spec.classes or spec.attributes else {}
    return {"sample": sample, **{name: column[:limit] for name, column in told.items()}}


class Rows:
    """A column `[N, ...]` in parts, each of which is made when one of its rows is wanted; the last `keep` are kept.

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


def few(shape: tuple[int, ...]) -> int:
    """How many examples of a shape to hold as floats at a time: 64 MiB of them."""
    return max(1, min(4096, 2**24 // math.prod(shape)))


def _first(groups: list[Group], rows: int | None) -> list[Group]:
    """The groups that the first `rows` are in."""
    starts = accumulate((group.rows for group in groups), initial=0)
    return [group for group, start in zip(groups, starts, strict=False) if rows is None or start < rows]


def read_groups(spec: Spec, groups: Iterable[Group], *, samples: bool = True) -> dict[str, Tensor]:
    """Row groups as `read` gives them, one after the other; without `samples`, what else is known of them."""
    groups = list(groups)
    total = sum(group.rows for group in groups)
    columns = {"sample": torch.empty((total, *spec.shape), dtype=torch.uint8)} if samples else {}
    if spec.classes:
        columns["label"] = torch.empty(total, dtype=torch.int64)
    if spec.attributes:
        columns["attributes"] = torch.empty((total, len(spec.attributes)))
    start = 0
    for group, rows in _tables(groups, list(columns)):
        end = start + group.rows
        if samples:
            columns["sample"].numpy()[start:end] = _samples(rows["sample"].combine_chunks(), spec.shape)
        if spec.classes:
            columns["label"].numpy()[start:end] = rows["label"].to_numpy()
        if spec.attributes:
            numbers = pc.list_flatten(rows["attributes"]).to_numpy()
            columns["attributes"].numpy()[start:end] = numbers.reshape(group.rows, -1)
        start = end
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


def _samples(column: Any, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    if isinstance(column, pa.ChunkedArray):
        column = pa.concat_arrays(column.chunks)
    if _as_tensor(shape):
        tensors: NDArray[np.uint8] = column.to_numpy_ndarray()
        return tensors
    images = [np.asarray(Image.open(io.BytesIO(cell.as_py()))) for cell in column]
    return np.stack([image.transpose(2, 0, 1) if image.ndim == 3 else image.reshape(shape) for image in images])


def _shards(directory: Path, split: str) -> list[Path]:
    found = sorted(directory.glob(f"{split}-*.parquet"))
    if not found:
        raise FileNotFoundError(f"{directory} holds no prepared {split} data; run the stage `prepare`")
    return found
