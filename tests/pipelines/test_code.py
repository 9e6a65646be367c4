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


@pytest.fixture
def run(tmp_path):
    """Run the stage in a copy of the code; `{output: {file: hash}}`."""
    for name in ("ganlib", "pipelines"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    copy_params(tmp_path)

    def run():
        env = {**os.environ, "PYTHONPATH": str(tmp_path), "DVC_ROOT": str(tmp_path)}
        subprocess.run([sys.executable, "-m", "pipelines.code"], cwd=tmp_path, env=env, check=True)
        written = tmp_path / "outputs/code"
        return {
            path.relative_to(written).with_suffix("").as_posix(): json.loads(path.read_text())
            for path in written.rglob("*.json")
        }

    return run


def test_stages_depend_on_the_files_that_they_use(run, tmp_path):
    before = run()
    assert {"ganlib/sources/mnist.py", "ganlib/data/image.py"} < before["prepare"].keys()
    assert "ganlib/spaces/picture/efficientnet_lite0.py" in before["reference"]
    assert {"ganlib/metrics/fd.py", "ganlib/metrics/picture/ssim.py"} < before["evaluate"].keys()
    assert {"ganlib/models/dcgan.py", "ganlib/models/_layers.py"} < before["models/dcgan"].keys()
    assert not any("idx" in file or "pair" in file for file in before["prepare"])

    shutil.copytree(PLUGINS, tmp_path / "ganlib", dirs_exist_ok=True)
    for unused in ("sources/idx.py", "data/pair.py"):
        with (tmp_path / "ganlib" / unused).open("a") as file:
            file.write("# changed\n")
    after = run()
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
def test_a_file_that_is_used_changes_what_depends_on_it(run, tmp_path, changed, stages):
    before = run()
    for name in changed:
        with (tmp_path / "ganlib" / name).open("a") as file:
            file.write("# changed\n")
    after = run()
    assert {name for name in before if after[name] != before[name]} == stages


def test_files_that_a_kind_loads_by_name_are_its_own():
    (root,) = ganlib.__path__
    used = imported([Path(root, "data/sequence.py")])
    assert {Path(root, "data/tokenisers/words.py"), Path(root, "data/_kind.py")} < {*used}
    assert Path(root, "data/image.py") not in used
