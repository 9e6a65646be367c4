"""What `ganlib doctor` checks: all that would otherwise stop a pipeline half-way. It changes nothing.

A job `python -m pipelines.doctor` checks a cluster (`--address`); it runs there as the pipeline's job would, and leaves
only its log.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import secrets
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import unquote

from packaging.requirements import Requirement

from ganlib.config import ConfigError, Params, load_params
from ganlib.scratch import scratch_folder
from ganlib.sources._files import name_fault, walk
from ganlib.sources._source import printable
from pipelines import addresses, lineage, model_registry, tracking
from pipelines._stage import REGISTERED, StageError, project_folder
from pipelines.cluster import (
    check_address,
    cluster,
    cluster_address,
    local_cpus,
    on_every_node,
    one_line,
    token_file,
)
from pipelines.places import ray_folder

__all__ = ["Finding", "examine", "examine_cluster"]

GIB = 2**30
FINDING = "ganlib-finding:"
"""how a line of a cluster's log begins that holds a finding"""


class Finding(NamedTuple):
    status: Literal["ok", "warn", "fail"]
    what: str
    remedy: str = ""


def examine() -> Iterator[Finding]:
    """Every finding, in the order in which things would fail."""
    yield _python()
    yield _stage_python()
    yield from _packages()
    yield from _repository()
    try:
        params = load_params()
    except ConfigError as error:
        yield from (
            Finding("fail", line, "mend it; `ganlib params check` says more") for line in str(error).splitlines()
        )
        return
    yield Finding("ok", f"params.yaml: {params.model} on {params.data}")
    yield from _raw(Path("data/raw", params.data))
    yield from _storage(params)
    yield from _tracking(params)
    yield _token()
    if not cluster_address(params.scale):
        yield _ray_folder()
    yield from _gpus()
    yield _resources(params)


def examine_cluster(address: str, project: Path) -> Iterator[Finding]:
    """Every finding on the cluster whose dashboard is at `address`, by a job that is sent `project`."""
    from pipelines.submit import asks_for_token, connect, explain, follow, pack, start

    try:
        client = connect(address)
        yield Finding("ok", f"cluster at {address} answers")
        if asks_for_token(address):
            yield Finding("ok", "it takes the token that is here")
        else:
            what = "it asks for no token: whoever reaches its ports runs code there"
            yield Finding("warn", what, "start Ray with RAY_AUTH_MODE=token, and the same ~/.ray/auth_token everywhere")
        with scratch_folder() as scratch:
            package = pack(project, Path(scratch) / "project.zip")
            job = f"ganlib-doctor-{secrets.token_hex(6)}"
            command = shlex.join(["python", "-m", "pipelines.doctor", json.dumps(_versions())])
            start(client, job, command, {"working_dir": str(package.file)})
        found: list[Finding] = []
        said: list[str] = []

        def note(line: str) -> None:
            if line.startswith(FINDING):
                found.append(Finding(**json.loads(line.removeprefix(FINDING))))
            elif line.strip():
                said.append(line.strip())

        ended = follow(client, job, note)
    except StageError as error:
        yield Finding("fail", str(error), "see that it runs, and that this machine reaches its dashboard")
        return
    yield from found
    if ended.status != "SUCCEEDED":
        what = f"the job {job} that looks at it {explain(ended)}; it said last: {said[-1] if said else 'nothing'}"
        yield Finding("fail", what, "see that `python` on its nodes is one with ganlib's packages")


def _versions() -> dict[str, str]:
    """What must be the same here and on all nodes."""
    return {"Python": platform.python_version(), "Ray": importlib.metadata.version("ray")}


