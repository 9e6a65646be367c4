"""What the networks need to know of a prepared data set."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ganlib._config import Config
from ganlib.data import _kind
from ganlib.data._kind import Kind, Part

__all__ = ["NO_LABEL", "Part", "Spec"]

NO_LABEL = -1
"""of an example in labelled data that has none"""


@dataclass(frozen=True)
class Spec:
    sample: Config
    """of the kind of data, completed by what the kind learnt of the data: vocabulary, moments, …"""
    modality: str
    """what families ask for: `"image"`, …"""
    classes: tuple[str, ...]
    """class names in label order; empty where unlabelled"""
    counts: dict[str, int]
    """examples in each split: `{"train": ..., "test": ...}`, and `"anomalies"` if there are any"""
    content_hash: str
    """SHA-256 over every example and label of both splits, independent of their order on disk"""
    attributes: tuple[str, ...] = ()
    """names of the numbers that describe each example (several labels, continuous conditions); mostly empty"""
    code: str = ""
    """SHA-256 of the kind's code, so that what is made of prepared data depends on no other kind's"""
    unlabelled: int = 0
    """examples of all splits whose label is `NO_LABEL`, where others have one"""
    attribute_means: tuple[float, ...] = ()
    attribute_stds: tuple[float, ...] = ()
    """of the training examples, in the attributes' own units; a constant's deviation is 1. Empty: not standardised"""

    @property
    def kind(self) -> Kind:
        """The file of `ganlib/data` that encoded it."""
        return _kind.load(self.sample.kind)  # type: ignore[attr-defined]

    @cached_property
    def parts(self) -> dict[str, Part]:
        """The tensors of an example. `"sample"` is made by the generator, all others are given to it."""
        return self.kind.parts(self.sample)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample, as networks see it; images: (channels, height, width)."""
        return self.parts["sample"].shape

    @property
    def given(self) -> tuple[str, ...]:
        """Names of the parts that are given; empty where samples are made of noise."""
        return tuple(name for name in self.parts if name != "sample")

    @property
    def size(self) -> int:
        """Numbers in one example, all parts, as networks see it."""
        return sum(math.prod(part.shape) for part in self.parts.values())

    @property
    def stored_bytes(self) -> int:
        """Bytes of one example, all parts, as stored."""
        return sum(part.stored_bytes for part in self.parts.values())

    def standardise(self, attributes: Tensor) -> Tensor:
        """Attributes `[N, A]` in their own units → as networks see them, float32: of mean 0 and deviation 1."""
        if not self.attribute_means:
            return attributes.float()
        means, stds = self._scale(attributes)
        return ((attributes.double() - means) / stds).float()

    def in_own_units(self, attributes: Tensor) -> Tensor:
        """The inverse of `standardise`, float64."""
        if not self.attribute_means:
            return attributes.double()
        means, stds = self._scale(attributes)
        return attributes.double() * stds + means

    def _scale(self, attributes: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation of each, on the device of these."""
        of_each = self.attribute_means, self.attribute_stds
        means, stds = torch.tensor(of_each, dtype=torch.float64, device=attributes.device)
        return means, stds

    def to_json(self) -> str:
        """JSON whose mappings keep their order: a kind's configuration may depend on it."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        if not self.unlabelled:  # as it was before there were such data: shards carry it
            del fields["unlabelled"]
        return json.dumps(fields | {"sample": self.sample.model_dump(mode="json")})

    @classmethod
    def from_json(cls, text: str) -> Spec:
        """The inverse of `to_json`. Raises ValueError for a kind that is not known here, or not as it was."""
        raw = json.loads(text)
        sample = _kind.load(raw["sample"]["kind"]).Config.model_validate(raw["sample"])
        fields: dict[str, Any] = {n: tuple(value) if isinstance(value, list) else value for n, value in raw.items()}
        return cls(**fields | {"sample": sample})

    @classmethod
    def from_format_1(cls, raw: Mapping[str, Any]) -> Spec:
        """Of the `spec` in a `generator.json` of format 1: images, where some of the stacked channels were given."""
        channels, *resolution = raw["shape"]
        of_parts = [raw["given"], channels - raw["given"]] if raw["given"] else channels
        sample = {"kind": raw["kind"], "resolution": resolution, "channels": of_parts}
        kept = {name: raw[name] for name in ("modality", "classes", "counts", "content_hash", "attributes")}
        return cls.from_json(json.dumps(kept | {"sample": sample}))
