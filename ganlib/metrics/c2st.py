"""Accuracy of a classifier that tells fakes from reals, on examples it has not seen. Lopez-Paz & Oquab 2017, eq. 2.

0.5 means that it cannot: the discriminator's work is done. Logistic regression on standardised features, so only
differences of their means are seen; each half of the examples is judged by the model fitted on the other.
"""

from __future__ import annotations

import numpy as np

from ganlib.metrics._types import Examples

__all__ = ["BOUNDS", "DIRECTION", "NEEDS", "compute"]

DIRECTION = "lower"
NEEDS = ("features",)
BOUNDS = (0.0, 1.0)


def compute(real: Examples, fake: Examples) -> float:
    # imported here: it takes a second, and callers that only list metrics do not need it
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.model_selection import cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    features = np.concatenate([real["features"].numpy(), fake["features"].numpy()])
    is_fake = np.repeat([0, 1], [len(real["features"]), len(fake["features"])])
    # Far more features than the examples can fit: the strong ridge is what lets it generalise (and end soon).
    model = make_pipeline(StandardScaler(), LogisticRegression(C=1e-3, max_iter=1000, class_weight="balanced"))
    return float(balanced_accuracy_score(is_fake, cross_val_predict(model, features, is_fake, cv=2)))
