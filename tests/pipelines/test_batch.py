"""Many samples in a folder of shards: each there once, however often the job is killed, and on a cluster."""

from __future__ import annotations

import datetime
import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from specs import image_spec, kind_of, table_spec, tiny_spec
from typer.testing import CliRunner

from ganlib import registry
from ganlib.export import load_generator, save_generator
from pipelines import batch
from pipelines._stage import StageError
from pipelines.cli import app

ROOT = Path(__file__).parents[2]


@pytest.fixture
def generator(train, project):
    train(0, {})
    return project / "outputs" / "train" / "generator"


def fill(source, folder, n, *words):
    return CliRunner().invoke(app, ["sample", str(source), "-n", str(n), "-o", str(folder), *map(str, words)])


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_a_job_killed_twice_ends_as_one_that_was_left_alone(generator, project):
    n, size = 20_000, 512
    assert fill(generator, "whole", n, "--rows-per-shard", size).exit_code == 0
    words = ["sample", str(generator), "-n", str(n), "-o", "killed", "--rows-per-shard", str(size)]
    killed, shards = project / "killed", -(-n // size)
    for least in (3, 9):
        process = subprocess.Popen(
            [sys.executable, "-m", "pipelines.cli", *words], env={**os.environ, "PYTHONPATH": str(ROOT)}
        )
        while len(list(killed.glob("samples-*"))) < least and process.poll() is None:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "it was done before it could be killed"
        assert least <= len(list(killed.glob("samples-*"))) < shards
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert f"of {shards} shards are there" in done.stderr
    assert contents(killed) == contents(project / "whole")
    table = pq.read_table(killed)
    assert table["index"].to_pylist() == list(range(n))
    assert table["label"].to_pylist()[:11] == [*"0123456789", "0"]
    made = load_generator(generator)
    expected = made.present(made.sample(n, rows=slice(15_000, 15_100))["sample"])
    assert np.array_equal(table["sample"].combine_chunks().to_numpy_ndarray()[15_000:15_100], expected)


def test_a_folder_is_of_one_request(generator, project):
    assert fill(generator, "f", 300, "--seed", 1).exit_code == 0
    before = contents(project / "f")
    assert fill(generator, "f", 300, "--seed", 1).exit_code == 0
    assert contents(project / "f") == before
    done = fill(generator, "f", 300, "--seed", 2)
    assert (done.exit_code, len(done.stderr.splitlines())) == (1, 1)
    assert "f holds samples of another request: seed 1, asked 2; choose another folder" in done.stderr
    (project / "mine").mkdir()
    (project / "mine/notes.txt").touch()
    assert "mine: expected a new folder" in fill(generator, "mine", 300).stderr
    assert [file.name for file in (project / "mine").iterdir()] == ["notes.txt"]
    (project / "f/_request.json").write_text("[]")
    assert "f/_request.json: not a request: expected an object, found []" in fill(generator, "f", 300).stderr
    for wrong, said in ((["--label", "x"], "--label"), (["--where", "a=1"], "--where"), (["--seed", "-1"], "seed: ")):
        done = fill(generator, "nothing", 300, *wrong)
        assert said in done.stderr
        assert done.exit_code == 1
    assert not (project / "nothing").exists()


def test_jobs_that_begin_at_one_moment_share_a_folder(tmp_path, monkeypatch):
    """The second begins while the first writes its request."""
    request, folder, write = batch.Request("x", 1000, 0, 256), tmp_path / "f", batch._write_whole

    def write_late(*args):
        monkeypatch.setattr(batch, "_write_whole", write)
        (folder / ".partial-elsewhere-1-_request.json").touch()
        assert batch.missing_shards(folder, request) == [0, 1, 2, 3]
        write(*args)

    monkeypatch.setattr(batch, "_write_whole", write_late)
    assert batch.missing_shards(folder, request) == [0, 1, 2, 3]


def test_of_two_requests_at_one_moment_one_is_refused(tmp_path, monkeypatch):
    """Both find an empty folder; the other one has written its request when this one is about to."""
    write = batch._write_whole

    def write_late(*args):
        monkeypatch.setattr(batch, "_write_whole", write)
        assert batch.missing_shards(tmp_path / "f", batch.Request("x", 1000, 5, 256)) == [0, 1, 2, 3]
        write(*args)

    monkeypatch.setattr(batch, "_write_whole", write_late)
    with pytest.raises(StageError, match=r"holds samples of another request: .*seed 5, asked 0"):
        batch.missing_shards(tmp_path / "f", batch.Request("x", 1000, 0, 256))


def test_a_full_disk_names_the_shard_and_not_the_file_written_first(tmp_path):
    def write(partial):
        raise OSError(errno.ENOSPC, "No space left on device", str(partial))

    with pytest.raises(StageError, match=rf"^{tmp_path}/samples.parquet: No space left on device$"):
        batch._write_whole(tmp_path / "samples.parquet", write)


def test_shards_hold_whole_runs_of_the_network(generator):
    made = load_generator(generator)
    assert batch.shard_size(made) % made.batch_size == 0
    assert batch.shard_size(made, 1) == made.batch_size
    request = batch.Request("", 5, 0, 2)
    assert [request.rows(i) for i in range(len(request.names))] == [slice(0, 2), slice(2, 4), slice(4, 5)]


@pytest.mark.parametrize("family", registry.names("models"))
def test_samples_of_every_kind_are_columns(family, tmp_path):
    module = registry.load("models", family)
    modality = registry.modalities(module)[0]
    spec = image_spec((1, 32, 32), ("cat", "dog")) if modality == "image" else tiny_spec(kind_of(modality))[0]
    if spec.given:
        pytest.skip("makes samples of what it is given: never a million")
    network = module.Config(**{name: 4 for name in ("width", "latent_dim") if name in module.Config.model_fields})
    save_generator(tmp_path / "g", module.build(network, spec).generator, network=network, spec=spec)
    assert fill(tmp_path / "g", tmp_path / "out", 5).exit_code == 0
    table = pq.read_table(tmp_path / "out")
    assert table.num_rows == 5
    shown = load_generator(tmp_path / "g")
    assert table.to_pandas().equals(batch.table_of(shown, shown.sample(5), first=0).to_pandas())


def table_generator(folder, rows):
    """A generator that was not trained, of a table of these rows, and their samples."""
    spec, stored = table_spec(rows)
    module = registry.load("models", "ctgan")
    network = module.Config(width=4, latent_dim=4)
    save_generator(folder, module.build(network, spec).generator, network=network, spec=spec)
    return load_generator(folder), spec.kind.decode(spec.sample, "sample", torch.from_numpy(stored))


def test_shards_have_one_schema_whatever_is_missing_in_them(tmp_path):
    at = datetime.datetime(2020, 1, 1)
    rows = [{"note": "rare", "at": at + datetime.timedelta(seconds=0.5), "n": 1, "b": True}]
    rows += [{"note": None, "at": at, "n": None, "b": None}, {"note": None, "at": None, "n": 2, "b": False}]
    generator, samples = table_generator(tmp_path, rows)
    whole = batch.table_of(generator, {"sample": samples}, first=0)
    assert "null" not in map(str, whole.schema.types)
    for i in range(len(rows)):
        assert batch.table_of(generator, {"sample": samples[i : i + 1]}, first=i).schema == whole.schema


def test_columns_of_the_data_keep_their_names(tmp_path):
    rows = [{"index": 7 * i, "label": f"l{i}", "_index": 0.5 * i} for i in range(5)]
    generator, samples = table_generator(tmp_path / "table", rows)
    made = batch.table_of(generator, {"sample": samples}, first=10)
    assert made.column_names == ["__index", "index", "label", "_index"]
    assert made["__index"].to_pylist() == [*range(10, 15)]
    assert made["index"].to_pylist() == [7 * i for i in range(5)]
    spec = image_spec((1, 8, 8), attributes=("index", "sample"))
    module = registry.load("models", "mlp")
    network = module.Config(width=4, latent_dim=4)
    about = {"network": network, "spec": spec, "attributes": torch.tensor([[0.5, 2.0]])}
    save_generator(tmp_path / "images", module.build(network, spec).generator, **about)
    generator = load_generator(tmp_path / "images")
    made = batch.table_of(generator, generator.sample(3), first=0)
    assert made.column_names == ["_index", "index", "sample", "_sample"]
    assert made["sample"].to_pylist() == [2.0] * 3


@pytest.mark.pipeline
def test_a_cluster_makes_the_same_shards(generator, project):
    import ray

    from pipelines.cluster import start_local

    assert fill(generator, "here", 3000, "--rows-per-shard", 512).exit_code == 0
    words = ["sample", str(generator), "-n", "3000", "-o", "there", "--rows-per-shard", "512"]
    with start_local(2):
        environment = {"PYTHONPATH": str(ROOT), "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
        done = subprocess.run(
            [sys.executable, "-m", "pipelines.cli", *words],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stderr
    assert contents(project / "there") == contents(project / "here")
