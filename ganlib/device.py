"""What depends on the kind of device: whether data must travel to it, and how they do so while it computes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Upload", "Uploader", "is_accelerator"]


def is_accelerator(device: torch.device) -> bool:
    """Whether a device has memory of its own, to which data must be copied."""
    return device.type != "cpu"


@dataclass(frozen=True)
class Upload:
    """Tensors on their way to a device."""

    _tensors: dict[str, Tensor]
    _copied: torch.cuda.Event | None = None

    def wait(self) -> dict[str, Tensor]:
        """The tensors on the device.

        Only kernels that the current stream is given from here on wait for the copy; the host does not.
        """
        if self._copied is not None:
            for tensor in self._tensors.values():
                stream = torch.cuda.current_stream(tensor.device)
                stream.wait_event(self._copied)
                # allocated on the stream of copies: without this its memory could be reused before `stream` has read it
                tensor.record_stream(stream)
        return self._tensors


class Uploader:
    """Copies host tensors to a device without blocking the host: on CUDA from pinned memory on a stream of its own.

    Other devices get plain copies, and the CPU the tensors themselves. Several threads may use one uploader.
    """

    def __init__(self, device: torch.device | str) -> None:
        self._device = torch.device(device)
        self._stream = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """An uninitialised host tensor to be filled and uploaded: pinned where that makes the copy asynchronous."""
        if self._stream is None:
            return torch.empty(shape, dtype=dtype)
        # a thread starts on device 0; pinning there would create a context on a GPU that belongs to another worker
        with torch.cuda.device(self._stream.device):
            return torch.empty(shape, dtype=dtype, pin_memory=True)

    def upload(self, tensors: Mapping[str, Tensor]) -> Upload:
        """Start copying host tensors, which must not be written to any more."""
        if self._stream is None:
            return Upload({name: tensor.to(self._device) for name, tensor in tensors.items()})
        with torch.cuda.stream(self._stream):
            pinned = {name: tensor if tensor.is_pinned() else tensor.pin_memory() for name, tensor in tensors.items()}
            # the allocator of pinned memory keeps each source until its copy is done
            copies = {name: tensor.to(self._stream.device, non_blocking=True) for name, tensor in pinned.items()}
            return Upload(copies, self._stream.record_event())
