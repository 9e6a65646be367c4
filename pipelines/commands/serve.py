"""`ganlib serve`: a model over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.commands._common import ModelURI, one_line_errors

__all__ = ["serve"]


@one_line_errors
def serve(
    model_uri: ModelURI,
    challenger: Annotated[str | None, typer.Option(help="another model, to be compared with it on the page")] = None,
    training_data: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER", help="the project's `data`: show whoever asks the training examples near a sample"
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(help="the address to listen at; other than loopback with a token only")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="the port to listen on")] = 8000,
    replicas: Annotated[
        int, typer.Option(min=1, max=1000, help="processes with the model, each with its share of the cores")
    ] = 1,
    max_pending: Annotated[int, typer.Option(min=1, help="requests that may wait at a replica; others get 429")] = 32,
) -> None:
    """Serve a model over HTTP, with a page to look at it. An alias is followed to new versions.

    Clients have to send the token in the environment's GANLIB_API_TOKEN, if there is one.
    """
    from importlib.util import find_spec

    from ganlib.config import TrackingConfig, load_params
    from ganlib.device import default_device
    from pipelines._stage import StageError
    from pipelines.cluster import local_cpus

    if missing := [name for name in ("fastapi", "prometheus_client", "uvicorn") if find_spec(name) is None]:
        raise StageError(f"{', '.join(missing)}: not installed; `pip install -e '.[serve]'` brings it")
    from pipelines.serve.run import serve_until_stopped
    from pipelines.serve.settings import Settings

    settings = Settings(
        model=model_uri,
        challenger=challenger,
        training_data=training_data,
        tracking=load_params().tracking if Path("params.yaml").is_file() else TrackingConfig(),
        replicas=replicas,
        cpus=max(1, local_cpus() // replicas),
        gpus=1 / replicas if default_device().type == "cuda" else 0,
        max_pending=max_pending,
    )
    serve_until_stopped(
        settings,
        host,
        port,
        ready=lambda address: typer.echo(f"{model_uri} at {address}; Ctrl-C ends it"),
        stopping=lambda: typer.echo("answering what was accepted"),
    )
