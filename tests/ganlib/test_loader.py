"""Batches: every example once an epoch, the same for the same (seed, step), ranks that add up to the whole."""

from __future__ import annotations

import gc
import random
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from specs import completed, image_spec, packed_rows

import ganlib.loader
from ganlib import shard_writer, shards
from ganlib.config import ConfigError
from ganlib.data import image
from ganlib.device import Uploader, is_accelerator
from ganlib.loader import _MOST_STEPS, Loader

EXAMPLES, GROUP = 500, 16
WHOLE, WINDOWED = 1.0, GROUP * 24 * 6 / 1e6  # MB: all, or windows of three row groups of 16 examples of 16 + 8 bytes


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Each sample tells its number, and its label the number modulo 7."""
    out = tmp_path_factory.mktemp("prepared")
    samples = np.zeros((EXAMPLES, 1, 4, 4), np.uint8)
    samples[:, 0, 0, 0], samples[:, 0, 0, 1] = np.arange(EXAMPLES) // 256, np.arange(EXAMPLES) % 256
    spec = image_spec((1, 4, 4), "abcdefg")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shard_writer, "_GROUP_BYTES", GROUP * 16)
        shard_writer.write(
            out,
            [packed_rows(spec, [{"sample": sample} for sample in samples], [i % 7 for i in range(EXAMPLES)])],
            spec.parts,
            completed(spec),
            test_share=0.1,
            shard_mb=GROUP * 16 * 5 / 1e6,
        )
    return out


def numbers(batch):
    stored = image.quantise(None, batch["sample"])[:, 0, 0].long()
    found = stored[:, 0] * 256 + stored[:, 1]
    assert torch.equal(found % 7, batch["label"])
    return found.tolist()


def loader(folder, memory_mb, *, batch=10, seed=0, **how):
    return Loader(folder, "train", batch=batch, seed=seed, memory_mb=memory_mb, **how)


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
    monkeypatch.setattr(shards, "read_groups", lambda spec, groups: reads.append(groups) or read(spec, groups))
    data = loader(folder, WINDOWED)
    first = [i for step in range(data.examples // 10) for i in numbers(data.batch_at(step))]
    reads = [groups for groups in reads if any(groups[0] is own for own in data._groups)]  # not of tests before
    assert {len(groups) for groups in reads} <= {3, 2, 1}
    assert len(data._groups) // 3 <= len(reads) <= len(data._groups) // 3 + 2  # each window once, and one ahead
    assert len(data._reading) <= 2
    stored = {
        n: i
        for i, n in enumerate(
            numbers(
                {
                    k: v if k == "label" else image.decode(None, "sample", v)
                    for k, v in shards.read(folder, "train").items()
                }
            )
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


@pytest.mark.parametrize("memory_mb", [WHOLE, WINDOWED])
def test_the_order_is_that_of_the_seed(folder, memory_mb):
    """The order of examples is part of what a seed means: it must not change from one version to the next."""
    data = loader(folder, memory_mb, seed=5)
    starts = np.cumsum([0, *(group.rows for group in data._groups)])
    per_window = len(data._groups) if memory_mb == WHOLE else 3
    expected = []
    for epoch in range(2):
        groups = np.random.default_rng([5, epoch]).permutation(len(data._groups))
        for at, cut in enumerate(range(0, len(groups), per_window)):
            rows = np.concatenate([np.arange(starts[g], starts[g + 1]) for g in sorted(groups[cut : cut + per_window])])
            expected += rows[np.random.default_rng([5, epoch, at]).permutation(len(rows))].tolist()
    stored = shards.read(folder, "train")
    place = {n: i for i, n in enumerate(numbers({**stored, "sample": image.decode(None, "sample", stored["sample"])}))}
    found = [place[n] for step in range(len(expected) // 10) for n in numbers(data.batch_at(step))]
    assert found == expected[: len(found)]


# -- accelerators -----------------------------------------------------------------------------------------------------

KEPT, AHEAD = 1.0, 0.0  # device_memory_mb: all examples on the device, or batches uploaded in advance


class LateUpload:
    """A copy that is made when it is waited for."""

    def __init__(self, tensors):
        self._tensors = tensors

    def wait(self):
        return {name: tensor.clone() for name, tensor in self._tensors.items()}


class LateUploader:
    """A stand-in for an accelerator's: a host buffer that is reused too early, or a copy not waited for, shows."""

    uploaded: list  # of (name, dtype)

    def __init__(self, device):
        pass

    def empty(self, shape, dtype):
        return torch.full(shape, 99, dtype=dtype)

    def upload(self, tensors):
        self.uploaded += [(name, tensor.dtype) for name, tensor in tensors.items()]
        return LateUpload(tensors)


