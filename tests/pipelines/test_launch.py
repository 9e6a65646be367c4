"""What the door to training says, and mends, without starting Ray."""

import errno
import socket
from types import SimpleNamespace

import pytest

from ganlib.checkpoint import Damaged
from ganlib.config import ConfigError, ResolvedScale, ScaleConfig, override, parse_params
from ganlib.distributed import WorkerLost
from ganlib.health import Diverged
from ganlib.shards import read_spec
from pipelines._stage import StageError, whole_folder
from pipelines.cluster import _check_reachable, usable_resources
from pipelines.launch import (
    Job,
    _fit,
    cause,
    check_resources,
    fingerprint,
    gpu_slots,
    permanent,
    possible_workers,
    resolve_scale,
    storage,
    why_fewer,
)
from pipelines.storage import Storage


def scaled(params, **scale):
    return params.model_copy(update={"scale": params.scale.model_copy(update=scale)})


def test_a_batch_beyond_the_data_is_refused(params, prepared, tmp_path):
    train = read_spec(prepared).counts["train"]
    Job.of(override(params, {"batch": train}), prepared, tmp_path, 1)
    message = (
        rf"^models\.dcgan\.batch: {train + 1} is more than the {train} train examples of .*; lower the model's batch"
    )
    with pytest.raises(ConfigError, match=message):
        Job.of(override(params, {"batch": train + 1}), prepared, tmp_path, 1)


def test_another_reference_is_another_run(params, prepared, tmp_path):
    def name():
        return fingerprint(params, prepared, "tune", tmp_path / "reference")

    unmeasured = name()
    (tmp_path / "reference" / "features").mkdir(parents=True)
    for file in ("reference.json", "classifier.safetensors", "features/classifier.safetensors"):
        before = name()
        (tmp_path / "reference" / file).write_text("8 epochs")
        first = name()
        (tmp_path / "reference" / file).write_text("9 epochs")
        assert len({before, first, name()}) == 3, file
        assert name() == name() != unmeasured


def test_runs_are_kept_below_the_project(params, tmp_path, monkeypatch):
    scratch = tmp_path / ".dvc" / "tmp" / "exps" / "1"
    scratch.mkdir(parents=True)
    monkeypatch.chdir(scratch)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    assert storage(params).local == tmp_path / ".ganlib" / "runs"
    assert storage(scaled(params, storage="kept/runs")).local == tmp_path / "kept" / "runs"
    assert storage(scaled(params, storage="/mnt/runs")).address == "/mnt/runs"
    assert storage(scaled(params, storage="mock://bucket/runs")).address == "mock://bucket/runs"
    with pytest.raises(ConfigError, match=r"^scale\.storage: gopher://hole: Unrecognized filesystem type"):
        storage(scaled(params, storage="gopher://hole"))


def test_workers_that_the_cluster_can_never_hold_are_refused(params):
    few = ResolvedScale(num_workers=2, cpus_per_worker=2, gpus_per_worker=0, workers_per_trial=1)
    check_resources(few, "num_workers", {"CPU": 4.0})
    check_resources(few, "workers_per_trial", {"CPU": 2.0})
    with pytest.raises(
        StageError, match=r"^scale\.num_workers: 2 workers x 2 CPU wanted, the cluster has 3; lower it "
    ):
        check_resources(few, "num_workers", {"CPU": 3.0})
    with pytest.raises(StageError, match=r"1 workers x 0\.5 GPU wanted, the cluster has 0; .* scale\.gpus_per_worker$"):
        check_resources(few.model_copy(update={"gpus_per_worker": 0.5}), "workers_per_trial", {"CPU": 4.0})
    shared = ResolvedScale(num_workers=3, gpus_per_worker=0.6)
    with pytest.raises(StageError, match=r"3 workers x 0\.6 GPU wanted, the cluster has 2"):  # a share is of one GPU
        check_resources(shared, "num_workers", {"CPU": 4.0, "GPU": 2.0})
    check_resources(shared, "num_workers", {"CPU": 4.0, "GPU": 3.0})


DIVISORS_OF_32 = [1, 2, 4, 8, 16, 32]


