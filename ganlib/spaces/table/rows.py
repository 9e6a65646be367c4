"""Rows as they are stored: a code for each column, NaN where a value is missing. For metrics that read columns."""

from __future__ import annotations

import torch
from torch import Tensor

from ganlib._config import Config as _Base
from ganlib.data._spec import Spec
from ganlib.spaces._extractor import CPU, Extractor

__all__ = ["Config", "load"]


class Config(_Base):
    pass


def load(cfg: Config, spec: Spec, device: torch.device = CPU) -> Extractor:
    """Float64 `[N, columns]`, by the kind's `quantise`: what users get, as numbers."""

    def codes(samples: Tensor) -> Tensor:
        return spec.kind.quantise(spec.sample, samples)

    return Extractor("rows", (), codes, CPU, column="rows")
