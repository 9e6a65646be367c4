"""A process whose servers are gone runs its command again, in its place."""

import signal
import subprocess
import sys
import time

import psutil
import pytest

# Servers and a worker that are made up: programs of those names which do nothing.
PROGRAM = """
import os, shutil, subprocess, sys, time
from pathlib import Path
from pipelines import guard
guard.LOOK_SECONDS, guard.STOPPED = 0.1, 5
folder = Path(sys.argv[1])
for name in ("gcs_server", "raylet", "worker"):
    if not (folder / name).exists():
        shutil.copy(shutil.which("sleep"), folder / name)
started = [subprocess.Popen([folder / name, "60"]) for name in ("gcs_server", "raylet", "worker")]
print("started", os.getpid(), *[one.pid for one in started], flush=True)
with guard.restarting("unused:1", local=True, at_most=2):
    while started[2].poll() is None:
        time.sleep(0.1)
print("the worker ended", flush=True)
for one in started:
    one.kill()
"""


@pytest.fixture
def running(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    yield process
    for child in psutil.Process(process.pid).children() if process.poll() is None else []:
        child.kill()
    process.kill()
    process.communicate()


def pids(process):
    """Of the program, and of its servers and its worker, as it says when it starts."""
    said = process.stdout.readline().split()
    assert said[0] == "started", said
    time.sleep(0.3)
    return [int(pid) for pid in said[1:]]


def test_lost_servers_are_a_new_start_and_in_the_end_a_line(running):
    for time_, server in enumerate(("gcs_server", "raylet", "gcs_server")):
        me, gcs, raylet, worker = pids(running)
        assert me == running.pid, "whoever waits for it would think that it ended"
        psutil.Process({"gcs_server": gcs, "raylet": raylet}[server]).kill()
        line = running.stdout.readline()
        if time_ < 2:
            assert line == f"lost: Ray's {server}; starting again from what is kept\n"
    assert line == "ganlib: Ray's gcs_server is gone; the same command goes on from what is kept\n"
    assert running.wait(10) == 1
    assert not any(psutil.pid_exists(pid) for pid in (gcs, raylet, worker))


def test_a_stopped_process_is_ended(running):
    *_, worker = pids(running)
    psutil.Process(worker).send_signal(signal.SIGSTOP)
    assert running.stdout.readline() == "the worker ended\n"
    assert running.wait(10) == 0
