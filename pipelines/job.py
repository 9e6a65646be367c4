"""What `ganlib submit` runs on a cluster: `python -m pipelines.job [--no-pull] [--no-push] NAME DVC-ARGUMENTS`.

A job is to its submitter's project what an experiment in `.dvc/tmp/exps` is to its own: a copy in which DVC runs.
The copies, one for each submission, lie in `jobs/.dvc/jobs`, so that `project_folder()` is `jobs`: there MLflow's
store, Ray's storage and DVC's cache outlive a job and are shared by all. `jobs` is in `scale.storage`, which all nodes
see, or, without one, in `~/.ganlib` of the head node. A job that is submitted again goes on in the copy that it left.
"""

from __future__ import annotations

import argparse
import base64
import configparser
import io
import os
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from ganlib.config import Params
from ganlib.warm_start import DISCRIMINATOR
from pipelines._stage import StageError, atomic_folder, main
from pipelines.places import home_folder

__all__ = ["RESULT", "dvc_config", "jobs_folder", "pack_results", "prepare_environment", "unpack_results"]

RESULT = "ganlib-result:"
"""how a line of the job's log begins that carries a piece of the results"""

# in order of importance: what comes after the limit stays on the cluster
RESULTS = (
    "dvc.lock",
    "outputs/evaluate",
    "outputs/register",
    "outputs/tune",
    "outputs/train",
    "data/prepared/card.json",
    "data/prepared/card.png",
    "data/prepared/rejects.csv",
)
RESULTS_MIB = 8
_PIECE = 16_384  # characters of base64 in one line of the log: below what Ray's log reader cuts


def jobs_folder(params: Params) -> Path:
    """Where jobs lie; see above. A relative `scale.storage` is below each job, so it is no place for them."""
    storage = params.scale.storage or ""
    return Path(storage) / "jobs" if storage.startswith("/") else home_folder() / ".ganlib" / "jobs"


def prepare_environment(params: Params) -> Path:
    """Have this process and its children find the cluster's Python, and a store of MLflow that outlives the job.

    Returns the folder of jobs, made where it is missing. Raises StageError if it cannot be.
    """
    jobs = jobs_folder(params)
    try:
        (jobs / ".dvc" / "jobs").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StageError(
            f"{jobs}: {error.strerror or error}; set scale.storage to a folder that all nodes can write, "
            "or HOME on the cluster"
        ) from error
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return jobs


