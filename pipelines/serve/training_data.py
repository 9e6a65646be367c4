"""The examples that a model was trained on, from a project's folder `data` (`--training-data`).

A version of a model holds none of them, so serving them is a choice of the person who starts the service.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from ganlib import shards
from ganlib.config import ConfigError
from ganlib.data._spec import Spec
from ganlib.reference import Reference
from pipelines._stage import StageError
from pipelines.neighbours import nearest_examples, space_of_features

__all__ = ["TrainingData"]


class TrainingData:
    """A project's folder `data`: features of training examples, as many as the reference keeps, and the examples."""

    def __init__(self, folder: str):
        """Raises StageError where it is no such folder."""
        prepared, reference = Path(folder, "prepared"), Path(folder, "reference")
        try:
            self.spec = shards.read_spec(prepared)
            found = Reference.load(reference)
            found.check(self.spec)
            self.space = space_of_features(found.spaces.values())
            self._stored = shards.stored(prepared, "train", limit=len(self.space.train))["sample"]
        except (OSError, ValueError, ConfigError) as error:
            raise StageError(f"{folder}: not the training data of a project: {error}") from error

    def are_of(self, spec: Spec) -> bool:
        """Whether a model of that spec was trained on them."""
        return spec.content_hash == self.spec.content_hash

    def nearest(self, samples: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """As `nearest_examples`."""
        return nearest_examples(samples, self.space, self._stored, count)
