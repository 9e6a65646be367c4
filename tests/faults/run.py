"""Long fault tests of the whole pipeline, run by hand; the results stand in docs/faults.md.

    python tests/faults/run.py CASE [CASE ...] [--seed 0] [--work /tmp/gf]
    python tests/faults/run.py kills --kills 100 --every 15 --kimg 400
    python tests/faults/run.py list

Every case works on a clone of this checkout's last commit with a small budget: a quiet run, once; then the same with
the fault, `dvc repro` again as long as it takes, and a comparison with the quiet run: the bits of all outputs and of
dvc.lock, the runs and versions in MLflow, processes and half-written files left behind. Each prints one row of a
table: fault, command, outcome. The exit status is 1 if a case failed. All output is kept in the work folder, which
has to have a short path, as Ray's sockets lie below it. The cases with disks and with several
hosts need root.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pyarrow.parquet as parquet
from project import (
    BUDGET,
    LASTING,
    ROOT,
    STARTED,
    STUCK,
    Command,
    Failure,
    Project,
    Quiet,
    adopt_orphans,
    bits,
    descendants,
    differing,
    faults_of,
    kill_all,
    megabytes_in,
    name_of,
    named,
    quiet_run,
    send,
    small_disk,
)
from services import MlflowServer

WORKER = "ray::RayTrainWorker"
KIMG = BUDGET["train.report_kimg"]
GRACE = 10.0
"""seconds from SIGTERM to SIGKILL"""
CLUSTER = ROOT / "infra/local-cluster/cluster.sh"


@dataclass
class Case:
    """What a case has to work with."""

    project: Project
    quiet: Quiet
    work: Path
    args: argparse.Namespace
    chance: random.Random

    def training(self, kimg: float = 5 * KIMG) -> Command:
        """`dvc repro` from where the search is done, as soon as training has reported `kimg`."""
        self.project.restore(self.work / "tuned")
        return self.go_on_training(kimg)

    def go_on_training(self, kimg: float = 5 * KIMG, *, words: tuple[str, ...] = ("dvc", "repro")) -> Command:
        """The same from where the project is. A run that fails to start, as on a busy machine, is repeated."""
        for _ in range(3):
            command = self.project.start(*words)
            until = time.monotonic() + STUCK
            while command.process.poll() is None and time.monotonic() < until:
                if max(kimg_of(command), default=0.0) >= kimg:
                    return command
                time.sleep(0.05)
            print(
                f"  no training of {kimg:g} kimg: {(command.errors() or ['nothing was said'])[-1]} ({command.output})"
            )
            kill_all()
            command.wait()
        raise Failure(f"no training of {kimg:g} kimg: {command.last_line()} ({command.output})")

    def check(self, said: str = "") -> str:
        """The outcome after all is done. Raises Failure if it is not that of the quiet run."""
        wrong = faults_of(self.project, self.quiet, self.work / "quiet")
        if wrong:
            raise Failure("; ".join([*([said] if said else []), *wrong]))
        return f"{said + '; ' if said else ''}the quiet run's bits and MLflow runs, nothing left behind"


def kimg_of(command: Command) -> list[float]:
    """What training reported so far, as the stage prints it."""
    return [float(kimg) for kimg in re.findall(r"^ *([0-9.]+) of [0-9.]+ kimg", command.text(), re.MULTILINE)]


Run = Callable[[Case], str]
CASES: dict[str, tuple[str, Run]] = {}


def case(name: str, fault: str) -> Callable[[Run], Run]:
    def register(run: Run) -> Run:
        CASES[name] = fault, run
        return run

    return register


def ended(command: Command, seconds: float) -> str:
    """How the command went on, in words."""
    status = command.wait()
    took = f"after {time.monotonic() - seconds:.0f} s"
    if status == 0:
        return f"the run went on by itself and ended {took}"
    lines = command.errors()
    if len(lines) == 1:
        return f"the run ended {took}: “{lines[0][:160]}”"
    return f"the run ended {took} with {len(lines)} lines, the first “{(lines or ['none'])[0][:120]}”"


def finish_after(case: Case, command: Command, since: float) -> str:
    """Wait for the command, repeat it if it failed, and compare."""
    said = ended(command, since)
    if command.process.returncode:
        repeats = len(case.project.finish())
        said += f"; repeated {repeats} x"
    return case.check(said)


# -- no fault -------------------------------------------------------------------------------------------------------


@case("clone", "no fault: a clone in another folder, whose search trains one trial at a time instead of two")
def other_clone(case: Case) -> str:
    other = Project(case.work / "clone")
    other.restore(case.work / "fresh")
    other.edit({"scale.max_concurrent_trials": 1})
    load = os.getloadavg()[0]
    other.run("dvc", "repro")
    different = differing(bits(other), case.quiet.bits)
    if different:
        raise Failure(f"bits differ: {', '.join(different)}")
    other.remove()
    return f"at a load of {load:.0f} to {os.getloadavg()[0]:.0f}: the quiet run's bits, dvc.lock too"


# -- kills ----------------------------------------------------------------------------------------------------------


@case("kills", "SIGKILL of any process at any time, search on")
def kills(case: Case) -> str:
    """`--kills` of them, on average `--every` seconds apart; after each, `dvc repro` is started if it is gone."""
    project, chance, victims = case.project, case.chance, []
    project.restore(case.work / "fresh")
    command = project.start("dvc", "repro")
    runs, start = 1, time.monotonic()
    while len(victims) < case.args.kills:
        pause = min(chance.expovariate(1 / case.args.every), 4 * case.args.every)
        choice = chance.random()
        until = time.monotonic() + pause
        while time.monotonic() < until and command.process.poll() is None:
            time.sleep(0.02)
        if command.process.poll() == 0:
            break  # done before all kills were used up
        if command.process.poll() is None:
            alive = descendants()
            victim = alive[int(choice * len(alive))]
            victims.append(name_of(victim))
            print(f"  {time.monotonic() - start:6.1f} s  kill {len(victims)}: {victims[-1]}", flush=True)
            send(victim, signal.SIGKILL)
            time.sleep(0.2)
        if command.process.poll() is not None:
            runs += 1
            command = project.start("dvc", "repro")
    while command.wait() != 0:
        runs += 1
        if runs > case.args.kills + 10:
            raise Failure(f"`dvc repro` keeps failing: {command.last_line()} ({command.output})")
        command = project.start("dvc", "repro")
    return case.check(f"{len(victims)} kills, {runs} runs of dvc repro, {time.monotonic() - start:.0f} s")


# -- signals with grace ---------------------------------------------------------------------------------------------


def graceful(case: Case, victims: Callable[[Command], list[psutil.Process]], *, group: bool = False) -> str:
    """SIGTERM, then SIGKILL to what lives `GRACE` seconds later, as Slurm and Kubernetes do."""
    command = case.training()
    chosen, since = victims(command), time.monotonic()
    if not chosen:
        raise Failure(f"found no process to send SIGTERM to among {sorted({name_of(p) for p in descendants()})}")
    names = {process.pid: name_of(process) for process in chosen}
    for process in chosen:
        send(process, signal.SIGTERM)
    gone, deaf = psutil.wait_procs(chosen, timeout=GRACE)
    for process in deaf:
        send(process, signal.SIGKILL)
    for process in gone:
        if process.pid == command.process.pid:  # whose status `subprocess` cannot have any more
            command.process.returncode = process.returncode
    said = "" if not deaf else f"SIGKILL was needed for {', '.join(sorted({names[p.pid] for p in deaf}))}; "
    if group:  # what was started by the killed is killed with it, as a container or a job step ends
        kill_all()
        command.wait()
    return said + finish_after(case, command, since)


@case("term-worker", "SIGTERM of one training worker")
def term_worker(case: Case) -> str:
    return graceful(case, lambda command: named(WORKER)[-1:])


@case("term-stage", "SIGTERM, then SIGKILL, of the stage `train`")
def term_stage(case: Case) -> str:
    return graceful(case, lambda command: named("python -m pipelines.train"))


@case("term-dvc", "SIGTERM, then SIGKILL, of `dvc repro` alone")
def term_dvc(case: Case) -> str:
    return graceful(case, lambda command: [psutil.Process(command.process.pid)])


@case("term-all", "SIGTERM, then SIGKILL, of every process (Slurm, Kubernetes)")
def term_all(case: Case) -> str:
    return graceful(case, lambda command: descendants(), group=True)


@case("stage-alone", "SIGKILL of `dvc repro`, which is started again beside its living stage")
def stage_alone(case: Case) -> str:
    command = case.training()
    since = time.monotonic()
    command.process.kill()
    command.process.wait()
    return finish_after(case, case.project.start("dvc", "repro"), since)


# -- processes that hang or vanish ----------------------------------------------------------------------------------


@case("hang", "SIGSTOP of one training worker")
def hang(case: Case) -> str:
    command = case.training()
    worker = named(WORKER)[-1]
    since = time.monotonic()
    send(worker, signal.SIGSTOP)
    try:
        return finish_after(case, command, since)
    finally:
        send(worker, signal.SIGKILL)


def vanish(case: Case, name: str) -> str:
    command = case.training()
    victims, since = named(name), time.monotonic()
    if not victims:
        raise Failure(f"no {name} among {sorted({name_of(p) for p in descendants()})}")
    send(victims[-1], signal.SIGKILL)
    return finish_after(case, command, since)


@case("gcs", "SIGKILL of Ray's GCS server")
def gcs(case: Case) -> str:
    return vanish(case, "gcs_server")


@case("raylet", "SIGKILL of the raylet")
def raylet(case: Case) -> str:
    return vanish(case, "raylet")


@case("worker", "SIGKILL of one training worker, as the kernel does when memory is out")
def worker(case: Case) -> str:
    return vanish(case, WORKER)


@case("oom", "memory of one training worker bounded to what it has (RLIMIT_AS)")
def oom(case: Case) -> str:
    command = case.training()
    process, since = named(WORKER)[-1], time.monotonic()
    bound = process.memory_info().vms + 2**20
    process.rlimit(resource.RLIMIT_AS, (bound, bound))
    return finish_after(case, command, since)


# -- disks ----------------------------------------------------------------------------------------------------------


def full(case: Case, place: Path, megabytes: float, what: str) -> str:
    """The run with so small a disk at `place`, then with room."""
    with small_disk(place, megabytes) as resize:
        command, since = case.project.start("dvc", "repro"), time.monotonic()
        said = ended(command, since)
        if command.process.returncode == 0:
            raise Failure(f"{megabytes:.1f} MB at {what} were enough: {said}")
        resize(1024)
        said += f"; with room, repeated {len(case.project.finish())} x"
        return case.check(said)


@case("disk-full-storage", "disk full at the second checkpoint (`scale.storage`)")
def disk_full_storage(case: Case) -> str:
    case.project.restore(case.work / "tuned")
    before = megabytes_in(case.work / "tuned/.ganlib")
    quiet = megabytes_in(case.work / "quiet/.ganlib")
    return full(case, case.project.folder / ".ganlib", before + 0.6 * (quiet - before), "scale.storage")


@case("disk-full-mlflow", "disk full in MLflow's store and artifacts")
def disk_full_mlflow(case: Case) -> str:
    """The store is moved to a small disk, where it has the same contents."""
    case.project.restore(case.work / "tuned")
    artifacts = case.project.folder / "mlartifacts"
    return full(case, artifacts, 0.5 * megabytes_in(case.work / "quiet/mlartifacts"), "mlartifacts")


@case("disk-full-mlflow-db", "disk full in MLflow's database")
def disk_full_mlflow_db(case: Case) -> str:
    case.project.restore(case.work / "tuned")
    place = case.work / "store"
    place.mkdir(exist_ok=True)
    shutil.copy(case.project.folder / "mlflow.db", place)
    case.project.env["MLFLOW_TRACKING_URI"] = f"sqlite:///{place / 'mlflow.db'}"
    try:
        return full(case, place, megabytes_in(place) + 0.01, "the database")
    finally:
        del case.project.env["MLFLOW_TRACKING_URI"]
        shutil.rmtree(place, ignore_errors=True)


@case("disk-full-cache", "disk full in DVC's cache")
def disk_full_cache(case: Case) -> str:
    case.project.restore(case.work / "tuned")
    cache = case.project.folder / ".dvc/cache"
    before, quiet = (megabytes_in(case.work / kept / ".dvc/cache") for kept in ("tuned", "quiet"))
    return full(case, cache, before + 0.3 * (quiet - before), ".dvc/cache")


# -- the tracking server --------------------------------------------------------------------------------------------


@contextlib.contextmanager
def tracking_server(case: Case, state: str) -> Iterator[MlflowServer]:
    """An MLflow server that the project logs to, with what it has in its own store in that state. It is not of the run
    that is tried."""
    place = case.work / "server"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    server = MlflowServer(f"sqlite:///{place / 'server.db'}", place)
    case.project.restore(case.work / state)
    if (store := case.project.folder / "mlflow.db").exists():
        shutil.copy(store, place / "server.db")
    case.project.env["MLFLOW_TRACKING_URI"] = server.uri
    try:
        yield server
    finally:
        del case.project.env["MLFLOW_TRACKING_URI"]
        stop_server(server)


def start_server(server: MlflowServer) -> None:
    server.start()
    assert server.process is not None
    STARTED.add(server.process.pid)
    process = psutil.Process(server.process.pid)
    LASTING.update(one.pid for one in [process, *process.children(recursive=True)])


def stop_server(server: MlflowServer) -> None:
    """By SIGKILL, which is how a server goes down without a word."""
    server.kill()
    LASTING.clear()


def after_outage(case: Case, command: Command, since: float) -> str:
    """Wait for the command, repeat it if it failed, and compare; with what was said of the server."""
    outcome = finish_after(case, command, since)
    said = [line for line in command.text().splitlines() if line.startswith("tracking: ")]
    return f"{len(said)} lines said so, the first “{said[0][:110]}”; {outcome}" if said else outcome


@case("server-down-start", "tracking server down from the first stage on, up in the middle of training")
def server_down_start(case: Case) -> str:
    with tracking_server(case, "fresh") as server:
        command, since = case.go_on_training(10 * KIMG), time.monotonic()
        start_server(server)
        return after_outage(case, command, since)


@case("server-down-middle", "tracking server killed in the middle of training, up again before its end")
def server_down_middle(case: Case) -> str:
    with tracking_server(case, "tuned") as server:
        start_server(server)
        command, since = case.go_on_training(5 * KIMG), time.monotonic()
        stop_server(server)
        while command.process.poll() is None and max(kimg_of(command)) < 15 * KIMG:
            time.sleep(0.05)
        start_server(server)
        return after_outage(case, command, since)


@case("server-down-end", "tracking server killed near the end of training, up again when `dvc repro` has ended")
def server_down_end(case: Case) -> str:
    with tracking_server(case, "tuned") as server:
        start_server(server)
        command, since = case.go_on_training(case.args.kimg - 2 * KIMG), time.monotonic()
        stop_server(server)
        if command.wait() == 0:
            raise Failure("`dvc repro` succeeded without the server that `register` needs")
        start_server(server)
        return after_outage(case, command, since)


# -- damage ---------------------------------------------------------------------------------------------------------


def flip(path: Path, chance: random.Random, within: tuple[int, int] | None = None) -> str:
    """Flip a byte in the middle half of a file, or of the part of it that starts and ends at `within`."""
    start, end = within or (0, path.stat().st_size)
    at = start + chance.randrange((end - start) // 4, 3 * (end - start) // 4)
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 0xFF]))
    return f"byte {at} of {path.name}"


def damaged_checkpoint(case: Case, damage: Callable[[Path], str]) -> str:
    case.training(9 * KIMG)
    kill_all()
    newest = case.project.newest_checkpoint()
    what = damage(newest)
    command, since = case.project.start("dvc", "repro"), time.monotonic()
    command.wait()
    words = ("damaged", "corrupt", "checksum", "cut short", "torn")
    lines = [line.strip() for line in command.text().splitlines() if any(word in line.lower() for word in words)]
    said = f"“{lines[0][:140]}”" if lines else "nothing was said of it"
    return finish_after(case, command, since).replace("the run", f"{what}: {said}; the run", 1)


@case("corrupt-checkpoint", "a flipped byte in the newest checkpoint, everything killed")
def corrupt_checkpoint(case: Case) -> str:
    return damaged_checkpoint(case, lambda path: flip(path, case.chance))


@case("torn-checkpoint", "the newest checkpoint cut to half its length")
def torn_checkpoint(case: Case) -> str:
    def cut(path: Path) -> str:
        os.truncate(path, path.stat().st_size // 2)
        return path.name

    return damaged_checkpoint(case, cut)


@case("empty-checkpoint", "the newest checkpoint empty, as a power loss leaves it")
def empty_checkpoint(case: Case) -> str:
    def empty(path: Path) -> str:
        os.truncate(path, 0)
        return path.name

    return damaged_checkpoint(case, empty)


@case("corrupt-shard", "a flipped byte in a shard of data/prepared")
def corrupt_shard(case: Case) -> str:
    case.project.restore(case.work / "tuned")
    shard = max((case.project.folder / "data/prepared").rglob("*.parquet"), key=lambda path: path.stat().st_size)
    column = parquet.read_metadata(shard).row_group(0).column(0)  # of samples; hashes, say, training does not read
    within = column.data_page_offset, column.data_page_offset + column.total_compressed_size
    what = flip(shard, random.Random(case.args.seed), within)
    alone = case.project.start("python", "-m", "pipelines.train")
    said = "the stage alone did not notice" if alone.wait() == 0 else f"the stage alone: “{alone.last_line()[:160]}”"
    case.project.restore(case.work / "tuned")  # what the stage alone has left is not to be measured
    flip(shard, random.Random(case.args.seed), within)
    command, since = case.project.start("dvc", "repro"), time.monotonic()
    return finish_after(case, command, since).replace("the run", f"{what}; {said}; the run", 1)


# -- two at once ----------------------------------------------------------------------------------------------------


@case("twice-one-folder", "two pipelines at once in one folder")
def twice_one_folder(case: Case) -> str:
    case.project.restore(case.work / "fresh")
    first = case.project.start("dvc", "repro")
    time.sleep(case.chance.uniform(0, 5))
    second, since = case.project.start("dvc", "repro"), time.monotonic()
    statuses = sorted([first.wait(), second.wait()])
    said = f"exit statuses {statuses}"
    loser = second if second.process.returncode else first
    if loser.process.returncode:
        said += f", “{loser.last_line()[:140]}”"
    again = case.project.finish()
    took = time.monotonic() - since
    return case.check(f"{said}; repeated {len(again)} x, {took:.0f} s")


@case("twice-one-stage", "two `python -m pipelines.train` at once in one folder, 5 s apart")
def twice_one_stage(case: Case) -> str:
    case.project.restore(case.work / "tuned")
    first = case.project.start("python", "-m", "pipelines.train")
    time.sleep(5)
    second = case.project.start("python", "-m", "pipelines.train")
    said = [f"{command.wait()} (“{command.last_line()[:100]}”)" for command in (first, second)]
    case.project.finish()
    return case.check(f"exit statuses {said[0]} and {said[1]}")


@case("twice-one-storage", "two clones that train at once on one `scale.storage`, `--apart` seconds apart")
def twice_one_storage(case: Case) -> str:
    storage = case.work / "shared"
    shutil.rmtree(storage, ignore_errors=True)
    case.project.restore(case.work / "tuned")
    case.project.edit({"scale.storage": str(storage)})
    other = Project(case.work / "other")
    other.restore(case.project.folder)
    # the copy's own store, as its search has its artifacts in the first one's folder
    (other.folder / "mlflow.db").unlink()
    first, since = case.project.start("dvc", "repro"), time.monotonic()
    time.sleep(case.args.apart)
    second = other.start("dvc", "repro")
    said = [f"{command.wait()} (“{command.last_line()[:120]}”)" for command in (first, second)]
    took = f"after {time.monotonic() - since:.0f} s exit statuses {said[0]} and {said[1]}"
    if any(command.process.returncode for command in (first, second)):
        raise Failure(took)
    prints = [hashlib.sha256(weights(p.folder).read_bytes()).hexdigest() for p in (case.project, other)]
    if len(set(prints)) > 1:
        raise Failure(f"{took}; the two have different weights")
    outcome = case.check(took)
    other.remove()
    shutil.rmtree(storage, ignore_errors=True)
    return outcome


# -- clocks ---------------------------------------------------------------------------------------------------------


@case("clock", "everything killed, and what it wrote is dated a day ahead, as by a clock that was wrong")
def clock(case: Case) -> str:
    case.training(9 * KIMG)
    kill_all()
    tomorrow = time.time() + 86400
    for path in case.project.folder.rglob("*"):
        os.utime(path, (tomorrow, tomorrow), follow_symlinks=False)
    since = time.monotonic()
    command = case.go_on_training(11 * KIMG)
    went_on = min(kimg_of(command)) > 4 * KIMG
    said = "it went on from the last checkpoint; " if went_on else "it trained anew what it had; "
    return said + finish_after(case, command, since)


# -- several hosts --------------------------------------------------------------------------------------------------


class Cluster:
    """Hosts in network namespaces, as of infra/local-cluster; the case's project runs on their head."""

    def __init__(self, case: Case, nodes: int, **env: str):
        self.case, self.nodes, self.env = case, nodes, env

    def do(self, *words: str) -> str:
        env = {**os.environ, "PYTHONPATH": str(self.case.project.folder), "RAY_BIN": str(Path(sys.executable).parent)}
        done = subprocess.run(
            [str(CLUSTER), *words],
            env={**env, **self.env},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=400,
        )
        if done.returncode:
            raise Failure(f"cluster.sh {' '.join(words)}: {done.stderr.strip()[-300:]}")
        return done.stdout

    def __enter__(self) -> Cluster:
        project = self.case.project
        project.restore(self.case.work / "tuned")
        self.do("down")
        print(f"  {self.do('up', str(self.nodes)).strip()}")
        self.mark()
        project.prefix = (str(CLUSTER), "run")
        # two, as on one machine, so that the bits are the same: `auto` would go on with the nodes that are left
        runs = str(project.folder / ".ganlib/runs")
        scale = {"ray_address": "10.77.0.10:6379", "storage": runs, "num_workers": self.nodes}
        project.edit({f"scale.{key}": value for key, value in scale.items()})
        return self

    def mark(self) -> None:
        """The hosts' inits, Ray's servers and its idle workers are not the run's; what trains and what drives is."""
        LASTING.clear()
        LASTING.update(
            process.pid
            for process in descendants()
            if not name_of(process).startswith(("ray::RayTrain", "ray::TrainController", "python -m pipelines", "dvc"))
        )

    def __exit__(self, *error: object) -> None:
        self.case.project.prefix = ()
        LASTING.clear()
        self.do("down")


