"""BatchNorm against torch's own."""

import pytest
import torch
from torch import nn

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
