"""Every kind of data, and two that only tests have: what is encoded comes out of the shards, and out of the model."""

from __future__ import annotations

import importlib
import itertools
import json
import random
import shutil
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from runs import Kept, equal, without_clock
from safetensors.torch import load_file
from test_identity import parameters

from ganlib import checkpoint, registry, shard_writer, shards
from ganlib.build import build_game
from ganlib.config import ConfigError, DatasetConfig, override
from ganlib.data import _kind
from ganlib.data._spec import Spec
from ganlib.export import load_generator
from ganlib.shard_writer import pack
from ganlib.trainer import train
from pipelines import evaluate, reference
from pipelines._stage import EVALUATED, PREPARED, REFERENCE, TRAINED
from pipelines.prepare import prepare
from pipelines.pyfunc import GeneratorModel, logged

PLUGINS = Path(__file__).parent / "plugins"
KINDS = [*registry.names("data"), "toy_table", "toy_text"]


@pytest.fixture(scope="module", autouse=True)
def _plugins():
    """The files of `plugins/` are registered as those of `ganlib/`."""
    packages = [importlib.import_module(f"ganlib.{folder.name}") for folder in PLUGINS.iterdir()]
    for package in packages:
        package.__path__.append(str(PLUGINS / package.__name__.rpartition(".")[2]))
    yield
    for package in packages:
        package.__path__.pop()


FAMILIES = {"toy_table": "toy_table_gan", "toy_text": "toy_text_gan"}


@pytest.fixture(params=KINDS)
def kind(request):
    return _kind.load(request.param)


def prepared(kind, folder):
    cfg, _ = kind.tiny()
    source = {"name": "toy", "of": kind.name}
    prepare(DatasetConfig(source=source, sample=cfg, test_share=0.3), folder / "raw", folder / "out")
    return folder / "out"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    found = {}

    def folder(kind):
        if kind.name not in found:
            found[kind.name] = prepared(kind, tmp_path_factory.mktemp(kind.name))
        return found[kind.name]

    return folder


def test_what_goes_in_comes_out(kind, folders):
    folder = folders(kind)
    spec, (_, payloads) = shards.read_spec(folder), kind.tiny()
    expected = [kind.encode(spec.sample, payload) for payload in payloads]
    splits = [shards.read(folder, split) for split in shards.SPLITS]
    for name, part in spec.parts.items():
        column = torch.cat([split[name] for split in splits]).numpy()
        assert (column.dtype, column.shape[1:]) == (part.dtype, part.stored)
        assert sorted(row.tobytes() for row in column) == sorted(one[name].tobytes() for one in expected)


def test_samples_survive_the_way_to_networks_and_back(kind, folders):
    spec, stored = shards.read_spec(folders(kind)), shards.read(folders(kind), "train")
    for name, part in spec.parts.items():
        seen = kind.decode(spec.sample, name, stored[name])
        assert tuple(seen.shape[1:]) == part.shape
    back = kind.quantise(spec.sample, seen)
    assert back.dtype == stored["sample"].dtype
    torch.testing.assert_close(back, stored["sample"], equal_nan=True)
    shown = kind.present(spec.sample, "sample", back.numpy())
    assert len(shown) == len(back)
    assert kind.glance(seen).shape[0] == len(seen)
    columns = {name: kind.decode(spec.sample, name, stored[name][:6]) for name in spec.parts}
    kind.preview(spec.sample, columns, 3)
    json.dumps(kind.describe(spec.sample, {name: stored[name].numpy() for name in spec.parts}))


