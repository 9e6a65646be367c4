"""How many n-grams of the fakes, up to 5 tokens long, occur in the reals: BLEU-5, each real a reference.

Papineni et al. 2002, see `_ngrams.bleu`. It says nothing of variety: read it next to `self_bleu_5`. It rises with the
number of reals.
"""

from __future__ import annotations

from ganlib.metrics._types import Examples
from ganlib.metrics.sequence._ngrams import bleu

__all__ = ["BOUNDS", "DIRECTION", "NEEDS", "compute"]

DIRECTION = "higher"
NEEDS = ("tokens",)
BOUNDS = (0.0, 1.0)


def compute(real: Examples, fake: Examples) -> float:
    return bleu(fake["tokens"], real["tokens"], 5)