@pytest.mark.parametrize(
    ("cpus", "gpus", "scale", "expected"),
    [
        # no GPU: two workers, or one on a single core
        (8, 0, {}, (2, 0)),
        (1, 0, {}, (1, 0)),
        (3, 0, {"cpus_per_worker": 2}, (1, 0)),
        (0.5, 0, {}, (1, 0)),
        # a worker for each GPU, as far as batch and cores allow
        (8, 1, {}, (1, 1)),
        (8, 3, {}, (2, 1)),
        (16, 8, {}, (8, 1)),
        (5, 8, {}, (4, 1)),
        (512, 64, {}, (32, 1)),
        # shares of a GPU
        (16, 1, {"gpus_per_worker": 0.5}, (2, 0.5)),
        (16, 8, {"gpus_per_worker": 0.5}, (16, 0.5)),
        (16, 8, {"gpus_per_worker": 0.6}, (8, 0.6)),
        (16, 3, {"gpus_per_worker": 1 / 3}, (8, 1 / 3)),
        # one number is set: the other follows
        (16, 8, {"num_workers": 2}, (2, 1)),
        (16, 2, {"num_workers": 3}, (3, 0.5)),
        (16, 1, {"num_workers": 3}, (3, 1 / 3)),
        (16, 0, {"num_workers": 3}, (3, 0)),
        (16, 8, {"gpus_per_worker": 0}, (2, 0)),
        (16, 0, {"gpus_per_worker": 1}, (1, 1)),
        # both are: they stay, whatever there is
        (1, 0, {"num_workers": 7, "gpus_per_worker": 1}, (7, 1)),
        # a range: the most that is there and divides the batch, or the least, which check_resources then judges
        (16, 0, {"num_workers": (2, 8)}, (8, 0)),
        (5, 0, {"num_workers": (2, 8)}, (4, 0)),
        (16, 3, {"num_workers": (1, 8)}, (2, 1)),
        (1, 0, {"num_workers": (2, 8)}, (2, 0)),
    ],
)
def test_auto_is_what_the_cluster_has(cpus, gpus, scale, expected):
    available = {"CPU": float(cpus), **({"GPU": float(gpus)} if gpus else {})}
    found = resolve_scale(ScaleConfig(**scale), available, DIVISORS_OF_32)
    assert (found.num_workers, found.gpus_per_worker) == expected
    if isinstance(scale.get("num_workers"), tuple):
        return
    held = gpu_slots(available, found.gpus_per_worker) if found.gpus_per_worker else found.num_workers
    assert found.num_workers <= held or "GPU" not in available, "check_resources would refuse what is automatic"


def test_workers_without_a_share_of_the_batch_are_named():
    auto, four = ScaleConfig(), {"CPU": 4.0, "GPU": 4.0}
    assert why_fewer(auto, four, DIVISORS_OF_32) == ""
    assert why_fewer(ScaleConfig(num_workers=1), four, DIVISORS_OF_32) == ""
    assert why_fewer(auto, four, [1, 3, 9]) == (
        "scale.num_workers: auto is 3, not 4: the batch does not divide into more"
    )
    assert why_fewer(auto, {"CPU": 3.0, "GPU": 4.0}, DIVISORS_OF_32) == (
        "scale.num_workers: auto is 2, not 4: there are cores for no more"
    )
    assert why_fewer(auto, {"CPU": 3.0}, [1, 3, 9]).endswith("auto is 1, not 2: the batch does not divide into more")


def test_a_batch_is_divided_among_workers_in_whole_groups(params, prepared, tmp_path):
    def possible(batch, accumulate, group):
        changed = override(params, {"batch": batch})
        changed = changed.model_copy(update={"train": changed.train.model_copy(update={"accumulate": accumulate})})
        return possible_workers(changed, SimpleNamespace(group=group))

    assert possible(32, 1, 1) == DIVISORS_OF_32
    assert possible(32, 2, 1) == [1, 2, 4, 8, 16]
    assert possible(32, 1, 4) == [1, 2, 4, 8]
    assert possible(6, 1, 4) == [1]  # one share may hold a part of a group
    assert possible(33, 2, 1) == []
    assert Job.of(override(params, {"batch": 12}), prepared, tmp_path, 1).possible_workers == (1, 2, 3, 4, 6, 12)


def test_gpus_that_torch_cannot_use_are_left_out(monkeypatch, capsys):
    resources = {"CPU": 2.0, "GPU": 4.0}
    monkeypatch.setattr("torch.backends.cuda.is_built", lambda: True)
    assert usable_resources(resources) == resources
    assert capsys.readouterr().out == ""
    monkeypatch.setattr("torch.backends.cuda.is_built", lambda: False)
    assert usable_resources(resources) == {"CPU": 2.0}
    assert "4 GPUs stay idle: torch" in capsys.readouterr().out
    assert usable_resources({"CPU": 2.0}) == {"CPU": 2.0}


