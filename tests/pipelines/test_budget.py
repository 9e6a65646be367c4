"""Budgets that follow the data: `params/datasets/NAME.yaml: budget`, resolved by prepare, read by all that train."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from specs import image_spec, pair_spec

from ganlib.config import BudgetConfig, ConfigError, load_params, override
from ganlib.penalties import MOVE
from ganlib.trainer import plan
from pipelines._stage import StageError
from pipelines.budget import FEW, LEAST_KIMG, MOST_KIMG, resolve_budget, with_budget
from pipelines.training import fingerprint

AUTO = BudgetConfig(kimg="auto", augment="auto")
ROOT = Path(__file__).parents[2]


def spec_of(examples, shape=(3, 32, 32)):
    return image_spec(shape, counts={"train": examples, "test": 100})


def kimg_of(examples, shape=(3, 32, 32)):
    return resolve_budget(AUTO, spec_of(examples, shape))["kimg"]


def test_the_budget_grows_with_the_examples_between_its_bounds():
    found = [kimg_of(examples) for examples in (30, 300, 3_000, 5_000, 30_000, 1_000_000)]
    assert found == sorted(found)
    assert (found[0], found[-1]) == (LEAST_KIMG, MOST_KIMG)
    assert LEAST_KIMG < found[2] < MOST_KIMG


def test_the_budget_shrinks_with_the_side_of_large_images():
    found = [kimg_of(1_000_000, (3, size, size)) for size in (16, 32, 64, 128)]
    assert found == [MOST_KIMG, MOST_KIMG, MOST_KIMG / 2, MOST_KIMG / 4]
    assert kimg_of(1_000_000, (3, 16, 64)) == MOST_KIMG  # the geometric mean of the sides
    assert kimg_of(30, (3, 4096, 4096)) >= 1


def test_few_images_are_augmented_where_nothing_forbids_it():
    assert resolve_budget(AUTO, spec_of(FEW - 1))["augment"] == {"kind": "diffaugment"}
    assert resolve_budget(AUTO, spec_of(FEW))["augment"] is None
    assert resolve_budget(AUTO, pair_spec(1, 1, (16, 16)))["augment"] is None  # pairs would be torn
    fixed = resolve_budget(BudgetConfig(kimg=12.5), spec_of(300))
    assert (fixed["kimg"], fixed["augment"]) == (12.5, None)


@pytest.fixture
def unresolved(params):
    return params.model_copy(update={"train": params.train.model_copy(update={"kimg": "auto"})})


@pytest.fixture
def carded(prepared, tmp_path):
    """A prepared folder whose card has this budget."""

    def make(kimg, augment):
        for file in prepared.iterdir():
            if file.name != "card.json" and not (tmp_path / file.name).exists():
                (tmp_path / file.name).symlink_to(file)
        card = json.loads((prepared / "card.json").read_text())
        card["budget"] = {"kimg": kimg, "augment": augment, "because": "300 images"}
        (tmp_path / "card.json").unlink(missing_ok=True)
        (tmp_path / "card.json").write_text(json.dumps(card))
        return tmp_path

    return make


def test_what_is_open_comes_from_the_card_and_is_said(unresolved, carded, capsys):
    folder = carded(48.0, {"kind": "diffaugment"})
    with pytest.raises(ConfigError, match=r"train\.kimg: auto"):
        plan(unresolved, 1)
    found = with_budget(unresolved, folder)
    assert (found.train.kimg, found.game.augment.kind) == (48.0, "diffaugment")
    said = capsys.readouterr().out
    assert said.startswith(
        "budget: train.kimg 48, augment diffaugment (300 images; params/datasets/digits.yaml: budget)"
    )
    assert plan(found, 1).steps == 48_000 // unresolved.game.batch


def test_what_params_say_has_the_last_word(params, carded, capsys):
    folder = carded(48.0, {"kind": "diffaugment"})
    own = params.model_copy(update={"train": params.train.model_copy(update={"kimg": 7.0})})
    own = override(own, {"augment": {"kind": "ada"}})
    assert with_budget(own, folder) == own
    moving = override(own, {"augment": None, "penalties": {min(MOVE): {"weight": 1.0}}})
    assert with_budget(moving, folder).game.augment is None  # which build_game would refuse together
    assert capsys.readouterr().out == ""


def test_a_runs_name_follows_from_what_was_resolved(unresolved, carded):
    folder = carded(48.0, None)
    resolved = with_budget(unresolved, folder)
    said = unresolved.model_copy(update={"train": unresolved.train.model_copy(update={"kimg": 48.0})})
    assert fingerprint(resolved, folder, "train", folder / "none") == fingerprint(
        said, folder, "train", folder / "none"
    )
    other = with_budget(unresolved, carded(49.0, None))
    assert fingerprint(resolved, folder, "train", folder / "none") != fingerprint(
        other, folder, "train", folder / "none"
    )


def test_a_card_without_a_budget_is_an_error(params, tmp_path):
    with pytest.raises(StageError, match=r"card\.json: no budget .* run the stage prepare"):
        with_budget(params, tmp_path)


def test_the_default_runs_budget_is_what_it_was():
    """So its bits are: docs and dvc.lock speak of 180 kimg without augmentation."""
    shipped = load_params(ROOT / "params.yaml")
    found = resolve_budget(shipped.dataset.budget, image_spec((1, 28, 28)))
    assert (shipped.train.kimg, found["kimg"], found["augment"]) == ("auto", 180.0, None)


def test_prepare_says_and_keeps_the_budget(prepared):
    budget = json.loads((prepared / "card.json").read_text())["budget"]
    assert budget == {"kimg": 180.0, "augment": None, "because": "as the data set's file says"}
