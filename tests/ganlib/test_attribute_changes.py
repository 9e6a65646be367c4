"""Images whose attributes change by as much as is asked: the source, the family, and what is measured."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from ganlib import shards
from ganlib.config import DatasetConfig
from ganlib.data import unpaired
from ganlib.data._spec import Spec
from ganlib.game import Batch, Round
from ganlib.models import stargan
from ganlib.noise import Noise
from ganlib.sources import attribute_changes
from ganlib.sources._source import SourceError
from pipelines._stage import StageError
from pipelines.prepare import prepare

SMALL = {"width": 4, "blocks": 1, "discriminator_width": 4, "patch_levels": 1}


def save(folder, levels, start=0):
    """Grey images, one of each level."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, level in enumerate(levels, start):
        Image.fromarray(np.full((16, 16), level, dtype=np.uint8)).save(folder / f"{i}.png")


def table(folder, rows, header="path,age,height", name="attributes.csv"):
    (folder / name).write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n")


def items_of(raw, **config):
    source = attribute_changes.load(attribute_changes.Config(**config), raw)
    found = [item for part in source.parts for item in part()]
    assert len(found) == source.count
    return source, found


def test_changes_are_those_from_the_given_image_to_the_other(tmp_path):
    save(tmp_path / "train", range(12))
    save(tmp_path / "test", range(100, 105), start=12)
    table(tmp_path, [(f"{'train' if i < 12 else 'test'}/{i}.png", i * i, 3 * i) for i in range(17)])
    source, found = items_of(tmp_path, partners=3)
    assert (source.attributes, source.classes) == (("age", "height"), ())
    assert [item.split for item in found] == ["train"] * 36 + ["test"] * 5
    pairs = []
    for item in found:
        one, other = (int(name.rpartition("/")[2].removesuffix(".png")) for name in item.id.split(" -> "))
        assert item.attributes == (other**2 - one**2, 3 * (other - one))
        assert one != other
        assert [path.name for path in item.payload] == [f"{one}.png", f"{other}.png"]
        pairs.append((one, other))
    for place in (0, 1):
        images = sorted(pair[place] for pair in pairs)
        assert images == sorted([*range(12)] * 3 + [*range(12, 17)])
    assert np.sum([item.attributes for item in found[:36]], axis=0).tolist() == [0, 0]
    assert [item.id for item in items_of(tmp_path, partners=3)[1]] == [item.id for item in found]
    assert items_of(tmp_path, attributes=["height"])[0].attributes == ("height",)


def test_without_a_split_the_content_decides_and_copies_are_left_out(tmp_path):
    save(tmp_path / "faces", [*range(60), 7])
    table(tmp_path, [(f"faces/{i}.png", i) for i in range(61)], "path,age")
    source, found = items_of(tmp_path, test_share=0.3, partners=1)
    sides = {
        split: {name for item in found if item.split == split for name in item.id.split(" -> ")}
        for split in ("train", "test")
    }
    assert not sides["train"] & sides["test"]
    assert len(sides["train"] | sides["test"]) == 60
    assert any(note.endswith("left out: 1.") for note in source.notes)
    assert source.passed_over == {}


def test_an_image_without_attributes_and_a_row_without_an_image_are_rejects(tmp_path):
    save(tmp_path / "train", range(6))
    save(tmp_path / "test", range(100, 104), start=6)
    table(tmp_path, [*((f"{i}.png", i) for i in range(9)), ("gone.png", 1)], "path,age")
    _, found = items_of(tmp_path, partners=1)
    assert [(item.id, item.reason) for item in found if item.payload is None] == [
        ("attributes.csv, line 11: gone.png", "there is no such image"),
        ("test/9.png", "its attributes are not known"),
    ]


def test_a_damaged_image_is_one_reject_and_in_no_example(tmp_path):
    save(tmp_path / "train", range(6))
    save(tmp_path / "test", range(100, 104), start=6)
    table(tmp_path, [(f"{i}.png", i) for i in range(11)], "path,age")
    (tmp_path / "train/10.png").write_bytes((tmp_path / "train/0.png").read_bytes()[:45])
    source, found = items_of(tmp_path)
    assert [item.id for item in found if item.payload is None] == ["train/10.png"]
    assert len(found) == 6 * 4 + 4 + 1
    assert not any("10.png" in item.id for item in found[:-1])
    assert not any("without attributes" in note for note in source.notes)


