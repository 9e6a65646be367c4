"""The report is one file without foreign resources; the model card says what was measured, and what was not."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest
import torch
from PIL import Image
from zoo import config, game_of, spec_of

from ganlib.export import Generator, save_generator
from pipelines.model_card import markdown, model_card
from pipelines.report import STEPS, Pictures, interpolations, truncated, write_report

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


def generator_of(family, **data):
    spec = spec_of(family, **data)
    game = game_of(family, spec)
    game.generator.eval()
    return Generator(game, spec, {"model": family, "data": "toy", "kimg": 3.0, "seed": 1}, torch.device("cpu"))


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found, self.words = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)


def written(tmp_path, **changes):
    generator = generator_of("mlp")
    trained, prepared = tmp_path / "train", tmp_path / "prepared"
    save_generator(trained / "generator", generator.game.generator, network=config("mlp"), spec=generator.spec)
    prepared.mkdir()
    (prepared / "card.json").write_text(json.dumps(DATA))
    rows = [{"kimg": 1.0, "loss/generator": 2.0, "health/alarms": 0}, {"kimg": 2.0, "loss/generator": 1.0}]
    rows[1]["health/alarms"] = 2
    (trained / "stats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pictures = Pictures()
    pictures.add("Samples", "Some.", Image.new("RGB", (4, 4)))
    facts = {
        "generator": generator,
        "card": model_card(generator, METRICS, DATA),
        "metrics": METRICS,
        "about": ABOUT,
        "pictures": pictures,
        "neighbours": None,
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
        "at 2 kimg: 2",
        "a note",
        "mlp on toy",
    ):
        assert expected in text
    assert "built-in method" not in text
    anchors = {attrs["href"][1:] for tag, attrs in tags.found if tag == "a"}
    assert anchors <= {attrs.get("id") for _, attrs in tags.found}


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
    (tmp_path / "near.csv").write_text("fake,nearest,sample\n0,0,<anna>\n0,1,anne\n")
    html = written(tmp_path, neighbours=tmp_path / "near.csv")
    assert re.search(r"<td>&lt;anna&gt;</td>", html)


def test_the_card_says_what_is_not_known():
    generator = generator_of("mlp")
    text = markdown(model_card(generator, METRICS, DATA))
    assert "The licence of the data is not stated" in text
    assert "1.1 (1 to 1.2; real data 1) times as far" in text
    assert "0.8 (0.75 to 0.85; real data 0.9) of test examples have a sample nearby (classifier)." in text
    assert "Told one of 3 classes." in text
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
    assert truncated(generator_of("mlp"), 2, 0).shape == (2, 1, 8, 8)
