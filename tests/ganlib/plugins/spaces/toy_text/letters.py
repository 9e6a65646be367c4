"""The letters themselves, by number: nothing that distances would make sense of."""

from __future__ import annotations

from ganlib._config import Config as _Base
from ganlib.spaces._extractor import Extractor


class Config(_Base):
    pass


def load(cfg, spec, device):
    return Extractor("letters", (), lambda letters: spec.kind.quantise(spec.sample, letters), device, column="tokens")