def test_images_outside_of_the_folders_of_the_split_are_left_out(tmp_path):
    save(tmp_path / "train", range(6))
    save(tmp_path / "test", range(100, 104), start=6)
    save(tmp_path / "more", range(200, 205), start=10)
    table(tmp_path, [(f"{i}.png", i) for i in range(15)], "path,age")
    source, found = items_of(tmp_path, partners=1)
    assert len(found) == 10
    assert not any("more" in item.id for item in found)
    assert "Images outside of these folders, left out: 5." in source.notes


def test_rows_of_json_say_what_is_wrong(tmp_path):
    save(tmp_path, range(3))
    cases = {
        '{"path": "0.png", "age": null}': "None",
        '{"path": "0.png"}': "None",
        f'{{"path": "0.png", "age": {"9" * 400}}}': "9",
    }
    for row, found in cases.items():
        (tmp_path / "a.jsonl").write_text('{"path": "1.png", "age": 2}\n' + row + "\n")
        with pytest.raises(SourceError, match=f"a.jsonl: line 2: age: expected a finite number, found {found}"):
            items_of(tmp_path, table="a.jsonl")
    (tmp_path / "a.jsonl").write_text('{"path": "1.png", "age": 2}\n{"age": 3}\n')
    with pytest.raises(SourceError, match="images with attributes for"):
        items_of(tmp_path, table="a.jsonl")


@pytest.mark.parametrize(
    ("rows", "header", "config", "message"),
    [
        ([("0.png", 1)], "path,age", {"table": "ages.csv"}, r"source.table: .*ages.csv: no such file"),
        ([("0.png", 1)], "path,age", {"attributes": ["size"]}, r"attributes.csv: no column 'size'; it has: age"),
        ([("0.png", "old")], "path,age", {}, r"attributes.csv: line 2: age: expected a finite number, found 'old'"),
        ([("0.png", "inf")], "path,age", {}, r"line 2: age: expected a finite number, found 'inf'"),
        ([("other/0.png", 1)], "path,age", {}, r"none of its 1 rows names an image: .*no such image; mend the paths$"),
        (
            [(f"{i}.png", i) for i in range(3)],
            "path,age",
            {"test_share": 1e-9},
            r"0 images with attributes for testing",
        ),
    ],
)
def test_what_is_no_table_of_attributes_is_one_line(rows, header, config, message, tmp_path):
    save(tmp_path, range(3))
    table(tmp_path, rows, header)
    with pytest.raises(SourceError, match=message) as error:
        items_of(tmp_path, **config)
    assert "\n" not in str(error.value)


def test_prepared_changes_are_standardised(tmp_path):
    save(tmp_path / "raw", range(60))
    table(tmp_path / "raw", [(f"{i}.png", 20 + i) for i in range(60)], "path,age")
    source = {"name": "attribute_changes", "partners": 2, "test_share": 0.2}
    sample = {"kind": "unpaired", "resolution": [16, 16], "channels": 1}
    cfg = DatasetConfig.model_validate({"source": source, "sample": sample})
    (tmp_path / "raw/0.png").write_bytes(b"")
    cfg = cfg.model_copy(update={"max_reject_share": 0.2})
    prepare(cfg, tmp_path / "raw", tmp_path / "out")
    spec = shards.read_spec(tmp_path / "out")
    assert (spec.attributes, spec.classes) == (("age",), ())
    assert spec.attribute_means == (0.0,), "no change is none"
    stored = shards.stored(tmp_path / "out", "train")
    levels = [stored[name][: len(stored["sample"])].double().mean((1, 2, 3)) for name in ("given", "sample")]
    torch.testing.assert_close(stored["attributes"][: len(levels[0])][:, 0].double(), levels[1] - levels[0])
    (tmp_path / "raw/attributes.csv").write_text("path,age\n0.png,1\n1.png,2\n")
    with pytest.raises(StageError, match="images with attributes for"):
        prepare(cfg, tmp_path / "raw", tmp_path / "other")
    assert not (tmp_path / "other").exists()


# -- the family ----------------------------------------------------------------------------------------------------


def spec_of(attributes=("age", "height")):
    counts = {"train": 40, "test": 40}
    return Spec(unpaired.Config(resolution=(16, 16), channels=1), "unpaired", (), counts, "", attributes)


def game_of(**network):
    torch.manual_seed(0)
    return stargan.build(stargan.Config(**SMALL | network), spec_of())


