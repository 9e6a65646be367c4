"""Steps that are recorded once and replayed from then on, for devices on which a kernel is shorter than its launch.

A small GAN's step is hundreds of kernels of a few microseconds each, and the host needs longer to launch one. Recorded
as a CUDA graph, a player's turn is one launch. What changes from step to step is copied into the tensors that were
recorded with: the batch, the key of its noise, and the time, from which the device computes scheduled weights.
Optimisers, the moving average and sums over ranks stay outside: schedules, clipping and `lr_scale` need no care.

There is one recording for each set of terms that is due. The first steps of each set are played as they are, which has
libraries choose kernels and allocate; so a recording computes the same bits as what it replaces. Nothing is recorded
before all sets have been played: the memory of recordings is theirs, and played steps would need as much again.
"""

from __future__ import annotations

import copy
import dataclasses
import gc
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from ganlib.device import Recorder
from ganlib.game import Batch, Stats, Turn

__all__ = ["RecordedSteps"]

WARMUP = 2
"""times that a step is played before it is recorded"""
MOST = 16
"""recordings at most, since each holds gradients of its own; further sets of due terms are not recorded"""

Batches = Sequence[Sequence[Batch]]


class RecordedSteps:
    """The turns of steps, recorded where they come again."""

    def __init__(self, record: Recorder[Any], period: int = 1):
        """Sets of due terms come again after `period` steps."""
        self._record: Recorder[Any] | None = record
        self._left = WARMUP * period
        self._played: Counter[Hashable] = Counter()
        self._recordings: dict[Hashable, tuple[Batches, list[Turn]]] = {}
        self._steps = self._replayed = 0

    def turns(self, key: Hashable, batches: Batches, make: Callable[[Batches], list[Turn]]) -> list[Turn]:
        """What `make(batches)` returns, or what replays the same work for these batches.

        Steps of one key do the same work: the same terms, batches of the same shapes. If the work cannot be recorded
        a RuntimeWarning says why, and steps are played as they are from then on.
        """
        self._steps += 1
        self._left -= 1
        if key not in self._recordings and self._record is not None:
            self._played[key] += 1
            if self._played[key] > WARMUP and self._left < 0 and len(self._recordings) < MOST:
                self._remember(key, batches, make)
        if key not in self._recordings:
            return make(batches)
        self._replayed += 1
        kept, turns = self._recordings[key]
        for kept_turn, turn in zip(kept, batches, strict=True):
            for mine, new in zip(kept_turn, turn, strict=True):
                mine.noise.become(new.noise)
                for name, column in mine.data.items():
                    column.copy_(new.data[name])
        return turns

    def share(self) -> float:
        """The share of replayed steps among those since this was last asked."""
        share = self._replayed / max(self._steps, 1)
        self._steps = self._replayed = 0
        return share

    def _remember(self, key: Hashable, batches: Batches, make: Callable[[Batches], list[Turn]]) -> None:
        assert self._record is not None
        kept = [[_copied(batch) for batch in turn] for turn in batches]
        try:
            self._recordings[key] = kept, [self._recorded(turn) for turn in make(kept)]
        except RuntimeError as error:
            self._record = None
            # what was forbidden; the error of ending the capture only says that something was
            cause = error.__context__ or error
            reason = (str(cause).strip() or type(cause).__name__).splitlines()[0]
            # the failed step's graph, which its frames hold, would add up later gradients on the recording's stream
            for failed in (cause, error):
                traceback.clear_frames(failed.__traceback__)
            gc.collect()
            warnings.warn(f"steps are not recorded as CUDA graphs: {reason}", RuntimeWarning, stacklevel=2)

    def _recorded(self, turn: Turn) -> Turn:
        assert self._record is not None
        stats: Stats
        parameters = turn.learner.parameters
        try:
            replay, stats = self._record(turn.play)
            gradients = [p.grad for p in parameters]
        finally:
            turn.learner.optimizer.zero_grad(set_to_none=True)

        def play() -> Stats:
            replay()
            for p, gradient in zip(parameters, gradients, strict=True):
                p.grad = gradient
            return stats

        return dataclasses.replace(turn, play=play)


def _copied(batch: Batch) -> Batch:
    noise = copy.copy(batch.noise)
    noise.key = noise.key.clone()
    return dataclasses.replace(batch, data={name: column.clone() for name, column in batch.data.items()}, noise=noise)
