"""What a metric is given: a set of examples, seen through one feature space, by the classifier or beside targets."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

__all__ = ["Examples"]

Examples = Mapping[str, Tensor]
"""Columns that hold a row for each example, of which a metric names those it reads in `NEEDS`:

- `features` `[N, D]`, and `nearest` `[N]`: the distance to the nearest training example (other than itself);
- `label` int64 `[N]`: the class asked of the generator, or the true class;
- `predicted` int64 `[N]`: the class the in-domain classifier sees;
- by the name of each metric with a `score(image, target)`: what that is of each image, float64 `[N]`.

Such a metric compares generated images with what they should have been, both `[N, C, H, W]` in [-1, 1], and is the
mean of its scores. So no images need to be kept.
"""