def _examine_from_a_job(here: Mapping[str, str]) -> Iterator[Finding]:
    """Every finding on the cluster that this job runs in. `here`: the versions where it was submitted."""
    from pipelines.job import prepare_environment

    try:
        params = load_params()
        jobs = prepare_environment(params)
        os.environ["DVC_ROOT"] = str(jobs)  # as in the pipeline's job: what lasts is kept there
        marker = jobs / f".seen-{secrets.token_hex(8)}"
        with cluster(params) as available:
            marker.touch()
            try:
                yield from _nodes(here, marker)
            finally:
                marker.unlink()
            yield from _tracking(params)
            yield _remote()
            yield _fit(params, available)
    except (ConfigError, StageError, OSError) as error:
        yield Finding("fail", str(error), "see to it on the cluster")


def _nodes(here: Mapping[str, str], marker: Path) -> Iterator[Finding]:
    """Of each node: that it runs a task, what it has, and what it lacks."""
    import ray

    has = {f"{node['NodeName']} ({node['NodeID'][:8]})": node for node in ray.nodes()}
    for name, node in has.items():
        if not node["Alive"]:
            yield Finding("warn", f"node {name} is dead", "`ray status` there says more; a lost node may come back")
    answers = on_every_node(_describe_node, str(marker), ["ganlib", "pipelines", "torch"])
    for name, answer in answers.items():
        if isinstance(answer, Exception):
            yield Finding("fail", f"node {name} runs no task: {one_line(answer)}", "see Ray's logs on that node")
            continue
        resources = has[name]["Resources"]
        cpus, gpus = resources.get("CPU", 0), resources.get("GPU", 0)
        memory = resources.get("memory", 0) / GIB
        what = f"node {name}: {cpus:g} CPUs, {gpus:g} GPUs, {memory:.0f} GiB for tasks, torch {answer['torch']}"
        faults = [
            (f"{kind} {answer[kind]}, here {version}", f"install {kind} {version} on that node, or that one here")
            for kind, version in here.items()
            if answer[kind] != version
        ]
        faults += [(why, "install ganlib's packages in the Python that starts Ray there") for why in answer["lacks"]]
        if gpus and not answer["cuda"]:
            faults.append(("its torch does not see the GPUs", "install torch with CUDA there, and NVIDIA's driver"))
        if not answer["sees"]:
            remedy = "set scale.storage to a folder on a file system that all nodes share, at the same path"
            faults.append((f"it does not see {marker.parent}", remedy))
        elif not answer["writes"]:
            faults.append((f"it cannot write to {marker.parent}", "give Ray's user there the right to"))
        if not faults:
            yield Finding("ok", what)
        yield from (Finding("fail", f"node {name}: {fault}", remedy) for fault, remedy in faults)
    free = shutil.disk_usage(marker.parent).free / GIB
    status: Literal["ok", "warn"] = "ok" if free >= 5 else "warn"
    yield Finding(status, f"jobs are kept in {marker.parent}: {free:.0f} GiB free", "" if free >= 5 else "make room")


def _describe_node(marker: str, modules: list[str]) -> dict[str, Any]:
    """Versions, devices and faults of a node; runs there."""
    import importlib
    import os
    import platform

    import ray

    lacks, torch_version, cuda = [], "none", False
    for name in modules:
        try:
            module = importlib.import_module(name)
        except Exception as error:
            lacks.append(f"it cannot import {name}: {error}")
            continue
        if name == "torch":
            torch_version, cuda = module.__version__, module.cuda.is_available()
    return {
        "Python": platform.python_version(),
        "Ray": ray.__version__,
        "torch": torch_version,
        "cuda": cuda,
        "lacks": lacks,
        "sees": os.path.exists(marker),
        "writes": os.access(os.path.dirname(marker), os.W_OK),
    }


def _remote() -> Finding:
    """Where a job pulls from and pushes to."""
    from pipelines.job import dvc_config

    if remote := dvc_config(Path()).get("core", "remote", fallback=""):
        return Finding("ok", f"DVC remote {remote}: named, not tried")
    remedy = "`dvc remote add --default NAME URL`, where weights and data should come back"
    return Finding("warn", "no default DVC remote: only a job's small results come back, by its log", remedy)


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    if (3, 11) <= sys.version_info[:2] <= (3, 13):
        return Finding("ok", f"Python {version}")
    return Finding("fail", f"Python {version}", "use 3.11, 3.12 or 3.13")


