"""Mean negative log-likelihood of test examples under the model, in nats an example.

Its floor is that of training examples: the gap between the two is how far the model has learnt these by heart.
"""

from __future__ import annotations

from ganlib.metrics._types import Examples

__all__ = ["DIRECTION", "NEEDS", "compute"]

DIRECTION = "lower"
NEEDS = ("nll",)


def compute(real: Examples, fake: Examples) -> float:
    return float(real["nll"].double().mean())
