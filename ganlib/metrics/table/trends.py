"""How alike columns depend on one another, the mean over pairs of columns that do in the real table. 1 is equal.

Two of numbers or dates: 1 less half the difference of Pearson's correlations. Others: 1 less the total variation
distance of their joint frequencies, numbers by tenths of the range of their own table. Pairs count whose correlation
in the real table is above 0.5, or whose association (Cramér's V) is above 0.3; 1 where there are none. It is `Column
Pair Trends` of SDMetrics 0.32, with what that leaves out: a missing value is a category where numbers are cut into
tenths, and a generated column that is constant has correlation 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ganlib.metrics._types import Examples
from ganlib.metrics.table._columns import pairs

__all__ = ["BOUNDS", "DIRECTION", "NEEDS", "TAKES_CONFIG", "compute"]

DIRECTION = "higher"
NEEDS = ("rows",)
BOUNDS = (0.0, 1.0)
TAKES_CONFIG = True


def compute(cfg: Any, real: Examples, fake: Examples) -> float:
    found = pairs(cfg, real["rows"].numpy(), fake["rows"].numpy())
    return float(np.mean(found)) if found else 1.0