def test_what_is_given_is_taken_as_it_is_presented(kind, folders):
    spec, stored = shards.read_spec(folders(kind)), shards.read(folders(kind), "test")
    for name in spec.parts if kind.take is not None else spec.given:
        shown = kind.present(spec.sample, name, stored[name].numpy())
        shown = shown.to_dict("records") if isinstance(shown, pd.DataFrame) else shown
        taken = np.stack([kind.take(spec.sample, name, row) for row in shown])
        np.testing.assert_array_equal(taken, stored[name].numpy())
        if kind.name not in FAMILIES:  # the toys check nothing
            outside = [256 + np.zeros(shown[0].shape)] if isinstance(shown, np.ndarray) else []
            for strange in (None, 3, [[None]], {"no such": 1}, *outside):
                with pytest.raises(ValueError, match=r"expected|has no column"):
                    kind.take(spec.sample, name, strange)
    if kind.naive is not None:
        given = {name: kind.decode(spec.sample, name, stored[name]) for name in spec.given}
        assert tuple(kind.naive(spec.sample, given).shape[1:]) == spec.shape


def test_the_spec_is_the_same_after_json(kind, folders):
    """Layout and numbers of a kind live in its configuration, in order."""
    spec = shards.read_spec(folders(kind))
    again = Spec.from_json(spec.to_json())
    assert again == spec
    assert list(again.parts.items()) == list(spec.parts.items())
    assert again.sample.model_dump_json() == spec.sample.model_dump_json()


def test_order_of_the_source_changes_nothing(kind, folders, tmp_path, monkeypatch):
    _, payloads = kind.tiny()
    random.Random(0).shuffle(payloads)
    source = registry.load("sources", "toy")
    monkeypatch.setattr(source, "_items", lambda _: [source.Item("", payload) for payload in payloads])
    monkeypatch.setattr(shard_writer, "_SPILL_BYTES", 100)
    again = prepared(kind, tmp_path)
    one, other = shards.read_spec(folders(kind)), shards.read_spec(again)
    assert one.content_hash == other.content_hash
    for split in shards.SPLITS:
        for name, column in shards.read(again, split).items():
            torch.testing.assert_close(column, shards.read(folders(kind), split)[name], rtol=0, atol=0, equal_nan=True)


def test_a_kind_learns_names_of_all_and_numbers_of_training_rows(folders):
    table = _kind.load("toy_table")
    spec, train = shards.read_spec(folders(table)), shards.read(folders(table), "train")["sample"]
    assert spec.sample.categories == ("b", "g", "r")
    np.testing.assert_allclose(spec.sample.means, train[:, :-1].mean(0))
    assert (table.learns, _kind.load("image").learns) == (True, False)


def test_equal_rows_of_a_table_are_kept_each_in_its_place(folders):
    table = _kind.load("toy_table")
    folder = folders(table)
    columns = [shards.read(folder, split)["sample"] for split in shards.SPLITS]
    values, counts = torch.unique(torch.cat(columns), dim=0, return_counts=True)
    assert (len(values), sorted(counts.tolist())) == (60, [1] * 50 + [2] * 10)
    assert json.loads((folder / "card.json").read_text())["duplicates"] == 10
    adjacent = (columns[0][1:] == columns[0][:-1]).all(1)
    assert not adjacent.any(), "repetitions do not follow one another: the first rows are a fair sample"


def test_what_is_encoded_has_to_be_what_the_parts_say():
    image = _kind.load("image")
    cfg, _ = image.tiny()
    parts = image.parts(cfg)
    for wrong in (
        {"sample": np.zeros((1, 8, 8))},
        {"sample": np.zeros((8, 8), "u1")},
        {"other": np.zeros((1, 8, 8), "u1")},
    ):
        with pytest.raises(TypeError, match="but the parts are"):
            pack(parts, wrong)


@pytest.mark.parametrize(
    ("file", "kinds"),
    [
        ("image.py", {"image", "pair", "restoration", "unpaired", "video"}),
        ("_charts.py", {"table"}),
        ("_film.py", {"video"}),
        ("words.py", {"sequence"}),
    ],
)
def test_the_code_of_a_kind_is_that_of_what_it_imports(monkeypatch, file, kinds):
    codes = {name: _kind.load(name).code for name in KINDS}
    assert len(set(codes.values())) == len(KINDS)
    read = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read(path) + (b"#" if path.name == file else b""))
    assert {name for name, code in codes.items() if _kind._code(registry.load("data", name)) != code} == kinds


