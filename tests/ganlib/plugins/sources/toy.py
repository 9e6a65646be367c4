"""The payloads that a kind of data has for tests."""

from __future__ import annotations

from functools import partial
from typing import Literal

from ganlib._config import Config as _Base
from ganlib.data import _kind
from ganlib.sources._source import Item, Source


class Config(_Base):
    name: Literal["toy"] = "toy"
    of: str


def load(cfg, raw):
    _, payloads = _kind.load(cfg.of).tiny()
    return Source(f"tests: {cfg.of}", len(payloads), [partial(_items, payloads)])


def _items(payloads):
    return [Item(f"row {i}", payload) for i, payload in enumerate(payloads)]