@pytest.mark.parametrize(("gpus", "backend"), [(0, "gloo"), (0.5, "gloo"), (1, "cpu:gloo,cuda:nccl")])
def test_nccl_is_for_workers_with_a_gpu_of_their_own(gpus, backend, tmp_path, monkeypatch):
    from ray.train import torch as ray_torch

    class Asked(Exception):
        pass

    def trainer(*_, torch_config, scaling_config, **__):
        raise Asked(torch_config.backend, scaling_config.use_gpu, scaling_config.num_workers)

    monkeypatch.setattr(ray_torch, "TorchTrainer", trainer)
    scale = ResolvedScale(num_workers=2, gpus_per_worker=gpus)
    with pytest.raises(Asked) as asked:
        _fit(Job({}, "", ""), scale, 2, Storage(str(tmp_path)), None, [])
    assert asked.value.args == (backend, gpus > 0, 2)


def test_an_address_where_nothing_listens_is_said_at_once():
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        _check_reachable(address)
        _check_reachable(f"ray://{address}")
    with pytest.raises(StageError, match=f"no Ray cluster at {address}"):
        _check_reachable(address)
    _check_reachable("auto")


def test_the_cause_is_the_workers_own_exception():
    from ray.train.v2.api.exceptions import WorkerGroupError

    lonely, full = RuntimeError("gloo: connection closed by peer"), OSError(28, "No space left on device", "/x")
    assert cause(WorkerGroupError("...", {0: lonely, 1: full})) == (
        "worker 1: OSError: [Errno 28] No space left on device: '/x'"
    )
    assert cause(WorkerGroupError("...", {0: WorkerLost("rank 1 is gone"), 1: full})).startswith("worker 1: OSError")
    by_nccl = RuntimeError("NCCL communicator was aborted on rank 0")
    assert cause(WorkerGroupError("...", {0: by_nccl, 1: full})).startswith("worker 1: OSError")
    assert cause(WorkerGroupError("...", {0: lonely})).startswith("worker 0: RuntimeError: gloo")
    assert cause(RuntimeError("a traceback\nthe last line\n")) == "the last line"


def test_what_no_retry_mends_ends_a_training():
    from ray.train.v2.api.exceptions import WorkerGroupError

    diverged, full, lost = Diverged("training diverged"), OSError(errno.ENOSPC, "full"), WorkerLost("rank 1 is gone")
    for final in (diverged, full, ConfigError("batch"), Damaged("format")):
        assert permanent(WorkerGroupError("...", {0: lost, 1: final})) is final
    for passing in (OSError(errno.EIO, "read"), MemoryError(), lost, RuntimeError("gloo")):
        assert permanent(WorkerGroupError("...", {0: passing})) is None
    assert permanent(RuntimeError("the controller died")) is None


def test_a_range_without_a_number_that_divides_the_batch_is_refused(params, prepared, tmp_path):
    changed = scaled(override(params, {"batch": 32}), num_workers=(5, 7))
    message = (
        r"^scale\.num_workers: the batch of 32 divides among no number of workers from 5 to 7; .* one of 1, 2, 4, 8"
    )
    with pytest.raises(ConfigError, match=message):
        Job.of(changed, prepared, tmp_path, 1)
    Job.of(scaled(changed, num_workers=(5, 8)), prepared, tmp_path, 1)


@pytest.mark.parametrize(
    ("value", "message"), [([2], "at least 2|expected auto"), ([3, 2], "expected auto or"), ([0, 2], "expected auto")]
)
def test_bad_ranges_are_named(params, value, message):
    raw = params.model_dump(mode="json")
    raw["scale"]["num_workers"] = value
    with pytest.raises(ConfigError, match=rf"scale\.num_workers.*({message})"):
        parse_params(raw)
    raw["scale"]["num_workers"] = [2, 3]
    assert parse_params(raw).scale.num_workers == (2, 3)


def test_a_folder_is_whole_or_absent(tmp_path):
    final = tmp_path / "out"
    for error in (OSError, KeyboardInterrupt):
        with pytest.raises(error), whole_folder(final) as folder:  # noqa: PT012
            (folder / "half").touch()
            raise error
        assert list(tmp_path.iterdir()) == []
    with whole_folder(final) as folder:
        (folder / "whole").touch()
    assert [p.name for p in final.iterdir()] == ["whole"]
