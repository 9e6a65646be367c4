"""BatchNorm against torch's own."""

import pytest
import torch
from torch import nn

from ganlib.models import _layers
from ganlib.models._layers import BatchNorm


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_batch_norm_is_torchs(layout):
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(6, 5, 4, 3, generator=generator) * 3 + 7).to(memory_format=layout)
    seed = torch.randn(6, 5, 4, 3, generator=generator)
    ends = []
    for kind in (BatchNorm, nn.BatchNorm2d):
        layer = kind(5)
        with torch.no_grad():
            layer.weight.copy_(torch.linspace(0.5, 2, 5))
            layer.bias.copy_(torch.linspace(-1, 1, 5))
        mine = x.clone().requires_grad_()
        y = layer(mine)
        y.backward(seed)
        ends.append(
            [y, mine.grad, layer.weight.grad, layer.bias.grad, layer.running_mean, layer.running_var, layer.eval()(x)]
        )
    for ours, theirs in zip(*ends, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_batch_norms_gradient_by_finite_differences():
    layer = BatchNorm(3).double()
    x = torch.randn(4, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    weight, bias = (torch.rand(3, dtype=torch.float64, requires_grad=True) for _ in range(2))

    def normed(x, weight, bias):
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x,))

    assert torch.autograd.gradcheck(normed, (x, weight, bias))


def over_channels(x):
    return x.transpose(0, 1).flatten(1)


def across(statistics):
    return statistics[:, None, None]


def stats(x, eps):
    wide = over_channels(x).to(torch.promote_types(x.dtype, torch.float32))
    return wide.mean(1), (wide.var(1, correction=0) + eps).rsqrt()


def backward_reduce(g, x, mean, inverse, weight, for_input, for_weight, for_bias):
    """Σ g, Σ g (x − mean), and the gradients with respect to weight and bias, each `[C]`."""
    wide = over_channels(g).to(mean.dtype)
    sum_g, sum_gx = wide.sum(1), (wide * (over_channels(x) - mean[:, None])).sum(1)
    return sum_g, sum_gx, sum_gx * inverse, sum_g


def backward_elemt(g, x, mean, inverse, weight, sum_g, sum_gx, count):
    """Ioffe & Szegedy 2015, section 3, from sums over `count` places of all ranks."""
    n = int(count.sum())
    normed = (x - across(mean)) * across(inverse)
    centred = g - across(sum_g / n) - normed * across(sum_gx * inverse / n)
    return (centred * across(weight * inverse)).to(x.dtype)


@pytest.fixture
def _fused(monkeypatch):
    """CUDA's kernels, written out."""
    monkeypatch.setattr(_layers, "_fused", lambda x: True)
    for name, fn in (("stats", stats), ("backward_reduce", backward_reduce), ("backward_elemt", backward_elemt)):
        monkeypatch.setattr(torch, f"batch_norm_{name}", fn)


@pytest.mark.usefixtures("_fused")
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_batch_norm_of_cudas_kernels_is_torchs(layout):
    test_batch_norm_is_torchs(layout)
    test_batch_norms_gradient_by_finite_differences()


@pytest.mark.usefixtures("_fused")
def test_batch_norm_of_cudas_kernels_copies_nothing_to_float32():
    layer, shapes = BatchNorm(5), []
    x = torch.randn(6, 5, 4, 3).bfloat16().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: shapes.append((t.shape, t.dtype)) or t, lambda t: t):
        y = layer(x)
    y.square().sum().backward()
    assert y.dtype == x.grad.dtype == torch.bfloat16
    assert layer.weight.grad.dtype == layer.running_var.dtype == torch.float32
    assert (x.shape, torch.bfloat16) in shapes
    assert (x.shape, torch.float32) not in shapes


@pytest.mark.usefixtures("_fused")
def test_batch_norm_of_cudas_kernels_over_ranks(monkeypatch):
    """Two ranks with a half each: the other one's shares are added by hand."""
    x = torch.randn(8, 5, 4, 3, dtype=torch.float64) * 3 + 7
    seed = torch.randn(8, 5, 4, 3, dtype=torch.float64)
    whole = BatchNorm(5).double()
    given = x.clone().requires_grad_()
    wanted = whole(given)
    wanted.backward(seed)

    theirs = over_channels(x[4:])
    mean = over_channels(x).mean(1)
    shares = [
        torch.stack([theirs.mean(1), theirs.square().mean(1)]),
        torch.stack([over_channels(seed[4:]).sum(1), (over_channels(seed[4:]) * (theirs - mean[:, None])).sum(1)]),
    ]
    monkeypatch.setattr(_layers.distributed, "world_size", lambda: 2)
    monkeypatch.setattr(_layers.distributed, "all_reduce", lambda mine, overwrite: mine + shares.pop(0))
    half = BatchNorm(5).double()
    part = x[:4].clone().requires_grad_()
    y = half(part)
    y.backward(seed[:4])
    torch.testing.assert_close(y, wanted[:4])
    torch.testing.assert_close(part.grad, given.grad[:4])
    torch.testing.assert_close(half.running_var, whole.running_var)
