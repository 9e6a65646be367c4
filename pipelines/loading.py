"""Generators out of the registry, for `ganlib.load`, the commands and the service."""

from __future__ import annotations

from pathlib import Path

import torch

from ganlib.config import TrackingConfig, load_params
from ganlib.export import Generator, load_generator
from ganlib.scratch import scratch_folder
from pipelines import model_registry, tracking
from pipelines.model_registry import Version
from pipelines.tracking import Store

__all__ = ["default_store", "generator_files", "load_version"]


def default_store() -> Store:
    """The store of the project in the working folder, or, outside of a project, of `MLFLOW_TRACKING_URI`.

    Raises ConfigError for a faulty `params.yaml`, StageError where the store does not answer.
    """
    config = load_params().tracking if Path("params.yaml").is_file() else TrackingConfig()
    return tracking.open_store(config, create=False)


def load_version(store: Store, version: Version | str, device: torch.device | str = "cpu") -> Generator:
    """The generator of a version, or at `models:/NAME@ALIAS` or `models:/NAME/VERSION`.

    Raises StageError where the store does not have it, or not as it was registered, ValueError where it is none; each
    names the version.
    """
    name = version if isinstance(version, str) else version.uri
    with scratch_folder() as scratch:
        return load_generator(model_registry.download(store, version, Path(scratch)), device, name=name)


def generator_files(source: str, scratch: Path) -> Path:
    """The folder with the generator's files, below `scratch` where they come out of the registry."""
    if source.startswith("models:/"):
        return model_registry.download(default_store(), source, scratch)
    return Path(source)