def on_hosts(
    case: Case,
    fault: Callable[[Cluster], str],
    mend: Callable[[Cluster], str],
    pause: float,
    *,
    nodes: int = 2,
    quiet: tuple[Path, str] | None = None,
    **env: str,
) -> str:
    """The stage `train` on hosts, a worker each, with a fault, and what mends it `pause` seconds later.

    The weights are compared with those in the folder `quiet`, which goes by that name in the outcome.
    """
    with Cluster(case, nodes, **env) as cluster:
        command = case.go_on_training(words=("python", "-m", "pipelines.train"))
        since = time.monotonic()
        fault(cluster)
        time.sleep(pause)
        mend(cluster)
        said = ended(command, since)
        if command.process.returncode:
            said += f"; repeated {len(case.project.finish())} x"
        different = differing_weights(
            case.project.folder, *(quiet or (case.work / "quiet", "the quiet run on one host"))
        )
        cluster.mark()
        wrong = faults_of(case.project, case.quiet, case.work / "quiet", compare=False)
        if wrong:
            raise Failure(f"{said}; {'; '.join(wrong)}")
        return f"{said}; {different}, nothing left behind"


def weights(folder: Path) -> Path:
    """The file of the trained generator's weights."""
    return next((folder / "outputs/train/generator").glob("*.safetensors"))


