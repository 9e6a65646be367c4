"""Batches as a pure function of (seed, step): nothing to save for a resume, nothing to share between ranks.

Epochs follow each other without a gap, each a fresh permutation in which every example appears once. A
*window* is as many row groups as memory allows. An epoch permutes the row groups, cuts them into windows, and
permutes the examples within each window; data that fit are one window, that is a full shuffle, and stay in
memory. As stored order is already random, a window is a random part of the data.
"""

from __future__ import annotations

import math
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ganlib import registry, shards
from ganlib.config import ConfigError
from ganlib.noise import Noise

__all__ = ["Loader"]

_Window = tuple[int, ...]  # indices of row groups, rising


@dataclass(frozen=True)
class _Epoch:
    windows: list[_Window]
    starts: NDArray[np.int64]
    """the offset in the epoch at which each window starts"""


class Loader:
    """Reads a split of a prepared folder.

    `memory_mb` bounds the samples held by this process; where the data do not fit it takes part in the order
    of batches. With `mirror`, every other sample, by chance, has left and right exchanged; where one is a pair of
    images, both. Raises ConfigError if `batch` exceeds the split.
    """

    def __init__(
        self, directory: str | Path, split: str, *, batch: int, seed: int, memory_mb: float, mirror: bool = False
    ) -> None:
        self.spec = shards.read_spec(directory)
        self.examples = self.spec.counts[split]
        if batch > self.examples:
            raise ConfigError(
                f"batch: {batch} is more than the {self.examples} {split} examples of {directory}; "
                "lower the model's batch or add data"
            )
        self._decode = registry.load("data", self.spec.kind).decode
        self._groups = shards.row_groups(directory, split)
        self._batch, self._seed, self._mirror = batch, seed, mirror
        budget = memory_mb * 1e6 / (math.prod(self.spec.shape) + 8)
        if self.examples <= budget:
            self._per_window = len(self._groups)
        else:  # half the budget, as the next window is read while this one is used
            self._per_window = max(1, int(budget / 2 / max(group.rows for group in self._groups)))
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="ganlib-loader")
        self._reading: dict[_Window, Future[dict[str, Tensor]]] = {}
        self._epochs: dict[int, _Epoch] = {}
        self._order: tuple[tuple[int, int], Tensor] | None = None

    def batch_at(self, step: int, *, rank: int = 0, world: int = 1) -> dict[str, Tensor]:
        """The share of `rank` in the global batch of `step`: `sample` decoded, `label` int64 where labelled.

        That is its rows from `rank · batch / world` on. Raises ValueError if `batch / world` is not whole.
        """
        if self._batch % world:
            raise ValueError(f"a batch of {self._batch} does not divide by {world} workers")
        share = self._batch // world
        mine = slice(rank * share, (rank + 1) * share)
        position = step * self._batch + mine.start
        parts = []
        while share:
            epoch, offset = divmod(position, self.examples)
            starts = self._epoch(epoch).starts
            at = int(np.searchsorted(starts, offset, side="right")) - 1
            columns = self._load(epoch, at)
            rows = self._shuffle(epoch, at)[offset - int(starts[at]) :][:share]
            parts.append({name: column[rows] for name, column in columns.items()})
            position += len(rows)
            share -= len(rows)
        batch = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        sample = self._decode(batch["sample"])
        if self._mirror:
            noise = Noise(self._seed, "mirror", step, size=self._batch, rows=mine)
            sample = torch.where(noise.uniform(1, 1, 1) < 0.5, sample.flip(-1), sample)
        return {**batch, "sample": sample}

    def _epoch(self, epoch: int) -> _Epoch:
        """The windows of an epoch; those of this and the next are kept."""
        if epoch not in self._epochs:
            groups = np.random.default_rng([self._seed, epoch]).permutation(len(self._groups))
            cuts = range(0, len(groups), self._per_window)
            windows = [tuple(sorted(groups[cut : cut + self._per_window].tolist())) for cut in cuts]
            starts = np.cumsum([0, *(self._rows(window) for window in windows[:-1])])
            self._epochs = {e: plan for e, plan in self._epochs.items() if abs(e - epoch) == 1}
            self._epochs[epoch] = _Epoch(windows, starts)
        return self._epochs[epoch]

    def _shuffle(self, epoch: int, at: int) -> Tensor:
        """The permutation of a window's examples; the last one is kept."""
        if self._order is None or self._order[0] != (epoch, at):
            rows = self._rows(self._epoch(epoch).windows[at])
            order = np.random.default_rng([self._seed, epoch, at]).permutation(rows)
            self._order = (epoch, at), torch.from_numpy(order)
        return self._order[1]

    def _rows(self, window: _Window) -> int:
        return sum(self._groups[i].rows for i in window)

    def _load(self, epoch: int, at: int) -> dict[str, Tensor]:
        """A window's columns; the window after it is set to be read meanwhile."""
        windows = self._epoch(epoch).windows
        following = windows[at + 1] if at + 1 < len(windows) else self._epoch(epoch + 1).windows[0]
        wanted = (windows[at], following)
        for stale in self._reading.keys() - set(wanted):
            del self._reading[stale]
        for window in wanted:
            if window not in self._reading:
                groups = [self._groups[i] for i in window]
                self._reading[window] = self._reader.submit(shards.read_groups, self.spec, groups)
        return self._reading[windows[at]].result()
