"""What the door to training says, and mends, without starting Ray."""

import errno
import os
import shutil
import socket
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from ruamel.yaml import YAML

import ganlib
from ganlib.checkpoint import Damaged
from ganlib.config import ConfigError, ResolvedScale, override
from ganlib.distributed import WorkerLost
from ganlib.health import Diverged
from ganlib.shards import read_spec
from ganlib.trainer import train
from pipelines._stage import StageError, atomic_folder
from pipelines.checkpoints import Checkpoints
from pipelines.cluster import _check_reachable, usable_resources
from pipelines.launch import _fit, cause, keep, permanent, train_distributed
from pipelines.storage import Storage
from pipelines.training import Job, fingerprint, possible_workers, storage, training_code

ROOT = Path(__file__).parents[2]


def scaled(params, **scale):
    return params.model_copy(update={"scale": params.scale.model_copy(update=scale)})


def test_a_batch_beyond_the_data_is_refused(params, prepared, tmp_path):
    train = read_spec(prepared).counts["train"]
    Job.of(override(params, {"batch": train}), prepared, tmp_path, 1)
    message = rf"^params/models/dcgan\.yaml: batch: {train + 1} is more than the {train} train examples of .*; lower"
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


def test_what_is_kept_of_a_training_does_not_change_it(params, prepared, tmp_path):
    names = set()
    for choice in ("best", "last"):
        of_train = params.train.model_copy(update={"keep": choice})
        names.add(fingerprint(params.model_copy(update={"train": of_train}), prepared, "train", tmp_path / "none"))
    assert len(names) == 1


def test_code_that_a_training_does_not_use_changes_nothing(params, prepared, tmp_path, monkeypatch):
    """New kinds of data, sources, spaces, metrics and families are such code."""
    copy = Path(shutil.copytree(ROOT / "ganlib", tmp_path / "ganlib", ignore=shutil.ignore_patterns("__pycache__")))
    monkeypatch.setattr(ganlib, "__file__", str(copy / "__init__.py"))

    def name():
        return fingerprint(params, prepared, "train", tmp_path / "reference")

    before = name()
    new = [*(copy / kind / "new.py" for kind in ("data", "sources", "spaces", "metrics", "models"))]
    for file in (
        *new,
        copy / "metrics" / "picture" / "new.py",
        copy / "models" / "mlp.py",
        copy / "sources" / "idx.py",
    ):
        file.write_text("# new")
        assert name() == before, file
    for file in ("data/_kind.py", "metrics/fd.py", "models/_layers.py", "models/dcgan.py", "trainer.py"):
        before = name()
        with (copy / file).open("a") as code:
            code.write("# changed")
        assert name() != before, file

    stages = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"]
    used = {path.relative_to(copy.parent).as_posix() for path in training_code("dcgan")}
    for stage in ("tune", "train"):
        code = {dep.replace("${model}", "dcgan") for dep in stages[stage]["deps"] if dep.startswith("ganlib/")}
        assert code <= used, "files, no folders in which others may come"
    for stage in ("evaluate", "register"):
        assert not {"ganlib/data", "ganlib/sources", "ganlib/spaces", "ganlib/models"} & set(stages[stage]["deps"])


def test_runs_are_kept_below_the_project(params, tmp_path, monkeypatch):
    scratch = tmp_path / ".dvc" / "tmp" / "exps" / "1"
    (scratch / ".dvc").mkdir(parents=True)
    monkeypatch.chdir(scratch)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    assert storage(params).local == tmp_path / ".ganlib" / "runs"
    assert storage(scaled(params, storage="kept/runs")).local == tmp_path / "kept" / "runs"
    assert storage(scaled(params, storage="/mnt/runs")).address == "/mnt/runs"
    assert storage(scaled(params, storage="mock://bucket/runs")).address == "mock://bucket/runs"
    with pytest.raises(ConfigError, match=r"^scale\.storage: gopher://hole: Unrecognized filesystem type"):
        storage(scaled(params, storage="gopher://hole"))


def test_a_batch_is_divided_among_workers_in_whole_groups(params, prepared, tmp_path):
    def possible(batch, accumulate, group):
        changed = override(params, {"batch": batch})
        changed = changed.model_copy(update={"train": changed.train.model_copy(update={"accumulate": accumulate})})
        return possible_workers(changed, SimpleNamespace(group=group))

    assert possible(32, 1, 1) == [1, 2, 4, 8, 16, 32]
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
    from ray.train import WorkerGroupError

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
    from ray.train import WorkerGroupError

    diverged, full, lost = Diverged("training diverged"), OSError(errno.ENOSPC, "full"), WorkerLost("rank 1 is gone")
    for final in (diverged, full, ConfigError("batch"), Damaged("format")):
        assert permanent(WorkerGroupError("...", {0: lost, 1: final})) is final
    for passing in (OSError(errno.EIO, "read"), MemoryError(), lost, RuntimeError("gloo")):
        assert permanent(WorkerGroupError("...", {0: passing})) is None
    assert permanent(RuntimeError("the controller died")) is None