def differing_weights(folder: Path, quiet: Path, name: str) -> str:
    """How the generator compares with that of another run, which is called `name`."""
    import numpy as np
    from safetensors.numpy import load_file

    mine, other = (load_file(weights(one)) for one in (folder, quiet))
    if all(np.array_equal(mine[key], other[key]) for key in other):
        return f"the weights of {name}, to the bit"
    largest = max(float(np.abs(mine[key] - other[key]).max()) for key in other)
    return f"weights within {largest:.1g} of {name}"


@case("hosts", "no fault: training on two hosts")
def hosts(case: Case) -> str:
    return on_hosts(case, lambda cluster: "", lambda cluster: "", 0)


@case("node", "a node ends at once in training (SIGKILL of all its processes), and is back 30 s later")
def node(case: Case) -> str:
    return on_hosts(case, lambda cluster: cluster.do("kill", "2"), lambda cluster: cluster.do("start", "2"), 30)


@case("node-term", "a node is told to end in training (SIGTERM, then SIGKILL), and is back 30 s later")
def node_term(case: Case) -> str:
    return on_hosts(case, lambda cluster: cluster.do("stop", "2"), lambda cluster: cluster.do("start", "2"), 30)


@case("link", "the link of a node is cut in training, and healed 60 s later")
def link(case: Case) -> str:
    return on_hosts(case, lambda cluster: cluster.do("cut", "2"), lambda cluster: cluster.do("heal", "2"), 60)


