"""What `ganlib doctor` looks at: whatever would otherwise stop a pipeline half-way. It changes nothing."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from packaging.requirements import Requirement

from ganlib.config import ConfigError, Params, load_params
from pipelines import tracking
from pipelines._stage import StageError, home

__all__ = ["Finding", "examine"]

GIB = 2**30


class Finding(NamedTuple):
    status: Literal["ok", "warn", "fail"]
    what: str
    remedy: str = ""


def examine() -> Iterator[Finding]:
    """Every finding, in the order in which things would fail."""
    yield _python()
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
    yield from _storage(params)
    yield _tracking(params)
    yield from _gpus()
    yield _resources(params)


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
        yield f"{wanted.name} is not installed ({wanted} is wanted)"
        return
    if not wanted.specifier.contains(version, prereleases=True):
        yield f"{wanted.name} {version} is installed, {wanted.specifier} is wanted"
    for extra in wanted.extras:
        for part in map(Requirement, importlib.metadata.requires(wanted.name) or []):
            marker = part.marker
            if marker and marker.evaluate({"extra": extra}) and not marker.evaluate({"extra": ""}):
                yield from (f"{wanted.name}[{extra}]: {fault}" for fault in _faults(part))


def _repository() -> Iterator[Finding]:
    if not Path("dvc.yaml").is_file():
        yield Finding("fail", f"{Path.cwd()} holds no dvc.yaml", "change to the project folder")
    if Path(".dvc").is_dir():
        yield Finding("ok", "DVC repository")
    else:
        yield Finding("fail", "not a DVC repository", "run `dvc init`")
    try:
        git = subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):  # OSError: Git is not installed
        yield Finding("warn", "not a Git repository", "lineage will say 'none'; `git init` and commit")
        return
    if not git:
        yield Finding("ok", "Git: nothing untracked or changed")
    else:
        lines = git.splitlines()
        untracked = sum(line.startswith("??") for line in lines)
        what = f"Git: {untracked} untracked and {len(lines) - untracked} changed, such as {lines[0][3:]}"
        yield Finding("warn", what, "commit, so that lineage names what ran")


def _storage(params: Params) -> Iterator[Finding]:
    places = {str(home()), params.scale.storage or str(home())}
    for place in sorted(places):
        if "://" in place:
            yield Finding(
                "warn", f"storage {tracking.shown(place)}: not looked at", "see that every node can write there"
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


def _tracking(params: Params) -> Finding:
    try:
        uri = tracking.store_uri(params.tracking)
        if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
            return Finding("ok", f"tracking store {uri}: will be made")
        tracking.open_store(params.tracking, create=False)
    except StageError as error:
        return Finding("fail", str(error), "start it, or change MLFLOW_TRACKING_URI or tracking.uri")
    return Finding("ok", f"tracking store {tracking.shown(uri)}")


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
    address = params.scale.ray_address or os.environ.get("RAY_ADDRESS")
    if address:
        return Finding("warn", f"Ray cluster {address}: not looked at", "`ray status` there shows what it has")
    import torch

    from pipelines.launch import check_resources, possible_workers, resolve_scale, why_fewer

    available = {"CPU": float(len(os.sched_getaffinity(0))), "GPU": float(torch.cuda.device_count())}
    possible = possible_workers(params)
    scale = resolve_scale(params.scale, available, possible)
    workers, auto = scale.num_workers, params.scale.num_workers == "auto"
    cpus, gpus = workers * scale.cpus_per_worker, workers * scale.gpus_per_worker
    what = (
        f"{workers} workers{' (auto)' if auto else ''} want {cpus} CPUs and {gpus:g} GPUs; "
        f"there are {available['CPU']:g} and {available['GPU']:g}"
    )
    try:
        check_resources(scale, "num_workers", available)
    except StageError:
        return Finding("fail", what, "lower scale.num_workers, or the CPUs or GPUs of each")
    return Finding("warn" if (fewer := why_fewer(params.scale, available, possible)) else "ok", what, fewer)