@pytest.mark.parametrize("name", ["mlp", "attributes", "pix2pix"])
def test_a_generator_of_format_1_makes_what_it_made(name):
    folder = Path(__file__).parent / "format1" / name
    generator, expected = load_generator(folder), load_file(folder / "expected.safetensors")
    if "given" in expected:
        made = generator.sample(3, given={"source": expected["given"]}, seed=1)["sample"]
    else:
        made = generator.sample(5, seed=1)["sample"]
    torch.testing.assert_close(made, expected["sample"], rtol=1e-4, atol=1e-5)


def test_presented_rows_are_what_a_user_knows(folders):
    table, text = _kind.load("toy_table"), _kind.load("toy_text")
    spec, stored = shards.read_spec(folders(table)), shards.read(folders(table), "test")["sample"].numpy()
    shown = table.present(spec.sample, "sample", stored)
    assert isinstance(shown, pd.DataFrame)
    assert shown.dtypes.astype(str).tolist()[:2] == ["float64", "float64"]
    assert set(shown["colour"]) <= set("rgb")
    spec, stored = shards.read_spec(folders(text)), shards.read(folders(text), "test")["prompt"].numpy()
    assert all(len(prompt) == 3 for prompt in text.present(spec.sample, "prompt", stored))


def played(name, folder, monkeypatch, network=None, **play):
    """`(parameters, what was reported)` after all stages from `prepare` to `evaluate` in a folder."""
    monkeypatch.chdir(folder)
    dataset = {"source": {"name": "toy", "of": name}, "sample": {"kind": name}, "test_share": 0.4}
    params = parameters(dataset, FAMILIES[name], network or {}, play)
    prepare(params.dataset, Path("raw"), PREPARED)
    reference.stage(params)
    kept = Kept(folder)
    train(params, kept, prepared=PREPARED, reference=REFERENCE)
    shutil.copytree(kept.folders[-1], TRAINED)
    evaluate.stage(params)
    return params, kept


@pytest.mark.parametrize("name", FAMILIES)
def test_from_raw_data_to_the_registered_model(name, tmp_path, monkeypatch):
    penalties = {"r1": {"weight": 0.1}, "gradient_penalty": {"weight": 0.1}, "dragan": {"weight": 0.1}}
    params, kept = played(name, tmp_path, monkeypatch, penalties=penalties)

    again = Kept(tmp_path / "again")
    train(params, again, prepared=PREPARED, reference=REFERENCE, resume=kept.folders[0])
    one, other = (without_clock(checkpoint.load(run.folders[-1])) for run in (kept, again))
    assert equal(one, other)

    metrics = json.loads((EVALUATED / "metrics.json").read_text())
    if name == "toy_table":
        assert {"fd", "kid", "copied", "coverage"} <= metrics["cells"].keys()
        assert metrics["cells"]["copied"]["value"] <= 0
    else:
        assert list(metrics) == ["counts", "letters", "samples"]
        assert list(metrics["letters"]) == ["blanks"]
        assert set(metrics["samples"]["l1"]) == {"value", "low", "high", "copy"}

    described, model = logged(TRAINED / "generator"), GeneratorModel()
    model.generator = load_generator(TRAINED / "generator")
    signature = described["signature"].to_dict()
    if name == "toy_table":
        made = model.predict(None, pd.DataFrame({"n": [2, 3], "seed": [1, 2]}))
        assert list(made) == ["weight", "height", "colour"]
        assert len(made) == 5
        columns = json.loads(signature["outputs"])
        assert [(column["name"], column["type"]) for column in columns] == [
            ("weight", "double"),
            ("height", "double"),
            ("colour", "string"),
        ]
    else:
        made = model.predict(None, ["abc", "dd"], {"seed": 1})
        assert len(made) == 2
        assert all(isinstance(text, str) for text in made)
        assert made == model.predict(None, ["abc", "dd"], {"seed": 1})
        with pytest.raises(ValueError, match="'xyz' is too long or has unknown letters"):
            model.predict(None, ["xyz"])


