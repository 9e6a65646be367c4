"""What the door to training says, and mends, without starting Ray."""

import socket

import pytest

from ganlib.checkpoint import save
from ganlib.config import ConfigError, override
from ganlib.distributed import WorkerLost
from ganlib.shards import read_spec
from pipelines._stage import StageError, whole_folder
from pipelines.launch import Job, _knock, _mend, cause, check_resources, fingerprint, storage


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


def test_rays_folder_is_below_the_project(params, tmp_path, monkeypatch):
    scratch = tmp_path / ".dvc" / "tmp" / "exps" / "1"
    scratch.mkdir(parents=True)
    monkeypatch.chdir(scratch)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    assert storage(params) == tmp_path / ".ganlib" / "ray"
    assert storage(scaled(params, storage="runs/ray")) == tmp_path / "runs" / "ray"
    assert storage(scaled(params, storage="/mnt/ray")).as_posix() == "/mnt/ray"
    with pytest.raises(ConfigError, match=r"^scale\.storage: 's3://bucket/ray' is an address; a folder .* is wanted$"):
        storage(scaled(params, storage="s3://bucket/ray"))


def test_workers_that_the_cluster_can_never_hold_are_refused(params):
    few = scaled(params, num_workers=2, cpus_per_worker=2, workers_per_trial=1)
    check_resources(few, "num_workers", {"CPU": 4.0})
    check_resources(few, "workers_per_trial", {"CPU": 2.0})
    with pytest.raises(
        StageError, match=r"^scale\.num_workers: 2 workers x 2 CPU wanted, the cluster has 3; lower it "
    ):
        check_resources(few, "num_workers", {"CPU": 3.0})
    with pytest.raises(StageError, match=r"1 workers x 0\.5 GPU wanted, the cluster has 0; .* scale\.gpus_per_worker$"):
        check_resources(scaled(few, gpus_per_worker=0.5), "workers_per_trial", {"CPU": 4.0})


def test_an_address_where_nothing_listens_is_said_at_once():
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        _knock(address)
        _knock(f"ray://{address}")
    with pytest.raises(StageError, match=f"no Ray cluster at {address}"):
        _knock(address)
    _knock("auto")


def test_the_cause_is_the_workers_own_exception():
    from ray.train.v2.api.exceptions import WorkerGroupError

    lonely, full = RuntimeError("gloo: connection closed by peer"), OSError(28, "No space left on device", "/x")
    assert cause(WorkerGroupError("...", {0: lonely, 1: full})) == (
        "worker 1: OSError: [Errno 28] No space left on device: '/x'"
    )
    assert cause(WorkerGroupError("...", {0: WorkerLost("rank 1 is gone"), 1: full})).startswith("worker 1: OSError")
    assert cause(WorkerGroupError("...", {0: lonely})).startswith("worker 0: RuntimeError: gloo")
    assert cause(RuntimeError("a traceback\nthe last line\n")) == "the last line"


@pytest.mark.filterwarnings("ignore::pydantic.PydanticDeprecatedSince20")  # of Ray's reading
def test_a_run_whose_book_was_cut_short_goes_on_from_its_newest_whole_checkpoint(tmp_path, capsys):
    from ray.train import CheckpointConfig
    from ray.train.v2._internal.execution.checkpoint.checkpoint_manager import CheckpointManager
    from ray.train.v2._internal.execution.storage import StorageContext

    run = tmp_path / "run"
    book = run / "checkpoint_manager_snapshot.json"

    def newest():
        """As Ray reads the book."""
        found = CheckpointManager(CheckpointConfig(num_to_keep=2), StorageContext(tmp_path, "run"))
        return found.latest_checkpoint_result and found.latest_checkpoint_result.checkpoint.path

    old, new, torn = (run / f"checkpoint_2026-01-01_00-00-0{second}.000000" for second in range(3))
    for folder in (old, new, torn):
        folder.mkdir(parents=True)
        save(folder, {"step": 1})
    (torn / "checkpoint.pt").write_bytes((torn / "checkpoint.pt").read_bytes()[:99])
    _mend(run)
    assert not book.exists()
    book.write_text('{"checkpoint_res')
    _mend(run)
    assert f"{book}: cut short; training from {new.name}" in capsys.readouterr().out
    assert newest() == str(new)
    assert (old.exists(), torn.exists()) == (True, False)
    whole = book.read_text()
    _mend(run)
    assert book.read_text() == whole

    for folder in (old, new):
        (folder / "checkpoint.pt").unlink()
    book.write_text("")
    _mend(run)
    assert f"{book}: cut short; training from the start" in capsys.readouterr().out
    assert newest() is None


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
