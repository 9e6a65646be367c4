"""A data set of Hugging Face `datasets`: saved by `save_to_disk` in the raw folder, or on the hub by name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ganlib._config import Config as _Base
from ganlib.data._classes import natural_order
from ganlib.sources._source import Item, Part, Source, SourceError, class_names, labels_of, listed, ranges

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
    for column in filter(None, (cfg.image, cfg.label)):
        lacking = [name for name, data in splits.items() if column not in data.column_names]
        if len(lacking) == len(splits) or (lacking and column == cfg.image):
            hint = "; source.label: null reads data without labels" if column == cfg.label else ""
            hint = hint if len(lacking) == len(splits) else "; source.split names the one to read"
            has = ", ".join(splits[lacking[0]].column_names)
            raise SourceError(f"{where}: no column {column!r} in {', '.join(lacking)}; it has: {has}{hint}")
    splits = {name: _two_columns(where, cfg, data) for name, data in splits.items()}
    known, classes, notes = _labels(where, cfg, splits)
    folders, parts = _folders(raw), list[Part]()
    for name, data in splits.items():
        bounds = ranges(len(data), _PART)
        parts += [partial(_items, data, start, stop, cfg, known.get(name, {}), folders, name) for start, stop in bounds]
    about = f"datasets {datasets.__version__}: {cfg.dataset or 'saved to disk'}, splits {', '.join(splits)}"
    return Source(about, sum(map(len, splits.values())), parts, classes, notes=notes)


def _two_columns(where: Path | str, cfg: Config, data: Any) -> Any:
    """The columns of images, as they are stored, and of labels, which a split may lack."""
    import datasets

    # Reading a row decodes all of its columns, and decoding may open any file or address that a row names.
    data = data.select_columns([column for column in (cfg.image, cfg.label) if column in data.column_names])
    if isinstance(data.features[cfg.image], datasets.Image):
        data = data.cast_column(cfg.image, datasets.Image(decode=False))
    for column, feature in data.features.items():
        if column != cfg.image and not isinstance(feature, datasets.ClassLabel | datasets.Value):
            raise SourceError(f"{where}: column {column!r} is {type(feature).__name__}: it cannot be labels")
        if _opens_files(feature) and not isinstance(feature, datasets.Image):
            raise SourceError(f"{where}: column {column!r} is {type(feature).__name__}; expected one image in each row")
    return data


def _labels(
    where: Path | str, cfg: Config, splits: dict[str, Any]
) -> tuple[dict[str, dict[Any, int]], tuple[str, ...], tuple[str, ...]]:
    """`({split: label of each value}, names of the classes, notes)`.

    The order of a ClassLabel's names may differ between splits; names without an example are left out. Raises
    SourceError where the names themselves differ, or the types.
    """
    import datasets

    def type_of(feature: Any) -> str:
        return "ClassLabel" if isinstance(feature, datasets.ClassLabel) else str(feature.dtype)

    columns = {name: data.select_columns([cfg.label]) for name, data in splits.items() if cfg.label in data.features}
    features = {name: data.features[cfg.label] for name, data in columns.items()}
    features = {name: feature for name, feature in features.items() if feature.dtype != "null"}
    first = next(iter(features), "")
    for name, feature in features.items():
        types = type_of(features[first]), type_of(feature)
        differing = {*getattr(feature, "names", ())} ^ {*getattr(features[first], "names", ())}
        if types[0] != types[1] or differing:
            what = " and ".join(types) if types[0] != types[1] else f"only one has {listed(natural_order(differing))}"
            raise SourceError(
                f"{where}: column {cfg.label!r} differs between the splits {first} and {name}: {what}; name one of "
                "them in source.split"
            )
    values = {name: {*columns[name].unique(cfg.label)} for name in features}
    if not isinstance(features.get(first), datasets.ClassLabel):
        known = labels_of(value for found in values.values() for value in found)
        return dict.fromkeys(splits, known), class_names(known), ()
    used = {one for name, feature in features.items() for i, one in enumerate(feature.names) if i in values[name]}
    classes = [one for one in features[first].names if one in used]
    unused = [one for one in features[first].names if one not in used]
    labels = {one: label for label, one in enumerate(classes)}
    of_split = {
        name: {i: labels[one] for i, one in enumerate(feature.names) if one in used}
        for name, feature in features.items()
    }
    notes = (f"Names of classes without an example, left out: {listed(unused)}.",) if unused else ()
    return of_split, tuple(classes), notes


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
    data: Any, start: int, stop: int, cfg: Config, known: dict[Any, int], folders: Sequence[Path], split: str
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
        yield Item(f"{split}, row {row}", payload, known.get(cells.get(cfg.label)), reason=reason)
