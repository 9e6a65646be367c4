"""Benchmarks are run by hand, and some where time is short: they must not have gone stale by then."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parent / "bench"


@pytest.mark.parametrize("name", sorted(path.stem for path in BENCH.glob("*.py")))
def test_it_can_be_imported(name, monkeypatch):
    monkeypatch.syspath_prepend(BENCH)
    before = sys.modules.pop(name, None)  # the names are plain, and others may have them
    try:
        assert importlib.import_module(name).__doc__
    finally:
        del sys.modules[name]
        if before is not None:
            sys.modules[name] = before


def test_the_one_for_gpus_runs_on_a_cpu():
    command = [sys.executable, BENCH / "gpu.py", "--cpu", "--cases", "dcgan28", "--seconds", "0.1", "--rounds", "1"]
    found = subprocess.run(command, capture_output=True, text=True, cwd=BENCH.parents[1])
    assert found.returncode == 0, found.stderr
    assert found.stdout.splitlines()[-1].startswith("| dcgan28 |")
