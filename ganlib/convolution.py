"""Convolutions, and the activation after them, whose derivatives of every order are single calls.

A convolution y = C(x, w) is linear in its input x and in its weight w. Its two adjoints are the gradients with respect
to the input, X(g, w), and to the weight, W(g, x). The derivatives of each of the three are the other two, so each is an
autograd function whose backward calls the other two, and each is one kernel call for any number of groups.

PyTorch's own double backward, which gradient penalties and path lengths need, loops over groups and takes the gradient
with respect to the weight by a convolution whose kernel is as large as the image. Karras et al. 2020 replaced it for
the same reason (`conv2d_gradfix` in their code). Its double backward of a leaky ReLU fills a tensor of zeros for the
activation, which has no second derivative, and keeps it until the rest of that gradient is added.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ganlib.device import is_accelerator

__all__ = [
    "Conv2d",
    "binomial_filter",
    "conv2d",
    "conv_transpose2d",
    "differentiated_twice",
    "leaky_relu_",
    "no_weight_gradients",
]

_Geometry = tuple[list[int], list[int], list[int], bool, list[int], int]
"""stride, padding, dilation, transposed, output padding and groups, as `aten::convolution` takes them"""


def conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int = 1, padding: int = 0, groups: int = 1
) -> Tensor:
    """`F.conv2d`: x `[N, I, H, W]`, weight `[O, I / groups, h, w]`, bias `[O]` → `[N, O, H', W']`."""
    if _is_worthwhile(x, weight):
        return _cast_and_convolve(x, weight, bias, _geometry(stride, padding, 0, groups, transposed=False))
    return F.conv2d(x, weight, bias, stride, padding, 1, groups)


def conv_transpose2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int = 1,
    padding: int = 0,
    output_padding: int = 0,
    groups: int = 1,
) -> Tensor:
    """`F.conv_transpose2d`: x `[N, I, H, W]`, weight `[I, O / groups, h, w]`, bias `[O]` → `[N, O, H', W']`."""
    if _is_worthwhile(x, weight):
        return _cast_and_convolve(x, weight, bias, _geometry(stride, padding, output_padding, groups, transposed=True))
    return F.conv_transpose2d(x, weight, bias, stride, padding, output_padding, groups)


def binomial_filter(x: Tensor, gain: float = 1.0, *, stride: int = 1, padding: int = 0, up: bool = False) -> Tensor:
    """Each channel of `[N, C, H, W]` with the kernel [1, 3, 3, 1] ⊗ [1, 3, 3, 1] of sum `gain`; zeros beyond the edges.

    A depthwise convolution, transposed if `up`. Its derivative is a filter by the same kernel, which is symmetric, and
    nothing is kept for it; at a stride of 1 the transpose is a plain convolution, which is faster than a transposed one
    on a CPU. Without `up`, sides are multiples of the stride.
    """
    if torch.compiler.is_compiling():
        kernel = _kernel(x, gain)
        resample = F.conv_transpose2d if up else F.conv2d
        return resample(x, kernel, stride=stride, padding=padding, groups=len(kernel))
    device = x.device.type
    if torch.is_autocast_enabled(device):
        x = _cast(x, torch.get_autocast_dtype(device))
    y: Tensor = _Filter.apply(x, gain, stride, padding, up)  # type: ignore[no-untyped-call]
    return y


def leaky_relu_(x: Tensor, slope: float) -> Tensor:
    """`F.leaky_relu` in place, of a positive slope."""
    if _twice and torch.is_grad_enabled() and x.requires_grad and not torch.compiler.is_compiling():
        y: Tensor = _LeakyReLU.apply(x, slope)  # type: ignore[no-untyped-call]
        return y
    return F.leaky_relu(x, slope, inplace=True)


_twice = False
_weight_gradients = True


@contextlib.contextmanager
def differentiated_twice(twice: bool = True) -> Iterator[None]:
    """For forward passes whose gradients will be differentiated: inside, convolutions have the derivatives of this
    file, elsewhere PyTorch's own."""
    global _twice
    _twice, before = twice, _twice
    try:
        yield
    finally:
        _twice = before


