"""The input of a metric: a set of examples, as columns by feature space, classifier, answers or target."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

__all__ = ["Examples"]

Examples = Mapping[str, Tensor]
"""Columns with a row for each example; `NEEDS` of a metric names those that it reads:

- `features` `[N, D]`, and `nearest` `[N]`: the distance to the nearest training example (other than itself);
- `closer` float64 `[N]`, where there is `nearest`: 1 if an example is closer to training examples than to as many test
  examples, 0 if it is further away, a half if it is as close to both;
- `tokens`, `rows`, …: what a feature space of another `column` fills;
- `label` int64 `[N]`: the class asked of the generator, or the true class;
- `predicted` int64 `[N]`: the class the in-domain classifier sees;
- by the names of the model's answers `[N, ...]`: what it says of real test examples (`real`) and of anomalies, if there
  are any, otherwise of the same test examples (`fake`); then also `anomalous` bool `[N]`;
- by the name of each metric with a `score(cfg, made, target)`: what that is of each sample, float64 `[N]`.

Such a metric compares samples with what they should have been, both `[N, *shape]` as networks see them, and is the mean
of its scores; `cfg` is that of the kind of data. So no samples need to be kept.

A metric that has to know what a column of `rows` is says `TAKES_CONFIG = True` and is `compute(cfg, real, fake)`. One
that takes long limits the number of half-samples for its interval by `RESAMPLES`. `BOUNDS`, its least and largest
possible value, clip its interval; without them the interval is not clipped.
"""
