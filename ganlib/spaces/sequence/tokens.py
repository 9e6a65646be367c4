"""The tokens of a line themselves, by number: for metrics of words and letters, which need no distance."""

from __future__ import annotations

import torch

from ganlib._config import Config as _Base
from ganlib.data._spec import Spec
from ganlib.spaces._extractor import CPU, Extractor

__all__ = ["Config", "load"]


class Config(_Base):
    pass


def load(cfg: Config, spec: Spec, device: torch.device) -> Extractor:
    return Extractor("tokens", (), lambda samples: spec.kind.quantise(spec.sample, samples).cpu(), CPU, column="tokens")
