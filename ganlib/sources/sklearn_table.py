"""A small table that scikit-learn ships: breast_cancer 569 x 31, diabetes 442 x 11, iris 150 x 5, wine 178 x 14."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from ganlib._config import Config as _Base
from ganlib.sources._source import Item, Source

__all__ = ["KINDS", "Config", "load"]

KINDS = ("table",)


class Config(_Base):
    name: Literal["sklearn_table"] = "sklearn_table"
    dataset: Literal["breast_cancer", "diabetes", "iris", "wine"]


def load(cfg: Config, raw: Path) -> Source:
    about = f"scikit-learn {version('scikit-learn')}: load_{cfg.dataset}()"
    return Source(about, len(_frame(cfg.dataset)), [partial(_items, cfg.dataset)])


def _frame(name: str) -> Any:
    """With the target as a last column, by its name where it is a class."""
    from sklearn import datasets

    options = {"scaled": False} if name == "diabetes" else {}
    found = getattr(datasets, f"load_{name}")(as_frame=True, **options)
    frame = found.frame
    if "target_names" in found:
        frame["target"] = [str(found.target_names[code]) for code in frame["target"]]
    return frame


def _items(name: str) -> Iterator[Item]:
    frame = _frame(name)
    names = [str(column) for column in frame]
    for number, cells in enumerate(frame.itertuples(index=False, name=None)):
        yield Item(f"{name}[{number}]", dict(zip(names, cells, strict=True)))
