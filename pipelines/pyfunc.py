"""The registered model: MLflow runs this file ("models from code") with the generator's two files.

A generator needs no input: the parameters say everything. Where there is a table, each row is a request, and
its columns come before the parameters of the same name. Equal requests give equal samples, independent of
the other rows. The samples of all requests come one after another, as their kind of data presents them: images as uint8
`[N, H, W, C]`.

A `label` is the name of a class, here as in `ganlib sample --label`: in data of classes 1 to 10, 3 (or "3", or 3.0) is
the class called "3". Only the string "#3" is an index, that of the fourth class. Without a label classes take turns.
As a parameter it is a number where all classes are called by whole numbers from 0 on (-1: in turn), else a string
("": in turn): MLflow's signatures give a parameter one type, and MLflow refuses the other. A table's column takes both.

    model.predict(None, params={"n": 16, "seed": 1})  # a call gives 128 MiB at most: 171,196 images of 28x28
    model.predict(pandas.DataFrame({"label": ["cat", "dog"], "n": [2, 5]}))
    model.predict(pandas.DataFrame({"attributes": [[0.5, 1.0]], "n": [2]}))  # in their order and units
    model.predict(None, params={"n": 16, "where": ["churn=yes", "tenure<12"]})  # rows of tables

A generator that makes samples of something takes it in the same form, as a mapping if it is several things, and gives
as many:

    model.predict(images, params={"seed": 1})

A model may also answer questions about examples that exist; the names of its answers are in its metadata, and
`answer` asks for one. Examples go in as samples come out (with their given parts, a mapping of all parts by name), and
each gets its answer: float32 `[N]` or `[N, K]`. An answer that looks like a sample is presented as samples are.

    scores = model.predict(images, params={"answer": "score"})
"""

from __future__ import annotations

import importlib.metadata
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature, infer_signature, set_model
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc import PythonModel
from mlflow.types import ParamSchema, ParamSpec, Schema, TensorSpec
from numpy.typing import NDArray
from packaging.version import Version
from torch import Tensor

from ganlib.data._classes import class_name, label_of
from ganlib.data._spec import Spec
from ganlib.export import Generator, load_generator, whole_number

__all__ = ["GeneratorModel", "RequestError", "logged"]

# MLflow's schemas have no "not given": a label of −1 or "" means classes in turn, no attributes those of real examples
# in turn, a truncation of 0 none, an empty answer samples.
DEFAULTS: dict[str, Any] = {
    "n": 1,
    "seed": 0,
    "label": "",
    "truncation": 0.0,
    "attributes": [],
    "where": [],
    "answer": "",
}
TYPES = {
    "n": "long",
    "seed": "long",
    "label": "string",
    "truncation": "double",
    "attributes": "double",
    "where": "string",
    "answer": "string",
}
OUTPUT_BYTES = 2**27
"""what one call of `predict` gives at most; making it takes some 16 times as much memory"""
# what `ganlib.export` and this file import; `ganlib` itself travels with the model
REQUIREMENTS = ("mlflow", "numpy", "packaging", "pandas", "pillow", "pydantic", "ruamel.yaml", "safetensors", "torch")


