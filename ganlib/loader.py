"""Batches as a pure function of (seed, step): nothing to save for a resume, nothing to share between ranks.

Epochs follow each other without a gap, each a fresh permutation in which every example appears once. A
*window* is as many row groups as memory allows. An epoch permutes the row groups, cuts them into windows, and
permutes the examples within each window; data that fit are one window, that is a full shuffle, and stay in
memory. As stored order is already random, a window is a random part of the data. With weights, examples are drawn from
a window with replacement, in proportion to these, as many as it has.

An accelerator gets examples as they are stored, uint8 for images, and decodes them. Data that fit its budget are
copied to it once, and the batches of some steps are then gathered there in one go; of larger data, the batches of the
next steps are gathered and copied by a background thread while the device computes. Neither changes a batch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ganlib import shards
from ganlib.config import ConfigError
from ganlib.device import Upload, Uploader, is_accelerator
from ganlib.noise import Noise, seed_of

__all__ = ["Loader"]

_WEIGHED = 4096  # examples whose weights are computed at a time
_READ_GROUPS = 64  # row groups, of 2 MiB, read at a time on the way to an accelerator
_MOST_STEPS, _DEALT_BYTES = 16, 2**25  # whose batches are dealt in one go where data are on the device

_Window = tuple[int, ...]  # indices of row groups, rising


@dataclass(frozen=True)
class _Epoch:
    windows: list[_Window]
    starts: NDArray[np.int64]
    """the offset in the epoch at which each window starts"""


@dataclass(frozen=True)
class _Shuffled:
    """A window of an epoch, ready to gather batches from."""

    key: tuple[int, int]
    """epoch, index of the window in it"""
    columns: dict[str, Tensor]
    """`[M, ...]` each, as stored; an accelerator's hold the other windows too"""
    order: Tensor
    """int64 `[rows of the window]`: where in `columns` its examples lie, shuffled; on the same device"""