@contextlib.contextmanager
def no_weight_gradients() -> Iterator[None]:
    """For a backward pass that asks for gradients with respect to inputs alone, as penalties do.

    `torch.autograd.grad` does not tell functions written in Python which gradients are not asked for
    (pytorch/pytorch#174017), so without this they would compute those of the weights too.
    """
    global _weight_gradients
    _weight_gradients, before = False, _weight_gradients
    try:
        yield
    finally:
        _weight_gradients = before


class Conv2d(nn.Conv2d):
    """`nn.Conv2d` by `conv2d`, of the same stride and padding on both axes, neither dilated nor padded by a mode."""

    def forward(self, input: Tensor) -> Tensor:
        assert isinstance(self.padding, tuple)
        return conv2d(input, self.weight, self.bias, self.stride[0], self.padding[0], self.groups)


def _is_worthwhile(x: Tensor, weight: Tensor) -> bool:
    """Whether these functions are worth their overhead in Python, some 0.05 ms for a forward and a backward pass.

    Not where the call is differentiated once or never, as in graphs of `torch.compile`.
    """
    if not _twice or torch.compiler.is_compiling():
        return False
    return torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)


@functools.cache
def _geometry(stride: int, padding: int, output_padding: int, groups: int, *, transposed: bool) -> _Geometry:
    return [stride] * 2, [padding] * 2, [1, 1], transposed, [output_padding] * 2, groups


def _cast_and_convolve(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: _Geometry) -> Tensor:
    """As autocast casts; outside of the autograd functions, so that gradients are cast back."""
    device = x.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        x, weight, bias = _cast(x, dtype), _cast(weight, dtype), None if bias is None else _cast(bias, dtype)
    return _convolve(x, weight, bias, geometry)


def _cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x if x.dtype == torch.float64 else x.to(dtype)


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: _Geometry) -> Tensor:
    """C(x, w) + b, with its derivatives."""
    y: Tensor = _Convolution.apply(x, weight, bias, geometry)  # type: ignore[no-untyped-call]
    return y


class _Convolution(torch.autograd.Function):
    """C(x, w) + b. Its derivatives at a cotangent g of the shape of y: X(g, w) for x, W(g, x) for w, Σ g for b."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: _Geometry) -> Tensor:
        ctx.geometry, ctx.shape = geometry, x.shape
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        with _without_autocast(x):
            y: Tensor = torch.convolution(x, weight, bias, *geometry)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad[:3]
        if x is not None and not torch.is_grad_enabled():
            return *_gradients(g, x, weight, ctx.geometry, (for_x, for_weight, for_bias)), None
        for_weight, for_bias = for_weight and _weight_gradients, for_bias and _weight_gradients
        of_x = None
        if for_x:
            of_x = _InputGradient.apply(g, weight, (x, ctx.shape, ctx.geometry))  # type: ignore[no-untyped-call]
        if for_weight:
            return of_x, *_WeightGradient.apply(g, x, (weight, ctx.geometry, for_bias)), None  # type: ignore[no-untyped-call]
        return of_x, None, g.sum((0, 2, 3)) if for_bias else None, None


# Of a tensor that a function below is given in a tuple, it reads only the shape and the layout: `apply` does not track
# tensors in tuples, so the engine leads no gradient to them.


class _InputGradient(torch.autograd.Function):
    """X(g, w). Its derivatives at a cotangent u of the shape of x: C(u, w) for g, W(g, u) for w."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, weight: Tensor, untracked: tuple[Tensor | None, torch.Size, _Geometry]) -> Tensor:
        like, shape, ctx.geometry = untracked
        ctx.save_for_backward(g if ctx.needs_input_grad[1] else None, weight)
        if like is not None:
            return _gradients(g, like, weight, ctx.geometry, (True, False, False))[0]
        with _without_autocast(g):  # no x was kept, as its weight is frozen
            return torch.convolution(g, weight, None, *_adjoint(ctx.geometry, g.shape, weight.shape, shape))

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        g, weight = ctx.saved_tensors
        of_g = _convolve(u, weight, None, ctx.geometry) if ctx.needs_input_grad[0] else None
        of_weight = None
        if ctx.needs_input_grad[1]:
            of_weight, _ = _WeightGradient.apply(g, u, (weight, ctx.geometry, False))  # type: ignore[no-untyped-call]
        return of_g, of_weight, None


