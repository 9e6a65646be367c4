"""Convolutions with derivatives of any order: values and gradients are PyTorch's, higher orders are differences'."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from ganlib import convolution

KINDS = {  # transposed, channels in and out, groups, kernel, stride, padding, output padding
    "dense": (False, 2, 3, 1, 3, 1, 1, 0),
    "1x1": (False, 3, 2, 1, 1, 1, 0, 0),
    "grouped": (False, 4, 6, 2, 3, 1, 1, 0),
    "depthwise": (False, 3, 3, 3, 4, 1, 2, 0),
    "strided": (False, 2, 2, 1, 3, 2, 0, 0),
    "depthwise strided": (False, 2, 2, 2, 4, 2, 1, 0),
    "strided, a row left over": (False, 2, 4, 2, 2, 2, 0, 0),
    "transposed": (True, 2, 3, 1, 3, 2, 0, 0),
    "transposed grouped": (True, 4, 2, 2, 3, 2, 1, 1),
    "transposed depthwise": (True, 2, 2, 2, 4, 2, 1, 0),
}


def call(module, kind, x, weight, bias=None):
    transposed, _, _, groups, _, stride, padding, output_padding = KINDS[kind]
    if transposed:
        return module.conv_transpose2d(
            x, weight, bias, stride=stride, padding=padding, output_padding=output_padding, groups=groups
        )
    return module.conv2d(x, weight, bias, stride=stride, padding=padding, groups=groups)


def operands(kind, side=5, n=2, dtype=torch.float64, layout=torch.contiguous_format):
    """Input, weight and bias."""
    transposed, inner, outer, groups, kernel, *_ = KINDS[kind]
    generator = torch.Generator().manual_seed(0)
    shape = (inner, outer // groups) if transposed else (outer, inner // groups)
    shapes = [(n, inner, side, side), (*shape, kernel, kernel), (outer,)]
    x, weight, bias = (torch.randn(s, dtype=dtype, generator=generator) for s in shapes)
    x, weight = (t.to(memory_format=layout) for t in (x, weight))
    return [t.requires_grad_() for t in (x, weight, bias)]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_values_gradients_and_layouts_are_pytorchs(kind, layout):
    ends = []
    for module in (convolution, F):
        tensors = operands(kind, layout=layout, dtype=torch.float32)
        y = call(module, kind, *tensors)
        first = torch.autograd.grad(y.square().sum(), tensors, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), tensors)
        ends.append([y, *first, *second])
    for ours, theirs in zip(*ends, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
    for ours, theirs in zip(*(end[:2] for end in ends), strict=True):  # output and the input's gradient
        assert ours.is_contiguous(memory_format=layout) == theirs.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("with_bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("kind", KINDS)
def test_first_and_second_derivatives_are_those_of_differences(kind, with_bias):
    tensors = operands(kind, side=4, n=1)[: 3 if with_bias else 2]
    assert torch.autograd.gradcheck(lambda *t: call(convolution, kind, *t), tensors)
    assert torch.autograd.gradgradcheck(lambda *t: call(convolution, kind, *t), tensors)


@pytest.mark.parametrize("kind", KINDS)
def test_third_derivatives_are_those_of_differences(kind):
    x, weight, _ = operands(kind, side=4, n=1)

    def second(x, weight):
        y = call(convolution, kind, x, weight)
        gradients = torch.autograd.grad(y.pow(3).sum(), (x, weight), create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in gradients), (x, weight), create_graph=True)

    assert torch.autograd.gradcheck(second, (x, weight), fast_mode=True)


@pytest.mark.parametrize("needed", [n for n in itertools.product([True, False], repeat=3) if any(n)], ids=str)
def test_only_what_needs_a_gradient_has_one(needed):
    for kind in ("grouped", "transposed grouped"):
        ends = []
        for module in (convolution, F):
            tensors = operands(kind)
            for tensor, need in zip(tensors, needed, strict=True):
                tensor.requires_grad_(need)
            wanted = [t for t in tensors if t.requires_grad]
            first = torch.autograd.grad(call(module, kind, *tensors).pow(3).sum(), wanted, create_graph=True)
            second = torch.autograd.grad(sum(g.pow(3).sum() for g in first), wanted)
            ends.append([*first, *second])
        for ours, theirs in zip(*ends, strict=True):
            torch.testing.assert_close(ours, theirs)


@pytest.fixture(autouse=True)
def twice():
    with convolution.differentiated_twice():
        yield


def calls_of(fn):
    """How often `fn` called the forward and the backward kernel."""
    with torch.profiler.profile(acc_events=True) as profiler:
        fn()
    names = [event.name for event in profiler.events()]
    return names.count("aten::convolution"), names.count("aten::convolution_backward")


def test_a_penalty_costs_as_many_calls_as_it_has_gradients_to_take():
    """One call for any number of groups; and the gradient of an input alone takes no gradient of a weight."""
    x, weight, bias = operands("grouped")
    y = convolution.conv2d(x, weight, bias, padding=1, groups=2)
    found = []

    def inner():
        with convolution.no_weight_gradients():
            found.extend(torch.autograd.grad(y.pow(3).sum(), x, create_graph=True))

    assert calls_of(inner) == (0, 1)
    # of the gradient: C(u, w) and W(g, u); of y: X(g', w) and W(g', x) in one
    assert calls_of(lambda: found[0].square().sum().backward()) == (1, 2)


def test_a_frozen_weight_keeps_no_input():
    x, weight, bias = operands("grouped")
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        convolution.conv2d(x, weight.detach(), bias.detach(), padding=1, groups=2)
    assert [t.shape for t in saved] == [weight.shape]


@pytest.mark.parametrize("kind", ["grouped", "depthwise", "transposed grouped"])
def test_autocast_casts_as_it_does_for_pytorchs(kind):
    ends = []
    for module in (convolution, F):
        tensors = operands(kind, dtype=torch.float32)
        with torch.autocast("cpu", torch.bfloat16):
            y = call(module, kind, *tensors)
            (first,) = torch.autograd.grad(y.float().square().sum(), tensors[0], create_graph=True)
            first.square().sum().backward()
        assert y.dtype == torch.bfloat16
        assert {t.grad.dtype for t in tensors} == {torch.float32}
        ends.append([y.detach(), first.detach(), *(t.grad for t in tensors)])
    for ours, theirs in zip(*ends, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0.05, atol=0.05 * float(theirs.abs().max()))


def test_what_is_called_without_autocast_is_differentiated_without():
    x, weight, _ = operands("grouped", dtype=torch.float32)
    y = convolution.conv2d(x, weight, padding=1, groups=2)
    (plain,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    with torch.autocast("cpu", torch.bfloat16):
        (inside,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        inside.square().sum().backward()
    assert inside.dtype == torch.float32
    assert torch.equal(inside, plain)


def test_double_precision_is_kept_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        assert call(convolution, "grouped", *operands("grouped")).dtype == torch.float64


FILTERS = {"blur": (1, 1, False), "wide blur": (1, 2, False), "down": (2, 1, False), "up": (2, 1, True)}


def filtered(module, kind, x):
    stride, padding, up = FILTERS[kind]
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=x.dtype)
    kernel = torch.outer(taps, taps).expand(x.shape[1], 1, 4, 4)
    if module is convolution:
        return convolution.binomial_filter(x, 64.0, stride=stride, padding=padding, up=up)
    return (F.conv_transpose2d if up else F.conv2d)(x, kernel, stride=stride, padding=padding, groups=x.shape[1])


@pytest.mark.parametrize("by_products", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("kind", FILTERS)
def test_filters_are_convolutions_and_their_derivatives_too(kind, layout, by_products, monkeypatch):
    """Also as they are computed on a GPU."""
    monkeypatch.setattr(convolution, "is_accelerator", lambda device: by_products)
    ends = []
    for module in (convolution, F):
        x = operands("depthwise", side=6, layout=layout)[0]
        y = filtered(module, kind, x)
        (first,) = torch.autograd.grad(y.pow(3).sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.pow(3).sum(), x)
        ends.append([y, first, second])
    for ours, theirs in zip(*ends, strict=True):
        torch.testing.assert_close(ours, theirs)
        assert ours.is_contiguous(memory_format=layout)
    assert torch.autograd.gradgradcheck(lambda x: filtered(convolution, kind, x), operands("depthwise", side=4)[:1])


def test_what_filters_by_products_share_is_made_once_and_can_be_used_in_training(monkeypatch):
    monkeypatch.setattr(convolution, "is_accelerator", lambda device: True)
    convolution._bands.cache_clear()
    x = operands("depthwise", side=6)[0]
    with torch.inference_mode():
        filtered(convolution, "up", x.detach())
    with torch.autocast("cpu", torch.bfloat16):
        filtered(convolution, "up", x).sum().backward()
    assert x.grad.shape == x.shape
    found = convolution._bands.cache_info()
    assert (found.misses, found.hits) == (4, 2)  # of two axes, there and back; those there were had before


def test_filters_keep_nothing_and_are_cast_by_autocast():
    x, saved = operands("depthwise", side=6, dtype=torch.float32)[0], []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        filtered(convolution, "blur", x)
    assert saved == []
    with torch.autocast("cpu", torch.bfloat16):
        y = filtered(convolution, "blur", x)
    y.float().sum().backward()
    assert (y.dtype, x.grad.dtype) == (torch.bfloat16, torch.float32)


def test_the_activation_is_pytorchs_and_its_second_derivative_costs_nothing():
    ends = []
    for activate in (convolution.leaky_relu_, lambda x, slope: F.leaky_relu(x, slope, inplace=True)):
        x, weight, _ = operands("dense")
        y = activate(convolution.conv2d(x, weight), 0.2)
        first = torch.autograd.grad(y.pow(3).sum(), (x, weight), create_graph=True)
        second = torch.autograd.grad(sum(g.pow(3).sum() for g in first), (x, weight))
        ends.append([y, *first, *second])
    torch.testing.assert_close(*ends)
    x, weight, _ = operands("dense", side=4, n=1)
    assert torch.autograd.gradgradcheck(lambda x: convolution.leaky_relu_(x * 1.0, 0.2), x)
    y = convolution.leaky_relu_(x * 1.0, 0.2)
    (first,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    assert not first.requires_grad  # it is constant where it is not broken
    with torch.profiler.profile(acc_events=True) as profiler:
        (first,) = torch.autograd.grad(convolution.leaky_relu_(x * 1.0, 0.2).pow(2).sum(), x, create_graph=True)
        first.square().sum().backward()
    assert "aten::zeros_like" not in [event.name for event in profiler.events()]


def test_the_module_is_pytorchs():
    x, *_ = operands("grouped", dtype=torch.float32)
    ours, theirs = (kind(4, 6, 3, padding=1, groups=2) for kind in (convolution.Conv2d, torch.nn.Conv2d))
    theirs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours(x), theirs(x))
