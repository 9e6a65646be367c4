"""How often each run of 1 to 3 tokens occurs in a line, hashed to 256 numbers of signed sums. Weinberger et al. 2009.

Ends count as tokens before and after the line, so that beginnings and lengths are seen. Counts are taken to the power
1/2, which keeps a repeated run from filling the vector, and a line's vector has length √256: the product of two, over
256, which the kernel distance takes, is the cosine between them. Nothing is learnt, so the space is the same for all
data of a vocabulary.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ganlib._config import Config as _Base
from ganlib.data._spec import Spec
from ganlib.spaces._extractor import CPU, Extractor

__all__ = ["Config", "load"]

_SIZE = 256
_ORDERS = (1, 2, 3)
_GOLDEN, _FIRST, _SECOND = (x - 2**64 for x in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


class Config(_Base):
    pass


def load(cfg: Config, spec: Spec, device: torch.device) -> Extractor:
    def features(samples: Tensor) -> Tensor:
        return _features(spec.kind.quantise(spec.sample, samples).long().cpu())

    return Extractor("ngrams", (), features, CPU)


def _features(tokens: Tensor) -> Tensor:
    """Token numbers `[N, L]`, 0 for none → `[N, 256]`."""
    n = len(tokens)
    padded = torch.cat([tokens.new_zeros(n, 1), tokens, tokens.new_zeros(n, 1)], 1)
    inside = torch.cat([torch.ones(n, 1, dtype=torch.bool), tokens != 0, torch.zeros(n, 1, dtype=torch.bool)], 1)
    inside = inside | torch.cat([torch.zeros(n, 1, dtype=torch.bool), inside[:, :-1]], 1)  # with the first end
    found = torch.zeros(n, _SIZE, dtype=torch.float64)
    for order in _ORDERS:
        places = padded.shape[1] - order + 1
        if places < 1:
            continue
        run = torch.full((n, places), order, dtype=torch.int64)
        for i in range(order):
            run = _mix(run + _GOLDEN * (padded[:, i : i + places] + 1))
        counted = inside[:, order - 1 : order - 1 + places]
        amount = counted.double() * _weight(run, counted)
        sign = 1.0 - 2.0 * ((run >> 40) & 1).double()
        found.scatter_add_(1, run & (_SIZE - 1), amount * sign)
    found *= math.sqrt(_SIZE) / found.norm(dim=1, keepdim=True).clamp_min(1e-12)
    return found.float()


def _weight(run: Tensor, counted: Tensor) -> Tensor:
    """1/√k for each of the k occurrences of a run in its line."""
    same = (run[:, :, None] == run[:, None, :]) & counted[:, None, :]
    weights: Tensor = same.sum(2).clamp_min(1).double().rsqrt()
    return weights


def _mix(bits: Tensor) -> Tensor:
    """SplitMix64's finaliser: every output bit depends on every input bit."""
    bits = (bits ^ (bits >> 30 & 0x3FFFFFFFF)) * _FIRST
    bits = (bits ^ (bits >> 27 & 0x1FFFFFFFFF)) * _SECOND
    return bits ^ (bits >> 31 & 0x1FFFFFFFF)