def test_columns_are_named_once():
    with pytest.raises(ValueError, match="attributes: expected each once, found age again"):
        attribute_changes.Config(attributes=("age", "size", "age"))


def test_data_without_attributes_are_refused():
    with pytest.raises(ValueError, match="stargan changes attributes, and these data have none"):
        stargan.build(stargan.Config(**SMALL), spec_of(()))


def test_what_is_asked_changes_what_is_made():
    """Also through instance normalisation, which a plane of the condition would not pass."""
    game, images = game_of(), torch.rand(2, 1, 16, 16)
    asked = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    one = game.generator(images[:1].expand(2, -1, -1, -1), asked)
    assert (one[0] - one[1]).abs().max() > 1e-4
    assert one.shape == (2, 1, 16, 16)
    assert game.generator(torch.rand(1, 1, 21, 13), asked[:1]).shape == (1, 1, 21, 13)


def round_of(game, given, sample, asked):
    batch = Batch({"given": given, "sample": sample, "attributes": asked}, Noise(0, size=len(given)))
    deal = game.deal(batch)
    fake = game.generator(deal.inputs, deal.cond)
    real, made = (game.discriminator(x) for x in (deal.real, fake))
    return Round(game, deal, batch, deal.real, fake, real.logits, made.logits, real.features, made.features)


def test_terms_are_of_the_difference_to_the_given_image():
    game = game_of(jitter=False)
    given, sample, asked = torch.rand(3, 1, 16, 16), torch.rand(3, 1, 16, 16), torch.randn(3, 2)
    round = round_of(game, given, sample, asked)
    terms = {(term.player, term.name): term.fn(round) for term in game.terms}
    assert {len(cost) for cost in terms.values()} == {3}
    read = game.discriminator
    expected = (read(sample).features - read(given).features - asked).square().mean(1)
    torch.testing.assert_close(terms["discriminator", "attributes"], expected)
    expected = (read(round.fake).features - read(given).features - asked).square().mean(1)
    torch.testing.assert_close(terms["generator", "attributes"], expected)
    back = game.generator(game.generator(given, asked), -asked)
    torch.testing.assert_close(terms["generator", "cycle"], (back - given).abs().mean((1, 2, 3)))
    same = game.generator(given, torch.zeros(3, 2))
    torch.testing.assert_close(terms["generator", "identity"], (same - given).abs().mean((1, 2, 3)))


def test_the_judge_learns_changes_from_real_images_alone():
    """Attributes are the level of a half each."""
    game = game_of(discriminator_width=8, jitter=False)
    judge, before = game.others["judge"], [p.clone() for p in game.discriminator.parameters()]
    (fit,) = game.after
    optimizer = torch.optim.Adam(judge.parameters(), lr=2e-3)
    rng = torch.Generator().manual_seed(0)

    def batch(n):
        levels = torch.rand(2, n, 2, generator=rng) * 2 - 1
        images = levels[..., None, :, None].expand(2, n, 1, 2, 8).flatten(3)[..., None].expand(2, n, 1, 16, 16)
        data = {"given": images[0], "sample": images[1], "attributes": levels[1] - levels[0]}
        return Batch(data, Noise(0, size=n))

    for _ in range(150):
        optimizer.zero_grad()
        fit.loss(game, batch(32)).mean().backward()
        optimizer.step()
    assert fit.loss(game, batch(200)).mean() < 0.05
    assert all(torch.equal(one, other) for one, other in zip(game.discriminator.parameters(), before, strict=True))
    data = batch(50).data
    found = game.answers(data)
    assert found["judge_error"].mean() < 0.2
    assert found["attribute_error"].shape == (50,)
    unasked = game.answers({"given": data["given"]})
    assert "judge_error" not in unasked
    moved = game.answers({**data, "sample": data["given"]})["judge_error"]
    torch.testing.assert_close(moved, data["attributes"].abs().mean(1))


def test_other_families_of_translation_take_no_attributes():
    """They would translate from a domain into itself."""
    from ganlib.models import cut, cyclegan

    for family in (cut, cyclegan):
        layers = {"layers": (0,)} if family is cut else {}
        with pytest.raises(ValueError, match="attributes"):
            family.build(family.Config(**SMALL | layers), spec_of())
        family.build(family.Config(**SMALL | layers), dataclasses.replace(spec_of(), attributes=()))
