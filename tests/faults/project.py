"""A clone of the project with a small budget, what runs in it, and what it left behind."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tests"))  # of `services`, the servers that the suite starts too

BUDGET: dict[str, Any] = {
    "data": "digits",
    "reference.max_samples": 100,
    "reference.classifier.epochs": 2,
    "params/models/dcgan.yaml:batch": 64,  # so that reports come at whole kimg
    "tune.num_samples": 4,
    "tune.kimg": 4,
    "tune.report_kimg": 1,
    "tune.grace_kimg": 1,
    "tune.quality_samples": 100,
    "train.kimg": 60,  # half a minute on two quiet cores
    "train.report_kimg": 2,
    "train.checkpoint_kimg": 4,
    "train.quality_samples": 100,
    "evaluate.num_samples": 100,
    "evaluate.resamples": 10,
    # so short a training makes no digits: let everything pass that can be compared, to have a champion
    "gate.at_least.coverage": 0,
    "gate.at_least.memorisation_ratio": 0,
    "gate.at_least.label_accuracy": 0,
}
RESULTS = ("data/prepared", "data/reference", "outputs")
HALF_WRITTEN = ("**/*.partial", "**/.partial*", "**/partial", "**/.*.partial", "**/.*.old", "**/*.tmp")
STUCK = 600.0
"""seconds after which a run that prints nothing new counts as hanging"""


class Failure(Exception):
    """The project did not do what it promises. The message is one line."""


def adopt_orphans() -> None:
    """Make this process the parent of every descendant whose parent ends, so that no process of a run is missed."""
    set_child_subreaper = 36
    ctypes.CDLL(None, use_errno=True).prctl(set_child_subreaper, 1, 0, 0, 0)


def descendants() -> list[psutil.Process]:
    """All living processes of the run, in the order in which they started."""
    alive = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.status() == psutil.STATUS_ZOMBIE:
                if process.ppid() == os.getpid() and process.pid not in STARTED:
                    os.waitpid(process.pid, os.WNOHANG)  # an orphan that ended
                continue
            if process.pid not in LASTING:
                alive.append(process)
    return sorted(alive, key=lambda process: (process.create_time(), process.pid))


STARTED: set[int] = set()
"""what `subprocess` waits for"""
LASTING: set[int] = set()
"""what does not belong to the run: a cluster of several hosts"""


def name_of(process: psutil.Process) -> str:
    """What a person would call the process: `ray::RayTrainWorker`, `gcs_server`, `python -m pipelines.train`."""
    with contextlib.suppress(psutil.NoSuchProcess):
        words = process.cmdline() or [process.name()]
        if words[0].startswith("ray::"):
            return words[0].split(".")[0].split("(")[0]
        if "-m" in words[:4]:
            return f"python -m {words[words.index('-m') + 1]}"
        script = next((word for word in words[1:3] if word.endswith((".py", "/dvc"))), words[0])
        return Path(script).name
    return "gone"


def named(*names: str) -> list[psutil.Process]:
    """Living processes of these names, oldest first."""
    return [process for process in descendants() if name_of(process) in names]


def kill_all(processes: list[psutil.Process] | None = None) -> None:
    """SIGKILL to all processes of the run, until there is none."""
    for _ in range(50):
        alive = descendants() if processes is None else [p for p in processes if p.is_running()]
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        if not alive:
            return
        time.sleep(0.1)


@dataclass
class Command:
    """A command that runs. `text()` is what it printed so far."""

    process: subprocess.Popen[bytes]
    output: Path
    words: tuple[str, ...]
    began: float = field(default_factory=time.monotonic)

    def text(self) -> str:
        return self.output.read_text(errors="replace")

    def wait(self, stuck: float = STUCK) -> int:
        """Its exit status. Raises Failure, and kills everything, if nothing is printed for `stuck` seconds."""
        size, since = -1, time.monotonic()
        while (status := self.process.poll()) is None:
            if (now := self.output.stat().st_size) != size:
                size, since = now, time.monotonic()
            if time.monotonic() - since > stuck:
                last = self.last_line()
                kill_all()
                raise Failure(f"`{' '.join(self.words)}` hangs: nothing printed for {stuck:.0f} s after {last!r}")
            time.sleep(0.05)
        return status

    def last_line(self) -> str:
        lines = [line.strip() for line in self.text().splitlines() if line.strip()]
        return lines[-1][:300] if lines else ""

    def errors(self) -> list[str]:
        """The lines of a failure: from the first `ganlib:` or `Traceback` of a stage to the end, DVC's own left out."""
        lines = [line.rstrip() for line in self.text().splitlines()]
        start = next((i for i, line in enumerate(lines) if line.startswith(("ganlib: ", "Traceback"))), len(lines))
        return [line for line in lines[start:] if line and not line.startswith("ERROR: failed to reproduce")]