@pytest.fixture
def accelerator(monkeypatch):
    """The CPU passes for an accelerator."""
    monkeypatch.setattr(ganlib.loader, "is_accelerator", lambda device: True)
    monkeypatch.setattr(ganlib.loader, "Uploader", LateUploader)
    monkeypatch.setattr(LateUploader, "uploaded", [], raising=False)


def training_steps(first, last, *, discriminator_steps=1, accumulate=1, workers=1, rank=0):
    """What a trainer asks for in its steps `first` to `last - 1`: (step of the loader, rank, world)."""
    return [
        (step * discriminator_steps + i, rank * accumulate + part, workers * accumulate)
        for step in range(first, last)
        for i in range(discriminator_steps)
        for part in range(accumulate)
    ]


def same(batch, other):
    return batch.keys() == other.keys() and all(torch.equal(batch[name], other[name]) for name in batch)


@pytest.mark.parametrize("memory_mb", [WHOLE, WINDOWED, 1e-6])
@pytest.mark.parametrize("device_memory_mb", [KEPT, AHEAD])
@pytest.mark.parametrize(
    "play",
    [
        {},
        {"accumulate": 4},
        {"discriminator_steps": 3},
        {"discriminator_steps": 2, "accumulate": 2, "workers": 2, "rank": 1},
    ],
    ids=str,
)
def test_an_accelerator_gets_the_batches_of_the_cpu(folder, memory_mb, device_memory_mb, play, request):
    direct = loader(folder, memory_mb, batch=24, mirror=True)
    request.getfixturevalue("accelerator")
    ahead = play.get("discriminator_steps", 1)
    data = loader(folder, memory_mb, batch=24, mirror=True, device_memory_mb=device_memory_mb, steps_ahead=ahead)
    runs = [(0, 45), (38, 42), (17, 21)]  # over two ends of epochs; rolled back to 38; resumed, or rolled back, to 17
    for first, last in runs:
        for step, rank, world in training_steps(first, last, **play):
            assert same(data.batch_at(step, rank=rank, world=world), direct.batch_at(step, rank=rank, world=world))
    data.close()


@pytest.mark.parametrize("memory_mb", [WHOLE, WINDOWED])
@pytest.mark.parametrize("device_memory_mb", [KEPT, AHEAD])
def test_an_accelerator_needs_no_history_either(folder, memory_mb, device_memory_mb, request):
    direct = loader(folder, memory_mb)
    request.getfixturevalue("accelerator")
    data, rng = loader(folder, memory_mb, device_memory_mb=device_memory_mb, steps_ahead=2), random.Random(0)
    for _ in range(200):
        step, world = rng.choice([3, 4, 5, 44, 45, 46, 90]), rng.choice([1, 2, 5])
        rank = rng.randrange(world)
        assert same(data.batch_at(step, rank=rank, world=world), direct.batch_at(step, rank=rank, world=world))
    data.close()


def test_batches_are_uploaded_once_and_in_advance(folder, accelerator, monkeypatch):
    uploads, upload = [], Loader._upload
    monkeypatch.setattr(Loader, "_upload", lambda self, *key: uploads.append(key) or upload(self, *key))
    data = loader(folder, WINDOWED, batch=24, device_memory_mb=AHEAD, steps_ahead=2)
    play = {"discriminator_steps": 2, "accumulate": 2}
    for step in range(30):
        for turn, rank, world in training_steps(step, step + 1, **play):
            data.batch_at(turn, rank=rank, world=world)
        assert set(data._uploads) == set(training_steps(step + 1, step + 2, **play))  # all that the next step asks for
    data._gatherer.submit(lambda: None).result()
    assert sorted(uploads) == sorted(training_steps(0, 31, **play))
    data.close()


def test_examples_travel_as_they_are_stored(folder, accelerator):
    data = loader(folder, WHOLE, device_memory_mb=AHEAD)
    batch = data.batch_at(0)
    assert batch["sample"].dtype == torch.float32
    assert set(LateUploader.uploaded) == {("sample", torch.uint8), ("label", torch.int64)}
    data.close()


