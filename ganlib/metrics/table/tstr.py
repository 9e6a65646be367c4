"""Score, on real rows, of gradient boosting trained on fakes; the floor is the same trained on real rows (TRTR).

Train on synthetic, test on real: Esteban et al. 2017, section 4. The column `target` of the data's `sample` section,
or else the last, is predicted from all others. Categories: the area under the ROC curve of each against the rest, the
mean over those that the reals have (0.5 is chance); beyond ten, the rarer ones count as one. Numbers and dates: R²,
the share of the variance that is explained (0 is the mean, below 0 is worse). Rows whose number to predict is missing
are left out, and so are columns without a value in the rows to train on. scikit-learn's histogram gradient boosting
with its defaults, but a fixed number of trees.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ganlib.metrics._types import Examples
from ganlib.metrics.table._columns import Column, categories, columns

__all__ = ["DIRECTION", "NEEDS", "RESAMPLES", "TAKES_CONFIG", "compute"]

DIRECTION = "higher"
NEEDS = ("rows",)
TAKES_CONFIG = True
RESAMPLES = 20

_CLASSES = 10
_INDEXED = 255  # categories that the histograms hold; more are taken for numbers
_OPTIONS = {"max_iter": 100, "early_stopping": False, "random_state": 0}


def compute(cfg: Any, real: Examples, fake: Examples) -> float:
    rows, train = real["rows"].numpy(), fake["rows"].numpy()
    target = _target(cfg)
    numbers = [number for number, _ in columns(cfg, rows)]
    categorical = np.array(
        [
            not number and max(np.nanmax(of[:, i], initial=0) for of in (rows, train)) < _INDEXED
            for i, number in enumerate(numbers)
        ]
    )
    others = np.arange(len(numbers)) != target
    if not others.any():
        return 0.0 if numbers[target] else 0.5
    score = _r2 if numbers[target] else _auroc
    sides = ((of[:, others], of[:, target]) for of in (train, rows))
    return score(categorical[others], *sides)


def _target(cfg: Any) -> int:
    names = [column.name for column in cfg.columns]
    return names.index(cfg.target) if cfg.target is not None else len(names) - 1


def _r2(categorical: Column, train: tuple[Column, Column], test: tuple[Column, Column]) -> float:
    # imported here: it takes a second, and callers that only list metrics do not need it
    from sklearn.ensemble import HistGradientBoostingRegressor

    (x, y), (at, true) = ((of[~np.isnan(wanted)], wanted[~np.isnan(wanted)]) for of, wanted in (train, test))
    spread = float(np.square(true - true.mean()).sum()) if len(true) else 0.0
    filled = ~np.isnan(x).all(0)
    if not spread or not len(y) or not filled.any():
        return 0.0
    model = HistGradientBoostingRegressor(categorical_features=categorical[filled], **_OPTIONS).fit(x[:, filled], y)
    return 1 - float(np.square(true - model.predict(at[:, filled])).sum()) / spread


def _auroc(categorical: Column, train: tuple[Column, Column], test: tuple[Column, Column]) -> float:
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.metrics import roc_auc_score

    (x, y), (at, true) = ((of, categories(wanted)) for of, wanted in (train, test))
    frequencies = np.bincount(true)
    if (frequencies > 0).sum() > _CLASSES:
        rare = np.ones(max(len(frequencies), int(y.max()) + 1), bool)
        rare[np.argsort(-frequencies, kind="stable")[: _CLASSES - 1]] = False
        y, true = (np.where(rare[of], -1, of) for of in (y, true))
    known, classes, filled = np.unique(y), np.unique(true), ~np.isnan(x).all(0)
    if len(known) == 1 or len(classes) == 1 or not filled.any():
        return 0.5
    model = HistGradientBoostingClassifier(categorical_features=categorical[filled], **_OPTIONS).fit(x[:, filled], y)
    found = model.predict_proba(at[:, filled])
    # a class that no fake has is as likely everywhere
    scores = {of: found[:, i] for i, of in enumerate(known)}
    return float(np.mean([roc_auc_score(true == of, scores.get(of, np.zeros(len(true)))) for of in classes]))
