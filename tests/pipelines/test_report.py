"""The report is one file without foreign resources; the model card says what was measured, and what was not."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from PIL import Image
from specs import tiny_folder, tiny_spec
from zoo import FAMILIES, config, game_of, spec_of

from ganlib import shards
from ganlib.data import _kind
from ganlib.evaluate import sample_for_evaluation
from ganlib.export import Generator, save_generator
from ganlib.health import HealthConfig
from ganlib.reference import Space
from pipelines._stage import StageError
from pipelines.evaluate import _check_finite, show_samples
from pipelines.model_card import markdown, model_card
from pipelines.pictures import (
    STEPS,
    TRUNCATIONS,
    interpolations,
    least_realistic,
    picture_of_samples,
    presented,
    truncated,
)
from pipelines.report import Exhibits, _curves, write_report

METRICS = {
    "classifier": {
        "coverage": {"value": 0.8, "low": 0.75, "high": 0.85, "floor": 0.9},
        "memorisation_ratio": {"value": 1.1, "low": 1.0, "high": 1.2, "floor": 1.0, "copy": 0.0},
        "copied": {"value": 0.0},
    }
}
ABOUT = {
    "samples": 100,
    "seed": 0,
    "intervals": {"confidence": 0.95, "halves": 50},
    "floor": "training examples",
    "spaces": {"classifier": {"code": "c0de"}},
    "metrics": {"coverage": {"better": "higher", "meaning": "Share of <reals> covered."}},
}
DATA = {"source": {"name": "toy", "about": "a <b>toy</b>"}, "splits": {"train": {"examples": 8}}, "notes": ["a note"]}


def test_a_figure_that_is_no_number_is_one_line():
    _check_finite(METRICS)
    broken = {"rows": {"tstr": {"value": 0.5, "low": float("nan"), "high": float("inf")}}}
    with pytest.raises(StageError, match=r"^rows\.tstr: expected finite numbers, found low nan, high inf$"):
        _check_finite(broken)


def generator_of(family, **data):
    spec = spec_of(family, **data)
    game = game_of(family, spec)
    game.generator.eval()
    return Generator(game, spec, {"model": family, "data": "toy", "kimg": 3.0, "seed": 1}, torch.device("cpu"))


ROWS = [{"kimg": kimg, "loss/generator": 2.0, "logit/gap": -1.0 if 2 <= kimg <= 4 else 1.0} for kimg in range(1, 7)]
ROWS[-1]["health/rollbacks"] = 1


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found, self.words = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)


def written(tmp_path, data=DATA, rows=ROWS, **changes):
    generator = generator_of("mlp")
    trained, prepared = tmp_path / "train", tmp_path / "prepared"
    save_generator(trained / "generator", generator.game.generator, network=config("mlp"), spec=generator.spec)
    prepared.mkdir()
    (prepared / "card.json").write_text(json.dumps(data))
    (trained / "stats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    exhibits = Exhibits()
    exhibits.add_picture("Samples", "Some.", Image.new("RGB", (4, 4)))
    exhibits.add_table(
        "Rows",
        "Some.",
        pd.DataFrame({"<name>": ["<anna>", None], "age": [1 / 3, float("nan")], "n": pd.array([1, None], "Int64")}),
    )
    facts = {
        "generator": generator,
        "card": model_card(generator, METRICS, DATA),
        "metrics": METRICS,
        "about": ABOUT,
        "exhibits": exhibits,
        "health": HealthConfig(patience=2, warmup_kimg=0),
        "trained": trained,
        "prepared": prepared,
    }
    write_report(tmp_path / "report.html", **{**facts, **changes})
    return (tmp_path / "report.html").read_text(encoding="utf-8")


def test_it_is_one_file_and_escapes_what_it_shows(tmp_path):
    html = written(tmp_path)
    tags = Tags(html)
    sources = [value for _, attrs in tags.found for name, value in attrs.items() if name in ("src", "href")]
    assert sources
    assert all(source.startswith(("data:image/png;base64,", "#")) for source in sources)
    assert {"script", "link", "b"}.isdisjoint(tag for tag, _ in tags.found)
    text = " ".join(tags.words)
    for expected in (
        "a <b>toy</b>",
        "Share of <reals> covered.",
        "0.75 to 0.85",
        "at 3 kimg: discriminator lost: logit/gap -1, since 2.0 kimg (3 reports)",
        "an earlier checkpoint after an alarm: 1 times",
        "a note",
        "mlp on toy",
    ):
        assert expected in text
    assert "built-in method" not in text
    anchors = {attrs["href"][1:] for tag, attrs in tags.found if tag == "a"}
    assert anchors <= {attrs.get("id") for _, attrs in tags.found}


def test_long_facts_of_the_data_are_folded(tmp_path):
    """A table's columns are pages of numbers."""
    columns = [{"name": f"column {i}", "modes": [0.125] * 20} for i in range(20)]
    html = written(tmp_path, data={"sample": {"columns": columns}, "licence": "MIT"})
    assert html.count("<details>") == 1
    folded = html[html.index("<summary>") :]
    assert folded.index("column 0") < folded.index("</summary>") < folded.index("column 19")


