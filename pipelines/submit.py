"""`ganlib submit`: the pipeline as a job of a Ray cluster, over Ray's Jobs API; `pipelines.job` is the other end.

A job is sent the project without what `.rayignore` and `.gitignore` files name, and a few variables; no secrets: those
come from the cluster's environment. Its name is a digest of what is sent, so the same submitted again is found.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import shlex
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pathspec import GitIgnoreSpec

from ganlib.config import load_params
from ganlib.scratch import scratch_folder
from pipelines import addresses, lineage
from pipelines._stage import StageError
from pipelines.cluster import TokenMissing, token
from pipelines.job import RESULT, dvc_config, unpack_results

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

__all__ = [
    "DEFAULT_ADDRESS",
    "Package",
    "asks_for_token",
    "connect",
    "explain",
    "follow",
    "pack",
    "start",
    "submit",
]

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
PACKAGE_MIB = 64
PATIENCE_S = 120.0
"""how long a cluster that does not answer is asked again while its job is followed"""
RETRY_S = 2.0

IGNORE_FILES = (".gitignore", ".rayignore")
CONTEXT = ("DVC_EXP_NAME", "DVC_EXP_BASELINE_REV")
SECRET_OPTIONS = {
    *("access_key_id", "secret_access_key", "session_token", "password", "connection_string", "account_key"),
    *("sas_token", "client_secret", "gdrive_client_secret", "oss_key_id", "oss_key_secret", "token"),
}


class Package(NamedTuple):
    """A project as a zip file of the same bytes for the same content. `digest`: of the content."""

    file: Path
    digest: str


def submit(project: Path, address: str, arguments: Sequence[str], *, pull: bool, push: bool, wait: bool) -> int:
    """Submit `dvc ARGUMENTS`, or find the job that has been; with `wait`, follow it and bring its results here.

    Returns the pipeline's exit status; 0 without `wait`. Raises StageError for what can be mended here.
    """
    arguments = list(arguments) or ["repro"]
    if arguments[0] == "exp":
        raise StageError(
            f"dvc {' '.join(arguments[:2])}: experiments need Git, which a job has not; submit the pipeline as it is "
            "in this folder: `ganlib submit -- repro`"
        )
    _check_project(project)
    client = connect(address)
    options = [option for option, wanted in (("--no-pull", not pull), ("--no-push", not push)) if wanted]
    job, succeeded = _submit_or_find(client, project, options, arguments)
    again = f"the same command follows it, `ray job stop --address {address} {job}` stops it"
    if not wait:
        print(f"{job}: {again}")
        return 0
    results: list[str] = []

    def show(line: str) -> None:
        if line.startswith(RESULT):
            results.append(line)
        elif not succeeded:
            print(line, end="", flush=True)

    try:
        ended = follow(client, job, show)
    except KeyboardInterrupt:
        print(f"\n{job}: goes on; {again}")
        return 130
    if ended.status == "SUCCEEDED":
        files = unpack_results(results, project)
        print(f"{job}: succeeded; {len(files)} files brought back, such as {', '.join(files[:2])}")
        return 0
    print(f"{job}: {explain(ended)}")
    return ended.driver_exit_code or 1


def _submit_or_find(
    client: JobSubmissionClient, project: Path, options: list[str], arguments: list[str]
) -> tuple[str, bool]:
    """The job that does this for the project as it is, submitted now or before, and whether it has succeeded."""
    with scratch_folder() as scratch:
        package = pack(project, Path(scratch) / "project.zip")
        variables = _variables(project)
        content = json.dumps([package.digest, variables, options, arguments])
        name = f"ganlib-{hashlib.sha256(content.encode()).hexdigest()[:12]}"
        job, status = _last_attempt(client, name)
        if status not in (None, "FAILED", "STOPPED"):
            print(f"{job}: {'has succeeded' if status == 'SUCCEEDED' else 'is running'}, submitted before")
            return job, status == "SUCCEEDED"
        if status:
            print(f"{job}: {status.lower()} before; submitted again, it goes on with what is kept")
        job = _attempt(name, _number(job) + 1 if job else 1)
        command = ["python", "-m", "pipelines.job", *options, name, *arguments]
        runtime_env = {"working_dir": str(package.file), "env_vars": variables}
        start(client, job, shlex.join(command), runtime_env)
        print(f"{job}: submitted to {client.get_address()}")
        return job, False


def _check_project(project: Path) -> None:
    """Raise StageError or ConfigError for a project that cannot be a job, or that would send a secret along."""
    for name in ("dvc.yaml", "params.yaml", ".dvc/config"):
        if not (project / name).is_file():
            raise StageError(f"{project}: holds no {name}; change to the project folder")
    params = load_params(project / "params.yaml")
    uri = params.tracking.uri or ""
    if addresses.shown(uri) != uri:
        raise StageError(
            f"tracking.uri: {addresses.shown(uri)} holds a secret, which would be sent with the project; "
            "set MLFLOW_TRACKING_URI, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, on the cluster"
        )
    config = dvc_config(project)
    for section in config.sections():
        for option, value in config[section].items():
            if option in SECRET_OPTIONS or addresses.shown(value) != value:
                raise StageError(
                    f".dvc/config: {section.strip(chr(39))}: {option} is a secret, which would be sent with the "
                    "project; keep it in .dvc/config.local, and in the environment of the cluster"
                )
    raw = project / "data" / "raw" / params.data
    tracked = raw.with_name(f"{raw.name}.dvc")
    sent = any(raw in path.parents for path in _files(project))
    if not sent and not tracked.exists():
        raise StageError(
            f"data/raw/{params.data}: not sent with the project, and not in DVC, so a job would lack it; "
            f"run `dvc add data/raw/{params.data}` and `dvc push`"
        )
    if not sent and not config.get("core", "remote", fallback=""):
        raise StageError(
            f"data/raw/{params.data}: in DVC, but .dvc/config names no default remote from which a job could pull it; "
            "run `dvc remote add --default NAME URL` and `dvc push`"
        )


def _files(project: Path) -> Iterator[Path]:
    """The files that a job is sent, in order: all but those that an ignore file of their folder, or above, names."""
    specs: dict[Path, list[GitIgnoreSpec]] = {}

    def ignored(path: Path, is_folder: bool) -> bool:
        for folder in path.parents:
            name = path.relative_to(folder).as_posix() + ("/" if is_folder else "")
            if any(spec.match_file(name) for spec in specs.get(folder, ())):
                return True
            if folder == project:
                return False
        return False

    for folder, folders, names in os.walk(project):
        here = Path(folder)
        specs[here] = [
            GitIgnoreSpec.from_lines((here / name).read_text(encoding="utf-8").splitlines())
            for name in IGNORE_FILES
            if name in names
        ]
        folders[:] = sorted(name for name in folders if name != ".git" and not ignored(here / name, True))
        for name in sorted(names):
            path = here / name
            if name != ".git" and path.is_file() and not ignored(path, False):
                yield path


def pack(project: Path, file: Path) -> Package:
    """Write what a job is sent to the zip file `file`. Raises StageError if it is more than PACKAGE_MIB."""
    sizes = {path: path.stat().st_size for path in _files(project)}
    mib = sum(sizes.values()) / 2**20
    if mib > PACKAGE_MIB:
        largest = sorted(sizes, key=lambda path: sizes[path], reverse=True)[:3]
        named = ", ".join(f"{path.relative_to(project)} ({sizes[path] / 2**20:.0f} MiB)" for path in largest)
        raise StageError(
            f"the project is {mib:.0f} MiB, more than the {PACKAGE_MIB} MiB that a job may be sent; largest: {named}; "
            "list in .rayignore what the pipeline does not need, and keep data in DVC"
        )
    digest = hashlib.sha256()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as zipped:
        for path in sizes:
            entry = zipfile.ZipInfo(path.relative_to(project).as_posix())  # dated 1980: the same bytes each time
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, (path.stat().st_mode & 0xFFFF) << 16
            content = path.read_bytes()
            zipped.writestr(entry, content)
            digest.update(f"{entry.filename}\0{len(content)}\0".encode() + content)
    return Package(file, digest.hexdigest())


def _variables(project: Path) -> dict[str, str]:
    """Variables for what a job cannot know without Git: the commit, and the experiment that it belongs to."""
    sha = lineage.git_sha(project)
    context = {name: os.environ[name] for name in CONTEXT if os.environ.get(name)}
    return {**({lineage.GIT_SHA: sha} if sha else {}), **context}


# -- the cluster's jobs ----------------------------------------------------------------------------------------------


def connect(address: str) -> JobSubmissionClient:
    """A client of the Jobs API at `address`, with Ray's token if that asks for it.

    Raises StageError, in a line, if there is no cluster, no token, or a wrong one.
    """
    import requests
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    for name in ("dashboard_sdk", "job.sdk"):  # which tell of uploads and connections that go well
        logging.getLogger(f"ray.dashboard.modules.{name}").setLevel(logging.WARNING)
    try:
        if not asks_for_token(address):
            return JobSubmissionClient(address, headers={"Authorization": ""})
        try:
            secret, place = token()  # sent only where it is asked for
        except TokenMissing as error:
            raise StageError(f"--address: the cluster at {address} asks for a token; {error}") from error
        try:
            return JobSubmissionClient(address, headers={"Authorization": f"Bearer {secret}"})
        except AuthenticationError as error:
            raise StageError(
                f"--address: the cluster at {address} refuses the token that is here ({place}); "
                "copy ~/.ray/auth_token of its head node, or set RAY_AUTH_TOKEN"
            ) from error
    except (ConnectionError, RuntimeError, requests.RequestException) as error:
        if isinstance(error, StageError):
            raise
        if isinstance(error, requests.exceptions.ProxyError):
            scheme = address.partition(":")[0]
            why = f"the proxy of {scheme}_proxy does not answer; NO_PROXY lists hosts that are asked without one"
        else:
            why = "nothing answers there" if isinstance(error, requests.ConnectionError) else _one_sentence(error)
        raise StageError(f"--address: no Ray cluster at {address}: {why}") from error


def asks_for_token(address: str) -> bool:
    """Whether the dashboard at `address` answers only to those who have the token; requests' errors pass."""
    import requests

    if not address.startswith(("http://", "https://")):
        raise StageError(f"--address: {address!r}: expected the address of Ray's dashboard, such as {DEFAULT_ADDRESS}")
    return requests.get(f"{address.rstrip('/')}/api/version", timeout=30).status_code == 401