def run_job(params: Params, name: str, arguments: list[str], *, pull: bool, push: bool) -> None:
    """Run DVC with `arguments` in the job's copy of the project, and print the results as lines of the log.

    Raises StageError, and SystemExit with DVC's status where DVC has said what is wrong.
    """
    folder = prepare_environment(params) / ".dvc" / "jobs" / name
    if folder.exists():
        print(f"job: goes on in {folder}", flush=True)
    else:
        with atomic_folder(folder) as copy:
            shutil.copytree(".", copy, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
        print(f"job: in {folder}", flush=True)
    os.chdir(folder)
    local = f"[core]\n    no_scm = true\n[cache]\n    dir = {folder.parents[1] / 'cache'}\n"
    Path(".dvc/config.local").write_text(local, encoding="utf-8")
    remote = dvc_config(Path()).get("core", "remote", fallback="")
    if not remote:
        print("job: no default DVC remote in .dvc/config: nothing is pulled or pushed", flush=True)
    raw = Path("data/raw") / params.data
    tracked = raw.with_name(f"{raw.name}.dvc")
    targets = ["dvc.yaml", *([str(tracked)] if tracked.exists() else [])]
    # what is not there is made by the stages; the raw data are not, so they are looked for
    _dvc("pull" if pull and remote else "checkout", "--quiet", "--allow-missing", *targets)
    if not raw.exists():
        where = f"the DVC remote {remote!r}" if pull and remote else f"the cache of {folder.parents[1]}"
        raise StageError(f"{raw}: not in {where}; run `dvc push {tracked}` where the data are, then submit again")
    _dvc(*arguments)
    if push and remote:
        _dvc("push")
    for line in pack_results(Path()):
        print(line)


def _dvc(*arguments: str) -> None:
    status = subprocess.run([sys.executable, "-m", "dvc", *arguments]).returncode
    if status:
        print(f"ganlib: `dvc {' '.join(arguments)}` ended with status {status}", file=sys.stderr)
        sys.exit(status if status > 0 else 128 - status)


def dvc_config(project: Path) -> configparser.ConfigParser:
    """`.dvc/config`, which a job is sent; raises StageError if it cannot be read."""
    config = configparser.ConfigParser(interpolation=None)
    try:
        config.read(project / ".dvc/config", encoding="utf-8")
    except (configparser.Error, ValueError) as error:
        raise StageError(f".dvc/config: {' '.join(str(error).split())}") from error
    return config


def pack_results(project: Path) -> Iterator[str]:
    """The small results of a pipeline as lines of text: a zip file in base64, `RESULT PIECE/PIECES TEXT` each.

    The log is the one way back that every cluster has: no storage that both sides see, no port but the dashboard's.
    Files that would make it larger than RESULTS_MIB are left out, and named in a line before.
    """
    archive, left, omitted = io.BytesIO(), RESULTS_MIB * 2**20, []
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as zipped:
        for file in _files(project):
            size = file.stat().st_size
            if size > left:
                omitted.append(file.relative_to(project).as_posix())
                continue
            left -= size
            zipped.write(file, file.relative_to(project).as_posix())
    if omitted:
        more = f" and {len(omitted) - 3} more" if len(omitted) > 3 else ""
        yield f"job: too large for the log: {', '.join(omitted[:3])}{more}; `dvc pull` brings what was pushed"
    text = base64.b64encode(archive.getvalue()).decode()
    pieces = [text[start : start + _PIECE] for start in range(0, len(text), _PIECE)]
    yield from (f"{RESULT} {index}/{len(pieces)} {piece}" for index, piece in enumerate(pieces, 1))


def _files(project: Path) -> Iterator[Path]:
    for name in RESULTS:
        place = project / name
        found = sorted(path for path in (place.rglob("*") if place.is_dir() else [place]) if path.is_file())
        yield from sorted(found, key=lambda path: path.name == DISCRIMINATOR)  # only a further training needs it


def unpack_results(lines: Iterable[str], project: Path) -> list[str]:
    """Write what `pack_results` packed below `project`, each file whole or not; returns the files' names.

    Raises StageError if a piece is missing or torn, or a file is none of RESULTS.
    """
    found: dict[int, str] = {}
    pieces = 0
    try:
        for line in lines:
            _, number, piece = line.split()
            index, pieces = map(int, number.split("/"))
            found[index] = piece
        if not pieces or sorted(found) != list(range(1, pieces + 1)):
            raise ValueError(f"{len(found)} of {pieces} pieces")
        archive = base64.b64decode("".join(found[index] for index in sorted(found)), validate=True)
        with zipfile.ZipFile(io.BytesIO(archive)) as zipped:
            if sum(entry.file_size for entry in zipped.infolist()) > RESULTS_MIB * 2**20:
                raise ValueError(f"larger than {RESULTS_MIB} MiB")
            files = {name: zipped.read(name) for name in zipped.namelist()}
    except (ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise StageError(
            f"the job's log does not hold its results whole ({error}); `dvc pull` brings what it pushed"
        ) from error
    for name in files:
        path = PurePosixPath(name)
        if ".." in path.parts or not any(path.is_relative_to(known) for known in RESULTS):
            raise StageError(f"the job's results hold {name!r}, which is no result; nothing was written")
    for name, content in files.items():
        target = project / name
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".partial.{target.name}")
        try:
            partial.write_bytes(content)
            partial.replace(target)  # never into a file that is a link to DVC's cache
        finally:
            partial.unlink(missing_ok=True)
    return list(files)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="pipelines.job")
    parser.add_argument("name")
    parser.add_argument("--no-pull", action="store_false", dest="pull")
    parser.add_argument("--no-push", action="store_false", dest="push")
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    asked = parser.parse_args()
    main(lambda params: run_job(params, asked.name, asked.arguments, pull=asked.pull, push=asked.push))
