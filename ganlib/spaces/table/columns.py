"""A row as a vector in which every column counts about as much: numbers evenly spread, categories one-hot.

A number or date is replaced by its quantile, that is the distribution function of the modes that were fitted to the
training rows, scaled to unit variance: no outlier is far from all else. One of few values is its place among them,
scaled alike. A category is one-hot, so that two different ones are as far apart as two numbers drawn at random are on
average (squared distance 2); of more than 32 the vectors are random ones of 32 numbers, nearly as far apart. Missing
values are a category, and a number that is missing lies in the middle. It sees what users get: generated rows are
rounded to codes first. Distances are those of mixed data (cf. Gower 1971), so every column is taken to be as
important as any other.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ganlib._config import Config as _Base
from ganlib.data._spec import Spec
from ganlib.spaces._extractor import CPU, Extractor

__all__ = ["Config", "load"]

_DIRECTIONS = 32  # of one category's vector, at most


class Config(_Base):
    pass


def load(cfg: Config, spec: Spec, device: torch.device = CPU) -> Extractor:
    """Float64 `[N, D]`; float32 would set equal rows apart. It is always computed on the CPU."""
    quantise, config = spec.kind.quantise, spec.sample
    features = [_of_column(column) for column in config.columns]  # type: ignore[attr-defined]

    def vectors(samples: Tensor) -> Tensor:
        codes = quantise(config, samples)
        return torch.cat([of(codes[:, i]) for i, of in enumerate(features)], 1)

    return Extractor("columns", (), vectors, CPU)


def _of_column(column: Any) -> Callable[[Tensor], Tensor]:
    """From codes `[N]` to `[N, d]`."""
    if column.type in ("number", "integer", "date"):
        place = _by_modes(column.modes) if column.modes else _by_values(column.values)
        return lambda codes: _numbers(place, codes)
    vectors = _vectors(len(column.categories) + 1)
    return lambda codes: vectors[codes.nan_to_num(len(column.categories)).long()]


def _numbers(place: Callable[[Tensor], Tensor], codes: Tensor) -> Tensor:
    missing = codes.isnan()
    scaled = (place(codes.nan_to_num(0.0)) - 0.5) * math.sqrt(12)  # of unit variance, where places are uniform
    return torch.stack([scaled.masked_fill(missing, 0.0), missing.double() * math.sqrt(2)], 1)


def _by_modes(modes: Any) -> Callable[[Tensor], Tensor]:
    weight, mean, std = (
        torch.tensor([getattr(mode, name) for mode in modes], dtype=torch.float64) for name in ("weight", "mean", "std")
    )
    return lambda values: torch.special.ndtr((values[:, None] - mean) / std) @ (weight / weight.sum())


def _by_values(values: tuple[float, ...]) -> Callable[[Tensor], Tensor]:
    known = torch.tensor(values, dtype=torch.float64)
    if len(known) < 2:
        return lambda found: torch.full_like(found, 0.5)
    spread = math.sqrt((len(known) + 1) / (len(known) - 1))  # k places have the variance (k + 1) / 12 (k - 1)
    return lambda found: (torch.searchsorted(known, found) / (len(known) - 1) - 0.5) / spread + 0.5


def _vectors(count: int) -> Tensor:
    """`[count, d]`, of length 1."""
    if count <= _DIRECTIONS:
        return torch.eye(count, dtype=torch.float64)
    drawn = torch.from_numpy(np.random.default_rng(0).standard_normal((count, _DIRECTIONS)))
    return torch.nn.functional.normalize(drawn, dim=1)
