"""Mean of `shapes` and `trends`: the overall score of SDMetrics' QualityReport. 1 is equal.

Where no two columns depend on one another it is that of the shapes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ganlib.metrics._types import Examples
from ganlib.metrics.table._columns import alike, pairs

__all__ = ["BOUNDS", "DIRECTION", "NEEDS", "TAKES_CONFIG", "compute"]

DIRECTION = "higher"
NEEDS = ("rows",)
BOUNDS = (0.0, 1.0)
TAKES_CONFIG = True


def compute(cfg: Any, real: Examples, fake: Examples) -> float:
    sides = real["rows"].numpy(), fake["rows"].numpy()
    of_columns, of_pairs = float(np.mean(alike(cfg, *sides))), pairs(cfg, *sides)
    return (of_columns + float(np.mean(of_pairs))) / 2 if of_pairs else of_columns
