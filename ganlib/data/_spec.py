"""What the networks need to know of a prepared data set."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass

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

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Spec:
        raw = json.loads(text)
        return cls(**{**raw, "shape": tuple(raw["shape"]), "classes": tuple(raw["classes"])})
