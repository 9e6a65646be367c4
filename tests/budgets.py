"""Budgets for tests: the same code, done in a minute."""

from typing import Any

SHORT: dict[str, Any] = {
    "reference.max_samples": 100,
    "reference.classifier.epochs": 2,
    "params/models/dcgan.yaml:batch": 64,  # so that reports come at whole kimg
    "tune.num_samples": 4,
    "tune.kimg": 2,
    "tune.report_kimg": 0.5,
    "tune.grace_kimg": 0.5,
    "tune.reduction_factor": 4,  # stop all but the best, so that some are
    "tune.quality_samples": 100,
    "train.kimg": 3,
    "train.report_kimg": 1,
    "train.checkpoint_kimg": 1,
    "train.quality_samples": 100,
    "evaluate.num_samples": 100,
    "evaluate.resamples": 10,
    # so short a training makes no digits: let everything pass that can be compared, to have a champion
    "gate.at_least.coverage": 0,
    "gate.at_least.memorisation_ratio": 0,
    "gate.at_least.label_accuracy": 0,
}

NO_EXPORT: dict[str, Any] = {"gate.export": []}
"""each graph of a generator takes seconds: the first run of `test_pipeline.py` registers with them"""
