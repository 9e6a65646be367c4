"""The settings of a service, and the limits on requests."""

from __future__ import annotations

import os
from typing import Annotated

from pydantic import Field

from ganlib._config import Config
from ganlib.config import TrackingConfig
from pipelines._stage import StageError

__all__ = ["TOKEN", "Settings", "api_token"]

TOKEN = "GANLIB_API_TOKEN"
"""the environment variable with the token that clients have to send; not a setting, because Ray shows settings"""


def api_token() -> str | None:
    """The API token of the environment, stripped (a file may end in a newline); None if it is not set.

    Raises StageError for characters that an HTTP header cannot carry.
    """
    token = os.environ.get(TOKEN, "").strip()
    if not (token.isascii() and token.isprintable()):
        raise StageError(f"{TOKEN}: expected only printable ASCII characters, found others")
    return token or None


class Settings(Config):
    """Of one service. In a RayService manifest these are the application's `args`."""

    model: str
    """models:/NAME@ALIAS, which is followed, models:/NAME/VERSION, or a generator's folder"""
    challenger: str | None = None
    """another model of the same kind, to be compared with it"""
    training_data: str | None = None
    """the folder `data` of the project that trained the model: whoever may ask sees the examples that a sample is
    nearest to"""
    tracking: TrackingConfig = TrackingConfig()
    """the store; `MLFLOW_TRACKING_URI` in the environment comes first"""
    hosts: tuple[str, ...] = ("127.0.0.1", "localhost")
    """what requests may call this server in `Host`, which keeps other sites' pages out; "*" is anything"""

    replicas: Annotated[int, Field(ge=1, le=1000)] = 1
    cpus: Annotated[int, Field(ge=1)] = 1
    """cores, and threads of torch, of a replica"""
    gpus: Annotated[float, Field(ge=0)] = 0.0
    """of a replica"""

    max_samples: Annotated[int, Field(ge=1, le=2**20)] = 1024
    """of one request, and of one forward pass"""
    max_sample_bytes: Annotated[int, Field(ge=1)] = 2**23
    """of one request's samples, as stored; in JSON a number takes four times that"""
    max_body_bytes: Annotated[int, Field(ge=1)] = 2**23
    """of a request, such as an uploaded file"""
    max_megapixels: Annotated[float, Field(gt=0)] = 1.0
    """of an uploaded image, before it is decoded"""
    max_pending: Annotated[int, Field(ge=1)] = 32
    """requests that a replica has accepted and not answered; more are refused with 429"""
    timeout_s: Annotated[float, Field(gt=0)] = 30.0
    """how long a request may wait, and how long it may then work"""
    batch_wait_s: Annotated[float, Field(ge=0)] = 0.002
    """how long a forward pass waits for more requests"""
    poll_s: Annotated[float, Field(gt=0)] = 10.0
    """how often it is looked whether an alias has moved"""
    drain_s: Annotated[float, Field(ge=0)] = 60.0
    """how long accepted requests have to be answered when the service ends"""
