"""Average precision of the score: mean over anomalies of the share of anomalies among all that score at least as high.

Chance is the share of anomalies among the examples at hand, so compare values of one set of examples only. The floor
has training examples in the place of test examples.
"""

from __future__ import annotations

import numpy as np

from ganlib.metrics._types import Examples

__all__ = ["BOUNDS", "DIRECTION", "NEEDS", "compute"]

DIRECTION = "higher"
NEEDS = ("score", "anomalous")
BOUNDS = (0.0, 1.0)


def compute(real: Examples, fake: Examples) -> float:
    # imported here: it takes a second, and callers that only list metrics do not need it
    from sklearn.metrics import average_precision_score

    anomalous, scores = (
        np.concatenate([side[name].numpy() for side in (real, fake)]) for name in ("anomalous", "score")
    )
    return float(average_precision_score(anomalous, scores))
