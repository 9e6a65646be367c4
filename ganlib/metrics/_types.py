"""What a metric is given: a set of examples, seen through one feature space, by the classifier or beside targets."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

__all__ = ["Examples"]

Examples = Mapping[str, Tensor]
"""Columns that hold a row for each example, of which a metric names those it reads in `NEEDS`:

- `features` `[N, D]`, and `nearest` `[N]`: the distance to the nearest training example (other than itself);
- `closer` float64 `[N]`, beside them: 1 where an example is closer to training examples than to as many test examples,
  0 where it is further away, a half where it is as close to both;
- `tokens`, `rows`, …: what a feature space of another `column` fills;
- `label` int64 `[N]`: the class asked of the generator, or the true class;
- `predicted` int64 `[N]`: the class the in-domain classifier sees;
- by the names of the model's answers `[N, ...]`: what it says of real test examples (`real`) and of anomalies, if there
  are any, otherwise of the same test examples (`fake`); then also `anomalous` bool `[N]`;
- by the name of each metric with a `score(cfg, made, target)`: what that is of each sample, float64 `[N]`.

Such a metric compares samples with what they should have been, both `[N, *shape]` as networks see them, and is the mean
of its scores; `cfg` is that of the kind of data. So no samples need to be kept.

A metric that has to know what a column of `rows` is says `TAKES_CONFIG = True` and is `compute(cfg, real, fake)`. One
that takes long says of how many half-samples its interval is made at most: `RESAMPLES`. `BOUNDS`, the least and the
largest value that it can have, are where its interval ends at most; without them it may go on for ever.
"""
