"""Area under the ROC curve: the probability that an anomaly has a higher score than a normal test example.

0.5 is chance. The floor has training examples in the place of test examples: if it is clearly higher, the score knows
its training examples. Ties count half (Hanley & McNeil 1982).
"""

from __future__ import annotations

from ganlib.metrics._types import Examples

__all__ = ["DIRECTION", "NEEDS", "compute"]

DIRECTION = "higher"
NEEDS = ("score", "anomalous")


def compute(real: Examples, fake: Examples) -> float:
    # here, as it takes a second, which those that only look up the metrics need not wait
    import numpy as np
    from sklearn.metrics import roc_auc_score

    anomalous = np.concatenate([side["anomalous"].numpy() for side in (real, fake)])
    return float(roc_auc_score(anomalous, np.concatenate([side["score"].numpy() for side in (real, fake)])))
