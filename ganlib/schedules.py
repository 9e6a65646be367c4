"""Numbers that change as training goes on. Time is counted in kimg, thousands of real samples seen."""

from __future__ import annotations

import math
from typing import Literal, TypeVar

import torch
from pydantic import NonNegativeFloat, ValidationInfo, field_validator
from torch import Tensor

from ganlib._config import Config

__all__ = ["Schedule", "value"]

Time = TypeVar("Time", float, Tensor)


class Schedule(Config):
    """From `start` to `end` between `from_kimg` and `to_kimg`; held constant outside."""

    kind: Literal["cosine", "linear"] = "cosine"
    start: float
    end: float
    from_kimg: NonNegativeFloat = 0.0
    to_kimg: NonNegativeFloat

    @field_validator("to_kimg")
    @classmethod
    def _in_order(cls, to_kimg: float, others: ValidationInfo) -> float:
        if to_kimg < others.data.get("from_kimg", 0.0):
            raise ValueError(f"it lies before from_kimg, {others.data['from_kimg']:g}")
        return to_kimg


def value(schedule: float | Schedule, kimg: Time) -> Time | float:
    """The value at `kimg`. A plain number is a constant. Cosine: Loshchilov & Hutter 2017, eq. 5, one period.

    Where `kimg` is a tensor, a schedule's value is one too, computed on its device.
    """
    if not isinstance(schedule, Schedule):
        return schedule
    span = max(schedule.to_kimg - schedule.from_kimg, 1e-12)
    done = (kimg - schedule.from_kimg) / span
    done = done.clamp(0.0, 1.0) if isinstance(done, Tensor) else min(max(done, 0.0), 1.0)
    if schedule.kind == "cosine":
        cosine = torch.cos(math.pi * done) if isinstance(done, Tensor) else math.cos(math.pi * done)
        done = (1.0 - cosine) / 2.0
    return schedule.start + (schedule.end - schedule.start) * done
