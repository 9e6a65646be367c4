"""Have a Ray cluster's autoscaler bring GPUs, run a command once they are there, and let them go.

    python infra/ray/with_gpus.py [--timeout SECONDS] GPUS -- COMMAND...

A stage takes what the cluster has when it starts, so a cluster that grows on demand must be asked before. It is the one
that RAY_ADDRESS names (in a job, Ray sets it); of several that ask one cluster, the last one counts. The exit
status is the command's, or 1 if there is no cluster or the GPUs do not come.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import time

import ray
from ray.autoscaler.sdk import request_resources


def connect(address: str) -> None:
    """Connect to the cluster; an error at once where nothing listens, as Ray itself would try for a minute."""
    host, _, port = address.rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=5).close()
    ray.init(address=address, log_to_driver=False)


def wait_for_gpus(count: int, timeout_s: float) -> bool:
    """Ask for `count` GPUs and wait until the cluster has them; whether it does within `timeout_s`."""
    request_resources(bundles=[{"GPU": 1.0}] * count)
    deadline = time.monotonic() + timeout_s
    while (there := ray.cluster_resources().get("GPU", 0)) < count:
        if time.monotonic() > deadline:
            print(f"with_gpus: {there:g} of {count} GPUs after {timeout_s:g} s; see `ray status`", file=sys.stderr)
            return False
        time.sleep(1)
    return True


def run_command(command: list[str]) -> int:
    """Run the command, pass SIGTERM on to it, and return its status as a shell would."""
    with subprocess.Popen(command) as process:
        signal.signal(signal.SIGTERM, lambda *_: process.terminate())
        status = process.wait()
    return status if status >= 0 else 128 - status


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="with_gpus", description=__doc__.splitlines()[0])
    parser.add_argument("gpus", type=int, help="how many GPUs the command needs")
    parser.add_argument("--timeout", type=float, default=1800.0, help="seconds to wait for them")
    parser.add_argument("command", nargs="+", help="what to run, after --")
    asked = parser.parse_args(arguments)
    if asked.gpus < 1:
        parser.error(f"gpus: {asked.gpus}; at least 1 expected")
    address = os.environ.get("RAY_ADDRESS", "auto")
    try:
        connect(address)
    except (OSError, RuntimeError, ray.exceptions.RayError) as error:
        print(f"with_gpus: no Ray cluster at {address}: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    try:
        if not wait_for_gpus(asked.gpus, asked.timeout):
            return 1
        return run_command(asked.command)
    finally:
        request_resources(bundles=[])  # or idle nodes would stay for ever
        ray.shutdown()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
