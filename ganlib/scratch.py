"""Temporary folders with their process's ID in the name, so that those of killed processes can be found."""

from __future__ import annotations

import os
import tempfile

__all__ = ["pid_namespace", "scratch_folder"]


def scratch_folder() -> tempfile.TemporaryDirectory[str]:
    """A temporary folder `ganlib-PID-NAMESPACE-…` of this process, for a `with` block.

    What a kill leaves of it is deleted by the next stage (`pipelines.clean`).
    """
    return tempfile.TemporaryDirectory(prefix=f"ganlib-{os.getpid()}-{pid_namespace()}-")


def pid_namespace() -> int:
    """The number of the namespace that process IDs are of, as each container has its own; 0 if not on Linux."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0
