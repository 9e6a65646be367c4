"""1,797 handwritten digits, 8x8 at 17 levels of grey, as scikit-learn ships them. Alpaydin & Kaynak 1998."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np

from ganlib._config import Config as _Base
from ganlib.sources._source import Item, Source

__all__ = ["KINDS", "Config", "load"]

KINDS = ("image",)


class Config(_Base):
    name: Literal["digits"] = "digits"


def load(cfg: Config, raw: Path) -> Source:
    about = f"scikit-learn {version('scikit-learn')}: load_digits()"
    return Source(about, 1797, [_items], tuple(str(digit) for digit in range(10)))


def _items() -> Iterator[Item]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    for i, (image, label) in enumerate(zip(images, digits.target, strict=True)):
        yield Item(f"digits[{i}]", image, int(label))