def start(client: JobSubmissionClient, job: str, entrypoint: str, runtime_env: dict[str, Any]) -> None:
    """Submit a job; one of that name which another process has just submitted is left as it is."""
    import requests

    try:
        client.submit_job(entrypoint=entrypoint, submission_id=job, runtime_env=runtime_env)
    except (RuntimeError, requests.RequestException) as error:
        try:
            client.get_job_status(job)
        except (RuntimeError, requests.RequestException):
            raise StageError(f"the cluster takes no job: {_one_sentence(error)}") from error


def _attempt(name: str, number: int) -> str:
    return name if number == 1 else f"{name}-{number}"


def _number(job: str) -> int:
    """Which attempt a job's name says that it is."""
    return int([*job.split("-"), "1"][2])


def _last_attempt(client: JobSubmissionClient, name: str) -> tuple[str, str | None]:
    """The newest job of those named `name`, or `name-2`, `name-3` …, and its status; `("", None)` without any."""
    found = {job.submission_id: job.status for job in client.list_jobs() if job.submission_id}
    jobs = [job for job in found if job == name or job.startswith(f"{name}-")]
    return max(((job, found[job].value) for job in jobs), key=lambda one: _number(one[0]), default=("", None))


def follow(client: JobSubmissionClient, job: str, show: Callable[[str], None]) -> JobDetails:
    """Call `show` with each line of a job's log, from the first, until the job has ended; returns what became of it.

    A connection that is lost is made anew. Raises StageError if the cluster does not answer for PATIENCE_S.
    """
    import aiohttp
    import requests

    shown, rest = 0, ""
    lost: float | None = None  # since when the cluster does not answer; a job may be silent for much longer

    async def tail() -> None:
        nonlocal shown, rest, lost
        number, rest = 0, ""
        async for part in client.tail_job_logs(job):
            lost = None
            *lines, rest = (rest + part).split("\n")
            for line in lines:
                number += 1
                if number > shown:
                    show(f"{line}\n")
                    shown = number

    while True:
        try:
            asyncio.run(tail())
            details = client.get_job_info(job)
            if details.status.is_terminal():
                if rest:
                    show(rest)
                return details
            lost = None
        except (RuntimeError, OSError, aiohttp.ClientError, requests.RequestException) as error:
            lost = lost or time.monotonic()
            if time.monotonic() - lost > PATIENCE_S:
                silence = f"the cluster has not answered for {PATIENCE_S:.0f} s ({_one_sentence(error)})"
                raise StageError(f"{job}: {silence}; the same command follows the job again") from error
        time.sleep(RETRY_S)


def explain(ended: JobDetails) -> str:
    """Why a job did not succeed, in a line; where it got as far as a log, that says more."""
    if ended.driver_exit_code:
        return f"{ended.status.value.lower()} with status {ended.driver_exit_code}"
    return f"{ended.status.value.lower()}: {' '.join((ended.message or '').split())[:300]}"


def _one_sentence(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
