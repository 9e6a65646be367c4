"""Stage `prepare`: `data/raw/NAME` or a packaged set becomes `data/prepared`: shards, a card, the rejects.

Memory stays bounded for data of any size: parts of the source are read, encoded and hashed one after the other
(on all cores, where there is much to do), then sorted on disk; see `ganlib.shard_writer`.
"""

from __future__ import annotations

import csv
import itertools
import json
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ganlib import registry, shard_writer, shards
from ganlib.config import DatasetConfig
from ganlib.data import _kind
from ganlib.data._classes import label_of
from ganlib.data._kind import Stored
from ganlib.data._spec import NO_LABEL, Spec
from ganlib.reference import LEAST
from ganlib.sources._source import Part, Source, SourceError, listed, printable
from pipelines._stage import PREPARED, StageError, atomic_folder, main
from pipelines.data_card import data_card

__all__ = ["prepare"]

PARALLEL_FROM_S = 30.0
"""what is left goes to processes on all cores once it looks like taking longer than this in one"""

_TABLE_ROWS, _TABLE_BYTES = 1024, 16 * 2**20
Encode = Callable[[Part], Iterator[pa.Table]]
# hash, label, packed parts, split, attributes, id, reason
Row = tuple[bytes, int, dict[str, bytes], str | None, tuple[float, ...], str, str]

_UNLABELLED = "it has no label"
_LARGEST = float(np.finfo(np.float32).max)  # of attributes, whose squares are summed


def prepare(cfg: DatasetConfig, raw: Path, out: Path) -> None:
    """Write the folder `out` from the folder `raw`. Raises StageError where that cannot make a data set."""
    try:
        card = _prepare(cfg, raw, out)
    except SourceError as error:
        raise StageError(str(error)) from error
    splits = ", ".join(f"{part['examples']} {split}" for split, part in card["splits"].items())
    print(f"{out}: {splits}; shape {card['shape']}, {len(card['test_share_of_class']) or 'no'} classes")
    print(
        f"of {card['items']} items: {card['rejected']} rejected, {card['duplicates']} exact duplicates "
        f"({card['duplicates_with_another_label']} with another label)"
    )
    for note in card["notes"]:
        print(note)
    budget = card["budget"]
    augment = "no augmentation" if budget["augment"] is None else f"augment {budget['augment']['kind']}"
    print(f"budget: {budget['kimg']:g} kimg where train.kimg is auto, {augment} ({budget['because']})")


def _prepare(cfg: DatasetConfig, raw: Path, out: Path) -> dict[str, Any]:
    """Writes, and returns the card."""
    source_name, sample_kind = cfg.source.name, cfg.sample.kind  # type: ignore[attr-defined]
    source: Source = registry.load("sources", source_name).load(cfg.source, raw.resolve())
    labels, normals = _labels_of(cfg, source.classes)
    # One class says nothing that a network could use.
    classes = normals if len(normals) > 1 else ()
    kind, sample = _kind.load(sample_kind), cfg.sample
    if kind.scan is not None:
        payloads = (item.payload for part in source.parts for item in part() if item.payload is not None)
        try:
            sample = kind.scan(sample, payloads)
        except ValueError as error:
            raise StageError(f"{source.about}: {error}") from error
    parts = kind.parts(sample)

    def describe(found: shard_writer.Summary, training: Iterable[Stored]) -> Spec:
        _check(found, classes, cfg)
        settled = kind.settle(sample, training)
        unlabelled = sum(of[NO_LABEL] for of in found.classes.values())
        return Spec(
            sample=settled,
            modality=kind.MODALITY,
            classes=classes,
            counts=found.counts,
            content_hash=found.content_hash,
            attributes=source.attributes,
            code=kind.code,
            unlabelled=unlabelled,
            attribute_means=tuple(
                found.attributes.mean.tolist() if not source.differences else [0.0] * len(source.attributes)
            ),
            attribute_stds=tuple(np.where(found.attributes.std > 0, found.attributes.std, 1.0).tolist()),
        )

    with atomic_folder(out) as folder:
        rejects = _Rejects(folder / "rejects.csv", source, cfg)
        encode = partial(
            encode_part,
            kind=sample_kind,
            cfg=sample,
            labelled=bool(classes or cfg.normal),
            attributes=bool(source.attributes),
            labels=labels,
            normals=len(normals) if cfg.normal else None,
            keep_unlabelled=cfg.unlabelled == "keep",
            test_share=cfg.test_share,
        )
        with rejects.file:
            rows = rejects.sift(_encode(source.parts, encode))
            found = shard_writer.write(
                folder,
                rows,
                parts,
                describe,
                test_share=cfg.test_share,
                shard_mb=cfg.shard_mb,
                duplicates=kind.DUPLICATES,
            )
        card = data_card(folder, kind, cfg, source, found, labels, normals, items=rejects.seen, rejected=rejects.count)
        text = json.dumps(card, indent=2, ensure_ascii=False)
        (folder / "card.json").write_text(text + "\n", encoding="utf-8")
    return card