@case("link-of-four", "four hosts, four workers: the link of one is cut in training, and healed 60 s later")
def link_of_four(case: Case) -> str:
    """Compared with the same without the cut, which comes first."""
    kept = case.work / "four"
    quiet = on_hosts(case, lambda cluster: "", lambda cluster: "", 0, nodes=4)
    print(f"  without the cut: {quiet}", flush=True)
    case.project.save(kept)
    return on_hosts(
        case,
        lambda cluster: cluster.do("cut", "4"),
        lambda cluster: cluster.do("heal", "4"),
        60,
        nodes=4,
        quiet=(kept, "the run on four hosts without the cut"),
    )


@case("blink", "the link of a node is cut in training, and healed 5 s later")
def blink(case: Case) -> str:
    return on_hosts(case, lambda cluster: cluster.do("cut", "2"), lambda cluster: cluster.do("heal", "2"), 5)


@case(
    "clock-of-nodes", "Python's clock on both nodes an hour ahead of the head's; one node ends and is back 30 s later"
)
def clock_of_nodes(case: Case) -> str:
    return on_hosts(
        case, lambda cluster: cluster.do("kill", "2"), lambda cluster: cluster.do("start", "2"), 30, NODE_CLOCK="3600"
    )


# -------------------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="+", metavar="CASE", help="a name or the start of several; list: their names")
    parser.add_argument("--seed", type=int, default=0, help="of what is left to chance")
    parser.add_argument("--work", type=Path, default=Path("/tmp/gf"), help="folder for clones and output")
    parser.add_argument("--kills", type=int, default=10, help="of the case `kills`")
    parser.add_argument("--every", type=float, default=20, help="seconds between kills, on average")
    parser.add_argument("--kimg", type=float, default=BUDGET["train.kimg"], help="of training: many kills need more")
    parser.add_argument("--apart", type=float, default=0, help="seconds between the two of `twice-one-storage`")
    parser.add_argument("--no-search", action="store_true", help="set tune.num_samples to 0")
    args = parser.parse_args()
    if args.cases == ["list"]:
        for name, (fault, _) in CASES.items():
            print(f"{name:22} {fault}")
        return
    chosen = [name for name in CASES if any(name == one or name.startswith(f"{one}-") for one in args.cases)]
    if unknown := [
        wanted for wanted in args.cases if not any(n == wanted or n.startswith(f"{wanted}-") for n in CASES)
    ]:
        parser.error(f"no case {', '.join(unknown)}; known: {', '.join(CASES)}")
    adopt_orphans()
    changes = BUDGET | {"train.kimg": args.kimg} | ({"tune.num_samples": 0} if args.no_search else {})
    inputs = ("ganlib", "pipelines", "params.yaml", "params", "dvc.yaml", "dvc.lock")
    listed = ["git", "-C", str(ROOT), "ls-tree", "HEAD", *inputs]
    code = subprocess.run(listed, check=True, capture_output=True, text=True).stdout
    budget = hashlib.sha256(f"{code}{sorted(changes.items())}".encode()).hexdigest()[:8]
    project, quiet = quiet_run(args.work / budget, changes)
    print(
        f"quiet run in {args.work / budget}: {quiet.seconds:.0f} s, {len(quiet.bits)} files, {quiet.runs}", flush=True
    )
    rows, failed = [], 0
    flags = "".join(
        f" --{name} {getattr(args, name)}"
        for name in ("seed", "kills", "every", "kimg", "apart")
        if getattr(args, name) != parser.get_default(name)
    ) + (" --no-search" if args.no_search else "")
    for name in chosen:
        fault, run = CASES[name]
        print(f"{name}: {fault}", flush=True)
        load, start = os.getloadavg()[0], time.monotonic()
        try:
            outcome = run(Case(project, quiet, args.work / budget, args, random.Random(f"{args.seed} {name}")))
        except Failure as error:
            outcome, failed = f"**failed**: {error}", failed + 1
        except Exception:
            traceback.print_exc()
            outcome, failed = "**failed**: the test itself, see its output", failed + 1
        finally:
            LASTING.clear()
            kill_all()
        rows.append(f"| {fault} | `run.py {name}{flags}` | {outcome} |")
        print(f"{rows[-1]}\n  ({time.monotonic() - start:.0f} s, load {load:.1f} before)", flush=True)
    print("\n| fault | command | outcome |\n|---|---|---|\n" + "\n".join(rows))
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
