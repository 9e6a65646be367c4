"""What a metric is given: a set of examples, seen through one feature space or through the classifier."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Examples"]

_UNKNOWN = torch.empty(0)


@dataclass(frozen=True)
class Examples:
    """A field is empty where it is not known. A metric names those it reads in `NEEDS`."""

    features: Tensor = _UNKNOWN
    """`[N, D]`"""
    nearest: Tensor = _UNKNOWN
    """`[N]`, distance to the nearest training example (other than itself)"""
    label: Tensor = _UNKNOWN
    """`[N]`, int64: the class asked of the generator, or the true class"""
    predicted: Tensor = _UNKNOWN
    """`[N]`, int64: the class the in-domain classifier sees"""
    image: Tensor = _UNKNOWN
    """`[N, C, H, W]` in [-1, 1]: what was generated of a given example"""
    target: Tensor = _UNKNOWN
    """`[N, C, H, W]` in [-1, 1]: what should have been"""

    def __len__(self) -> int:
        return max(len(field) for field in vars(self).values())

    def take(self, rows: Tensor) -> Examples:
        """The examples at `rows`."""
        return Examples(**{name: field[rows] if len(field) else field for name, field in vars(self).items()})

    def has(self, needs: tuple[str, ...]) -> bool:
        return all(len(getattr(self, need)) for need in needs)
