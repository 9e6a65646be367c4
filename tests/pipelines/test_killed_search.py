"""A search that is killed goes on where it was, with what it trained."""

from __future__ import annotations

import csv
import os
import signal
import sys

import pytest
from test_reliability import SHORT, read_until

pytestmark = pytest.mark.pipeline


@pytest.fixture(scope="module")
def project(checkout):
    """A copy of the project, ready for the stage `tune`."""
    project = checkout("search", ready=True)
    project.edit(SHORT)
    project.run("dvc", "repro", "init", "reference")
    return project


def looks(output: str) -> list[float]:
    """kimg of each line that a search printed of its trials."""
    return [float(line.split()[1]) for line in output.splitlines() if " kimg  quality/classifier.fd " in line]


def test_the_trials_of_a_killed_search_go_on(project, start):
    budget = {"tune.num_samples": 1, "tune.kimg": 8, "tune.report_kimg": 0.5, "tune.grace_kimg": 8}
    with project.edited(budget | {"tune.quality_samples": 64, "scale.workers_per_trial": 1}):
        process = start(sys.executable, "-m", "pipelines.tune")
        last = read_until(process, 8, looks)[-1]
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        output = project.run(sys.executable, "-m", "pipelines.tune")
    # there may be nothing left to look at: Ray's workers train on for a moment when their driver is gone
    assert all(kimg > last - 2 for kimg in looks(output)), "it began anew"
    with (project.folder / "outputs/tune/trials.csv").open() as table:
        (trial,) = csv.DictReader(table)
    assert float(trial["kimg"]) == pytest.approx(8, abs=0.1)


def test_trials_of_several_workers_each(project, start):
    """Each drives a Ray Train run of two workers, which hold both cores, from one rung to the next; killed on the way
    to the last, the search goes on."""
    budget = {"tune.kimg": 8, "tune.report_kimg": 0.5, "tune.grace_kimg": 3, "tune.reduction_factor": 4}
    # the first trial is the model as it stands, at the upper bound: the others learn more slowly
    space = {"params/models/dcgan.yaml:search": {"generator.lr": {"loguniform": [1e-6, 1e-3]}}, "tune.num_samples": 2}
    with project.edited(budget | space | {"tune.quality_samples": 64, "scale.workers_per_trial": 2}):
        process = start(sys.executable, "-m", "pipelines.tune")
        last = 0.0
        while last < 5.5:
            (last,) = read_until(process, 1, looks)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        output = project.run(sys.executable, "-m", "pipelines.tune")
    # there may be nothing left to look at: Ray's workers train on for a moment when their driver is gone
    assert all(kimg > last - 2 for kimg in looks(output)), "it began anew"
    assert "trained to 3 kimg before" in output
    with (project.folder / "outputs/tune/trials.csv").open() as table:
        trials = list(csv.DictReader(table))
    assert [trial["error"] for trial in trials] == ["", ""]
    ended = sorted(float(trial["kimg"]) for trial in trials)
    assert ended == pytest.approx([3, 8], abs=0.1)