@pytest.mark.parametrize("memory_mb", [WHOLE, WINDOWED])
def test_data_kept_on_the_device_are_read_once_and_nothing_travels_at_each_step(
    folder, memory_mb, accelerator, monkeypatch
):
    reads, read = [], shards.read_groups
    monkeypatch.setattr(shards, "read_groups", lambda spec, groups: reads.append(len(groups)) or read(spec, groups))
    data = loader(folder, memory_mb, device_memory_mb=KEPT)
    steps = 2 * data.examples // 10
    for step in range(steps):
        data.batch_at(step)
    assert sum(reads) == len(data._groups)
    assert max(reads) <= data._per_window  # the host holds no more than memory_mb allows
    epochs, rest = divmod(-(-steps // _MOST_STEPS) * _MOST_STEPS * 10, data.examples)  # dealt, many steps in one go
    windows = epochs * len(data._epoch(0).windows) + int((data._epoch(epochs).starts < rest).sum())
    assert len(LateUploader.uploaded) == windows  # the order of each
    data.close()


@pytest.mark.parametrize("device_memory_mb", [KEPT, AHEAD])
def test_no_value_is_read_from_the_device(folder, device_memory_mb):
    """Tensors on `meta` have no values that could be read."""
    data = loader(folder, WINDOWED, mirror=True, device="meta", device_memory_mb=device_memory_mb)
    for step in range(100):
        batch = data.batch_at(step)
    assert {name: (x.device.type, x.dtype, *x.shape) for name, x in batch.items()} == {
        "sample": ("meta", torch.float32, 10, 1, 4, 4),
        "label": ("meta", torch.int64, 10),
    }
    data.close()


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("memory_mb", [WHOLE, WINDOWED])
@pytest.mark.parametrize("device_memory_mb", [KEPT, AHEAD])
def test_cuda_gets_the_batches_of_the_cpu_and_the_host_does_not_wait(folder, memory_mb, device_memory_mb):
    direct = loader(folder, memory_mb, batch=24, mirror=True)
    data = loader(folder, memory_mb, batch=24, mirror=True, device="cuda", device_memory_mb=device_memory_mb)
    batches, busy = [data.batch_at(0)], torch.randn(2048, 2048, device="cuda")
    try:
        torch.cuda.set_sync_debug_mode("error")
        for step in range(1, 120):
            busy = (busy @ busy).clamp(-1, 1)  # the device lags behind, so that a missing wait shows
            batches.append(data.batch_at(step))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for step, batch in enumerate(batches):
        assert same({name: x.cpu() for name, x in batch.items()}, direct.batch_at(step))
    data.close()


def test_the_cpu_is_no_accelerator_and_gets_no_copies():
    sample = torch.zeros(3)
    assert not is_accelerator(torch.device("cpu"))
    assert is_accelerator(torch.device("meta"))
    assert Uploader("cpu").upload({"sample": sample}).wait()["sample"] is sample


# -- failures and ends ------------------------------------------------------------------------------------------------


def delete(shard):
    shard.unlink()


def corrupt(shard):
    shard.write_bytes(b"PAR1" + bytes(shard.stat().st_size - 4))


@pytest.mark.parametrize(
    ("damage", "error"), [(delete, r"train-.*No such file"), (corrupt, r"Parquet magic bytes not found")]
)
@pytest.mark.parametrize("device_memory_mb", [KEPT, AHEAD])
def test_a_damaged_shard_is_the_same_error_on_an_accelerator(
    folder, tmp_path, damage, error, device_memory_mb, request
):
    prepared = Path(shutil.copytree(folder, tmp_path / "prepared"))
    direct = loader(prepared, WHOLE)
    request.getfixturevalue("accelerator")
    data = loader(prepared, WHOLE, device_memory_mb=device_memory_mb)
    for shard in prepared.glob("train-*"):
        damage(shard)
    with pytest.raises((OSError, ValueError), match=error) as expected:
        direct.batch_at(0)
    for _ in range(2):  # the second time as well: it does not hang
        with pytest.raises(expected.type) as found:
            data.batch_at(0)
        assert str(found.value) == str(expected.value)
        assert len(str(found.value).splitlines()) == 1
    data.close()


def test_a_shard_lost_while_training_is_an_error_once_it_is_due(folder, tmp_path, accelerator):
    prepared = Path(shutil.copytree(folder, tmp_path / "prepared"))
    data = loader(prepared, WINDOWED, device_memory_mb=AHEAD)
    data.batch_at(0)
    for shard in prepared.glob("train-*"):
        shard.unlink()
    data.batch_at(1)  # of the window that has been read
    with pytest.raises(FileNotFoundError, match="train-"):
        all(data.batch_at(step) for step in range(2, 100))
    data.close()


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("ganlib-loader")]


@pytest.mark.parametrize("end", ["close", "collect"])
def test_no_thread_outlives_its_loader(folder, accelerator, end):
    gc.collect()
    others = threads()
    data = loader(folder, WINDOWED, device_memory_mb=AHEAD, steps_ahead=3)
    data.batch_at(0)
    mine = [thread for thread in threads() if thread not in others]
    assert len(mine) == 2
    if end == "close":
        data.close()
        assert not any(thread.is_alive() for thread in mine)
    del data
    gc.collect()
    for thread in mine:
        thread.join(timeout=10)
        assert not thread.is_alive()


def test_a_process_that_fails_ends(folder):
    """Without `close`, with batches under way."""
    code = f"""
import ganlib.loader as module
module.is_accelerator = lambda device: True
data = module.Loader({str(folder)!r}, "train", batch=64, seed=0, memory_mb=1e-6, device_memory_mb=0, steps_ahead=9)
data.batch_at(0)
raise SystemExit(3)
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 3