# -- encoding ------------------------------------------------------------------------------------------------


def _labels_of(cfg: DatasetConfig, names: tuple[str, ...]) -> tuple[tuple[int | None, ...], tuple[str, ...]]:
    """The label of each of the source's classes, None for a word that means a missing value in the data, and the names
    of those that are trained on: all, or the normal ones, which come first. Raises StageError where `normal` does not
    separate normal examples from anomalies."""
    classes = tuple(name for name in names if name not in getattr(cfg.sample, "missing_values", ()))
    index = {name: label for label, name in enumerate(classes)}
    if not cfg.normal:
        return tuple(index.get(name) for name in names), classes
    if not classes:
        raise StageError("normal: the data have no labels, so normal examples cannot be distinguished from anomalies")
    try:
        chosen = {classes[label_of(classes, asked)] for asked in cfg.normal}
    except ValueError as error:
        raise StageError(f"normal: {error}") from error
    ordered = sorted(classes, key=lambda name: name not in chosen)
    normals = tuple(name for name in classes if name in chosen)
    if len(normals) == len(classes):
        raise StageError(f"normal: names every class ({', '.join(classes)}), so no example is an anomaly")
    return tuple(ordered.index(name) if name in classes else None for name in names), normals


def encode_part(
    part: Part,
    *,
    kind: str,
    cfg: Any,
    labelled: bool,
    attributes: bool = False,
    labels: Sequence[int | None] | None = None,
    normals: int | None = None,
    keep_unlabelled: bool = False,
    test_share: float = 0.0,
) -> Iterator[pa.Table]:
    """Tables as of `shard_writer.table`, with `id` and `reason`: a rejected item has a reason and empty parts.

    `labels` are those of the source's classes (None: missing), if not its own; from `normals` on of anomalies. Items
    without a label are rejected unless they are to be kept with none.
    """
    encode, parts = _kind.load(kind).encode, _kind.load(kind).parts(cfg)
    nothing = dict.fromkeys(parts, b"")
    rows: list[Row] = []
    size = 0
    for item in part():
        try:
            if item.payload is None:
                raise ValueError(item.reason)
            known = item.label if labels is None or item.label is None else labels[item.label]
            if labelled and known is None and not keep_unlabelled:
                raise ValueError(_UNLABELLED)
            if attributes and item.attributes is None:
                raise ValueError("its attributes are not known")
            for number in item.attributes or ():
                if not abs(number) <= _LARGEST:  # so written that NaN fails too
                    raise ValueError(f"an attribute is {number}, expected numbers of at most {_LARGEST:.2g}")
            digest, packed = shard_writer.pack(parts, encode(cfg, item.payload))
            label = 0 if not labelled else NO_LABEL if known is None else known
            split: str | None = item.split
            if split is None and item.group is not None:
                split = shard_writer.split_of_group(item.group, test_share)
            if normals is not None and label >= normals:
                split = shards.ANOMALIES
            rows.append((digest, label, packed, split, item.attributes or (), item.id, ""))
        except ValueError as error:
            rows.append((bytes(16), 0, nothing, None, (), item.id, str(error)))
        size += sum(map(len, rows[-1][2].values()))
        if len(rows) == _TABLE_ROWS or size > _TABLE_BYTES:
            yield _table(rows)
            rows, size = [], 0
    if rows:
        yield _table(rows)


def _table(rows: list[Row]) -> pa.Table:
    hashes, labels, packed, splits, attributes, ids, reasons = (list(column) for column in zip(*rows, strict=True))
    table = shard_writer.table(hashes, packed, labels, splits, attributes)
    texts = {"id": ids, "reason": reasons}
    for name, column in texts.items():
        table = table.append_column(name, pa.array([printable(text) for text in column]))
    return table


def _encode(parts: Sequence[Part], encode: Encode) -> Iterator[pa.Table]:
    """Every part's tables, in order; what takes long is handed to processes, which change nothing but the time."""
    start = time.monotonic()
    for done, part in enumerate(parts):
        seconds = time.monotonic() - start
        if done and seconds > PARALLEL_FROM_S / 10 and seconds / done * (len(parts) - done) > PARALLEL_FROM_S:
            yield from _encode_parallel(parts[done:], encode)
            return
        yield from encode(part)