def test_the_same_inputs_give_the_same_bytes(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    assert written(tmp_path / "one") == written(tmp_path / "two")


def test_baselines_have_columns_where_they_are(tmp_path):
    assert "<th>copy</th>" not in written(tmp_path)
    again = tmp_path / "again"
    again.mkdir()
    html = written(again, about=ABOUT | {"copy": "what is given"})
    assert "<th>copy</th>" in html
    assert "Copy: what is given." in html


def test_rows_that_are_read_are_a_table(tmp_path):
    html = written(tmp_path)
    assert re.search(
        r"<th>&lt;name&gt;</th><th>age</th><th>n</th>.*<td>&lt;anna&gt;</td><td>0.333333</td><td>1</td>",
        html,
        re.DOTALL,
    )
    assert "<td></td><td></td><td></td>" in html, "what is missing is empty"


def test_curves_are_of_fits_too(tmp_path):
    rows = [{"kimg": 1.0, "fit_kimg": 1.0, "loss/pixels": 2.0}, {"kimg": 2.0, "loss/generator": 1.0}]
    pictures = [attrs["alt"] for tag, attrs in Tags(written(tmp_path, rows=rows)).found if tag == "img"]
    assert [alt for alt in pictures if "kimg" in alt] == ["loss/pixels by kimg", "loss/generator by kimg"]


def test_a_curve_of_one_report_is_a_point():
    (curve,) = _curves([{"kimg": 1.0, "loss/generator": 2.0}])
    picture = Image.open(io.BytesIO(base64.b64decode(curve["source"].partition(",")[2]))).convert("RGB")
    middle = picture.crop((180, 60, 320, 180))  # the legend is in a corner
    assert any(blue > red + 100 for _, (red, _, blue) in middle.getcolors())


def test_a_training_that_went_well_has_no_alarm(tmp_path):
    assert "No alarm in 6 reports." in written(tmp_path, health=HealthConfig(warmup_kimg=100))


def test_the_card_says_what_is_not_known():
    generator = generator_of("mlp")
    text = markdown(model_card(generator, METRICS, DATA))
    assert "The licence of the data is not stated" in text
    assert "1.1 (1 to 1.2; real data 1) times as far" in text
    assert "0.8 (0.75 to 0.85; real data 0.9) of test examples have a sample nearby (classifier)." in text
    assert "It is class-conditional: 3 classes." in text
    licensed = markdown(model_card(generator, {}, DATA | {"licence": "MIT"}))
    assert "Licence of the data: MIT." in licensed
    assert "## Memorisation audit\n\nNot measured for data of this kind." in licensed


@pytest.mark.parametrize("family", ["mlp", "stylegan2"])
def test_interpolations_end_at_samples(family):
    """Of every family whose inputs have points between them; what are keys stays as it is."""
    generator = generator_of(family)
    between = interpolations(generator, 2, seed=3)
    assert between.shape == (2 * STEPS, *generator.spec.shape)
    steps = (between[1:STEPS] - between[: STEPS - 1]).flatten(1).norm(dim=1)
    assert (steps < (between[STEPS - 1] - between[0]).norm()).all()
    assert steps.min() > 0


def test_what_cannot_be_shown_is_left_out():
    generator = generator_of("pix2pix")
    assert interpolations(generator, 1, 0) is None
    assert truncated(generator, 2, 0) is None
    table = generator_of("ctgan")
    assert interpolations(table, 1, 0) is None
    assert truncated(table, 2, 0) is None  # which its family refuses


def test_rows_of_truncation_have_the_same_seeds():
    generator = generator_of("mlp")
    found = truncated(generator, 3, 5).split(3)
    assert len(found) == len(TRUNCATIONS)
    for truncation, row in zip(TRUNCATIONS, found, strict=True):
        assert torch.equal(row, generator.sample(3, seed=5, truncation=truncation)["sample"])


def test_the_least_realistic_are_the_farthest_from_training_examples():
    space = SimpleNamespace(column="features", train=torch.tensor([[0.0, 0.0], [10.0, 0.0]]))
    features = torch.tensor([[0.0, 1.0], [10.0, 7.0], [9.0, 0.0], [5.0, 0.0]])
    assert least_realistic(features, SimpleNamespace(spaces={"of": space}), 2) == [1, 3]


@pytest.mark.parametrize(("family", "data"), [*((family, None) for family in FAMILIES), ("f_anogan", "table")])
def test_samples_of_every_kind_are_shown(family, data, tmp_path, monkeypatch):
    """What is looked at as pictures, what is read as tables; the same file for all."""
    spec = spec_of(family) if data is None else tiny_spec(_kind.load(data))[0]
    if spec.given or spec.kind.compare is not None:
        spec = shards.read_spec(tiny_folder(spec.kind, tmp_path / "prepared", spec.attributes))
    game = game_of(family, spec)
    game.generator.eval()
    generator = Generator(game, spec, {}, torch.device("cpu"))
    # as of labelled data, which are not written here
    monkeypatch.setattr("ganlib.evaluate._labels_of_test", lambda prepared, n: torch.arange(n) % len(spec.classes))
    samples = sample_for_evaluation(generator, tmp_path / "prepared", 12, seed=0, batch=6)
    features = samples["sample"][:].flatten(1)
    reference = SimpleNamespace(spaces={"flat": Space("flat", torch.nn.Flatten(), features + 1, features)})
    exhibits = Exhibits()
    picture_of_samples(generator, samples, tmp_path / "prepared", 0).save(tmp_path / "samples.png")
    show_samples(exhibits, tmp_path / "samples.png", generator, samples, {"flat": {"features": features}}, reference, 0)
    headings = [one["heading"] for one in exhibits.shown]
    assert (headings[0], headings[-1]) == ("Samples", "Least realistic")
    read = isinstance(presented(spec, samples["sample"][:2]), pd.DataFrame | list)
    assert [("rows" in one) for one in exhibits.shown] == [read and heading != "Distributions" for heading in headings]
    assert all(one["rows"] for one in exhibits.shown if "rows" in one)
    assert ("Interpolations" in headings) == (spec.kind.is_picture and not spec.given)