def _packages() -> Iterator[Finding]:
    """The requirements that ganlib states, with those of the extras it asks for (Ray's dashboard is one)."""
    try:
        stated = [Requirement(text) for text in importlib.metadata.requires("ganlib") or []]
    except importlib.metadata.PackageNotFoundError:
        yield Finding("fail", "ganlib is not installed", "run `pip install -e .` in the project folder")
        return
    wanted = [one for one in stated if one.marker is None or one.marker.evaluate({"extra": ""})]
    faults = [fault for one in wanted for fault in _faults(one)]
    yield from (Finding("fail", fault, "run `pip install -e .` in the project folder") for fault in faults)
    if not faults:
        yield Finding("ok", f"{len(wanted)} packages, Ray with its dashboard")


def _faults(wanted: Requirement) -> Iterator[str]:
    try:
        version = importlib.metadata.version(wanted.name)
    except importlib.metadata.PackageNotFoundError:
        yield f"{wanted.name} is not installed (expected {wanted})"
        return
    if not wanted.specifier.contains(version, prereleases=True):
        yield f"{wanted.name} {version} is installed, expected {wanted.specifier}"
    for extra in wanted.extras:
        for part in map(Requirement, importlib.metadata.requires(wanted.name) or []):
            marker = part.marker
            if marker and marker.evaluate({"extra": extra}) and not marker.evaluate({"extra": ""}):
                yield from (f"{wanted.name}[{extra}]: {fault}" for fault in _faults(part))


def _stage_python() -> Finding:
    """DVC has a shell run the stages as `python -m …`: that has to be this Python."""
    script = Path(sys.prefix, "bin", "activate")
    remedy = f"`. {script}`" if script.is_file() else f"put {Path(sys.executable).parent} first in PATH"
    try:
        asked = subprocess.run(["python", "-c", "import sys; print(sys.prefix)"], capture_output=True, text=True)
    except OSError:
        return Finding("fail", "python: not in PATH, and DVC runs stages by that name", remedy)
    if Path(found := asked.stdout.strip()) != Path(sys.prefix):
        return Finding("fail", f"python: that in PATH is of {found or 'nowhere'}, not of {sys.prefix}", remedy)
    return Finding("ok", "python in PATH is this one")


def _repository() -> Iterator[Finding]:
    if not Path("dvc.yaml").is_file():
        yield Finding("fail", f"{Path.cwd()} holds no dvc.yaml", "change to the project folder")
    here = Path.cwd()
    if not any((folder / ".dvc").is_dir() for folder in (here, *here.parents)):
        yield Finding("fail", "not a DVC repository", "run `dvc init`")
    else:
        asked = subprocess.run([sys.executable, "-m", "dvc", "stage", "list"], capture_output=True, text=True)
        if asked.returncode:
            said = (asked.stderr.strip().splitlines() or ["no answer"])[0].removeprefix("ERROR: ")
            without = "`git init` and commit, or `dvc config --local core.no_scm true`"
            yield Finding("fail", f"DVC: {said}", without if "not a git repository" in said else "mend it")
        else:
            yield Finding("ok", f"DVC repository: {len(asked.stdout.splitlines())} stages")
    if fault := lineage.git_fault():
        what, _, remedy = fault.partition("; ")
        yield Finding("warn", f"{what}: lineage will not know the commit", remedy)
        return
    status = subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True).stdout
    if not status:
        yield Finding("ok", "Git: nothing untracked or changed")
    else:
        lines = status.splitlines()
        untracked = sum(line.startswith("??") for line in lines)
        what = f"Git: {untracked} untracked and {len(lines) - untracked} changed, such as {lines[0][3:]}"
        yield Finding("warn", what, "commit, so that lineage names what ran")


