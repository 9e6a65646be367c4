"""Ray Serve: replicas of the application behind one port, how they start, and how they end.

On a cluster, a RayService manifest names `pipelines.serve.run:application` (infra/kuberay/service.yaml). On one machine
`ganlib serve` does all of it.
"""

# no annotations from the future: Ray reads the class of `application`'s argument

import logging
import os
import signal
import socket
import threading
from collections.abc import Callable
from typing import Any

from ganlib.export import load_generator
from pipelines import model_registry, tracking
from pipelines._stage import StageError
from pipelines.cluster import one_line, start_local
from pipelines.serve.settings import TOKEN, Settings, api_token
from pipelines.serve.training_data import TrainingData

__all__ = ["application", "replica_api", "serve_until_stopped"]

NAME = "ganlib"
_LOOPBACK = ("127.0.0.1", "localhost")
RAY_SETTINGS = {
    # on a busy machine a proxy takes longer than the 5 and 10 s after which Ray would kill it and start it again
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "60",
    # by default Ray's workers give way to all other processes
    "RAY_worker_niceness": "0",
    # what Ray's guide to Serve's performance says for code that does not block its event loop
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1000",
    "RAY_SERVE_LOG_TO_STDERR": "0",
}
"""in the environment of a cluster started here, unless it says otherwise"""
_CONNECTIONS = 10_000  # that Ray hands to a replica at once: how many it accepts is its own business, see max_pending


def replica_api(settings: Settings) -> Any:
    """The routes of a replica. Raises StageError where others reach it and no token is set."""
    import torch

    from pipelines.serve.api import api

    if "*" in settings.hosts and api_token() is None:
        raise StageError(f"hosts: with '*' others reach the service; set {TOKEN} in the environment of the nodes")
    torch.set_num_threads(settings.cpus)
    return api(settings)


def application(settings: Settings) -> Any:
    """What Ray Serve deploys. Each replica loads the models when it starts."""
    from ray import serve

    def build() -> Any:  # in the replica
        return replica_api(settings)

    deployment = serve.deployment(
        name=NAME,
        num_replicas=settings.replicas,
        max_ongoing_requests=_CONNECTIONS,
        graceful_shutdown_timeout_s=settings.drain_s,
        graceful_shutdown_wait_loop_s=0.5,
        logging_config={"enable_access_log": False},  # /metrics counts requests
        ray_actor_options={"num_cpus": settings.cpus, "num_gpus": settings.gpus},
    )
    return deployment(serve.ingress(build)()).bind()


def serve_until_stopped(
    settings: Settings, host: str, port: int, ready: Callable[[str], None], stopping: Callable[[], None]
) -> None:
    """Serve on this machine until SIGTERM or Ctrl-C; then answer what was accepted, and end.

    `ready` is called with the address. Raises StageError for a model that is not there, a port that is taken,
    and an address that others reach where no token is set.
    """
    settings = _local(settings, host, port)
    os.environ.update({key: value for key, value in RAY_SETTINGS.items() if key not in os.environ})
    from ray import serve
    from ray.exceptions import RayError

    logging.getLogger("ray.serve").setLevel(logging.WARNING)  # of this process
    stop = threading.Event()
    with start_local(settings.replicas * settings.cpus):
        previous = {one: signal.signal(one, lambda *_: stop.set()) for one in (signal.SIGTERM, signal.SIGINT)}
        try:
            http = {"host": host, "port": port, "request_timeout_s": 3 * settings.timeout_s}
            serve.start(proxy_location="HeadOnly", http_options=http)
            serve.run(application(settings), name=NAME, route_prefix="/")
            ready(f"http://{host}:{port}")
            stop.wait()
            stopping()
            serve.delete(NAME)  # takes no new requests, and is gone when those that it has are answered
        except (RuntimeError, TimeoutError, RayError) as error:
            raise StageError(f"Ray Serve: {one_line(error)}") from error
        finally:
            for one, handler in previous.items():
                signal.signal(one, handler)


def _local(settings: Settings, host: str, port: int) -> Settings:
    """The settings for replicas on this machine, whose working folder is Ray's. Raises StageError as
    `serve_until_stopped` does."""
    token = api_token()  # raises for one that no header can carry, on loopback too
    if host not in _LOOPBACK and token is None:
        raise StageError(f"--host {host}: others reach it there; set {TOKEN} in the environment to a token of your own")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise StageError(f"--host {host} --port {port}: {error.strerror}") from error
    changed: dict[str, Any] = {"hosts": settings.hosts if host in _LOOPBACK else ("*",)}
    registered = [uri for uri in (settings.model, settings.challenger) if uri and uri.startswith("models:/")]
    if registered:
        store = tracking.open_store(settings.tracking, create=False)
        for uri in registered:
            model_registry.version_by_uri(store, uri)
        os.environ["MLFLOW_TRACKING_URI"] = store.uri  # inherited, not a setting: it may hold a password
    if settings.training_data is not None:
        changed["training_data"] = os.path.abspath(settings.training_data)
        TrainingData(settings.training_data)  # or it is said here
    for key in ("model", "challenger"):
        uri = getattr(settings, key)
        if uri is not None and uri not in registered:
            changed[key] = os.path.abspath(uri)
            try:
                load_generator(uri)
            except ValueError as error:
                raise StageError(str(error)) from error
    return settings.model_copy(update=changed)
