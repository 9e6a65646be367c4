"""Ray clusters: connect to one, or start one on this machine, with the token that keeps others out.

What Ray 2.60 leaves open cannot be closed here: its GCS and raylets, and torch's TCPStore, listen on all interfaces,
the last without asking for the token. Training belongs behind a firewall. A cluster started here has no dashboard, and
exports no metrics, whose port asks for no token either.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import joblib
import torch

from ganlib.config import Params, ScaleConfig
from pipelines._stage import StageError
from pipelines.guard import restarting
from pipelines.places import home_folder, ray_folder

__all__ = [
    "TokenMissing",
    "check_address",
    "cluster",
    "cluster_address",
    "connected",
    "local_cpus",
    "on_every_node",
    "one_line",
    "protect_token",
    "start_local",
    "token",
    "token_file",
    "usable_resources",
]

_CHECK_ALIVE = "/ray.rpc.NodeInfoGcsService/CheckAlive"  # the cheapest question that Ray's GCS answers
NODE_TIMEOUT_S = 120.0
LEAN = {
    "RAY_enable_metrics_collection": "0",  # not used here
    "RAY_prestart_worker_first_driver": "0",  # processes that no fit can use, as they lack its environment
    "RAY_worker_niceness": "0",  # Ray's 15 gives way to all else: on a machine that others use, a fit starves
}
"""settings for a cluster started here: what Ray does by default costs a fit seconds"""


class TokenMissing(StageError):
    """There is no token where Ray would look for it."""


def token_file() -> Path:
    """Where Ray keeps the token, unless a variable names another place. Raises OSError without a home folder."""
    return home_folder() / ".ray" / "auth_token"


def token() -> tuple[str, str]:
    """Ray's token and where it was found, looked for where Ray does.

    Raises TokenMissing if there is none, and StageError if it cannot be read.
    """
    if value := os.environ.get("RAY_AUTH_TOKEN"):
        return value.strip(), "RAY_AUTH_TOKEN"
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    place = f"RAY_AUTH_TOKEN_PATH, {named}" if named else str(token_file())
    try:
        text = Path(named or token_file()).read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        text = ""
    except (OSError, ValueError) as error:
        raise StageError(f"Ray's token: {place} cannot be read: {error}") from error
    if not text:
        raise TokenMissing(
            f"no token here: set RAY_AUTH_TOKEN, or copy ~/.ray/auth_token of the cluster's head node to {token_file()}"
            + (f" (RAY_AUTH_TOKEN_PATH names {named}, which is empty or not there)" if named else "")
        )
    return text, place


def _use_token() -> None:
    """Turn Ray's token authentication on for this process and its children if a token is here and nothing is said.

    Ray does so only for a cluster that it starts or finds by itself, not for one whose address it is given.
    """
    if "RAY_AUTH_MODE" not in os.environ:
        try:
            token()
        except (StageError, OSError):
            return  # `cluster` says what is wrong, if a token is asked for
        os.environ["RAY_AUTH_MODE"] = "token"


_use_token()  # here, as Ray reads the variable once, when it is imported


def cluster_address(scale: ScaleConfig) -> str | None:
    """The cluster to connect to: `RAY_ADDRESS`, which Ray sets in a job, else `scale.ray_address`; None: none."""
    return os.environ.get("RAY_ADDRESS") or scale.ray_address


def check_address(scale: ScaleConfig) -> None:
    """Raise StageError if `cluster_address` is no cluster's, nothing answers there, or it refuses the token here."""
    if address := cluster_address(scale):
        key = "RAY_ADDRESS" if os.environ.get("RAY_ADDRESS") else "scale.ray_address"
        _check_reachable(address, key)
        _check_token(address, key)


def local_cpus() -> int:
    """The cores that a cluster on this machine has: those that this process may use, as by `taskset` or a container's
    quota; at least one."""
    return int(joblib.cpu_count())


@contextmanager
def cluster(params: Params) -> Iterator[dict[str, float]]:
    """Connect to the cluster of `cluster_address`, or start one on this machine.

    Yields its resources, as far as they can be used. Raises StageError if there is no such cluster, or no token. If
    the cluster's servers are lost in the block, this process starts again: see `guard.py`.
    """
    key = "RAY_ADDRESS" if os.environ.get("RAY_ADDRESS") else "scale.ray_address"
    address = cluster_address(params.scale)
    if address:
        check_address(params.scale)
        _init(f"{key}: no Ray cluster", address=address)
    else:
        _init_local(local_cpus(), "Ray does not start, and `dvc repro` tries again")
    import ray

    try:
        gcs_address = ray.get_runtime_context().gcs_address
        with restarting(gcs_address, local=not address, at_most=params.scale.max_failures):
            yield usable_resources(ray.cluster_resources())
    finally:
        ray.shutdown()


@contextmanager
def connected(scale: ScaleConfig) -> Iterator[dict[str, float]]:
    """Inside, this process is connected to the cluster of `cluster_address`, whose resources are yielded. Raises
    StageError if there is no such cluster, or no token."""
    check_address(scale)
    _init("no Ray cluster", address=cluster_address(scale))
    import ray

    try:
        yield usable_resources(ray.cluster_resources())
    finally:
        ray.shutdown()


@contextmanager
def start_local(num_cpus: int) -> Iterator[None]:
    """A cluster on this machine, with this many cores to give away. Raises StageError if it does not start."""
    _init_local(num_cpus, "Ray does not start")
    import ray

    try:
        yield
    finally:
        ray.shutdown()


