"""The training examples that samples are nearest to."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from ganlib.metrics._neighbours import nearest
from ganlib.reference import Space

__all__ = ["nearest_examples", "space_of_features"]


def space_of_features(spaces: Iterable[Space]) -> Space:
    """The first space whose vectors have meaningful distances."""
    return next(space for space in spaces if space.column == "features")


def nearest_examples(samples: Tensor, space: Space, stored: Any, count: int) -> tuple[Tensor, Tensor]:
    """Of each of the samples `[N, *shape]` the `count` training examples that are nearest to it in features, nearest
    first: their distances, `[N, count]`, and what is `stored` of them, `[N, count, *stored]`.

    `stored` has the training examples in the order of the space's, and maybe more."""
    distances, rows = nearest(space.extract(samples), space.train, min(count, len(space.train)))
    return distances, stored[rows.flatten()].unflatten(0, rows.shape)
