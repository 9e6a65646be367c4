"""Copies of params.yaml and of the folder `params`, and changes to them as a person makes them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

ROOT = Path(__file__).parent.parent


def copy_params(to: Path) -> None:
    shutil.copy(ROOT / "params.yaml", to)
    shutil.copytree(ROOT / "params", to / "params", dirs_exist_ok=True)


def params_file(folder: Path, key: str) -> Path:
    """The file of a key, which is `KEY` of params.yaml or `FILE:KEY`, as in DVC's `-S`."""
    file, colon, _ = key.partition(":")
    return folder / (file if colon else "params.yaml")


def edit_params(folder: Path, changes: dict[str, Any]) -> None:
    """Comments stay. A key that is not there is an error."""
    yaml = YAML()
    for key, value in changes.items():
        file = params_file(folder, key)
        content = section = yaml.load(file)
        *sections, leaf = key.rpartition(":")[2].split(".")
        for name in sections:
            section = section[name]
        assert leaf in section, f"{file} has no {key}"
        section[leaf] = value
        yaml.dump(content, file)