def _init_local(num_cpus: int, failed: str) -> None:
    """Ray's servers listen on all interfaces, regardless of the address given; what keeps others out is Ray's token
    authentication, which is on for a cluster started here unless RAY_AUTH_MODE says otherwise."""
    protect_token()
    folder = ray_folder()
    if folder.instead:
        print(folder.instead, flush=True)
        os.environ["RAY_TMPDIR"] = str(folder.path)
    os.environ.update({key: value for key, value in LEAN.items() if key not in os.environ})
    _init(failed, address="local", include_dashboard=False, num_cpus=num_cpus)


def _init(failed: str, **options: Any) -> None:
    import ray

    terminate = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(logging_level="error", log_to_driver=False, **options)
    except Exception as error:  # Ray raises the plain one, too, as where a busy machine takes more than 30 s
        raise StageError(f"{failed}: {' '.join(str(error).split())[:500]}") from error
    finally:  # Ray sets a handler of its own
        signal.signal(signal.SIGTERM, terminate)


def _check_reachable(address: str, key: str = "scale.ray_address") -> None:
    """Raise StageError if nothing listens at HOST:PORT: Ray would try for minutes."""
    if "://" in address and not address.startswith("ray://"):
        raise StageError(
            f"{key}: {address!r} is not a cluster's address; expected HOST:PORT of its head, or auto; "
            "a dashboard's address is for `ganlib submit --address`"
        )
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
        except OSError as error:
            raise StageError(f"{key}: no Ray cluster at {address}: {error}") from error


def _check_token(address: str, key: str) -> None:
    """Raise StageError if the cluster at HOST:PORT asks for a token and this is not it: Ray would try for 40 s.

    The token is sent only to a cluster that asks for one.
    """
    if not address.rpartition(":")[2].isdecimal() or address.startswith("ray://") or not _refuses(address, None):
        return
    asks = f"{key}: the cluster at {address} asks for a token"
    if (mode := os.environ.get("RAY_AUTH_MODE", "token").lower()) != "token":
        raise StageError(f"{asks}, and RAY_AUTH_MODE is {mode!r}; unset it or set it to 'token'")
    try:
        secret, place = token()
    except TokenMissing as error:
        raise StageError(f"{asks}; {error}") from error
    if _refuses(address, secret):
        raise StageError(
            f"{asks}, and refuses the one here ({place}); copy ~/.ray/auth_token of the cluster's head node to "
            f"{token_file()}, or set RAY_AUTH_TOKEN"
        )


def _refuses(address: str, secret: str | None) -> bool:
    """Whether the GCS at `address` refuses a question asked with this token. Any other answer is for Ray to judge."""
    import grpc  # type: ignore[import-untyped]

    # past proxies of the environment, as Ray connects
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        ask = channel.unary_unary(_CHECK_ALIVE, request_serializer=bytes, response_deserializer=bytes)
        try:
            ask(b"", timeout=5, metadata=[("authorization", f"Bearer {secret}")] if secret else None)
        except grpc.RpcError as error:
            return bool(error.code() == grpc.StatusCode.UNAUTHENTICATED)
    return False


def protect_token() -> None:
    """Make the token of a cluster on this machine, readable by its owner only; Ray would make it readable by all.

    One that is there keeps its value. Where the home folder cannot hold one, this process and its children have one of
    their own. Call it before Ray is imported, and Ray asks for it.
    """
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return  # the user's own
    try:
        _make_token(token_file())
    except OSError:
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    if "ray" not in sys.modules:
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def _make_token(file: Path) -> None:
    """Raises OSError if there can be none that only the owner reads."""
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not file.exists():
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as opened:
            opened.write(secrets.token_hex(32))
        try:
            os.link(partial, file)
        except FileExistsError:
            pass  # another process was faster: its token counts
        finally:
            partial.unlink()
    for path, mode in ((file.parent, 0o700), (file, 0o600)):
        if path.stat().st_mode & 0o077:
            path.chmod(mode)
    file.read_text()


def usable_resources(resources: Mapping[str, float]) -> dict[str, float]:
    """Ray's resources without GPUs that this torch cannot use; prints a line if there are such."""
    usable = dict(resources)
    if usable.get("GPU") and not torch.backends.cuda.is_built():
        print(f"scale: {usable.pop('GPU'):g} GPUs stay idle: torch {torch.__version__} is built without CUDA")
    return usable


def on_every_node(function: Callable[..., Any], *args: Any, timeout_s: float = NODE_TIMEOUT_S) -> dict[str, Any]:
    """What `function(*args)` returns on each living node of the cluster that this process is connected to.

    Keyed by `NAME (ID)`. A node that fails, or does not answer in time, has the exception in place of an answer.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(num_cpus=0, max_retries=0)(function)
    asked = {
        f"{node['NodeName']} ({node['NodeID'][:8]})": task.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote(*args)
        for node in ray.nodes()
        if node["Alive"]
    }
    done, _ = ray.wait(list(asked.values()), num_returns=len(asked), timeout=timeout_s)
    answers: dict[str, Any] = {}
    for node, reference in asked.items():
        try:
            answers[node] = ray.get(reference) if reference in done else TimeoutError(f"no answer in {timeout_s:g} s")
        except ray.exceptions.RayError as error:
            answers[node] = error
    return answers


def one_line(error: BaseException) -> str:
    """The last line that says anything of an exception which may hold the traceback of a remote one."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]
