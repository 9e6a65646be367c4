"""The stage `code`: what others depend on changes with the files that they use, and with no other."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from params_files import ROOT, copy_params

import ganlib
from pipelines.code import imported

PLUGINS = ROOT / "tests/ganlib/plugins"


class Copy:
    """A copy of the code, with what the stage wrote there last: `{output: {file: hash}}`."""

    def __init__(self, folder: Path):
        self.folder = folder
        for name in ("ganlib", "pipelines"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        copy_params(folder)
        self.written: dict[str, dict[str, str]] = {}
        self.run()

    def run(self) -> tuple[dict, dict]:
        """Run the stage: what was written before, and what is now."""
        env = {**os.environ, "PYTHONPATH": str(self.folder), "DVC_ROOT": str(self.folder)}
        subprocess.run([sys.executable, "-m", "pipelines.code"], cwd=self.folder, env=env, check=True)
        before, written = self.written, self.folder / "outputs/code"
        self.written = {
            path.relative_to(written).with_suffix("").as_posix(): json.loads(path.read_text())
            for path in written.rglob("*.json")
        }
        return before, self.written


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """One for all tests, each of which changes it further."""
    return Copy(tmp_path_factory.mktemp("copy"))


def test_stages_depend_on_the_files_that_they_use(copy):
    before = copy.written
    assert {"ganlib/sources/mnist.py", "ganlib/data/image.py"} < before["prepare"].keys()
    assert "ganlib/spaces/picture/efficientnet_lite0.py" in before["reference"]
    assert {"ganlib/metrics/fd.py", "ganlib/metrics/picture/ssim.py"} < before["evaluate"].keys()
    assert {"ganlib/models/dcgan.py", "ganlib/models/_layers.py"} < before["models/dcgan"].keys()
    assert not any("idx" in file or "pair" in file for file in before["prepare"])

    shutil.copytree(PLUGINS, copy.folder / "ganlib", dirs_exist_ok=True)
    for unused in ("sources/idx.py", "data/pair.py"):
        with (copy.folder / "ganlib" / unused).open("a") as file:
            file.write("# changed\n")
    before, after = copy.run()
    families = {f"models/{file.stem}" for file in (PLUGINS / "models").glob("*.py")}
    assert after.keys() - before.keys() == families
    assert {name: after[name] for name in before} == before


@pytest.mark.parametrize(
    ("changed", "stages"),
    [
        (("sources/mnist.py", "data/_classes.py"), {"prepare"}),
        (("metrics/new.py", "metrics/picture/new.py"), {"evaluate"}),
        (("data/tokenisers/words.py",), set()),  # of another kind
        (("spaces/picture/new.py", "models/dcgan.py"), {"reference", "models/dcgan"}),
    ],
)
def test_a_file_that_is_used_changes_what_depends_on_it(copy, changed, stages):
    for name in changed:
        with (copy.folder / "ganlib" / name).open("a") as file:
            file.write("# changed\n")
    before, after = copy.run()
    assert {name for name in before if after[name] != before[name]} == stages


def test_files_that_a_kind_loads_by_name_are_its_own():
    (root,) = ganlib.__path__
    used = imported([Path(root, "data/sequence.py")])
    assert {Path(root, "data/tokenisers/words.py"), Path(root, "data/_kind.py")} < {*used}
    assert Path(root, "data/image.py") not in used
