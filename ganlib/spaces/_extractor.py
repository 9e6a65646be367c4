"""A feature space: what samples look like to a network, or to anything else that maps them to vectors.

Distances between distributions are measured on features. A file `ganlib/spaces/[LOOKS/]NAME.py` has a `Config` and
`load(cfg, spec, device) -> Extractor`. It is used for all data whose kind has that `LOOKS` if its `Config` needs no
value, else where `reference.spaces` in `params.yaml` names it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ganlib import device as devices

__all__ = ["CPU", "Extractor"]

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Extractor:
    name: str
    size: tuple[int, ...]
    """of pictures: height and width, in pixels, of what the network looks at; else empty"""
    network: Callable[[Tensor], Tensor]
    """one batch of samples as networks see them, on `device` -> `[N, D]`"""
    device: torch.device = CPU
    column: str = "features"
    """what metrics call the result in `NEEDS`: `features` are vectors whose distances mean something"""

    @torch.inference_mode()
    def __call__(self, samples: Tensor) -> Tensor:
        """Features `[N, D]`, on the CPU, of samples `[N, *shape]` on any device; floats are float32."""
        # On a CPU small batches stay in the cache: 32 is 1.5 times as fast as 100, 5 times as fast as 250.
        batch = 512 if devices.is_accelerator(self.device) else 32
        with devices.configured(self.device, deterministic=True):  # the same features in every stage
            parts = [self.network(part.to(self.device)) for part in samples.split(batch)]
        found = torch.cat(parts).cpu()
        return (found.float() if found.dtype in (torch.float16, torch.bfloat16) else found).clone()
