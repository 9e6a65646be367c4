"""Folders that the environment decides: the home folder, and Ray's, whose sockets need a short path."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import NamedTuple

__all__ = ["RayFolder", "home_folder", "ray_folder"]

SOCKET_BYTES = 107
"""the longest path of a socket on Linux"""
SESSION = "ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"


class RayFolder(NamedTuple):
    """The folder that Ray is to put `ray/session_…` in. `instead`: why it is not the one that TMPDIR names, or ""."""

    path: Path
    instead: str = ""


def home_folder() -> Path:
    """Raises OSError if there is none, as in a container that runs as a user it does not know."""
    try:
        return Path.home()
    except RuntimeError as error:
        raise OSError("HOME: not set, and this user has no home folder; set it to a folder of your own") from error


def ray_folder() -> RayFolder:
    """RAY_TMPDIR, or TMPDIR as far as it can be used, or else `/tmp`. Raises OSError if none can be."""
    if named := os.environ.get("RAY_TMPDIR"):
        if fault := _fault(Path(named)):
            raise OSError(f"RAY_TMPDIR: {named} {fault}; set it to a short path of a folder that can be written")
        return RayFolder(Path(named))
    usual = Path(os.environ.get("TMPDIR") or tempfile.gettempdir())
    if not (fault := _fault(usual)):
        return RayFolder(usual)
    short = Path("/tmp")
    if _fault(short):
        raise OSError(f"TMPDIR: {usual} {fault}; set RAY_TMPDIR to a short path of a folder that can be written")
    return RayFolder(short, f"TMPDIR: {usual} {fault}: Ray's session is in {short}, or where RAY_TMPDIR says")


def _fault(folder: Path) -> str:
    """Why Ray cannot have its session in the folder, which need not exist; empty if it can."""
    if (length := len(os.fsencode(folder / SESSION))) > SOCKET_BYTES:
        return f"is {length - SOCKET_BYTES} bytes too long for Ray's sockets"
    there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    return "" if there.is_dir() and os.access(there, os.W_OK | os.X_OK) else "cannot be written"