class Loader:
    """Reads a split of a prepared folder.

    `memory_mb` bounds the stored examples in host memory; where the data do not fit it takes part in the order of
    batches. `device_memory_mb` bounds those that are kept on an accelerator, and changes no batch; a CPU as `device`
    has no use for it. With `mirror`, every other example, by chance, has left and right exchanged in all its parts.
    `steps_ahead` is how many global batches are uploaded in advance where the data are not
    kept on the accelerator: as many as the caller asks for in one go. `weights` of parts as networks see them, `[N]`,
    say how often an example is drawn; None: once an epoch. Raises ConfigError if `batch` exceeds the split.
    """

    def __init__(
        self,
        directory: str | Path,
        split: str,
        *,
        batch: int,
        seed: int,
        memory_mb: float,
        device_memory_mb: float = 2048.0,
        mirror: bool = False,
        device: torch.device | str = "cpu",
        steps_ahead: int = 1,
        weights: Callable[[Mapping[str, Tensor]], Tensor] | None = None,
    ) -> None:
        self.spec = shards.read_spec(directory)
        self.examples = self.spec.counts[split]
        if batch > self.examples:
            raise ConfigError(
                f"batch: {batch} is more than the {self.examples} {split} examples of {directory}; "
                "lower the model's batch or add data"
            )
        self._groups = shards.row_groups(directory, split)
        self._batch, self._seed, self._mirror, self._weights = batch, seed, mirror, weights
        budget = memory_mb * 1e6 / (self.spec.stored_bytes + 8)
        if self.examples <= budget:
            self._per_window = len(self._groups)
        else:  # half the budget, as the next window is read while this one is used
            self._per_window = max(1, int(budget / 2 / max(group.rows for group in self._groups)))

        self._device, self._uploader, self._steps_ahead = torch.device(device), Uploader(device), steps_ahead
        example_bytes = self.spec.stored_bytes + 8 * bool(self.spec.classes) + 4 * len(self.spec.attributes)
        fits = self.examples * (example_bytes + 8) <= device_memory_mb * 1e6  # 8 bytes for its place in the order
        self._on_device = is_accelerator(self._device) and fits
        self._ahead = is_accelerator(self._device) and not fits

        self._reader = ThreadPoolExecutor(1, thread_name_prefix="ganlib-loader-read")
        self._gatherer = ThreadPoolExecutor(1, thread_name_prefix="ganlib-loader-gather")
        self._reading: dict[_Window, Future[dict[str, Tensor]]] = {}
        self._uploads: dict[tuple[int, int, int], Future[Upload]] = {}
        # what belongs to epochs and windows is touched by one thread alone: the caller's, or the one that gathers
        self._epochs: dict[int, _Epoch] = {}
        self._chances_of_all: NDArray[np.float64] | None = None
        self._current: _Shuffled | None = None
        self._dealt: dict[tuple[int, int], tuple[range, dict[str, Tensor]]] = {}
        """of data on the device, the batches of several steps: small kernels take longer to launch than to run"""

    def batch_at(self, step: int, *, rank: int = 0, world: int = 1) -> dict[str, Tensor]:
        """The share of `rank` in the global batch of `step`, on the device: parts decoded, `label` int64 where
        labelled, `attributes` float32, standardised, where there are any.

        That is its rows from `rank · batch / world` on. The host does not wait for the device. Steps may be asked for
        in any order; those that follow each other are uploaded in advance. Raises ValueError if `batch / world` is
        not whole.
        """
        if self._batch % world:
            raise ValueError(f"a batch of {self._batch} does not divide by {world} workers")
        share = self._batch // world
        start = rank * share
        if self._ahead:
            return self._decoded(self._uploaded(step, rank, world), range(step, step + 1), start)
        if not self._on_device:
            parts = [
                {name: column.index_select(0, rows) for name, column in columns.items()}
                for columns, rows in self._rows_at(step * self._batch + start, share)
            ]
            stored = parts[0] if len(parts) == 1 else {n: torch.cat([part[n] for part in parts]) for n in parts[0]}
            return self._decoded(stored, range(step, step + 1), start)
        steps, batches = self._dealt.get((rank, world), (range(0), {}))
        if step not in steps:
            steps = range(step, step + max(1, min(_MOST_STEPS, _DEALT_BYTES // (4 * self.spec.size * share))))
            rows = torch.cat([part for s in steps for _, part in self._rows_at(s * self._batch + start, share)])
            stored = {name: column.index_select(0, rows) for name, column in self._columns_on_device.items()}
            batches = self._decoded(stored, steps, start)
            self._dealt[rank, world] = steps, batches
        at = (step - steps.start) * share
        return {name: column[at : at + share] for name, column in batches.items()}

    def _decoded(self, stored: dict[str, Tensor], steps: range, start: int) -> dict[str, Tensor]:
        """What networks see of the rows from `start` on of some steps' batches, one step after the other."""
        if not self._mirror:
            return stored | {name: self._decode(name, stored[name]) for name in self.spec.parts}
        total = len(next(iter(stored.values())))
        rows = torch.arange(start, start + total // len(steps), device=self._device).repeat(len(steps))
        seeds = self._to_device(torch.tensor([seed_of(self._seed, "mirror", step) for step in steps]))
        chance = Noise.of_rows(seeds.repeat_interleave(total // len(steps)), rows).uniform()
        # by index, which is faster than `torch.where`: row i is mirrored where that is i + N
        choice = torch.arange(total, device=self._device).add_((chance < 0.5).long(), alpha=total)
        seen = {}
        for name in self.spec.parts:  # as stored, in which an image is a quarter of the bytes
            both = torch.cat([stored[name], stored[name].flip(-1)])
            seen[name] = self._decode(name, both.index_select(0, choice))
        return stored | seen

    def _decode(self, part: str, stored: Tensor) -> Tensor:
        return self.spec.kind.decode(self.spec.sample, part, stored)

    def close(self) -> None:
        """End the background threads after their current work. No batch can be read afterwards."""
        for pool in (self._gatherer, self._reader):
            pool.shutdown(cancel_futures=True)

    # -- batches on their way to an accelerator ------------------------------------------------------------------

    def _uploaded(self, step: int, rank: int, world: int) -> dict[str, Tensor]:
        """A batch as stored, from the background thread, which is set to prepare the same share of the next steps."""
        last = step + self._steps_ahead
        for stale in [key for key in self._uploads if not step <= key[0] <= last]:
            self._uploads.pop(stale).cancel()
        for following in range(step, last + 1):
            key = (following, rank, world)
            if key not in self._uploads:
                self._uploads[key] = self._gatherer.submit(self._upload, *key)
        return self._uploads.pop((step, rank, world)).result().wait()

    def _upload(self, step: int, rank: int, world: int) -> Upload:
        share = self._batch // world
        batch: dict[str, Tensor] = {}
        done = 0
        for columns, rows in self._rows_at(step * self._batch + rank * share, share):
            for name, column in columns.items():
                if name not in batch:
                    batch[name] = self._uploader.empty((share, *column.shape[1:]), column.dtype)
                torch.index_select(column, 0, rows, out=batch[name][done : done + len(rows)])
            done += len(rows)
        return self._uploader.upload(batch)

    def _to_device(self, tensor: Tensor) -> Tensor:
        return self._uploader.upload({"": tensor}).wait()[""]

    # -- the order of examples -----------------------------------------------------------------------------------

    def _rows_at(self, position: int, count: int) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        """`(columns, rows)` that hold the `count` examples from a position on, the first of the first epoch being 0."""
        while count:
            epoch, offset = divmod(position, self.examples)
            starts = self._epoch(epoch).starts
            at = int(np.searchsorted(starts, offset, side="right")) - 1
            window = self._window(epoch, at)
            rows = window.order[offset - int(starts[at]) :][:count]
            yield window.columns, rows
            position += len(rows)
            count -= len(rows)

    def _epoch(self, epoch: int) -> _Epoch:
        """The windows of an epoch; those of this and the next are kept."""
        if epoch not in self._epochs:
            groups = np.random.default_rng([self._seed, epoch]).permutation(len(self._groups))
            cuts = range(0, len(groups), self._per_window)
            windows = [tuple(sorted(groups[cut : cut + self._per_window].tolist())) for cut in cuts]
            sizes = (sum(self._groups[i].rows for i in window) for window in windows[:-1])
            starts = np.cumsum([0, *sizes])
            self._epochs = {e: plan for e, plan in self._epochs.items() if abs(e - epoch) == 1}
            self._epochs[epoch] = _Epoch(windows, starts)
        return self._epochs[epoch]

    def _window(self, epoch: int, at: int) -> _Shuffled:
        """A window of an epoch; the last one is kept."""
        if self._current is None or self._current.key != (epoch, at):
            groups = [(self._starts[i], self._groups[i].rows) for i in self._epoch(epoch).windows[at]]
            rng, total = np.random.default_rng([self._seed, epoch, at]), sum(rows for _, rows in groups)
            columns, places = self._columns_on_device if self._on_device else self._read(epoch, at), None
            if self._on_device:
                places = np.concatenate([np.arange(start, start + rows) for start, rows in groups])
            if self._weights is None:
                order = rng.permutation(total)
            else:
                order = rng.choice(total, total, p=self._chances(columns, places))
            if places is not None:
                self._current = _Shuffled((epoch, at), columns, self._to_device(torch.from_numpy(places[order])))
            else:
                self._current = _Shuffled((epoch, at), columns, torch.from_numpy(order))
        return self._current

    def _chances(self, columns: dict[str, Tensor], places: NDArray[np.int64] | None) -> NDArray[np.float64]:
        """How probable each example of a window is at each draw; computed on the CPU, so that all ranks agree."""
        assert self._weights is not None
        whole = len(self._groups) <= self._per_window
        if whole and self._chances_of_all is not None:
            return self._chances_of_all
        rows = torch.from_numpy(np.arange(len(next(iter(columns.values())))) if places is None else places)
        found = []
        for chunk in rows.split(_WEIGHED):
            stored = {name: columns[name][chunk.to(columns[name].device)].cpu() for name in self.spec.parts}
            seen = {name: self.spec.kind.decode(self.spec.sample, name, part) for name, part in stored.items()}
            found.append(self._weights(seen).double().cpu())
        weights = torch.cat(found).numpy()
        chances: NDArray[np.float64] = weights / weights.sum()
        self._chances_of_all = chances if whole else None
        return chances

    # -- examples as stored --------------------------------------------------------------------------------------

    @functools.cached_property
    def _starts(self) -> list[int]:
        """The place of each row group's first example in stored order."""
        return list(accumulate((group.rows for group in self._groups[:-1]), initial=0))

    @functools.cached_property
    def _columns_on_device(self) -> dict[str, Tensor]:
        """All examples, in stored order, on the device; the host holds few of them at a time."""
        columns: dict[str, Tensor] = {}
        at_a_time = min(_READ_GROUPS, self._per_window)
        done = 0
        for first in range(0, len(self._groups), at_a_time):
            read = self._columns_of(self._groups[first : first + at_a_time])
            for name, part in read.items():
                if name not in columns:
                    shape = (self.examples, *part.shape[1:])
                    columns[name] = torch.empty(shape, dtype=part.dtype, device=self._device)
                columns[name][done : done + len(part)] = part
            done += len(next(iter(read.values())))
        return columns

    def _columns_of(self, groups: list[shards.Group]) -> dict[str, Tensor]:
        columns = shards.read_groups(self.spec, groups)
        if self.spec.attributes:
            columns["attributes"] = self.spec.standardise(columns["attributes"])
        return columns

    def _read(self, epoch: int, at: int) -> dict[str, Tensor]:
        """A window's columns in host memory; the window after it is set to be read meanwhile."""
        windows = self._epoch(epoch).windows
        following = windows[at + 1] if at + 1 < len(windows) else self._epoch(epoch + 1).windows[0]
        for stale in self._reading.keys() - {windows[at], following}:
            del self._reading[stale]
        columns = self._reading_of(windows[at]).result()
        self._reading_of(following)  # only now, as the caller still holds the window before: never more than two
        return columns

    def _reading_of(self, window: _Window) -> Future[dict[str, Tensor]]:
        if window not in self._reading:
            groups = [self._groups[i] for i in window]
            self._reading[window] = self._reader.submit(self._columns_of, groups)
        return self._reading[window]