def test_images_are_no_tables(tmp_path):
    """A penalty or an augmentation that moves pictures is refused for what is none."""
    table = _kind.load("toy_table")
    spec = shards.read_spec(prepared(table, tmp_path))
    for play in ({"mirror": True}, {"augment": {"kind": "ada"}}, {"penalties": {"consistency": {"weight": 1}}}):
        dataset = {"source": {"name": "toy", "of": "toy_table"}, "sample": {"kind": "toy_table"}}
        with pytest.raises(ConfigError, match="is for images, these are toy_table"):
            build_game(parameters(dataset, "toy_table_gan", {}, play), spec)


FITS = {"first": {"kimg": 0.032, "lr": 1e-2}, "inverse": {"kimg": 0.048, "lr": 1e-2}}


@pytest.fixture(scope="module")
def with_fits(tmp_path_factory):
    """`(parameters, prepared folder, what was reported)` of a fit, a game and another fit."""
    dataset = {"source": {"name": "toy", "of": "toy_table"}, "sample": {"kind": "toy_table"}}
    params = parameters(dataset, "toy_table_gan", {"encoder": True}, {"fits": FITS})
    params = params.model_copy(
        update={"train": params.train.model_copy(update={"report_kimg": 0.016, "checkpoint_kimg": 0.016})}
    )
    folder = prepared(_kind.load("toy_table"), tmp_path_factory.mktemp("fits"))
    kept = Kept(tmp_path_factory.mktemp("kept"))
    train(params, kept, prepared=folder)
    return params, folder, kept


def test_fits_before_and_after_the_game_are_reported_in_one_line(with_fits):
    params, _, kept = with_fits
    assert [row["kimg"] for row in kept.rows] == pytest.approx([0.016 * i for i in range(1, 9)])
    kinds = ["fit" if "fit_kimg" in row else "game" for row in kept.rows]
    assert kinds == ["fit"] * 2 + ["game"] * 3 + ["fit"] * 3
    assert [row["game_kimg"] for row in kept.rows[2:5]] == pytest.approx([0.016, 0.032, 0.048])
    assert kept.rows[-1]["loss/inverse"] < kept.rows[-3]["loss/inverse"]
    assert params.budget_kimg == pytest.approx(0.128)
    assert "diversity" not in kept.rows[0]
    assert len(kept.folders) == len(kept.rows)


@pytest.mark.parametrize("done", [0, 1, 3, 4, 6], ids=["in a fit", "after it", "in the game", "after it", "in a fit"])
def test_killed_anywhere_and_resumed_gives_equal_bits(with_fits, tmp_path, done):
    params, folder, kept = with_fits
    again = Kept(tmp_path)
    train(params, again, prepared=folder, resume=kept.folders[done])
    assert len(again.rows) == len(kept.rows) - done - 1
    one, other = (without_clock(checkpoint.load(run.folders[-1])) for run in (kept, again))
    assert equal(one, other)


def test_a_fit_touches_its_own_module_alone(with_fits):
    states = [checkpoint.load(folder) for folder in with_fits[2].folders]
    changed = [
        {name for name in ("generator", "discriminator", "ema", "others/encoder") if not equal(a[name], b[name])}
        for a, b in itertools.pairwise(states)
    ]
    assert changed[0] == {"generator", "ema"}
    assert equal(states[1]["generator"], states[1]["ema"]), "the average starts from where the fit ended"
    assert changed[2] == changed[3] == {"generator", "discriminator", "ema"}
    assert changed[5] == changed[6] == {"others/encoder"}


