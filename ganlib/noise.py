"""Random numbers as a function of (seed, purpose, step, row, place), computed where they are used.

A counter-based generator: SplitMix64 (Steele, Lea & Flood 2014, figure 16; the constants are Stafford's variant 13).
Each row of a global batch has a key of 64 bits, and number k of a row is the generator's output k from that key. So a
rank or a microbatch computes its own rows alone, nothing is copied to the device, no generator has a state that a
checkpoint would have to keep, and every device computes the same numbers to rounding.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import math

import torch
from torch import Tensor

__all__ = ["Noise", "normal", "seed_of", "uniform"]

_GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # as int64, whose products wrap around


def seed_of(*key: int | str) -> int:
    """A 63-bit seed for a key such as (seed, purpose, step); different keys give independent streams."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest()) >> 1


class Noise:
    """Random draws for some rows of a global batch of `size`, on `device`.

    A draw is a function of the key, of the row's number in the global batch, and of how many numbers were drawn before.
    It does not depend on the other rows, and so neither on the number of ranks nor on accumulation.
    """

    def __init__(self, *key: int | str, size: int, rows: slice | None = None, device: torch.device | str = "cpu"):
        self._seed, self._device = seed_of(*key), device
        self._rows: slice | Tensor = slice(0, size) if rows is None else slice(*rows.indices(size))
        self._start = 0

    @classmethod
    def of_rows(cls, keys: Tensor, rows: Tensor) -> Noise:
        """Noise of several batches: row `rows[i]` of the one whose `seed_of` is `keys[i]`, both int64 `[N]`."""
        noise = cls(size=0, device=keys.device)
        noise.key, noise._rows = keys, rows
        return noise

    @functools.cached_property
    def key(self) -> Tensor:
        """int64 scalar, on the device, or `[rows]`."""
        return torch.full((), self._seed, dtype=torch.int64, device=self._device)

    def become(self, other: Noise) -> None:
        """Draw what `other`, of one batch and no fork, draws for the same rows: so recorded steps get another noise."""
        self.key.fill_(other._seed)

    @property
    def rows(self) -> Tensor:
        """int64 `[rows]`: their numbers in the global batch."""
        if isinstance(self._rows, slice):
            return torch.arange(self._rows.start, self._rows.stop, device=self.key.device)
        return self._rows

    @property
    def row_keys(self) -> Tensor:
        """int64 `[rows]`: what `normal` and `uniform` take. The numbers drawn by this noise start at place 0."""
        return _mix(self.key + _GOLDEN * (self.rows + 1))

    def fork(self, purpose: str) -> Noise:
        """Noise for the same rows whose draws are independent of this one's, and of how many these were."""
        fork = copy.copy(self)
        fork.key, fork._start = _mix(self.key ^ seed_of("fork", purpose)), 0
        return fork

    def normal(self, *shape: int) -> Tensor:
        """Standard normal, float32 `[rows, *shape]`."""
        return normal(self.row_keys, self._place(math.prod(shape)), math.prod(shape)).view(-1, *shape)

    def uniform(self, *shape: int) -> Tensor:
        """Uniform on [0, 1), float32 `[rows, *shape]`."""
        return uniform(self.row_keys, self._place(math.prod(shape)), math.prod(shape)).view(-1, *shape)

    def _place(self, count: int) -> int:
        self._start, start = self._start + count, self._start
        return start


def normal(keys: Tensor, start: int, count: int) -> Tensor:
    """Standard normal float32 `[N, count]` of row keys, int64 `[N]`; places that do not overlap are independent.

    A key takes 8 bytes an example where its noise images at 1024² take 11 MB. Box & Muller 1958.
    """
    bits = _bits(keys, start, (count + 1) // 2)
    radius = (bits >> 32 & 0xFFFFFFFF).float().add_(0.5).mul_(2.0**-32).log_().mul_(-2.0).sqrt_()
    angle = (bits & 0xFFFFFFFF).float().mul_(2.0 * math.pi / 2**32)
    return torch.cat([radius * angle.cos(), radius * angle.sin()], 1)[:, :count]


def uniform(keys: Tensor, start: int, count: int) -> Tensor:
    """Uniform on [0, 1), float32 `[N, count]`, in steps of 2⁻²⁴, of row keys, int64 `[N]`."""
    return (_bits(keys, start, count) >> 40 & 0xFFFFFF).float().mul_(2.0**-24)


def _bits(keys: Tensor, start: int, count: int) -> Tensor:
    """64 random bits, int64 `[N, count]`."""
    places = torch.arange(start + 1, start + count + 1, device=keys.device)
    return _mix(keys[:, None] + _GOLDEN * places)


def _mix(bits: Tensor) -> Tensor:
    """A bijection of int64 whose every output bit depends on every input bit."""
    bits = (bits ^ (bits >> 30 & 0x3FFFFFFFF)) * (0xBF58476D1CE4E5B9 - 2**64)
    bits = (bits ^ (bits >> 27 & 0x1FFFFFFFFF)) * (0x94D049BB133111EB - 2**64)
    return bits ^ (bits >> 31 & 0x1FFFFFFFF)
