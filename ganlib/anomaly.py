"""A model that scores examples, as an outlier detector of scikit-learn.

    detector = OutlierDetector(mlflow.pyfunc.load_model("models:/NAME@champion"), contamination=0.05).fit(rows)
    detector.predict(others)  # 1: normal, -1: an anomaly

The model is trained already: `fit` only sets the threshold, so that this share of its rows would be called anomalies.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.utils.validation import check_is_fitted

from ganlib.export import Generator, load_generator

__all__ = ["OutlierDetector"]


class OutlierDetector(OutlierMixin, BaseEstimator):  # type: ignore[misc]
    """An outlier detector whose score is an answer of a trained model, high for anomalies.

    `model` is a `Generator`, the folder of an exported one, or what MLflow loads. Rows are as the model presents them:
    an array of images (integers of 0 to 255 or floats of 0 to 1), a DataFrame.
    """

    def __init__(self, model: Any = None, *, contamination: float = 0.1, answer: str = "score"):
        self.model = model
        self.contamination = contamination
        self.answer = answer

    def fit(self, X: Any, y: Any = None) -> OutlierDetector:
        """Set `offset_`. Raises ValueError for a contamination outside (0, 0.5], a model that has no such answer, or no
        rows."""
        if not 0 < self.contamination <= 0.5:
            raise ValueError(f"contamination: expected more than 0 and at most 0.5, found {self.contamination}")
        if not len(X):
            raise ValueError("fit: expected rows to set the threshold by, found none")
        self.model_ = load_generator(self.model) if isinstance(self.model, str | Path) else self.model
        self.offset_ = float(np.percentile(self._scored(X), 100 * self.contamination))
        self.n_features_in_ = int(np.prod(np.shape(X)[1:], dtype=np.int64))
        return self

    def score_samples(self, X: Any) -> NDArray[np.float64]:
        """`[N]`, low for anomalies: the answer with the other sign."""
        check_is_fitted(self)
        return self._scored(X)

    def decision_function(self, X: Any) -> NDArray[np.float64]:
        """`[N]`, below 0 for anomalies: `score_samples` less `offset_`."""
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> NDArray[np.int64]:
        """`[N]`: 1 for normal examples, -1 for anomalies."""
        return np.where(self.decision_function(X) < 0, -1, 1)

    def _scored(self, X: Any) -> NDArray[np.float64]:
        if isinstance(self.model_, Generator):
            answers = self.model_.answer({"sample": self.model_.take("sample", X)})
            if self.answer not in answers:
                raise ValueError(f"answer: {self.answer!r} is not one of this model's; known: {', '.join(answers)}")
            scores = answers[self.answer].numpy()
        else:
            scores = np.asarray(self.model_.predict(X, params={"answer": self.answer}))
        if scores.ndim != 1:
            raise ValueError(f"answer: {self.answer!r} is no score: it has shape {list(scores.shape)}")
        return -scores.astype(np.float64)