class _WeightGradient(torch.autograd.Function):
    """W(g, x), and the bias's gradient, Σ g, which the same kernel gives on a CPU.

    Their derivatives at cotangents v of the shape of w and c of that of the bias: C(x, v) + c for g, X(g, v) for x.
    """

    @staticmethod
    def forward(
        ctx: Any, g: Tensor, x: Tensor, untracked: tuple[Tensor, _Geometry, bool]
    ) -> tuple[Tensor, Tensor | None]:
        like, ctx.geometry, with_bias = untracked
        ctx.weight_shape, ctx.shape = like.shape, x.shape
        ctx.save_for_backward(g if ctx.needs_input_grad[1] else None, x if ctx.needs_input_grad[0] else None)
        ctx.set_materialize_grads(False)
        _, of_weight, of_bias = _gradients(g, x, like, ctx.geometry, (False, True, with_bias))
        return of_weight, of_bias if with_bias else None

    @staticmethod
    def backward(ctx: Any, v: Tensor | None, c: Tensor | None) -> tuple[Tensor | None, Tensor | None, None]:
        g, x = ctx.saved_tensors
        of_g, of_x = None, None
        if v is None:  # only the bias's gradient was differentiated
            v = None if c is None else c.new_zeros(ctx.weight_shape)
        if v is None:
            return None, None, None
        if ctx.needs_input_grad[0]:
            of_g = _convolve(x, v, c, ctx.geometry)
        if ctx.needs_input_grad[1]:
            of_x = _InputGradient.apply(g, v, (x, ctx.shape, ctx.geometry))  # type: ignore[no-untyped-call]
        return of_g, of_x, None


def _gradients(
    g: Tensor, x: Tensor, weight: Tensor, geometry: _Geometry, wanted: tuple[bool, bool, bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """X(g, w), W(g, x) and Σ g, those `wanted`. Without the first, only the shape and layout of `weight` are read;
    without the second, only those of `x`."""
    with _without_autocast(g):
        gradients: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward.default(
            g, x, weight, [g.shape[1]] if wanted[2] else None, *geometry, wanted
        )
    return gradients


class _LeakyReLU(torch.autograd.Function):
    """y = f(x), in place. Its derivative f'(x) is read from the sign of y, and has none itself."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: float) -> Tensor:
        ctx.slope = slope
        ctx.mark_dirty(x)
        y = F.leaky_relu(x, slope, inplace=True)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        (y,) = ctx.saved_tensors
        return _sloped(g, y.detach(), ctx.slope), None


class _Sloped(torch.autograd.Function):
    """f'(x) g, which is linear in g."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, y: Tensor, slope: float) -> Tensor:
        ctx.slope = slope
        ctx.save_for_backward(y)
        return torch.ops.aten.leaky_relu_backward(g, y, slope, True)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor, None, None]:
        (y,) = ctx.saved_tensors
        return _sloped(u, y, ctx.slope), None, None


def _sloped(g: Tensor, y: Tensor, slope: float) -> Tensor:
    product: Tensor
    if torch.is_grad_enabled():
        product = _Sloped.apply(g, y, slope)  # type: ignore[no-untyped-call]
    else:
        product = torch.ops.aten.leaky_relu_backward(g, y, slope, True)
    return product


class _Filter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: float, stride: int, padding: int, up: bool) -> Tensor:
        ctx.constants = gain, stride, padding, up
        return _filter(x, gain, stride, padding, up)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None, None, None]:
        gain, stride, padding, up = ctx.constants
        if stride == 1:
            padding = len(_TAPS) - 1 - padding
        else:
            up = not up
        # not `apply` where nothing is recorded: it takes as long as a small convolution
        filtered = _Filter.apply if torch.is_grad_enabled() else _filter
        return filtered(g, gain, stride, padding, up), None, None, None, None


