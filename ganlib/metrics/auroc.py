"""Area under the ROC curve: the probability that an anomaly has a higher score than a normal test example.

0.5 is chance. The floor has training examples in the place of test examples: if it is clearly higher, the score knows
its training examples. Ties count half (Hanley & McNeil 1982).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ganlib.metrics._types import Examples

__all__ = ["BOUNDS", "DIRECTION", "NEEDS", "compute", "curve"]

DIRECTION = "higher"
NEEDS = ("score", "anomalous")
BOUNDS = (0.0, 1.0)


def curve(real: Examples, fake: Examples) -> dict[str, list[float]]:
    """The ROC curve: share of normal examples, and of anomalies, that score at least as high as a threshold."""
    from sklearn.metrics import roc_curve

    false, true, _ = roc_curve(*_labelled(real, fake))
    return {"false_positive_rate": false.tolist(), "true_positive_rate": true.tolist()}


def compute(real: Examples, fake: Examples) -> float:
    # imported here: it takes a second, and callers that only list metrics do not need it
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(*_labelled(real, fake)))


def _labelled(real: Examples, fake: Examples) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """Of both sides: whether an example is anomalous, and its score."""
    anomalous, scores = (
        np.concatenate([side[name].numpy() for side in (real, fake)]) for name in ("anomalous", "score")
    )
    return anomalous, scores
