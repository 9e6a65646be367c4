"""Share of letters that are none."""

from __future__ import annotations

DIRECTION = "lower"
NEEDS = ("tokens",)


def compute(real, fake):
    return float((fake["tokens"] == 0).double().mean())
