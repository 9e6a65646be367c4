"""Training with Ray Train survives what happens to it, and ends with the same bits as if nothing had."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from budgets import NO_EXPORT
from test_pipeline import ran

pytestmark = pytest.mark.pipeline

KIMG = 16  # seconds of training, for something to happen in the middle
SHORT = NO_EXPORT | {
    "data": "digits",
    "reference.max_samples": 100,
    "reference.classifier.epochs": 2,
    "params/models/dcgan.yaml:batch": 64,
    "params/models/dcgan.yaml:network.width": 192,
    "train.kimg": KIMG,
    "train.report_kimg": 1,
    "train.checkpoint_kimg": 1,
    "train.quality_samples": 0,
    "tune.num_samples": 0,
    "evaluate.num_samples": 100,
    "evaluate.resamples": 10,
    "scale.num_workers": 2,
}


@pytest.fixture(scope="module")
def project(checkout):
    """A copy of the project, ready for the stage `train`."""
    project = checkout("reliability", ready=True)
    project.edit(SHORT)
    project.run("dvc", "repro", "tune")
    return project


def reports(output: str) -> list[float]:
    """kimg of each line printed."""
    return [float(line.split()[0]) for line in output.splitlines() if " kimg " in line and " examples/s " in line]


def run_train(project) -> subprocess.CompletedProcess[str]:
    """The stage `train`, with its two outputs apart."""
    command = [sys.executable, "-m", "pipelines.train"]
    return subprocess.run(command, cwd=project.folder, env=project.env, capture_output=True, text=True)


def read_until(process, count, found=reports) -> list[float]:
    """What is reported until so many reports have come."""
    output = ""
    while len(found(output)) < count:
        line = process.stdout.readline()
        assert line, f"it ended early:\n{output}"
        output += line
    return found(output)


def line_with(process, said: str) -> str:
    """The next line that says this."""
    for line in process.stdout:
        if said in line:
            return line
    raise AssertionError(f"it ended without a word of {said!r}")


def weights(project) -> bytes:
    return (project.folder / "outputs/train/generator/generator.safetensors").read_bytes()


def forget(project) -> None:
    for leftover in ("outputs/train", ".ganlib"):
        shutil.rmtree(project.folder / leftover, ignore_errors=True)
    (project.folder / "outputs/tune").mkdir(parents=True, exist_ok=True)
    (project.folder / "outputs/tune/best_params.yaml").write_text("{}\n")


AND_THEN = """
import runpy, signal
before = signal.getsignal(signal.SIGINT)
runpy.run_module("pipelines.train", run_name="__main__")
assert signal.getsignal(signal.SIGINT) == before, "Ray's handler is left, which starts Ray anew to abort what is over"
"""


@dataclass(frozen=True)
class Undisturbed:
    """What two runs, started at the same time and left alone, printed and made."""

    said: list[str]
    weights: bytes
    pictures: list[str]


@pytest.fixture(scope="module")
def undisturbed(project) -> Undisturbed:
    forget(project)
    command = [sys.executable, "-c", AND_THEN]
    merged = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    runs = [subprocess.Popen(command, cwd=project.folder, env=project.env, **merged) for _ in range(2)]
    said = [run.communicate(timeout=300)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], said
    pictures = sorted(file.name for file in (project.folder / "outputs/train/samples").iterdir())
    return Undisturbed(said, weights(project), pictures)


def test_of_two_runs_the_second_waits_and_finds_the_work_done(undisturbed):
    """The first may be orphaned: DVC is gone, which would have kept the second out."""
    (waited,) = [said for said in undisturbed.said if "is at this work; waiting for it to end" in said]
    (worked,) = [said for said in undisturbed.said if said != waited]
    assert reports(waited) == [], "it trained again"
    assert f"training to {KIMG:g} kimg; starting Ray on this machine\nRay is up; workers start: 2," in worked
    assert len(reports(worked)) == len(undisturbed.pictures) == KIMG


def both_workers_of(process) -> list[psutil.Process]:
    """Once there are two: one that was lost may still be awaited when reports of before are read."""
    for _ in range(120):
        if len(found := workers_of(process)) == 2:
            return found
        time.sleep(0.5)
    raise AssertionError(f"workers: expected two, found {found}")


def workers_of(process) -> list[psutil.Process]:
    found = []
    for one in psutil.Process(process.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # ended meanwhile, or a zombie
            found += [one] if "RayTrainWorker" in " ".join(one.cmdline()) else []
    return found


def test_a_killed_worker_is_replaced_and_then_a_hung_one(project, undisturbed, start):
    forget(project)
    project.env["RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"] = "15"  # instead of a minute
    process = start()
    read_until(process, 2)
    time.sleep(0.5)
    killed = both_workers_of(process)
    killed[1].kill()
    line_with(process, "training goes on from")
    read_until(process, 2)
    hung = both_workers_of(process)
    assert killed[1] not in hung
    hung[1].suspend()
    output, _ = process.communicate(timeout=300)
    del project.env["RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"]
    assert process.returncode == 0, output
    assert "training goes on from" in output
    assert reports(output)[-1] == pytest.approx(KIMG, abs=0.1)
    assert weights(project) == undisturbed.weights
    assert not psutil.pid_exists(hung[1].pid), "the hung worker is still there"


def test_a_run_that_is_killed_interrupted_and_terminated_goes_on(project, undisturbed, start):
    """The stage alone and below `dvc repro`, which needs no help; also where the newest checkpoint is damaged: the one
    before it is used."""
    forget(project)
    made = project.folder / "outputs"
    process = start("dvc", "repro", "train")
    read_until(process, 2)
    os.killpg(process.pid, signal.SIGKILL)  # DVC and all that it started
    process.communicate()
    assert not (made / "train").exists()
    time.sleep(3)  # Ray's workers train on for a moment when their driver is gone
    whole = project.folder.glob(".ganlib/runs/train-*/checkpoints/checkpoint-*/manifest.json")
    newest = sorted(whole)[-1].with_name("checkpoint.pt")
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)

    process = start("dvc", "repro", "train")
    assert line_with(process, ": checkpoint.pt is damaged").startswith(str(newest.parent))
    (kimg,) = read_until(process, 1)
    assert kimg > 1.5, "it began anew"
    os.killpg(process.pid, signal.SIGINT)  # what Ctrl-C does
    said, _ = process.communicate(timeout=120)
    assert process.returncode > 0, said
    line, of_dvc = [line for line in said.splitlines() if line and not reports(line)]  # nothing of Ray's
    assert line.startswith("ganlib: interrupted")
    assert of_dvc.startswith("ERROR: failed to reproduce 'train'")
    assert of_dvc.endswith(("exited with 130", "exited with -2"))  # the signal took DVC's shell too, where it is dash
    assert [p.name for p in made.iterdir() if "train" in p.name] == []

    process = start()
    (after,) = read_until(process, 1)
    assert after > kimg, "it began anew"
    process.terminate()  # what Slurm and Kubernetes send before they kill
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 143, said
    assert "ganlib: terminated; the same command goes on from what is kept" in said
    assert [p.name for p in made.iterdir() if "train" in p.name] == []

    output = project.run("dvc", "repro", "train")
    assert ran(output) == ["train"]
    assert all(kimg > after for kimg in reports(output)), "it began anew"
    assert " is resumed: " in output
    assert weights(project) == undisturbed.weights
    rows = (made / "train/stats.jsonl").read_text().splitlines()
    assert len(rows) == KIMG
    assert "up to date" in project.run("dvc", "status", "train")


def test_a_run_whose_ray_servers_are_gone_starts_again(project, undisturbed, start):
    forget(project)
    process = start()
    for server in ("gcs_server", "raylet"):
        read_until(process, 2)
        before = [one for one in psutil.Process(process.pid).children(recursive=True) if one.is_running()]
        next(one for one in before if one.name() == server and one.status() != psutil.STATUS_ZOMBIE).kill()
        assert line_with(process, "starting again") == f"lost: Ray's {server}; starting again from what is kept\n"
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert all(kimg > 1.5 for kimg in reports(output)), "it began anew"
    assert weights(project) == undisturbed.weights
    _, alive = psutil.wait_procs(before, timeout=20)
    assert not alive, "Ray's processes outlived it"


def test_divergence_is_one_line_and_nothing_is_left_half_done(project):
    forget(project)
    diverging = {"params/models/dcgan.yaml:loss": "wasserstein", "params/models/dcgan.yaml:generator.lr": 1e30}
    with project.edited(diverging):
        done = run_train(project)
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert "training diverged" in line
    assert [p.name for p in Path(project.folder / "outputs").iterdir() if "train" in p.name] == []