def _raw(raw: Path) -> Iterator[Finding]:
    """Of the folder that DVC depends on, and of files whose names it cannot write down: it stops at the first without
    naming it, before any stage starts."""
    if not raw.exists():
        tracked = next((file for of in (raw, *raw.parents[:-1]) if (file := Path(f"{of}.dvc")).exists()), None)
        make = "put the data there; for data that come with a package an empty folder is enough"
        yield Finding("fail", f"{raw}: no such folder", f"`dvc pull {tracked}`" if tracked else make)
    faults = [file for file in walk(raw, "files") if name_fault(file.name)] if raw.is_dir() else []
    if faults:
        what = f"{raw}: {len(faults)} names are not UTF-8, as DVC needs them: {printable(faults[0].name)}"
        yield Finding("fail", what, "rename these files")


def _storage(params: Params) -> Iterator[Finding]:
    places = {str(project_folder()), params.scale.storage or str(project_folder())}
    for place in sorted(places):
        if "://" in place:
            yield Finding(
                "warn", f"storage {addresses.shown(place)}: not looked at", "see that every node can write there"
            )
            continue
        try:
            path = Path(place).absolute()
            there = next(parent for parent in (path, *path.parents) if parent.exists())
            with tempfile.TemporaryFile(dir=there):
                free = shutil.disk_usage(there).free / GIB
        except OSError as error:
            yield Finding("fail", f"storage {place}: {error.strerror or error}", "choose a folder that can be written")
            continue
        status: Literal["ok", "warn", "fail"] = "fail" if free < 1 else "warn" if free < 5 else "ok"
        yield Finding(status, f"storage {place}: {free:.0f} GiB free", "" if status == "ok" else "make room: 5 GiB")


def _tracking(params: Params) -> Iterator[Finding]:
    """The store, and whether it has what is registered as far as DVC knows."""
    named, registered = model_registry.recorded_version(), None
    try:
        uri = addresses.store_uri(params.tracking)
        if (file := addresses.sqlite_file(uri)) and not file.exists():
            yield Finding("ok", f"tracking store {file}: will be made")
        else:
            store = tracking.open_store(params.tracking, create=False)
            if file and store.experiment:
                tracking.check_not_copied(uri, store.client.get_experiment(store.experiment).artifact_location)
            yield Finding("ok", f"tracking store {addresses.shown(uri)}")
            registered = named and model_registry.find_version(store, *named)
    except StageError as error:
        yield Finding("fail", str(error), "start it, or change MLFLOW_TRACKING_URI or tracking.uri")
        return
    if file and unquote(str(file.parent)) != str(file.parent):
        what = f"{file.parent}: MLflow takes a % in a path for an escape, and loads no model from there as it is"
        yield Finding("warn", what, "give `mlflow.pyfunc.load_model` a `dst_path`, or rename the folder")
    if named and not registered:
        what = f"the version of {named[0]} that {REGISTERED} names is not in this store, and DVC does not see that"
        yield Finding("warn", what, "`ganlib register`")


def _token() -> Finding:
    """Whether Ray's token keeps out the network and other users of this machine."""
    mode = os.environ.get("RAY_AUTH_MODE", "token").lower()
    if mode != "token":
        what = f"RAY_AUTH_MODE={mode}: whoever reaches Ray's ports while it runs can run code as you"
        return Finding("warn", what, "unset it")
    if os.environ.get("RAY_AUTH_TOKEN"):
        return Finding("ok", "Ray's token: in RAY_AUTH_TOKEN")
    if (named := os.environ.get("RAY_AUTH_TOKEN_PATH")) and not os.access(named, os.R_OK):
        return Finding("fail", f"RAY_AUTH_TOKEN_PATH: {named} cannot be read", "unset it, or make the file")
    try:
        file = Path(named) if named else token_file()
        there = next(parent for parent in (file, *file.parents) if parent.exists())
        if not os.access(there, os.R_OK if there == file else os.W_OK | os.X_OK):
            raise PermissionError(f"{there} cannot be {'read' if there == file else 'written'}")
        readable = there == file and file.stat().st_mode & 0o077
    except OSError as error:
        return Finding("ok", f"Ray's token: another for each run, as the home folder holds none: {error}")
    if readable:
        what = f"Ray's token {file}: others on this machine may read it, and then run code as you"
        return Finding("warn", what, f"`chmod 600 {file}`; the next run does it where Ray made the file")
    return Finding("ok", f"Ray's token {file}: {'readable by you only' if there == file else 'will be made'}")


