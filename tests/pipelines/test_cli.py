"""`ganlib …`: what it prints, and one line with exit status 1 for what a person can mend."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from params_files import copy_params, edit_params
from PIL import Image
from ruamel.yaml import YAML
from specs import image_spec, pair_spec, table_spec
from typer.testing import CliRunner
from zoo import config, game_of, spec_of

from ganlib.config import TrackingConfig, load_params, parse_params
from ganlib.export import Generator, load_generator, save_generator
from pipelines.cli import app
from pipelines.commands import _files

ROOT = Path(__file__).parents[2]


def ganlib(*words: str):
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def generator(train, project):
    train(0, {})
    return project / "outputs" / "train" / "generator"


def save(family, folder, spec=None):
    spec = spec or spec_of(family)
    save_generator(folder, game_of(family, spec).generator, network=config(family), spec=spec)
    return folder


def refused(result, *expected: str):
    assert result.exit_code == 1
    assert result.stderr.startswith("ganlib: ")
    assert len(result.stderr.splitlines()) == 1
    assert "Traceback" not in result.output
    for part in expected:
        assert part in result.stderr


def test_help_comes_at_once():
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "pipelines.cli", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert time.monotonic() - began < 5  # importing torch alone would show on a busy machine
    assert "doctor" in done.stdout
    heavy = "import sys, pipelines.cli; print([m for m in ('torch', 'mlflow', 'ray') if m in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", heavy], cwd=ROOT, capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[]"


def test_help_names_what_may_stand_in_place_of_a_command():
    assert "lineage [OPTIONS] (MODEL_URI | COMMAND" in ganlib("lineage", "--help").stdout
    assert "models [OPTIONS] (NAME | COMMAND" in ganlib("models", "--help").stdout


def test_params_check_prints_what_is_chosen(params):
    done = ganlib("params", "check", "--file", ROOT / "params.yaml")
    assert done.exit_code == 0
    printed = YAML(typ="safe").load(done.stdout)
    assert printed == load_params(ROOT / "params.yaml").chosen()
    assert printed["train"]["kimg"] == "auto"


@pytest.mark.parametrize(("redirection", "status"), [("| true", 1), (">&-", 0)])
def test_output_that_nobody_reads_is_no_error_to_tell(redirection, status):
    command = f"{sys.executable} -m pipelines.cli params check {redirection}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (status, "")


def test_params_check_prints_what_a_run_would_use(tmp_path):
    copy_params(tmp_path)
    edit_params(tmp_path, {"preset": "wgan_gp"})
    printed = ganlib("params", "check", "-f", tmp_path / "params.yaml").stdout
    shown = YAML(typ="safe").load(printed)
    assert (shown["preset"], list(shown["datasets"]), list(shown["models"])) == ("wgan_gp", ["mnist"], ["dcgan"])
    game = shown["models"]["dcgan"]
    assert game["loss"] == "wasserstein"
    assert game["generator"] == {
        "optimizer": "adam",
        "lr": 1e-4,
        "betas": [0, 0.9],
        "weight_decay": 0,
        "clip_norm": None,
    }
    assert game["search"]["network.width"] == {"choice": [24, 32]}
    assert parse_params(shown).game == load_params(tmp_path / "params.yaml").game


def test_params_check_names_the_fault(tmp_path):
    copy_params(tmp_path)
    wrong = tmp_path / "params.yaml"
    wrong.write_text(wrong.read_text().replace("margin: 0.0", "marjin: 0.0"))
    refused(ganlib("params", "check", "-f", wrong), "marjin", "did you mean 'margin'?")
    refused(ganlib("params", "check", "-f", tmp_path / "none.yaml"), "none.yaml")


def test_sample_writes_a_picture_that_follows_from_the_seed(generator):
    for output, seed in (("a.png", 0), ("b.png", 0), ("c.png", 1)):
        done = ganlib("sample", generator, "-n", 20, "--seed", seed, "-o", output)
        assert done.exit_code == 0, done.output
    a, b, c = (Image.open(name).tobytes() for name in ("a.png", "b.png", "c.png"))
    assert a == b
    assert a != c
    assert not list(Path().glob(".partial*"))


def test_sample_by_class_name_and_truncation(generator):
    assert ganlib("sample", generator, "--label", "3", "--truncation", 0.5, "-o", "a.png").exit_code == 0
    refused(ganlib("sample", generator, "--label", "cat"), "'cat' is not a class", "0, 1, 2")
    refused(ganlib("sample", generator, "--label", "11"), "--label: '11' is not a class", "index, #0 to #9")
    refused(ganlib("sample", generator, "--truncation", "-1"), "truncation")
    refused(ganlib("sample", generator, "-n", "0"), "n: expected a whole number from 1")
    refused(ganlib("sample", generator, "--seed", "-1"), "seed: expected a whole number from 0")


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("a.unknown", "a.unknown: expected .parquet, .npz, .png, .jpg or another picture; found .unknown"),
        ("a.h5", "found .h5"),  # Pillow knows it, and does not write it
        ("a.csv", "expected .parquet, .npz, .png"),
        ("a.mp4", "found .mp4"),
        ("missing/a.png", "missing: no such folder"),
        ("missing/a.npz", "missing: no such folder"),
        ("{index}.csv", "expected .png, .jpg or another picture; found .csv"),
        ("{index}", "found no suffix"),
        ("{label}.png", "{label} needs {index}"),
        ("{label}/a.parquet", "{label} needs {index}"),
    ],
)
def test_sample_checks_the_output_before_anything_is_drawn(generator, monkeypatch, output, expected):
    monkeypatch.setattr(Generator, "stream", lambda *_, **__: 1 / 0)
    refused(ganlib("sample", generator, "-o", output), "--output: ", expected)


def test_sample_writes_by_a_suffix_of_any_case(project):
    for family, outputs in (("ctgan", ("a.CSV", "a.PARQUET", "a.NPZ")), ("mlp", ("b.PNG", "{label}/{index}.Jpg"))):
        saved = save(family, project / family)
        for output in outputs:
            assert ganlib("sample", saved, "-n", 2, "-o", output).exit_code == 0, output
    assert pd.read_csv("a.CSV").equals(pd.read_csv(io.StringIO(pd.read_parquet("a.PARQUET").to_csv(index=False))))
    assert len(np.load("a.NPZ").files) == len(pd.read_csv("a.CSV").columns)
    assert len([*Path().glob("*/[01].Jpg")]) == 2


def test_columns_may_have_any_name_in_an_array_file(project):
    rows = [{"file": i / 7, "allow_pickle": i, "label": f"l{i}"} for i in range(20)]
    saved = save("ctgan", project / "ctgan", table_spec(rows)[0])
    assert ganlib("sample", saved, "-n", 5, "-o", "a.npz").exit_code == 0
    made = load_generator(saved)
    shown = made.present(made.sample(5)["sample"])
    with np.load("a.npz") as arrays:
        assert {name: arrays[name].tolist() for name in arrays.files} == shown.to_dict("list")


def test_folders_of_classes_have_names_of_their_own(project):
    saved = save("mlp", project / "mlp", image_spec((1, 8, 8), ("a/b", "a b", "a_b", "A b")))
    assert ganlib("sample", saved, "-n", 8, "-o", "out/{label}/{index}.png").exit_code == 0
    found = {file.parent.name: {*map(int, (f.stem for f in file.parent.iterdir()))} for file in Path().glob("out/*/*")}
    assert found == {"0_a_b": {0, 4}, "1_a b": {1, 5}, "2_a_b": {2, 6}, "3_A b": {3, 7}}


def test_two_processes_that_write_one_file_do_not_mix(tmp_path, monkeypatch):
    with _files._whole_file(tmp_path / "a.csv") as one:
        one.write_text("one")
        monkeypatch.setattr(os, "getpid", lambda: 1)
        with _files._whole_file(tmp_path / "a.csv") as other:
            other.write_text("other")
        assert (tmp_path / "a.csv").read_text() == "other"
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("a.csv", "one")]


def test_an_error_names_no_file_that_the_user_did_not(generator):
    for suffix in (".png", ".npz", ".parquet"):
        output = "n" * (255 - len(suffix)) + suffix  # the file written first has a longer name
        done = ganlib("sample", generator, "-n", 1, "-o", output)
        refused(done, f"--output: {output}: ", "File name too long")
        assert "partial" not in done.stderr


def test_sample_of_given_images_of_any_size(project, monkeypatch):
    saved = save("restore", project / "restore")
    for name in ("a.png", "b.png"):
        Image.new("RGB", (20, 12)).save(name)
    both = ["sample", saved, "--given", "a.png", "--given", "b.png", "-o", "both"]
    printed = json.loads(ganlib(*both, "--json").stdout)
    files = ["both/a.png", "both/b.png"]
    assert printed == {"output": "both", "n": 2, "seed": 0, "model": str(saved), "files": files}
    assert [line.partition(":")[0] for line in ganlib(*both).stdout.splitlines()] == files
    monkeypatch.setattr(Generator, "sample_any_size", lambda *_, **__: 1 / 0)
    refused(ganlib(*both, "--seed", "-1"), "seed: expected a whole number from 0")
    refused(ganlib(*both, "-n", "0"), "n: expected a whole number from 1")
    refused(ganlib(*both, "--where", "x=1"), "--given: it goes with a --seed")
    refused(ganlib(*both[:-1], "a.png"), "--output: a.png: expected a folder for 2 pictures, found a file")
    one = ["sample", saved, "--given", "a.png", "-o"]
    refused(ganlib(*one, "a.png"), "--output: a.png is given, and would be overwritten")
    refused(ganlib(*both[:-1], "."), "--output: a.png is given, and would be overwritten")
    refused(ganlib(*both, "--given", "none.png"), "--given: none.png: expected a picture, found nothing there")
    refused(ganlib(*both, "--given", "both"), "--given: both: expected a picture, found a folder")
    Path("bad.png").write_bytes(b"bad")
    refused(ganlib(*both[:-1], "none", "--given", "bad.png"), "--given: bad.png: not an image")
    assert not Path("none").exists()
    refused(ganlib("sample", saved, "-n", "4"), "--given: expected a file or more: this generator makes")
    refused(ganlib(*one, "c.npz"), "--output: c.npz: expected .png, .jpg or another picture; found .npz")
    refused(ganlib(*one, "missing/c.png"), "--output: missing: no such folder")
    refused(ganlib(*one, "{index}.png"), "--output: {index} is not known with --given")


def test_interpolate_checks_the_output_and_the_width_before_anything_is_drawn(generator, monkeypatch):
    monkeypatch.setattr(Generator, "interpolate", lambda *_, **__: 1 / 0)
    refused(ganlib("interpolate", generator, "-o", "a.jpg"), "--output: a.jpg: expected .gif, .webp, .apng, .mp4")
    refused(ganlib("interpolate", generator, "-o", "missing/a.gif"), "--output: missing: no such folder")
    done = ganlib("interpolate", generator, "--width", 100_000)
    assert (done.exit_code, "--width" in done.stderr, "2048" in done.stderr) == (2, True, True)


def test_sample_of_attributes_and_of_given_images(project):
    import torch

    from ganlib import registry

    def saved(family, spec, attributes=None, **network):
        module = registry.load("models", family)
        cfg = module.Config(**network)
        save_generator(
            project / family, module.build(cfg, spec).generator, network=cfg, spec=spec, attributes=attributes
        )
        return project / family

    counts = {"train": 9, "test": 9}
    conditional = saved("mlp", image_spec((1, 8, 8), (), counts, "", ("size", "tilt")), torch.rand(5, 2), width=8)
    assert (
        ganlib("sample", conditional, "--attribute", "tilt=1", "--attribute", "size=0.5", "-o", "a.png").exit_code == 0
    )
    refused(ganlib("sample", conditional, "--attribute", "tilt=1"), "size, tilt; found tilt")
    refused(ganlib("sample", conditional, "--attribute", "tilt=x"), "NAME=NUMBER")
    Image.linear_gradient("L").resize((40, 30)).save("given.png")
    refused(ganlib("sample", conditional, "--given", "given.png"), "takes no given parts")

    changing = save("stargan", project / "stargan")
    one = ("sample", changing, "--given", "given.png")
    for asked, name in ((0, "same.png"), (9, "older.png")):
        assert ganlib(*one, "--attribute", f"age={asked}", "-o", name).exit_code == 0
    same, older = (np.asarray(Image.open(name)) for name in ("same.png", "older.png"))
    assert same.shape == older.shape == (30, 40)
    assert (same != older).any()
    refused(ganlib(*one), "attributes: expected each of age")
    refused(ganlib(*one, "--attribute", "size=1"), "--attribute: expected each once: age; found size")

    translator = saved("pix2pix", pair_spec(1, 1, (32, 32), counts), width=4)
    assert ganlib("sample", translator, "--given", "given.png", "--given", "given.png").exit_code == 0
    refused(ganlib("sample", translator, "--given", "none.png"), "none.png")
    refused(ganlib("sample", translator, "--given", "mlflow.db"), "mlflow.db: not an image")
    refused(ganlib("sample", translator, "--given", "given.png", "--label", "1"), "--label: '1' is not a class")
    refused(ganlib("sample", translator, "--given", "given.png", "--truncation", "0.5"), "--given")
    refused(ganlib("sample", translator, "--given", "given.png", "--attribute", "age=1"), "the data have no attributes")
    before = Path("given.png").read_bytes()
    refused(ganlib("sample", translator, "--given", "given.png", "-o", "./given.png"), "--output: given.png is given")
    assert Path("given.png").read_bytes() == before
    refused(
        ganlib("sample", translator),
        "--given: expected a file or more: this generator makes samples of what it is given, source",
    )


def test_missing_values_of_a_table_are_no_words(project):
    saved = save("ctgan", project / "ctgan")
    assert ganlib("sample", saved, "-n", 300, "-o", "rows.npz").exit_code == 0
    assert ganlib("sample", saved, "-n", 300, "-o", "rows.csv").exit_code == 0
    rows = pd.read_csv("rows.csv")
    with np.load("rows.npz") as arrays:
        assert set(arrays["colour"]) == {"red", "green", "blue", ""}
        assert np.array_equal(arrays["colour"] == "", rows["colour"].isna())
        np.testing.assert_array_equal(arrays["children"], rows["children"].astype(float))


def test_a_film_overwrites_no_frame_that_is_given(project):
    saved = save("frames", project / "frames")
    Path("walk").mkdir()
    for number in range(4):
        Image.new("L", (16, 16), 60 * number).save(f"walk/{number}.png")
    before = Path("walk/3.png").read_bytes()
    refused(ganlib("sample", saved, "--given", "walk", "-o", "walk/3.png"), "--output: walk/3.png is given, and would")
    assert Path("walk/3.png").read_bytes() == before
    done = ganlib("sample", saved, "--given", "walk", "-o", "next.gif")
    assert done.exit_code == 0, done.output
    refused(ganlib("sample", saved, "--given", "next.gif", "-o", "next.gif"), "--output: next.gif is given")


def test_sample_of_what_is_not_there(project):
    refused(ganlib("sample", "nowhere"), "nowhere", "not a generator")
    refused(ganlib("sample", "models:/none@champion"), "models:/none@champion", "not in sqlite")
    (project / "mlflow.db").unlink()
    refused(ganlib("sample", "models:/none@champion"), "no such file")
    assert not (project / "mlflow.db").exists()


@pytest.fixture
def registered(generator, project):
    from pipelines import lineage, model_registry, tracking

    copy_params(project)
    store = tracking.open_store(TrackingConfig())
    tags = {f"lineage.{name}": value for name, value in lineage.facts(load_params()).items()}
    with tracking.run(store, "key", "name") as run:
        version = model_registry.register_generator(run, generator, "m", "key", tags)
    model_registry.set_alias(store, version, "champion")


def test_sample_from_the_registry(registered, generator):
    assert ganlib("sample", "models:/m@champion", "-n", 4, "-o", "a.png").exit_code == 0
    assert ganlib("sample", generator, "-n", 4, "-o", "b.png").exit_code == 0
    assert Image.open("a.png").tobytes() == Image.open("b.png").tobytes()


def test_a_version_that_this_code_cannot_read_is_named(registered, monkeypatch):
    """And not the scratch folder that it was copied to."""

    def newer(described):
        raise ValueError("expected format 1 or 2, found 3")

    monkeypatch.setattr("ganlib.export._spec_of", newer)
    refused(ganlib("sample", "models:/m@champion"), "models:/m@champion: not a generator: expected format 1 or 2, f")
    refused(ganlib("drift", "digits", "--model", "models:/m/1"), "models:/m/1: not a generator: expected format 1 or 2")


def test_load_gives_the_generator_of_a_version_and_of_a_folder(registered, generator):
    import ganlib as library

    of_version, of_folder = library.load("models:/m@champion", "cpu"), library.load(generator)
    assert of_version.spec == of_folder.spec
    made = of_version.present(of_version.sample(5, seed=3, label="7")["sample"])
    assert np.array_equal(made, of_folder.present(of_folder.sample(9, seed=3, label="7")["sample"])[:5])
    assert (made.dtype, made.shape) == (np.uint8, (5, 8, 8, 1))
    with pytest.raises(ValueError, match="nowhere: not a generator"):
        library.load("nowhere")
    with pytest.raises(RuntimeError, match="models:/m/2: not in sqlite"):
        library.load("models:/m/2")


def test_tables_are_whole_in_a_pipe(project, monkeypatch, capsys):
    from pipelines import drift
    from pipelines.commands import lineage
    from pipelines.lineage import Check
    from pipelines.model_registry import Version

    section, file = "a_space_with_a_long_name", "dvc.lock.outputs/" + "n" * 80
    figures = {"value": 1.0, "low": 0.5, "high": 1.5, "floor": 1.0}
    found = drift.Drift(False, "", 60, 60, 0, {section: {"memorisation_ratio_of_all": figures}})
    copy_params(project)
    monkeypatch.setattr(drift, "measure_drift", lambda *_: found)
    saved = save("mlp", project / "mlp")
    assert f"{section}.memorisation_ratio_of_all" in ganlib("drift", "digits", "--model", saved).stdout
    lineage._report(Version("m", 1, {}), [Check(file, "a", "a")], [], "here", False)
    assert file in capsys.readouterr().out


def verdicts(done):
    return {line.split()[1]: line.split()[-2] for line in done.stdout.splitlines() if line.startswith("│")}


def test_lineage_tells_what_has_changed(registered, project):
    done = ganlib("lineage", "models:/m@champion")
    assert done.exit_code == 0, done.output
    # there is no Git here, and what is not known matches nothing
    assert verdicts(done)["params.sha256"] == "match"
    assert {fact for fact, verdict in verdicts(done).items() if verdict == "unknown"} >= {"git.sha", "git.dirty"}
    assert "differs" not in done.stdout
    changed = (project / "params.yaml").read_text().replace("seed: 0", "seed: 1")
    (project / "params.yaml").write_text(changed)
    (project / "dvc.lock").write_text(
        "stages:\n  prepare:\n    cmd: x\n    outs:\n    - {path: data/prepared, md5: ab}\n"
    )
    done = ganlib("lineage", "models:/m/1")
    assert done.exit_code == 1
    differing = {fact for fact, verdict in verdicts(done).items() if verdict == "differs"}
    assert differing == {"params.sha256", "dvc.data/prepared", "dvc.lock.prepare"}


def test_lineage_names_dvcs_experiment_and_what_no_commit_holds(registered, project, monkeypatch):
    from pipelines import lineage, model_registry, tracking

    for command in ("init -q", "add params.yaml params", "-c user.name=x -c user.email=x@y commit -qm x"):
        subprocess.run(["git", *command.split()], check=True)
    with (project / "params.yaml").open("a") as file:
        file.write("\n")
    here = lineage.facts(lineage_params := load_params())
    assert (here["git.dirty"], lineage_params.seed) == ("true", 0)
    monkeypatch.setenv("DVC_EXP_NAME", "rimed-farl")
    monkeypatch.setenv("DVC_EXP_BASELINE_REV", here["git.sha"])
    exp = lineage.facts(lineage_params)
    assert (exp["dvc_exp_name"], exp["dvc_exp_baseline"]) == ("rimed-farl", here["git.sha"])
    store = tracking.open_store(TrackingConfig())
    version = model_registry.version_by_uri(store, "models:/m/1")
    model_registry.tag_version(store, version, {f"lineage.{name}": value for name, value in here.items()})
    done = ganlib("lineage", "models:/m/1")
    assert verdicts(done)["git.dirty"] == "changed"
    assert verdicts(done)["git.sha"] == "match"
    assert "files were changed that no commit holds" in done.stdout
    assert "here files are changed, too" in done.stdout
    model_registry.tag_version(store, version, {"lineage.dvc_exp_name": "rimed-farl"})
    assert "experiment rimed-farl, which holds what -S changed: not here" in ganlib("lineage", "models:/m/1").stdout
    subprocess.run(["git", "update-ref", "refs/exps/ab/cdef/rimed-farl", "HEAD"], check=True)
    assert f"-S changed: {here['git.sha']}" in ganlib("lineage", "models:/m/1").stdout


def test_lineage_shows_what_looks_like_markup(registered, project):
    from pipelines import model_registry, tracking

    store = tracking.open_store(TrackingConfig())
    version = model_registry.version_by_uri(store, "models:/m/1")
    model_registry.tag_version(store, version, {"lineage.dvc.x": "[/x]"})
    done = ganlib("lineage", "models:/m/1")
    assert (done.exit_code, verdicts(done)["dvc.x"]) == (1, "differs")
    assert "[/x]" in done.stdout


REASON = "better than version 2: classifier.fd 11.43 against 12.8, difference -1.37 in [-1.6, -1.1] (lower is better)"


@pytest.mark.parametrize(("terminal", "width"), [(False, 80), (True, 150), (True, 80), (True, 40)])
def test_a_table_of_versions_cuts_nothing(terminal, width, monkeypatch, capsys):
    from pipelines.commands.models import _print_table

    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm")  # Rich takes a dumb one for 80 columns
    monkeypatch.setenv("TTY_COMPATIBLE", "1" if terminal else "0")
    row = {"model": "ganlib-mnist", "version": 3, "aliases": "champion, previous_champion", "decision": "refused"}
    row |= {"metric": "classifier.fd", "value": 11.43, "registered": "2026-11-27 07:12", "reason": REASON}
    _print_table([row, row | {"version": 4, "value": None, "reason": ""}])
    out = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out)
    assert "…" not in out
    for name, value in row.items():
        if name != "reason":
            assert str(value) in out or width == 40
    cells = "".join(line.rsplit("│", 2)[-2].strip() for line in out.splitlines() if "│" in line)
    assert REASON.replace(" ", "") in cells.replace(" ", "")
    assert terminal == (REASON not in out)
    assert not terminal or max(map(len, out.splitlines())) <= width


def test_lineage_of_nothing(project):
    copy_params(project)
    refused(ganlib("lineage", "models:/none@champion"), "no such model")


def test_a_model_without_a_champion_is_told_from_no_model(project):
    from pipelines import tracking

    client = tracking.open_store(TrackingConfig()).client
    client.create_registered_model("m")
    for _ in range(2):
        client.create_model_version("m", "file:///nowhere")
    done = ganlib("sample", "models:/m@champion")
    refused(done, "no version has the alias 'champion'; m has versions 1, 2", "`ganlib models promote models:/m/2 ")
    assert "no such model" not in done.stderr


def test_dirty_tree_is_told_from_a_clean_one(project):
    from pipelines import lineage

    assert lineage._git() == {"git.sha": "none", "git.dirty": "none"}
    for command in ("init -q", "add mlflow.db", "-c user.name=x -c user.email=x@y commit -qm x"):
        subprocess.run(["git", *command.split()], check=True)
    (project / "dvc.lock").touch()
    clean = lineage._git()
    assert len(clean["git.sha"]) == 40
    assert clean["git.dirty"] == "false"
    (project / "grid.png").touch()  # as the README has users draw
    assert lineage._git()["git.dirty"] == "false"
    (project / "ganlib/models").mkdir(parents=True)
    (project / "ganlib/models/family.py").touch()
    assert lineage._git()["git.dirty"] == "true"


def test_doctor(project, monkeypatch):
    copy_params(project)
    (project / "dvc.yaml").touch()
    done = ganlib("doctor")
    assert done.exit_code == 1
    lines = done.stdout.splitlines()
    assert all(line.startswith(("ok ", "warn", "fail")) for line in lines)
    assert any(line.startswith("fail  not a DVC repository -> run `dvc init`") for line in lines)
    assert any(line.startswith("ok    tracking store") for line in lines)
    assert any("GiB free" in line for line in lines)

    text = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(text.replace("num_workers: auto", "num_workers: 99999"))
    assert "99999 workers need" in next(line for line in ganlib("doctor").stdout.splitlines() if "workers" in line)
    (project / "params.yaml").write_text("seed: x")
    assert any(line.startswith("fail  params.yaml: seed") for line in ganlib("doctor").stdout.splitlines())


def test_submit_passes_on_what_it_is_told(tmp_path, monkeypatch):
    from pipelines import submit

    asked = []
    monkeypatch.setattr(submit, "submit", lambda *words, **options: asked.append((words, options)) or 7)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    assert ganlib("submit").exit_code == 7
    assert (
        ganlib("submit", "--address", "http://x", "--no-follow", "--no-pull", "--", "repro", "-f", "train").exit_code
        == 7
    )
    every = {"pull": True, "push": True, "wait": True}
    assert asked == [
        ((tmp_path, submit.DEFAULT_ADDRESS, []), every),
        ((tmp_path, "http://x", ["repro", "-f", "train"]), {"pull": False, "push": True, "wait": False}),
    ]
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    refused(ganlib("submit"), str(tmp_path), "holds no dvc.yaml")