def test_the_generator_of_before_the_game_is_kept(with_fits):
    folders = with_fits[2].folders
    assert [(folder / "before").is_dir() for folder in folders] == [False] * 2 + [True] * 6
    fitted, *kept = (
        load_file(folder / "generator.safetensors")
        for folder in [folders[1] / "generator", folders[2] / "before", folders[-1] / "before"]
    )
    for again in kept:
        assert equal(*({n: x for n, x in t.items() if not n.startswith("module ")} for t in (fitted, again)))
    assert load_generator(folders[-1] / "before").about["kimg"] == pytest.approx(0.032)


def test_what_was_made_before_the_game_is_a_baseline(tmp_path, monkeypatch):
    fits = {"first": {"kimg": 0.032, "lr": 1e-2}, "inverse": {"kimg": 0.016}}
    played("toy_table", tmp_path, monkeypatch, network={"encoder": True}, fits=fits)
    cells = json.loads((EVALUATED / "metrics.json").read_text())["cells"]
    assert set(cells["fd"]) == {"value", "low", "high", "floor", "before"}
    assert cells["fd"]["before"] != cells["fd"]["value"]
    assert "before the game" in json.loads((EVALUATED / "about.json").read_text())["before"]


def test_answers_are_exported_and_asked(with_fits):
    _, folder, kept = with_fits
    generator = load_generator(kept.folders[-1] / "generator")
    spec, stored = shards.read_spec(folder), shards.read(folder, "test")["sample"]
    rows = spec.kind.decode(spec.sample, "sample", stored)
    scores = generator.answer({"sample": rows}, batch=7)["score"]
    assert scores.shape == (len(rows),)
    expected = (generator.game.generator(generator.game.others["encoder"](rows)) - rows).square().mean(1)
    torch.testing.assert_close(scores, expected)
    early = load_generator(kept.folders[3] / "generator").answer({"sample": rows})["score"]
    assert scores.mean() < early.mean()
    with pytest.raises(ValueError, match="has no answers"):
        load_generator(Path(__file__).parent / "format1" / "mlp").answer({"sample": torch.zeros(1, 1, 8, 8)})


def test_the_registered_model_answers(with_fits, tmp_path):
    _, folder, kept = with_fits
    spec, stored = shards.read_spec(folder), shards.read(folder, "test")["sample"]
    mlflow.pyfunc.save_model(tmp_path / "model", **logged(kept.folders[-1] / "generator"))
    model = mlflow.pyfunc.load_model(str(tmp_path / "model"))
    assert model.metadata.metadata["answers"] == ["score"]
    rows = spec.kind.present(spec.sample, "sample", stored.numpy())
    scores = model.predict(rows, params={"answer": "score"})
    assert (scores.dtype, scores.shape) == (np.float32, (len(rows),))
    expected = load_generator(kept.folders[-1] / "generator").answer(
        {"sample": spec.kind.decode(spec.sample, "sample", stored)}
    )
    np.testing.assert_allclose(scores, expected["score"], rtol=1e-5)
    assert model.predict(rows[:0], params={"answer": "score"}).shape == (0,)
    assert len(model.predict(None, params={"n": 3})) == 3, "it still makes samples"
    with pytest.raises(ValueError, match="answer: 'scroe' is not one of this model's; known: score"):
        model.predict(rows, params={"answer": "scroe"})
    with pytest.raises(ValueError, match="is about examples: give it some"):
        model.predict(None, params={"answer": "score"})


def test_fits_are_those_of_the_family(with_fits):
    params, folder, _ = with_fits
    for fits, message in (
        ({}, "expected first, inverse, found none"),
        ({**FITS, "x": {"kimg": 1}}, "found first, inverse, x"),
    ):
        with pytest.raises(ConfigError, match=message):
            build_game(override(params, {"fits": fits}), shards.read_spec(folder))
    short = override(params, {"fits.first.kimg": 0, "fits.inverse.kimg": 0})
    kept = Kept(folder / "short")
    train(short, kept, prepared=folder)
    assert all("game_kimg" not in row and "fit_kimg" not in row for row in kept.rows)
