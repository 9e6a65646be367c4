"""What tests of trainings keep of them, when two of them ended alike, and trainings of several ranks."""

import multiprocessing
import shutil
from pathlib import Path

import torch
import torch.multiprocessing


class Kept:
    """A report that keeps the rows and the folders."""

    def __init__(self, folder: Path, stop_after: int | None = None):
        self.rows, self.folders, self.root, self.stop_after = [], [], folder, stop_after

    def __call__(self, row, folder):
        self.rows.append(row)
        if folder is not None:
            self.folders.append(Path(shutil.copytree(folder, self.root / f"{len(self.rows)}")))
        if len(self.rows) == self.stop_after:
            raise KeyboardInterrupt


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def without_clock(state):
    """A checkpoint without what differs from run to run: times, and on a GPU how much of a run was replayed."""
    clock = ("seconds", "examples_per_second", "recorded_steps")
    return {
        **{k: v for k, v in state.items() if k != "seconds"},
        "rows": [{k: v for k, v in row.items() if k not in clock} for row in state["rows"]],
    }


def run_ranks(rank, world, *arguments):
    """`rank(number, *arguments)` in processes of their own, until all have ended. Raises what one of them raised.

    They are forked from a server that has imported ganlib, which takes seconds, and that no thread runs in.
    """
    multiprocessing.set_forkserver_preload(["ganlib.trainer"])
    torch.multiprocessing.start_processes(rank, arguments, nprocs=world, start_method="forkserver")
