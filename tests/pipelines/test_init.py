"""The stage `init`: a parent is found once, in the registry or in a folder, and traced."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file
from specs import image_spec

from ganlib import registry
from ganlib.checkpoint import save
from ganlib.warm_start import DISCRIMINATOR, save_discriminator
from pipelines import init, lineage, model_registry, tracking
from pipelines._stage import INIT, StageError
from pipelines.checkpoints import Checkpoints
from pipelines.storage import Storage
from pipelines.training import fingerprint, parent_folder
from pipelines.verify import _parent_in_store


def asking(params, address, **changes):
    return params.model_copy(update={"train": params.train.model_copy(update={"init": address, **changes})})


@pytest.fixture
def trained(train, project):
    """`trained(weights)` writes outputs/train, with the discriminator."""

    def write(weights):
        train(weights, {})
        spec = image_spec((1, 8, 8), tuple("0123456789"), {"train": 100, "test": 50}, "content")
        family = registry.load("models", "mlp")
        game = family.build(family.Config(width=16, latent_dim=8), spec)
        save_discriminator(project / "outputs/train", game.discriminator.state_dict())
        return project / "outputs/train"

    return write


@pytest.fixture
def registered(store, trained):
    """`registered(weights)` registers a version of `m`, and makes it the champion."""

    def register(weights, discriminator=True):
        folder = trained(weights)
        kept = folder / DISCRIMINATOR if discriminator else None
        with tracking.run(store, f"key {weights}", "name") as run:
            made = model_registry.register_generator(
                run, folder / "generator", "m", f"key {weights}", {}, discriminator=kept
            )
        model_registry.set_alias(store, made, "champion")
        return made

    return register


def parent():
    return json.loads((INIT / "parent.json").read_text())


def test_nothing_is_asked_for_by_default(params, project):
    init.stage(params)
    assert parent() == {"asked": None}
    assert parent_folder(params) is None
    assert lineage.facts(params).get("parent.name") is None


def test_an_alias_is_resolved_once(params, registered, store, prepared, capsys):
    first = registered(0)
    params = asking(params, "models:/m@champion")
    with pytest.raises(
        StageError, match=r"^outputs/init: not what train\.init names, models:/m@champion; run the stage"
    ):
        parent_folder(params)
    init.stage(params)
    assert "train.init: models:/m@champion is models:/m/1; kept" in capsys.readouterr().out
    about = parent()
    assert (about["asked"], about["name"]) == ("models:/m@champion", "models:/m/1")
    assert about["sha256"]["generator"] == first.tags[model_registry.DIGEST]
    assert about["sha256"]["discriminator"] == first.tags[model_registry.DISCRIMINATOR_DIGEST]
    assert (INIT / DISCRIMINATOR).read_bytes() == Path("outputs/train", DISCRIMINATOR).read_bytes()

    # any other address of it
    source = store.client.get_model_version("m", "1").source
    for address in (source, f"runs:/{first.run_id}/generator"):
        init.stage(asking(params, address))
        assert parent() == {"asked": address, "name": source, "sha256": about["sha256"]}
    init.stage(params)

    # the alias moves: the run, its name and its lineage stay; what it is called changes no name
    name, facts = fingerprint(params, prepared, "train"), lineage.facts(params)
    registered(1)
    assert (fingerprint(params, prepared, "train"), lineage.facts(params)) == (name, facts)
    assert facts["parent.name"] == "models:/m/1"
    by_number = asking(params, "models:/m/1")
    init.stage(by_number)
    assert fingerprint(by_number, prepared, "train") == name
    init.stage(params)
    assert parent()["name"] == "models:/m/2"
    assert fingerprint(params, prepared, "train") != name
    assert fingerprint(asking(params, None), prepared, "train") != name

    # and what was recorded is found again, until it is lost
    checks, notes = _parent_in_store(store, facts)
    assert ([check.verdict for check in checks], notes) == (["match", "match"], [])
    store.client.delete_model_version("m", "1")
    checks, notes = _parent_in_store(store, facts)
    assert [check.verdict for check in checks] == ["differs", "differs"]
    assert notes[0].startswith("parent: train.init: models:/m/1: not in sqlite:")


def test_a_version_without_a_discriminator_says_so(params, registered, capsys):
    registered(0, discriminator=False)
    init.stage(asking(params, "models:/m@champion"))
    assert "no discriminator is kept with it: that of the training starts from nothing" in capsys.readouterr().out
    assert parent()["sha256"]["discriminator"] == "none"
    assert lineage.facts(asking(params, "models:/m@champion"))["parent.discriminator.sha256"] == "none"


def test_folders_are_taken(params, trained, project):
    folder = trained(0)
    init.stage(asking(params, "outputs/train"))
    whole = parent()
    assert whole["name"] == "outputs/train"
    assert "none" not in whole["sha256"].values()
    init.stage(asking(params, str(folder / "generator")))
    assert parent()["sha256"] == {**whole["sha256"], "discriminator": "none"}

    # a run: its newest checkpoint
    made = project / "made"
    shutil.copytree(folder / "generator", made / "generator")
    save(made, {"discriminator": load_file(folder / DISCRIMINATOR), "rows": []})
    run = project / ".ganlib/runs/train-x"
    saved = Checkpoints(Storage(str(run / "checkpoints"))).save(made, kimg=1.0, score=None)
    init.stage(asking(params, ".ganlib/runs/train-x"))
    assert parent()["name"] == f".ganlib/runs/train-x/checkpoints/{saved.name}"
    assert parent()["sha256"] == whole["sha256"]


def test_what_is_not_there_is_one_line_and_nothing_is_written(params, registered, project):
    version = registered(0)
    (project / "empty/checkpoints").mkdir(parents=True)
    lost = next((project / "mlartifacts").rglob(f"{version.tags[model_registry.DISCRIMINATOR_DIGEST]}.safetensors"))
    for address, message in (
        ("models:/m@none", "models:/m@none: not in sqlite:.*no version has the alias 'none'"),
        ("models:/m-0123", "models:/m-0123: not in sqlite:"),
        ("runs:/0123/generator", "runs:/0123/generator: not in sqlite:"),
        ("models:/m/latest", "models:/m/latest: expected models:/NAME@ALIAS"),
        (
            "s3://bucket/model",
            "s3://bucket/model: expected an address that begins with models:/ or runs:/, or a folder",
        ),
        ("nowhere", "nowhere: no such generator; expected models:/NAME@ALIAS"),
        ("empty", "empty: no checkpoint yet"),
    ):
        with pytest.raises(StageError, match=rf"^train\.init: {message}") as error:
            init.stage(asking(params, address))
        assert "\n" not in str(error.value)
        assert not INIT.exists()
    lost.write_bytes(b"other weights")
    with pytest.raises(StageError, match=r"^train\.init: models:/m/1: its discriminator is damaged"):
        init.stage(asking(params, "models:/m/1"))
    lost.unlink()
    with pytest.raises(StageError, match=r"^train\.init: models:/m/1: its discriminator: "):
        init.stage(asking(params, "models:/m/1"))
    assert not INIT.exists()