class RequestError(MlflowException, ValueError):
    """A ValueError whose line MLflow's server passes on to the client; of others it says only that they came."""


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
    ) -> Any:
        """Samples as the kind of data presents them, or an answer for each row. Raises RequestError for an unknown
        column or answer, a value out of range, or rows that are not like those it was trained on."""
        try:
            given = {name: value for name, value in (params or {}).items() if value is not None}
            return self._predict(model_input, given)
        except ValueError as error:
            raise RequestError(str(error), INVALID_PARAMETER_VALUE) from error

    def _predict(self, model_input: Any, params: dict[str, Any]) -> Any:
        if name := params.get("answer"):
            return self._answer(name, model_input, params)
        if self.generator.translates:
            return self._of_given(model_input, {**DEFAULTS, **params})
        requests = [{**DEFAULTS, **params, **asked} for asked in _requests(model_input)]
        about = self.generator.spec.parts["sample"]
        at_most = max(1, OUTPUT_BYTES // about.stored_bytes)
        if (asked := sum(whole_number("n", request["n"], least=1) for request in requests)) > at_most:
            raise ValueError(f"n: {asked} samples in one call, expected at most {at_most}")
        made = [self._sample(request) for request in requests]
        return self.generator.present(torch.cat(made) if made else torch.empty(0, *about.shape))

    def _sample(self, asked: dict[str, Any], given: dict[str, Tensor] | None = None) -> Tensor:
        attributes = _numbers("attributes", asked["attributes"], 1)
        options: dict[str, Any] = {
            "seed": asked["seed"],
            "label": self._label(asked["label"]),
            "attributes": torch.from_numpy(attributes) if len(attributes) else None,
            "truncation": float(_numbers("truncation", asked["truncation"], 0)) or None,
        }
        if conditions := _strings("where", asked["where"]):
            where = self.generator.where(conditions)
            return torch.cat(list(self.generator.stream(asked["n"], where=where, **options)))
        return self.generator.sample(asked["n"], given=given, **options)["sample"]

    def _label(self, asked: Any) -> int | None:
        """The index of the class that is asked for by its name; None: classes in turn."""
        classes = self.generator.spec.classes
        name = class_name(asked)
        if name is None or (name == "-1" and name not in classes):
            return None
        try:
            return label_of(classes, asked)
        except ValueError as error:
            raise ValueError(f"label: {error}") from None

    def _of_given(self, given: Any, asked: dict[str, Any]) -> Any:
        spec = self.generator.spec
        if given is None:
            raise ValueError(f"this generator makes samples of {', '.join(spec.given)}: give it some")
        raw = {spec.given[0]: given} if len(spec.given) == 1 else given
        if self.generator.game.attributes and not len(_numbers("attributes", asked["attributes"], 1)):
            raise ValueError(f"attributes: expected each of {', '.join(spec.attributes)}")
        parts = {name: self.generator.take(name, raw[name]) for name in spec.given}
        n = len(next(iter(parts.values())))
        return self.generator.present(self._sample(asked | {"n": n}, parts) if n else torch.empty(0, *spec.shape))

    def _answer(self, name: str, rows: Any, asked: dict[str, Any]) -> Any:
        generator, spec = self.generator, self.generator.spec
        shapes = generator.answer_shapes()
        if name not in shapes:
            raise ValueError(f"answer: {name!r} is not one of this model's; known: {', '.join(shapes) or 'none'}")
        if rows is None:
            raise ValueError(f"answer: {name!r} is about examples: give it some")
        raw = rows if len(spec.parts) > 1 else {"sample": rows}
        parts = {part: generator.take(part, raw[part]) for part in spec.parts}
        if generator.conditional and (label := self._label(asked.get("label"))) is not None:
            parts["label"] = torch.full((len(parts["sample"]),), label)
        if generator.game.attributes and len(attributes := _numbers("attributes", asked.get("attributes", []), 1)):
            parts |= generator.conditions(len(parts["sample"]), attributes=torch.from_numpy(attributes))
        if not len(parts["sample"]):
            return np.empty((0, *shapes[name]), np.float32)
        answers = generator.answer(parts)[name]
        return self.generator.present(answers) if shapes[name] == spec.shape else answers.numpy()


def _numbers(name: str, value: Any, dimensions: int) -> NDArray[np.float64]:
    """The value, numbers or their text, as an array of so many dimensions. Raises ValueError, naming it, for others."""
    try:
        numbers = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        numbers = None
    if numbers is None or numbers.ndim != dimensions:
        expected = "a list of numbers" if dimensions else "a number"
        raise ValueError(f"{name}: expected {expected}, found {value!r}")
    return numbers


def _strings(name: str, value: Any) -> list[str]:
    """The value, a string or several, as a list. Raises ValueError, naming it, for others."""
    strings = [value] * bool(value) if isinstance(value, str) else value
    if not isinstance(strings, list | tuple | np.ndarray) or not all(isinstance(one, str) for one in strings):
        raise ValueError(f"{name}: expected strings, found {value!r}")
    return [*strings]


def _shown(spec: Spec, part: str, rows: int) -> Any:
    """An example of what goes in or comes out."""
    about = spec.parts[part]
    return spec.kind.present(spec.sample, part, np.zeros((rows, *about.stored), about.dtype))


def _requests(model_input: Any) -> list[dict[str, Any]]:
    if model_input is None:
        return [{}]
    known = [name for name in DEFAULTS if name != "answer"]
    if isinstance(model_input, np.ndarray):
        raise ValueError(
            f"this generator makes samples of noise: expected no input, or a table of requests with columns of "
            f"{', '.join(known)}; found an array of shape {list(model_input.shape)}"
        )
    if isinstance(model_input, Mapping):
        # in a single row, these two are lists
        alone = [x for name, x in model_input.items() if name not in ("attributes", "where")]
        if alone and all(map(pd.api.types.is_scalar, alone)):
            model_input = [model_input]
    table = model_input if isinstance(model_input, pd.DataFrame) else pd.DataFrame(model_input)
    unknown = [str(name) for name in table.columns if name not in known]
    if unknown:
        raise ValueError(f"unknown column {', '.join(unknown)}; known: {', '.join(known)}")
    if table.columns.empty:
        return [{}]
    rows = table.to_dict("records")  # a row that says less than others holds NaN
    return [{name: value for name, value in row.items() if not np.all(pd.isna(value))} for row in rows]


def logged(folder: Path) -> dict[str, Any]:
    """What `mlflow.pyfunc.log_model` is to log for the generator in `folder`."""
    import ganlib

    generator = load_generator(folder)
    spec = generator.spec
    made = _schema(_shown(spec, "sample", 1))
    if generator.translates:
        of_parts = {name: _shown(spec, name, 1) for name in spec.given}
        example: Any = of_parts if len(of_parts) > 1 else of_parts[spec.given[0]]
        taken = _schema(example)
    else:
        taken, example = None, pd.DataFrame({"n": [4], "seed": [0]})
    names = ["n", "seed", "label", "truncation"]
    if generator.translates:
        names = ["seed", "label"] if generator.conditional else ["seed"]
    names += ["attributes"] if generator.game.attributes else []
    names += ["where"] if spec.kind.where is not None else []
    answers = sorted(generator.answer_shapes())
    if answers:  # an answer takes examples with all parts, which a signature of the given parts would refuse
        names, taken = [*names, "answer"], None
    return {
        "python_model": __file__,
        "artifacts": {"generator": folder.resolve().as_uri()},  # MLflow takes a path for an address, too
        # The model runs with the code it was made with, also in other environments.
        "code_paths": [str(Path(ganlib.__file__).parent)],
        # PyPI has no local versions, such as 2.13.0+cpu
        "pip_requirements": [f"{name}=={Version(importlib.metadata.version(name)).public}" for name in REQUIREMENTS],
        "input_example": example,
        "signature": ModelSignature(
            inputs=taken,
            outputs=made,
            params=ParamSchema([_param(name, spec) for name in names]),
        ),
        "metadata": {
            "kind": spec.kind.name,
            "classes": list(spec.classes),
            "attributes": list(spec.attributes),
            **({"answers": answers} if answers else {}),
        },
    }


def _schema(example: Any) -> Schema:
    """The schema of data like the example, for any number of rows."""
    if isinstance(example, np.ndarray):
        return Schema([TensorSpec(example.dtype, (-1, *example.shape[1:]))])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # whole numbers cannot be missing: these can, where any was
        return infer_signature(example).inputs


def _param(name: str, spec: Spec) -> ParamSpec:
    if name == "label" and all(re.fullmatch(r"0|[1-9]\d*", one) for one in spec.classes):
        return ParamSpec(name, "long", -1)  # MLflow makes no string of a number
    return ParamSpec(name, TYPES[name], DEFAULTS[name], shape=(-1,) if isinstance(DEFAULTS[name], list) else None)


set_model(GeneratorModel())
