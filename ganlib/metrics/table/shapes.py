"""How alike single columns are distributed, the mean over columns. 1 is equal, 0 has nothing in common.

Numbers and dates: 1 less the Kolmogorov-Smirnov distance; categories: 1 less the total variation distance. It is
`Column Shapes` of SDMetrics 0.32 where nothing is missing. Missing values, which that leaves out, count here: as a
category, or below all numbers.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ganlib.metrics._types import Examples
from ganlib.metrics.table._columns import alike

__all__ = ["BOUNDS", "DIRECTION", "NEEDS", "TAKES_CONFIG", "compute"]

DIRECTION = "higher"
NEEDS = ("rows",)
BOUNDS = (0.0, 1.0)
TAKES_CONFIG = True


def compute(cfg: Any, real: Examples, fake: Examples) -> float:
    return float(np.mean(alike(cfg, real["rows"].numpy(), fake["rows"].numpy())))
