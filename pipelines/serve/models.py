"""Which version is served. An alias is followed: a request gets the version that the alias points to now."""

from __future__ import annotations

import dataclasses
import math
import time
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import nn

from ganlib.device import default_device
from ganlib.export import Generator, load_generator
from ganlib.game import Sample
from pipelines import model_registry, tracking
from pipelines._stage import StageError
from pipelines.loading import load_version
from pipelines.serve.directions import principal_directions
from pipelines.serve.settings import Settings

__all__ = ["Model", "Served", "TooSlow", "WorkLimit"]


class TooSlow(Exception):
    """A request has worked for longer than it may."""


class WorkLimit:
    """Stops a generator before the next chunk or tile once it has worked for longer than it may."""

    def __init__(self) -> None:
        self.end = math.inf

    def start(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds

    def __call__(self, module: nn.Module, inputs: Any) -> None:
        if time.monotonic() > self.end:
            raise TooSlow


@dataclass(frozen=True, eq=False)
class Served:
    """A version that is loaded. Requests keep the one they came to, so an answer is wholly of one version."""

    uri: str
    """models:/NAME/NUMBER, or the folder"""
    generator: Generator
    answers: dict[str, tuple[int, ...]]
    """the names of the model's answers, each with its shape for one example"""
    limit: WorkLimit = field(default_factory=WorkLimit)

    @cached_property
    def directions(self) -> list[Sample]:
        """The model's principal directions, found when they are first asked for."""
        return principal_directions(self.generator)

    def __post_init__(self) -> None:
        self.generator.game.generator.register_forward_pre_hook(self.limit)


class Model:
    """An address, and the version that it points to."""

    def __init__(self, uri: str, settings: Settings):
        self.uri, self.settings = uri, settings
        self.current = self._load(self._pointed_to())

    def refresh(self) -> bool:
        """Load the version that the alias points to now, if it is another; whether it is.

        Raises StageError where the store does not answer or the version cannot be loaded: then the old one stays.
        """
        uri = self._pointed_to()
        if uri == self.current.uri:
            return False
        self.current = self._load(uri)
        return True

    def _pointed_to(self) -> str:
        if not self.uri.startswith("models:/"):
            return self.uri
        return model_registry.version_by_uri(self._store(), self.uri).uri

    def _store(self) -> tracking.Store:
        return tracking.open_store(self.settings.tracking, create=False)

    def _load(self, uri: str) -> Served:
        try:
            if uri.startswith("models:/"):
                generator = load_version(self._store(), uri, default_device())
            else:
                generator = load_generator(uri, default_device())
        except ValueError as error:
            raise StageError(str(error)) from error
        served = Served(uri, _bounded(generator, self.settings), generator.answer_shapes())
        if not generator.translates:
            generator.sample(1)  # the first pass takes longer: libraries choose their algorithms
        return served


def _bounded(generator: Generator, settings: Settings) -> Generator:
    """The generator with a smaller limit on images that are read, where its kind of data has one."""
    spec, name = generator.spec, "max_megapixels"
    if name not in type(spec.sample).model_fields:
        return generator
    least = min(getattr(spec.sample, name), settings.max_megapixels)
    bounded = dataclasses.replace(spec, sample=spec.sample.model_copy(update={name: least}))
    return dataclasses.replace(generator, spec=bounded)
