"""What the networks need to know of a prepared data set."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from torch import Tensor

__all__ = ["Spec"]


@dataclass(frozen=True)
class Spec:
    kind: str
    """the file of `ganlib/data` that encoded it"""
    modality: str
    """what families and metrics ask for: `"image"`, …"""
    shape: tuple[int, ...]
    """of one example; images: (channels, height, width)"""
    classes: tuple[str, ...]
    """class names in label order; empty where unlabelled"""
    counts: dict[str, int]
    """examples in each split: `{"train": ..., "test": ...}`"""
    content_hash: str
    """SHA-256 over every example and label of both splits, whatever their order on disk"""
    attributes: tuple[str, ...] = ()
    """names of the numbers that describe each example (several labels, continuous conditions); mostly empty"""
    given: int = 0
    """how many leading channels of an example are given to the generator rather than made by it: paired data"""

    def split(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        """Samples `[N, C, H, W]` as what is given, `[N, given, H, W]`, and what is to be made of it."""
        return samples[:, : self.given], samples[:, self.given :]

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Spec:
        raw = json.loads(text)
        fields: dict[str, Any] = {n: tuple(value) if isinstance(value, list) else value for n, value in raw.items()}
        return cls(**fields)
