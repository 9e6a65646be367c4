"""Noise: the published generator, the normal distribution, and independence of whatever must not be seen together."""

import pytest
import scipy.stats
import torch

from ganlib.noise import Noise, _bits, normal, uniform

# the first outputs of SplitMix64 from the seed 1234567, as published with its reference implementations
SPLITMIX64 = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]


def test_bits_are_splitmix64s():
    key = torch.tensor([1234567])
    assert [int(x) % 2**64 for x in _bits(key, 0, 5)[0]] == SPLITMIX64
    assert [int(x) % 2**64 for x in _bits(key, 3, 2)[0]] == SPLITMIX64[3:]


@pytest.mark.parametrize("rows", [1, 500])
def test_draws_are_normal_and_uniform(rows):
    """By Kolmogorov and Smirnov, over the places of a row and over rows of few places."""
    noise = Noise(0, "test", size=rows)
    shape = (100_000 // rows,)
    for draw, cdf in ((noise.normal, "norm"), (noise.uniform, "uniform")):
        x = draw(*shape)
        assert x.shape == (rows, *shape)
        assert x.dtype == torch.float32
        assert scipy.stats.kstest(x.flatten().double().numpy(), cdf).pvalue > 1e-3
    assert float(x.min()) >= 0.0
    assert float(x.max()) < 1.0


def test_rows_places_keys_and_forks_are_independent():
    first = Noise(0, "turn", 1, size=64)
    x, again = first.normal(4001), first.normal(4001)
    others = [
        again,
        x.roll(1, 0),
        x.roll(1, 1),
        Noise(0, "turn", 2, size=64).normal(4001),
        Noise(1, "turn", 1, size=64).normal(4001),
        Noise(0, "turn", 1, size=64).fork("x").normal(4001),
        Noise(0, "turn", 1, size=64).fork("y").normal(4001),
    ]
    for other in others:
        correlation = torch.corrcoef(torch.stack([x.flatten(), other.flatten()]).double())[0, 1]
        assert abs(float(correlation)) < 4 / (64 * 4001) ** 0.5
    squares = torch.corrcoef((x[:, :2000].square() - 1).double()) - torch.eye(64)
    assert float(squares.abs().max()) < 5 / 2000**0.5


def test_a_row_is_the_same_whatever_else_is_drawn():
    whole = Noise(3, "turn", 7, size=12)
    part = Noise(3, "turn", 7, size=100, rows=slice(4, 9))
    for shape in ((5,), (), (2, 3)):
        assert torch.equal(whole.normal(*shape)[4:9], part.normal(*shape))
        assert torch.equal(whole.uniform(*shape)[4:9], part.uniform(*shape))
    assert torch.equal(whole.fork("x").normal(3)[4:9], part.fork("x").normal(3))
    keys = whole.row_keys
    assert torch.equal(normal(keys, 10, 6)[:, :3], normal(keys, 10, 6)[:, :3])
    assert torch.equal(uniform(keys, 10, 6), uniform(keys, 0, 16)[:, 10:])


def test_it_can_become_another_as_recorded_steps_have_it():
    """And nothing is copied from the host to draw, which the meta device would not survive."""
    noise = Noise(0, "turn", 1, size=4)
    noise.become(Noise(0, "turn", 2, size=4))
    assert torch.equal(noise.normal(3), Noise(0, "turn", 2, size=4).normal(3))
    elsewhere = Noise(0, "turn", 1, size=4, device="meta")
    assert elsewhere.normal(3, 2).shape == (4, 3, 2)
    assert elsewhere.fork("x").uniform().device.type == "meta"