@dataclass
class Project:
    """A folder with a clone of the project. All that runs in it has a TMPDIR of its own."""

    folder: Path
    env: dict[str, str] = field(default_factory=dict)
    prefix: tuple[str, ...] = ()
    """words before every command, such as what makes it run on another host"""

    @property
    def temporary(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}-tmp")

    def environment(self) -> dict[str, str]:
        elsewhere = ("PYTHONPATH", "DVC_ROOT", "MLFLOW_TRACKING_URI", "RAY_ADDRESS", "VIRTUAL_ENV")
        return {
            **{key: value for key, value in os.environ.items() if key not in elsewhere},
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "PYTHONPATH": str(self.folder),
            "PYTHONUNBUFFERED": "1",
            "TMPDIR": str(self.temporary),
            "DVC_NO_ANALYTICS": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            **self.env,
        }

    def start(self, *words: str) -> Command:
        self.temporary.mkdir(exist_ok=True)
        number = len(list(self.folder.parent.glob("*.log")))
        output = self.folder.parent / f"{number:03d}-{self.folder.name}.log"
        with output.open("wb") as file:
            process = subprocess.Popen(
                [*self.prefix, *words],
                cwd=self.folder,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        STARTED.add(process.pid)
        return Command(process, output, words)

    def run(self, *words: str, stuck: float = STUCK) -> Command:
        """Run to the end. Raises Failure unless it succeeds."""
        command = self.start(*words)
        if status := command.wait(stuck):
            raise Failure(f"`{' '.join(words)}` exited with {status}: {command.last_line()} ({command.output})")
        return command

    def finish(self, tries: int = 5) -> list[Command]:
        """`dvc repro` until it succeeds, at most `tries` times. Returns all runs."""
        commands: list[Command] = []
        for _ in range(tries):
            command = self.start("dvc", "repro")
            commands.append(command)
            if command.wait() == 0:
                return commands
        raise Failure(f"`dvc repro` failed {tries} times, last: {commands[-1].last_line()} ({commands[-1].output})")

    def edit(self, changes: dict[str, Any]) -> None:
        """Change `KEY` of params.yaml or `FILE:KEY` as a person would: comments stay."""
        yaml = YAML()
        for key, value in changes.items():
            name, _, dotted = key.rpartition(":")
            file = self.folder / (name or "params.yaml")
            params = section = yaml.load(file)
            *sections, leaf = dotted.split(".")
            for name in sections:
                section = section[name]
            section[leaf] = value
            yaml.dump(params, file)

    def remove(self) -> None:
        for folder in (self.folder, self.temporary):
            shutil.rmtree(folder, ignore_errors=True)

    def save(self, to: Path) -> None:
        """Keep the folder as it is. What holds absolute paths (MLflow's store) has to come back to the same place."""
        shutil.rmtree(to, ignore_errors=True)
        subprocess.run(["cp", "-a", str(self.folder), str(to)], check=True)

    def restore(self, kept: Path) -> None:
        self.remove()
        subprocess.run(["cp", "-a", str(kept), str(self.folder)], check=True)

    def newest_checkpoint(self, stage: str = "train") -> Path:
        """The largest file of the newest checkpoint of a stage that is complete, that is has as many files as any."""
        folders: dict[Path, list[Path]] = {}
        for path in (self.folder / ".ganlib").rglob("*"):
            whole = [parent for parent in path.parents if parent.name.startswith(("checkpoint-", "checkpoint_"))]
            if path.is_file() and whole and any(parent.name.startswith(f"{stage}-") for parent in path.parents):
                folders.setdefault(whole[0], []).append(path)
        most = max((len(files) for files in folders.values()), default=0)
        complete = [files for files in folders.values() if len(files) == most]
        if len(complete) < 2:
            raise Failure(
                f"found {len(complete)} complete checkpoints in {self.folder / '.ganlib'}, expected 2 or more"
            )
        newest = max(complete, key=lambda files: max(path.stat().st_mtime for path in files))
        return max(newest, key=lambda path: path.stat().st_size)


def clone(folder: Path, changes: dict[str, Any]) -> Project:
    """A clone of the last commit of this checkout, with a budget."""
    subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", str(ROOT), str(folder)], check=True)
    project = Project(folder)
    project.edit(changes)
    git = ["git", "-C", str(folder), "-c", "user.name=faults", "-c", "user.email=faults@localhost"]
    subprocess.run([*git, "commit", "--quiet", "--all", "--message", "budget"], check=True)
    return project


# -- what is left behind -------------------------------------------------------------------------------------------


def bits(project: Project) -> dict[str, str]:
    """SHA-256 of every file of the results and of dvc.lock, by path."""
    files = [path for place in RESULTS for path in sorted((project.folder / place).rglob("*")) if path.is_file()]
    files.append(project.folder / "dvc.lock")
    return {
        str(path.relative_to(project.folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
        if path.name != ".gitignore"
    }


def differing(found: dict[str, str], expected: dict[str, str]) -> list[str]:
    return sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))


def runs(project: Project) -> Counter[tuple[str, str]]:
    """How many runs MLflow has of each (key, status), points on each key's curves, and versions of each model."""
    from mlflow import MlflowClient

    default = f"sqlite:///{project.folder / 'mlflow.db'}"
    client = MlflowClient(tracking_uri=project.env.get("MLFLOW_TRACKING_URI", default))
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    found: Counter[tuple[str, str]] = Counter()
    for run in client.search_runs(experiments, max_results=1000):
        key = run.data.tags.get("ganlib.run_key", run.info.run_name)
        found[key, run.info.status] += 1
        found[f"{key} points", ""] += sum(
            len(client.get_metric_history(run.info.run_id, metric)) for metric in run.data.metrics
        )
    for version in client.search_model_versions():
        aliases = client.get_model_version(version.name, version.version).aliases
        found[f"{version.name} version", ",".join(sorted(aliases))] += 1
    return found


def half_written(project: Project) -> list[str]:
    """Files that only an unfinished write leaves, in the project and its TMPDIR; but for DVC's own in its cache."""
    kept_apart = {".git", ".venv", "cache"}
    left = [
        path
        for pattern in HALF_WRITTEN
        for path in project.folder.glob(pattern)
        if not kept_apart & set(path.relative_to(project.folder).parts)
    ]
    left += project.temporary.glob("ganlib-*")
    return sorted({str(path) for path in left})


@dataclass(frozen=True)
class Quiet:
    """The run without a fault that others are compared with."""

    seconds: float
    bits: dict[str, str]
    runs: dict[str, int]


def timed_only(project: Project, name: str, quiet: Path) -> bool:
    """Whether a table of statistics differs in nothing but how long things took."""
    import pandas

    mine, other = project.folder / name, quiet / name
    if not (mine.exists() and other.exists() and name.endswith((".csv", ".jsonl"))):
        return False
    read = pandas.read_csv if name.endswith(".csv") else (lambda path: pandas.read_json(path, lines=True))
    tables = [read(path).drop(columns=["seconds", "examples_per_second"], errors="ignore") for path in (mine, other)]
    return bool(tables[0].equals(tables[1]))


def faults_of(project: Project, quiet: Quiet, kept: Path, *, compare: bool = True) -> list[str]:
    """What is wrong after a run that says it is done; each a line, none if all is as after the quiet run."""
    wrong = []
    if compare:
        different = differing(bits(project), quiet.bits)
        timed = [name for name in different if timed_only(project, name, kept)]
        other = [name for name in different if name not in timed]
        if timed:  # DVC's lock follows what it locks
            other = [name for name in other if name != "dvc.lock"]
            print(f"  only times differ in {', '.join(timed)} (and so dvc.lock)")
        if other:
            wrong.append(f"bits differ: {', '.join(other[:6])}{' …' if len(other) > 6 else ''}")
        found = {" ".join(key): count for key, count in sorted(runs(project).items())}
        if found != quiet.runs:
            odd = sorted(set(found.items()) ^ set(quiet.runs.items()))
            wrong.append(f"MLflow: {'; '.join(f'{count} x {name}' for name, count in odd[:4])}")
    until = time.monotonic() + 20
    while (alive := descendants()) and time.monotonic() < until:
        time.sleep(0.2)
    if alive:
        wrong.append(f"orphans: {', '.join(sorted(name_of(process) for process in alive))}")
        kill_all()
    if left := half_written(project):
        wrong.append(f"half-written: {', '.join(left[:4])}")
    return wrong


# -- the quiet run -------------------------------------------------------------------------------------------------


def quiet_run(work: Path, changes: dict[str, Any]) -> tuple[Project, Quiet]:
    """The project, and its run without a fault; done once for each state of the code and budget, kept in `work`.

    Beside it are kept `fresh`, nothing run yet; `tuned`, done up to `tune`; `quiet`, all done.
    """
    project, record = Project(work / "p"), work / "quiet.json"
    if record.exists():
        return project, Quiet(**json.loads(record.read_text()))
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    clone(project.folder, changes).save(work / "fresh")
    start = time.monotonic()
    project.run("dvc", "repro", "tune")
    seconds = time.monotonic() - start
    project.save(work / "tuned")
    start = time.monotonic()
    project.run("dvc", "repro")
    seconds += time.monotonic() - start
    project.save(work / "quiet")
    found = {" ".join(key): count for key, count in sorted(runs(project).items())}
    quiet = Quiet(seconds, bits(project), found)
    if wrong := faults_of(project, quiet, work / "quiet", compare=False):
        raise Failure(f"the quiet run itself left: {'; '.join(wrong)}")
    record.write_text(json.dumps(quiet.__dict__, indent=1))
    return project, quiet


@contextlib.contextmanager
def small_disk(place: Path, megabytes: float) -> Iterator[Callable[[float], None]]:
    """A file system of its own at `place`, with what is there already; yields what sets its size anew. Needs root."""
    place.mkdir(parents=True, exist_ok=True)
    aside = place.with_name(f"{place.name}-before")
    shutil.rmtree(aside, ignore_errors=True)
    subprocess.run(["cp", "-a", str(place), str(aside)], check=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={round(megabytes * 1024)}k", "tmpfs", str(place)]
    subprocess.run(mount, check=True)
    try:
        subprocess.run(["cp", "-a", f"{aside}/.", str(place)], check=True)

        def resize(megabytes: float) -> None:
            options = f"remount,size={round(megabytes * 1024)}k"
            subprocess.run(["mount", "-o", options, str(place)], check=True)

        yield resize
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)
        shutil.rmtree(aside, ignore_errors=True)


def send(process: psutil.Process, number: signal.Signals) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)


def megabytes_in(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 2**20
