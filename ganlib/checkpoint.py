"""Everything that an exact resume needs, in one folder that is written whole or not at all.

Noise and data order are functions of (seed, step), so the state is: weights, optimisers, the moving average, the step,
and the statistics so far. Files load with `weights_only=True`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

__all__ = ["Damaged", "load", "save"]

FORMAT = 2
NAME = "checkpoint.pt"


class Damaged(ValueError):
    """A file that should be a checkpoint is not. The message names it."""


def save(directory: str | Path, state: dict[str, Any]) -> None:
    """Write tensors and plain values to `directory`. Raises OSError, also where the disk is full."""
    final = Path(directory) / NAME
    partial = final.with_suffix(".partial")
    with partial.open("wb") as file:  # of a path torch raises no OSError on a full disk
        torch.save({"format": FORMAT, **state}, file)
        file.flush()
        os.fsync(file.fileno())
    partial.rename(final)


def load(directory: str | Path) -> dict[str, Any]:
    """Read what `save` wrote, onto the CPU.

    Raises Damaged for what is not a checkpoint; OSError or MemoryError where a sound one could not be read.
    """
    path = Path(directory) / NAME
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise Damaged(f"{path}: no such checkpoint") from error
    except (OSError, MemoryError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise Damaged(f"{path}: damaged or not a checkpoint: {reason}") from error
    if state.get("format") != FORMAT:
        raise Damaged(f"{path}: expected checkpoint format {FORMAT}, found {state.get('format')}")
    return state
