"""Programs and files that the tests of infra/ share."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

INFRA = Path(__file__).parents[2] / "infra"


@pytest.fixture(scope="session")
def tool():
    """`tool(name)` is the path of a program that a package of the extra `test` brings."""

    def find(name: str) -> str:
        found = shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
        assert found, f"{name} is missing; pip install -e '.[test]'"
        return found

    return find


@pytest.fixture(scope="session")
def load():
    """`load(path)` is the one document of a YAML file below infra/."""
    return lambda path: YAML(typ="safe").load((INFRA / path).read_text())
