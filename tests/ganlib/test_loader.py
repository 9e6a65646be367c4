"""Batches: every example once an epoch, the same for the same (seed, step), ranks that add up to the whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ganlib import shards
from ganlib.config import ConfigError
from ganlib.data import image
from ganlib.loader import Loader

EXAMPLES, GROUP = 500, 16
WHOLE, WINDOWED = 1.0, GROUP * 24 * 6 / 1e6  # MB: all, or windows of three row groups of 16 examples of 16 + 8 bytes


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Each sample tells its number, and its label the number modulo 7."""
    out = tmp_path_factory.mktemp("prepared")
    samples = np.zeros((EXAMPLES, 1, 4, 4), np.uint8)
    samples[:, 0, 0, 0], samples[:, 0, 0, 1] = np.arange(EXAMPLES) // 256, np.arange(EXAMPLES) % 256
    packed = [shards.pack(sample) for sample in samples]
    cfg = image.Config(resolution=(4, 4), channels=1)
    classes = tuple("abcdefg")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "_GROUP_BYTES", GROUP * 16)
        shards.write(
            out,
            [shards.table([p[0] for p in packed], [p[1] for p in packed], [i % 7 for i in range(EXAMPLES)])],
            lambda found: image.spec(cfg, classes=classes, counts=found.counts, content_hash=found.content_hash),
            test_share=0.1,
            shard_mb=GROUP * 16 * 5 / 1e6,
        )
    return out


def numbers(batch):
    stored = image.quantise(batch["sample"])[:, 0, 0].long()
    found = stored[:, 0] * 256 + stored[:, 1]
    assert torch.equal(found % 7, batch["label"])
    return found.tolist()


def loader(folder, memory_mb, *, batch=10, seed=0, mirror=False):
    return Loader(folder, "train", batch=batch, seed=seed, memory_mb=memory_mb, mirror=mirror)


@pytest.mark.parametrize("memory_mb", [WHOLE, WINDOWED, 1e-6])
@pytest.mark.parametrize("batch", [1, 7, 64])
def test_every_example_once_an_epoch(folder, memory_mb, batch):
    data = loader(folder, memory_mb, batch=batch)
    n = data.examples
    stream = [i for step in range(3 * n // batch + 1) for i in numbers(data.batch_at(step))]
    epochs = [stream[e * n : (e + 1) * n] for e in range(3)]
    for epoch in epochs:
        assert len(set(epoch)) == n  # though batches reach across the epochs
    assert set(epochs[0]) == set(epochs[1]) == set(epochs[2])
    assert epochs[0] != epochs[1] != epochs[2]


@pytest.mark.parametrize("memory_mb", [WHOLE, WINDOWED])
def test_a_step_needs_no_history(folder, memory_mb):
    data = loader(folder, memory_mb)
    steps = [numbers(data.batch_at(step)) for step in range(120)]
    for step in (119, 3, 60, 44, 45, 0):
        assert numbers(loader(folder, memory_mb).batch_at(step)) == steps[step]
        assert numbers(data.batch_at(step)) == steps[step]
    assert numbers(loader(folder, memory_mb, seed=1).batch_at(0)) != steps[0]


@pytest.mark.parametrize("memory_mb", [WHOLE, WINDOWED])
def test_ranks_make_up_the_global_batch(folder, memory_mb):
    data = loader(folder, memory_mb, batch=24)
    for step in (0, 18, 19, 40):  # 18 and 19 lie at the end of the first epoch
        whole = data.batch_at(step)
        for world in (2, 3, 4):
            ranks = [loader(folder, memory_mb, batch=24).batch_at(step, rank=r, world=world) for r in range(world)]
            for name, column in whole.items():
                assert torch.equal(torch.cat([part[name] for part in ranks]), column)
    with pytest.raises(ValueError, match="24 does not divide by 5"):
        data.batch_at(0, rank=0, world=5)


def test_streaming_shuffles_and_holds_two_windows(folder, monkeypatch):
    reads = []
    read = shards.read_groups
    monkeypatch.setattr(shards, "read_groups", lambda spec, groups: reads.append(len(groups)) or read(spec, groups))
    data = loader(folder, WINDOWED)
    first = [i for step in range(data.examples // 10) for i in numbers(data.batch_at(step))]
    assert set(reads) <= {3, 2, 1}
    assert len(reads) <= len(data._groups) // 3 + 2  # each window once, and one ahead
    assert len(data._reading) <= 2
    stored = {
        n: i
        for i, n in enumerate(
            numbers({k: v if k == "label" else image.decode(v) for k, v in shards.read(folder, "train").items()})
        )
    }
    jumps = np.abs(np.diff([stored[i] for i in first]))
    assert np.median(jumps) > 8  # not as stored: neighbours come from anywhere in a window


def test_data_that_fit_are_read_once(folder, monkeypatch):
    reads = []
    read = shards.read_groups
    monkeypatch.setattr(shards, "read_groups", lambda spec, groups: reads.append(1) or read(spec, groups))
    data = loader(folder, WHOLE)
    for step in range(200):
        data.batch_at(step)
    assert len(reads) == 1


def test_samples_are_decoded(folder):
    batch = loader(folder, WHOLE).batch_at(0)
    assert batch["sample"].dtype == torch.float32
    assert batch["sample"].shape == (10, 1, 4, 4)
    assert batch["sample"].min() == -1
    assert batch["label"].dtype == torch.int64


def test_a_batch_larger_than_the_data_is_refused(folder):
    with pytest.raises(ConfigError, match=r"batch: 501 is more than the \d+ train examples"):
        loader(folder, WHOLE, batch=501)


def test_every_other_sample_is_mirrored_the_same_ones_for_any_number_of_ranks(folder):
    as_they_are, mirrored = (loader(folder, WHOLE, batch=64, mirror=mirror) for mirror in (False, True))
    turned = []
    for step in range(4):
        plain, batch = (data.batch_at(step)["sample"] for data in (as_they_are, mirrored))
        same, flipped = ((batch == x).flatten(1).all(1) for x in (plain, plain.flip(3)))
        assert (same | flipped).all()
        turned += flipped.tolist()
        shares = [mirrored.batch_at(step, rank=rank, world=4)["sample"] for rank in range(4)]
        assert torch.equal(torch.cat(shares), batch)
    assert 96 < sum(turned) < 160  # of 256, in the mean half: five deviations are 40
    assert turned[:64] != turned[64:128]
