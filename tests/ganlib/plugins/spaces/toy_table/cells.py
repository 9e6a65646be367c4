"""The numbers of a row themselves."""

from __future__ import annotations

from ganlib._config import Config as _Base
from ganlib.spaces._extractor import Extractor


class Config(_Base):
    pass


def load(cfg, spec, device):
    return Extractor("cells", (), lambda rows: rows, device)
