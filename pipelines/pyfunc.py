"""The registered model: MLflow runs this file ("models from code") beside the generator's two files.

A generator needs no input: the parameters say everything. Where there is a table, each row is a request, and
its columns come before the parameters of the same name. Equal requests give equal samples, whatever the other
rows ask. The output is uint8, the samples of all requests one after another; images are `[N, H, W, C]`.

    model.predict(None, params={"n": 16, "seed": 1})  # a call gives 128 MiB at most: 171,196 images of 28x28
    model.predict(pandas.DataFrame({"label": [3, 8], "n": [2, 5]}))
    model.predict(pandas.DataFrame({"attributes": [[0.5, 1.0]], "n": [2]}))  # if it is told any; in their order

A generator that translates takes images, uint8 `[N, H, W, C]`, and gives as many:

    model.predict(images, params={"seed": 1})
"""

from __future__ import annotations

import importlib.metadata
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from mlflow.models import ModelSignature, set_model
from mlflow.pyfunc import PythonModel
from mlflow.types import ParamSchema, ParamSpec, Schema, TensorSpec
from numpy.typing import NDArray
from packaging.version import Version
from torch import Tensor

from ganlib import registry
from ganlib.export import Generator, load_generator

__all__ = ["GeneratorModel", "logged"]

# MLflow's schemas have no "not given": a label of −1 means classes in turn, no attributes those of real examples in
# turn, a truncation of 0 none.
DEFAULTS: dict[str, Any] = {"n": 1, "seed": 0, "label": -1, "truncation": 0.0, "attributes": []}
TYPES = {"n": "long", "seed": "long", "label": "long", "truncation": "double", "attributes": "double"}
OUTPUT_BYTES = 2**27
"""what one call of `predict` gives at most; making it takes some 16 times as much memory"""
# what `ganlib.export` and this file import; `ganlib` itself travels with the model
REQUIREMENTS = ("mlflow", "numpy", "packaging", "pandas", "pillow", "pydantic", "ruamel.yaml", "safetensors", "torch")


class GeneratorModel(PythonModel):
    """A generator behind MLflow's `predict`."""

    generator: Generator

    def load_context(self, context: Any) -> None:
        self.generator = load_generator(context.artifacts["generator"])

    def predict(
        self,
        context: Any,
        model_input: pd.DataFrame,  # or images: MLflow checks nothing by this hint, and warns of most others
        params: dict[str, Any] | None = None,
    ) -> NDArray[np.uint8]:
        """Samples, uint8 `[N, ...]`. Raises ValueError for an unknown column, a value out of range, or images where
        none are taken or of another shape."""
        if self.generator.translates:
            return self._translate(model_input, {**DEFAULTS, **(params or {})})
        requests = [{**DEFAULTS, **(params or {}), **asked} for asked in _requests(model_input)]
        channels, *size = self.generator.spec.shape
        at_most = max(1, OUTPUT_BYTES // (channels * math.prod(size)))
        if (asked := sum(max(0, int(request["n"])) for request in requests)) > at_most:
            raise ValueError(f"n: {asked} samples in one call, expected at most {at_most}")
        made = [self._sample(request) for request in requests]
        return np.concatenate(made) if made else np.empty((0, *size, channels), np.uint8)

    def _sample(self, asked: dict[str, Any]) -> NDArray[np.uint8]:
        samples = self.generator.sample(
            int(asked["n"]),
            seed=int(asked["seed"]),
            label=None if asked["label"] == DEFAULTS["label"] else int(asked["label"]),
            attributes=torch.tensor(told) if (told := list(asked["attributes"])) else None,
            truncation=asked["truncation"] or None,
        )["sample"]
        return self._stored(samples)

    def _translate(self, images: Any, asked: dict[str, Any]) -> NDArray[np.uint8]:
        if images is None:
            raise ValueError("this generator translates: give it images, uint8 [N, H, W, C]")
        stored = torch.from_numpy(np.moveaxis(np.asarray(images, np.uint8), -1, 1).copy())
        given = registry.load("data", self.generator.spec.kind).decode(stored)
        return self._stored(self.generator.translate(given, seed=int(asked["seed"])))

    def _stored(self, samples: Tensor) -> NDArray[np.uint8]:
        stored: Tensor = registry.load("data", self.generator.spec.kind).quantise(samples)
        return np.moveaxis(stored.numpy(), 1, -1)


def _requests(model_input: Any) -> list[dict[str, Any]]:
    if model_input is None:
        return [{}]
    table = model_input if isinstance(model_input, pd.DataFrame) else pd.DataFrame(model_input)
    unknown = [str(name) for name in table.columns if name not in DEFAULTS]
    if unknown:
        raise ValueError(f"unknown column {', '.join(unknown)}; known: {', '.join(DEFAULTS)}")
    if table.columns.empty:
        return [{}]
    rows = table.to_dict("records")  # a row that says less than others holds NaN
    return [{name: value for name, value in row.items() if not np.all(pd.isna(value))} for row in rows]


def logged(folder: Path) -> dict[str, Any]:
    """What `mlflow.pyfunc.log_model` is to log for the generator in `folder`."""
    import ganlib

    generator = load_generator(folder)
    spec = generator.spec
    made = Schema([TensorSpec(np.dtype(np.uint8), (-1, *spec.shape[1:], spec.shape[0] - spec.given))])
    if generator.translates:
        images = (*spec.shape[1:], spec.given)
        taken = Schema([TensorSpec(np.dtype(np.uint8), (-1, *images))])
        example: Any = np.zeros((1, *images), np.uint8)
    else:
        taken, example = None, pd.DataFrame({"n": [4], "seed": [0]})
    names = ["seed"] if generator.translates else ["n", "seed", "label", "truncation"]
    names += ["attributes"] if generator.game.attributes else []
    return {
        "python_model": __file__,
        "artifacts": {"generator": folder.resolve().as_uri()},  # MLflow takes a path for an address, too
        # The model runs with the code it was made with, wherever it is loaded.
        "code_paths": [str(Path(ganlib.__file__).parent)],
        # PyPI has no local versions, such as 2.13.0+cpu
        "pip_requirements": [f"{name}=={Version(importlib.metadata.version(name)).public}" for name in REQUIREMENTS],
        "input_example": example,
        "signature": ModelSignature(
            inputs=taken,
            outputs=made,
            params=ParamSchema([_param(name) for name in names]),
        ),
        "metadata": {"kind": spec.kind, "classes": list(spec.classes), "attributes": list(spec.attributes)},
    }


def _param(name: str) -> ParamSpec:
    return ParamSpec(name, TYPES[name], DEFAULTS[name], shape=(-1,) if name == "attributes" else None)


set_model(GeneratorModel())
