"""A pool of past fakes, some shown to the discriminator in place of new ones. Shrivastava et al. 2017, section
2.3; Zhu et al. 2017, section 4."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ganlib import distributed
from ganlib.noise import Noise, uniform

__all__ = ["Pool"]


class Pool(nn.Module):
    """Past fakes in `size` slots, the same on all ranks; a state that checkpoints keep.

    Each example of a step gets a slot of its own, at random. An empty slot takes the fake, which is shown; of a full
    one the fake or, with probability one half, what it held is shown, and the fake takes its place. Slots and chances
    are functions of the step and of the example's row in the global batch, so that neither the number of ranks nor
    accumulation changes them.
    """

    def __init__(self, size: int, shapes: Mapping[str, tuple[int, ...]]):
        super().__init__()
        self.size = size
        for name, shape in shapes.items():
            self.register_buffer(f"of_{name}", torch.zeros(size, *shape, device="meta"))
        self.register_buffer("filled", torch.zeros(size, dtype=torch.bool, device="meta"))

    def start(self, device: torch.device | str) -> None:
        """Allocate it, empty: a game that only makes samples needs none."""
        for name, buffer in list(self.named_buffers()):
            setattr(self, name, torch.zeros_like(buffer, device=device))

    @torch.no_grad()
    def forward(self, fakes: Tensor | dict[str, Tensor], noise: Noise) -> dict[str, Tensor]:
        """Fakes, `[N, ...]` each under the name of its shape, to what is shown in their place. A step may have at most
        `size` rows, over all ranks and microbatches."""
        assert isinstance(fakes, dict)
        if self.get_buffer("filled").is_meta:
            self.start(noise.key.device)
        filled = self.get_buffer("filled")
        noise = noise.fork("pool")
        # one draw for all rows of the step, as no row's own draw would be
        slots = uniform(noise.key.view(1), 0, self.size)[0].argsort()[noise.rows]
        exchanged = filled[slots] & (noise.uniform(1)[:, 0] < 0.5)
        everywhere = distributed.all_gather(2 * slots + (exchanged | ~filled[slots]))
        everywhere, replaced = everywhere // 2, everywhere % 2 == 1
        shown = {}
        for name, fake in fakes.items():
            held = self.get_buffer(f"of_{name}")
            chosen = exchanged.view(-1, *[1] * (fake.dim() - 1))
            shown[name] = torch.where(chosen, held[slots], fake)
            new = distributed.all_gather(fake.contiguous())
            kept = replaced.view(-1, *[1] * (fake.dim() - 1))
            held.index_copy_(0, everywhere, torch.where(kept, new, held[everywhere]))
        filled.index_fill_(0, everywhere, True)
        return shown