def _encode_parallel(parts: Sequence[Part], encode: Encode) -> Iterator[pa.Table]:
    """As `_encode`, in a process per core of this machine; two parts per process are on their way at a time."""
    workers = len(os.sched_getaffinity(0))
    context = multiprocessing.get_context("forkserver")  # PyTorch and pyarrow have threads, which a fork would lose
    # slow to import, so once for all; pyarrow imports pandas where it is installed. Own modules stay with the workers:
    # the server of forks does not have this process's `sys.path`, and might find others.
    context.set_forkserver_preload(["torch", "pandas", "pydantic", "pyarrow.parquet"])
    ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN  # as under nohup: then a worker must not end either
    with ProcessPoolExecutor(workers, context, _follow_parent, (ignored,)) as pool:
        futures = (pool.submit(_encode_whole, encode, part) for part in parts)
        waiting = deque(itertools.islice(futures, 2 * workers))
        try:
            while waiting:
                tables = waiting.popleft().result()
                waiting.extend(itertools.islice(futures, 1))
                yield from tables
        except BrokenProcessPool as error:
            raise StageError("a process that encoded samples was killed, perhaps because memory ran out") from error
        finally:
            pool.shutdown(cancel_futures=True)


def _encode_whole(encode: Encode, part: Part) -> list[pa.Table]:
    return list(encode(part))


def _follow_parent(ignored: bool) -> None:
    """Let a worker end with the stage: at Ctrl-C, unless the stage `ignored` that, without a traceback of its own, and
    when the stage is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN if ignored else signal.SIG_DFL)

    def watch() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class _Rejects:
    """Takes rejected items out of the stream into a file; stops the stage when they are too many."""

    def __init__(self, path: Path, source: Source, cfg: DatasetConfig) -> None:
        self.file = path.open("w", newline="", encoding="utf-8")
        self._write = csv.writer(self.file, lineterminator="\n").writerow
        self._write(["item", "reason"])
        self._source, self._most = source, cfg.max_reject_share
        keys = [] if cfg.normal else ["unlabelled: keep keeps examples without a label"]
        keys += ["source.split reads one split"] if "split" in type(cfg.source).model_fields else []
        has_words = "missing_values" in type(cfg.sample).model_fields
        keys += ["sample.missing_values lists the words that mean a missing label"] if has_words else []
        self._hint = "".join(f"; {key}" for key in keys)
        self._first: list[str] = []
        self.seen = self.count = 0

    def sift(self, tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
        for table in tables:
            self.seen += table.num_rows
            reasons = table["reason"].to_pylist()
            bad = [(name, why) for name, why in zip(table["id"].to_pylist(), reasons, strict=True) if why]
            for row in bad:
                self._write(row)
            self.count += len(bad)
            self._first += [f"{name} ({why})" for name, why in bad[: 3 - len(self._first)]]
            if self.count > self._most * self._source.count:
                unlabelled = any(why == _UNLABELLED for _, why in bad)
                raise StageError(
                    f"{self.count} of the first {self.seen} items ({self.count / self.seen:.1%}) cannot be "
                    f"read, max_reject_share allows {self._most:.1%} of all {self._source.count}: "
                    + "; ".join(self._first)
                    + self._hint * unlabelled
                )
            good = table.drop_columns(["id", "reason"])
            yield good.filter(pa.array([not why for why in reasons])) if bad else good


def _check(found: shard_writer.Summary, classes: tuple[str, ...], cfg: DatasetConfig) -> None:
    counts = {split: found.counts[split] for split in shards.SPLITS}
    if min(counts.values()) < LEAST:
        what = "normal examples" if cfg.normal else "different examples"
        raise StageError(
            f"too few data: of {sum(counts.values())} {what} {counts['train']} are for training "
            f"and {counts['test']} for testing, at test_share {cfg.test_share} or by the split that the files have; "
            f"{LEAST} of each are needed"
        )
    if lacking := [name for label, name in enumerate(classes) if not found.classes["train"][label]]:
        raise StageError(
            f"classes without a training example: {listed(lacking)}; add examples of them or take them away"
        )
    if cfg.normal and shards.ANOMALIES not in found.counts:
        raise StageError(f"normal: no readable example is of another class than {', '.join(map(str, cfg.normal))}")


if __name__ == "__main__":
    main(lambda params: prepare(params.dataset, Path("data/raw", params.data), PREPARED))
