"""What is scored frame by frame."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ganlib._config import Config

__all__ = ["mean_over_frames"]


def mean_over_frames(
    score: Callable[[Config, Tensor, Tensor], Tensor], cfg: Config, made: Tensor, target: Tensor
) -> Tensor:
    """The mean score `[N]` of the frames of clips `[N, T, C, H, W]`, or the score of single frames `[N, C, H, W]`."""
    if made.dim() == 4:
        return score(cfg, made, target)
    return score(cfg, made.flatten(0, 1), target.flatten(0, 1)).view(made.shape[:2]).mean(1)
