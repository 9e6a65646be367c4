"""CTGAN: the law of its conditions, what is asked for is made, rows that are drawn by weight."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from runs import Kept
from specs import completed, packed_rows, tiny_folder
from test_identity import parameters
from typer.testing import CliRunner
from zoo import batches, game_of, kind_of, spec_of

from ganlib import shard_writer, shards
from ganlib.data import _kind, table
from ganlib.data._spec import Spec
from ganlib.export import load_generator, save_generator
from ganlib.loader import Loader
from ganlib.models import ctgan
from ganlib.noise import Noise
from ganlib.trainer import train
from pipelines import evaluate, reference
from pipelines._stage import EVALUATED, PREPARED, REFERENCE, TRAINED
from pipelines.cli import app
from pipelines.prepare import prepare

COUNTS = {("a", "x"): 60, ("a", "y"): 20, ("b", "x"): 4, ("b", "y"): 16}


@pytest.fixture(scope="module")
def two_columns():
    """A spec of two categories, their rows as networks see them, and the rows."""
    rows = [{"one": one, "two": two} for (one, two), count in COUNTS.items() for _ in range(count)]
    cfg = table.scan(table.Config(), rows)
    codes = np.stack([table.encode(cfg, row)["sample"] for row in rows])
    cfg = table.settle(cfg, [{"sample": codes}])
    spec = Spec(cfg, "table", (), {"train": len(rows), "test": 8}, "")
    return spec, table.decode(cfg, "sample", torch.from_numpy(codes)), rows


def test_the_joint_law_of_rows_and_conditions_is_the_papers(two_columns):
    """A column at random, its choice by the logarithm of its frequency, any row with that choice. Xu et al. 2019,
    section 4.3; here the row comes first."""
    spec, seen, rows = two_columns
    game = game_of("ctgan", spec)
    weights = game.weights({"sample": seen})
    conditions = ctgan._Conditions(ctgan.Config(), table.layout(spec.sample), len(rows))
    given_row = (seen[:, conditions.places].double() * conditions.chances) @ conditions.of_column.double().T
    joint = weights / weights.sum() * (given_row / given_row.sum(1, keepdim=True)).T
    frame = pd.DataFrame(rows)
    for column, name in enumerate(("one", "two")):
        counts = frame[name].value_counts()
        logs = np.log1p(counts)
        expected = 0.5 * (logs / logs.sum() / counts)[frame[name]].to_numpy()
        np.testing.assert_allclose(joint[column].numpy(), expected, rtol=1e-6)


def test_conditions_are_drawn_as_their_law_says(two_columns):
    spec, seen, rows = two_columns
    n = 200_000
    conditions = ctgan._Conditions(ctgan.Config(), table.layout(spec.sample), len(rows))
    chosen = conditions.of_rows(seen[:1].expand(n, -1), Noise(0, size=n).uniform(), True)
    assert chosen.sum(1).eq(1).all()
    chances = (seen[0, conditions.places].double() * conditions.chances).float()
    torch.testing.assert_close(chosen.mean(0), chances / chances.sum(), atol=0.004, rtol=0)
    asked = conditions.by_frequency(Noise(1, size=n).uniform())
    torch.testing.assert_close(asked.mean(0), conditions.shares.float() / 2, atol=0.004, rtol=0)


def test_both_players_are_conditioned_on_the_chosen_column():
    spec = spec_of("ctgan")
    game = game_of("ctgan", spec)
    (batch,) = batches(spec, n=16)
    deal = game.deal(batch)
    made = game.generator(deal.inputs, deal.cond)
    blocks = spec.kind.layout(spec.sample)
    for block in blocks:
        part = made[:, block.start : block.start + block.size]
        if block.kind == "choice":
            torch.testing.assert_close(part.sum(1), torch.ones(16))
    conditions = ctgan._Conditions(ctgan.Config(), blocks, spec.counts["train"])
    told = deal.cond > 0
    assert (made[:, conditions.places][told] == 1).all()
    assert told.sum(1).eq(1).all()
    assert (deal.real[:, conditions.places][told] == 1).all(), "the real row has what the condition says"


def test_a_row_is_judged_next_to_those_of_its_group():
    spec = spec_of("ctgan")
    game = game_of("ctgan", spec, group=2)
    (batch,) = batches(spec, n=4)
    deal = game.deal(batch)
    before = game.discriminator(deal.real, deal.cond)
    after = game.discriminator(torch.cat([deal.real[:1], deal.real[1:2] + 1, deal.real[2:]]), deal.cond)
    assert (after != before).tolist() == [True, True, False, False]
    assert game.group == 2


def test_labels_are_refused_in_one_line():
    spec = spec_of("ctgan")
    labelled = Spec(spec.sample, spec.modality, ("a", "b"), spec.counts, "")
    with pytest.raises(ValueError, match="conditioned on columns, not on labels"):
        game_of("ctgan", labelled)


def test_without_a_choice_there_is_no_condition():
    rows = [{"x": f"{i * i}.5"} for i in range(60)]
    cfg = table.scan(table.Config(), rows)
    cfg = table.settle(cfg, [{"sample": np.stack([table.encode(cfg, row)["sample"] for row in rows])}])
    spec = Spec(cfg, "table", (), {"train": 60, "test": 8}, "")
    game = game_of("ctgan", spec)
    assert game.weights is None
    inputs = game.ask({}, Noise(0, size=4), None)
    assert set(inputs) == {"latent", "uniform"}
    assert game.discriminator(game.generator(inputs)).shape == (4,)


# -- training by sampling: rows drawn by weight -------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory, two_columns):
    """The rows of two columns, prepared."""
    spec, _, rows = two_columns
    out = tmp_path_factory.mktemp("prepared")
    packed = packed_rows(spec, [table.encode(spec.sample, row) for row in rows])
    shard_writer.write(out, [packed], spec.parts, completed(spec), test_share=0.1, shard_mb=1, duplicates=True)
    return out


def first_column(parts):
    """Ten times as often where the first column has its second choice."""
    return 1 + 9 * parts["sample"][:, 1]


@pytest.mark.parametrize("memory_mb", [100.0, 1e-3], ids=["in memory", "streamed"])
def test_rows_are_drawn_by_weight(folder, memory_mb, monkeypatch):
    monkeypatch.setattr(shard_writer, "_GROUP_BYTES", 16 * 16)
    loader = Loader(folder, "train", batch=80, seed=0, memory_mb=memory_mb, weights=first_column)
    drawn = torch.cat([loader.batch_at(step)["sample"] for step in range(400)])
    stored = shards.read(folder, "train")["sample"]
    share = float((stored[:, 0] == 1).double().mean())
    assert float(drawn[:, 1].mean()) == pytest.approx(10 * share / (1 + 9 * share), abs=0.02)
    loader.close()


def test_weighted_rows_are_the_same_for_any_number_of_ranks_and_after_a_resume(folder):
    def batch(step, **share):
        loader = Loader(folder, "train", batch=32, seed=3, memory_mb=100.0, weights=first_column)
        found = loader.batch_at(step, **share)["sample"]
        loader.close()
        return found

    whole = batch(7)
    assert torch.equal(torch.cat([batch(7, rank=rank, world=2) for rank in (0, 1)]), whole)
    loader = Loader(folder, "train", batch=32, seed=3, memory_mb=100.0, weights=first_column)
    assert torch.equal([loader.batch_at(step)["sample"] for step in range(8)][-1], whole)
    loader.close()


# -- samples that a user asks for ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    spec = spec_of("ctgan")
    game = game_of("ctgan", spec)
    out = tmp_path_factory.mktemp("generator")
    save_generator(
        out, game.generator, network=ctgan.Config(latent_dim=4, width=4, discriminator_width=4, group=2), spec=spec
    )
    return out


def rows_of(generator, *conditions, n=60, **options):
    spec = generator.spec
    where = spec.kind.where(spec.sample, conditions) if conditions else None
    chunks = [spec.kind.quantise(spec.sample, chunk) for chunk in generator.stream(n, where=where, **options)]
    return spec.kind.present(spec.sample, "sample", torch.cat(chunks).numpy())


def test_rows_for_which_a_condition_holds(exported):
    generator = load_generator(exported)
    assert (rows_of(generator, "colour=red")["colour"] == "red").all()
    several = rows_of(generator, "colour=red", "member=True", "age<60", seed=3)
    assert len(several) == 60
    assert several["member"].all()
    assert (several["age"] < 60).all()
    again = rows_of(generator, "colour=red", "member=True", "age<60", seed=3, n=20)
    pd.testing.assert_frame_equal(again, several[:20])
    with pytest.raises(ValueError, match=r"where: \d+ of 50176 samples are so; expected at least one in a thousand"):
        rows_of(generator, "weight<48.42")


@pytest.mark.parametrize("other", [{"truncation": 0.5}, {"label": 0}, {"attributes": torch.ones(1)}])
def test_conditions_on_rows_go_with_no_other(exported, other):
    from pipelines.pyfunc import GeneratorModel

    generator, (name,) = load_generator(exported), other
    with pytest.raises(ValueError, match=f"^where: cannot be combined with {name}$"):
        rows_of(generator, "colour=red", **other)
    assert len(rows_of(generator, "colour=red", **dict.fromkeys(other))) == 60
    model = GeneratorModel()
    model.generator = generator
    with pytest.raises(ValueError, match=r"^(where: cannot be combined with|label:) "):
        model.predict(None, None, {"where": ["colour=red"], name: [1.0] if name == "attributes" else other[name]})


def test_a_stream_is_the_same_in_any_chunks(exported):
    generator = load_generator(exported)
    pd.testing.assert_frame_equal(rows_of(generator, batch=7), rows_of(generator, batch=60))


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_the_command_writes_rows(exported, tmp_path, suffix):
    out = tmp_path / f"rows.{suffix}"
    arguments = ["sample", str(exported), "-n", "5000", "--where", "colour=red", "-o", str(out)]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    rows = pd.read_csv(out) if suffix == "csv" else pd.read_parquet(out)
    assert list(rows) == ["weight", "age", "children", "colour", "member", "since"]
    assert len(rows) == 5000
    assert (rows["colour"] == "red").all()
    assert rows["age"].dtype == "int64"
    assert rows["member"].dtype == bool
    wrong = CliRunner().invoke(app, ["sample", str(exported), "--where", "color=red", "-o", str(out)])
    assert wrong.exit_code == 1
    assert "no column 'color' (did you mean 'colour'?)" in wrong.output


def test_the_registered_model_returns_a_frame(exported):
    from pipelines.pyfunc import GeneratorModel, logged

    described, model = logged(exported), GeneratorModel()
    model.generator = load_generator(exported)
    made = model.predict(None, pd.DataFrame({"n": [2, 3], "seed": [1, 2]}))
    assert list(made) == ["weight", "age", "children", "colour", "member", "since"]
    assert [str(kind) for kind in made.dtypes] == ["float64", "int64", "Int64", "str", "bool", "str"]
    columns = json.loads(described["signature"].to_dict()["outputs"])
    assert [c["type"] for c in columns] == ["double", "long", "long", "string", "boolean", "string"]
    asked = model.predict(None, None, {"n": 7, "where": ["colour=red", "member=False"]})
    assert (asked["colour"] == "red").all()
    assert not asked["member"].any()
    assert len(asked) == 7


def test_from_a_file_to_what_is_measured(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, rows = table.tiny()
    raw = tmp_path / "data" / "raw" / "people"
    raw.mkdir(parents=True)
    pd.DataFrame(rows).to_csv(raw / "people.csv", index=False)
    dataset = {"source": {"name": "csv"}, "sample": {"kind": "table", "max_modes": 2}, "test_share": 0.4}
    network = {"latent_dim": 4, "width": 8, "discriminator_width": 8}
    params = parameters(dataset, "ctgan", network, {"penalties": {"r1": {"weight": 1.0}}})
    prepare(params.dataset, raw, PREPARED)
    reference.stage(params)
    kept = Kept(tmp_path)
    train(params, kept, prepared=PREPARED, reference=REFERENCE)
    assert "diversity" in kept.rows[-1]
    assert not any("nearest_neighbour_ratio" in row for row in kept.rows), "copies are no fault of a table"
    shutil.copytree(kept.folders[-1], TRAINED)
    evaluate.stage(params)
    metrics = json.loads((EVALUATED / "metrics.json").read_text())
    measured = {name for section in metrics.values() for name in section}
    assert {"fd", "copied", "quality", "shapes", "trends"} <= measured


def test_the_tiny_rows_are_prepared(tmp_path):
    spec = shards.read_spec(tiny_folder(kind_of("table"), tmp_path / "out"))
    assert spec.kind is _kind.load("table")
