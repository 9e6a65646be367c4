"""`ganlib lineage verify`: what a version was made of is checked out and hashed anew, and what differs is named."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from params_files import copy_params
from typer.testing import CliRunner

from ganlib import shards
from ganlib.config import TrackingConfig, load_params
from ganlib.data import table
from pipelines import lineage, model_registry, tracking
from pipelines import verify as verify_module
from pipelines.cli import app
from pipelines.prepare import prepare


def test_the_hash_of_the_data_is_computed_anew_from_the_examples(prepared, tmp_path):
    spec = shards.read_spec(prepared)
    assert shards.content_hashes(prepared) == {spec.content_hash}
    changed = shutil.copytree(prepared, tmp_path / "changed")
    shard = sorted(changed.glob("train-*.parquet"))[0]
    rows = pq.read_table(shard)
    one_less = rows.slice(1)
    pq.write_table(one_less, shard)
    assert spec.content_hash not in shards.content_hashes(changed)
    swapped = rows.set_column(
        rows.schema.get_field_index("sample"),
        rows.schema.field("sample"),
        rows["sample"].take([1, 0, *range(2, len(rows))]),
    )
    pq.write_table(swapped, shard)
    with pytest.raises(shards.DamagedShard, match="an example is not what its hash says"):
        shards.content_hashes(changed)


def test_repeated_rows_of_tables_are_hashed_as_they_were(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "data/raw/small"
    folder.mkdir(parents=True)
    (folder / "rows.csv").write_text("a,b\n" + "".join(f"{i % 7},{'xyz'[i % 3]}\n" for i in range(200)))
    section = {"source": {"name": "csv"}, "sample": {"kind": table.__name__.rpartition(".")[2]}}
    from ganlib.config import DatasetConfig

    prepare(DatasetConfig.model_validate(section), folder, tmp_path / "prepared")
    assert shards.read_spec(tmp_path / "prepared").content_hash in shards.content_hashes(tmp_path / "prepared")


@pytest.fixture
def made(project, train, prepared):
    """A project under Git and DVC, and a version that was made of it."""

    def run(*words):
        subprocess.run(words, check=True, capture_output=True)

    copy_params(project)
    train(0, {})
    shutil.rmtree("data/prepared", ignore_errors=True)
    shutil.copytree(prepared, "data/prepared")
    Path("dvc.yaml").write_text("stages:\n  prepare:\n    cmd: 'true'\n    outs: [data/prepared]\n")
    Path(".gitignore").write_text("/mlflow.db\n/mlartifacts\n/outputs\n/.ganlib\n")
    run("git", "init", "-q")
    for words in (("init", "-q"), ("commit", "-q", "--force")):
        run(sys.executable, "-m", "dvc", *words)
    run("git", "add", "-A")
    run("git", "-c", "user.name=x", "-c", "user.email=x@y", "commit", "-qm", "x")
    params, store = load_params(), tracking.open_store(TrackingConfig())
    tags = {f"lineage.{name}": value for name, value in lineage.facts(params).items()}
    with tracking.run(store, "key", "name") as run_:
        tracking.log_json(run_, params.chosen(), "params.json")
        generator = project / "outputs/train/generator"
        model_registry.set_alias(
            store, model_registry.register_generator(run_, generator, "m", "key", tags), "champion"
        )
    return store


def verify():
    done = CliRunner().invoke(app, ["lineage", "verify", "models:/m@champion", "--json"])
    report = json.loads(done.stdout)
    return done.exit_code, {fact["fact"]: fact["verdict"] for fact in report["facts"]}, report["notes"]


def test_the_path_of_the_cache_may_hold_any_character(tmp_path, monkeypatch):
    project = tmp_path / "a, b #1"
    project.mkdir()
    monkeypatch.chdir(project)
    for command in ("git init -q", "dvc init -q", "git -c user.name=x -c user.email=x@y commit -qm x"):
        words = command.split()
        subprocess.run([sys.executable, "-m", *words] if words[0] == "dvc" else words, check=True)
    with verify_module._checked_out("HEAD"):
        found = verify_module._run(Path(), sys.executable, "-m", "dvc", "cache", "dir")
    assert found == str(project / ".dvc/cache")


@pytest.mark.pipeline
def test_verify_checks_out_and_names_what_differs(made, project):
    status, verdicts, notes = verify()
    assert (status, notes, {*verdicts.values()}) == (0, [], {"match"})
    assert {"data, hashed anew", "generator's files", "git.sha", "params.sha256", "dvc.data/prepared"} <= {*verdicts}
    # what lies in the folder is not what is checked
    shutil.rmtree("data/prepared")
    (project / "params.yaml").write_text((project / "params.yaml").read_text().replace("seed: 0", "seed: 1"))
    assert verify()[0] == 0

    version = model_registry.version_by_uri(made, "models:/m/1")
    # DVC's experiment: its commit has what -S changed, and follows the one that was recorded
    model_registry.tag_version(made, version, {"lineage.dvc_exp_name": "calm-dove", "lineage.git.dirty": "true"})
    for parents, differing in ((["-p", "HEAD"], set()), ([], {"git.sha"})):
        made_of = ["git", "commit-tree", *parents, "-m", "experiment", "HEAD^{tree}"]
        commit = subprocess.run(made_of, check=True, capture_output=True, text=True).stdout.strip()
        subprocess.run(["git", "update-ref", "refs/exps/ab/cdef/calm-dove", commit], check=True)
        status, verdicts, _ = verify()
        assert (status, {fact for fact, verdict in verdicts.items() if verdict == "differs"}) == (
            len(differing),
            differing,
        )
    model_registry.tag_version(made, version, {"lineage.dvc_exp_name": "", "lineage.git.dirty": "false"})

    claimed = load_params().chosen()
    wrong = {"lineage.params.sha256": lineage.facts(load_params())["params.sha256"], "lineage.data.content_hash": "ab"}
    model_registry.tag_version(made, version, wrong)
    made.client.log_text(version.run_id, json.dumps(claimed), "params.json")
    shutil.rmtree(".dvc/cache")
    status, verdicts, notes = verify()
    assert status == 1
    assert {fact for fact, verdict in verdicts.items() if verdict == "differs"} == {
        "params.sha256",
        "data.content_hash",
        "data, hashed anew",
    }
    assert "params: seed: 1 when it was made, 0 in the commit" in notes
    assert any("not in DVC's cache; `dvc pull`" in note for note in notes)
    model_registry.tag_version(made, version, {"lineage.git.sha": "0" * 40})
    done = CliRunner().invoke(app, ["lineage", "verify", "models:/m@champion"])
    assert (done.exit_code, len(done.stderr.splitlines())) == (1, 1)
    assert "commit 000000000000 is not here" in done.stderr
