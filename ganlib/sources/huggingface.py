"""A data set of Hugging Face `datasets`: saved by `save_to_disk` in the raw folder, or on the hub by name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ganlib._config import Config as _Base
from ganlib.sources._source import Item, Source, SourceError, class_names, labels_of, ranges

__all__ = ["KINDS", "Config", "load"]

KINDS = ("image",)
_PART = 1024


class Config(_Base):
    name: Literal["huggingface"] = "huggingface"
    dataset: str | None = None
    """a name on the hub; null: the raw folder, as `save_to_disk` left it"""
    subset: str | None = None
    """the hub's "config" """
    revision: str | None = None
    """a commit of the hub's; without it the data may change under a pipeline"""
    split: str | None = None
    """one split; null: all of them"""
    image: str = "image"
    label: str | None = "label"
    """null: unlabelled"""


def load(cfg: Config, raw: Path) -> Source:
    """Raises SourceError if `datasets` is not installed, or the data or a column cannot be found."""
    try:
        import datasets
    except ImportError as error:
        raise SourceError("huggingface needs the package datasets: pip install ganlib[huggingface]") from error
    where = cfg.dataset or raw
    try:
        found: Any = (
            datasets.load_dataset(cfg.dataset, cfg.subset, revision=cfg.revision)
            if cfg.dataset
            else datasets.load_from_disk(str(raw))
        )
    except Exception as error:  # the hub fails in many ways
        raise SourceError(f"{where}: {type(error).__name__}: {' '.join(str(error).split())}") from error
    splits = dict(found) if isinstance(found, datasets.DatasetDict) else {str(found.split or "all"): found}
    if cfg.split is not None:
        if cfg.split not in splits:
            raise SourceError(f"{where}: no split {cfg.split!r}; it has: {', '.join(splits)}")
        splits = {cfg.split: splits[cfg.split]}
    data = datasets.concatenate_datasets(list(splits.values()))
    for column in filter(None, (cfg.image, cfg.label)):
        if column not in data.column_names:
            raise SourceError(f"{where}: no column {column!r}; it has: {', '.join(data.column_names)}")
    # Reading a row decodes all of its columns, and decoding may open any file or address that a row names.
    data = data.select_columns([cfg.image, *([cfg.label] if cfg.label else [])])
    if isinstance(data.features[cfg.image], datasets.Image):
        data = data.cast_column(cfg.image, datasets.Image(decode=False))
    for column, feature in data.features.items():
        if column != cfg.image and not isinstance(feature, datasets.ClassLabel | datasets.Value):
            raise SourceError(f"{where}: column {column!r} is {type(feature).__name__}: it cannot be labels")
        if _opens_files(feature) and not isinstance(feature, datasets.Image):
            raise SourceError(f"{where}: column {column!r} is {type(feature).__name__}; expected one image in each row")
    known: dict[Any, int] = {}
    names: tuple[str, ...] = ()
    if cfg.label:
        feature = data.features[cfg.label]
        if isinstance(feature, datasets.ClassLabel):
            known, names = {i: i for i in range(feature.num_classes)}, tuple(feature.names)
        else:
            known = labels_of(data.unique(cfg.label))
            names = class_names(known)
    folders = _folders(raw)
    parts = [partial(_items, data, start, stop, cfg, known, folders) for start, stop in ranges(len(data), _PART)]
    about = f"datasets {datasets.__version__}: {cfg.dataset or 'saved to disk'}, splits {', '.join(splits)}"
    return Source(about, len(data), parts, names)


def _opens_files(feature: Any) -> bool:
    """Whether decoding a value of this type, or what it consists of, may open files."""
    if hasattr(feature, "decode_example"):
        return True
    inner = feature.values() if isinstance(feature, dict) else feature if isinstance(feature, list | tuple) else ()
    return any(map(_opens_files, (*inner, *filter(None, [getattr(feature, "feature", None)]))))


def _folders(raw: Path) -> list[Path]:
    """Folders of files that rows name: first the raw folder, then the download folders of `datasets` and of the hub."""
    from datasets import config
    from huggingface_hub import constants  # type: ignore[import-not-found, unused-ignore]

    caches = (config.HF_DATASETS_CACHE, config.DOWNLOADED_DATASETS_PATH, config.EXTRACTED_DATASETS_PATH)
    return [Path(folder).resolve() for folder in (raw, *caches, constants.HF_HUB_CACHE)]


def _items(
    data: Any, start: int, stop: int, cfg: Config, known: dict[Any, int], folders: Sequence[Path]
) -> Iterator[Item]:
    for row in range(start, stop):
        cells = data[row]
        payload, reason = cells[cfg.image], Item.reason
        if isinstance(payload, dict):
            path = payload.get("path")
            payload = payload.get("bytes") or (path and (folders[0] / path).resolve()) or None
            # Whoever made the data chose the path: it must not name any file of this machine.
            if isinstance(payload, Path) and not any(payload.is_relative_to(folder) for folder in folders):
                payload, reason = None, f"{path} lies outside the raw folder and the caches of Hugging Face"
        elif isinstance(payload, list):
            payload = np.asarray(payload)
        yield Item(f"row {row}", payload, known.get(cells[cfg.label]) if cfg.label else None, reason=reason)
