"""params.yaml and the files of params/ have the form that DVC writes: `-S` changes the lines of what it names."""

from __future__ import annotations

import json
import subprocess
import sys
from difflib import ndiff

import pytest
from params_files import ROOT, copy_params
from ruamel.yaml import YAML

# DVC's overrides are Hydra's, read in a process of their own: Hydra keeps global state
APPLY = """
import json, sys
from pathlib import Path
from dvc.utils.cli_parse import to_path_overrides
from dvc.utils.hydra import apply_overrides
written = {}
for change in sys.argv[1:]:
    ((file, overrides),) = to_path_overrides([change]).items()
    shipped = Path(file).read_text(encoding="utf-8")
    apply_overrides(file, overrides)
    written[change] = file, shipped, Path(file).read_text(encoding="utf-8")
    Path(file).write_text(shipped, encoding="utf-8")
print(json.dumps(written))
"""
CHANGES = [
    "seed=1",
    "data=digits",
    "model=mlp",
    "preset=wgan_gp",
    "params/datasets/photos.yaml:sample.resolution=[32,32]",
    "params/models/dcgan.yaml:loss=hinge",
    "params/models/mlp.yaml:generator.lr=0.1",
    "params/presets/r3gan_imagenet64.yaml:batch=8",
    "reference.max_samples=100",
    "tune.num_samples=0",
    "train.kimg=400",
    "gate.margin=0.1",
    "tracking.registered_model=mine",
    "scale.num_workers=1",
    "scale.storage=/shared",
]


def leaves(section, before=""):
    for key, value in section.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{before}{key}.")
        elif not isinstance(value, dict | list) and "." not in key:
            yield f"{before}{key}", value


def lists(section, before=""):
    for key, value in section.items():
        if isinstance(value, dict) and "." not in key:
            yield from lists(value, f"{before}{key}.")
        elif isinstance(value, list) and "." not in key:
            yield f"{before}{key}", value


def unchanged():
    """For each file, an override that sets a key to what it is."""
    for file in sorted([ROOT / "params.yaml", *(ROOT / "params").rglob("*.yaml")]):
        key, value = next(leaves(YAML(typ="safe").load(file)), (None, None))
        if key is not None:
            yield f"{file.relative_to(ROOT)}:{key}={json.dumps(value)}"


def emptied():
    """For each list, an override that empties it. After some whose comment is on the key's line DVC joins two."""
    for file in sorted([ROOT / "params.yaml", *(ROOT / "params").rglob("*.yaml")]):
        for key, _ in lists(YAML(typ="safe").load(file)):
            yield f"{file.relative_to(ROOT)}:{key}=[]"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """What each override made of its file: `{override: (file, before, after)}`."""
    folder = tmp_path_factory.mktemp("params")
    copy_params(folder)
    command = [sys.executable, "-c", APPLY, *unchanged(), *CHANGES, *emptied()]
    return json.loads(subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout)


@pytest.mark.parametrize("change", [*unchanged()])
def test_a_flag_that_changes_nothing_writes_the_file_as_it_is(written, change):
    _, before, after = written[change]
    assert after == before


@pytest.mark.parametrize("change", CHANGES)
def test_one_flag_changes_one_line_and_no_comment(written, change):
    _, before, after = written[change]
    lines = [line for line in ndiff(before.splitlines(), after.splitlines()) if line[0] in "+-"]
    assert len(lines) == 2, f"{change} changed {lines}"
    key, _, value = change.rpartition(":")[2].partition("=")
    old, new = lines
    assert key.split(".")[-2 if "resolution" in key else -1] in new
    assert value.replace(",", ", ") in new
    assert old.partition("#")[2] == new.partition("#")[2]


@pytest.mark.parametrize("change", [*emptied()])
def test_a_list_can_be_emptied(written, change):
    _, before, after = written[change]
    expected, found = YAML(typ="safe").load(before), YAML(typ="safe").load(after)
    *path, key = change.partition(":")[2].removesuffix("=[]").split(".")
    section = expected
    for name in path:
        section = section[name]
    section[key] = []
    assert found == expected