def _ray_folder() -> Finding:
    try:
        folder = ray_folder()
    except OSError as error:
        return Finding("fail", str(error))
    return Finding("warn", folder.instead) if folder.instead else Finding("ok", f"Ray's session: in {folder.path}")


def _gpus() -> Iterator[Finding]:
    """Each GPU that torch sees; or why it sees none, where the machine seems to have one."""
    import torch

    if not torch.backends.cuda.is_built():
        if Path("/dev/nvidia0").exists():
            what = f"a GPU is there, but torch {torch.__version__} is built without CUDA"
            yield Finding("warn", what, "install torch with CUDA: https://pytorch.org/get-started/locally")
        return
    if not torch.cuda.is_available():
        if Path("/dev/nvidia0").exists():
            what = f"a GPU is there, but CUDA {torch.version.cuda} of torch {torch.__version__} does not start"
            yield Finding("warn", what, "`nvidia-smi` shows the driver; CUDA_VISIBLE_DEVICES may hide the GPU")
        return
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        versions = f"CUDA {torch.version.cuda} of torch {torch.__version__}, driver for CUDA {_driver_cuda()}"
        yield Finding("ok", f"GPU {index}: {gpu.name}, {gpu.total_memory / GIB:.0f} GiB; {versions}")


def _driver_cuda() -> str:
    """The newest CUDA that the driver runs, such as 13.0."""
    import torch

    ask = getattr(torch._C, "_cuda_getDriverVersion", None)  # which builds for other than NVIDIA's GPUs may lack
    if ask is None:
        return "unknown"
    version = ask()  # 1000 · major + 10 · minor, as by cudaDriverGetVersion
    return f"{version // 1000}.{version % 1000 // 10}"


def _resources(params: Params) -> Finding:
    """A cluster is asked when a stage starts; this machine is looked at now."""
    address = cluster_address(params.scale)
    try:
        check_address(params.scale)
    except StageError as error:
        return Finding("fail", str(error), "start it, or unset what names it")
    if address:
        remedy = "`ganlib doctor --address http://HOST:8265`, of its dashboard, does"
        return Finding("warn", f"Ray cluster {address}: answers, and is not looked into", remedy)
    import torch

    return _fit(params, {"CPU": float(local_cpus()), "GPU": float(torch.cuda.device_count())})


def _fit(params: Params, available: Mapping[str, float]) -> Finding:
    """What `auto` takes of what there is, or that what is asked for does not fit."""
    from pipelines.scale import check_resources, resolve_scale, why_fewer
    from pipelines.training import possible_workers

    possible = possible_workers(params)
    scale = resolve_scale(params.scale, available, possible)
    workers, auto = scale.num_workers, params.scale.num_workers == "auto"
    cpus, gpus = workers * scale.cpus_per_worker, workers * scale.gpus_per_worker
    who = f"{workers} workers{' (auto)' if auto else ''} need"
    if params.scale.num_workers == 0:
        who = "training in the stage's own process needs"
    what = f"{who} {cpus} CPUs and {gpus:g} GPUs; there are {available.get('CPU', 0):g} and {available.get('GPU', 0):g}"
    try:
        check_resources(scale, "num_workers", available)
    except StageError:
        return Finding("fail", what, "lower scale.num_workers, or the CPUs or GPUs of each")
    return Finding("warn" if (fewer := why_fewer(params.scale, available, possible)) else "ok", what, fewer)


if __name__ == "__main__":
    for finding in _examine_from_a_job(json.loads(sys.argv[1])):
        print(FINDING, json.dumps(finding._asdict()), flush=True)