def test_a_training_that_is_done_is_taken_and_said(small, prepared, tmp_path, monkeypatch, capsys):
    """Of one that is not, the tests of reliability hold the line to say where it goes on."""
    monkeypatch.chdir(tmp_path)
    params = scaled(small("mlp"), storage=str(tmp_path / "runs"))
    run = storage(params) / fingerprint(params, prepared, "train", tmp_path / "reference")
    checkpoints = Checkpoints(run / "checkpoints")

    def report(row, folder):
        if folder is not None:
            keep(checkpoints, row, folder)

    train(params, report, prepared=prepared)
    (tmp_path / "out").mkdir()
    capsys.readouterr()
    rows = train_distributed(params, prepared, tmp_path / "reference", print, tmp_path / "out")
    assert rows[-1]["kimg"] == pytest.approx(0.384)
    newest = checkpoints.newest().name
    assert capsys.readouterr().out == f"{run.name} was trained before: 0.384 kimg, from {run}/checkpoints/{newest}\n"
    assert (tmp_path / "out/generator/generator.safetensors").is_file()


def test_without_workers_the_stage_itself_trains_and_goes_on(small, prepared, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pipelines.launch.cluster", None)  # no Ray

    def trained(storage, out):
        """The weights, and what was reported."""
        params, rows = scaled(small("dcgan"), num_workers=0, storage=str(tmp_path / storage)), []
        (tmp_path / out).mkdir()
        train_distributed(params, prepared, tmp_path / "none", rows.append, tmp_path / out)
        weights = (tmp_path / out / "generator/generator.safetensors").read_bytes()
        return weights, [round(row["kimg"], 3) for row in rows]

    def interrupted(live, row):
        if row["kimg"] > 0.2:
            raise KeyboardInterrupt

    quiet, reported = trained("quiet", "once")
    assert reported == [0.128, 0.256, 0.384]
    with monkeypatch.context() as patch:
        patch.setattr("pipelines.launch._append", interrupted)
        with pytest.raises(KeyboardInterrupt):
            trained("stopped", "never")
    assert trained("stopped", "then") == (quiet, [0.384])
    said = capsys.readouterr().out
    assert said.count("training to 0.384 kimg; by this process\n") == 3
    assert "is resumed: 0.256 kimg" in said


def test_a_full_disk_is_one_line_without_workers_too(small, prepared, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pipelines.launch.keep", full)
    params = scaled(small("mlp"), num_workers=0, storage=str(tmp_path / "runs"))
    with pytest.raises(StageError, match=r"runs/train-.*: No space left on device; what was computed is kept"):
        train_distributed(params, prepared, tmp_path / "none", print, tmp_path)


@pytest.mark.parametrize("room", [2**12, 2**15, 2**17])
def test_a_full_disk_for_temporary_files_is_named(small, prepared, tmp_path, monkeypatch, small_disk, room):
    """torch and safetensors raise errors of their own where a file ends early."""
    monkeypatch.chdir(tmp_path)
    params = scaled(small("mlp"), num_workers=0, storage=str(tmp_path / "runs"))
    disk = os.statvfs(small_disk)
    (small_disk / "filler").write_bytes(bytes(disk.f_bavail * disk.f_frsize - room))
    monkeypatch.setattr(tempfile, "tempdir", str(small_disk))
    with pytest.raises(StageError, match=rf"^{small_disk}/ganlib-\S+: No space left on device; what was computed is"):
        train_distributed(params, prepared, tmp_path / "none", print, tmp_path)


def test_a_range_without_a_number_that_divides_the_batch_is_refused(params, prepared, tmp_path):
    changed = scaled(override(params, {"batch": 32}), num_workers=(5, 7))
    message = (
        r"^scale\.num_workers: the batch of 32 divides among no number of workers from 5 to 7; .* one of 1, 2, 4, 8"
    )
    with pytest.raises(ConfigError, match=message):
        Job.of(changed, prepared, tmp_path, 1)
    Job.of(scaled(changed, num_workers=(5, 8)), prepared, tmp_path, 1)


def test_a_folder_is_whole_or_absent(tmp_path):
    final = tmp_path / "out"
    for error in (OSError, KeyboardInterrupt):
        with pytest.raises(error), atomic_folder(final) as folder:  # noqa: PT012
            (folder / "half").touch()
            raise error
        assert list(tmp_path.iterdir()) == []
    with atomic_folder(final) as folder:
        (folder / "whole").touch()
    assert [p.name for p in final.iterdir()] == ["whole"]
