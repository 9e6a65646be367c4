"""The one place that knows devices: which one, how exactly it computes, how data reach it, and how steps are recorded.

Everywhere else in `ganlib` a device is a `torch.device` that is passed on. "Accelerator" means any device but the CPU;
what is special to NVIDIA's is named CUDA.
"""

from __future__ import annotations

import contextlib
import gc
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

__all__ = [
    "Amp",
    "Recorder",
    "Upload",
    "Uploader",
    "autocast",
    "configured",
    "default_device",
    "examples_at_a_time",
    "full_precision",
    "is_accelerator",
    "memory_format",
    "mixed_precision",
    "on_device",
    "one_thread",
    "recorder",
]

Amp = bool | Literal["auto"]
"""`train.amp`: bfloat16 autocast or not; auto: where the hardware has bfloat16, and never on CPUs"""

# cuBLAS reads this at its first call; without it, deterministic algorithms are refused
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

T = TypeVar("T")
Recorder = Callable[[Callable[[], T]], tuple[Callable[[], None], T]]
"""Records the device work of a function, without doing it: returns what replays the work, and the function's result,
whose tensors a replay fills. Raises RuntimeError if the work cannot be recorded, after which nothing has changed."""


def default_device(gpus: float | Literal["auto"] = "auto") -> torch.device:
    """This process's GPU, the current one where it sees several; the CPU if there is none or `gpus` is 0."""
    if gpus != 0 and torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Inside, this thread computes alone on the CPU."""
    before = torch.get_num_threads()
    if before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def is_accelerator(device: torch.device) -> bool:
    return device.type != "cpu"


def mixed_precision(device: torch.device, amp: Amp) -> bool:
    """Whether to train in bfloat16 on this device."""
    if amp != "auto":
        return amp
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def autocast(device: torch.device, enabled: bool) -> contextlib.AbstractContextManager[object]:
    """bfloat16 for convolutions and matrix products inside."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if enabled else contextlib.nullcontext()


def full_precision(x: Tensor) -> contextlib.AbstractContextManager[object]:
    """No autocast inside, on the device of `x`."""
    return torch.autocast(x.device.type, enabled=False)


@contextlib.contextmanager
def configured(device: torch.device, *, deterministic: bool) -> Iterator[None]:
    """Inside, an accelerator computes the same bits each time if `deterministic`, else with the kernels that cuDNN
    finds fastest; float32 is exact, without TF32.

    These are global settings of torch; the old ones are put back afterwards. On the CPU nothing changes: there the
    same numbers of threads give the same bits anyway.
    """
    if not is_accelerator(device):
        yield
        return
    wanted: list[tuple[Any, str, object]] = [
        (torch.backends.cudnn, "benchmark", not deterministic),
        # else each new buffer would be filled, and nothing here reads one unwritten
        (torch.utils.deterministic, "fill_uninitialized_memory", False),
    ]
    cudnn: Any = torch.backends.cudnn
    matmul: Any = torch.backends.cuda.matmul
    if hasattr(matmul, "fp32_precision"):  # where the older names warn or raise
        wanted += [(cudnn.conv, "fp32_precision", "ieee"), (matmul, "fp32_precision", "ieee")]
    else:
        wanted += [(cudnn, "allow_tf32", False), (matmul, "allow_tf32", False)]
    old = [(module, name, getattr(module, name)) for module, name, _ in wanted]
    was = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    for module, name, setting in wanted:
        setattr(module, name, setting)
    torch.use_deterministic_algorithms(deterministic)
    try:
        with warnings.catch_warnings():
            # torch.compile's advice
            warnings.filterwarnings("ignore", message=r"\s*TensorFloat32 tensor cores .* available but not enabled")
            yield
    finally:
        for module, name, setting in old:
            setattr(module, name, setting)
        torch.use_deterministic_algorithms(was[0], warn_only=was[1])


def memory_format(device: torch.device, networks: Iterable[nn.Module], *, channels_last: bool) -> torch.memory_format:
    """How networks and images lie in memory: channels-last if `channels_last`, in which convolutions are fastest; not
    where a CPU normalises groups, which takes it ten times as long in that layout (`tests/bench/step.py`)."""
    slow = device.type == "cpu" and any(isinstance(m, nn.GroupNorm) for network in networks for m in network.modules())
    return torch.channels_last if channels_last and not slow else torch.preserve_format


def on_device(x: Tensor, device: torch.device, layout: torch.memory_format = torch.preserve_format) -> Tensor:
    """`x` on the device; images `[N, C, H, W]` in the layout."""
    return x.to(device, memory_format=layout if x.dim() == 4 else torch.preserve_format, non_blocking=True)


def examples_at_a_time(device: torch.device, elements: int) -> int:
    """How many examples of so many elements the device holds with a network's activations, without gradients."""
    most, limit = (2**24, 500) if is_accelerator(device) else (2**22, 100)
    return max(1, min(limit, most // elements))


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


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Garbage is collected before, and none inside: to free an earlier training's graphs ends a capture in an error."""
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def recorder(device: torch.device) -> Recorder[Any] | None:
    """What records work as CUDA graphs, which share one pool of memory; None for devices without them."""
    if device.type != "cuda":
        return None
    # one stream, of this device, for all captures: graphs that share a pool have to share it too
    pool, stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream(device)

    def record(work: Callable[[], T]) -> tuple[Callable[[], None], T]:
        graph, before = torch.cuda.CUDAGraph(), torch.cuda.current_stream(device)
        try:
            # thread_local: the loader's thread may go on copying
            capture = torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local")
            with _no_garbage_collection(), torch.cuda.device(device), capture:
                result = work()
        except RuntimeError:
            torch.cuda.set_stream(before)  # torch leaves the capture's stream when a capture fails
            raise
        return graph.replay, result

    return record
