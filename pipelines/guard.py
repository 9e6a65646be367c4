"""Start a stage again when the servers of its Ray are gone: Ray itself waits and then ends without a message.

It also ends processes of this machine's Ray that are stopped for a minute: Ray Train notices hung workers, Tune none.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

from pipelines.background import background_thread
from pipelines.clean import sweep_scratch

__all__ = ["restarting"]

SERVERS = ("gcs_server", "raylet")
RESTARTS = "GANLIB_RESTARTS"
LOOK_SECONDS = 2.0
PATIENCE = 5
"""checks in a row at which a cluster's server does not answer"""
STOPPED = 30
"""checks in a row at which a process of this machine's Ray is stopped (SIGSTOP)"""


@contextmanager
def restarting(gcs_address: str, *, local: bool, at_most: int) -> Iterator[None]:
    """While in the block: if a server of this Ray dies, run this process's command again, in its place.

    The stage then goes on from what is kept. After `at_most` such restarts the process ends, with one line, instead.
    `local`: this process started the servers, so they are its children; else the cluster's GCS is asked to answer.
    """
    with background_thread(lambda over: _watch(over, gcs_address, local, at_most), "guard"):
        yield


def _watch(over: threading.Event, address: str, local: bool, at_most: int) -> None:
    me, ours, silent, stopped = psutil.Process(), set[psutil.Process](), 0, Counter[psutil.Process]()
    # (those of a run before a restart may still be there as zombies)
    servers = [
        (child, child.name()) for child in me.children() if local and child.name() in SERVERS and _is_alive(child)
    ]
    while not over.wait(LOOK_SECONDS):
        ours |= set(me.children(recursive=True))
        stopped = Counter({process: stopped[process] + 1 for process in ours if _status(process) == "stopped"})
        for process, looks in stopped.items():
            if looks == STOPPED:  # others would wait for it without end: killed, it fails and is replaced
                process.kill()
        gone = next((name for server, name in servers if not _is_alive(server)), "")
        silent = 0 if local or _answers(address) else silent + 1
        if gone or silent >= PATIENCE:
            _again(gone or f"cluster at {address}", ours, at_most)


def _status(process: psutil.Process) -> str:
    """As psutil calls it; "dead" of one that is gone."""
    try:
        return str(process.status()) if process.is_running() else "dead"
    except psutil.NoSuchProcess:
        return "dead"


def _is_alive(process: psutil.Process) -> bool:
    return _status(process) not in ("zombie", "dead")


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except OSError:
        return False
    return True


def _again(gone: str, ours: set[psutil.Process], at_most: int) -> None:
    """Never returns."""
    for process in ours:  # a Ray without its servers does not end by itself, or not soon
        if _is_alive(process):
            process.kill()
    psutil.wait_procs(ours, timeout=10)
    sweep_scratch([os.getpid(), *(process.pid for process in ours)])
    times = int(os.environ.get(RESTARTS, "0"))
    if times >= at_most:
        print(f"ganlib: Ray's {gone} is gone; the same command goes on from what is kept", file=sys.stderr, flush=True)
        os._exit(1)
    print(f"lost: Ray's {gone}; starting again from what is kept", flush=True)
    os.environ[RESTARTS] = str(times + 1)
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
