"""How many n-grams of a fake, up to 5 tokens long, occur in the other fakes: self-BLEU-5. Zhu et al. 2018.

Far above its floor, which is that of real lines, the fakes repeat themselves.
"""

from __future__ import annotations

from ganlib.metrics._types import Examples
from ganlib.metrics.sequence._ngrams import self_bleu

__all__ = ["BOUNDS", "DIRECTION", "NEEDS", "compute"]

DIRECTION = "lower"
NEEDS = ("tokens",)
BOUNDS = (0.0, 1.0)


def compute(real: Examples, fake: Examples) -> float:
    return self_bleu(fake["tokens"], 5)