def _filter(x: Tensor, gain: float, stride: int, padding: int, up: bool) -> Tensor:
    with _without_autocast(x):
        if is_accelerator(x.device):
            return _filter_by_products(x, gain, stride, padding, up)
        return torch.convolution(x, _kernel(x, gain), None, *_geometry(stride, padding, 0, x.shape[1], transposed=up))


_TAPS = (1 / 8, 3 / 8, 3 / 8, 1 / 8)


def _kernel(x: Tensor, gain: float) -> Tensor:
    """`[C, 1, 4, 4]`"""
    taps = torch.tensor(_TAPS, dtype=x.dtype, device=x.device)
    return torch.outer(taps, taps * gain).expand(x.shape[1], 1, -1, -1)


def _filter_by_products(x: Tensor, gain: float, stride: int, padding: int, up: bool) -> Tensor:
    """The filter as products with a banded matrix along each axis, on which a GPU's matrix units work.

    cuDNN has no fast depthwise convolution for channels-last: on an H200, for `[32, 64, 256, 256]` in bfloat16, it took
    11 ms, PyTorch's own kernel 3.3 ms, sums of slices 3.5 ms, and a copy of the tensor 0.13 ms.
    """
    n, channels, height, width = x.shape
    rows = _bands(height, gain, stride, padding, up, x.dtype, x.device)
    columns = _bands(width, 1.0, stride, padding, up, x.dtype, x.device)
    if x.is_contiguous():
        y = rows @ (x.flatten(0, 2) @ columns.T).view(n * channels, height, -1)
        return y.view(n, channels, len(rows), len(columns))
    x = x.permute(0, 2, 3, 1).reshape(n, height, width * channels)
    y = columns @ (rows @ x).view(-1, width, channels)
    return y.view(n, len(rows), len(columns), channels).permute(0, 3, 1, 2)


@functools.cache
def _bands(
    side: int, gain: float, stride: int, padding: int, up: bool, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """What the taps, of sum `gain`, do to one axis: `[side after, side]`.

    A step is played before it is recorded as a CUDA graph, so no recording makes one, which would be its own. They are
    computed where they are, and so are no copies that the host would wait for.
    """
    after = (side - 1) * stride - 2 * padding + len(_TAPS) if up else (side + 2 * padding - len(_TAPS)) // stride + 1
    with torch.inference_mode(False):  # or what is made while sampling could not be used in training
        i, j = torch.arange(after, device=device)[:, None], torch.arange(side, device=device)
        tap = i + padding - j * stride if up else j + padding - i * stride
        bands = torch.zeros(after, -(-side // 8) * 8, dtype=dtype, device=device)[:, :side]  # rows start at 16 bytes
        for index, weight in enumerate(_TAPS):
            bands += gain * weight * (tap == index)
        return bands


def _without_autocast(x: Tensor) -> contextlib.AbstractContextManager[object]:
    """What was called outside autocast may be differentiated inside, and must not be cast there."""
    device = x.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else contextlib.nullcontext()


def _adjoint(geometry: _Geometry, output: torch.Size, weight: torch.Size, input: torch.Size) -> _Geometry:
    """Of the transposed convolution, or of the plain one, whose value is X(g, w) of the shape of the input."""
    stride, padding, dilation, transposed, _, groups = geometry
    left_over = [0, 0]  # rows and columns that the kernel did not reach
    if not transposed:
        left_over = [
            side - ((out - 1) * step - 2 * pad + kernel)
            for side, out, step, pad, kernel in zip(input[2:], output[2:], stride, padding, weight[2:], strict=True)
        ]
    return stride, padding, dilation, not transposed, left_over, groups
