"""A stand-in for CUDA graphs on the CPU: what a recorded step may do, and what its replay computes, without a GPU.

Like a graph, it remembers the operations on tensors (forward and backward ones alike) with the very tensors that they
read and wrote, and nothing of the Python around them. Recording leaves no trace: what was written is put back. As in
a capture, reading a tensor's value on the host is an error.
"""

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode  # documented in "Extending PyTorch"
from torch.utils._pytree import tree_flatten, tree_map_only

READS = (
    "aten::_local_scalar_dense",
    "aten::nonzero",
    "aten::is_nonzero",
    "aten::equal",
    "aten::unique",
    "aten::masked_select",
)

RESHAPES = ("aten::squeeze_", "aten::unsqueeze_", "aten::t_", "aten::transpose_")


class HostRead(RuntimeError):
    """An operation had to know a tensor's value on the host: a GPU would be waited for, a capture would fail."""


class NoHostReads(TorchDispatchMode):
    """Inside, what would wait for a device raises HostRead."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.name.startswith(READS):
            raise HostRead(f"{func._schema.name} reads a tensor on the host")
        return func(*args, **(kwargs or {}))


class _Tape(NoHostReads):
    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, list[torch.Tensor]]] = []
        self.written: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func._schema.name in RESHAPES:  # of no consequence to memory; what follows is remembered with the new shape
            return func(*args, **kwargs)
        named = [(argument, kwargs[argument.name]) for argument in func._schema.arguments if argument.name in kwargs]
        for argument, value in [*zip(func._schema.arguments, args, strict=False), *named]:
            if argument.alias_info is not None and argument.alias_info.is_write:
                self.written += [(_alias(tensor), tensor.clone()) for tensor in tree_flatten(value)[0]]
        remembered = tree_map_only(torch.Tensor, _alias, (args, kwargs))
        result = super().__torch_dispatch__(func, types, args, kwargs)
        self.operations.append((func, *remembered, [_alias(x) for x in _tensors(result)]))
        return result

    def replay(self) -> None:
        with torch.no_grad():
            for func, args, kwargs, kept in self.operations:
                for old, new in zip(kept, _tensors(func(*args, **kwargs)), strict=True):
                    if old.data_ptr() != new.data_ptr():  # neither in place nor a view
                        old.copy_(new)


def _alias(x: torch.Tensor) -> torch.Tensor:
    """The same memory, with the shape of now, unknown to autograd."""
    return x.detach()


def _tensors(result: Any) -> list[torch.Tensor]:
    return [x for x in tree_flatten(result)[0] if isinstance(x, torch.Tensor)]


def record(work: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
    """What `ganlib.device.recorder` returns for a GPU, on the CPU."""
    tape = _Tape()
    with contextlib.ExitStack() as stack:
        stack.enter_context(tape)
        result = work()
    for tensor, before in reversed(tape.written):
        with torch.no_grad():
            tensor.copy_(before)
    return tape.replay, result
