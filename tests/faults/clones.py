"""The default `dvc repro`, its search included, in three clones: the same bits and the same dvc.lock on any timing.

    python tests/faults/clones.py [--load 4] [--small] [--work /tmp/gc]

The first clone trains two trials of the search at once, the second one, the third two while `--load` other processes
keep the cores busy. Compared are every byte of `data/`, `outputs/` and dvc.lock. Takes three times the default run,
or less with `--small`, the data and budgets of run.py; the exit status is 1 if anything differs.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from project import BUDGET, Project, adopt_orphans, bits, clone, differing


def repro(folder: Path, changes: dict[str, Any], trials_at_once: int, load: int) -> Project:
    """A clone of this checkout's last commit after `dvc repro`."""
    project = clone(folder, {**changes, "scale.max_concurrent_trials": trials_at_once})
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(load)]
    before, start = os.getloadavg()[0], time.monotonic()
    try:
        project.run("dvc", "repro")
    finally:
        for process in busy:
            process.kill()
            process.wait()
    print(
        f"{trials_at_once} trials at once, {load} busy processes: {time.monotonic() - start:.0f} s "
        f"(load {before:.1f} before, {os.getloadavg()[0]:.1f} at the end)",
        flush=True,
    )
    return project


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--load", type=int, default=4, help="busy processes beside the third clone")
    parser.add_argument("--small", action="store_true", help="8x8 digits, short search and training")
    parser.add_argument("--work", type=Path, default=Path("/tmp/gc"), help="folder for the clones")
    args = parser.parse_args()
    adopt_orphans()
    shutil.rmtree(args.work, ignore_errors=True)
    args.work.mkdir(parents=True)
    expected: dict[str, str] = {}
    wrong = 0
    for name, trials_at_once, load in (("a", 2, 0), ("b", 1, 0), ("c", 2, args.load)):
        project = repro(args.work / name, BUDGET if args.small else {}, trials_at_once, load)
        found = bits(project)
        expected = expected or found
        different = differing(found, expected)
        wrong += bool(different)
        lock = subprocess.run(["git", "-C", str(project.folder), "diff", "--quiet", "HEAD", "--", "dvc.lock"])
        print(
            f"  {len(found)} files, {len(different)} differ from the first clone's{': ' if different else ''}"
            f"{', '.join(different[:8])}; dvc.lock is {'not ' if lock.returncode else ''}the committed one",
            flush=True,
        )
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
