"""Attributes as a person asks for them, by name: `ganlib sample --attribute age=20`, `"attributes": {"age": 20}`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

__all__ = ["attributes_of", "numbers_of"]


def numbers_of(asked: Sequence[str]) -> dict[str, float]:
    """`NAME=NUMBER`s by name. Raises ValueError for anything else, and for a name that comes twice."""
    found: dict[str, float] = {}
    for one in asked:
        name, _, number = one.rpartition("=")
        if name in found:
            raise ValueError(f"expected each once, found {name[:200]!r} twice")
        try:
            found[name] = float(number)
        except ValueError:
            raise ValueError(f"expected NAME=NUMBER, found {one[:200]!r}") from None
    return found


def attributes_of(names: Sequence[str], asked: Mapping[str, float]) -> Tensor:
    """The values in the order of `names`, `[A]`, float64. Raises ValueError where these are not the names asked for."""
    if sorted(asked) != sorted(names):
        known = ", ".join(names) or "none, the data have no attributes"
        raise ValueError(f"expected each once: {known}; found {', '.join(asked)[:200] or 'none'}")
    return torch.tensor([asked[name] for name in names], dtype=torch.float64)
